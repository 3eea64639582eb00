"""The link to a remote host: real SSH over memory, on a clock that stands still."""

from __future__ import annotations

import struct
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
from rda.errors import ChannelRefused, CommandFailed, ConfigError, HostKeyRefused, LinkDown, LoginFailed
from rda.ssh import keepalive
from rda.ssh.docker_socket import REFILL_SECONDS, SPARE_COMMANDS, SPARES, DockerAddress, parse_docker
from rda.ssh.keepalive import DOUBT_SECONDS, QUIET_SECONDS
from rda.ssh.keys import fingerprint
from rda.ssh.line import FIRST_DELAY, LONGEST_DELAY, TRUST_AGAIN_SECONDS, WAIT_FOR_LINK, Backoff
from rda.ssh.link import GREETING_SECONDS, Link
from rda.ssh.sftp import Unsupported
from rda.ssh.target import Target
from rda.status import LinkStatus
from tests.ssh_keys import openssh_file, private, public_line
from tests.ssh_server import USER, Remote, ServerConnection, ServerFactory, SlowTransport, host_key

SOCKET = "/var/run/docker.sock"
DIAL_STDIO = b"docker -H unix:///var/run/docker.sock system dial-stdio"
SOCAT = b"socat - UNIX-CONNECT:/var/run/docker.sock"
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


class SftpServer(Protocol):
    """Says its version, and resolves every path to /root."""

    def dataReceived(self, data: bytes) -> None:
        if data[4] == 1:
            self.transport.write(struct.pack(">LBL", 5, 2, 3))
        else:
            name = struct.pack(">L", 5) + b"/root"
            body = data[5:9] + struct.pack(">L", 1) + name + name + struct.pack(">L", 0)
            self.transport.write(struct.pack(">LB", len(body) + 1, 104) + body)


