"""Where each source is on the remote host: a copy of its own, or a place in the copy of a directory above it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from rda.deferreds import Waiters
from rda.errors import RdaError, SyncFailed
from rda.sync.joined import TREE
from rda.sync.nested import LEFT_OUT, NotServed
from rda.sync.pool import Pool
from rda.sync.source import is_really_inside, kind_of
from rda.sync.tree import Kind
from rda.sync.uses import Uses, above, below


@dataclass(frozen=True)
class Place:
    """Where a local source is on the remote host.

    :ivar source: the absolute local path.
    :ivar remote: the absolute path to mount there: of a directory or a file, like the source.
    :ivar apart: a directory above the source is mirrored too, and why this is not a place in its copy; "" otherwise.
    """

    source: str
    remote: str
    apart: str = ""


#: Why some sources that lie within others have a copy of their own. Nobody is warned of the first.
_A_FILE = "a single file is written in place, and has a copy of its own"
_OTHER_RULE = "the [[bind]] rules for the two differ, or leave paths out"
_JUDGED = (
    "a policy says what may be mounted, and a container could put a link to something else in the directory's place"
)
_A_LINK = "it is reached through a symbolic link"
_WAS_FIRST = "it was mounted from a copy of its own first, by something that still has it"
_EXPECTED = (_A_FILE, LEFT_OUT)


class Placing:
    """Gives sources their places.

    :param uses: who uses what.
    :param seconds: a clock.
    :param review: called when what is used has changed.
    """

    def __init__(self, pool: Pool, uses: Uses, seconds: Callable[[], float], review: Callable[[], object]) -> None:
        self._pool = pool
        self._uses = uses
        self._seconds = seconds
        self._review = review
        self._apart: dict[str, tuple[str, str]] = {}
        self._alone: set[str] = set()
        self._under_way: Counter[str] = Counter()
        self._ended: Waiters[None] = Waiters()

    def apart(self, source: str) -> str:
        """A directory above that is mirrored too, and why a source is not mounted from its copy; "" otherwise."""
        outer, reason = self._apart.get(source, ("", ""))
        return f"{outer} has another: {reason}" if reason and self._uses.is_used(outer) else ""

    def _told(self, source: str) -> str:
        """The same, where it may surprise."""
        return "" if self._apart.get(source, ("", ""))[1] in _EXPECTED else self.apart(source)

    async def place(self, source: str, kind_hint: str | None, create_missing: bool, alone: bool) -> Place:
        """See :meth:`rda.sync.mirrors.Mirrors.place`."""
        servers = self._uses.servers(source)
        if alone:
            self._alone.add(source)
        else:
            remote = await self._inside_another(source, servers, kind_hint, create_missing)
            if remote:
                self._review()
                return Place(source, remote)
        # At once: a source around this one may come meanwhile, and see this one.
        self._uses.give(source, source, self._seconds())
        self._under_way[source] += 1
        try:
            remote = await self._own(source, servers, kind_hint, create_missing)
            self._review()
            return Place(source, remote, self._told(source))
        except RdaError:
            self._uses.taken([source])
            raise
        finally:
            self._under_way -= Counter([source])  # without what is zero then
            self._ended.fire(None)

    async def _own(self, source: str, servers: tuple[str, ...], kind_hint: str | None, create_missing: bool) -> str:
        """Make a source's own copy; returns its place.

        :param servers: whose copies it is mounted from already.
        """
        await self._pool.settled(source)
        joined = self._pool.joined
        await joined.learn(source)
        if source in joined.servers:
            if servers:  # others have the link mounted
                self._uses.move(source, joined.servers[source])
                return os.fsdecode(await self._pool.root.base(source) + TREE)
            await joined.part(source)
        mirror = await self._pool.get(source, kind_hint, create_missing=create_missing)
        mirror.live(True)
        await mirror.prepare()
        return mirror.remote_path

    async def _inside_another(
        self, source: str, servers: tuple[str, ...], kind_hint: str | None, create_missing: bool
    ) -> str:
        """Find a source's place in the copy of a directory above it; "" when there is none.

        :param servers: whose copies it is mounted from already.
        """
        self._apart.pop(source, None)
        for outer in [outer for outer in above(source) if outer in self._pool.mirrors]:
            if not self._uses.is_mounted_itself(outer) and outer not in servers:
                continue
            if servers and outer not in servers:
                reason = _WAS_FIRST
            else:
                reason = await self._why_not(source, outer, kind_hint, create_missing)
            if not reason:
                try:
                    return await self._serve(source, outer)
                except NotServed as refusal:
                    reason = str(refusal)
            self._apart.setdefault(source, (outer, reason))
        return ""

    async def _why_not(self, source: str, outer: str, kind_hint: str | None, create_missing: bool) -> str:
        """Why a source cannot be in the copy of a mirrored directory above it, as far as can be told without a look."""
        pool, in_thread = self._pool, self._pool.tools.in_thread
        manifest = pool.manifest(pool.root.name(source))
        kind = await in_thread(kind_of, source, kind_hint, create_missing, manifest)
        if kind != Kind.DIRECTORY or pool.mirrors[outer].kind != Kind.DIRECTORY:
            return _A_FILE
        settings = pool.settings(source)
        if settings.plain:
            return _JUDGED
        if settings != pool.settings(outer) or settings.ignore:
            return _OTHER_RULE
        return "" if await in_thread(is_really_inside, outer, source) else _A_LINK

    async def _serve(self, source: str, outer: str) -> str:
        """Have a source's place made in the copy of a directory above it; returns the remote path."""
        self._uses.give(source, outer, self._seconds())
        mirror = self._pool.mirrors[outer]
        mirror.live(True)
        remote: str = await mirror.serve(below(outer, source))
        return remote

    def inner_copies(self, outer: str) -> dict[str, tuple[str, ...]]:
        """See :meth:`rda.sync.mirrors.Mirrors.inner_copies`."""
        return {
            source: self._uses.containers(source)
            for source in self._uses.with_own_copy()
            if outer in above(source) and source not in self._alone
        }

    async def join(self, source: str, outer: str, started: bool) -> str:
        """See :meth:`rda.sync.mirrors.Mirrors.join`."""
        while self._under_way[source]:
            await self._ended.wait()
        if outer not in self._pool.mirrors or self._uses.servers(source) != (source,):
            return ""
        reason = _WAS_FIRST if started else await self._why_not(source, outer, None, False)
        try:
            if not reason:
                await self._pool.mirrors[outer].serve(below(outer, source))
                await self._link(source, outer)
        except (NotServed, SyncFailed) as refusal:
            reason = str(refusal)
        if reason:
            self._apart[source] = outer, reason
        return self._told(source)

    async def _link(self, source: str, outer: str) -> None:
        """Put a link in the place of a source's copy; whoever needs it meanwhile waits."""
        pool = self._pool
        try:
            with pool.leaving(pool.root.name(source)):
                await pool.mirrors.pop(source).stop()
                await pool.joined.make(source, outer)
                self._uses.move(source, outer)
                self._apart.pop(source, None)
        finally:
            await pool.get(source)  # where no link could be made, its own one goes on
            self._review()
