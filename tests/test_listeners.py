"""Opening the endpoints that clients connect to."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from rda.proxy.listeners import (
    BACKLOG,
    CannotListen,
    docker_host,
    endpoint_problem,
    is_network,
    listen,
)


class Reactor:
    """As much of a reactor as listeners need; notes the permissions of a UNIX socket when it begins to be read."""

    def __init__(self) -> None:
        self.reading: list[Any] = []
        self.modes: list[int] = []
        self.refusal: Exception | None = None
        self.backlogs: list[int] = []

    def addReader(self, reader: Any) -> None:
        self.reading.append(reader)
        self.modes.append(stat.S_IMODE(reader.path.lstat().st_mode))

    def removeReader(self, reader: Any) -> None:
        if reader in self.reading:
            self.reading.remove(reader)

    removeWriter = removeReader

    def callLater(self, seconds: float, call: Any, *arguments: Any) -> None:
        call(*arguments)

    def listenTCP(self, port: int, factory: Any, backlog: int, interface: str) -> Any:
        if self.refusal is not None:
            raise self.refusal
        self.backlogs.append(backlog)
        return port, interface


class EndpointTests(SynchronousTestCase):
    def problem(self, description: str, tls: bool = False) -> str:
        return endpoint_problem(Reactor(), description, tls) or ""

    def test_plain_tcp(self) -> None:
        """Plain TCP is for a loopback address, however the endpoint is written."""
        for fine in (
            "tcp:1:interface=127.0.0.1",
            "tcp:1:127.0.0.1",
            "tcp:interface=127.9.9.9:port=1",
            r"tcp6:1:interface=\:\:1",
            "tcp:1:interface=localhost",
        ):
            self.assertEqual(self.problem(fine), "", fine)
        for open_ in (
            "tcp:1",
            "tcp6:1",
            "tcp:1:interface=0.0.0.0",
            "tcp:1:0.0.0.0",
            "tcp:1:interface=127.evil.example",
            "tcp:1:interface=",
            r"tcp6:1:interface=\:\:",
            r"tcp6:1:interface=\:\:10.0.0.1",
        ):
            self.assertIn("only for a loopback address", self.problem(open_), open_)
            self.assertEqual(self.problem(open_, tls=True), "", open_)

    def test_kinds(self) -> None:
        """Endpoints whose clients say themselves who they are, or that ask for no certificate, are refused."""
        self.assertIn("the key tls", self.problem("ssl:1:interface=127.0.0.1"))
        for kind in ("haproxy:tcp:1:interface=127.0.0.1", "tls:example.com:1", "http", "fd:3", ""):
            self.assertIn("its kind has to be", self.problem(kind), kind)

    def test_unix(self) -> None:
        """A UNIX socket has an absolute path that fits."""
        for fine in ("unix:/run/x.sock", "unix:/run/x.sock:mode=660", "unix:address=/x:lockfile=0", r"unix:/a\:b"):
            self.assertEqual(self.problem(fine), "", fine)
        for wrong in ("unix:x", "unix:", "unix:/x:/y", "unix:/x:mode=rw", "unix:/x:colour=1", "unix:/" + "x" * 107):
            self.assertIn("not a Twisted server endpoint", self.problem(wrong), wrong)

    def test_network(self) -> None:
        """TLS and the question whose a TCP connection is are for endpoints of the network."""
        for description in ("tcp:1", r"tcp6:1:interface=\:\:1", "systemd:domain=INET:index=0"):
            self.assertTrue(is_network(description), description)
        for description in ("unix:/tcp", "systemd:domain=UNIX:index=0"):
            self.assertFalse(is_network(description), description)

    def test_docker_host(self) -> None:
        """A listener's address is printed as what DOCKER_HOST has to be."""
        self.assertEqual(docker_host(IPv4Address("TCP", "127.0.0.1", 23750)), "tcp://localhost:23750")
        self.assertEqual(docker_host(IPv6Address("TCP", "::1", 1)), "tcp://localhost:1")
        self.assertEqual(docker_host(IPv6Address("TCP", "fd00::1", 1)), "tcp://[fd00::1]:1")
        self.assertEqual(docker_host(UNIXAddress("/run/rda.sock")), "unix:///run/rda.sock")


