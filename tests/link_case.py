"""A link to an SSH server in memory, and the case of tests that use it."""

from __future__ import annotations

from pathlib import Path

from twisted.conch.error import ConchError
from twisted.conch.ssh.keys import Key
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump
from twisted.trial.unittest import SynchronousTestCase

from rda.config import Remote as RemoteConfig
from rda.ssh.line import Backoff
from rda.ssh.link import Link
from rda.ssh.target import Target
from rda.status import LinkStatus
from tests.ssh_keys import openssh_file, private
from tests.ssh_server import USER, Remote, ServerFactory, SlowTransport, host_key

SOCKET = "/var/run/docker.sock"


DIAL_STDIO = b"docker -H unix:///var/run/docker.sock system dial-stdio"


KEY = private()


class Network:
    """Connects clients to servers in memory.

    :ivar state: ``up``, ``refused`` (nothing listens) or ``silent`` (no answer, ever).
    :ivar live: the servers whose connection is up.
    :ivar frozen: nothing is delivered meanwhile.
    """

    factory_class = ServerFactory

    def __init__(self, remote: Remote) -> None:
        self.clock = remote.clock
        self.remote = remote
        self.state = "up"
        self.attempts = 0
        self.pumps: list[IOPump] = []
        self.frozen = False
        self.live: list[object] = []
        self.server_keys: list[Key] | None = None

    def endpoint(self, target: Target) -> Network:
        return self

    def connect(self, factory: Factory) -> Deferred[Protocol]:
        self.attempts += 1
        if self.state == "refused":
            return fail(ConnectionRefusedError())
        if self.state == "silent":
            return Deferred()
        client = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 22))
        server = self.factory_class(self.remote, self.server_keys).buildProtocol(None)
        client_io, server_io = SlowTransport(client, isServer=False), FakeTransport(server, isServer=True)
        pump = IOPump(client, server, client_io, server_io, False, clock=self.clock)
        self.pumps.append(pump)
        self.live.append(server)
        lost = server.connectionLost

        def connection_lost(reason: Failure) -> None:
            self.live.remove(server)
            lost(reason)

        server.connectionLost = connection_lost
        server.makeConnection(server_io)
        client.makeConnection(client_io)
        return succeed(client)

    def settle(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(500):
            self.clock.advance(0)
            moved = [pump.pump() for pump in list(self.pumps)] if not self.frozen else []
            due = any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls())
            if not any(moved) and not due:
                return
        raise AssertionError("it never comes to rest")

    def advance(self, seconds: float, step: float = 0.25) -> None:
        """Let time pass, and everything happen meanwhile."""
        self.settle()
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.settle()

    def cut(self) -> None:
        """Cut every wire."""
        for pump in self.pumps:
            pump.clientIO.disconnecting = True
        self.settle()
        self.pumps.clear()


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class Daemon(Protocol):
    """Answers HTTP enough for a ping."""

    def dataReceived(self, data: bytes) -> None:
        if data.startswith(b"GET /_ping"):
            self.transport.write(b"HTTP/1.1 200 OK\r\n\r\nOK")
        else:
            self.transport.write(data)


class Program(Protocol):
    """A command that ends at once."""

    def __init__(self, status: int, output: bytes = b"") -> None:
        self.status, self.output = status, output

    def connectionMade(self) -> None:
        self.transport.write(self.output)
        self.transport.exit(self.status)


class Client(Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


class LinkCase(SynchronousTestCase):
    docker = f"unix://{SOCKET}"

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.remote = Remote()
        self.remote.user_keys.append(Key(KEY).public())
        self.remote.sockets[SOCKET] = Factory.forProtocol(Daemon)
        self.network = Network(self.remote)
        self.clock = self.network.clock
        self.identity = self.directory / "id"
        self.identity.write_bytes(openssh_file(KEY))
        self.identity.chmod(0o600)
        self.known_hosts = self.directory / "known_hosts"
        self.trust(host_key())
        self.seen: list[LinkStatus] = []
        self.link = self.make_link()
        self.link.add_observer(self.seen.append)
        self.addCleanup(self.check_nothing_left)

    def trust(self, key: Key) -> None:
        self.known_hosts.write_bytes(b"host " + key.public().toString("openssh") + b"\n")

    def target(self, **changes: object) -> Target:
        values: dict[str, object] = {"original": "host", "host": "host", "port": 22, "user": USER.decode()}
        values |= {"identities": (str(self.identity),), "known_hosts": (str(self.known_hosts),), **changes}
        return Target(**values)  # type: ignore[arg-type]

    def make_link(self, permits: tuple[str, ...] | None = None, **changes: object) -> Link:
        return Link(
            self.clock,
            RemoteConfig("host", permits=permits),
            self.docker,
            environ={},
            ask=lambda prompt: succeed(None),
            find_target=lambda: succeed(self.target(**changes)),
            direct=self.network.endpoint,
            wall_clock=lambda: 1_700_000_000 + self.clock.seconds(),
            backoff=lambda: Backoff(lambda: 1.0),
        )

    def start(self) -> None:
        self.link.startService()
        self.network.settle()

    def check_nothing_left(self) -> None:
        """Stopping leaves no connection and no timer."""
        self.network.frozen = False
        stopped = self.link.stopService()
        self.network.advance(6.0)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.network.live, [])
        self.flushLoggedErrors(ConchError)  # the server logs what it refuses

    def connect(self, endpoint: object) -> Deferred[Client]:
        return endpoint.connect(Factory.forProtocol(Client))  # type: ignore[attr-defined]

    def connected(self, endpoint: object) -> Client:
        connecting = self.connect(endpoint)
        self.network.settle()
        return self.successResultOf(connecting)

    def opened(self, kind: bytes) -> int:
        return sum(1 for name, _ in self.remote.opened if name == kind)

    def states(self) -> list[str]:
        return [status.state for status in self.seen]
