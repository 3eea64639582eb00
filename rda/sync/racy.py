"""Remote files whose times could not show another change: looked at again, by content, until they can.

SFTP tells times in whole seconds. A file that is looked at within the second of its last change may change once more
and look the same ever after; git calls such files racily clean. Where the remote host tells nothing finer, they are
kept in mind with a digest of what both sides agreed on, and every look compares their content with it, up to and
including the first one that is made when their second is over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from rda.deferreds import InThread, each
from rda.sync import content
from rda.sync.manifest import Manifest
from rda.sync.remote import RemoteTree
from rda.sync.tree import Entry, Kind, RemoteSnapshot

#: Files that are kept in mind. Of more that change within two seconds, the others are told by their times alone.
FILES = 1000

#: Bytes that one look compares, beyond the file that exceeds it; the others wait for the next look.
BYTES = 32 * 1024 * 1024

#: Files that are read at once, and what is asked for at once of each (a server may give less).
FILES_AT_ONCE = 8
PIECE = 256 * 1024

#: Seconds that the remote clock may be behind what a file system of its host stamps (network file systems).
SLACK = 1


@dataclass(frozen=True)
class _Unsure:
    """One file as both sides agreed on it.

    :ivar digest: of its content.
    """

    size: int
    mtime: int
    digest: bytes

    def is_still(self, entry: Entry) -> bool:
        return entry.kind == Kind.FILE and (entry.size, entry.mtime) == (self.size, self.mtime)


class Racy:
    """The racily clean files of one remote tree.

    :param root: of the local tree.
    """

    def __init__(self, root: bytes, in_thread: InThread) -> None:
        self._root = root
        self._in_thread = in_thread
        self._unsure: dict[bytes, _Unsure] = {}

    async def edited(self, remote: RemoteTree, found: RemoteSnapshot, now: int) -> set[bytes]:
        """Which files have changed although a look shows them as before.

        :param now: the remote clock, before the look, in seconds.
        :raises LinkDown: the connection is lost.
        """
        different: set[bytes] = set()
        budget = BYTES

        async def compare(path: bytes) -> None:
            nonlocal budget
            unsure = self._unsure[path]
            if budget <= 0:
                return
            budget -= unsure.size
            try:
                digest = await _digest(remote, path, unsure.size)
            except OSError:  # gone again, or closed: the next look tells
                return
            if digest != unsure.digest:
                different.add(path)
                del self._unsure[path]
            elif unsure.mtime + SLACK < now:
                del self._unsure[path]

        for path, unsure in list(self._unsure.items()):
            entry = found.entries.get(path)
            if not found.hides(path) and (entry is None or not unsure.is_still(entry)):
                del self._unsure[path]
        await each(list(self._unsure), FILES_AT_ONCE, compare)
        return different

    async def keep(
        self, found: RemoteSnapshot, ours: Iterable[bytes], pending: Iterable[bytes], manifest: Manifest, now: int
    ) -> None:
        """Both sides agree on everything but what is pending.

        :param found: by the look before, at ``now``.
        :param ours: what was put there since.
        """
        left_out, young = set(pending), []
        candidates = {path for path, entry in found.entries.items() if entry.mtime + SLACK >= now}
        for path in (candidates | set(ours)) - left_out:
            entry = manifest.entries.get(path)
            if entry is None or entry.kind != Kind.FILE or entry.mtime + SLACK < now:
                continue
            unsure = self._unsure.get(path)
            if unsure is None or not unsure.is_still(entry):
                young.append((path, entry))
        young = young[: max(FILES - len(self._unsure), 0)]
        if young:
            digests = await self._in_thread(content.digests, self._root, young)
            for path, entry in young:
                if path in digests:
                    self._unsure[path] = _Unsure(entry.size, entry.mtime, digests[path])


async def _digest(remote: RemoteTree, path: bytes, size: int) -> bytes:
    """Of a remote file's content, as it is now.

    :param size: of the version that it is compared with: of one that is longer no more is read, as it may have no end.
    :raises OSError: it cannot be read.
    """
    handle = await remote.files.open(remote.full(path), write=False)
    digest, offset = hashlib.sha256(), 0
    try:
        while offset <= size and (data := await remote.files.read_at(handle, offset, PIECE)):
            digest.update(data)
            offset += len(data)
    finally:
        remote.files.close(handle).addErrback(lambda _: None)
    return digest.digest()
