"""rda.ports.exposed: ports of this machine that containers reach, and no others."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from rda.errors import ChannelRefused, CommandFailed, LinkDown, RdaError
from rda.interfaces import IRemoteHost, IRemoteListener
from rda.ports import exposed as module
from rda.ports.exposed import ANSWER_SECONDS, COMMAND, NO_PROGRAM, Exposed
from rda.ports.programs import NO_INTERPRETER, READY
from tests.memory_network import MemoryEndpoint, Network, Peer
from tests.program_case import TIMEOUT, ProgramCase

GATEWAY = "172.17.0.1"


@implementer(IRemoteListener)
class FakeListener:
    def __init__(self, host: FakeHost, path: str) -> None:
        self.host, self.path, self.over = host, path, False

    def stopListening(self) -> Deferred[None]:
        self.over = True
        self.host.listening.pop(self.path, None)
        return succeed(None)


@implementer(IRemoteHost)
class FakeHost:
    """A remote host whose only command is the program, played by the test.

    :ivar listening: path -> factory.
    :ivar refusal: what listening fails with.
    """

    def __init__(self, network: Network) -> None:
        self.endpoint = MemoryEndpoint(network)
        self.listening: dict[str, Any] = {}
        self.refusal: Exception | None = None

    def command(self, command: bytes) -> MemoryEndpoint:
        assert command == COMMAND
        return self.endpoint

    def listen(self, path: str, factory: Any) -> Deferred[Any]:
        if self.refusal is not None:
            return fail(self.refusal)
        self.listening[path] = factory
        return succeed(FakeListener(self, path))


class ExposedCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.network = Network(self.clock)
        self.host = FakeHost(self.network)
        self.gateway: Any = GATEWAY
        self.services = {5432: [MemoryEndpoint(self.network)], 8080: [MemoryEndpoint(self.network)]}
        self.exposed = Exposed(self.host, self.clock, (5432, 8080), self.ask, self.services.__getitem__)  # type: ignore[arg-type]

    def tearDown(self) -> None:
        self.exposed.stop()
        self.network.pump()
        for peer in self.host.endpoint.peers:
            self.end(peer)
        self.network.pump()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def end(self, program: Peer) -> None:
        """The program ends, with status 0."""
        if program.transport.other.connected:
            program.transport.other.lost(ConnectionDone())

    async def ask(self) -> str:
        if isinstance(self.gateway, Exception):
            raise self.gateway
        return self.gateway

    @property
    def program(self) -> Peer:
        return self.host.endpoint.peers[-1]

    def up(self, *answers: str) -> None:
        """The link comes up, and the program answers."""
        self.exposed.link_up()
        self.network.pump()
        self.say(*answers)

    def say(self, *answers: str) -> None:
        self.program.send(READY + "".join(f"{answer}\n" for answer in answers or ("5432 ok", "8080 ok")).encode())
        self.network.pump()

    def states(self) -> list[tuple[str, str, str, str]]:
        return [(one.port, one.remote, one.state, one.reason) for one in self.exposed.status()]

    def connect(self, port: int = 5432) -> Peer:
        """A container connects; returns its end."""
        (factory,) = (one for path, one in self.host.listening.items() if path.endswith(f"-{port}"))
        peer = Peer()
        near = factory.buildProtocol(None)
        assert near is not None
        self.network.connect(peer, near)
        self.network.pump()
        return peer


class OpenTests(ExposedCase):
    def test_open(self) -> None:
        """The program listens at the gateway's address, and the SSH server at sockets that nobody can guess."""
        self.up()
        lines = self.program.received.decode().split("\n")
        self.assertEqual([line.split()[:2] for line in lines[:2]], [[GATEWAY, "5432"], [GATEWAY, "8080"]])
        self.assertEqual(lines[2:], ["", ""])
        self.assertEqual([line.split()[2] for line in lines[:2]], list(self.host.listening))
        self.assertEqual(
            self.states(),
            [
                ("5432/tcp", f"{GATEWAY}:5432", "exposed", ""),
                ("8080/tcp", f"{GATEWAY}:8080", "exposed", ""),
            ],
        )
        self.assertEqual((self.exposed.address, self.exposed.warnings()), (GATEWAY, ()))

    def test_none(self) -> None:
        """Without a port, nothing is asked of the remote host."""
        none = Exposed(self.host, self.clock, (), self.ask, self.services.__getitem__)  # type: ignore[arg-type]
        none.link_up()
        self.assertFalse(none)
        self.assertEqual(self.host.endpoint.peers, [])
        self.successResultOf(none.settled())
        self.successResultOf(none.stop())

    def test_before_the_link(self) -> None:
        """A create that comes before the link is up waits for it, but not for ever."""
        settled = [self.exposed.settled(), self.exposed.settled()]
        self.clock.advance(ANSWER_SECONDS)
        for one in settled:
            self.successResultOf(one)
        waiting = self.exposed.settled()
        self.up()
        self.successResultOf(waiting)
        self.assertEqual(self.exposed.address, GATEWAY)

    def test_settled(self) -> None:
        """A create that comes while the ports are being opened waits until it is known which are."""
        self.exposed.link_up()
        settled = self.exposed.settled()
        self.network.pump()
        self.assertNoResult(settled)
        self.say()
        self.successResultOf(settled)
        self.successResultOf(self.exposed.settled())

    def test_both_ways(self) -> None:
        """A connection leads to the service here; each direction ends on its own; the status counts it."""
        self.up()
        container = self.connect()
        service = self.services[5432][0].peers[0]
        container.send(b"ping")
        container.transport.loseWriteConnection()
        self.network.pump()
        self.assertEqual((service.received, service.ended), (b"ping", True))
        service.send(b"pong")
        status = self.exposed.status()[0]
        self.network.pump()
        self.assertEqual((status.connections, status.connections_total), (1, 1))
        service.transport.loseConnection()
        self.network.pump()
        self.assertEqual((container.received, container.closed_cleanly), (b"pong", True))
        status = self.exposed.status()[0]
        self.assertEqual((status.connections, status.bytes_in, status.bytes_out), (0, 4, 4))

    def test_other_address(self) -> None:
        """A service that listens on the other loopback address is found there; where none does, the connection ends."""
        refusing = MemoryEndpoint(self.network)
        refusing.failure = ConnectionRefusedError()
        self.services[5432].insert(0, refusing)
        self.services[8080][0].failure = ConnectionRefusedError()
        self.up()
        self.connect(5432)
        self.assertEqual(len(self.services[5432][1].peers), 1)
        self.assertTrue(self.connect(8080).closed_cleanly)

    def test_bounded(self) -> None:
        """The connections of one port are bounded; those that are refused are counted."""
        self.patch(module, "MAX_CONNECTIONS", 1)
        self.up()
        self.connect()
        self.assertIsNone(next(iter(self.host.listening.values())).buildProtocol(None))
        self.assertEqual(self.exposed.status()[0].dropped, 1)


