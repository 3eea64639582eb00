"""All mirrors of one context: which local source is where on the remote, and who uses it.

The place of a source follows from the owner and the source alone, so that a restarted rda finds the same one again;
that it is in use follows from the containers, of which the remote daemon keeps the list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from rda.deferreds import InThread, gather, threads_of
from rda.errors import BadRequest, RdaError, SyncFailed
from rda.interfaces import IRemoteFiles, IRemoteHost
from rda.status import MirrorStatus, Problem, RemoteCopy
from rda.sync.bulk import Bulk
from rda.sync.copies import Collected, Copies, Mounted
from rda.sync.mirror import Mirror
from rda.sync.placing import Place, Placing
from rda.sync.pool import Pool
from rda.sync.remote_look import RemoteLook
from rda.sync.settings import Settings, Tools
from rda.sync.sync_root import SyncRoot
from rda.sync.uses import GRACE, Uses, above, below
from rda.sync.watch import Watcher

#: Seconds that somebody who only wants to know how much is to be transferred waits for it.
MEASURE_SECONDS = 2.0


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
        self._clock = reactor
        in_thread = in_thread or threads_of(reactor)
        self._bulk = Bulk(host, in_thread)
        tools = Tools(
            host,
            reactor,
            in_thread,
            watcher or Watcher(reactor),
            self._bulk,
            RemoteLook(host, in_thread),
            os.fsencode(os.path.realpath(own)) if own else b"",
        )
        root = SyncRoot(host, owner, os.fsencode(sync_root))
        self._pool = Pool(root, os.path.join(state_dir, "mirrors"), tools, settings)
        self._mirrors = self._pool.mirrors
        self._uses = Uses()
        self._placing = Placing(self._pool, self._uses, reactor.seconds, self._review)
        self._reviewing: IDelayedCall | None = None
        self._mounted = mounted

    # -- the service

    def startService(self) -> None:
        """Make the directory for manifests."""
        super().startService()
        os.makedirs(self._pool.state, mode=0o700, exist_ok=True)

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
        self, source: str, kind_hint: str | None = None, *, create_missing: bool = False, alone: bool = False
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
        return Deferred.fromCoroutine(self._placing.place(os.path.abspath(source), kind_hint, create_missing, alone))

    def inner_copies(self, outer: str) -> dict[str, tuple[str, ...]]:
        """The directories inside a source that have copies of their own, with the containers that have them mounted.

        They were there first; as long as none of these containers has ever been started, :meth:`join` can still help.
        """
        return self._placing.inner_copies(outer)

    def join(self, source: str, outer: str, started: bool) -> Deferred[str]:
        """Mount a source from the copy of a directory above, though it was given a copy of its own.

        :param started: a container that has it mounted has ever been started. Else none may be meanwhile.
        :return: why there are two copies, where that may surprise; "" otherwise.
        :raises RdaError: through the Deferred: the link is down.
        """
        return Deferred.fromCoroutine(self._placing.join(source, outer, started))

    def complete(self, source: str, mounted: Iterable[str] = (), *, starting: bool = False) -> Deferred[None]:
        """Fire when everything that is at a source now is on the remote; begin to mirror it, if need be.

        :param mounted: as for :meth:`hold`, of the container that needs it.
        :param starting: for a container that is about to start, and so mounts what is there then.
        :raises SyncFailed: see :meth:`Mirror.flush`; SyncHalted, LinkDown likewise.
        """
        return Deferred.fromCoroutine(self._complete(os.path.abspath(source), tuple(mounted), starting))

    async def _complete(self, source: str, mounted: tuple[str, ...], starting: bool) -> None:
        await self._pool.settled(source)
        server = await self._pool.learnt_server(source, mounted)
        mirror = await self._pool.get(server)
        await mirror.flush(below(server, source))
        if starting:
            mirror.mounted_anew()

    def hold(
        self, container: str, sources: Iterable[str], mounted: Iterable[str] = (), *, created: bool = False
    ) -> Deferred[None]:
        """A container uses these sources: they are mirrored for as long as it exists.

        Never fails: a source that is not there, or a link that is down, shows in the status and is tried again.

        :param mounted: the remote paths that it has mounted, which tell what is mounted from another one's copy.
        :param created: it was created just now, with the places that these sources were given.
        """
        absolute, mounted = [os.path.abspath(source) for source in sources], tuple(mounted)
        self._uses.hold(container, {source: self._pool.server_of(source, mounted) for source in absolute})
        if created:
            self._uses.taken(absolute)
        return Deferred.fromCoroutine(self._hold(container, mounted))

    async def _hold(self, container: str, mounted: tuple[str, ...]) -> None:
        for source in self._uses.held(container):
            server = source
            try:
                server = await self._pool.learnt_server(source, mounted)
                self._uses.correct(container, source, server)
                await self._pool.get(server)
            except RdaError as error:
                self._pool.absent[server] = Problem(server, str(error))
        self._review()

    def release(self, container: str) -> Deferred[None]:
        """A container is gone."""
        self._uses.release(container)
        self._review()
        return succeed(None)

    def reconnected(self) -> None:
        """The link is up again: whatever was under way is looked at anew."""
        self._bulk.available = self._pool.tools.look.available = True
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
        names = [self._pool.root.name(mirror.source) for mirror in mirrors]

        def failed(failure: Failure) -> None:
            failure.trap(OSError)
            raise SyncFailed(f"done, but it cannot be written down for the next start: {failure.getErrorMessage()}")

        marks = self._pool.paused
        return (marks.give(names) if paused else marks.take(names)).addErrback(failed)

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
            if used(copy.name):
                problem = await remote.remove(copy, used, mounted)
            else:
                with self._pool.leaving(copy.name):
                    await self._pool.drop(copy.name)
                    problem = await remote.remove(copy, used, mounted)
            if problem is None:
                removed.append(copy.name)
                await self._pool.forget(copy.name)
            else:
                kept.append(problem)
        return Collected(tuple(removed), tuple(kept))

    async def _copies(self) -> Copies:
        files: IRemoteFiles = await self._host.files()
        root, state, in_thread = self._pool.root, self._pool.state, self._pool.tools.in_thread
        return Copies(files, await root.path(), root.prefix, state, in_thread)

    def _is_known_used(self) -> Callable[[str], bool]:
        sources = (*self._mirrors, *self._pool.joined.servers)
        used = {self._pool.root.name(one) for one in sources if self._uses.is_used(one) or self._uses.servers(one)}
        return lambda name: name in used

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
            mirror.status(uses.containers(source), uses.nested(source), self._placing.apart(source))
            for source, mirror in sorted(self._mirrors.items())
        ]
        absent = [
            MirrorStatus(source, "", "halted", containers=uses.containers(source), problems=(problem,))
            for source, problem in sorted(self._pool.absent.items())
            if source not in self._mirrors and uses.containers(source)
        ]
        return (*known, *absent)

    def _review(self) -> None:
        """Watch what is used, or was placed a moment ago; leave the rest alone."""
        if self._uses.expire(self._clock.seconds()) and self._reviewing is None and self.running:
            self._reviewing = self._clock.callLater(GRACE, self._review_later)
        for source, mirror in self._mirrors.items():
            mirror.keep_mounted(below(source, nested) for nested in self._uses.nested(source))
            mirror.live(self._uses.is_used(source))

    def _review_later(self) -> None:
        self._reviewing = None
        self._review()
