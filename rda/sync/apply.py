"""Carry a plan out on the remote, path by path: a path that fails is a problem of that path, and the rest goes on.

A file travels into a temporary, its size is checked, and only then it is renamed to its name: never a rename behind a
write that is not acknowledged, which on a full disk would publish half a file. New names are made with operations that
refuse to replace anything; what turns out to be in the way is compared, and adopted or kept beside ours.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from rda.interfaces import IRemoteFiles
from rda.sync import bulk, content, large
from rda.sync.bulk import Bulk, InThread
from rda.sync.large import Progress
from rda.sync.manifest import Manifest
from rda.sync.plan import Plan, Put
from rda.sync.remote import OPERATIONS_AT_ONCE, RemoteTree, blocked, each, gather
from rda.sync.tree import OWNER_KEEPS_ACCESS, Entry, Kind, depth, lineage, parent, printable, topmost

#: Files up to this size are read whole, many at a time.
SMALL = 256 * 1024

#: What one visit to the thread pool reads: at most this many files, or bytes (by their planned size).
BATCH_FILES = 64
BATCH_BYTES = 1024 * 1024

#: Batches under way at once: 256 files in flight cover a round trip of 40 ms; at most 4 MiB of content in memory.
BATCHES_AT_ONCE = 4

#: Large files under way at once.
LARGE_AT_ONCE = 2

#: What is read at once of two files that are compared (the server may give less).
COMPARED = 256 * 1024

#: A disk with fewer bytes left than this is called full.
FULL_BELOW = 1024 * 1024

#: More intents than this are written in a thread: they would hold everything else up for more than a few milliseconds.
INTENTS_AT_ONCE = 1000

#: Results are written to the manifest when so many have come together, and at the end.
RESULTS_AT_ONCE = 500

#: Conflict copies that one pass reports by name.
CONFLICTS_SHOWN = 100


@dataclass(frozen=True)
class Staged:
    """A file whose content is complete in the stage."""

    temporary: bytes
    entry: Entry
    steady: bool
    digest: bytes | None


@dataclass
class Outcome:
    """What became of a plan.

    :ivar problems: by path: what is wrong, and whether the mount is incomplete because of it.
    :ivar conflicts: what somebody else had put in the way, and where it was moved.
    :ivar again: paths that changed while they were read.
    """

    problems: dict[bytes, tuple[str, bool]] = field(default_factory=dict)
    conflicts: dict[bytes, bytes] = field(default_factory=dict)
    again: set[bytes] = field(default_factory=set)


class Apply:
    """Carries out one plan.

    :param root: of the local tree.
    :param in_thread: runs a blocking function in a thread and fires with its result.
    :param sender: what the remote's own commands do faster, where it runs any.
    """

    def __init__(
        self,
        root: bytes,
        remote: RemoteTree,
        manifest: Manifest,
        in_thread: InThread,
        progress: Progress,
        sender: Bulk,
    ) -> None:
        self._root = root
        self._remote = remote
        self._files: IRemoteFiles = remote.files
        self._manifest = manifest
        self._in_thread = in_thread
        self._progress = progress
        self._bulk = sender
        self._sender = large.Sender(remote.files, in_thread, progress, sender.copy)
        self.outcome = Outcome()
        self._put_results: list[tuple[bytes, Entry, bytes | None]] = []
        self._removed: list[bytes] = []
        self._undone: list[bytes] = []
        self._misplaced: dict[bytes, str] = {}
        self._guard: Deferred[None] | None = None
        self._full: str | None = None

    async def run(self, plan: Plan) -> Outcome:
        """Carry out ``plan``.

        :raises RdaError: when the connection is lost; the manifest then says what is certain and what is not.
        """
        intents = list(plan.new_entries())
        if len(intents) > INTENTS_AT_ONCE:
            await self._in_thread(self._manifest.intend, intents)
        else:
            self._manifest.intend(intents)
        self._manifest.doubt(put.path for put in (*plan.put, *plan.link))
        self._guard = Deferred.fromCoroutine(self._look_at_parents(plan))
        try:
            if plan.clear:
                await self._guarded()
            await self._by_depth(plan.clear, self._remove)
            plan = await self._send_bulk(plan)
            await self._by_depth(plan.make, self._make)
            await self._put_all(plan.put)
            await each(plan.link, OPERATIONS_AT_ONCE, self._link)
            await each(plan.adjust, OPERATIONS_AT_ONCE, self._adjust)
            await self._guarded()
            await self._by_depth(plan.remove, self._remove)
        finally:
            self._guard.addErrback(lambda _: None)  # who needed it has seen it
            self._write_results(at_least=1)
        return self.outcome

    # -- results

    def _done(self, path: bytes, entry: Entry, digest: bytes | None = None) -> None:
        self._put_results.append((path, entry, digest))
        self._progress.files_done += 1
        self._write_results(RESULTS_AT_ONCE)

    def _gone(self, path: bytes) -> None:
        self._removed.append(path)
        self._progress.files_done += 1
        self._write_results(RESULTS_AT_ONCE)

    def _not_done(self, path: bytes) -> None:
        """The remote is as it was before at this path."""
        self._undone.append(path)
        self._progress.files_done += 1

    def _write_results(self, at_least: int) -> None:
        if len(self._put_results) + len(self._removed) + len(self._undone) >= at_least:
            put, self._put_results = self._put_results, []
            removed, self._removed = self._removed, []
            undone, self._undone = self._undone, []
            self._manifest.settle(put, removed, undone)

    async def _failed(self, path: bytes, error: OSError) -> None:
        self.outcome.problems[path] = (await self._explain(error), True)
        self._progress.files_done += 1

    async def _explain(self, error: OSError) -> str:
        """The reason for people; SFTP says no more than "Failure" of a full disk, so it is asked for its space."""
        if isinstance(error, PermissionError):
            return (
                "the remote user may not write there: a container has probably changed the owner or mode of the "
                "directory"
            )
        if error.errno in (errno.EIO, errno.ENOSPC):
            if self._full is None:
                free = await self._files.space(self._remote.stage)
                self._full = (
                    f"the remote disk is full ({free} bytes free)" if free is not None and free < FULL_BELOW else ""
                )
            if self._full:
                return self._full
        return error.strerror or str(error)

    # -- is it inside?

    async def _look_at_parents(self, plan: Plan) -> None:
        """Runs beside the first transfers: its answer is needed before anything is renamed into place."""
        made = {path for path, _ in plan.make}
        groups: tuple[Iterable[bytes], ...] = (
            (p for p, _ in (*plan.clear, *plan.make, *plan.adjust, *plan.remove)),
            (put.path for put in (*plan.put, *plan.link)),
        )
        parents = {parent(path) for group in groups for path in group}
        self._misplaced.update(await self._remote.misplaced(p for p in parents if p not in made))
        for path in made:
            self._misplaced.pop(path, None)

    async def _guarded(self) -> None:
        """Wait until the directories above everything in the plan have been looked at."""
        guard = self._guard
        assert guard is not None
        if not guard.called:
            seen: Deferred[None] = Deferred()

            def looked(result: Any) -> Any:
                seen.callback(None)
                return result

            guard.addBoth(looked)
            await seen
        if isinstance(guard.result, Failure):
            guard.result.raiseException()

    async def _is_inside(self, path: bytes) -> bool:
        """Whether every directory above is a real one; makes those again that somebody removed."""
        await self._guarded()
        trouble = blocked(path, self._misplaced)
        if trouble is None:
            return True
        if trouble[1] == "is missing":
            await self._make_parents(path)
            return True
        self.outcome.problems[path] = (f"its directory {printable(trouble[0])} {trouble[1]}", False)
        self._not_done(path)
        return False

    async def _make_parents(self, path: bytes) -> None:
        for above in reversed(list(lineage(parent(path)))[:-1]):
            if above in self._misplaced:
                known = self._manifest.entries.get(above)
                await self._make_directory(above, 0o755 if known is None else known.mode)
                self._misplaced.pop(above, None)

    # -- directories and removals

    async def _by_depth(
        self,
        items: Sequence[tuple[bytes, Entry]],
        work: Callable[[tuple[bytes, Entry]], Awaitable[None]],
    ) -> None:
        """One level after the other: the server may carry out in any order what is asked for at once."""
        for _, level in groupby(items, key=lambda item: depth(item[0])):
            await each(list(level), OPERATIONS_AT_ONCE, work)

    async def _make(self, item: tuple[bytes, Entry]) -> None:
        path, entry = item
        if not path:  # the root is there: it was made before anything else
            await self._adjust(item)
            return
        try:
            if not await self._is_inside(path):
                return
            await self._make_directory(path, entry.mode)
        except OSError as error:
            await self._failed(path, error)
        else:
            self._done(path, entry)

    async def _make_directory(self, path: bytes, mode: int) -> None:
        full, mode = self._remote.full(path), mode | OWNER_KEEPS_ACCESS
        adopted = False
        try:
            await self._files.make_directory(full, mode)
        except FileExistsError:
            found = await self._files.attributes(full)
            adopted = stat.S_ISDIR(found.mode)
            if not adopted:
                await self._move_aside(path)
                await self._files.make_directory(full, mode)
        try:
            await self._files.set_attributes(full, mode, None)  # the server's umask has had its way with mkdir's
        except PermissionError:
            if not adopted:  # else it is a container's, with the mode that the container gave it
                raise

    async def _adjust(self, item: tuple[bytes, Entry]) -> None:
        path, entry = item
        try:
            if path and not await self._is_inside(path):
                return
            await self._files.set_attributes(self._remote.full(path), entry.mode | OWNER_KEEPS_ACCESS, None)
        except FileNotFoundError:  # a container removed it: in one-way mode that is the container's business
            pass
        except OSError as error:
            await self._failed(path, error)
            return
        self._done(path, entry)

    async def _remove(self, item: tuple[bytes, Entry]) -> None:
        path, entry = item
        if blocked(path, self._misplaced) is not None:  # what we had put there is not there any more
            self._gone(path)
            return
        full = self._remote.full(path)
        try:
            if entry.kind == Kind.DIRECTORY:
                await self._files.remove_directory(full)
            else:
                await self._files.remove(full)
        except FileNotFoundError:
            pass
        except PermissionError as error:
            await self._failed(path, error)
            return
        except OSError as error:
            if not await self._is_directory(full):
                await self._failed(path, error)
                return
            # It holds what a container made (or is a directory that a container made): that stays.
        self._gone(path)

    async def _is_directory(self, full: bytes) -> bool:
        try:
            return stat.S_ISDIR((await self._files.attributes(full)).mode)
        except FileNotFoundError:
            return False

    # -- symbolic links

    async def _link(self, put: Put) -> None:
        path, target = put.path, put.entry.target
        try:
            if not await self._is_inside(path):
                return
            if put.ours:
                temporary = self._remote.temporary_name()
                await self._files.symlink(target, temporary)
                await self._publish(put, temporary, put.entry)
            else:
                await self._link_new(path, target)
        except OSError as error:
            await self._failed(path, error)
        else:
            self._done(path, put.entry)

    async def _link_new(self, path: bytes, target: bytes) -> None:
        full = self._remote.full(path)
        try:
            await self._files.symlink(target, full)
        except FileExistsError:
            found = await self._files.attributes(full)
            if stat.S_ISLNK(found.mode) and await self._files.read_link(full) == target:
                return
            await self._move_aside(path)
            await self._files.symlink(target, full)

    # -- many files at once

    async def _send_bulk(self, plan: Plan) -> Plan:
        """Send what can be sent faster in one stream; returns what is left to do."""
        small = [put for put in plan.put if put.entry.size <= bulk.SMALL]
        sender = self._bulk
        if not sender.available or len(small) < bulk.WORTHWHILE or self._remote.kind == Kind.FILE:
            return plan
        tops = topmost(path for path, _ in plan.make if path)
        names = {top: self._remote.temporary_name() for top in tops}
        members: list[bulk.Member] = []
        inside: dict[bytes, list[tuple[bytes, Entry]]] = {top: [] for top in tops}
        loose: dict[bytes, tuple[Put, bytes]] = {}
        top_of: dict[bytes, bytes] = {}

        def add(path: bytes, entry: Entry) -> bool:
            top = path if path in tops else top_of.get(parent(path))
            if top is None:
                return False
            if entry.kind == Kind.DIRECTORY:  # parents come first
                top_of[path] = top
            inside[top].append((path, entry))
            members.append(bulk.Member(_base(names[top]) + path[len(top) :], path, entry))
            return True

        for path, entry in plan.make:
            add(path, entry)
        for put in small:
            if not add(put.path, put.entry):
                loose[put.path] = put, self._remote.temporary_name()
                members.append(bulk.Member(_base(loose[put.path][1]), put.path, put.entry))
        for put in plan.link:
            add(put.path, put.entry)
        sent = await sender.send(
            self._root, self._remote.stage, members, self._stream_progress, self._remote.round_trip
        )
        if sent is None:
            await self._remote.sweep()
            return plan
        await self._guarded()
        done: set[bytes] = set()

        async def publish_top(top: bytes) -> None:
            if await self._publish_directory(top, names[top]):
                for path, entry in inside[top]:
                    done.add(path)
                    if path in sent:
                        self._sent(path, sent[path])
                    else:
                        self._done(path, entry)

        async def publish_loose(path: bytes) -> None:
            done.add(path)
            put, temporary = loose[path]
            result = sent.get(path, bulk.Sent(put.entry, True, None))
            if isinstance(result, bulk.Sent):
                await self._settle_or_fail(put, Staged(temporary, result.entry, result.steady, result.digest))
            else:
                self._not_loaded(path, result)

        await each(tops, OPERATIONS_AT_ONCE, publish_top)
        await each(loose, OPERATIONS_AT_ONCE, publish_loose)
        return replace(
            plan,
            make=tuple(item for item in plan.make if item[0] not in done),
            put=tuple(put for put in plan.put if put.path not in done),
            link=tuple(put for put in plan.link if put.path not in done),
        )

    def _stream_progress(self, size: int) -> None:
        self._progress.check()
        self._progress.bytes_done += size

    async def _publish_directory(self, top: bytes, temporary: bytes) -> bool:
        """Give a directory that is complete in the stage its name; False when something else has it."""
        try:
            if await self._is_inside(top):
                await self._files.rename_new(temporary, self._remote.full(top))
                return True
        except OSError:  # adopted, or explained, path by path
            pass
        await self._remote.remove_below(temporary)
        await self._files.remove_directory(temporary)
        return False

    def _sent(self, path: bytes, result: bulk.Result) -> None:
        if isinstance(result, bulk.Sent):
            self._done_reading(path, result.entry, result.steady, result.digest)
        else:
            self._not_loaded(path, result)

    async def _settle_or_fail(self, put: Put, staged: Staged) -> None:
        try:
            await self._settle(put, staged)
        except OSError as error:
            await self._failed(put.path, error)

    # -- files

    async def _put_all(self, puts: Sequence[Put]) -> None:
        if self._remote.kind == Kind.FILE:
            for put in puts:
                await self._put_large(put, in_place=True)
            return
        small = [put for put in puts if put.entry.size <= SMALL]
        large = [put for put in puts if put.entry.size > SMALL]
        await each(_batches(small), BATCHES_AT_ONCE, self._put_batch)
        await each(large, LARGE_AT_ONCE, self._put_large)

    async def _put_batch(self, puts: Sequence[Put]) -> None:
        self._progress.check()
        loaded = await self._in_thread(content.load_all, self._root, [(put.path, put.entry) for put in puts], SMALL)
        await each(zip(puts, loaded, strict=True), len(puts), self._put_small)

    async def _put_small(self, item: tuple[Put, content.Loaded | content.Unreadable | None]) -> None:
        put, loaded = item
        if not isinstance(loaded, content.Loaded):
            self._not_loaded(put.path, loaded)
            return
        try:
            temporary, handle = await self._remote.temporary()
            await self._fill(handle, loaded.data, loaded.entry)
            await self._settle(put, Staged(temporary, loaded.entry, loaded.steady, loaded.digest))
        except OSError as error:
            await self._failed(put.path, error)
        self._progress.bytes_done += len(loaded.data)

    def _not_loaded(self, path: bytes, reason: content.Unreadable | None) -> None:
        if reason is None:
            self.outcome.again.add(path)
        else:
            self.outcome.problems[path] = (str(reason), False)
        self._not_done(path)

    async def _fill(self, handle: bytes, data: bytes, entry: Entry) -> None:
        """Everything that one handle needs, asked for at once: it is carried out in this order."""
        files, step = self._files, self._files.write_size
        asked: list[Deferred[Any]] = [
            files.write_at(handle, offset, data[offset : offset + step]) for offset in range(0, len(data), step)
        ]
        asked.append(files.set_handle_attributes(handle, size=None, mode=entry.mode, mtime=entry.mtime))
        asked.append(files.handle_attributes(handle))
        asked.append(files.close(handle))
        results = await gather(*asked)
        self._check_size(results[-2], len(data))

    def _check_size(self, found: Any, size: int) -> None:
        if found.size != size:
            raise OSError(errno.EIO, f"only {found.size} of {size} bytes arrived on the remote host")

    async def _settle(self, put: Put, staged: Staged) -> None:
        """Give a complete temporary its name, and write down what is there now."""
        if not await self._is_inside(put.path):
            await self._remote.discard(staged.temporary)
            return
        try:
            await self._publish(put, staged.temporary, staged.entry)
        except OSError:
            await self._remote.discard(staged.temporary)
            raise
        self._done_reading(put.path, staged.entry, staged.steady, staged.digest)

    def _done_reading(self, path: bytes, entry: Entry, steady: bool, digest: bytes | None) -> None:
        if steady:
            self._done(path, entry, digest)
        else:  # whole as of its first byte or not, nobody knows: send it again
            self._done(path, entry.uncertain())
            self.outcome.again.add(path)

    async def _publish(self, put: Put, temporary: bytes, entry: Entry) -> None:
        full = self._remote.full(put.path)
        if put.ours:
            try:
                await self._files.rename(temporary, full)
            except FileNotFoundError:
                raise
            except OSError:
                if not await self._is_directory(full):
                    raise
                await self._move_aside(put.path)
                await self._files.rename(temporary, full)
            return
        try:
            await self._files.rename_new(temporary, full)
        except FileExistsError:
            if entry.kind == Kind.FILE and await self._same(temporary, full, entry):
                await self._files.rename(temporary, full)
                return
            await self._move_aside(put.path)
            await self._files.rename_new(temporary, full)

    async def _same(self, ours: bytes, theirs: bytes, entry: Entry) -> bool:
        """Whether a file that is in the way holds the same: then nobody loses anything."""
        found = await self._files.attributes(theirs)
        if not stat.S_ISREG(found.mode) or found.size != entry.size:
            return False
        handles: list[bytes] = []
        try:
            for path in (ours, theirs):
                handles.append(await self._files.open(path, write=False))
            offset = 0
            while offset < entry.size:
                reads = [self._files.read_at(handle, offset, COMPARED) for handle in handles]
                mine, other = await gather(*reads)
                length = min(len(mine), len(other))
                if not length or mine[:length] != other[:length]:
                    return False
                offset += length
        except PermissionError:
            return False
        finally:
            for handle in handles:
                self._files.close(handle).addErrback(lambda _: None)
        return True

    async def _move_aside(self, path: bytes) -> None:
        """Keep what somebody else made under another name beside it."""
        full = self._remote.full(path)
        for number in range(1, 1000):
            copy = path + b".rda-conflict" + (b"-%d" % number if number > 1 else b"")
            try:
                await self._files.rename_new(full, self._remote.full(copy))
            except FileExistsError:
                continue
            if len(self.outcome.conflicts) < CONFLICTS_SHOWN:
                self.outcome.conflicts[path] = copy
            return
        raise OSError(errno.EEXIST, "too many conflict copies of it are on the remote host already")

    # -- large files, and the one file that is written in place

    async def _put_large(self, put: Put, in_place: bool = False) -> None:
        opened = await self._in_thread(content.open_large, self._root, put.path)
        if not isinstance(opened, tuple):
            self._not_loaded(put.path, opened)
            return
        descriptor, entry = opened
        try:
            if in_place:
                await self._overwrite(put, descriptor, entry)
            else:
                await self._replace(put, descriptor, entry)
        except OSError as error:
            await self._failed(put.path, error)
        finally:
            self._in_thread(content.close, descriptor).addErrback(lambda _: None)

    async def _replace(self, put: Put, descriptor: int, entry: Entry) -> None:
        temporary, handle = await self._remote.temporary()
        try:
            sent = await self._sender.send(temporary, handle, descriptor, entry, base=self._base_of(put))
        except OSError:
            await self._remote.discard(temporary)
            raise
        await self._settle(put, Staged(temporary, entry, sent.steady, _digest(entry, sent)))
        if sent.steady and entry.size >= large.DELTA_FROM:
            self._manifest.remember_blocks(put.path, entry.size, entry.mtime_ns, sent.hashes)

    def _base_of(self, put: Put) -> large.Base | None:
        """The version that is on the remote, if only its changes should be sent."""
        if not put.ours or put.entry.size < large.DELTA_FROM:
            return None
        blocks = self._manifest.blocks(put.path)
        if blocks is None:
            return None
        size, mtime_ns, hashes = blocks
        return large.Base(self._remote.full(put.path), size, max(mtime_ns // 1_000_000_000, 0), hashes)

    async def _overwrite(self, put: Put, descriptor: int, entry: Entry) -> None:
        """Write over what is there: the container has this very inode mounted, a rename would not reach it.

        The old content is written over and then cut to size, so there is no moment at which the file is empty.
        """
        full = self._remote.full(put.path)
        try:
            handle = await self._files.open(full, write=True)
        except FileNotFoundError:
            handle = await self._files.open(full, write=True, create=True)
        except PermissionError:
            await self._files.set_attributes(full, 0o600, None)
            handle = await self._files.open(full, write=True)
        sent = await self._sender.send(full, handle, descriptor, entry, fresh=False)
        self._done_reading(put.path, entry, sent.steady, _digest(entry, sent))


def _digest(entry: Entry, sent: large.Sent) -> bytes | None:
    """Of the whole file, where its times may not show the next change."""
    return content.fingerprint(sent.hashes) if content.racy(entry, content.now()) else None


def _base(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _batches(puts: Sequence[Put]) -> Iterable[list[Put]]:
    batch: list[Put] = []
    size = 0
    for put in puts:
        if batch and (len(batch) >= BATCH_FILES or size + put.entry.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(put)
        size += put.entry.size
    if batch:
        yield batch
