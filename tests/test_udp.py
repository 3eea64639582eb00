"""rda.ports.udp: datagrams keep their boundaries, answers find their clients, and idle flows end."""

from __future__ import annotations

import itertools
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from rda.docker.ports import Listener, Published
from rda.errors import ChannelRefused, CommandFailed, LinkDown
from rda.interfaces import IRemoteHost
from rda.ports import udp as module
from rda.ports.forwards import Forwards
from rda.ports.udp import COMMAND, IDLE_SECONDS, MAX_QUEUED, NO_PROGRAM, PROBE_SECONDS, READY, udp_listener
from tests.memory_network import HIGH_WATER, MemoryEndpoint, Network, Peer
from tests.program_case import TIMEOUT, ProgramCase

DNS = Published(53, "udp", "", 5353, 5353)
FRAME = struct.Struct(">BIH")


def frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """Complete frames, read independently of the code under test."""
    found = []
    while data:
        kind, flow, length = FRAME.unpack_from(data)
        assert len(data) >= FRAME.size + length, data
        found.append((kind, flow, data[FRAME.size : FRAME.size + length]))
        data = data[FRAME.size + length :]
    return found


def frame(flow: int, data: bytes, kind: int = 0) -> bytes:
    """One frame."""
    return FRAME.pack(kind, flow, len(data)) + data


class FakeUDPPort:
    """An open UDP listener that remembers what was sent from it."""

    def __init__(self, protocol: DatagramProtocol, address: str, port: int) -> None:
        self.protocol, self.address, self.port = protocol, address, port
        self.sent: list[tuple[bytes, object]] = []
        self.error: OSError | None = None
        self.closed = False
        protocol.makeConnection(self)

    def getHost(self) -> IPv4Address:
        return IPv4Address("UDP", self.address, self.port)

    def write(self, data: bytes, addr: object) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append((data, addr))

    def stopListening(self) -> Deferred[None]:
        self.closed = True
        return succeed(None)

    def take(self) -> list[tuple[bytes, object]]:
        sent, self.sent = self.sent, []
        return sent


@implementer(IRemoteHost)
class FakeHost:
    """A remote host whose only command is the relay program, played by the test."""

    def __init__(self, network: Network) -> None:
        self.endpoint = MemoryEndpoint(network)
        self.up = True

    @property
    def connected(self) -> bool:
        return self.up

    def command(self, command: bytes) -> MemoryEndpoint:
        assert command == COMMAND
        return self.endpoint


class UDPCase(SynchronousTestCase):
    """One published UDP port, and a network in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.network = Network(self.clock)
        self.host = FakeHost(self.network)
        self.ports: list[FakeUDPPort] = []
        self.forwards = Forwards(self.host, self.clock, listen_udp=self.listen)  # type: ignore[arg-type]
        self.successResultOf(self.forwards.reserve("c1", "dns", [DNS]))
        self.attach()

    def tearDown(self) -> None:
        self.successResultOf(self.forwards.stop())
        self.network.pump()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertTrue(all(port.closed for port in self.ports))

    def listen(self, protocol: DatagramProtocol, address: str, port: int) -> Any:
        self.ports.append(FakeUDPPort(protocol, address, port or 49152))
        return self.ports[-1]

    def attach(self, remote: int = 32768) -> None:
        self.forwards.attach("c1", {"53/udp": remote})

    def send(self, data: bytes, client: int = 1, port: int = 0) -> None:
        """A client sends a datagram."""
        self.ports[port].protocol.datagramReceived(data, ("127.0.0.1", client))
        self.network.pump()

    def relay(self, ready: bool = True) -> Peer:
        """The relay program's end of the newest channel."""
        peer = self.host.endpoint.peers[-1]
        if ready:
            peer.send(READY)
            self.network.pump()
        return peer

    def status(self) -> Any:
        (status,) = self.forwards.status()
        return status


