"""The reconciler against a daemon in memory: what it sees there is what is forwarded and mirrored here."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from rda.api import DaemonAPI
from rda.containers.reconciler import RETRY_PORTS_SECONDS, Reconciler
from rda.docker.host_network import HostForwards, read_ports
from rda.docker.ports import Published
from rda.docker.request import OWNER_LABEL, REQUEST_LABEL, Request
from rda.errors import PortUnavailable
from tests.fake_daemon import daemon
from tests.fake_parts import FakeForwards, FakeMirrors

OWNER = "0123456789abcdef"
WEB = "a" * 64


def container(running: bool = True, port: int = 32768, owner: str = OWNER, **request: Any) -> dict[str, Any]:
    asked = Request("n1", bindings={"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}, **request)
    ports = {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]} if running else {}
    return {
        "Id": WEB,
        "Name": "/web",
        "Image": "sha256:1",
        "State": {"Running": running},
        "Config": {"Labels": {OWNER_LABEL: owner, REQUEST_LABEL: asked.label()}},
        "NetworkSettings": {"Ports": ports},
    }


class ReconcilerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.daemon, self.endpoint = daemon()
        self.forwards, self.mirrors = FakeForwards([]), FakeMirrors([])
        self.daemon.answers["/containers/json"] = 200, []
        api = DaemonAPI(self.clock, self.endpoint)
        self.reconciler = Reconciler(
            self.clock,
            api,
            self.forwards,  # type: ignore[arg-type]
            self.mirrors,  # type: ignore[arg-type]
            OWNER,
            lambda request: request.sources,
        )
        self.reconciler.made_here.made("n1", WEB)
        self.reconciler.startService()
        self.addCleanup(self.reconciler.stopService)

    def there_is(self, description: dict[str, Any] | None) -> None:
        path = f"/containers/{WEB}/json"
        self.daemon.answers["/containers/json"] = 200, [] if description is None else [{"Id": WEB}]
        self.daemon.answers[path] = (404, {"message": "no"}) if description is None else (200, description)

    def link_up(self) -> None:
        self.reconciler.link_up()
        self.endpoint.pump()

    def event(self, action: str, kind: str = "container", **attributes: str) -> None:
        actor = {"ID": WEB if kind == "container" else "n", "Attributes": attributes}
        self.daemon.event({"Type": kind, "Action": action, "Actor": actor})
        self.endpoint.pump()

    def test_adopts_what_runs(self) -> None:
        """Containers made before this process started get their forwards and mirrors when the link comes up."""
        self.there_is(container(originals={"b0": "/src:/app"}, sources=("/src",)))
        self.link_up()
        self.assertEqual(self.forwards.open, {WEB: {"80/tcp": 32768}})
        self.assertEqual(self.mirrors.held, {WEB: ("/src",)})

    def test_leaves_others_alone(self) -> None:
        """A container of another owner is not touched."""
        self.there_is(container(owner="somebody else"))
        self.link_up()
        self.assertEqual((self.forwards.open, self.mirrors.held), ({}, {}))

    def test_copied_labels_do_not_count(self) -> None:
        """A container that was not made here is not ours, whatever labels it got (docker commit, --label, a tool)."""
        self.reconciler.made_here.removed(WEB)
        self.there_is(container())
        self.link_up()
        self.assertEqual((self.forwards.open, self.mirrors.held), ({}, {}))

    def test_create_without_an_answer(self) -> None:
        """A container whose create was never answered here is recognised, and no later copy of it."""
        self.reconciler.made_here.removed(WEB)
        self.reconciler.made_here.intend("n1")
        self.there_is(container())
        self.link_up()
        self.assertEqual(self.forwards.open, {WEB: {"80/tcp": 32768}})
        self.assertFalse(self.reconciler.is_ours({**container(), "Id": "b" * 64}))

    def test_host_network(self) -> None:
        """What is forwarded of a container on the host's network is what its label and the configuration name."""
        self.reconciler._host_forwards = HostForwards([("w*", read_ports(["9000/udp"]))])
        self.there_is(container(network_mode="host", forward=("18080:8080",)))
        self.link_up()
        self.assertEqual(self.forwards.open, {WEB: {"8080/tcp": 8080, "9000/udp": 9000}})
        ports = (Published(8080, "tcp", "", 18080, 18080), Published(9000, "udp", "", 9000, 9000))
        self.assertEqual(self.forwards.wanted[WEB], ports)

    def test_follows_events(self) -> None:
        """Start opens, die closes, destroy forgets."""
        self.link_up()
        self.there_is(container())
        self.event("start", **{OWNER_LABEL: OWNER})
        self.assertEqual(self.forwards.open, {WEB: {"80/tcp": 32768}})
        self.there_is(container(running=False))
        self.event("die", **{OWNER_LABEL: OWNER})
        self.assertEqual(self.forwards.open, {})
        self.assertIn(WEB, self.mirrors.held)
        self.there_is(None)
        self.event("destroy", **{OWNER_LABEL: OWNER})
        self.assertEqual(self.mirrors.held, {})
        self.assertIsNone(self.reconciler.known(WEB))

    def test_brings_back_what_was_written(self) -> None:
        """When a container ends, its mirrors are flushed before they are let go."""
        self.there_is(container(originals={"b0": "/src:/app"}, sources=("/src",)))
        self.link_up()
        self.assertEqual(self.mirrors.flushing, [])
        self.there_is(None)
        self.event("die", **{OWNER_LABEL: OWNER})
        (flushing,) = self.mirrors.flushing
        self.assertIn(WEB, self.mirrors.held)
        flushing.callback(None)
        self.assertEqual(self.mirrors.held, {})

    def test_ports_move_with_networks(self) -> None:
        """A network event of one of our containers reads its ports anew."""
        self.there_is(container())
        self.link_up()
        self.there_is(container(port=40000))
        self.event("connect", kind="network", container=WEB)
        self.assertEqual(self.forwards.open, {WEB: {"80/tcp": 40000}})

    def test_start_begins_during_a_look(self) -> None:
        """A look that found the container stopped does not take away what a start has reserved meanwhile."""
        self.there_is(container(running=False))
        holding: Deferred[None] = Deferred()
        self.mirrors.hold = lambda *_: holding  # type: ignore[method-assign]
        self.link_up()
        self.reconciler.start_begins(WEB)
        self.forwards.open[WEB] = None
        holding.callback(None)
        self.assertIn(WEB, self.forwards.open)

    def test_start_under_way_is_left_alone(self) -> None:
        """What a start has reserved is not closed by an event that comes before the container runs."""
        self.there_is(container(running=False))
        self.link_up()
        self.reconciler.start_begins(WEB)
        self.forwards.reserve(WEB, "web", ())
        self.event("create", **{OWNER_LABEL: OWNER})
        self.assertIn(WEB, self.forwards.open)
        self.there_is(container())
        ended = self.reconciler.start_ends(WEB)
        self.endpoint.pump()
        self.successResultOf(ended)
        self.assertEqual(self.forwards.open, {WEB: {"80/tcp": 32768}})

    def test_failed_start_releases(self) -> None:
        """A start that left the container not running leaves no port open."""
        self.there_is(container(running=False))
        self.link_up()
        self.reconciler.start_begins(WEB)
        self.forwards.reserve(WEB, "web", ())
        self.reconciler.start_ends(WEB)
        self.endpoint.pump()
        self.assertEqual(self.forwards.open, {})

    def test_restarts_again_and_again(self) -> None:
        """While the daemon waits before it starts a container again, its ports are closed, as at the daemon."""
        self.there_is(container())
        self.link_up()
        self.assertEqual(list(self.forwards.open), [WEB])
        waiting = container()
        waiting["State"]["Restarting"] = True
        waiting["NetworkSettings"]["Ports"] = {}
        self.there_is(waiting)
        self.reconciler.look(WEB)
        self.endpoint.pump()
        self.assertEqual(self.forwards.open, {})
        self.there_is(container())
        self.reconciler.look(WEB)
        self.endpoint.pump()
        self.assertEqual(list(self.forwards.open), [WEB])

    def test_daemon_restart(self) -> None:
        """A stream that ends is opened again after a delay, and everything is looked at anew."""
        self.there_is(container())
        self.link_up()
        self.daemon.end_streams()
        self.endpoint.pump()
        self.there_is(None)
        self.clock.advance(5)
        self.endpoint.pump()
        self.assertEqual(len(self.daemon.streams), 1)
        self.assertEqual(self.forwards.open, {})

    def test_link_loss_keeps_what_is_open(self) -> None:
        """While the link is down nothing is closed or retried; its return opens the stream again."""
        self.there_is(container())
        self.link_up()
        self.reconciler.link_down()
        self.endpoint.pump()
        self.assertEqual(self.forwards.open, {WEB: {"80/tcp": 32768}})
        self.clock.advance(30)
        self.endpoint.pump()
        self.assertEqual(len(self.daemon.streams), 1)
        self.link_up()
        self.assertEqual(len(self.daemon.streams), 2)
        self.assertIsNotNone(self.reconciler.known(WEB))

    def test_port_in_use(self) -> None:
        """A port that cannot be opened is a problem of that container, in words, until it can."""
        self.forwards.failure = PortUnavailable("port is already allocated")
        self.there_is(container())
        self.link_up()
        (problem,) = self.reconciler.problems()
        self.assertEqual((problem.subject, problem.message), ("web", "port is already allocated"))
        self.forwards.failure = None
        self.event("start", **{OWNER_LABEL: OWNER})
        self.assertEqual(self.reconciler.problems(), ())

    def test_port_in_use_for_a_while(self) -> None:
        """A port that cannot be opened is tried again by itself, ever more seldom."""
        self.forwards.failure = PortUnavailable("port is already allocated")
        self.there_is(container())
        self.link_up()
        asked = len(self.daemon.seen)
        for seconds in (RETRY_PORTS_SECONDS, 2 * RETRY_PORTS_SECONDS, 4 * RETRY_PORTS_SECONDS):
            self.clock.advance(seconds)
            self.endpoint.pump()
        self.assertEqual(len(self.daemon.seen), asked + 3)
        self.forwards.failure = None
        self.clock.advance(8 * RETRY_PORTS_SECONDS)
        self.endpoint.pump()
        self.assertEqual(self.reconciler.problems(), ())
        self.clock.advance(100)
        self.endpoint.pump()
        self.assertEqual(len(self.daemon.seen), asked + 4)

    def test_port_in_use_until_another_ends(self) -> None:
        """A port that another container gives up is opened for the one that waits for it at once."""
        other = "b" * 64
        self.reconciler.made_here.made("n1", other)
        self.forwards.open[other] = {"80/tcp": 1}
        self.forwards.failure = PortUnavailable("port is already allocated")
        self.there_is(container())
        self.link_up()
        self.forwards.failure = None
        self.daemon.answers[f"/containers/{other}/json"] = 200, {**container(running=False), "Id": other}
        actor = {"ID": other, "Attributes": {OWNER_LABEL: OWNER}}
        self.daemon.event({"Type": "container", "Action": "die", "Actor": actor})
        self.endpoint.pump()
        self.assertEqual(self.reconciler.problems(), ())
        self.assertEqual(self.forwards.open, {WEB: {"80/tcp": 32768}})

    def test_looks_do_not_overlap(self) -> None:
        """Events that come during a look cause one more look after it, not one each."""
        self.there_is(container())
        self.link_up()
        asked = len(self.daemon.seen)
        for _ in range(5):
            actor = {"ID": WEB, "Attributes": {OWNER_LABEL: OWNER}}
            self.daemon.event({"Type": "container", "Action": "start", "Actor": actor})
        self.endpoint.pump()
        self.assertEqual(len(self.daemon.seen) - asked, 2)