class Client(Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


class LimitedConnection(ServerConnection):
    """A server's connection with MaxSessions."""

    max_sessions = 1

    def getChannel(self, channelType, windowSize, maxPacket, data):
        sessions = [channel for channel in self.channels.values() if getattr(channel, "is_session", False)]
        if channelType == b"session" and len(sessions) >= self.max_sessions:
            raise ConchError("open failed", 2)
        channel = super().getChannel(channelType, windowSize, maxPacket, data)
        channel.is_session = channelType == b"session"
        return channel


class LimitedFactory(ServerFactory):
    def getService(self, transport, service):
        found = super().getService(transport, service)
        return LimitedConnection if found is ServerConnection else found


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


class LifeTests(LinkCase):
    def test_connects(self) -> None:
        """A started link connects, and its status says to whom and how."""
        self.start()
        self.successResultOf(self.link.when_connected())
        status = self.link.status()
        self.assertEqual((status.remote, status.state, status.connects), ("tester@host:22", "connected", 1))
        self.assertTrue(status.cipher)
        self.assertTrue(status.key_exchange)
        self.assertIsNotNone(status.round_trip)
        self.assertEqual(self.states(), ["connecting", "connected"])

    def test_data_both_ways(self) -> None:
        """Sockets, ports and commands of the remote host are reached, and a command's failure has its reason."""
        self.remote.ports["127.0.0.1", 8080] = Factory.forProtocol(Echo)
        self.remote.sockets["/other"] = Factory.forProtocol(Echo)
        self.remote.commands[b"run"] = Factory.forProtocol(lambda: Program(3, b"out"))
        self.start()
        for endpoint in (self.link.tcp("127.0.0.1", 8080), self.link.socket("/other"), self.link.docker()):
            client = self.connected(endpoint)
            client.transport.write(b"hello")
            self.network.settle()
            self.assertEqual(client.received, b"hello")
        client = self.connected(self.link.command(b"run"))
        self.assertEqual(client.received, b"out")
        assert client.lost is not None
        self.assertEqual(client.lost.value.exit_status, 3)
        self.assertIsInstance(client.lost.value, CommandFailed)

    def test_refused_channels(self) -> None:
        """What the server refuses fails at once, and the link lives on."""
        self.start()
        for endpoint in (self.link.tcp("127.0.0.1", 1), self.link.socket("/none")):
            connecting = self.connect(endpoint)
            self.network.settle()
            self.failureResultOf(connecting, ChannelRefused)
        self.assertEqual(self.link.status().state, "connected")

    def test_comes_back(self) -> None:
        """A lost connection is made again after the first delay; observers hear of both."""
        self.start()
        self.network.advance(3)
        self.network.cut()
        self.assertEqual(self.link.status().state, "waiting")
        self.assertIn("lost", self.link.status().reason)
        self.assertAlmostEqual(self.link.status().next_try - 1_700_000_000, self.clock.seconds() + FIRST_DELAY, 3)
        self.network.advance(FIRST_DELAY)
        self.assertEqual(self.link.status().state, "connected")
        self.assertEqual(self.link.status().reason, "")
        self.assertEqual(self.states(), ["connecting", "connected", "waiting", "connecting", "connected"])

    def test_a_host_that_is_down(self) -> None:
        """A host that refuses TCP is tried again, ever more slowly, and found when it is back."""
        self.network.state = "refused"
        self.start()
        status = self.link.status()
        self.assertEqual(status.state, "waiting")
        self.assertIn("tester@host:22 cannot be reached", status.reason)
        self.network.advance(10)
        self.assertEqual(self.network.attempts, 5)  # at 0, 0.5, 1.5, 3.5 and 7.5 s
        self.network.advance(300)
        before = self.network.attempts
        self.network.advance(LONGEST_DELAY)
        self.assertEqual(self.network.attempts, before + 1)
        self.network.state = "up"
        self.network.advance(LONGEST_DELAY)
        self.assertEqual(self.link.status().state, "connected")

    def test_a_silent_host(self) -> None:
        """A host that does not answer is given up after ConnectTimeout, and tried again."""
        self.network.state = "silent"
        self.start()
        self.network.advance(14.75)
        self.assertEqual(self.link.status().state, "connecting")
        self.network.advance(0.25)
        self.assertIn("has not answered for 15 s", self.link.status().reason)

    def test_retry(self) -> None:
        """retry() does not wait for the delay."""
        self.network.state = "refused"
        self.start()
        self.network.advance(100)
        self.network.state = "up"
        self.link.retry()
        self.network.settle()
        self.assertEqual(self.link.status().state, "connected")
        self.link.retry()
        self.network.settle()
        self.assertEqual(self.link.status().connects, 1)

    def test_start_and_stop(self) -> None:
        """Stopping closes everything, fails whoever waits, and can be undone."""
        self.start()
        client = self.connected(self.link.docker())
        stopped = self.link.stopService()
        self.network.settle()
        self.successResultOf(stopped)
        self.assertIsNotNone(client.lost)
        self.failureResultOf(self.connect(self.link.docker()), LinkDown)
        self.start()
        self.connected(self.link.docker())

    def test_stop_while_connecting(self) -> None:
        """A stop in the middle of an attempt ends the attempt."""
        self.network.state = "silent"
        self.start()
        waiting = self.link.when_connected()
        self.successResultOf(self.link.stopService())
        self.failureResultOf(waiting, LinkDown)

    def test_stop_with_a_peer_that_does_not_answer(self) -> None:
        """A peer that takes no farewell does not hold the stop up for long."""
        self.start()
        self.network.frozen = True
        stopped = self.link.stopService()
        self.network.advance(5)
        self.network.frozen = False
        self.network.settle()
        self.successResultOf(stopped)

    def test_an_observer_that_fails(self) -> None:
        """One observer's defect is logged, and the others are told."""
        told: list[LinkStatus] = []
        self.link.add_observer(lambda status: 1 / 0)  # type: ignore[arg-type,return-value]
        self.link.add_observer(told.append)
        self.start()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual(told, self.seen)
        self.link._observers.clear()

    def test_fifty_cuts(self) -> None:
        """However often the wire is cut, the link comes back, and keeps nothing of what was."""
        self.start()
        for _ in range(50):
            connecting = [self.connect(self.link.docker()) for _ in range(3)]
            self.network.clock.advance(0)
            self.network.cut()
            self.network.advance(4)
            for one in connecting:
                # Either it was open before the cut, or it was opened again after it.
                self.successResultOf(one)
            self.assertEqual(self.link.status().state, "connected")
            self.network.advance(1)
        self.assertEqual(len(self.network.live), 1)
        clients = self.link.status().channels
        self.assertLessEqual(clients, SPARES + 3)


class WaitingTests(LinkCase):
    def test_waits_for_the_connection(self) -> None:
        """A request that comes while the link is being made goes out as soon as it is there."""
        self.network.state = "refused"
        self.start()
        connecting = self.connect(self.link.docker())
        tcp = self.connect(self.link.tcp("127.0.0.1", 1))
        self.network.state = "up"
        self.network.advance(1)
        self.successResultOf(connecting)
        self.failureResultOf(tcp, ChannelRefused)

    def test_asked_before_the_start(self) -> None:
        """Requests that come before the link is started wait for that too, of every kind."""
        self.remote.commands[b"cat"] = Factory.forProtocol(Echo)
        asked = [self.connect(self.link.docker()), self.connect(self.link.command(b"cat")), self.link.when_connected()]
        self.network.settle()
        self.assertEqual(self.network.attempts, 0)
        self.start()
        for one in asked:
            self.successResultOf(one)

    def test_waits_no_longer_than_that(self) -> None:
        """After a named time a request is told what is wrong; it becomes 503."""
        self.network.state = "refused"
        self.start()
        connecting = self.connect(self.link.docker())
        self.network.advance(WAIT_FOR_LINK - 0.25)
        self.assertNoResult(connecting)
        self.network.advance(0.25)
        error = self.failureResultOf(connecting, LinkDown).value
        self.assertEqual((error.status, error.permanent), (503, False))
        self.assertIn("cannot be reached", str(error))

    def test_when_connected_waits_for_ever(self) -> None:
        """when_connected() has no time limit."""
        self.network.state = "refused"
        self.start()
        waiting = self.link.when_connected()
        self.network.advance(120)
        self.assertNoResult(waiting)
        self.network.state = "up"
        self.network.advance(30)
        self.successResultOf(waiting)

    def test_opened_again_when_the_connection_dies_first(self) -> None:
        """A channel whose connection dies before it is open is opened on the next one."""
        self.start()
        self.network.advance(3)
        connecting = self.connect(self.link.tcp("127.0.0.1", 8080))
        self.remote.ports["127.0.0.1", 8080] = Factory.forProtocol(Echo)
        self.network.cut()
        self.network.advance(1)
        self.successResultOf(connecting)

    def test_cancelled(self) -> None:
        """A request that is not wanted any more leaves nothing behind."""
        self.network.state = "refused"
        self.start()
        connecting = self.connect(self.link.tcp("127.0.0.1", 1))
        connecting.cancel()
        self.failureResultOf(connecting)

    def test_asked_while_it_is_being_lost(self) -> None:
        """A protocol that asks for a new connection as its old one is lost gets it from the next connection."""
        self.start()
        again: list[Deferred[Client]] = []
        client = self.connected(self.link.socket(SOCKET))
        client.connectionLost = lambda reason=None: again.append(self.connect(self.link.docker()))  # type: ignore[method-assign,assignment]
        self.network.cut()
        self.network.advance(4)
        self.successResultOf(again[0])


class PermanentTests(LinkCase):
    def assert_failed(self, kind: type[LoginFailed]) -> str:
        self.assertEqual(self.link.status().state, "failed")
        self.assertEqual(self.states()[-1], "failed")
        connecting = self.connect(self.link.docker())
        self.network.settle()
        error = self.failureResultOf(connecting, kind).value
        self.assertEqual(error.status, 503)
        attempts = self.network.attempts
        self.network.advance(120)
        self.assertEqual(self.network.attempts, attempts)
        self.failureResultOf(self.link.when_connected(), kind)
        self.assertEqual(self.link.status().reason, str(error))
        return str(error)

    def test_changed_host_key(self) -> None:
        """A changed host key stops the retries and fails requests at once, until a person has acted."""
        self.known_hosts.write_bytes(b"host " + public_line(private("ed25519", 1)))
        waiting = self.link.when_connected
        self.link.startService()
        waited = waiting()
        self.network.settle()
        self.failureResultOf(waited, HostKeyRefused)
        self.assertIn("HAS CHANGED", self.assert_failed(HostKeyRefused))
        self.trust(host_key())
        self.link.retry()
        self.network.settle()
        self.assertEqual(self.link.status().state, "connected")
        self.connected(self.link.docker())

    def test_a_request_tries_again(self) -> None:
        """What a person may have mended meanwhile is tried again by a request, without a restart, but not at once."""
        self.known_hosts.write_bytes(b"")
        self.start()
        self.failureResultOf(self.connect(self.link.docker()), HostKeyRefused)
        self.trust(host_key())
        attempts = self.network.attempts
        self.failureResultOf(self.connect(self.link.docker()), HostKeyRefused)
        self.assertEqual(self.network.attempts, attempts)
        self.network.advance(TRUST_AGAIN_SECONDS)
        self.connected(self.link.docker())
        self.assertEqual(self.link.status().state, "connected")

    def test_changed_while_running(self) -> None:
        """A host that comes back with another key is not believed."""
        self.start()
        self.network.server_keys = [Key(private("ed25519", 1))]
        self.network.cut()
        self.network.advance(5)
        self.assertIn("HAS CHANGED", self.assert_failed(HostKeyRefused))

    def test_refused_login(self) -> None:
        """So does a login that the server refuses."""
        self.remote.user_keys.clear()
        self.start()
        self.assertIn("refused the login of tester", self.assert_failed(LoginFailed))

    def test_configuration(self) -> None:
        """A remote that cannot be resolved is a failure that a person has to repair."""
        self.link = self.make_link()
        self.link.add_observer(self.seen.append)
        self.link._find_target = lambda: fail(ConfigError(["ssh_config: Port 'x' is not a number"]))
        self.start()
        self.assertIn("Port 'x'", self.assert_failed(LoginFailed))

    def test_a_defect_is_logged_and_retried(self) -> None:
        """An exception that nobody expected is logged, and does not end the link."""
        self.link._find_target = lambda: fail(ZeroDivisionError())
        self.start()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.link.status().state, "waiting")
        self.link._find_target = lambda: succeed(self.target())
        self.network.advance(1)
        self.assertEqual(self.link.status().state, "connected")


