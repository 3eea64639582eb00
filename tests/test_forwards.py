"""rda.ports.forwards: local listeners that are there exactly while they should be, and lead where they should."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from rda.docker.ports import Listener, Published
from rda.errors import ChannelRefused, LinkDown, PortUnavailable
from rda.interfaces import IRemoteHost
from rda.ports import forwards as module
from rda.ports.forwards import STARTING_SECONDS, Forwards, listener
from rda.ports.splice import AGAIN_SECONDS, LINGER_SECONDS, MAX_EARLY, SETTLE_SECONDS
from tests.memory_network import HIGH_WATER, MemoryEndpoint, MemoryTransport, Network, Peer

WEB = Published(80, "tcp", "", 8080, 8080)


class FakePort:
    """An open listener of :class:`FakeMachine`; closing takes until :meth:`FakeMachine.turn`, as the reactor's does."""

    def __init__(self, machine: FakeMachine, factory: Factory, address: str, port: int) -> None:
        self.machine, self.factory, self.address, self.port = machine, factory, address, port
        self.closing: Deferred[None] | None = None

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", self.address, self.port)

    def stopListening(self) -> Deferred[None]:
        self.closing = Deferred()
        return self.closing


class FakeMachine:
    """This machine's ports.

    :ivar errors: (address, port) or address -> the errno that opening it ends with.
    """

    def __init__(self) -> None:
        self.open: dict[tuple[str, int], FakePort] = {}
        self.errors: dict[object, int] = {}
        self.free = 49152

    def listen(self, factory: Factory, address: str, port: int) -> Any:
        if not port:
            port, self.free = self.free, self.free + 1
        code = self.errors.get((address, port)) or self.errors.get(address)
        if (address, port) in self.open:
            code = errno.EADDRINUSE
        if code:
            raise CannotListenError(address, port, OSError(code, "Cannot assign requested address"))
        self.open[address, port] = FakePort(self, factory, address, port)
        return self.open[address, port]

    def turn(self) -> None:
        """Let the reactor turn once: closing listeners are closed."""
        for key, port in list(self.open.items()):
            if port.closing is not None:
                del self.open[key]
                port.closing.callback(None)


@implementer(IRemoteHost)
class FakeHost:
    """A remote host whose TCP ports are all one endpoint.

    :ivar asked: the remote ports that were connected to.
    """

    def __init__(self, network: Network) -> None:
        self.endpoint = MemoryEndpoint(network)
        self.up = True
        self.asked: list[tuple[str, int]] = []

    @property
    def connected(self) -> bool:
        return self.up

    def tcp(self, host: str, port: int) -> MemoryEndpoint:
        self.asked.append((host, port))
        return self.endpoint


def _no_room(transport: MemoryTransport, producer: Any, streaming: bool) -> None:
    """What a transport's registerProducer does while it is full."""
    transport.producer = producer
    transport._producer_paused = True
    producer.pauseProducing()


