"""Give things their names in the remote tree: only inside the tree, and never over something of somebody else's.

What is complete in the stage gets its name by one rename, so whoever reads there sees whole versions only. A new name
is given with operations that refuse to replace anything; what turns out to be in the way is compared, and adopted or
kept beside ours.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from rda.deferreds import Waiters, gather
from rda.interfaces import IRemoteFiles
from rda.sync.manifest import Manifest
from rda.sync.plan import Plan, Put
from rda.sync.record import Record
from rda.sync.remote import RemoteTree, blocked
from rda.sync.tree import OWNER_KEEPS_ACCESS, Entry, Kind, lineage, parent, printable

#: What is read at once of two files that are compared (the server may give less).
COMPARED = 256 * 1024


@dataclass(frozen=True)
class Staged:
    """A file whose content is complete in the stage."""

    temporary: bytes
    entry: Entry
    steady: bool
    digest: bytes | None


class Publisher:
    """Gives names in one remote tree, for one plan.

    Before the first name is given, :meth:`ready` waits for two things that run beside the first transfers: a look at
    the directories that will hold them, and the intents, which have to be in the manifest's file by then.
    """

    def __init__(self, remote: RemoteTree, manifest: Manifest, record: Record) -> None:
        self._remote = remote
        self._files: IRemoteFiles = remote.files
        self._manifest = manifest
        self._record = record
        self._misplaced: dict[bytes, str] = {}
        self._under_way = False
        self._failure: Failure | None = None
        self._waiters: Waiters[None] = Waiters()

    # -- is it inside?

    def begin(self, plan: Plan, intending: Deferred[None]) -> None:
        """Look at the directories that will hold what is in the plan.

        :param intending: fires when the intents are written.
        """
        self._under_way = True
        looking = Deferred.fromCoroutine(self._look_at_parents(plan))
        Deferred.fromCoroutine(gather(looking, intending)).addBoth(self._ended)

    def _ended(self, result: Any) -> None:
        self._under_way = False
        self._failure = result if isinstance(result, Failure) else None
        self._waiters.fire(None)

    async def _look_at_parents(self, plan: Plan) -> None:
        made = {path for path, _ in plan.make}
        parents = {parent(path) for path, _ in (*plan.clear, *plan.make, *plan.adjust, *plan.remove)}
        parents.update(parent(put.path) for put in (*plan.put, *plan.link))
        self._misplaced.update(await self._remote.misplaced(parents - made))
        for path in made:
            self._misplaced.pop(path, None)

    async def ready(self) -> None:
        """Wait until names may be given.

        :raises RdaError: the connection was lost meanwhile.
        """
        await self.over()
        if self._failure is not None:
            self._failure.raiseException()

    async def over(self) -> None:
        """Wait until nothing runs beside the transfers any more; what became of it only :meth:`ready` tells."""
        if self._under_way:
            await self._waiters.wait()

    def is_lost(self, path: bytes) -> bool:
        """Whether a directory above is not what we had made there, so that what we had put into it is gone."""
        return blocked(path, self._misplaced) is not None

    async def is_inside(self, path: bytes) -> bool:
        """Whether every directory above is a real one; makes those again that somebody removed."""
        await self.ready()
        trouble = blocked(path, self._misplaced)
        if trouble is None:
            return True
        if trouble[1] == "is missing":
            await self._make_parents(path)
            return True
        self._record.not_inside(path, f"its directory {printable(trouble[0])} {trouble[1]}")
        return False

    async def _make_parents(self, path: bytes) -> None:
        for above in reversed(list(lineage(parent(path)))[:-1]):
            if above in self._misplaced:
                known = self._manifest.entries.get(above)
                await self.make_directory(above, 0o755 if known is None else known.mode)
                self._misplaced.pop(above, None)

    # -- directories

    async def make_directory(self, path: bytes, mode: int) -> None:
        """Make a directory, or adopt the one that is there."""
        full, mode = self._remote.full(path), mode | OWNER_KEEPS_ACCESS
        adopted = False
        try:
            await self._files.make_directory(full, mode)
        except FileExistsError:
            adopted = await self.is_directory(full)
            if not adopted:
                await self.move_aside(path)
                await self._files.make_directory(full, mode)
        try:
            await self._files.set_attributes(full, mode, None)  # the server's umask has had its way with mkdir's
        except PermissionError:
            if not adopted:  # else it is a container's, with the mode that the container gave it
                raise

    async def publish_directory(self, path: bytes, temporary: bytes) -> bool:
        """Give a directory that is complete in the stage its name; False when something else has it."""
        try:
            if await self.is_inside(path):
                await self._files.rename_new(temporary, self._remote.full(path))
                return True
        except OSError:  # adopted, or explained, path by path
            pass
        await self._remote.remove_below(temporary)
        await self._files.remove_directory(temporary)
        return False

    async def is_directory(self, full: bytes) -> bool:
        """Whether there is a directory at an absolute path."""
        try:
            return stat.S_ISDIR((await self._files.attributes(full)).mode)
        except FileNotFoundError:
            return False

    # -- files

    async def settle(self, put: Put, staged: Staged) -> None:
        """Give a complete temporary its name, and write down what is there now.

        :raises OSError: the server refused.
        """
        if not await self.is_inside(put.path):
            await self._remote.discard(staged.temporary)
            return
        try:
            await self.publish(put, staged.temporary, staged.entry)
        except OSError:
            await self._remote.discard(staged.temporary)
            raise
        self._record.read(put.path, staged.entry, staged.steady, staged.digest)

    async def settle_or_fail(self, put: Put, staged: Staged) -> None:
        """:meth:`settle`; a refusal becomes a problem of the path."""
        try:
            await self.settle(put, staged)
        except OSError as error:
            await self._record.failed(put.path, error, put.entry.size)

    async def publish(self, put: Put, temporary: bytes, entry: Entry) -> None:
        """Give a file or symbolic link in the stage its name.

        :raises OSError: the server refused.
        """
        full = self._remote.full(put.path)
        if put.ours:
            await self._replace(put.path, full, temporary)
            return
        try:
            await self._files.rename_new(temporary, full)
        except FileExistsError:
            if entry.kind == Kind.FILE and await self._same(temporary, full, entry):
                await self._files.rename(temporary, full)
                return
            await self.move_aside(put.path)
            await self._files.rename_new(temporary, full)

    async def _replace(self, path: bytes, full: bytes, temporary: bytes) -> None:
        try:
            await self._files.rename(temporary, full)
        except FileNotFoundError:
            raise
        except OSError:
            if not await self.is_directory(full):
                raise
            await self.move_aside(path)
            await self._files.rename(temporary, full)

    async def _same(self, ours: bytes, theirs: bytes, entry: Entry) -> bool:
        """Whether a file that is in the way holds the same: then nobody loses anything."""
        found = await self._files.attributes(theirs)
        if not stat.S_ISREG(found.mode) or found.size != entry.size:
            return False
        handles: list[bytes] = []
        try:
            for path in (ours, theirs):
                handles.append(await self._files.open(path, write=False))
            return await self._same_content(handles, entry.size)
        except PermissionError:
            return False
        finally:
            for handle in handles:
                self._files.close(handle).addErrback(lambda _: None)

    async def _same_content(self, handles: list[bytes], size: int) -> bool:
        offset = 0
        while offset < size:
            mine, other = await gather(*(self._files.read_at(handle, offset, COMPARED) for handle in handles))
            length = min(len(mine), len(other))
            if not length or mine[:length] != other[:length]:
                return False
            offset += length
        return True

    async def move_aside(self, path: bytes) -> None:
        """Keep what somebody else made under another name beside it.

        :raises OSError: the server refused, or there are too many copies already.
        """
        full = self._remote.full(path)
        for number in range(1, 1000):
            copy = path + b".rda-conflict" + (b"-%d" % number if number > 1 else b"")
            try:
                await self._files.rename_new(full, self._remote.full(copy))
            except FileExistsError:
                continue
            self._record.moved_aside(path, copy)
            return
        raise OSError(errno.EEXIST, "too many conflict copies of it are on the remote host already")
