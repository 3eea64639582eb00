"""rda.ssh.sessions: commands and subsystems within the server's MaxSessions; bulk transfers' own connection."""

from __future__ import annotations

import struct

from twisted.conch.error import ConchError
from twisted.internet.protocol import Factory, Protocol

from rda.errors import ChannelRefused, HostKeyRefused, LinkDown
from rda.ssh.line import WAIT_FOR_LINK
from rda.ssh.link import GREETING_SECONDS
from rda.ssh.sftp import Unsupported
from tests.link_case import DIAL_STDIO, Daemon, Echo, LinkCase
from tests.ssh_server import ServerConnection, ServerFactory


class SftpServer(Protocol):
    """Says its version, and resolves every path to /root."""

    def dataReceived(self, data: bytes) -> None:
        if data[4] == 1:
            self.transport.write(struct.pack(">LBL", 5, 2, 3))
        else:
            name = struct.pack(">L", 5) + b"/root"
            body = data[5:9] + struct.pack(">L", 1) + name + name + struct.pack(">L", 0)
            self.transport.write(struct.pack(">LB", len(body) + 1, 104) + body)


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
