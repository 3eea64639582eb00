"""Carry a plan out on the remote, path by path: a path that fails is a problem of that path, and the rest goes on.

A file travels into a temporary, its size is checked, and only then it is renamed to its name: never a rename behind a
write that is not acknowledged, which on a full disk would publish half a file.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from twisted.internet.defer import Deferred, succeed

from rda.deferreds import each, gather
from rda.sync import content, large
from rda.sync.bulk import Bulk
from rda.sync.nested import Nested
from rda.sync.plan import Plan, Put
from rda.sync.publish import Publisher, Staged
from rda.sync.record import Outcome, Record
from rda.sync.remote import OPERATIONS_AT_ONCE
from rda.sync.sides import Sides
from rda.sync.stage import Staging
from rda.sync.tree import OWNER_KEEPS_ACCESS, Entry, Kind, batches, depth, folded, within

#: Files up to this size are read whole, many at a time.
SMALL = 256 * 1024

#: What one visit to the thread pool reads: at most this many files, or bytes (by their planned size).
BATCH_FILES = 64
BATCH_BYTES = 1024 * 1024

#: Batches under way at once: 256 files in flight cover a round trip of 40 ms; at most 4 MiB of content in memory.
BATCHES_AT_ONCE = 4

#: Large files under way at once.
LARGE_AT_ONCE = 2

#: More intents than this are written in a thread: they would hold everything else up for more than a few milliseconds.
INTENTS_AT_ONCE = 1000


class Apply:
    """Carries out one plan.

    :param bulk: what the remote's own commands do faster, where it runs any.
    :param nested: the directories that have to stay what is mounted.
    """

    def __init__(self, sides: Sides, bulk: Bulk, nested: Nested) -> None:
        self._root = sides.root
        self._remote = sides.remote
        self._files = sides.files
        self._manifest = sides.manifest
        self._in_thread = sides.in_thread
        self._progress = sides.progress
        self._nested = nested
        self._sender = large.Sender(sides.files, sides.in_thread, sides.progress, bulk.copy)
        self._record = Record(sides.remote, sides.manifest, sides.progress)
        self._publisher = Publisher(sides.remote, sides.manifest, self._record)
        self._staging = Staging(sides, bulk, self._publisher, self._record)

    async def run(self, plan: Plan) -> Outcome:
        """Carry out ``plan``.

        :raises RdaError: when the connection is lost; the manifest then says what is certain and what is not.
        """
        if self._remote.folds:
            plan = self._without_twins(plan)
        self._manifest.doubt(put.path for put in (*plan.put, *plan.link))
        self._publisher.begin(plan, self._intend(list(plan.new_entries())))
        try:
            if plan.clear:
                await self._publisher.ready()
            await self._by_depth(plan.clear, self._remove)
            plan = await self._make_nested(plan)
            plan = await self._staging.send(plan)
            await self._by_depth(plan.make, self._make)
            await self._put_all(plan.put)
            await each(plan.link, OPERATIONS_AT_ONCE, self._link)
            await each(plan.adjust, OPERATIONS_AT_ONCE, self._adjust)
            await self._publisher.ready()
            await self._by_depth(await self._still_gone(plan.remove), self._remove)
        finally:
            await self._publisher.over()  # one writer at a time
            self._record.write()
        return self._record.outcome

    def _intend(self, intents: list[tuple[bytes, Entry]]) -> Deferred[None]:
        """Begin to write down what is about to be put on the remote."""
        if len(intents) > INTENTS_AT_ONCE:
            return self._in_thread(self._manifest.intend, intents)
        self._manifest.intend(intents)
        return succeed(None)

    def _without_twins(self, plan: Plan) -> Plan:
        """Leave out what the remote's file system would take for something else that is there or about to be."""
        gone = {path for path, _ in plan.clear}  # what is removed goes last, and makes room for the next pass
        owners = {folded(path): path for path in self._manifest.entries if path not in gone}
        twins: set[bytes] = set()
        for path, _ in sorted(plan.new_entries()):
            first = owners.setdefault(folded(path), path)
            if first != path:
                twins.add(path)
                self._record.twin(path, first)
        return replace(
            plan,
            make=tuple(item for item in plan.make if not within(item[0], twins)),
            put=tuple(put for put in plan.put if not within(put.path, twins)),
            link=tuple(put for put in plan.link if not within(put.path, twins)),
        )

    # -- directories and removals

    async def _by_depth(
        self,
        items: Sequence[tuple[bytes, Entry]],
        work: Callable[[tuple[bytes, Entry]], Awaitable[None]],
    ) -> None:
        """One level after the other: the server may carry out in any order what is asked for at once."""
        for _, level in groupby(items, key=lambda item: depth(item[0])):
            await each(list(level), OPERATIONS_AT_ONCE, work)

    async def _make_nested(self, plan: Plan) -> Plan:
        """Make what a container is about to mount; return what is left to do."""
        first = self._nested.first(plan)
        await self._by_depth(first, self._make)
        self._record.write()
        await self._nested.made(self._remote)
        return replace(plan, make=tuple(item for item in plan.make if item not in first)) if first else plan

    async def _make(self, item: tuple[bytes, Entry]) -> None:
        path, entry = item
        if not path:  # the root is there: it was made before anything else
            await self._adjust(item)
            return
        try:
            if not await self._publisher.is_inside(path):
                return
            await self._publisher.make_directory(path, entry.mode)
        except OSError as error:
            await self._record.failed(path, error)
        else:
            self._record.done(path, entry)

    async def _adjust(self, item: tuple[bytes, Entry]) -> None:
        path, entry = item
        try:
            if not await self._publisher.is_inside(path):
                return
            await self._files.set_attributes(self._remote.full(path), entry.mode | OWNER_KEEPS_ACCESS, None)
        except FileNotFoundError:  # a container removed it: in one-way mode that is the container's business
            pass
        except OSError as error:
            await self._record.failed(path, error)
            return
        self._record.done(path, entry)

    async def _still_gone(self, items: Sequence[tuple[bytes, Entry]]) -> list[tuple[bytes, Entry]]:
        """Look once more before anything is removed: what is there again stays, and is looked at anew."""
        if not items:
            return []
        back = await self._in_thread(content.back_again, self._root, [path for path, _ in items])
        self._record.outcome.again |= back
        self._progress.files_done += len(back)
        return [item for item in items if item[0] not in back]

    async def _remove(self, item: tuple[bytes, Entry]) -> None:
        path, entry = item
        if self._publisher.is_lost(path):  # what we had put there is not there any more
            self._record.gone(path)
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
            await self._record.failed(path, error)
            return
        except OSError as error:
            if not await self._publisher.is_directory(full):
                await self._record.failed(path, error)
                return
            if self._record.is_kept_by_ours(path):
                return
            # It holds what a container made (or is a directory that a container made): that stays.
        self._record.gone(path)

    # -- symbolic links

    async def _link(self, put: Put) -> None:
        path, target = put.path, put.entry.target
        try:
            if not await self._publisher.is_inside(path):
                return
            if put.ours:
                temporary = self._remote.temporary_name()
                await self._files.symlink(target, temporary)
                await self._publisher.publish(put, temporary, put.entry)
            else:
                await self._link_new(path, target)
        except OSError as error:
            await self._record.failed(path, error)
        else:
            self._record.done(path, put.entry)

    async def _link_new(self, path: bytes, target: bytes) -> None:
        full = self._remote.full(path)
        try:
            await self._files.symlink(target, full)
        except FileExistsError:
            found = await self._files.attributes(full)
            if stat.S_ISLNK(found.mode) and await self._files.read_link(full) == target:
                return
            await self._publisher.move_aside(path)
            await self._files.symlink(target, full)

    # -- files

    async def _put_all(self, puts: Sequence[Put]) -> None:
        if self._remote.kind == Kind.FILE:
            for put in puts:
                await self._put_large(put, in_place=True)
            return
        small = [put for put in puts if put.entry.size <= SMALL]
        large = [put for put in puts if put.entry.size > SMALL]
        await each(batches(small, BATCH_FILES, BATCH_BYTES), BATCHES_AT_ONCE, self._put_batch)
        await each(large, LARGE_AT_ONCE, self._put_large)

    async def _put_batch(self, puts: Sequence[Put]) -> None:
        self._progress.check()
        loaded = await self._in_thread(content.load_all, self._root, [(put.path, put.entry) for put in puts], SMALL)
        await each(zip(puts, loaded, strict=True), len(puts), self._put_small)

    async def _put_small(self, item: tuple[Put, content.Loaded | content.Unreadable | None]) -> None:
        put, loaded = item
        if not isinstance(loaded, content.Loaded):
            self._record.not_read(put.path, loaded)
            return
        try:
            temporary, handle = await self._remote.temporary()
            await self._fill(handle, loaded.data, loaded.entry)
            await self._publisher.settle(put, Staged(temporary, loaded.entry, loaded.steady, loaded.digest))
        except OSError as error:
            await self._record.failed(put.path, error, put.entry.size)
        self._progress.bytes_done += len(loaded.data)

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

    # -- large files, and the one file that is written in place

    async def _put_large(self, put: Put, *, in_place: bool = False) -> None:
        opened = await self._in_thread(content.open_large, self._root, put.path)
        if not isinstance(opened, tuple):
            self._record.not_read(put.path, opened)
            return
        descriptor, entry = opened
        try:
            if in_place:
                await self._overwrite(put, descriptor, entry)
            else:
                await self._replace(put, descriptor, entry)
        except OSError as error:
            await self._record.failed(put.path, error, put.entry.size)
        finally:
            self._in_thread(content.close, descriptor).addErrback(lambda _: None)

    async def _replace(self, put: Put, descriptor: int, entry: Entry) -> None:
        temporary, handle = await self._remote.temporary()
        try:
            sent = await self._sender.send(temporary, handle, descriptor, entry, base=self._base_of(put))
        except OSError:
            await self._remote.discard(temporary)
            raise
        await self._publisher.settle(put, Staged(temporary, entry, sent.steady, _digest(entry, sent)))
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
        self._record.read(put.path, entry, sent.steady, _digest(entry, sent))


def _digest(entry: Entry, sent: large.Sent) -> bytes | None:
    """Of the whole file, where its times may not show the next change."""
    return content.fingerprint(sent.hashes) if content.racy(entry, content.now()) else None
