"""One mirror's remote tree from one connection to the next: prepared once for each, marked, and noted as used."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from rda.deferreds import InThread
from rda.errors import RdaError
from rda.interfaces import IRemoteFiles, IRemoteHost
from rda.sync.manifest import Manifest
from rda.sync.remote import RemoteTree
from rda.sync.tree import Kind


class Session:
    """Where a mirror's remote tree is, and how it is reached at the moment.

    :param base: gives the mirror's directory on the remote, once it is known.
    :param root: of the local tree.
    :param seconds: a clock, to measure the round trip with.

    :ivar remote: the tree over the latest connection; None when there is none that is prepared.
    :ivar path: of the tree, as the daemon has to mount it; "" while it is not known.
    :ivar removed: somebody removed the tree on the remote host, so that it had to be made anew.
    """

    _log = Logger()

    def __init__(
        self,
        host: IRemoteHost,
        base: Callable[[], Deferred[bytes]],
        kind: Kind,
        root: bytes,
        in_thread: InThread,
        seconds: Callable[[], float],
    ) -> None:
        self._host = host
        self._base = base
        self._kind = kind
        self._root = root
        self._in_thread = in_thread
        self._seconds = seconds
        self._marked: Deferred[None] = succeed(None)
        self.remote: RemoteTree | None = None
        self.path = ""
        self.removed = False

    def is_up(self) -> bool:
        """Whether the tree is prepared, and its connection is not known to be lost."""
        return self.remote is not None and not self.remote.files.lost

    async def prepared(self, manifest: Manifest, examine: bool) -> tuple[RemoteTree, bool]:
        """The remote tree, ready; True when what is known of it has only just been found out.

        :param examine: make sure that nobody has removed it.
        :raises RdaError: it cannot be had.
        """
        remote, fresh = await self._connected(manifest)
        if examine and not fresh and not await remote.is_there():
            self.remote = None  # it was removed on the remote host: make it anew
            remote, fresh = await self._connected(manifest)
        return remote, fresh

    async def _connected(self, manifest: Manifest) -> tuple[RemoteTree, bool]:
        """The remote tree, prepared once for every SFTP channel; True when it was prepared just now."""
        files: IRemoteFiles = await self._host.files()
        if self.remote is not None and self.remote.files is files and not files.lost:
            return self.remote, False
        self.remote = None
        base = await self._base()
        remote = RemoteTree(files, base, self._kind, self._seconds)
        found = await remote.prepare(await self._in_thread(_mode_of, self._root))
        if not found.has_tree and manifest.meta("generation") is not None:
            self.removed = True
            self._log.warn("{path} was removed on the remote host, and is made anew", path=os.fsdecode(remote.tree))
        if found.generation is None or found.generation != manifest.meta("generation") or not found.has_tree:
            manifest.forget_everything()
            self._marked = Deferred.fromCoroutine(self._mark(manifest, remote, found.generation is not None))
        else:
            self._marked = Deferred.fromCoroutine(self._mark(manifest, remote, None))
        ours, others = await remote.judge(manifest.doubtful)
        manifest.settle([(path, entry.uncertain(), None) for path, entry in ours], (), others)
        if self._kind == Kind.FILE and not found.has_tree:
            await files.close(await files.open(remote.tree, write=True, create=True))
        self.remote = remote
        self.path = os.fsdecode(remote.tree)
        return remote, True

    def note_use(self, manifest: Manifest) -> None:
        """It has just been used: its age counts from now."""
        if self.remote is not None and self.is_up():
            self._marked = Deferred.fromCoroutine(self._mark(manifest, self.remote, None))

    async def marked(self) -> None:
        """Wait until the marks that were begun are made, or have failed."""
        await self._marked

    async def _mark(self, manifest: Manifest, remote: RemoteTree, replaces: bool | None) -> None:
        """Mark the tree as the one that the manifest knows, and as used. Runs beside the first transfer.

        :param replaces: whether there is another mark to replace; None when it is the right one.

        When it fails, the tree is not believed to be ours next time, and is compared: nothing worse.
        """
        try:
            if replaces is not None:
                manifest.remember("generation", await remote.new_generation(replaces))
            await remote.used_now(int(time.time()))
        except (OSError, RdaError) as error:
            self._log.info("cannot mark {path}: {error}", path=self.path, error=error)


def _mode_of(root: bytes) -> int:
    """Permission bits for the remote directory, before anything else is known of the local one."""
    try:
        return os.stat(root).st_mode & 0o7777 | 0o700
    except OSError:
        return 0o755