class TCPTests(SynchronousTestCase):
    def test_bursts_of_connections_wait(self) -> None:
        """Many connections at once wait until they are accepted, unless the endpoint says how many."""
        reactor = Reactor()
        for description in ("tcp:1:interface=127.0.0.1", "tcp:1:127.0.0.1:backlog=7", "tcp:1:127.0.0.1:8"):
            self.successResultOf(listen(reactor, description, Factory()))
        self.assertEqual(reactor.backlogs, [BACKLOG, 7, 8])

    def test_in_use(self) -> None:
        """Who uses a port is named."""
        reactor = Reactor()
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            reactor.refusal = CannotListenError("127.0.0.1", port, OSError(98, "Address already in use"))
            opening = listen(reactor, f"tcp:{port}:interface=127.0.0.1", Factory())
            message = str(self.failureResultOf(opening, CannotListen).value)
        self.assertIn("Address already in use", message)
        if os.path.exists("/proc/self/comm"):
            self.assertIn(f"process {os.getpid()} (", message)


class UnixTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.directory = Path(tempfile.mkdtemp(prefix="rda-"))  # the path of a socket has to be short
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = self.directory / "made/new/x.sock"

    def open(self, more: str = "", gid: int | None = None) -> Any:
        port = self.successResultOf(listen(self.reactor, f"unix:{self.path}{more}", Factory(), gid=gid))
        self.addCleanup(lambda: port in self.reactor.reading and port.stopListening())
        return port

    def refusal(self) -> str:
        return str(self.failureResultOf(listen(self.reactor, f"unix:{self.path}", Factory()), CannotListen).value)

    def mode(self, path: Path) -> int:
        return stat.S_IMODE(path.lstat().st_mode)

    def test_the_owners_only(self) -> None:
        """A socket and its directory let in nobody but their owner, also before the mode is set, under any umask."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        self.open()
        modes = [self.mode(one) for one in (self.path, self.path.parent, self.path.parent.parent)]
        self.assertEqual(modes, [0o600, 0o700, 0o700])
        self.path = self.directory / "y.sock"
        self.open(":mode=666")
        self.assertEqual(self.mode(self.path), 0o666)
        self.assertEqual(self.reactor.modes, [0o600, 0o600])
        self.assertEqual(os.umask(0), 0)

    def test_the_groups(self) -> None:
        """A socket for a group belongs to it, and its directory lets it through."""
        gid = os.getegid()
        self.open(gid=gid)
        self.assertEqual((self.mode(self.path), self.path.lstat().st_gid), (0o660, gid))
        self.assertEqual((self.mode(self.path.parent), self.path.parent.stat().st_gid), (0o710, gid))
        self.assertEqual(self.reactor.modes, [0o600])

    def test_closing_removes_it(self) -> None:
        """A closed listener leaves no socket."""
        self.open().stopListening()
        self.assertFalse(self.path.exists())

    def test_closing_leaves_anothers(self) -> None:
        """What has taken the place of a socket meanwhile is not removed with it."""
        port = self.open()
        self.path.unlink()
        self.path.write_text("somebody else's")
        port.stopListening()
        self.assertTrue(self.path.exists())

    def test_a_dead_socket_is_replaced(self) -> None:
        """A socket that nobody listens on any more does not stand in the way."""
        with socket.socket(socket.AF_UNIX) as dead:
            self.path.parent.mkdir(parents=True)
            dead.bind(str(self.path))
            dead.listen()
        self.open()
        self.assertEqual(self.mode(self.path), 0o600)

    def test_a_second_instance(self) -> None:
        """A socket in use is refused, and who uses it is named; it goes on working."""
        self.open()
        message = self.refusal()
        self.assertIn("is in use by", message)
        if os.path.exists("/proc/self/comm"):
            self.assertIn(f"process {os.getpid()} (", message)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))

    def test_no_socket(self) -> None:
        """A file that is no socket is nobody's to remove."""
        self.path.parent.mkdir(parents=True)
        self.path.write_text("precious")
        self.assertIn("is no socket", self.refusal())
        self.assertEqual(self.path.read_text(), "precious")

    def test_a_directory_of_everybodys(self) -> None:
        """A socket is not put where others could put theirs in its place."""
        self.path.parent.mkdir(parents=True)
        self.path.parent.chmod(0o777)
        self.assertIn("others can write to", self.refusal())
        self.path.parent.chmod(0o1777)
        self.open()

    def test_no_permission(self) -> None:
        """What the system says is passed on, with the path."""
        self.path = Path("/proc/x/y.sock")
        self.assertIn("/proc/x", self.refusal())
