"""rda.ssh.link and rda.ssh.line: one connection that always comes back, and what waits for it."""

from __future__ import annotations

from twisted.conch.ssh.keys import Key
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from rda.errors import ChannelRefused, CommandFailed, ConfigError, HostKeyRefused, LinkDown, LoginFailed
from rda.ssh.docker_socket import SPARES
from rda.ssh.keys import fingerprint
from rda.ssh.line import FIRST_DELAY, LONGEST_DELAY, TRUST_AGAIN_SECONDS, WAIT_FOR_LINK, Backoff
from rda.status import LinkStatus
from tests.link_case import SOCKET, Client, Echo, LinkCase, Program
from tests.ssh_keys import private, public_line
from tests.ssh_server import Remote, ServerFactory, host_key


class LifeTests(LinkCase):
    def test_connects(self) -> None:
        """A started link connects, and its status says to whom and how."""
        self.start()
        self.assertTrue(self.link.connected)
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
        waiting = self.connect(self.link.docker())
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

        def defective(status: LinkStatus) -> None:
            raise ZeroDivisionError

        self.link.add_observer(defective)
        self.link.add_observer(told.append)
        self.start()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual(told, self.seen)
        self.link.remove_observer(defective)

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
        asked = [self.connect(self.link.docker()), self.connect(self.link.command(b"cat"))]
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
        self.assertEqual(self.link.status().reason, str(error))
        return str(error)

    def test_changed_host_key(self) -> None:
        """A changed host key stops the retries and fails requests at once, until a person has acted."""
        self.known_hosts.write_bytes(b"host " + public_line(private("ed25519", 1)))
        waited = self.connect(self.link.docker())
        self.link.startService()
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
