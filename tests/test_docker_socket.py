"""rda.ssh.docker_socket: the ways to the Docker socket, and channels that are open before they are needed."""

from __future__ import annotations

from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from rda.errors import ChannelRefused, ConfigError
from rda.ssh.docker_socket import REFILL_SECONDS, SPARE_COMMANDS, SPARES, DockerAddress, parse_docker
from tests.link_case import DIAL_STDIO, Daemon, LinkCase, Program

SOCAT = b"socat - UNIX-CONNECT:/var/run/docker.sock"


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
