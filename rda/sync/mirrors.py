"""All mirrors of one context: which local source is where on the remote, and who uses it.

The place of a source follows from the owner and the source alone, so that a restarted rda finds the same one again;
that it is in use follows from the containers, of which the remote daemon keeps the list.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from rda.deferreds import InThread, Waiters, gather, threads_of
from rda.errors import BadRequest, RdaError, SyncFailed
from rda.interfaces import IRemoteFiles, IRemoteHost
from rda.status import MirrorStatus, Problem, RemoteCopy
from rda.sync.bulk import Bulk
from rda.sync.copies import Collected, Copies, Mounted
from rda.sync.joined import TREE, Joined
from rda.sync.marks import Marks
from rda.sync.mirror import Mirror, Settings, Tools
from rda.sync.nested import LEFT_OUT, NotServed
from rda.sync.remote_look import RemoteLook
from rda.sync.source import is_really_inside, kind_of
from rda.sync.sync_root import SyncRoot
from rda.sync.tree import Kind
from rda.sync.uses import GRACE, Uses, above, below
from rda.sync.watch import Watcher

#: Seconds that somebody who only wants to know how much is to be transferred waits for it.
MEASURE_SECONDS = 2.0


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
_A_LINK = "it is reached through a symbolic link"
_WAS_FIRST = "it was mounted from a copy of its own first, by something that still has it"
_EXPECTED = (_A_FILE, LEFT_OUT)


def _told(apart: str) -> str:
    """Why there are two copies, where that may surprise."""
    return "" if apart.endswith(_EXPECTED) else apart


class Mirrors(Service):
    """The mirrors of one context.

    :param state_dir: local directory, owner-only, for manifests.
    :param owner: this client's identity, unguessable: it names the directories on the remote.
    :param sync_root: directory on the remote; relative means below the login directory.
    :param reactor: clock, threads.
    :param in_thread: runs a blocking function in a thread; the reactor's own pool unless a test says otherwise.
    :param settings: tells how a source is mirrored.
    :param mounted: tells which paths of the remote host anything there has mounted, for :meth:`unused`.
    :param own: rda's own state on this machine, which is never mirrored; "": there is none.
    """

    _log = Logger()

    def __init__(
        self,
        host: IRemoteHost,
        state_dir: str,
        owner: str,
        sync_root: str,
        reactor: Any,
        in_thread: InThread | None = None,
        watcher: Watcher | None = None,
        settings: Callable[[str], Settings] = lambda source: Settings(),
        mounted: Mounted = lambda: succeed(frozenset()),
        own: str = "",
    ) -> None:
        self._host = host
        self._manifests = os.path.join(state_dir, "mirrors")
        self._root = SyncRoot(host, owner, os.fsencode(sync_root))
        self._clock = reactor
        in_thread = in_thread or threads_of(reactor)
        self._bulk = Bulk(host, in_thread)
        self._tools = Tools(
            host,
            reactor,
            in_thread,
            watcher or Watcher(reactor),
            self._bulk,
            RemoteLook(host, in_thread),
            os.fsencode(os.path.realpath(own)) if own else b"",
        )
        self._settings = settings
        self._mirrors: dict[str, Mirror] = {}
        self._uses = Uses()
        self._apart: dict[str, str] = {}
        self._alone: set[str] = set()
        self._placing: Counter[str] = Counter()
        self._placed: Waiters[None] = Waiters()
        self._reviewing: IDelayedCall | None = None
        self._absent: dict[str, Problem] = {}
        self._removing: dict[str, Waiters[None]] = {}
        self._mounted = mounted
        self._paused = Marks(self._manifests, "paused", in_thread)
        self._joined = Joined(host, self._root, Marks(self._manifests, "joined", in_thread))

    # -- the service

    def startService(self) -> None:
        """Make the directory for manifests."""
        super().startService()
        os.makedirs(self._manifests, mode=0o700, exist_ok=True)

    def stopService(self) -> Deferred[None]:
        """Stop all mirrors; fires when nothing is under way any more."""
        super().stopService()
        if self._reviewing is not None:
            self._reviewing.cancel()
            self._reviewing = None
        stopping = [mirror.stop() for mirror in self._mirrors.values()]
        self._mirrors.clear()
        return DeferredList(stopping).addCallback(lambda _: None)

    # -- what containers need

    def place(
        self, source: str, kind_hint: str | None = None, create_missing: bool = False, alone: bool = False
    ) -> Deferred[Place]:
        """Decide where ``source`` is on the remote, make that path there, and begin to mirror.

        A directory inside a mirrored one is a place in that one's copy, where that makes no other difference than that
        both show the same (see :mod:`rda.sync.nested`). Of several sources, ask for the outer ones first.

        :param source: a local path; relative to the current directory if need be.
        :param kind_hint: ``directory`` or ``file``: what a missing source is made as.
        :param create_missing: make a directory where nothing is, as the daemon does for ``-v``.
        :param alone: it has to have a copy of its own: a volume, which outlives the containers that use it.
        :raises BadRequest: through the Deferred: nothing there, or nothing that can be mirrored.
        :raises RdaError: when the remote path cannot be made, or the link is down.
        """
        return Deferred.fromCoroutine(self._place(os.path.abspath(source), kind_hint, create_missing, alone))

    async def _place(self, source: str, kind_hint: str | None, create_missing: bool, alone: bool) -> Place:
        apart = ""
        servers = self._uses.servers(source)
        if not alone:
            remote, apart = await self._inside_another(source, servers, kind_hint, create_missing)
            if remote:
                self._review_soon()
                return Place(source, remote)
        else:
            self._alone.add(source)
        # At once: a source around this one may come meanwhile, and see this one.
        self._uses.give(source, source, self._clock.seconds())
        self._placing[source] += 1
        try:
            return Place(source, await self._own(source, servers, apart, kind_hint, create_missing), _told(apart))
        except RdaError:
            self._uses.taken([source])
            raise
        finally:
            self._placing -= Counter([source])  # without what is zero then
            self._placed.fire(None)

    async def _own(
        self, source: str, servers: tuple[str, ...], apart: str, kind_hint: str | None, create_missing: bool
    ) -> str:
        """Make a source's own copy; returns its place."""
        await self._settled(source)
        await self._joined.learn(source)
        if source in self._joined.servers:
            if servers:  # others have the link mounted
                self._uses.move(source, self._joined.servers[source])
                return os.fsdecode(await self._root.base(source) + TREE)
            await self._joined.part(source)
        mirror = await self._mirror(source, kind_hint, create_missing)
        self._apart[source] = apart
        self._review_soon()
        mirror.live(True)
        await mirror.prepare()
        return mirror.remote_path

    async def _inside_another(
        self, source: str, servers: tuple[str, ...], kind_hint: str | None, create_missing: bool
    ) -> tuple[str, str]:
        """Find a source's place in the copy of a directory above it; else "" and why not.

        :param servers: whose copies it is mounted from already.
        """
        apart = ""
        for outer in [outer for outer in above(source) if outer in self._mirrors]:
            if not self._uses.is_mounted_itself(outer) and outer not in servers:
                continue
            if servers and outer not in servers:
                reason = _WAS_FIRST
            else:
                reason = await self._why_not(source, outer, kind_hint, create_missing)
            if not reason:
                try:
                    return await self._serve(source, outer), ""
                except NotServed as refusal:
                    reason = str(refusal)
            apart = apart or f"{outer} has another: {reason}"
        return "", apart

    async def _why_not(self, source: str, outer: str, kind_hint: str | None, create_missing: bool) -> str:
        """Why a source cannot be in the copy of a mirrored directory above it, as far as can be told without a look."""
        manifest = self._manifest(self._root.name(source))
        kind = await self._tools.in_thread(kind_of, source, kind_hint, create_missing, manifest)
        if kind != Kind.DIRECTORY or self._mirrors[outer].kind != Kind.DIRECTORY:
            return _A_FILE
        settings = self._settings(source)
        if settings != self._settings(outer) or settings.ignore:
            return _OTHER_RULE
        return "" if await self._tools.in_thread(is_really_inside, outer, source) else _A_LINK

    async def _serve(self, source: str, outer: str) -> str:
        """Have a source's place made in the copy of a directory above it; returns the remote path."""
        self._uses.give(source, outer, self._clock.seconds())
        mirror = self._mirrors[outer]
        mirror.live(True)
        remote: str = await mirror.serve(below(outer, source))
        return remote

    def inner_copies(self, outer: str) -> dict[str, tuple[str, ...]]:
        """The directories inside a source that have copies of their own, with the containers that have them mounted.

        They were there first; as long as none of these containers has ever been started, :meth:`join` can still help.
        """
        return {
            source: self._uses.containers(source)
            for source in self._uses.with_own_copy()
            if outer in above(source) and source not in self._alone
        }

    def join(self, source: str, outer: str, started: bool) -> Deferred[str]:
        """Mount a source from the copy of a directory above, though it was given a copy of its own.

        :param started: a container that has it mounted has ever been started. Else none may be meanwhile.
        :return: why there are two copies, where that may surprise; "" otherwise.
        :raises RdaError: through the Deferred: the link is down.
        """
        return Deferred.fromCoroutine(self._join(source, outer, started))

    async def _join(self, source: str, outer: str, started: bool) -> str:
        while self._placing[source]:
            await self._placed.wait()
        if outer not in self._mirrors or self._uses.servers(source) != (source,):
            return ""
        reason = _WAS_FIRST if started else await self._why_not(source, outer, None, False)
        try:
            if not reason:
                await self._mirrors[outer].serve(below(outer, source))
                await self._link(source, outer)
        except (NotServed, SyncFailed) as refusal:
            reason = str(refusal)
        if reason:
            self._apart[source] = f"{outer} has another: {reason}"
        return _told(self._apart.get(source, ""))

    async def _link(self, source: str, outer: str) -> None:
        """Put a link in the place of a source's copy; whoever needs it meanwhile waits."""
        name = self._root.name(source)
        self._removing[name] = Waiters()
        try:
            await self._mirrors.pop(source).stop()
            await self._joined.make(source, outer)
            self._uses.move(source, outer)
            self._apart.pop(source, None)
        finally:
            self._removing.pop(name).fire(None)
            if source not in self._joined.servers:
                await self._mirror(source, None, False)
            self._review()

    def complete(self, source: str, mounted: Iterable[str] = (), starting: bool = False) -> Deferred[None]:
        """Fire when everything that is at a source now is on the remote; begin to mirror it, if need be.

        :param mounted: as for :meth:`hold`, of the container that needs it.
        :param starting: for a container that is about to start, and so mounts what is there then.
        :raises SyncFailed: see :meth:`Mirror.flush`; SyncHalted, LinkDown likewise.
        """
        return Deferred.fromCoroutine(self._complete(os.path.abspath(source), tuple(mounted), starting))

    async def _complete(self, source: str, mounted: tuple[str, ...], starting: bool) -> None:
        await self._settled(source)
        server = await self._learnt_server(source, mounted)
        mirror = await self._mirror(server, None, False)
        await mirror.flush(below(server, source))
        if starting:
            mirror.mounted_anew()

    def hold(
        self, container: str, sources: Iterable[str], mounted: Iterable[str] = (), created: bool = False
    ) -> Deferred[None]:
        """A container uses these sources: they are mirrored for as long as it exists.

        Never fails: a source that is not there, or a link that is down, shows in the status and is tried again.

        :param mounted: the remote paths that it has mounted, which tell what is mounted from another one's copy.
        :param created: it was created just now, with the places that these sources were given.
        """
        absolute, mounted = [os.path.abspath(source) for source in sources], tuple(mounted)
        self._uses.hold(container, {source: self._server_of(source, mounted) for source in absolute})
        if created:
            self._uses.taken(absolute)
        return Deferred.fromCoroutine(self._hold(container, mounted))

    def _server_of(self, source: str, mounted: Iterable[str]) -> str:
        """Whose copy a source is mounted from, as the remote paths tell: they name the copy."""
        for outer in above(source):
            end = f"/{self._root.name(outer)}/tree/{os.path.relpath(source, outer)}"
            if any(path.endswith(end) for path in mounted):
                return self._joined.servers.get(outer, outer)
        return self._joined.servers.get(source, source)

    async def _learnt_server(self, source: str, mounted: tuple[str, ...]) -> str:
        """The same, when it is known of that copy whether it is a link."""
        await self._joined.learn(self._server_of(source, mounted))
        return self._server_of(source, mounted)

    async def _hold(self, container: str, mounted: tuple[str, ...]) -> None:
        for source in self._uses.held(container):
            server = source
            try:
                server = await self._learnt_server(source, mounted)
                self._uses.correct(container, source, server)
                await self._mirror(server, None, False)
            except RdaError as error:
                self._absent[server] = Problem(server, str(error))
        self._review()

    def release(self, container: str) -> Deferred[None]:
        """A container is gone."""
        self._uses.release(container)
        self._review()
        return succeed(None)

    def reconnected(self) -> None:
        """The link is up again: whatever was under way is looked at anew."""
        self._bulk.available = self._tools.look.available = True
        for source, mirror in self._mirrors.items():
            if self._uses.containers(source):
                mirror.retry()

    # -- what people ask for

    def flush(self, path: str | None = None) -> Deferred[None]:
        """Fire when everything that is at a mirrored source now is on the remote (and back, where it is two-way).

        :param path: a mirrored source, or something in one; None for all of them.
        :raises BadRequest: through the Deferred: it is not mirrored.
        :raises SyncFailed: see :meth:`Mirror.flush`; SyncHalted, LinkDown likewise.
        """
        return Deferred.fromCoroutine(self._flush(path))

    async def _flush(self, path: str | None) -> None:
        await gather(*(mirror.flush() for mirror in self._named(path)))

    def pause(self, path: str | None = None) -> Deferred[None]:
        """Let nothing travel until :meth:`resume`, also after a restart. What a container needs meanwhile fails.

        :param path: as for :meth:`flush`.
        :raises BadRequest: it is not mirrored.
        :raises SyncFailed: through the Deferred: it is paused, and a restart will not know.
        """
        mirrors = self._named(path)
        for mirror in mirrors:
            mirror.pause()
        return self._note_paused(mirrors, True)

    def resume(self, path: str | None = None) -> Deferred[None]:
        """Go on after :meth:`pause`; parameters and errors are the same."""
        mirrors = list(self._mirrors.values()) if path is None else self._named(path)
        noted = self._note_paused([mirror for mirror in mirrors if mirror.paused], False)
        for mirror in mirrors:
            mirror.resume()
        return noted

    def _note_paused(self, mirrors: Iterable[Mirror], paused: bool) -> Deferred[None]:
        """Write down for the next start which are paused."""
        names = [self._root.name(mirror.source) for mirror in mirrors]

        def failed(failure: Failure) -> None:
            failure.trap(OSError)
            raise SyncFailed(f"done, but it cannot be written down for the next start: {failure.getErrorMessage()}")

        return (self._paused.give(names) if paused else self._paused.take(names)).addErrback(failed)

    def confirm(self, path: str) -> None:
        """A person says that what holds a mirror back is meant.

        :raises BadRequest: it is not mirrored.
        """
        for mirror in self._named(path):
            mirror.confirm()

    def _named(self, path: str | None) -> list[Mirror]:
        """The mirrors that a person means: of that source, or the innermost one that it is in; or all that are used."""
        if path is None:
            return [mirror for source, mirror in sorted(self._mirrors.items()) if self._uses.is_used(source)]
        whole = os.path.abspath(path)
        known = [source for source in (whole, *above(whole)) if source in self._mirrors]
        if not known:
            raise BadRequest(f"{path} is not mirrored: no container of this context has it mounted")
        return [self._mirrors[next(filter(self._uses.is_used, known), known[0])]]

    def unused(self, unused_for: float = 0.0) -> Deferred[list[RemoteCopy]]:
        """Find remote copies that no container uses, be it running or not.

        :param unused_for: seconds since the last use; younger ones are left out.
        :raises RdaError: through the Deferred, when the link is down or the daemon cannot be asked.
        """
        return Deferred.fromCoroutine(self._unused(unused_for))

    async def _unused(self, unused_for: float) -> list[RemoteCopy]:
        found = await (await self._copies()).unused(self._is_known_used(), await self._mounted())
        return [copy for copy in found if copy.age >= unused_for]

    def collect(self, copies: Iterable[RemoteCopy]) -> Deferred[Collected]:
        """Remove copies that :meth:`unused` has found, unless they have come into use since.

        :raises RdaError: through the Deferred, when the link is down or the daemon cannot be asked.
        """
        return Deferred.fromCoroutine(self._collect(list(copies)))

    async def _collect(self, copies: list[RemoteCopy]) -> Collected:
        remote, mounted = await self._copies(), await self._mounted()
        removed, kept = [], []
        for copy in copies:
            used = self._is_known_used()
            if not used(copy.name):
                self._removing[copy.name] = Waiters()
                await self._drop(copy.name)
            try:
                problem = await remote.remove(copy, used, mounted)
            finally:
                if (waiters := self._removing.pop(copy.name, None)) is not None:
                    waiters.fire(None)
            if problem is None:
                removed.append(copy.name)
                await self._paused.take([copy.name])
                await self._joined.forget(copy.name)
            else:
                kept.append(problem)
        return Collected(tuple(removed), tuple(kept))

    async def _copies(self) -> Copies:
        files: IRemoteFiles = await self._host.files()
        return Copies(files, await self._root.path(), self._root.prefix, self._manifests, self._tools.in_thread)

    def _is_known_used(self) -> Callable[[str], bool]:
        sources = (*self._mirrors, *self._joined.servers)
        used = {self._root.name(one) for one in sources if self._uses.is_used(one) or self._uses.servers(one)}
        return lambda name: name in used

    async def _drop(self, name: str) -> None:
        """Forget a mirror that nobody uses."""
        for source in [source for source in self._mirrors if self._root.name(source) == name]:
            await self._mirrors.pop(source).stop()

    # -- what it looks like

    def measure(self, source: str) -> Deferred[MirrorStatus | None]:
        """Fire with a source's status as soon as it tells how much is to be transferred.

        None when that takes longer than :data:`MEASURE_SECONDS`, or it is not mirrored. Never fails.
        """
        source = os.path.abspath(source)
        mirror = self._mirrors.get(next(iter(self._uses.servers(source)), source))
        if mirror is None:
            return succeed(None)
        late: Deferred[MirrorStatus | None] = Deferred()

        def measured(_: None) -> None:
            if timer.active():
                timer.cancel()
                late.callback(mirror.status())

        timer = self._clock.callLater(MEASURE_SECONDS, late.callback, None)
        mirror.measured().addCallback(measured)
        return late

    def status(self) -> tuple[MirrorStatus, ...]:
        """What every mirror is doing."""
        uses = self._uses
        known = [
            mirror.status(uses.containers(source), uses.nested(source), self._apart.get(source, ""))
            for source, mirror in sorted(self._mirrors.items())
        ]
        absent = [
            MirrorStatus(source, "", "halted", containers=uses.containers(source), problems=(problem,))
            for source, problem in sorted(self._absent.items())
            if source not in self._mirrors and uses.containers(source)
        ]
        return (*known, *absent)

    def _review_soon(self) -> None:
        if self._reviewing is None:
            self._reviewing = self._clock.callLater(GRACE, self._review_later)

    def _review_later(self) -> None:
        self._reviewing = None
        if self._review():
            self._review_soon()

    def _review(self) -> bool:
        """Watch what is used, or was placed a moment ago; leave the rest alone. Returns whether to do so again soon."""
        on_its_way = self._uses.expire(self._clock.seconds())
        for source, mirror in self._mirrors.items():
            mirror.keep_mounted(below(source, nested) for nested in self._uses.nested(source))
            mirror.live(self._uses.is_used(source))
        return on_its_way

    # -- making mirrors

    async def _mirror(self, source: str, kind_hint: str | None, create_missing: bool) -> Mirror:
        if source not in self._mirrors:
            await self._settled(source)
            if source in self._joined.servers:
                return await self._mirror(self._joined.servers[source], None, False)
            name = self._root.name(source)
            path = self._manifest(name)
            kind = await self._tools.in_thread(kind_of, source, kind_hint, create_missing, path)
            paused = await self._paused.has(name)
            if source not in self._mirrors:
                self._absent.pop(source, None)
                self._mirrors[source] = Mirror(
                    source,
                    kind,
                    lambda: Deferred.fromCoroutine(self._root.base(source)),
                    path,
                    self._tools,
                    self._settings(source),
                    paused=paused,
                )
        return self._mirrors[source]

    async def _settled(self, source: str) -> None:
        """Wait while a source's copy is being removed, or replaced by a link."""
        name = self._root.name(source)
        while name in self._removing:
            await self._removing[name].wait()

    def _manifest(self, name: str) -> str:
        return os.path.join(self._manifests, name + ".sqlite")