class ForwardsCase(SynchronousTestCase):
    """Forwards over a fake machine and a network in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.network = Network(self.clock)
        self.host = FakeHost(self.network)
        self.machine = FakeMachine()
        self.forwards = Forwards(self.host, self.clock, listen=self.machine.listen)  # type: ignore[arg-type]

    def tearDown(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def reserve(self, *wanted: Published, container: str = "c1", name: str = "/web") -> Any:
        return self.successResultOf(self.forwards.reserve(container, name, wanted))

    def up(self, *wanted: Published, container: str = "c1", **remote: int) -> None:
        """Reserve and attach."""
        self.reserve(*wanted, container=container)
        ports = {key.replace("_", "/").lstrip("p"): port for key, port in remote.items()} or {"80/tcp": 32768}
        self.successResultOf(self.forwards.attach(container, ports))
        self.clock.advance(STARTING_SECONDS)

    def connect(self, address: str = "127.0.0.1", port: int = 8080) -> Peer:
        """Connect a client to a local port."""
        peer = Peer()
        listening = self.machine.open[address, port]
        assert listening.closing is None
        self.network.connect(peer, listening.factory.buildProtocol(None))  # type: ignore[arg-type]
        self.network.pump()
        return peer

    def states(self) -> list[tuple[str, str, str, str]]:
        return [(one.port, one.local, one.remote, one.state) for one in self.forwards.status()]


class ReserveTests(ForwardsCase):
    """What listens."""

    def test_default_addresses(self) -> None:
        """Without an address, all default ones are opened, on the port asked for."""
        reservation = self.reserve(WEB)
        self.assertEqual(set(self.machine.open), {("127.0.0.1", 8080), ("::1", 8080)})
        self.assertEqual(reservation.listeners, {"80/tcp": (Listener("", 8080),)})
        self.assertEqual(self.states(), [("80/tcp", "127.0.0.1:8080, [::1]:8080", "", "reserved")])

    def test_named_address(self) -> None:
        """The address that was asked for is opened, and no other."""
        self.reserve(Published(80, "tcp", "0.0.0.0", 8080, 8080), Published(81, "tcp", "::1", 8081, 8081))
        self.assertEqual(set(self.machine.open), {("0.0.0.0", 8080), ("::1", 8081)})
        self.assertEqual(
            self.forwards.local("c1"), {"80/tcp": (Listener("0.0.0.0", 8080),), "81/tcp": (Listener("::1", 8081),)}
        )

    def test_several_bindings_of_one_port(self) -> None:
        """A container port may be open on several local ports, in the order asked for."""
        self.reserve(Published(80, "tcp", "", 9000, 9000), WEB)
        self.assertEqual(self.forwards.local("c1"), {"80/tcp": (Listener("", 9000), Listener("", 8080))})

    def test_ephemeral(self) -> None:
        """Any free port is the same on every default address."""
        self.machine.errors["::1", 49152] = errno.EADDRINUSE
        self.reserve(Published(80, "tcp"))
        self.machine.turn()
        self.assertEqual(set(self.machine.open), {("127.0.0.1", 49153), ("::1", 49153)})
        self.assertEqual(self.forwards.local("c1"), {"80/tcp": (Listener("", 49153),)})

    def test_range(self) -> None:
        """Of a range, each binding takes the first port that is free on every address."""
        self.machine.errors["::1", 8000] = errno.EADDRINUSE
        self.reserve(Published(80, "tcp", "", 8000, 8003), Published(81, "tcp", "", 8000, 8003))
        self.machine.turn()
        self.assertEqual(self.forwards.local("c1"), {"80/tcp": (Listener("", 8001),), "81/tcp": (Listener("", 8002),)})
        self.assertEqual({port for _, port in self.machine.open}, {8001, 8002})

    def test_range_used_up(self) -> None:
        """A range without a free port fails, and says so."""
        for port in (8000, 8001):
            self.machine.errors["127.0.0.1", port] = errno.EADDRINUSE
        error = self.fails(Published(80, "tcp", "", 8000, 8001))
        self.assertIn("all ports in the range 0.0.0.0:8000-8001 are already allocated", str(error))

    def fails(self, *wanted: Published) -> PortUnavailable:
        """The error that reserving ends with."""
        failure = self.failureResultOf(self.forwards.reserve("c1", "/web", wanted), PortUnavailable)
        self.machine.turn()
        error = failure.value
        assert isinstance(error, PortUnavailable)
        return error

    def test_in_use(self) -> None:
        """A port in use fails in the daemon's words and status, and leaves nothing open: all or nothing."""
        self.machine.errors["::1", 8081] = errno.EADDRINUSE
        error = self.fails(WEB, Published(81, "tcp", "", 8081, 8081))
        self.assertEqual(
            str(error),
            "driver failed programming external connectivity on endpoint web (c1): "
            "Bind for 0.0.0.0:8081 failed: port is already allocated",
        )
        self.assertEqual(error.status, 500)
        self.assertEqual(self.machine.open, {})
        self.assertEqual([one.state for one in self.forwards.status()], ["not forwarded"] * 2)
        self.assertIn("already allocated", self.forwards.status()[1].reason)

    def test_in_use_by_another_container(self) -> None:
        """Two containers cannot have the same port, and the first keeps it."""
        self.reserve(WEB, container="c0", name="first")
        self.assertIn("Bind for 0.0.0.0:8080 failed", str(self.fails(WEB)))
        self.assertEqual(set(self.machine.open), {("127.0.0.1", 8080), ("::1", 8080)})

    def test_rivals(self) -> None:
        """It is known who holds a port that somebody else wants: of the same protocol, and not of oneself."""
        self.reserve(WEB, container="c0", name="first")
        for wanted, rivals in (
            (WEB, ("c0",)),
            (Published(443, "tcp", "127.0.0.1", 8000, 8090), ("c0",)),
            (Published(80, "udp", "", 8080, 8080), ()),
            (Published(80, "tcp", "", 0, 0), ()),
            (Published(80, "tcp", "", 8081, 8081), ()),
        ):
            self.assertEqual(self.forwards.rivals("c1", [wanted]), rivals, wanted)
        self.assertEqual(self.forwards.rivals("c0", [WEB]), ())

    def test_failure_keeps_what_was(self) -> None:
        """A failed change leaves what the container had open."""
        self.reserve(WEB)
        self.machine.errors["127.0.0.1", 8081] = errno.EADDRINUSE
        self.fails(WEB, Published(81, "tcp", "", 8081, 8081))
        self.assertEqual(set(self.machine.open), {("127.0.0.1", 8080), ("::1", 8080)})

    def test_in_use_partly(self) -> None:
        """For a container that runs already, what can be opened is, and the rest is told and tried again later."""
        self.machine.errors["127.0.0.1", 8081] = errno.EADDRINUSE
        ports = (WEB, Published(81, "tcp", "", 8081, 8081))
        reservation = self.successResultOf(self.forwards.reserve("c1", "/web", ports, all_or_none=False))
        self.assertIn("Bind for 0.0.0.0:8081 failed", reservation.problem)
        self.assertEqual(set(self.machine.open), {("127.0.0.1", 8080), ("::1", 8080)})
        self.assertEqual([one.state for one in self.forwards.status()], ["reserved", "not forwarded"])
        self.machine.errors.clear()
        reservation = self.successResultOf(self.forwards.reserve("c1", "/web", ports, all_or_none=False))
        self.assertEqual((reservation.problem, len(self.machine.open)), ("", 4))

    def test_privileged(self) -> None:
        """A privileged port that cannot be opened fails with what to do about it."""
        self.machine.errors["127.0.0.1"] = errno.EACCES
        error = str(self.fails(Published(80, "tcp", "", 80, 80)))
        self.assertIn("net.ipv4.ip_unprivileged_port_start", error)
        self.assertIn("cap_net_bind_service", error)

    def test_no_descriptors(self) -> None:
        """Running out of descriptors is told as that, and not as a port in use."""
        self.machine.errors["127.0.0.1"] = errno.EMFILE
        self.assertIn("ulimit -n", str(self.fails(WEB)))

    def test_without_ipv6(self) -> None:
        """A default address that this machine does not have is left out."""
        for code in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            self.machine.errors["::1"] = code
            self.reserve(WEB, container=str(code))
            self.assertEqual(set(self.machine.open), {("127.0.0.1", 8080)})
            closing = self.forwards.release(str(code))
            self.machine.turn()
            self.successResultOf(closing)

    def test_without_any_address(self) -> None:
        """With none of the addresses there is no port."""
        self.machine.errors |= {"127.0.0.1": errno.EADDRNOTAVAIL, "::1": errno.EADDRNOTAVAIL}
        self.assertIn("cannot assign requested address", str(self.fails(WEB)))

    def test_foreign_address(self) -> None:
        """An address that the user named and this machine does not have fails in the daemon's words."""
        self.machine.errors["10.9.9.9"] = errno.EADDRNOTAVAIL
        error = str(self.fails(Published(80, "tcp", "10.9.9.9", 8080, 8080)))
        self.assertIn("listen tcp4 10.9.9.9:8080: bind: cannot assign requested address", error)

    def test_too_many(self) -> None:
        """The listeners of one container are bounded."""
        self.patch(module, "MAX_PORTS", 1)
        self.fails(WEB, Published(81, "tcp"))
        self.assertEqual(self.machine.open, {})

    def test_sctp(self) -> None:
        """What cannot pass is not opened; the status says why."""
        self.reserve(WEB, Published(90, "sctp", "", 90, 90))
        self.assertEqual([one.state for one in self.forwards.status()], ["reserved", "not forwarded"])
        self.assertIn("SCTP", self.forwards.status()[1].reason)

    def test_again(self) -> None:
        """Reserving the same again changes nothing; a difference is made up, without touching the rest."""
        self.reserve(WEB)
        before = dict(self.machine.open)
        self.reserve(WEB)
        self.assertEqual(self.machine.open, before)
        other = Published(81, "tcp", "", 8081, 8081)
        self.reserve(WEB, other)
        self.reserve(other)
        self.machine.turn()
        self.assertEqual({port for _, port in self.machine.open}, {8081})

    def test_waits_for_closing(self) -> None:
        """A port that another container has just given back is waited for."""
        self.reserve(WEB, container="c0")
        self.forwards.release("c0")
        reserving = self.forwards.reserve("c1", "web", [WEB])
        self.assertNoResult(reserving)
        self.machine.turn()
        self.successResultOf(reserving)
        self.assertIsNone(self.forwards.local("c0"))
        self.assertEqual(self.forwards.local("c1"), {"80/tcp": (Listener("", 8080),)})

    def test_rename(self) -> None:
        """The name in the status is the last one told."""
        self.reserve(WEB)
        self.reserve(WEB, name="/other")
        self.assertEqual(self.forwards.status()[0].name, "other")