class TroubleTests(ExposedCase):
    def test_port_in_use(self) -> None:
        """A port that is taken there is told; the others are open."""
        self.up("5432 Address already in use", "8080 ok")
        self.assertEqual(len(self.host.listening), 1)
        (warning,) = self.exposed.warnings()
        self.assertIn("rda: port 5432 of host.docker.internal cannot be reached: 172.17.0.1:5432 cannot be", warning)
        self.assertIn("Address already in use", warning)
        self.assertEqual([one[2] for one in self.states()], ["not exposed", "exposed"])

    def test_server_refuses(self) -> None:
        """A server that does not listen for us is a reason."""
        self.host.refusal = ChannelRefused("AllowStreamLocalForwarding may forbid it", 1)
        self.up()
        self.assertEqual([one[2:] for one in self.states()], [("not exposed", str(self.host.refusal))] * 2)

    def test_no_bridge(self) -> None:
        """A daemon without a default bridge has nothing that could stand for this machine; it is asked again."""
        self.gateway = ""
        self.exposed.link_up()
        self.assertIn("no bridge network", self.exposed.warnings()[0])
        self.gateway = GATEWAY
        self.clock.advance(60)
        self.network.pump()
        self.say()
        self.assertEqual(self.exposed.warnings(), ())

    def test_daemon_silent(self) -> None:
        """A daemon that does not answer is a reason, and asked again; a defect is logged too."""
        for error in (RdaError("no answer"), ZeroDivisionError("oops")):
            self.gateway = error
            self.exposed.link_up()
            self.assertIn(str(error), self.exposed.warnings()[0])
            self.exposed.link_down()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_no_program(self) -> None:
        """Without an interpreter there, the reason says what to install."""
        self.exposed.link_up()
        self.network.pump()
        self.program.transport.other.lost(CommandFailed("status 127", NO_INTERPRETER))
        self.network.pump()
        self.assertIn(NO_PROGRAM, self.exposed.warnings()[0])

    def test_noise(self) -> None:
        """A login script that prints is a reason."""
        self.exposed.link_up()
        self.network.pump()
        self.program.send(b"Welcome!\n")
        self.network.pump()
        self.assertIn("ended", self.exposed.warnings()[0])

    def test_silence(self) -> None:
        """A program that says nothing is given up, and tried again later."""
        self.exposed.link_up()
        self.network.pump()
        self.clock.advance(ANSWER_SECONDS)
        self.network.pump()
        self.assertIn("said nothing in 10 s", self.exposed.warnings()[0])
        self.clock.advance(60)
        self.network.pump()
        self.say()
        self.assertEqual(self.exposed.warnings(), ())

    def test_program_ends(self) -> None:
        """When the program ends, everything is opened anew, with new sockets."""
        self.up()
        before = set(self.host.listening)
        self.program.transport.other.lost(ConnectionLost())
        self.assertEqual((self.host.listening, [one[2] for one in self.states()]), ({}, ["not exposed"] * 2))
        self.clock.advance(60)
        self.network.pump()
        self.say()
        self.assertEqual(len(self.host.listening), 2)
        self.assertFalse(before & set(self.host.listening))

    def test_program_ends_while_opening(self) -> None:
        """A program that ends before the server listens is noticed."""
        self.host.listen = lambda path, factory: self.late  # type: ignore[method-assign,assignment,return-value]
        self.late: Deferred[Any] = Deferred()
        self.up()
        self.program.transport.other.lost(ConnectionDone())
        self.late.callback(FakeListener(self.host, "x"))
        self.assertEqual([one[2] for one in self.states()], ["not exposed"] * 2)
        self.assertIn("ended", self.exposed.warnings()[0])

    def test_link_loss(self) -> None:
        """What was open ends with the link, and is opened again with the next one, at once."""
        self.up()
        self.exposed.link_down()
        self.host.listening.clear()
        self.assertIn("no connection", self.exposed.warnings()[0])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.up()
        self.assertEqual(self.exposed.warnings(), ())

    def test_link_loss_while_opening(self) -> None:
        """A link that is lost in the middle leaves nothing behind, and whoever waits is told."""
        self.exposed.link_up()
        settled = self.exposed.settled()
        self.exposed.link_down()
        self.successResultOf(settled)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.host.endpoint.failure = LinkDown("gone")
        self.exposed.link_up()
        self.assertIn("gone", self.exposed.warnings()[0])
        self.host.endpoint.failure = None

    def test_stop(self) -> None:
        """Stopping ends the program's input, so that it removes its sockets, and waits for its end."""
        self.up()
        container = self.connect()
        stopped = self.exposed.stop()
        self.network.pump()
        self.assertTrue(self.program.ended)
        self.assertEqual(self.host.listening, {})
        self.assertIsNotNone(container.lost)
        self.assertNoResult(stopped)
        self.end(self.program)
        self.successResultOf(stopped)


