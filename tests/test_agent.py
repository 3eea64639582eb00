"""The parts of the agent that are not wiring."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from rda.agent import BACKLOG, Agent, docker_host, identity, listen, private_directory, settled, summary
from rda.config import Config, Context, Remote
from rda.status import LinkStatus


class AgentTests(SynchronousTestCase):
    def test_docker_host(self) -> None:
        """A listener's address is printed as what DOCKER_HOST has to be."""
        self.assertEqual(docker_host(IPv4Address("TCP", "127.0.0.1", 23750)), "tcp://localhost:23750")
        self.assertEqual(docker_host(IPv6Address("TCP", "::1", 1)), "tcp://localhost:1")
        self.assertEqual(docker_host(IPv6Address("TCP", "fd00::1", 1)), "tcp://[fd00::1]:1")
        self.assertEqual(docker_host(UNIXAddress("/run/rda.sock")), "unix:///run/rda.sock")

    def test_identity(self) -> None:
        """The identity of a context is made once, unlike any other, and only its owner can read it."""
        first, second = Path(self.mktemp()), Path(self.mktemp())
        for directory in (first, second):
            private_directory(directory)
        made = identity(first)
        self.assertEqual(identity(first), made)
        self.assertNotEqual(identity(second), made)
        self.assertEqual(stat.S_IMODE((first / "owner").stat().st_mode), 0o600)

    def test_damaged_identity(self) -> None:
        """A damaged identity is not replaced: the containers and copies that it owns would be lost sight of."""
        directory = Path(self.mktemp())
        private_directory(directory)
        (directory / "owner").write_text("x")
        self.assertIn("is damaged", str(self.assertRaises(SystemExit, identity, directory).code))

    def test_private_directory(self) -> None:
        """A state directory that others could enter is closed to them."""
        directory = Path(self.mktemp())
        directory.mkdir(mode=0o755)
        private_directory(directory)
        self.assertEqual(stat.S_IMODE(directory.stat().st_mode), 0o700)

    def test_socket_is_the_owners(self) -> None:
        """A UNIX socket is made with a mode that lets nobody else connect, also before its mode is set."""
        seen: list[tuple[str, int, int]] = []

        class Reactor:
            def listenUNIX(self, path: str, factory: Factory, backlog: int, mode: int, wantPID: int) -> str:
                umask = os.umask(0o022)
                os.umask(umask)
                seen.append((path, mode, umask))
                return "port"

        before = os.umask(0o022)
        self.addCleanup(os.umask, before)
        self.assertEqual(self.successResultOf(listen(Reactor(), "unix:/run/x.sock", Factory())), "port")
        self.successResultOf(listen(Reactor(), "unix:/run/x.sock:mode=660", Factory()))
        self.assertEqual(seen, [("/run/x.sock", 0o600, 0o177), ("/run/x.sock", 0o660, 0o177)])
        self.assertEqual(os.umask(0o022), 0o022)

    def test_bursts_of_connections_wait(self) -> None:
        """Many connections at once wait until they are accepted, unless the endpoint says how many."""
        seen: list[int] = []

        class Reactor:
            def listenTCP(self, port: int, factory: Factory, backlog: int, interface: str) -> str:
                seen.append(backlog)
                return "port"

        for description in ("tcp:1:interface=127.0.0.1", "tcp:1:backlog=7"):
            self.successResultOf(listen(Reactor(), description, Factory()))
        self.assertEqual(seen, [BACKLOG, 7])

    def test_one_service_for_each_context(self) -> None:
        """Every context of the configuration is a service of the agent, under its name."""
        contexts = tuple(Context(name, Remote("host")) for name in ("default", "gpu"))
        agent = Agent(Clock(), Config(contexts, self.mktemp()), print, lambda: None)
        self.assertEqual([service.name for service in agent], ["default", "gpu"])

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