class KeepaliveTests(LinkCase):
    def test_a_dead_peer(self) -> None:
        """A peer that does not answer is given up after interval times count, and the link comes back."""
        self.start()
        client = self.connected(self.link.docker())
        self.network.advance(5)
        self.remote.deaf = True
        self.network.advance(14.75)
        self.assertEqual(self.link.status().state, "connected")
        self.network.advance(5.25)
        self.assertEqual(self.link.status().state, "waiting")
        self.assertIn("has not answered for 15 s", self.link.status().reason)
        self.assertIsNotNone(client.lost)
        self.remote.deaf = False
        self.network.advance(1)
        self.assertEqual(self.link.status().state, "connected")

    def test_a_busy_peer(self) -> None:
        """A peer that sends anything lives, even if its answers to pings are stuck behind a long queue."""
        self.start()
        client = self.connected(self.link.docker())
        self.remote.deaf = True
        self.link.network_changed()
        for _ in range(30):
            client.transport.write(b"x")
            self.network.advance(1)
        self.assertEqual(self.link.status().connects, 1)
        self.assertEqual(client.received, b"x" * 30)

    def test_an_idle_peer_that_lives(self) -> None:
        """A peer that answers keeps its connection, idle or not."""
        self.start()
        self.network.advance(300, step=5.0)
        self.assertEqual(self.link.status().connects, 1)
        self.assertGreater(len(self.remote.global_requests), 50)

    def test_a_request_to_a_peer_that_is_gone(self) -> None:
        """Sending to a peer that has been quiet finds out within seconds that it is gone."""
        self.remote.sockets[SOCKET] = Factory.forProtocol(Protocol)  # it answers nothing
        self.start()
        client = self.connected(self.link.docker())
        self.remote.deaf = True
        self.network.advance(QUIET_SECONDS + 1)
        client.transport.write(b"x")
        self.network.advance(DOUBT_SECONDS + 0.5)
        self.assertIn("tester@host:22 has not answered for 3 s.", [status.reason for status in self.seen])

    def test_a_peer_that_is_gone_after_a_change(self) -> None:
        """A peer that does not answer soon after a change of the network is given up without waiting for longer."""
        self.start()
        self.network.advance(5)
        self.remote.deaf = True
        for _ in range(3):
            self.link.network_changed()
            self.network.advance(1)
        self.assertIn("has not answered for 3 s", self.link.status().reason)
        self.remote.deaf = False
        self.network.advance(1)
        self.assertEqual(self.link.status().state, "connected")
        self.link.network_changed()
        self.network.advance(10)
        self.assertEqual(self.link.status().connects, 2)

    def test_a_peer_that_is_gone_after_sleep(self) -> None:
        """A machine that slept asks its peers at the next keepalive, and does not wait long for those that are gone."""
        slept = 0.0
        self.patch(keepalive, "time_asleep", lambda: slept)
        self.start()
        self.remote.deaf = True
        slept = 3600.0
        self.network.advance(5 + DOUBT_SECONDS + 0.5)
        self.assertIn("tester@host:22 has not answered for 3 s.", [status.reason for status in self.seen])

    def test_sleep_with_a_peer_that_lives(self) -> None:
        """Sleep alone ends nothing, and is noticed once."""
        slept = 0.0
        self.patch(keepalive, "time_asleep", lambda: slept)
        self.start()
        slept = 3600.0
        self.network.advance(5)
        asked = len(self.remote.global_requests)
        self.network.advance(5)
        self.assertEqual(len(self.remote.global_requests), asked + 1)
        self.assertEqual(self.link.status().connects, 1)

    def test_the_real_clocks(self) -> None:
        """How long this machine has slept is a number of seconds."""
        self.assertGreaterEqual(keepalive.time_asleep(), -1.0)

    def test_network_changed(self) -> None:
        """After a change of the network the peer is asked at once, and a waiting link does not wait."""
        self.start()
        asked = len(self.remote.global_requests)
        self.link.network_changed()
        self.network.settle()
        self.assertEqual(len(self.remote.global_requests), asked + 1)
        self.network.state = "refused"
        self.network.cut()
        self.network.advance(60)
        self.network.state = "up"
        self.link.network_changed()
        self.network.settle()
        self.assertEqual(self.link.status().state, "connected")


