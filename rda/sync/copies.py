"""Copies on the remote host that nobody uses any more: what there is, how large, how old; and their removal.

Which copies are used is not known here: whoever asks says so, and is asked again right before one is removed.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from twisted.internet.defer import Deferred

from rda.deferreds import InThread, each
from rda.interfaces import Attributes, IRemoteFiles
from rda.status import Problem, RemoteCopy
from rda.sync.manifest import peek, remove_manifest
from rda.sync.remote import OPERATIONS_AT_ONCE, RemoteTree
from rda.sync.tree import Kind

#: Copies that are measured at once: each of them asks for many directories at once already.
MEASURED_AT_ONCE = 4


@dataclass(frozen=True)
class Collected:
    """What a collection did.

    :ivar removed: names of copies that are gone.
    :ivar kept: copies that should be gone, and why they are not.
    """

    removed: tuple[str, ...]
    kept: tuple[Problem, ...]


class Copies:
    """The copies of one owner below one sync root.

    :param root: of the sync, absolute.
    :param prefix: what the names of all copies of this owner begin with: others are somebody else's.
    :param manifests: local directory with a manifest for each copy.
    :param in_thread: runs a blocking function in a thread.
    """

    def __init__(self, files: IRemoteFiles, root: bytes, prefix: str, manifests: str, in_thread: InThread) -> None:
        self._files = files
        self._root = root
        self._prefix = prefix
        self._manifests = manifests
        self._in_thread = in_thread

    async def unused(self, used: Callable[[str], bool], mounted: Collection[str]) -> list[RemoteCopy]:
        """Find the copies that are not used, the longest unused ones first.

        :param used: whether a copy, by its name, is used by what is known here.
        :param mounted: remote paths that are mounted by what the daemon knows.
        """
        names = [name for name, found in await self._files.list(self._root) if stat.S_ISDIR(found.mode)]
        found: list[RemoteCopy] = []

        async def look(name: bytes) -> None:
            text = os.fsdecode(name)
            if not text.startswith(self._prefix) or used(text) or self._is_mounted(name, mounted):
                return
            copy = self._tree(name)
            source = await self._in_thread(peek, self._manifest(text), "source")
            found.append(RemoteCopy(text, source or "", await self._size(copy.tree), await self._age(copy)))

        await each(names, MEASURED_AT_ONCE, look)
        return sorted(found, key=lambda copy: copy.age, reverse=True)

    async def remove(self, copy: RemoteCopy, used: Callable[[str], bool], mounted: Collection[str]) -> Problem | None:
        """Remove one copy with everything in it, and its manifest; returns why not, or None.

        :raises RdaError: the link is down.
        """
        name = os.fsencode(copy.name)
        subject = copy.source or copy.name
        if "/" in copy.name or not copy.name.startswith(self._prefix):
            return Problem(subject, "is no copy of this context's, and is not touched")
        tree = self._tree(name)
        if used(copy.name) or self._is_mounted(name, mounted) or await self._age(tree) + 1 < copy.age:
            return Problem(subject, "is in use again, and stays")
        try:
            await tree.remove_everything()
        except FileNotFoundError:
            pass
        except OSError as error:
            return Problem(
                os.fsdecode(tree.base),
                f"cannot be removed by the remote user ({error.strerror}): a container made files in it that belong "
                "to somebody else. Remove it there, as root",
            )
        await self._in_thread(remove_manifest, self._manifest(copy.name))
        return None

    def _tree(self, name: bytes) -> RemoteTree:
        return RemoteTree(self._files, self._root + b"/" + name, Kind.DIRECTORY)

    def _manifest(self, name: str) -> str:
        return os.path.join(self._manifests, name + ".sqlite")

    def _is_mounted(self, name: bytes, mounted: Collection[str]) -> bool:
        base = os.fsdecode(self._root + b"/" + name)
        return any(path == base or path.startswith(base + "/") for path in mounted)

    async def _age(self, copy: RemoteTree) -> float:
        """Seconds since the last use; of one that was never finished, since it was made."""
        used = await copy.last_used()
        if used is None:
            try:
                used = (await self._files.attributes(copy.base)).mtime
            except FileNotFoundError:
                used = 0
        return max(time.time() - used, 0.0)

    async def _size(self, top: bytes) -> int:
        """Bytes of all files in a directory (or of the one file), as far as the remote user can look."""
        total = 0

        async def look(directory: bytes) -> None:
            nonlocal total
            try:
                found: list[tuple[bytes, Attributes]] = await self._files.list(directory)
            except OSError:
                return
            for name, attributes in found:
                if stat.S_ISDIR(attributes.mode):
                    below.append(directory + b"/" + name)
                else:
                    total += attributes.size

        try:
            whole = await self._files.attributes(top)
        except FileNotFoundError:
            return 0
        if not stat.S_ISDIR(whole.mode):
            return int(whole.size)
        below = [top]
        while below:
            now, below = below, []
            await each(now, OPERATIONS_AT_ONCE, look)
        return total


#: Tells which remote paths are mounted by what the daemon knows; fails when it cannot be asked.
Mounted = Callable[[], Deferred[frozenset[str]]]
