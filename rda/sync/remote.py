"""The remote side of one mirror: its directories, temporaries, and whether a path really lies inside.

::

    <sync root>/                0700, the remote user's
        <owner>-<source>/       0700: nobody else on the host gets at it; the daemon, as root, does
            generation          a random word that the manifest knows too: the same tree as last time?
            kept                the tree, while a link into another copy is in its place: see rda.sync.joined
            stage/              temporaries: out of the containers' sight, swept after every reconnect
            tree                what is mounted: a directory, or the one file

Temporaries are renamed from ``stage`` into ``tree``, so whoever reads in a container sees whole versions only.
"""

from __future__ import annotations

import itertools
import secrets
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed

from rda.deferreds import each, follow, gather
from rda.errors import SyncFailed
from rda.interfaces import Attributes, IRemoteFiles
from rda.sync.tree import Entry, Kind, join, lineage, parent, printable

#: Small operations under way at once; SFTP's own bounds are below this one.
OPERATIONS_AT_ONCE = 512

#: Temporaries kept open: the content of a small change then travels at once, without first asking for a handle.
SPARE_TEMPORARIES = 4

#: What SFTP's file types are here.
KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}


@dataclass(frozen=True)
class Found:
    """What was on the remote when the mirror was prepared.

    :ivar generation: the word, or None when there was none.
    :ivar has_tree: whether the tree was there.
    """

    generation: str | None
    has_tree: bool