class SpareTests(LinkCase):
    def test_a_new_client_waits_for_nothing(self) -> None:
        """A channel to the Docker socket is there before it is needed: the first request costs one round trip."""
        self.start()
        self.assertEqual(self.link.status().socket_via, "streamlocal")
        self.network.frozen = True
        clients = [self.successResultOf(self.connect(self.link.docker())) for _ in range(SPARES)]
        third = self.connect(self.link.docker())
        self.assertNoResult(third)
        self.network.frozen = False
        for client in clients:
            client.transport.write(b"x")
        self.network.settle()
        self.assertEqual([client.received for client in clients], [b"x"] * SPARES)
        self.successResultOf(third)
        self.network.advance(REFILL_SECONDS, REFILL_SECONDS)
        self.assertEqual(self.link.status().channels, SPARES + 1 + SPARES)

    def test_spares_wait_their_turn(self) -> None:
        """A spare that was taken is replaced when the request that took it has had a head start."""
        self.start()
        before = self.opened(b"direct-streamlocal@openssh.com")
        self.connected(self.link.docker())
        self.assertEqual(self.opened(b"direct-streamlocal@openssh.com"), before)
        self.network.advance(REFILL_SECONDS, REFILL_SECONDS)
        self.assertEqual(self.opened(b"direct-streamlocal@openssh.com"), before + 1)

    def test_a_spare_that_the_daemon_closes(self) -> None:
        """A spare that is closed or half-closed is not used, and is replaced after a while."""
        self.start()
        for end in ("loseConnection", "loseWriteConnection"):
            for channel in list(self.remote.channels):
                if not channel.localClosed:
                    getattr(channel, end)()
            self.network.settle()
            self.assertEqual(self.link.status().channels, 0)
            opened = self.opened(b"direct-streamlocal@openssh.com")
            self.network.advance(5)
            self.assertEqual(self.opened(b"direct-streamlocal@openssh.com"), opened + SPARES)
            client = self.connected(self.link.docker())
            client.transport.write(b"x")
            self.network.settle()
            self.assertEqual(client.received, b"x")
            client.transport.loseConnection()
            self.network.settle()

    def test_a_spare_is_not_kept_for_ever(self) -> None:
        """Spares are replaced before the daemon's own time limit closes them."""
        self.start()
        before = self.opened(b"direct-streamlocal@openssh.com")
        self.network.advance(121)
        self.assertEqual(self.opened(b"direct-streamlocal@openssh.com"), before + SPARES)
        self.assertEqual(self.link.status().channels, SPARES)

    def test_an_unwanted_connection(self) -> None:
        """A factory that wants no protocol any more gets none, and the spare is closed."""
        self.start()
        factory = Factory()
        factory.buildProtocol = lambda address: None  # type: ignore[method-assign]
        self.failureResultOf(self.link.docker().connect(factory), ChannelRefused)
        self.network.advance(REFILL_SECONDS, REFILL_SECONDS)
        self.assertEqual(self.link.status().channels, SPARES)


