"""Copies that were given up for that of a directory above: in their place is a symbolic link into that one.

A container's mounts are fixed when it is created, by path, and found when it is started. Of several containers that are
created together (as by ``docker compose up``), one that mounts a directory may come before one that mounts a directory
above it. As long as none of the first ones has ever been started, the tree of their copy can still become a link to the
directory inside the other copy; the daemon follows it. A container that mounts the directory later is given its place
in the other copy at once, see :mod:`rda.sync.nested`.

The remote is the truth: a mark here only tells that it is worth a look.
"""

from __future__ import annotations

import os

from rda.errors import SyncFailed
from rda.interfaces import IRemoteFiles, IRemoteHost
from rda.sync.marks import Marks
from rda.sync.sync_root import SyncRoot
from rda.sync.uses import above

#: What is in the place of the tree, and where the tree is kept meanwhile.
TREE, KEPT = b"/tree", b"/kept"


class Joined:
    """The copies of one context that are links.

    :param marks: say which may be.

    :ivar servers: by source, the source whose copy its own one leads to.
    """

    def __init__(self, host: IRemoteHost, root: SyncRoot, marks: Marks) -> None:
        self._host = host
        self._root = root
        self._marks = marks
        self._known: set[str] = set()
        self.servers: dict[str, str] = {}

    async def learn(self, source: str) -> None:
        """Find out whether a source's copy is a link, once.

        :raises RdaError: the link to the host is down, or somebody else has put a link there.
        """
        if source in self._known:
            return
        if await self._marks.has(self._root.name(source)):
            target = await self._target(source)
            outer = next((one for one in above(source) if target == self._link(source, one)), None)
            if target is not None and outer is None:
                raise SyncFailed(f"the remote copy of {source} is a symbolic link that rda did not make. Remove it")
            if outer is not None:
                self.servers[source] = outer
        self._known.add(source)

    async def make(self, source: str, outer: str) -> None:
        """Put a link in the place of a source's copy. Nothing may be mirrored to it any more.

        :raises RdaError: it cannot be; the copy is as it was.
        """
        files: IRemoteFiles = await self._host.files()
        base = await self._root.base(source)
        try:
            await self._marks.give([self._root.name(source)])
            await files.rename_new(base + TREE, base + KEPT)
            try:
                await files.symlink(self._link(source, outer), base + TREE)
            except OSError:
                await files.rename_new(base + KEPT, base + TREE)
                raise
        except OSError as error:
            raise SyncFailed(f"the remote copy of {source} cannot be replaced by a link: {error.strerror}") from error
        self._known.add(source)
        self.servers[source] = outer

    async def part(self, source: str) -> None:
        """Give a source that nothing has mounted a copy of its own again, as it was.

        :raises RdaError: the link to the host is down, or it cannot be.
        """
        await self.learn(source)
        if source not in self.servers:
            return
        files: IRemoteFiles = await self._host.files()
        base = await self._root.base(source)
        try:
            await files.remove(base + TREE)  # the next session finds the tree where it is kept
        except FileNotFoundError:
            pass
        except OSError as error:
            raise SyncFailed(f"the link in the remote copy of {source} cannot be removed: {error.strerror}") from error
        del self.servers[source]
        await self._marks.take([self._root.name(source)])

    async def forget(self, name: str) -> None:
        """A copy, by its name, has been removed."""
        await self._marks.take([name])
        for source in [source for source in self.servers if self._root.name(source) == name]:
            del self.servers[source]

    def _link(self, source: str, outer: str) -> bytes:
        """What a link has to hold: relative, so that it leads to the same wherever the sync root is mounted."""
        inside = os.fsencode(os.path.relpath(source, outer))
        return b"../" + self._root.name(outer).encode() + TREE + b"/" + inside

    async def _target(self, source: str) -> bytes | None:
        """What the link in a source's copy holds; None when there is none."""
        files: IRemoteFiles = await self._host.files()
        try:
            target: bytes = await files.read_link(await self._root.base(source) + TREE)
        except OSError:  # nothing is there, or no link
            return None
        return target