class LifeTests(ForwardsCase):
    """attach, release and stop."""

    def test_attach(self) -> None:
        """An attached port is open, and leads to the remote port."""
        self.up(WEB)
        self.assertEqual(self.states(), [("80/tcp", "127.0.0.1:8080, [::1]:8080", "127.0.0.1:32768", "open")])
        self.connect("::1")
        self.assertEqual(self.host.asked, [("127.0.0.1", 32768)])

    def test_held(self) -> None:
        """A connection that comes before it is known where it leads waits, and loses nothing that it sent."""
        self.reserve(WEB)
        client = self.connect()
        client.send(b"early")
        self.network.pump()
        self.assertEqual(self.host.asked, [])
        self.forwards.attach("c1", {"80/tcp": 32768})
        self.network.pump()
        self.clock.advance(SETTLE_SECONDS)
        self.network.pump()
        self.assertEqual(self.host.endpoint.peers[0].received, b"early")

    def test_held_are_bounded(self) -> None:
        """Only so many connections wait; a further one is reset, and counted."""
        self.patch(module, "MAX_HELD", 2)
        self.reserve(WEB)
        clients = [self.connect() for _ in range(3)]
        self.assertEqual([client.lost is not None for client in clients], [False, False, True])
        self.assertIn("refused", self.forwards.status()[0].reason)

    def test_connections_are_bounded(self) -> None:
        """Only so many connections are open; when one ends there is room again."""
        self.patch(module, "MAX_CONNECTIONS", 1)
        self.up(WEB)
        first, second = self.connect(), self.connect()
        self.assertIsNone(first.lost)
        self.assertIsNotNone(second.lost)
        first.transport.abortConnection()
        self.network.pump()
        self.assertIsNone(self.connect().lost)

    def test_moved(self) -> None:
        """When the daemon moves a port, new connections go to the new one and open ones stay."""
        self.up(WEB)
        client = self.connect()
        self.forwards.attach("c1", {"80/tcp": 40000})
        self.connect()
        self.assertEqual(self.host.asked, [("127.0.0.1", 32768), ("127.0.0.1", 40000)])
        self.clock.advance(SETTLE_SECONDS)
        client.send(b"x")
        self.network.pump()
        self.assertEqual(self.host.endpoint.peers[0].received, b"x")

    def test_not_published(self) -> None:
        """A port that the daemon does not publish is closed, and says why, until it is reserved again."""
        self.up(WEB)
        self.forwards.attach("c1", {})
        self.machine.turn()
        self.assertEqual(self.machine.open, {})
        self.assertEqual(self.states(), [("80/tcp", "0.0.0.0:8080", "", "not forwarded")])
        self.up(WEB)
        self.assertEqual(len(self.machine.open), 2)
        self.assertEqual([state for *_, state in self.states()], ["open"])

    def test_release(self) -> None:
        """Released listeners are closed, and those that waited are let go; open connections end by themselves."""
        self.reserve(Published(81, "tcp", "", 8081, 8081), WEB)
        waiting = self.connect(port=8081)
        self.forwards.attach("c1", {"80/tcp": 1, "81/tcp": 2})
        client = self.connect()
        held = self.connect(port=8081)
        self.clock.advance(SETTLE_SECONDS)
        self.assertIsNone(waiting.lost)
        closing = self.forwards.release("c1")
        self.assertNoResult(closing)
        self.machine.turn()
        self.successResultOf(closing)
        self.assertEqual((self.machine.open, self.forwards.status()), ({}, ()))
        far = self.host.endpoint.peers[1]
        far.send(b"last words")
        far.transport.loseConnection()
        self.network.pump()
        self.assertEqual(client.received, b"last words")
        self.assertIsNone(held.lost)
        self.forwards.stop()
        self.network.pump()
        self.assertIsNotNone(held.lost)

    def test_release_of_held(self) -> None:
        """A container that ends before it was up resets what waited for it."""
        self.reserve(WEB)
        client = self.connect()
        self.forwards.release("c1")
        self.network.pump()
        self.assertIsNotNone(client.lost)
        self.machine.turn()

    def test_unknown(self) -> None:
        """Containers that are not in the table can be attached and released without effect."""
        self.successResultOf(self.forwards.attach("x", {"80/tcp": 1}))
        self.successResultOf(self.forwards.release("x"))
        self.assertIsNone(self.forwards.local("x"))

    def test_stop(self) -> None:
        """Stopping closes every listener and resets every connection."""
        self.up(WEB)
        client = self.connect()
        stopping = self.forwards.stop()
        self.network.pump()
        self.machine.turn()
        self.successResultOf(stopping)
        assert client.lost is not None
        self.assertEqual(self.machine.open, {})
        self.assertIsNotNone(self.host.endpoint.peers[0].lost)