class TcpTests(LinkCase):
    docker = "tcp://127.0.0.1:2375"

    def test_tcp(self) -> None:
        """A daemon at a TCP port is reached over direct-tcpip, with spares too."""
        self.remote.ports["127.0.0.1", 2375] = Factory.forProtocol(Daemon)
        self.start()
        self.connected(self.link.docker())
        self.assertEqual(self.link.status().socket_via, "tcp")
        self.network.advance(REFILL_SECONDS, REFILL_SECONDS)
        self.assertEqual(self.opened(b"direct-tcpip"), SPARES + 1)

    def test_nothing_there(self) -> None:
        """No other way is tried for TCP."""
        self.start()
        connecting = self.connect(self.link.docker())
        self.network.settle()
        self.failureResultOf(connecting, ChannelRefused)
        self.assertEqual(self.opened(b"session"), 0)


class DockerAddressTests(SynchronousTestCase):
    def test_addresses(self) -> None:
        """unix:// and tcp:// are taken apart; anything else is refused."""
        self.assertEqual(parse_docker("unix:///a/b.sock"), DockerAddress(path="/a/b.sock"))
        self.assertEqual(parse_docker("tcp://10.0.0.1:2375"), DockerAddress(host="10.0.0.1", port=2375))
        self.assertEqual(parse_docker("tcp://[::1]:2375"), DockerAddress(host="::1", port=2375))
        for text in ("", "unix://relative", "tcp://host", "tcp://host:0", "tcp://host:99999", "http://x:1", "ssh://x"):
            self.assertRaises(ConfigError, parse_docker, text)