class FlowTests(UDPCase):
    """Datagrams through one forward."""

    def test_open(self) -> None:
        """The port is open on every default address, and no channel before the first datagram."""
        self.assertEqual([(port.address, port.port) for port in self.ports], [("127.0.0.1", 5353), ("::1", 5353)])
        self.assertEqual(self.forwards.local("c1"), {"53/udp": (Listener("", 5353),)})
        self.assertEqual(self.host.endpoint.peers, [])
        self.assertEqual((self.status().state, self.status().local), ("open", "127.0.0.1:5353, [::1]:5353"))

    def test_both_ways(self) -> None:
        """Datagrams wait for the relay, then pass one by one, and each answer goes to its own client."""
        self.send(b"one", 1)
        self.send(b"", 2)
        relay = self.relay(ready=False)
        self.assertEqual(relay.take(), struct.pack(">H", 32768))
        relay = self.relay()
        self.assertEqual(frames(relay.take()), [(0, 1, b"one"), (0, 2, b"")])
        self.send(b"three", 1)
        self.assertEqual(frames(relay.take()), [(0, 1, b"three")])
        relay.send(frame(2, b"for two") + frame(1, b"for one") + frame(9, b"for nobody"))
        self.network.pump()
        self.assertEqual(self.ports[0].take(), [(b"for two", ("127.0.0.1", 2)), (b"for one", ("127.0.0.1", 1))])
        status = self.status()
        self.assertEqual(
            (status.connections, status.connections_total, status.bytes_in, status.bytes_out), (2, 2, 8, 14)
        )

    def test_addresses_are_apart(self) -> None:
        """The same client address on two listeners is two flows, each answered from where it was asked."""
        self.send(b"a", 1, port=0)
        self.send(b"b", 1, port=1)
        relay = self.relay()
        relay.send(frame(2, b"B"))
        self.network.pump()
        self.assertEqual((self.ports[0].take(), self.ports[1].take()), ([], [(b"B", ("127.0.0.1", 1))]))

    @given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(0, 300), max_size=6))
    @settings(max_examples=50, deadline=None)
    def test_any_split(self, datagrams: list[bytes], cuts: list[int]) -> None:
        """However the channel cuts the bytes, the datagrams are the same."""
        got: list[tuple[int, bytes]] = []
        relay = module._Relay(1, lambda: None, lambda flow, data: got.append((flow, data)), lambda reason: None)
        stream = READY + b"".join(frame(n, data) for n, data in enumerate(datagrams))
        bounds = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
        for start, end in itertools.pairwise(bounds):
            relay.dataReceived(stream[start:end])
        self.assertEqual(got, list(enumerate(datagrams)))

    def test_largest(self) -> None:
        """The largest datagram of IPv4 passes whole."""
        self.send(bytes(65507))
        relay = self.relay()
        ((_, _, data),) = frames(relay.take()[2:])
        self.assertEqual(len(data), 65507)

    def test_idle_flows_end(self) -> None:
        """A flow without datagrams ends, the others stay; with the last one the channel ends."""
        self.send(b"a", 1)
        relay = self.relay()
        self.clock.advance(IDLE_SECONDS / 2)
        self.send(b"b", 2)
        relay.take()
        self.clock.advance(IDLE_SECONDS / 2)
        self.network.pump()
        self.assertEqual(frames(relay.take()), [(1, 1, b"")])
        self.assertEqual(self.status().connections, 1)
        relay.send(frame(2, b"still there"))
        self.network.pump()
        self.clock.advance(IDLE_SECONDS / 2)
        self.assertEqual(self.status().connections, 1)
        self.clock.advance(IDLE_SECONDS / 2)
        self.network.pump()
        self.assertEqual(self.status().connections, 0)
        self.assertTrue(relay.ended)
        self.send(b"c", 1)
        self.assertEqual(len(self.host.endpoint.peers), 2)

    def test_flows_are_bounded(self) -> None:
        """Beyond the limit, a new client's datagrams are dropped; those of known ones pass."""
        self.patch(module, "MAX_FLOWS", 2)
        for client in (1, 2, 3, 1):
            self.send(b"x", client)
        relay = self.relay()
        self.assertEqual([flow for _, flow, _ in frames(relay.take()[2:])], [1, 2, 1])

    def test_queue_is_bounded(self) -> None:
        """Only so many datagrams wait for the relay."""
        for _ in range(MAX_QUEUED + 5):
            self.send(b"x")
        self.assertEqual(len(frames(self.relay().take()[2:])), MAX_QUEUED)

    def test_full_channel(self) -> None:
        """While the channel is full, datagrams are dropped, not kept; afterwards they pass again."""
        self.send(b"x")
        relay = self.relay()
        relay.transport.pauseProducing()
        for _ in range(100):
            self.send(bytes(10_000))
        self.assertLess(relay.transport.other.buffered, 2 * HIGH_WATER)
        relay.transport.resumeProducing()
        self.network.pump()
        relay.take()
        self.send(b"again")
        self.assertEqual(frames(relay.take()), [(0, 1, b"again")])

    def test_unsendable_answer(self) -> None:
        """An answer that the system cannot take is dropped."""
        self.send(b"x")
        relay = self.relay()
        self.ports[0].error = BlockingIOError(11, "busy")
        relay.send(frame(1, b"lost"))
        self.network.pump()
        self.ports[0].error = None
        relay.send(frame(1, b"kept"))
        self.network.pump()
        self.assertEqual(self.ports[0].take(), [(b"kept", ("127.0.0.1", 1))])

    def test_moved(self) -> None:
        """When the daemon moves the port, flows begin anew there; the same port again changes nothing."""
        self.send(b"x")
        relay = self.relay()
        self.attach()
        self.network.pump()
        self.assertFalse(relay.ended)
        self.attach(40000)
        self.network.pump()
        self.assertTrue(relay.ended)
        self.send(b"y")
        self.assertEqual(self.relay(ready=False).take(), struct.pack(">H", 40000))

    def test_before_it_is_known_where(self) -> None:
        """Datagrams that come before the container is up wait, and go there when it is."""
        self.successResultOf(self.forwards.reserve("c2", "other", [Published(53, "udp")]))
        self.ports[2].protocol.datagramReceived(b"early", ("127.0.0.1", 1))
        self.assertEqual(self.host.endpoint.peers, [])
        self.forwards.attach("c2", {"53/udp": 1})
        self.network.pump()
        relay = self.relay()
        self.assertEqual(frames(relay.take()[2:]), [(0, 1, b"early")])
        relay.send(frame(1, b"answer"))
        self.network.pump()
        self.assertEqual(self.ports[2].take(), [(b"answer", ("127.0.0.1", 1))])

    def test_release(self) -> None:
        """A container's end closes listeners and channel."""
        self.send(b"x")
        relay = self.relay()
        self.successResultOf(self.forwards.release("c1"))
        self.network.pump()
        self.assertTrue(relay.ended)
        self.assertEqual(self.forwards.status(), ())


