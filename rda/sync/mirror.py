"""One mirror: the local tree of one bind mount's source, and the tree on the remote host that follows it.

One pass at a time: look (in a thread), compare, carry out. Whatever asks for a pass while one is running (events, a
flush, a reconnect) is put together into the next one. A pass that fails as a whole leaves the mirror waiting, with the
reason, and is tried again; what fails for one path is a problem of that path, and is tried again too.

States: ``idle``, ``scanning``, ``applying``, ``waiting`` (for the link), ``paused`` (by a person), ``halted`` (a person
has to act: see :func:`rda.sync.plan.check` and :class:`rda.sync.scan.RootProblem`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from rda.deferreds import Waiters, gather
from rda.errors import LinkDown, RdaError, SyncFailed, SyncHalted
from rda.status import MirrorState, MirrorStatus, Problem
from rda.sync import pull
from rda.sync.inside import PlainRoot
from rda.sync.local_watch import LocalWatch
from rda.sync.manifest import Manifest
from rda.sync.nested import Nested
from rda.sync.problems import Problems
from rda.sync.progress import Transfer
from rda.sync.racy import Racy
from rda.sync.reconcile import Reconcile
from rda.sync.remote import RemoteTree
from rda.sync.remote_look import RemoteView
from rda.sync.remote_watch import RemoteWatch
from rda.sync.scan import RootProblem, Scanner
from rda.sync.schedule import Schedule, both
from rda.sync.session import Session
from rda.sync.settings import Settings, Tools
from rda.sync.tree import WHOLE, Kind, Scope, Snapshot, join
from rda.words import progress

#: Seconds between looks at a halted mirror's root: it may be back.
HALTED_LOOK = 2.0

#: How often a pass looks at once again at files that changed while they were read, before it leaves them for later.
ROUNDS = 3

#: Seconds between looks at a tree that cannot be watched.
POLL = 2.0

#: Seconds between looks at a watched tree, as a net below the events; with a watched remote one, it is finer.
NET = 600.0
NET_THERE = 60.0

#: Seconds after a remote change until the look, at least: a look takes a while, and half of the time is for others.
QUIET_THERE = 0.05

#: Seconds after which a file that was read right after a change is looked at again.
RACY_LOOK = 2.5


_REMOVED = (
    "the copy was removed on the remote host, and has been made anew. Containers that were running then still have the "
    "removed one: restart them"
)


class Paused(SyncHalted):
    """A person has paused the mirror."""


class _Waiter(NamedTuple):
    """Somebody waits until the tree, or what is at one place in it, is complete."""

    done: Deferred[None]
    place: bytes


class Mirror:
    """Keeps one remote tree equal to one local tree.

    :param source: absolute local path.
    :param base: gives the mirror's directory on the remote, once it is known.
    :param manifest_path: of the sqlite file.
    :param paused: a person has paused it, in an earlier run.
    """

    _log = Logger()

    def __init__(
        self,
        source: str,
        kind: Kind,
        base: Callable[[], Deferred[bytes]],
        manifest_path: str,
        tools: Tools,
        settings: Settings,
        *,
        paused: bool = False,
    ) -> None:
        self.source = source
        self.kind = kind
        # Beside a single file there is nothing on the remote: it can only be written in place, one way.
        self._mode = settings.mode if kind == Kind.DIRECTORY else "one-way"
        self._manifest_path = manifest_path
        self._tools = tools
        self._clock = tools.reactor
        self._root = PlainRoot(os.fsencode(source)) if settings.plain else os.fsencode(source)
        self._scanner = Scanner(self._root, kind, settings.ignore, tools.own)
        self._manifest: Manifest | None = None
        self._session = Session(tools.host, base, kind, self._root, tools.in_thread, self._clock.seconds)
        # What the next pass has to look at, and who waits for it.
        self._wanted = Scope()
        self._waiters: list[_Waiter] = []
        self._served: list[_Waiter] = []
        self._busy = False
        self._running: Deferred[None] = succeed(None)
        self._prepared: Waiters[None] = Waiters()
        self._stopped = False
        self._live = False
        self._watch = LocalWatch(self._root, kind, tools.watcher, self._clock, tools.in_thread, self._event)
        self._watch_there = RemoteWatch(tools.host, tools.watched, self._heard_there)
        self._schedule = Schedule(self._clock, self.look)
        self._paused = paused
        self._nested = Nested()
        # What the status tells.
        self._state: MirrorState = "idle"
        self._reason = ""
        self._halted = ""
        self._problems = Problems()
        self._totals = (0, 0)
        self._last_change: float | None = None
        self._latency: float | None = None
        self._took = 0.0
        self._noticed: float | None = None
        self._counted = True
        self._measuring: Waiters[None] = Waiters()
        self._transfer = Transfer(self._clock.seconds, self._check, self._report)
        self._reconcile = Reconcile(
            self._root,
            self._mode,
            settings.ownership,
            tools.in_thread,
            tools.bulk,
            self._transfer,
            self._problems,
            self._measured,
            self._applying,
            self._nested,
        )

    # -- what others ask for

    @property
    def remote_path(self) -> str:
        """What the daemon has to mount; "" while it is not known."""
        return self._session.path

    @property
    def paused(self) -> bool:
        """Whether a person has paused it."""
        return self._paused

    def prepare(self) -> Deferred[None]:
        """Fire when the remote path exists; start mirroring."""
        if self._session.is_up():
            return succeed(None)
        if self._stopped:
            return fail(SyncFailed("rda is stopping"))
        prepared = self._prepared.wait()
        self.look(WHOLE)
        return prepared

    def serve(self, path: bytes) -> Deferred[str]:
        """Fire with the remote path of a directory inside the tree, to be mounted as well, as soon as it is there.

        :raises NotServed: through the Deferred: it cannot be mounted from this copy.
        :raises RdaError: it cannot be had now.
        """
        there = self._nested.ask(path)
        self.look(WHOLE)
        return there.addCallback(lambda _: os.fsdecode(join(os.fsencode(self.remote_path), path)))

    def keep_mounted(self, paths: Iterable[bytes]) -> None:
        """Containers have these directories inside the tree mounted, and no others."""
        self._nested.keep_only(paths)

    def flush(self, place: bytes = b"") -> Deferred[None]:
        """Fire when everything that is on the local disk now is on the remote.

        :param place: only what is there in the tree concerns the one who asks.
        :raises SyncHalted: through the Deferred, when the mirror waits for a person.
        :raises SyncFailed: when paths could not be written on the remote. Local files that cannot be read, sockets and
            the like are not a failure: a local daemon's container could not read them either, or the user knows; they
            are listed in the status.
        :raises RdaError: when the link is down.
        """
        done: Deferred[None] = Deferred()
        self._waiters.append(_Waiter(done, place))
        self.look(WHOLE)
        return done

    def look(self, scope: Scope) -> None:
        """Look at (a part of) the tree again, soon."""
        if self._stopped:
            return
        self._wanted = both(self._wanted, scope)
        if self._noticed is None:
            self._noticed = self._clock.seconds()
        if not self._busy:
            self._busy = True
            self._running = Deferred.fromCoroutine(self._run()).addErrback(self._broken)

    def live(self, yes: bool) -> None:
        """Watch the local tree, or stop watching it."""
        if yes != self._live:
            self._live = yes
            if yes:
                self.look(WHOLE)
            else:
                self._schedule.cancel("net", "poll", "there")
                self._watch.stop()
                self._watch_there.stop()
                if self._manifest is not None:
                    self._session.note_use(self._manifest)

    def mounted_anew(self) -> None:
        """A container is about to mount what is there now."""
        self._session.removed = False

    def retry(self) -> None:
        """What kept the mirror waiting may be over."""
        self._schedule.hope()
        self.look(WHOLE)

    def confirm(self) -> None:
        """What held the mirror back is meant: carry it out."""
        self._reconcile.confirmed = True
        self._scanner.accept_device()
        self.look(WHOLE)

    def pause(self) -> None:
        """Let nothing travel any more, in either direction, until :meth:`resume`."""
        self._paused = True

    def resume(self) -> None:
        """Go on after :meth:`pause`, with a look at everything."""
        self._paused = False
        self.retry()

    def stop(self) -> Deferred[None]:
        """Stop; fires when nothing is under way any more."""
        self._stopped = True
        self._live = False
        self._schedule.stop()
        self._watch.stop()
        self._watch_there.stop()
        waiters, self._waiters = self._waiters, []
        self._fail(waiters, SyncFailed("rda is stopping"))
        return self._running.addCallback(self._close)

    def _close(self, _: None) -> None:
        if self._manifest is not None:
            self._manifest.close()
            self._manifest = None

    def _check(self) -> None:
        """Called between the steps of a pass."""
        if self._stopped:
            raise SyncFailed("rda is stopping")
        if self._paused:
            raise Paused("it is paused. Let it go on with: rda resume")

    def _report(self) -> None:
        """A transfer takes long: say how far it is."""
        self._log.info("{source}: {progress}", source=self.source, progress=progress(self.status()))

    def _applying(self) -> None:
        self._state = "applying"

    def measured(self) -> Deferred[None]:
        """Fire when it is known how much there is to transfer: at once when nothing is under way."""
        return self._measuring.wait() if self._busy and not self._counted else succeed(None)

    def _measured(self) -> None:
        self._counted = True
        self._measuring.fire(None)

    # -- passes

    async def _run(self) -> None:
        tried_again = False
        while not self._stopped and (self._wanted or self._waiters):
            scope, self._wanted = self._wanted, Scope()
            waiters, self._waiters = self._waiters, []
            self._served = waiters
            noticed, self._noticed = self._noticed, None
            began = self._clock.seconds()
            try:
                await self._pass(scope)
            except Exception as error:
                if isinstance(error, LinkDown) and not error.permanent and not tried_again:
                    # Lost under way: the host waits for the link for a while before it says that it is down.
                    tried_again = True
                    self._wanted, self._waiters = WHOLE, waiters + self._waiters
                    continue
                self._pass_failed(error, waiters)
                if not self._waiters:  # else a flush came while this pass was failing: it is owed a try of its own
                    break
            else:
                tried_again = False
                self._took = self._clock.seconds() - began
                self._passed(noticed)
                self._answer(waiters)
        self._busy = False
        self._measured()

    def _broken(self, failure: Failure) -> None:
        """A defect outside of a pass: tell whoever waits, and let the next look begin again."""
        self._busy = False
        waiters, self._waiters = [*self._served, *self._waiters], []
        self._pass_failed(
            failure.value if isinstance(failure.value, Exception) else SyncFailed(failure.getErrorMessage()),
            [waiter for waiter in waiters if not waiter.done.called],
        )

    def _passed(self, noticed: float | None) -> None:
        self._state = "halted" if self._halted else "idle"
        self._reason = ""
        if self._transfer.reported:
            self._log.info(
                "{source}: all {files} files of this transfer are on the remote host, after {seconds:.0f} s",
                source=self.source,
                files=self._transfer.files_done,
                seconds=self._transfer.seconds,
            )
        if self._transfer.files_total and noticed is not None:
            self._last_change = time.time()
            self._latency = self._clock.seconds() - noticed
        if self._problems.incomplete:
            self._schedule.again(WHOLE)  # the cause may be anywhere, rda's own directories on the remote included
        else:
            self._schedule.went_well()
        if self._manifest is not None and self._manifest.digests:
            self._schedule.later("racy", RACY_LOOK, Scope(paths=frozenset(self._manifest.digests)))
        if self._live:
            self._schedule.later(*self._next_look(), WHOLE)

    def _next_look(self) -> tuple[str, float]:
        remote = self._session.remote
        if self._mode != "one-way" and remote is not None:
            self._watch_there.start(remote.tree, remote.files)
            if not self._watch.refused and self._watch_there.active:
                return "net", NET_THERE
            return "poll", POLL
        return ("poll", POLL) if self._watch.refused else ("net", NET)

    def _heard_there(self) -> None:
        """Something may have changed on the remote; what is heard right after a look may be our own doing."""
        if self._live and "there" not in self._schedule:
            self._schedule.later("there", max(QUIET_THERE, self._took), WHOLE)

    def _answer(self, waiters: list[_Waiter]) -> None:
        for waiter in waiters:
            reason = self._problems.incomplete_at(waiter.place)
            if self._halted:
                waiter.done.errback(SyncHalted(f"{self.source}: {self._halted}"))
            elif reason:
                waiter.done.errback(SyncFailed(f"{self.source} is not complete on the remote host: {reason}"))
            else:
                waiter.done.callback(None)

    def _pass_failed(self, error: Exception, waiters: list[_Waiter]) -> None:
        self._wanted = WHOLE
        if self._manifest is not None and self._manifest.damaged:
            self._manifest.discard()  # the next pass begins a new one, compares, and adopts what is on the remote
            self._manifest = None
            self._session.remote = None
        if isinstance(error, Paused):
            self._state = "paused"
            error = Paused(f"{self.source}: {error}")
        elif isinstance(error, RootProblem | SyncHalted):
            self._state, self._halted = "halted", str(error)
            self._schedule.later("halted", HALTED_LOOK, WHOLE)
            error = SyncHalted(f"{self.source}: {error}. The remote copy is kept as it is")
        elif isinstance(error, RdaError):
            self._state, self._reason = "waiting", str(error)
        else:
            self._log.failure("mirror of {source} failed", failure=Failure(error), source=self.source)
            self._state, self._reason = "waiting", f"an unexpected error: {error!r} (see the log)"
            error = SyncFailed(f"{self.source} could not be synchronised: {error!r}. rda's log has the details")
        if self._state not in ("halted", "paused"):
            self._schedule.again(WHOLE)
        self._fail(waiters, error)

    def _fail(self, waiters: Iterable[_Waiter], error: Exception) -> None:
        """Tell these, and whoever waits for a place, that it will not be."""
        for done in (*(waiter.done for waiter in waiters), *self._nested.take_waiting()):
            done.errback(error)
        self._prepared.fire(Failure(error))

    async def _pass(self, scope: Scope) -> None:
        self._check()
        self._state = "scanning"
        if self._mode != "one-way":
            scope = WHOLE  # both sides are compared as wholes
        if b"" in scope.trees:
            self._halted = self._reconcile.held = ""
        self._transfer.begin()
        self._counted = False
        manifest = await self._opened()
        connecting = Deferred.fromCoroutine(self._prepared_remote(manifest, b"" in scope.trees))
        looking = Deferred.fromCoroutine(self._looked(scope, manifest))
        (remote, fresh), snapshot = await gather(connecting, looking)
        if fresh and b"" not in snapshot.scope.trees:
            snapshot = await self._scan(WHOLE, manifest)
        if b"" in snapshot.scope.trees:
            self._nested.judge(snapshot)
        outcome = await self._reconcile.carry_out(snapshot, manifest, remote)
        for _ in range(ROUNDS):
            if not outcome.again:
                break
            again = WHOLE if self._mode == "two-way" else Scope(paths=frozenset(outcome.again))
            snapshot = await self._scan(again, manifest)
            outcome = await self._reconcile.carry_out(snapshot, manifest, remote)
        self._halted = self._halted or self._reconcile.held
        for path in outcome.again:
            self._problems.add(path, "keeps changing while it is read; it is sent again when it is quiet")
        if outcome.again:
            self._schedule.again(Scope(paths=frozenset(outcome.again)))
        if b"" in snapshot.scope.trees:
            for path, message in self._nested.problems(snapshot).items():
                self._problems.add(path, message)
            self._problems.resolved(await remote.missing(self._problems.copies()))
        self._totals = manifest.totals()
        await self._session.marked()
        remote.keep_spare()

    async def _looked(self, scope: Scope, manifest: Manifest) -> Snapshot:
        if self._live and (b"" in scope.trees or b"" in scope.paths) and await self._watch.ensure():
            scope = WHOLE
        if b"" in scope.trees:  # it begins only now: it serves all that have asked for one since the pass began
            self._served += self._waiters
            self._waiters, self._wanted = [], Scope()
        return await self._scan(scope, manifest)

    async def _prepared_remote(self, manifest: Manifest, whole: bool) -> tuple[RemoteTree, bool]:
        prepared = await self._session.prepared(manifest, examine=whole)
        self._prepared.fire(None)
        return prepared

    async def _opened(self) -> Manifest:
        if self._manifest is None:
            self._manifest = await self._tools.in_thread(Manifest, self._manifest_path)
            self._manifest.remember("source", self.source)
            if self._mode == "two-way":
                await self._tools.in_thread(pull.sweep, self._root)
            if self._mode != "one-way":
                precise = self._mode == "mirror" or await self._tools.in_thread(pull.keeps_nanoseconds, self._root)
                racy = Racy(self._root, self._tools.in_thread)
                self._reconcile.view = RemoteView(self._tools.look, precise, racy)
            self._manifest.remember("kind", str(int(self.kind)))
        return self._manifest

    async def _scan(self, scope: Scope, manifest: Manifest) -> Snapshot:
        look = self._scanner.whole if b"" in scope.trees else self._scanner.part
        arguments = (manifest.entries,) if b"" in scope.trees else (scope, manifest.entries)
        return await self._tools.in_thread(look, *arguments)

    def status(self, containers: Iterable[str] = (), nested: Iterable[str] = (), apart: str = "") -> MirrorStatus:
        """What the mirror is doing; parameters as in :class:`rda.status.MirrorStatus`."""
        problems, hidden = self._problems.shown(), len(self._problems) - len(self._problems.shown())
        if self._halted or self._reason:
            problems.insert(0, Problem(self.source, self._halted or self._reason))
        if self._watch.refused:
            problems.insert(0, Problem(self.source, self._watch.refused))
        if self._session.removed and containers:
            problems.insert(0, Problem(self.source, _REMOVED))
        files, size = self._totals
        transfer, applying = self._transfer, self._state == "applying"
        return MirrorStatus(
            source=self.source,
            remote=self._session.path,
            state="paused" if self._paused and not self._busy else self._state,
            mode=self._mode,
            containers=tuple(containers),
            files=files,
            bytes=size,
            files_done=min(transfer.files_done, transfer.files_total),
            files_total=transfer.files_total,
            bytes_done=min(transfer.bytes_done, transfer.bytes_total),
            bytes_total=transfer.bytes_total,
            last_change=self._last_change,
            latency=self._latency,
            problems=tuple(problems),
            rate=transfer.rate() if applying else 0.0,
            time_left=transfer.time_left() if applying else None,
            problems_total=len(problems) + hidden,
            conflicts=self._problems.conflicts(),
            nested=tuple(nested),
            apart=apart,
        )

    # -- watching

    def _event(self, scope: Scope) -> None:
        if self._live:
            self.look(scope)