class LadderTests(LinkCase):
    def setUp(self) -> None:
        super().setUp()
        self.remote.streamlocal_allowed = False

    def test_dial_stdio(self) -> None:
        """Where streamlocal is refused, the docker program on the remote host leads to the socket."""
        self.remote.commands[DIAL_STDIO] = Factory.forProtocol(Daemon)
        self.start()
        self.assertEqual(self.link.status().socket_via, "dial-stdio")  # found before anybody asks
        client = self.connected(self.link.docker())
        client.transport.write(b"hello")
        self.network.settle()
        self.assertEqual(client.received, b"hello")
        self.assertEqual(self.link.status().socket_via, "dial-stdio")
        # Chosen once: streamlocal is not asked for again on this connection.
        opened = self.opened(b"direct-streamlocal@openssh.com")
        self.connected(self.link.docker())
        self.assertEqual(self.opened(b"direct-streamlocal@openssh.com"), opened)
        self.network.advance(REFILL_SECONDS, REFILL_SECONDS)
        self.assertEqual(self.link.status().channels, 2 + SPARE_COMMANDS)  # each is a process over there

    def test_socat(self) -> None:
        """Without the docker program socat does it."""
        self.remote.commands[DIAL_STDIO] = Factory.forProtocol(lambda: Program(127))
        self.remote.commands[SOCAT] = Factory.forProtocol(Daemon)
        self.start()
        self.connected(self.link.docker())
        self.assertEqual(self.link.status().socket_via, "socat")

    def test_no_way(self) -> None:
        """When nothing leads there, the message says what was tried, and the search is not repeated for each client."""
        self.remote.commands[DIAL_STDIO] = Factory.forProtocol(lambda: Program(1))
        self.remote.commands[SOCAT] = Factory.forProtocol(lambda: Program(127, b"Welcome to this host!\n"))
        self.start()
        connecting = [self.connect(self.link.docker()) for _ in range(3)]
        self.network.settle()
        for one in connecting:
            message = str(self.failureResultOf(one, ChannelRefused).value)
        self.assertIn("dial-stdio: ", message)
        self.assertIn("ended with status 1", message)
        self.assertIn("login shell print something", message)
        sessions = self.opened(b"session")
        self.assertEqual(sessions, 2)
        again = self.connect(self.link.docker())
        self.network.settle()
        self.failureResultOf(again, ChannelRefused)
        self.assertEqual(self.opened(b"session"), sessions)
        # Later it is searched for again, and the daemon is there now.
        self.remote.commands[DIAL_STDIO] = Factory.forProtocol(Daemon)
        self.network.advance(5)
        self.connected(self.link.docker())

    def test_a_daemon_that_was_only_late(self) -> None:
        """When streamlocal works after all, it is what is used."""
        remote = self.remote

        class Late(Daemon):
            def connectionMade(self) -> None:
                remote.streamlocal_allowed = True

        self.remote.commands[DIAL_STDIO] = Factory.forProtocol(Late)
        self.start()
        self.connected(self.link.docker())
        self.assertEqual(self.link.status().socket_via, "streamlocal")

    def test_a_command_that_hangs(self) -> None:
        """A way that does not answer is given up after a named time."""
        self.remote.commands[DIAL_STDIO] = Factory.forProtocol(Protocol)
        self.remote.commands[SOCAT] = Factory.forProtocol(Daemon)
        self.start()
        connecting = self.connect(self.link.docker())
        self.network.advance(10.5)
        self.successResultOf(connecting)
        self.assertEqual(self.link.status().socket_via, "socat")

    def test_searched_anew_on_the_next_connection(self) -> None:
        """A new connection may be to a server that has learned better."""
        self.remote.commands[DIAL_STDIO] = Factory.forProtocol(Daemon)
        self.start()
        self.connected(self.link.docker())
        self.remote.streamlocal_allowed = True
        self.network.cut()
        self.network.advance(5)
        self.connected(self.link.docker())
        self.assertEqual(self.link.status().socket_via, "streamlocal")


class OddPathTests(LinkCase):
    docker = "unix:///run/it's $(here)/docker.sock"

    def test_a_path_that_a_shell_would_interpret(self) -> None:
        """A socket's path with odd characters never gets into a command."""
        self.remote.streamlocal_allowed = False
        self.start()
        connecting = self.connect(self.link.docker())
        self.network.settle()
        self.assertIn("characters", str(self.failureResultOf(connecting, ChannelRefused).value))
        self.assertEqual(self.opened(b"session"), 0)