class ProgramTests(ProgramCase):
    """The program itself."""

    command = COMMAND

    def check(self, process: subprocess.Popen[bytes]) -> None:
        """Connections lead to the socket, each direction ends on its own, and the end of input ends everything."""
        assert process.stdin is not None
        directory = tempfile.mkdtemp()  # not mktemp: the path of a socket is short
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        path = os.path.join(directory, "s")
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        server.settimeout(TIMEOUT)
        server.bind(path)
        server.listen()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            used = taken.getsockname()[1]
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            process.stdin.write(f"127.0.0.1 {port} {path}\n127.0.0.1 {used} {path}x\n\n".encode())
            said = READY + f"{port} ok\n{used} Address already in use\n".encode()
            self.assertEqual(self.read(process, len(said)), said)
        data = bytes(range(256)) * 4000
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as near:
                far, _ = server.accept()
                with far:
                    far.settimeout(TIMEOUT)
                    near.sendall(b"ping")
                    near.shutdown(socket.SHUT_WR)
                    self.assertEqual(far.makefile("rb").read(), b"ping")
                    far.sendall(data)
                    far.shutdown(socket.SHUT_WR)
                    self.assertEqual(near.makefile("rb").read(), data)
        idle = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self.addCleanup(idle.close)
        accepted, _ = server.accept()
        accepted.close()
        process.stdin.close()
        process.wait(TIMEOUT)
        self.assertFalse(os.path.exists(path))
        self.assertRaises(ConnectionError, socket.create_connection, ("127.0.0.1", port))

    def test_python(self) -> None:
        """With python3."""
        self.check(self.start("python3", "perl"))

    def test_perl(self) -> None:
        """With perl alone."""
        self.check(self.start("perl"))
