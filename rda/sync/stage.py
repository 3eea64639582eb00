"""Many files at once: laid out in the stage by one tar stream, and then given their names.

A directory that is new as a whole is complete in the stage before it gets its name, with a single rename; other files
are renamed one by one, as if they had come over SFTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from rda.deferreds import each
from rda.sync import bulk
from rda.sync.bulk import Bulk, Member
from rda.sync.plan import Plan, Put
from rda.sync.publish import Publisher, Staged
from rda.sync.record import Record
from rda.sync.remote import OPERATIONS_AT_ONCE
from rda.sync.sides import Sides
from rda.sync.tree import Entry, Kind, parent, topmost


@dataclass
class _Layout:
    """Where in the stage everything goes.

    :ivar members: of the archive, in its order.
    :ivar names: of directories that are new as a whole, their temporaries by path.
    :ivar inside: what lies in each of them, itself included.
    :ivar loose: other files, with their temporaries, by path.
    """

    members: list[Member] = field(default_factory=list)
    names: dict[bytes, bytes] = field(default_factory=dict)
    inside: dict[bytes, dict[bytes, Entry]] = field(default_factory=dict)
    loose: dict[bytes, tuple[Put, bytes]] = field(default_factory=dict)


def _lay_out(plan: Plan, small: Iterable[Put], temporary_name: Callable[[], bytes]) -> _Layout:
    """Decide where in the stage a plan's new directories, small files and symbolic links go."""
    names = {top: temporary_name() for top in topmost(path for path, _ in plan.make if path)}
    layout = _Layout(names=names, inside={top: {} for top in names})
    top_of: dict[bytes, bytes] = {}

    def add(path: bytes, entry: Entry) -> bool:
        top = path if path in names else top_of.get(parent(path))
        if top is None:
            return False
        if entry.kind == Kind.DIRECTORY:  # parents come first
            top_of[path] = top
        layout.inside[top][path] = entry
        layout.members.append(Member(_base(names[top]) + path[len(top) :], path, entry))
        return True

    for path, entry in plan.make:
        add(path, entry)
    for put in small:
        if not add(put.path, put.entry):
            layout.loose[put.path] = put, temporary_name()
            layout.members.append(Member(_base(layout.loose[put.path][1]), put.path, put.entry))
    for put in plan.link:
        add(put.path, put.entry)
    return layout


class Staging:
    """Sends what can be sent faster in one stream."""

    def __init__(self, sides: Sides, sender: Bulk, publisher: Publisher, record: Record) -> None:
        self._sides = sides
        self._remote = sides.remote
        self._bulk = sender
        self._publisher = publisher
        self._record = record

    async def send(self, plan: Plan) -> Plan:
        """Carry out what one stream can, if that is worth it; returns what is left to do.

        :raises RdaError: the connection is lost.
        """
        small = [put for put in plan.put if put.entry.size <= bulk.SMALL]
        if not self._bulk.available or len(small) < bulk.WORTHWHILE or self._remote.kind == Kind.FILE:
            return plan
        layout = _lay_out(plan, small, self._remote.temporary_name)
        sent = await self._bulk.send(
            self._sides.root, self._remote.stage, layout.members, self._passed_on, self._remote.round_trip
        )
        if sent is None:
            await self._remote.sweep()
            return plan
        await self._publisher.ready()
        done = await self._publish_directories(layout, sent)
        done |= await self._publish_files(layout, sent)
        return replace(
            plan,
            make=tuple(item for item in plan.make if item[0] not in done),
            put=tuple(put for put in plan.put if put.path not in done),
            link=tuple(put for put in plan.link if put.path not in done),
        )

    def _passed_on(self, size: int) -> None:
        self._sides.progress.check()
        self._sides.progress.bytes_done += size

    async def _publish_directories(self, layout: _Layout, sent: dict[bytes, bulk.Result]) -> set[bytes]:
        """Give new directories their names, and note what is in them; returns the paths that are done."""
        published: list[bytes] = []

        async def publish(top: bytes) -> None:
            if await self._publisher.publish_directory(top, layout.names[top]):
                published.append(top)

        await each(layout.names, OPERATIONS_AT_ONCE, publish)
        as_planned: dict[bytes, Entry] = {}
        for top in published:
            as_planned |= layout.inside[top]
        done = set(as_planned)
        for path in sent.keys() & done:
            del as_planned[path]
            self._not_as_planned(path, sent[path])
        self._record.write()
        await self._sides.in_thread(self._sides.manifest.promote, published, as_planned)
        self._sides.progress.files_done += len(as_planned)
        return done

    async def _publish_files(self, layout: _Layout, sent: dict[bytes, bulk.Result]) -> set[bytes]:
        """Give other files their names; returns the paths that are done."""

        async def publish(path: bytes) -> None:
            put, temporary = layout.loose[path]
            result = sent.get(path, bulk.Sent(put.entry, True, None))
            if isinstance(result, bulk.Sent):
                await self._publisher.settle_or_fail(put, Staged(temporary, *result))
            else:
                self._record.not_read(path, result)

        await each(layout.loose, OPERATIONS_AT_ONCE, publish)
        return set(layout.loose)

    def _not_as_planned(self, path: bytes, result: bulk.Result) -> None:
        if isinstance(result, bulk.Sent):
            self._record.read(path, *result)
        else:
            self._record.not_read(path, result)


def _base(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]