class BulkTests(LinkCase):
    def setUp(self) -> None:
        super().setUp()
        self.remote.subsystems[b"sftp"] = Factory.forProtocol(SftpServer)
        self.remote.commands[b"cat"] = Factory.forProtocol(Echo)

    def test_own_connection(self) -> None:
        """Commands and files go over a connection of their own, that is made when it is needed and closed when idle."""
        self.start()
        self.assertEqual(self.network.attempts, 1)
        client = self.connected(self.link.command(b"cat"))
        self.assertEqual(self.network.attempts, 2)
        self.network.advance(130)
        self.assertIs(client.lost, None)
        client.transport.abortConnection()
        self.network.advance(125)
        self.assertEqual(len(self.network.live), 1)
        self.connected(self.link.command(b"cat"))
        self.assertEqual(self.network.attempts, 3)
        self.assertEqual(self.link.status().connects, 1)

    def test_files(self) -> None:
        """All share one SFTP channel, which is replaced when it is lost."""
        self.start()
        both = [self.link.files(), self.link.files()]
        self.network.settle()
        files = self.successResultOf(both[0])
        self.assertIs(self.successResultOf(both[1]), files)
        self.assertIs(self.successResultOf(self.link.files()), files)
        path = files.real_path(b".")
        self.network.settle()
        self.assertEqual(self.successResultOf(path), b"/root")
        self.network.cut()
        self.assertTrue(files.lost)
        other = self.link.files()
        self.network.advance(5)
        self.assertIsNot(self.successResultOf(other), files)

    def test_files_refused(self) -> None:
        """A server without sftp fails the request with its reason, and is asked again the next time."""
        del self.remote.subsystems[b"sftp"]
        self.start()
        for _ in range(2):
            files = self.link.files()
            self.network.settle()
            self.failureResultOf(files, ChannelRefused)

    def test_files_without_a_word(self) -> None:
        """A server that says nothing (a shell in front of it has read our greeting) is given up, and asked again."""
        speaking = self.remote.subsystems[b"sftp"]
        self.remote.subsystems[b"sftp"] = Factory.forProtocol(Protocol)
        self.start()
        files = self.link.files()
        self.network.advance(GREETING_SECONDS - 1)
        self.assertNoResult(files)
        self.network.advance(1)
        self.assertIn("within 30 s. Does the remote user's shell", str(self.failureResultOf(files, Unsupported).value))
        self.remote.subsystems[b"sftp"] = speaking
        files = self.link.files()
        self.network.settle()
        self.assertFalse(self.successResultOf(files).lost)

    def test_after_the_main_connection(self) -> None:
        """The bulk connection waits for the main one, and shares its failure: no attempts of its own."""
        self.network.state = "refused"
        self.start()
        running = self.connect(self.link.command(b"cat"))
        self.network.advance(WAIT_FOR_LINK + 1)
        self.assertIn("cannot be reached", str(self.failureResultOf(running, LinkDown).value))
        self.assertEqual(self.network.attempts, 4)  # the main connection's
        self.network.state = "up"
        self.known_hosts.write_bytes(b"")
        self.network.advance(30)
        attempts = self.network.attempts + 1  # the first request makes the main line try again
        for _ in range(3):
            files = self.link.files()
            self.network.settle()
            self.failureResultOf(files, HostKeyRefused)
        self.assertEqual(self.network.attempts, attempts)

    def test_a_host_that_is_gone(self) -> None:
        """A request for the bulk connection is told what is wrong; nobody goes on trying for it afterwards."""
        self.start()
        self.network.state = "refused"
        running = self.connect(self.link.command(b"cat"))
        self.network.advance(WAIT_FOR_LINK + 1)
        self.failureResultOf(running, LinkDown)
        attempts = self.network.attempts
        self.network.advance(120)
        self.assertEqual(self.network.attempts, attempts)
        self.assertEqual(self.link.status().state, "connected")


class SessionTests(LinkCase):
    """Three connections may carry commands: bulk and two more."""

    def setUp(self) -> None:
        super().setUp()
        self.remote.commands[b"cat"] = Factory.forProtocol(Echo)
        self.network.factory_class = LimitedFactory
        self.allow(1)

    def allow(self, sessions: int) -> None:
        self.patch(LimitedConnection, "max_sessions", sessions)

    def test_max_sessions(self) -> None:
        """Commands beyond MaxSessions go over other connections, then wait for one to end, in their order."""
        self.allow(2)
        self.start()
        running = [self.connect(self.link.command(b"cat")) for _ in range(9)]
        self.network.advance(1)
        self.assertEqual([one.called for one in running], [True] * 6 + [False] * 3)
        self.assertEqual(self.network.attempts, 4)
        for number in range(3):
            self.successResultOf(running[number]).transport.abortConnection()
            self.network.advance(1)
            self.assertEqual([one.called for one in running], [True] * (7 + number) + [False] * (2 - number))

    def test_waits_no_longer_than_that(self) -> None:
        """A command that finds no room for a named time fails, and says what would help."""
        self.start()
        first = [self.connected(self.link.command(b"cat")) for _ in range(3)]
        one_too_many = self.connect(self.link.command(b"cat"))
        self.network.advance(29)
        self.assertNoResult(one_too_many)
        self.network.advance(2)
        self.assertIn("MaxSessions", str(self.failureResultOf(one_too_many, LinkDown).value))
        self.assertEqual([client.lost for client in first], [None] * 3)

    def test_no_sessions_at_all(self) -> None:
        """A server that allows none refuses, and nobody waits."""
        self.allow(0)
        self.start()
        running = self.connect(self.link.command(b"cat"))
        self.network.settle()
        self.failureResultOf(running, ChannelRefused)

    def test_docker_over_commands(self) -> None:
        """Docker connections that have to be commands spread over connections too."""
        self.remote.streamlocal_allowed = False
        self.remote.commands[DIAL_STDIO] = Factory.forProtocol(Daemon)
        self.start()
        connecting = [self.connect(self.link.docker()) for _ in range(3)]
        self.network.advance(2)
        clients = [self.successResultOf(one) for one in connecting]
        for client in clients:
            client.transport.write(b"x")
        self.network.settle()
        self.assertEqual([client.received for client in clients], [b"x"] * 3)


