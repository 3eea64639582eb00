"""The parts of the agent that are not wiring."""

from __future__ import annotations

import stat
from pathlib import Path

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from rda.agent import Agent, docker_host, identity, private_directory
from rda.config import Config, Context, Remote


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

    def test_one_service_for_each_context(self) -> None:
        """Every context of the configuration is a service of the agent, under its name."""
        contexts = tuple(Context(name, Remote("host")) for name in ("default", "gpu"))
        agent = Agent(Clock(), Config(contexts, self.mktemp()), print, lambda: None)
        self.assertEqual([service.name for service in agent], ["default", "gpu"])