class TroubleTests(UDPCase):
    """Channels that do not work."""

    def lose(self, reason: Exception) -> None:
        """End the newest channel."""
        self.host.endpoint.peers[-1].transport.other.lost(reason)

    def test_no_program(self) -> None:
        """Where the remote host has no program for it, the status says so, and nothing is tried until a new start."""
        self.send(b"x")
        self.lose(CommandFailed("exit 127", 127))
        self.assertEqual(self.status().reason, NO_PROGRAM)
        self.clock.advance(60)
        self.send(b"y")
        self.assertEqual(len(self.host.endpoint.peers), 1)
        self.attach(40000)
        self.send(b"z")
        self.assertEqual(len(self.host.endpoint.peers), 2)
        self.assertEqual(self.status().reason, "")

    def test_program_failed(self) -> None:
        """A relay program that fails tells why."""
        self.send(b"x")
        self.lose(CommandFailed("no memory", 1))
        self.assertIn("no memory", self.status().reason)

    def test_link_lost(self) -> None:
        """After a lost link the next datagram opens a new channel, but not in a hurry."""
        self.send(b"x")
        self.relay()
        self.lose(LinkDown("gone"))
        self.assertEqual(self.status().connections, 0)
        self.send(b"dropped")
        self.clock.advance(1)
        self.send(b"y")
        self.assertEqual(frames(self.relay().take()[2:]), [(0, 2, b"y")])

    def test_no_link(self) -> None:
        """Without a link, datagrams are dropped, and nothing waits for one."""
        self.host.up = False
        self.send(b"x")
        self.assertEqual(self.host.endpoint.peers, [])

    def test_not_connected(self) -> None:
        """A channel that cannot be opened drops what waited for it."""
        self.host.endpoint.failure = LinkDown("gone")
        self.send(b"x")
        self.host.endpoint.failure = None
        self.clock.advance(1)
        self.send(b"y")
        self.assertEqual(frames(self.relay().take()[2:]), [(0, 1, b"y")])

    def test_defect(self) -> None:
        """An error that is nobody's fault but ours is logged."""
        self.host.endpoint.failure = ZeroDivisionError()
        self.send(b"x")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_noise(self) -> None:
        """A login script that prints into the channel ends it: nothing that follows could be trusted."""
        self.send(b"x")
        self.relay(ready=False).send(b"Welcome to this machine")
        self.network.pump()
        self.assertIsNotNone(self.relay(ready=False).lost)

    def test_closed_while_opening(self) -> None:
        """A channel that opens after its forward was closed is closed again."""
        self.host.endpoint.waiting = []
        self.send(b"x")
        self.successResultOf(self.forwards.release("c1"))
        self.assertEqual(self.forwards.status(), ())