class PermitTests(LinkCase):
    """The list of hosts that may be connected to; every host here is ``host`` or ``gate``, port 22, user ``me``."""

    def state(self, *permits: str, **changes: object) -> tuple[str, str]:
        self.link.stopService()
        self.network.advance(6)
        self.link = self.make_link(permits, **changes)
        self.start()
        status = self.link.status()
        return status.state, status.reason

    def test_allowed(self) -> None:
        """A host on the list is connected to, and its key is what known_hosts says."""
        self.assertEqual(self.state("elsewhere", "h?st:22"), ("connected", ""))

    def test_not_allowed(self) -> None:
        """Any other is not even tried, and waits for a person."""
        for permits in (("elsewhere",), ("host:2222",), ("nobody@host",), ()):
            state, reason = self.state(*permits)
            self.assertEqual(state, "failed", permits)
            self.assertIn("is not among the remote hosts that the configuration allows", reason)
        self.assertEqual(self.remote.connections, [])

    def test_keys(self) -> None:
        """A host may be given its key; another one is refused, although known_hosts has it."""
        key = fingerprint(host_key().public().blob())
        self.assertEqual(self.state(f"host {key}")[0], "connected")
        state, reason = self.state("host SHA256:" + "A" * 43)
        self.assertEqual(state, "failed")
        self.assertIn("none of those pinned", reason)

    def test_jump_hosts(self) -> None:
        """Jump hosts have to be on the list too, and nobody is connected to unless all are."""
        gate = self.target(original="gate", host="gate")
        state, reason = self.state("host", via=gate)
        self.assertEqual(state, "failed")
        self.assertIn("gate (port 22) is not among", reason)
        state, reason = self.state("gate", via=gate)
        self.assertIn("host (port 22) is not among", reason)
        self.assertEqual(self.remote.connections, [])

    def test_proxy_commands(self) -> None:
        """A program that connects for us may connect to anything, and is refused where there is a list."""
        state, reason = self.state("host", proxy_command="nc elsewhere 22")
        self.assertEqual(state, "failed")
        self.assertIn("use ProxyJump", reason)


class JumpTests(LinkCase):
    def setUp(self) -> None:
        super().setUp()
        self.gate = Remote(clock=self.clock, user_keys=self.remote.user_keys)
        self.network.remote = self.gate
        self.gate.ports["host", 22] = ServerFactory(self.remote)
        self.gate_known = self.directory / "gate_known"
        self.gate_known.write_bytes(b"gate " + host_key().public().toString("openssh") + b"\n")
        gate = self.target(original="gate", host="gate", known_hosts=(str(self.gate_known),))
        self.link = self.make_link(via=gate)

    def test_through_a_jump_host(self) -> None:
        """The target is reached through a channel of the jump host's connection, which ends with it."""
        self.start()
        client = self.connected(self.link.docker())
        client.transport.write(b"hello")
        self.network.settle()
        self.assertEqual(client.received, b"hello")
        self.assertEqual(len(self.gate.connections), 1)
        self.link.stopService()
        self.network.settle()
        self.assertEqual(self.network.live, [])

    def test_an_unknown_jump_host(self) -> None:
        """A jump host is verified as strictly as the target."""
        self.gate_known.write_bytes(b"")
        self.start()
        self.assertEqual(self.link.status().state, "failed")
        self.assertIn("gate (port 22) is not known", self.link.status().reason)
        self.assertEqual(self.remote.connections, [])

    def test_an_unknown_target(self) -> None:
        """The target behind it is verified too, and the jump host's connection is not left open."""
        self.known_hosts.write_bytes(b"")
        self.start()
        self.assertIn("host (port 22) is not known", self.link.status().reason)
        self.network.advance(6)
        self.assertEqual(self.network.live, [])

    def test_the_jump_host_dies(self) -> None:
        """When the jump host's connection is lost, both are made again."""
        self.start()
        self.network.cut()
        self.assertEqual(self.link.status().state, "waiting")
        self.network.advance(3)
        self.assertEqual(self.link.status().state, "connected")
        self.connected(self.link.docker())


class BackoffTests(SynchronousTestCase):
    def test_bounds(self) -> None:
        """Delays double up to their bound; jitter takes away at most half."""
        high, low = Backoff(lambda: 1.0), Backoff(lambda: 0.0)
        self.assertEqual([high(n) for n in range(1, 9)], [0.5, 1, 2, 4, 8, 16, 30, 30])
        self.assertEqual([low(n) for n in range(1, 9)], [0.25, 0.5, 1, 2, 4, 8, 15, 15])
        self.assertEqual(high(10_000), LONGEST_DELAY)

    def test_connections_that_do_not_last(self) -> None:
        """A server that drops connections at once is not hammered, and one that lasts resets that."""
        backoff = Backoff(lambda: 1.0)
        delays = []
        for _ in range(6):
            backoff.lasted(0.1)
            delays.append(backoff(1))
        self.assertEqual(delays, [1, 2, 2, 2, 2, 2])
        backoff.lasted(60)
        self.assertEqual(backoff(1), FIRST_DELAY)
