"""A machine's ports and a remote host's in memory, and the case of tests that forward between them."""

from __future__ import annotations

import errno
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from rda.docker.ports import Published
from rda.interfaces import IRemoteHost
from rda.ports.forwards import Forwards
from rda.ports.tcp import STARTING_SECONDS
from tests.memory_network import MemoryEndpoint, Network, Peer

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


class ForwardsCase(SynchronousTestCase):
    """Forwards over a fake machine and a network in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.network = Network(self.clock)
        self.host = FakeHost(self.network)
        self.machine = FakeMachine()
        self.forwards = Forwards(self.host, self.clock, listen_tcp=self.machine.listen)  # type: ignore[arg-type]

    def tearDown(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def reserve(self, *wanted: Published, container: str = "c1", name: str = "/web") -> Any:
        return self.successResultOf(self.forwards.reserve(container, name, wanted))

    def up(self, *wanted: Published, container: str = "c1", **remote: int) -> None:
        """Reserve and attach."""
        self.reserve(*wanted, container=container)
        ports = {key.replace("_", "/").lstrip("p"): port for key, port in remote.items()} or {"80/tcp": 32768}
        self.forwards.attach(container, ports)
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