class ProbeTests(UDPCase):
    """udp_problem."""

    def probe(self, words: bytes, reason: Exception) -> Deferred[str]:
        """Ask, and play the program."""
        asking = self.forwards.udp_problem()
        peer = self.host.endpoint.peers[-1]
        peer.send(words)
        self.network.pump()
        self.assertTrue(peer.ended)
        peer.transport.other.lost(reason)
        return asking

    def test_answers(self) -> None:
        """The program's first words tell that it is there; else there is a reason."""
        self.assertEqual(self.successResultOf(self.probe(b"", CommandFailed("x", 127))), NO_PROGRAM)
        self.assertIn("killed", self.successResultOf(self.probe(b"", CommandFailed("killed", None))))
        self.assertEqual(self.successResultOf(self.probe(b"Welcome", ConnectionDone())), NO_PROGRAM)
        self.assertEqual(self.successResultOf(self.probe(READY, ConnectionDone())), "")

    def test_asked_once(self) -> None:
        """A remote host that can relay is not asked again; one that cannot is."""
        self.assertEqual(self.successResultOf(self.probe(b"", CommandFailed("x", 127))), NO_PROGRAM)
        self.assertEqual(self.successResultOf(self.probe(READY, ConnectionDone())), "")
        asked = len(self.host.endpoint.peers)
        self.assertEqual(self.successResultOf(self.forwards.udp_problem()), "")
        self.assertEqual(len(self.host.endpoint.peers), asked)

    def test_silence(self) -> None:
        """A remote host that does not answer is taken to have no program, and not asked any longer."""
        for waiting in (None, []):
            self.host.endpoint.waiting = waiting
            asking = self.forwards.udp_problem()
            self.clock.advance(PROBE_SECONDS)
            self.assertIn(NO_PROGRAM, self.successResultOf(asking))
        self.network.pump()
        self.assertIsNotNone(self.host.endpoint.peers[0].lost)

    def test_no_commands(self) -> None:
        """A server that runs no commands is a reason, and no error."""
        self.host.endpoint.failure = ChannelRefused("administratively prohibited", 1)
        self.assertIn("runs none", self.successResultOf(self.forwards.udp_problem()))

    def test_no_link(self) -> None:
        """Without a link there is no answer."""
        self.failureResultOf(self.probe(b"", LinkDown("gone")), LinkDown)
        self.host.endpoint.failure = LinkDown("gone")
        self.failureResultOf(self.forwards.udp_problem(), LinkDown)