class ConnectionTests(ForwardsCase):
    """What flows through one connection."""

    def pair(self) -> tuple[Peer, Peer]:
        """A client and the container's end."""
        self.up(WEB)
        client = self.connect()
        return client, self.host.endpoint.peers[-1]

    def test_both_ways(self) -> None:
        """Bytes pass both ways and are counted, now and after the end."""
        client, far = self.pair()
        client.send(b"question")
        far.send(b"answer!")
        self.network.pump()
        self.assertEqual((far.received, client.received), (b"question", b"answer!"))
        (status,) = self.forwards.status()
        self.assertEqual((status.connections, status.bytes_in, status.bytes_out), (1, 8, 7))
        client.transport.loseConnection()
        far.transport.loseConnection()
        self.network.pump()
        (status,) = self.forwards.status()
        self.assertEqual((status.connections, status.connections_total), (0, 1))
        self.assertEqual((status.bytes_in, status.bytes_out), (8, 7))

    def test_half_close_of_the_client(self) -> None:
        """A client that is done sending still gets the whole answer."""
        client, far = self.pair()
        client.send(b"all")
        client.transport.loseWriteConnection()
        self.network.pump()
        self.assertTrue(far.ended)
        self.assertIsNone(far.lost)
        far.send(b"answer")
        far.transport.loseConnection()
        self.network.pump()
        self.assertEqual(client.received, b"answer")
        self.assertTrue(client.closed_cleanly)
        self.assertEqual(self.forwards.status()[0].connections, 0)

    def test_half_close_of_the_container(self) -> None:
        """A container that is done sending still gets what the client sends."""
        client, far = self.pair()
        far.send(b"bye")
        far.transport.loseWriteConnection()
        self.network.pump()
        self.assertEqual((client.received, client.ended, client.lost), (b"bye", True, None))
        client.send(b"more")
        client.transport.loseConnection()
        self.network.pump()
        self.assertEqual(far.received, b"more")
        self.assertEqual(self.forwards.status()[0].connections, 0)
        self.assertTrue(far.ended)
        self.assertFalse(far.transport.other.connected)

    def test_slow_client(self) -> None:
        """While the client does not read, the channel is not read either."""
        client, far = self.pair()
        client.transport.pauseProducing()
        for _ in range(64):
            far.send(bytes(HIGH_WATER))
            self.network.pump()
        splice = client.transport.other
        self.assertLessEqual(splice.buffered, 3 * HIGH_WATER)
        self.assertTrue(far.transport.other.paused)
        client.transport.resumeProducing()
        self.network.pump()
        self.assertEqual(len(client.received), 64 * HIGH_WATER)

    def test_slow_container(self) -> None:
        """While the container does not read, the client is not read either."""
        client, far = self.pair()
        far.transport.pauseProducing()
        for _ in range(64):
            client.send(bytes(HIGH_WATER))
            self.network.pump()
        self.assertLessEqual(far.transport.other.buffered, 3 * HIGH_WATER)
        self.assertTrue(client.transport.other.paused)
        far.transport.resumeProducing()
        self.network.pump()
        self.assertEqual(len(far.received), 64 * HIGH_WATER)

    def test_reset_by_the_client(self) -> None:
        """A client that resets its connection resets the container's."""
        client, far = self.pair()
        client.transport.abortConnection()
        self.network.pump()
        assert far.lost is not None
        self.assertFalse(far.closed_cleanly)
        self.assertEqual(self.forwards.status()[0].connections, 0)

    def test_client_that_sends_and_leaves(self) -> None:
        """What a client sent before it closed arrives, however slow the container is, within a limit."""
        client, far = self.pair()
        far.transport.pauseProducing()
        client.send(b"last")
        client.transport.loseWriteConnection()
        self.network.pump()
        client.transport.abortConnection()
        self.network.pump()
        far.transport.resumeProducing()
        self.network.pump()
        self.assertEqual(far.received, b"last")
        self.assertTrue(far.closed_cleanly)

    def test_container_that_never_takes_it(self) -> None:
        """What nobody takes for a while is dropped."""
        client, far = self.pair()
        far.transport.pauseProducing()
        client.send(b"last")
        client.transport.loseWriteConnection()
        self.network.pump()
        client.transport.abortConnection()
        self.network.pump()
        self.clock.advance(LINGER_SECONDS)
        self.network.pump()
        self.assertIsNotNone(far.lost)

    def test_link_lost(self) -> None:
        """When the link breaks, the client's connection is reset: it has not seen all there was."""
        client, far = self.pair()
        far.send(b"half of it")
        self.network.pump()
        far.transport.other.lost(LinkDown("gone"))
        self.network.pump()
        assert client.lost is not None
        self.assertFalse(client.closed_cleanly)

    def test_no_link(self) -> None:
        """Without a link an accepted connection is reset at once, and does not wait for one."""
        self.up(WEB)
        self.host.up = False
        client = self.connect()
        self.assertIsNotNone(client.lost)
        self.assertEqual(self.host.asked, [])

    def starting(self) -> tuple[Peer, Peer]:
        """A client that connects as soon as the container has started, and the container's end."""
        self.reserve(WEB)
        self.successResultOf(self.forwards.attach("c1", {"80/tcp": 32768}))
        client = self.connect()
        client.send(b"question")
        self.network.pump()
        return client, self.host.endpoint.peers[-1]

    def test_program_that_is_about_to_listen(self) -> None:
        """Just after the start, a channel that closes at once is opened again; no byte is sent over it, none twice."""
        client, far = self.starting()
        far.transport.loseConnection()
        self.network.pump()
        self.assertIsNone(client.lost)
        self.clock.advance(AGAIN_SECONDS)
        self.network.pump()
        again = self.host.endpoint.peers[-1]
        self.clock.advance(SETTLE_SECONDS)
        self.network.pump()
        self.assertEqual((far.received, again.received), (b"", b"question"))

    def test_program_that_speaks_first(self) -> None:
        """What the container sends first shows that it is there."""
        client, far = self.starting()
        far.send(b"hello")
        self.network.pump()
        self.assertEqual((client.received, far.received), (b"hello", b"question"))

    def test_program_that_never_listens(self) -> None:
        """After some seconds the client is told what Docker would have told it at once."""
        client, far = self.starting()
        for _ in range(int(STARTING_SECONDS / AGAIN_SECONDS) + 2):
            far.transport.loseConnection()
            self.network.pump()
            if client.lost:
                break
            self.clock.advance(AGAIN_SECONDS)
            self.network.pump()
            far = self.host.endpoint.peers[-1]
        self.assertTrue(client.closed_cleanly)

    def test_client_leaves_while_nobody_listens(self) -> None:
        """A client that does not wait leaves nothing behind."""
        client, far = self.starting()
        far.transport.loseConnection()
        self.network.pump()
        client.transport.abortConnection()
        self.network.pump()
        self.assertEqual(self.forwards.status()[0].connections, 0)

    def test_nobody_listens(self) -> None:
        """Where nobody listens behind the port, the connection is closed, as Docker's proxy does."""
        self.up(WEB)
        self.host.endpoint.failure = ChannelRefused("connect failed", 2)
        client = self.connect()
        self.assertTrue(client.closed_cleanly)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_link_lost_while_connecting(self) -> None:
        """A connection whose channel cannot be opened is reset."""
        self.up(WEB)
        self.host.endpoint.failure = LinkDown("gone")
        client = self.connect()
        self.assertIsNotNone(client.lost)
        self.assertFalse(client.closed_cleanly)

    def test_defect_is_logged(self) -> None:
        """An error that is nobody's fault but ours is logged with its traceback."""
        self.up(WEB)
        self.host.endpoint.failure = ZeroDivisionError()
        self.assertIsNotNone(self.connect().lost)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_client_leaves_while_connecting(self) -> None:
        """A client that is gone before its channel is open leaves nothing open."""
        self.up(WEB)
        self.host.endpoint.waiting = []
        client = self.connect()
        client.transport.abortConnection()
        self.network.pump()
        self.assertEqual(self.forwards.status()[0].connections, 0)

    def test_data_before_the_channel(self) -> None:
        """Before there is somewhere to send it to, what comes first is kept, and no more is read."""
        self.up(WEB)
        self.host.endpoint.waiting = []
        client = self.connect()
        client.send(b"early")
        self.network.pump()
        client.send(b"x" * MAX_EARLY)
        self.network.pump()
        client.send(b"late")
        self.network.pump()
        self.assertEqual(client.transport.buffered, 4)
        self.host.endpoint.let_in()
        self.network.pump()
        self.assertEqual(self.host.endpoint.peers[0].received, b"early" + b"x" * MAX_EARLY + b"late")

    def test_end_before_the_channel(self) -> None:
        """A client that has sent all before the channel is open is answered."""
        self.up(WEB)
        self.host.endpoint.waiting = []
        clients = [self.connect(), self.connect()]
        clients[0].send(b"all")
        for client in clients:
            client.transport.loseWriteConnection()
        self.network.pump()
        self.host.endpoint.let_in()
        self.network.pump()
        self.assertEqual([peer.received for peer in self.host.endpoint.peers], [b"all", b""])
        for client, peer in zip(clients, self.host.endpoint.peers, strict=True):
            self.assertTrue(peer.ended)
            peer.send(b"answer")
            peer.transport.loseConnection()
            self.network.pump()
            self.assertEqual((client.received, client.closed_cleanly), (b"answer", True))
        self.assertEqual(self.forwards.status()[0].connections, 0)

    def test_full_channel(self) -> None:
        """A channel that has no room when it is opened does not let the client be read."""
        self.up(WEB)
        self.patch(MemoryTransport, "registerProducer", _no_room)
        client = self.connect()
        client.send(b"x" * 10)
        self.network.pump()
        self.assertEqual((client.transport.buffered, self.forwards.status()[0].bytes_in), (10, 0))

    def test_stop_while_connecting(self) -> None:
        """Stopping gives up channels that are being opened."""
        self.up(WEB)
        self.host.endpoint.waiting = []
        client = self.connect()
        self.forwards.stop()
        self.network.pump()
        assert client.lost is not None
        self.assertFalse(client.lost.check(ConnectionDone))
        self.machine.turn()


