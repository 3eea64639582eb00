"""The parts of the agent that are not wiring."""

from __future__ import annotations

import errno
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from rda.agent import Agent, settled, summary
from rda.agent_record import RecordedContext
from rda.config import Config, Context, Remote
from rda.errors import ConfigError, RdaError
from rda.ssh.link import Link
from rda.ssh.shared import Links
from rda.status import ContextStatus, LinkStatus, Problem


class AgentTests(SynchronousTestCase):
    def test_what_is_not_needed_to_listen_is_not_imported(self) -> None:
        """Libraries that only some calls need are imported by these: starting takes half a second as it is."""
        late = ("prometheus_client", "shtab", "treq")
        program = f"import sys, rda.agent; print([name for name in {late} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
        self.assertEqual(done.stdout, "[]\n")

    def test_settled(self) -> None:
        """A service is ready when a link is there and none is on its way; nothing waits for one that failed."""
        for states, ready in (
            (["connected"], True),
            (["connected", "failed"], True),
            (["failed"], False),
            (["connected", "connecting"], False),
            (["waiting"], False),
        ):
            with self.subTest(states=states):
                self.assertEqual(settled(LinkStatus("host", state) for state in states), ready)

    def test_summary(self) -> None:
        """One line says how each link is, and why."""
        links = [("default", LinkStatus("a@b:22", "connected")), ("gpu", LinkStatus("c", "failed", "no such host"))]
        self.assertEqual(summary(links), "default: a@b:22 connected; gpu: c failed (no such host)")


class FakeContext(Service):
    """A context without parts."""

    def __init__(self, context: Context, log: list[str]) -> None:
        self.setName(context.name)
        self.context = context
        self.log = log
        self.wired = self.works = self.listening = True
        self.opened: Deferred[list[Problem]] = succeed([])
        self.stopped: Deferred[None] = succeed(None)
        self.files: list[Problem] = []
        self.failure: Exception | None = None

    def startService(self) -> None:
        if self.failure is not None:
            self.wired = self.works = False
            raise self.failure
        super().startService()
        self.log.append(f"start {self.name}")

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self.log.append(f"stop {self.name}")
        return self.stopped

    def read_files(self) -> list[Problem]:
        return self.files

    def status(self) -> ContextStatus:
        return ContextStatus(str(self.name), (), self.link_status())

    def link_status(self) -> LinkStatus:
        return LinkStatus("host", "connected")

    def record(self) -> RecordedContext:
        return RecordedContext.of(self.context, ())


class FakeAgent(Agent):
    """An agent of such contexts; what the next ones do can be set."""

    def __init__(self, config: Config, load: Callable[[], Config]) -> None:
        self.made: list[Any] = []
        self.events: list[str] = []
        self.said: list[str] = []
        self.given_up = 0
        self.prepare: Callable[[FakeContext], None] = lambda context: None
        super().__init__(Clock(), config, load, self.said.append, self._gives_up)

    def _gives_up(self) -> None:
        self.given_up += 1

    def make_context(self, context: Context) -> Any:
        made = FakeContext(context, self.events)
        self.prepare(made)
        self.made.append(made)
        return made


class ReloadTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.state = self.mktemp()
        self.wanted = self.config("a", "b")
        self.agent = FakeAgent(self.wanted, lambda: self.wanted)
        if self.agent.machine.table is not None:
            self.addCleanup(self.agent.machine.table.close)

    def config(self, *names: str, remote: str = "host") -> Config:
        return Config(tuple(Context(name, Remote(remote)) for name in names), self.state)

    def start(self) -> list[str]:
        self.agent.startService()
        self.addCleanup(lambda: self.agent.running and self.agent.stopService())
        return self.take()

    def reload(self, wanted: Config) -> list[str]:
        self.wanted = wanted
        self.agent.reload()
        return self.take()

    def take(self) -> list[str]:
        events, self.agent.events[:] = list(self.agent.events), []
        return events

    def names(self) -> list[str]:
        return [status.name for status in self.agent.status()]

    def problems(self) -> list[str]:
        return [problem.message for problem in self.agent.status()[0].problems]

    def test_one_service_for_each_context(self) -> None:
        """Every context of the configuration is a service of the agent, under its name; all stop with it."""
        self.assertEqual(self.start(), ["start a", "start b"])
        self.assertEqual([service.name for service in self.agent], ["a", "b"])
        self.successResultOf(self.agent.stopService())
        self.assertEqual(sorted(self.take()), ["stop a", "stop b"])

    def test_differences(self) -> None:
        """Contexts come, go and change, and the others notice nothing."""
        self.start()
        self.assertEqual(self.reload(self.config("a", "b")), [])
        self.assertEqual(self.reload(self.config("a", "b", "c")), ["start c"])
        self.assertEqual(self.reload(self.config("c", "a")), ["stop b"])
        changed = Config((*self.config("a").contexts, *self.config("c", remote="elsewhere").contexts), self.state)
        self.assertEqual(self.reload(changed), ["stop c", "start c"])
        self.assertEqual((self.names(), self.problems()), (["a", "c"], []))

    def test_many_times(self) -> None:
        """A context that stays is the same one after any number of changes around it, and those that went are gone."""
        self.start()
        (stays, *_) = self.agent.made
        for n in range(20):
            self.reload(self.config("a", f"x{n}"))
        self.assertIn(stays, list(self.agent))
        self.assertEqual((self.names(), len(list(self.agent))), (["a", "x19"], 2))

    def test_a_context_is_started_when_the_old_one_has_stopped(self) -> None:
        """A changed context needs the endpoints of the one before it."""
        self.start()
        self.agent.made[1].stopped = stopped = Deferred()
        changed = Config((*self.config("a").contexts, *self.config("b", remote="elsewhere").contexts), self.state)
        self.assertEqual(self.reload(changed), ["stop b"])
        stopped.callback(None)
        self.assertEqual(self.take(), ["start b"])

    def test_a_bad_file(self) -> None:
        """A bad file changes nothing, and is shown with every context until it is mended."""
        self.start()

        def load() -> Config:
            raise ConfigError(["docker: is wrong"])

        good, self.agent._reloading._load = self.agent._reloading._load, load
        self.assertEqual(self.reload(self.wanted), [])
        self.assertIn("docker: is wrong", self.problems()[0])
        self.agent._reloading._load = good
        self.reload(self.wanted)
        self.assertEqual(self.problems(), [])

    def test_the_state_directory_stays(self) -> None:
        """The state directory cannot move while rda runs: nothing of such a file is applied."""
        self.start()
        self.assertEqual(self.reload(Config(self.config("c").contexts, "/elsewhere")), [])
        self.assertIn("state_dir", self.problems()[0])

    def test_a_context_that_cannot_start(self) -> None:
        """It is shown, the others go on, and the next reading tries it again."""
        self.start()

        def break_it(context: FakeContext) -> None:
            context.failure = RdaError("the identity is damaged")

        self.agent.prepare = break_it
        self.assertEqual(self.reload(self.config("a", "c")), ["stop b"])
        self.assertEqual((self.names(), self.problems()), (["a"], ["the identity is damaged"]))
        self.assertEqual(self.agent.given_up, 0)
        self.agent.prepare = lambda context: None
        self.assertIn("start c", self.reload(self.config("a", "c")))
        self.assertEqual(self.problems(), [])

    def test_a_context_that_cannot_listen(self) -> None:
        """Likewise."""
        self.start()

        def break_it(context: FakeContext) -> None:
            context.works = False
            context.opened = succeed([Problem("context c", "cannot listen")])

        self.agent.prepare = break_it
        self.reload(self.config("a", "c"))
        self.assertEqual(self.problems(), ["cannot listen"])
        self.agent.prepare = lambda context: None
        self.assertEqual(self.reload(self.config("a", "c")), ["stop c", "start c"])

    def test_at_the_start(self) -> None:
        """A context that cannot start or listen when rda is started ends it, with the reason."""
        self.agent.made[0].opened = succeed([Problem("context a", "cannot listen")])
        self.agent.made[1].failure = RdaError("the identity is damaged")
        self.start()
        self.assertEqual(self.agent.said, ["rda: context a: cannot listen", "rda: context b: the identity is damaged"])
        self.assertEqual(self.agent.given_up, 2)

    def test_no_place_for_its_state(self) -> None:
        """Without a directory for its state, or room in it, rda ends, and says which and what to do."""
        self.state = self.mktemp()
        Path(self.state).write_text("in the way")
        self.wanted = self.config("a")
        self.agent = FakeAgent(self.wanted, lambda: self.wanted)
        self.assertEqual(self.start(), [])
        (said,) = self.agent.said
        self.assertIn(f"rda: state: {self.state} cannot be used: File exists; ", said)
        self.assertEqual(self.agent.given_up, 1)
        self.successResultOf(self.agent.stopService())

    def test_a_full_disk(self) -> None:
        """Likewise when a context cannot write what it needs."""
        self.agent.made[0].failure = OSError(errno.ENOSPC, "No space left on device")
        self.start()
        (said,) = self.agent.said
        self.assertIn(f"rda: context a: {self.state} cannot be used: No space left on device; ", said)

    def test_files_are_read_again(self) -> None:
        """What a context's configuration only names, such as certificates, is read again; problems are shown."""
        self.start()
        self.agent.made[0].files = [Problem("context a", "the certificate is damaged")]
        self.reload(self.wanted)
        self.assertEqual(self.problems(), ["the certificate is damaged"])

    def test_stopping_meanwhile(self) -> None:
        """An agent that is stopped while a context still stops waits for it, and starts nothing any more."""
        self.start()
        self.agent.made[1].stopped = stopped = Deferred()
        self.reload(self.config("a", "c"))
        ended = self.agent.stopService()
        self.assertNoResult(ended)
        stopped.callback(None)
        self.successResultOf(ended)
        self.assertEqual(sorted(self.take()), ["stop a"])

    def test_a_context_that_breaks_when_it_stops(self) -> None:
        """A defect in stopping one is logged, and does not stop the change."""
        self.start()
        self.agent.made[1].stopped = fail(ZeroDivisionError())
        self.assertEqual(self.reload(self.config("a", "c")), ["stop b", "start c"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class MemoryReactor(MemoryReactorClock):
    """A reactor whose threads are no threads."""

    def callInThread(self, call: Callable[..., object], *args: object, **kw: object) -> None:
        call(*args, **kw)

    callFromThread = callInThread


class LeakTests(SynchronousTestCase):
    """The real parts of contexts, on hosts that never answer."""

    def setUp(self) -> None:
        self.reactor = MemoryReactor()
        self.state = self.mktemp()
        self.wanted = self.config("stays")
        self.agent = Agent(self.reactor, self.wanted, lambda: self.wanted, lambda line: None, self.fail)
        self.agent.links = Links(lambda remote, docker: Link(self.reactor, remote, docker, find_target=Deferred))
        if self.agent.machine.table is not None:
            self.addCleanup(self.agent.machine.table.close)
        self.agent.startService()

    def config(self, *names: str) -> Config:
        listen = "tcp:{}:interface=127.0.0.1"
        made = [Context(name, Remote(name), (listen.format(n),)) for n, name in enumerate(names, 1000)]
        return Config(tuple(made), self.state)

    def reload(self, *names: str) -> None:
        self.wanted = self.config(*names)
        self.agent.reload()
        for _ in range(30):
            self.reactor.advance(1)

    def test_nothing_is_left_of_a_context(self) -> None:
        """Twenty contexts come and go, and leave no object, timer or listener; the one that stays is never touched."""
        (stays,) = list(self.agent)
        timers = len(self.reactor.getDelayedCalls())
        seen = []
        for n in range(20):
            self.reload("stays", f"x{n}")
            (other,) = set(self.agent) - {stays}
            seen.append(weakref.ref(other))
        self.reload("stays")
        del other
        self.assertEqual(list(self.agent), [stays])
        self.assertEqual(len(self.reactor.getDelayedCalls()), timers)
        self.reactor.tcpServers.clear()  # it remembers what has been closed too
        gc.collect()
        self.assertEqual([one for one in (ref() for ref in seen) if one is not None], [])
        self.assertEqual(len(self.agent.links), 1)
        stopped = self.agent.stopService()
        self.reactor.advance(30)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_mirror_that_does_not_end(self) -> None:
        """A mirror that waits for a remote host without a word does not keep rda from stopping."""
        (stays,) = list(self.agent)
        stays._mirrors.stopService = Deferred  # never
        stopped = self.agent.stopService()
        for _ in range(30):
            self.reactor.advance(1)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