class ProgramTests(ProgramCase):
    """The relay programs themselves, as processes of this machine."""

    command = COMMAND

    def answer(self, process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
        """One frame of the program's output."""
        _, flow, length = FRAME.unpack(self.read(process, FRAME.size))
        return flow, self.read(process, length)

    def check(self, process: subprocess.Popen[bytes]) -> None:
        """Datagrams keep their boundaries, each flow has its own socket, and the end of input ends the program."""
        assert process.stdin is not None
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(server.close)
        server.settimeout(TIMEOUT)
        server.bind(("127.0.0.1", 0))
        self.assertEqual(self.read(process, len(READY)), READY)
        process.stdin.write(
            struct.pack(">H", server.getsockname()[1]) + frame(7, b"a") + frame(7, b"bc") + frame(9, b"")
        )
        first, second, third = server.recvfrom(70000), server.recvfrom(70000), server.recvfrom(70000)
        self.assertEqual((first[0], second[0], third[0]), (b"a", b"bc", b""))
        self.assertEqual(first[1], second[1])
        self.assertNotEqual(first[1], third[1])
        server.sendto(b"to nine", third[1])
        self.assertEqual(self.answer(process), (9, b"to nine"))
        server.sendto(bytes(range(256)) * 200, first[1])
        self.assertEqual(self.answer(process), (7, bytes(range(256)) * 200))
        process.stdin.write(frame(7, b"", kind=1) + frame(7, b"new")[:5])
        process.stdin.write(frame(7, b"new")[5:])
        data, address = server.recvfrom(70000)
        self.assertEqual(data, b"new")
        server.sendto(b"back", address)
        self.assertEqual(self.answer(process), (7, b"back"))
        process.stdin.close()
        self.assertEqual(process.wait(TIMEOUT), 0)

    def test_python(self) -> None:
        """With python3."""
        self.check(self.start("python3", "perl"))

    def test_perl(self) -> None:
        """With perl alone."""
        self.check(self.start("perl"))

    def test_neither(self) -> None:
        """Without both, the exit status says so."""
        self.assertEqual(self.start().wait(TIMEOUT), 127)

    def test_refused_port(self) -> None:
        """A port that nobody listens on does not end the program."""
        process = self.start("python3")
        assert process.stdin is not None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.read(process, len(READY))
        for _ in range(3):
            process.stdin.write(struct.pack(">H", port) + frame(1, b"x") if not _ else frame(1, b"x"))
        process.stdin.close()
        self.assertEqual(process.wait(TIMEOUT), 0)


class ListenerTests(SynchronousTestCase):
    """udp_listener, with sockets of this machine."""

    def adoptDatagramPort(self, descriptor: int, family: int, protocol: object, size: int) -> socket.socket:
        """What the reactor does: it takes a duplicate."""
        taken = socket.fromfd(descriptor, family, socket.SOCK_DGRAM)
        self.addCleanup(taken.close)
        return taken

    def test_in_use(self) -> None:
        """A port in use fails with the system's reason; the other family's is free."""
        listen = udp_listener(self)
        port: Any = listen(DatagramProtocol(), "127.0.0.1", 0)
        number = port.getsockname()[1]
        error = self.assertRaises(CannotListenError, listen, DatagramProtocol(), "127.0.0.1", number)
        self.assertIsInstance(error.socketError, OSError)
        if socket.has_ipv6 and Path("/proc/net/if_inet6").exists():
            listen(DatagramProtocol(), "::", number)