class ListenerTests(SynchronousTestCase):
    """listener, with sockets of this machine."""

    def setUp(self) -> None:
        self.adopted: list[socket.socket] = []
        self.listen = listener(self)

    def tearDown(self) -> None:
        for one in self.adopted:
            one.close()

    def adoptStreamPort(self, descriptor: int, family: int, factory: object) -> socket.socket:
        """What the reactor does: it takes a duplicate."""
        self.adopted.append(socket.fromfd(descriptor, family, socket.SOCK_STREAM))
        return self.adopted[-1]

    def test_listens(self) -> None:
        """A listener takes connections, and its port is in use."""
        port: Any = self.listen(Factory(), "127.0.0.1", 0)
        address = port.getsockname()
        socket.create_connection(address, timeout=5).close()
        error = self.assertRaises(CannotListenError, self.listen, Factory(), *address)
        self.assertEqual(error.socketError.errno, errno.EADDRINUSE)

    def test_families_are_apart(self) -> None:
        """An IPv6 listener on every address leaves the IPv4 port free."""
        try:
            port: Any = self.listen(Factory(), "::", 0)
        except CannotListenError as error:
            self.assertIn(error.socketError.errno, (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL))
            return
        self.listen(Factory(), "0.0.0.0", port.getsockname()[1])

    def test_address_of_another_machine(self) -> None:
        """An address that is not here fails with the system's reason."""
        error = self.assertRaises(CannotListenError, self.listen, Factory(), "192.0.2.1", 0)
        self.assertEqual(error.socketError.errno, errno.EADDRNOTAVAIL)