class RemoteTree:
    """One mirror's place on the remote host, over one SFTP channel.

    :param base: the mirror's directory below the sync root.
    :param seconds: a clock, to measure the round trip with.

    :ivar round_trip: seconds, as measured when the tree was prepared.
    :ivar folds: whether names that differ by case only are one there, as on macOS: found out likewise.
    """

    def __init__(
        self, files: IRemoteFiles, base: bytes, kind: Kind, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self.round_trip = 0.0
        self.folds = False
        self.files = files
        self.base = base
        self.kind = kind
        self._kinds = (Kind.DIRECTORY, Kind.DIRECTORY, kind)
        self.tree = base + b"/tree"
        self.stage = base + b"/stage"
        self._mark = base + b"/generation"
        self._names = (b"%s/%s-%d" % (self.stage, secrets.token_hex(4).encode(), n) for n in itertools.count())
        self._spare: deque[tuple[bytes, bytes]] = deque()
        self._refilling: Deferred[Any] = succeed(None)

    def full(self, path: bytes) -> bytes:
        """Absolute form of a path of the tree."""
        return join(self.tree, path)

    # -- preparing

    async def prepare(self, mode: int) -> Found:
        """Make what is missing, sweep our temporaries, and tell what was there.

        One look at everything, and only then what is missing: on a long way each step costs.

        :param mode: permission bits of a directory that has to be made for the tree.
        """
        looks = [self._look(path) for path in (self.base, self.stage, self.tree)]
        asked_at = self._seconds()
        looks.append(self._look(_in_capitals(parent(self.base))))
        asked = [Deferred.fromCoroutine(look) for look in (*looks, self._generation(), self._names_in(self.stage))]
        asked[0].addCallback(lambda found: self._measured(found, asked_at))
        base, stage, tree, same, generation, leftovers = await gather(*asked)
        self.folds = same is not None
        if tree is None and base is not None:
            tree = await self._put_back()
        if base is None:
            await self.files.make_directory(self.base, 0o700)
        making = []
        for path, found, bits in ((self.stage, stage, 0o700), (self.tree, tree, mode)):
            if found is None and (path == self.stage or self.kind == Kind.DIRECTORY):
                making.append(self.files.make_directory(path, bits))
        await gather(*making)
        for path, found, kind in zip((self.base, self.stage, self.tree), (base, stage, tree), self._kinds, strict=True):
            if found is not None and KINDS.get(stat.S_IFMT(found.mode)) != kind:
                raise SyncFailed(
                    f"{printable(path)} on the remote host is not a {kind.name.lower()}. Remove it, or choose another "
                    "sync root"
                )
        if leftovers:
            await self.sweep()
        return Found(generation, tree is not None)

    async def _put_back(self) -> Attributes | None:
        """The tree may have been kept elsewhere while there was a link in its place, see :mod:`rda.sync.joined`."""
        try:
            await self.files.rename_new(self.base + b"/kept", self.tree)
        except FileNotFoundError:
            return None
        return await self._look(self.tree)

    def _measured(self, found: Any, asked_at: float) -> Any:
        self.round_trip = self._seconds() - asked_at
        return found

    async def _names_in(self, directory: bytes) -> list[tuple[bytes, Attributes]]:
        try:
            return await self.files.list(directory)
        except FileNotFoundError:
            return []

    async def new_generation(self, replaces: bool) -> str:
        """Write a new word; the manifest gets it afterwards. Half a word is as good as none.

        :param replaces: whether there is one already.
        """
        word = secrets.token_hex(16)
        if replaces:
            await self.files.remove(self._mark)
        handle = await self.files.open(self._mark, write=True, create=True)
        await gather(self.files.write_at(handle, 0, word.encode()), self.files.close(handle))
        return word

    async def used_now(self, now: int) -> None:
        """Note when the mirror was last used: by our own clock, the only one that will be compared with it.

        :param now: seconds since the epoch.
        """
        await self.files.set_attributes(self._mark, None, now)

    async def last_used(self) -> int | None:
        """What :meth:`used_now` noted last; None when there is no mark."""
        found = await self._look(self._mark)
        return None if found is None else found.mtime

    async def remove_everything(self) -> None:
        """Remove the mirror's directory with all that is in it, also what containers have made.

        :raises OSError: something belongs to somebody else and cannot be removed.
        """
        await self.remove_below(self.base)
        await self.files.remove_directory(self.base)

    async def _generation(self) -> str | None:
        try:
            return (await self.files.read(self._mark)).decode("ascii", "replace")
        except FileNotFoundError:
            return None

    async def is_there(self) -> bool:
        """Whether the tree and the stage still are what they have to be."""
        looks = [Deferred.fromCoroutine(self._look(path)) for path in (self.tree, self.stage)]
        kinds = [None if found is None else KINDS.get(stat.S_IFMT(found.mode)) for found in await gather(*looks)]
        return kinds == [self.kind, Kind.DIRECTORY]

    async def _look(self, path: bytes) -> Attributes | None:
        if not path:
            return None
        try:
            return await self.files.attributes(path)
        except FileNotFoundError:
            return None

    async def sweep(self) -> None:
        """Remove everything in the stage. No temporary may be in use."""
        await self._refilled()
        self._spare.clear()
        await self.remove_below(self.stage)

    async def remove_below(self, directory: bytes) -> None:
        """Remove everything in one of *our own* directories, following no link."""
        found = await self.files.list(directory)

        async def remove(item: tuple[bytes, Attributes]) -> None:
            name, attributes = item
            path = directory + b"/" + name
            try:
                if stat.S_ISDIR(attributes.mode):
                    await self.remove_below(path)
                    await self.files.remove_directory(path)
                else:
                    await self.files.remove(path)
            except FileNotFoundError:
                pass

        await each(found, OPERATIONS_AT_ONCE, remove)

    # -- temporaries

    async def temporary(self) -> tuple[bytes, bytes]:
        """A new empty file in the stage: its path and its handle. The caller closes, and renames or removes it."""
        if self._spare:
            return self._spare.popleft()
        return await self._open_temporary()

    async def _open_temporary(self) -> tuple[bytes, bytes]:
        path = next(self._names)
        return path, await self.files.open(path, write=True, create=True)

    async def now(self) -> int | None:
        """The clock that stamps files there, whole seconds; None when nothing can be written there.

        :raises LinkDown: the connection is lost.
        """
        try:
            path, handle = await self._open_temporary()
            found, *_ = await gather(self.files.handle_attributes(handle), self.files.close(handle))
        except OSError:
            return None
        await self.discard(path)
        return int(found.mtime)

    def temporary_name(self) -> bytes:
        """A path in the stage that nothing has."""
        return next(self._names)

    def keep_spare(self) -> None:
        """Open temporaries ahead of time, for the next change, while nobody waits for them."""
        if self._refilling.called and not self.files.lost:
            missing = SPARE_TEMPORARIES - len(self._spare)
            self._refilling = DeferredList(
                [Deferred.fromCoroutine(self._add_spare()) for _ in range(missing)], consumeErrors=True
            )

    async def _add_spare(self) -> None:
        self._spare.append(await self._open_temporary())

    async def _refilled(self) -> None:
        await follow(self._refilling)

    async def discard(self, path: bytes) -> None:
        """Remove a temporary that is not needed; the next sweep gets what cannot be removed."""
        try:
            await self.files.remove(path)
        except OSError:
            pass

    # -- looking

    async def misplaced(self, paths: Iterable[bytes]) -> dict[bytes, str]:
        """Which directories are not real directories inside the tree, and why.

        A container may have put a symbolic link in a directory's place: what is sent "into" it would end up wherever
        the link leads, with the rights of the remote user.
        """
        reasons: dict[bytes, str] = {}

        async def look(directory: bytes) -> None:
            found = await self._look(self.full(directory))
            if found is None:
                reasons[directory] = "is missing"
            elif stat.S_ISLNK(found.mode):
                reasons[directory] = "was replaced by a symbolic link on the remote host, which is not followed"
            elif not stat.S_ISDIR(found.mode):
                reasons[directory] = "is not a directory any more on the remote host"

        asked = {above for path in paths for above in lineage(path) if above}
        await each(asked, OPERATIONS_AT_ONCE, look)
        return reasons

    async def missing(self, paths: Iterable[bytes]) -> set[bytes]:
        """Which of these are not there."""
        gone: set[bytes] = set()

        async def look(path: bytes) -> None:
            if await self._look(self.full(path)) is None:
                gone.add(path)

        await each(paths, OPERATIONS_AT_ONCE, look)
        return gone

    async def judge(self, doubtful: Mapping[bytes, Entry]) -> tuple[list[tuple[bytes, Entry]], list[bytes]]:
        """Look at what an interrupted pass was about to make: which of it is there and ours, and which is not?"""
        ours: list[tuple[bytes, Entry]] = []
        others: list[bytes] = []

        async def look(item: tuple[bytes, Entry]) -> None:
            path, intended = item
            try:
                found = await self.files.attributes(self.full(path))
                kind = KINDS.get(stat.S_IFMT(found.mode))
                target = await self.files.read_link(self.full(path)) if kind == Kind.SYMLINK else b""
            except FileNotFoundError:
                others.append(path)
                return
            same = kind == intended.kind and target == intended.target
            if same and kind == Kind.FILE:
                same = found.size == intended.size and found.mtime == intended.mtime
            if same:
                ours.append((path, intended))
            else:
                others.append(path)

        await each(list(doubtful.items()), OPERATIONS_AT_ONCE, look)
        return ours, others


def _in_capitals(path: bytes) -> bytes:
    """Another spelling of a directory that is there; b"" when its name has none."""
    directory, _, name = path.rpartition(b"/")
    return directory + b"/" + name.upper() if name != name.upper() else b""


def blocked(path: bytes, reasons: dict[bytes, str]) -> tuple[bytes, str] | None:
    """The first directory above ``path`` that :meth:`RemoteTree.misplaced` complained about."""
    if not reasons:
        return None
    for above in reversed(list(lineage(parent(path)))):
        if above in reasons:
            return above, reasons[above]
    return None
