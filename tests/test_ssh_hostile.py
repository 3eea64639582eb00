"""Servers that ask on and on, answer what nobody asked, or never answer: memory stays bounded, and the end is clean."""

import struct
import tracemalloc

from twisted.conch.ssh import connection as conch
from twisted.conch.ssh import transport as conch_transport
from twisted.conch.ssh.common import NS
from twisted.internet.protocol import Factory
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from rda.errors import LinkDown
from rda.ssh import channels, packet_transport
from rda.ssh.channels import streamlocal
from rda.ssh.opening import LOCAL_PACKET, MIN_WINDOW
from rda.ssh.peer_text import MAX_TEXT, peer_text
from tests.channel_case import Client, Script
from tests.ssh_server import Remote, SshInMemory

UINT32 = struct.Struct(">L").pack

#: Messages that want an answer, one of each kind; the channel requests are for our channel 0.
QUESTIONS = {
    "global request": (conch.MSG_GLOBAL_REQUEST, NS(b"hostkeys-prove-00@openssh.com") + b"\1"),
    "channel": (conch.MSG_CHANNEL_OPEN, NS(b"x11") + struct.pack(">3L", 7, 1 << 20, 32768)),
    "channel request": (conch.MSG_CHANNEL_REQUEST, UINT32(0) + NS(b"keepalive@openssh.com") + b"\1"),
    "unknown message": (192, b"?"),
}

#: Messages that mean nothing to us and want no answer.
NOISE = {
    "ignore": (conch_transport.MSG_IGNORE, NS(b"x" * 100)),
    "debug": (conch_transport.MSG_DEBUG, b"\1" + NS(b"x" * 100) + NS(b"")),
    "unimplemented": (conch_transport.MSG_UNIMPLEMENTED, UINT32(3)),
    "extensions": (conch_transport.MSG_EXT_INFO, UINT32(1) + NS(b"name%d") + NS(b"x" * 100)),
    "global request": (conch.MSG_GLOBAL_REQUEST, NS(b"hostkeys-00@openssh.com") + b"\0"),
    "channel request": (conch.MSG_CHANNEL_REQUEST, UINT32(0) + NS(b"exit-signal") + b"\0" + NS(b"x" * 100)),
    "no data": (conch.MSG_CHANNEL_DATA, UINT32(0) + UINT32(0)),
    "window": (conch.MSG_CHANNEL_WINDOW_ADJUST, UINT32(0) + UINT32(0)),
}

#: Answers to what was not asked.
ANSWERS = {
    "success": (conch.MSG_REQUEST_SUCCESS, b""),
    "failure": (conch.MSG_REQUEST_FAILURE, b""),
    "channel success": (conch.MSG_CHANNEL_SUCCESS, UINT32(0)),
    "channel failure": (conch.MSG_CHANNEL_FAILURE, UINT32(0)),
    "opened twice": (conch.MSG_CHANNEL_OPEN_CONFIRMATION, struct.pack(">4L", 0, 0, 1 << 20, 32768)),
    "opened": (conch.MSG_CHANNEL_OPEN_CONFIRMATION, struct.pack(">4L", 99, 0, 1 << 20, 32768)),
    "refused": (conch.MSG_CHANNEL_OPEN_FAILURE, struct.pack(">2L", 99, 1) + NS(b"") + NS(b"")),
    "window": (conch.MSG_CHANNEL_WINDOW_ADJUST, UINT32(99) + UINT32(1)),
    "closed": (conch.MSG_CHANNEL_CLOSE, UINT32(99)),
    "service": (conch_transport.MSG_SERVICE_ACCEPT, NS(b"ssh-connection")),
    "key exchange": (conch_transport.MSG_KEXDH_REPLY, NS(b"") * 3),
    "keys": (conch_transport.MSG_NEWKEYS, b""),
}


class HostileCase(SynchronousTestCase):
    """A client that is logged in, with one open channel, and a server that says what the test wants."""

    def setUp(self):
        self.ends = []
        self.remote = Remote(sockets={"/s": Factory.forProtocol(self.make_end)})
        self.ssh = SshInMemory(self.remote)
        self.channel = self.opened()

    def make_end(self):
        self.ends.append(Script())
        return self.ends[-1]

    def opened(self):
        connected = streamlocal(self.ssh.connection, "/s").connect(Factory.forProtocol(Client))
        self.ssh.flush()
        return self.successResultOf(connected).transport

    def sealed(self, number, payload):
        """One message as the server's own code would send it: encrypted, numbered, valid."""
        server = self.ssh.server
        data = server.currentEncryptions.seal(server.outgoingPacketSequence, bytes((number,)) + payload)
        server.outgoingPacketSequence += 1
        return data

    def say(self, number, payload, times=1):
        """Let the server say something; the client's answers stay where they are."""
        self.ssh.client.dataReceived(b"".join(self.sealed(number, payload) for _ in range(times)))

    def ended(self):
        """Why the client hung up, once its connection is gone."""
        self.assertTrue(self.ssh.client_io.disconnecting)
        self.ssh.lose()
        return str(self.successResultOf(self.ssh.client.lost))


class QuestionTests(HostileCase):
    def test_a_server_that_does_not_read(self):
        """Answers that the server does not read are kept up to a limit; then the connection ends."""
        self.patch(packet_transport, "MAX_UNSENT", 20_000)
        for kind, (number, payload) in QUESTIONS.items():
            with self.subTest(kind):
                self.setUp()
                self.ssh.client_io.full()
                asked = 0
                while not self.ssh.client_io.disconnecting:
                    self.say(number, payload, 100)
                    asked += 100
                    self.assertLess(asked, 2000)
                self.assertLess(len(self.ssh.client_io.getOutBuffer()), 30_000)
                self.assertIn("does not read", self.ended())

    def test_a_server_that_reads(self):
        """Any number of questions is answered as long as the answers are read."""
        self.patch(packet_transport, "MAX_UNSENT", 20_000)
        for number, payload in QUESTIONS.values():
            for _ in range(10):
                self.ssh.client_io.full()
                self.say(number, payload, 100)
                self.ssh.client_io.getOutBuffer()
                self.ssh.client_io.drained()
        self.assertFalse(self.ssh.client_io.disconnecting)
        self.ssh.lose()

    def test_unasked_answers(self):
        """An answer that nobody waits for ends the connection, and is the reason."""
        for kind, (number, payload) in ANSWERS.items():
            with self.subTest(kind):
                self.setUp()
                self.say(number, payload, 3)
                self.assertRegex(self.ended(), "does not keep to the SSH protocol|not asked for|nobody")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_noise(self):
        """What means nothing may come as often as it likes: nothing of it is kept, and nothing logged."""
        logged = []
        globalLogPublisher.addObserver(logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, logged.append)
        for kind, (number, payload) in NOISE.items():
            with self.subTest(kind):
                self.say(number, payload.replace(b"%d", b"%2d" % 0), 20)
                data = [self.sealed(number, payload.replace(b"%d", b"%2d" % (n % 100))) for n in range(3000)]
                tracemalloc.start()
                self.addCleanup(tracemalloc.stop)
                before = tracemalloc.get_traced_memory()[0]
                self.ssh.client.dataReceived(b"".join(data[:-1]))
                self.ssh.client.dataReceived(data[-1])  # what was read last is kept until then
                self.assertLess(tracemalloc.get_traced_memory()[0] - before, 50_000)
                tracemalloc.stop()
        self.assertFalse(self.ssh.client_io.disconnecting)
        self.assertEqual(logged, [])
        self.ssh.lose()


class ChannelTests(HostileCase):
    def test_small_pieces(self):
        """A stalled reader costs what is in the window, however small the pieces that it comes in."""
        self.channel.pauseProducing()
        data = b"".join(self.sealed(conch.MSG_CHANNEL_DATA, UINT32(0) + NS(b"x")) for _ in range(40_000))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        for start in range(0, len(data), 65_536):
            self.ssh.client.dataReceived(data[start : start + 65_536])
        self.assertLess(tracemalloc.get_traced_memory()[0] - before, 300_000)
        self.channel.resumeProducing()
        self.ssh.clock.advance(0)
        self.assertEqual(self.channel._protocol.data, b"x" * 40_000)
        self.ssh.lose()

    def test_a_stalled_reader(self):
        """A reader that does not read costs at most the window, and a megabyte."""
        self.channel.pauseProducing()
        piece = UINT32(0) + NS(b"x" * LOCAL_PACKET)
        data = [self.sealed(conch.MSG_CHANNEL_DATA, piece) for _ in range(MIN_WINDOW // LOCAL_PACKET)]
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        while data:
            self.ssh.client.dataReceived(b"".join(data[:8]))
            del data[:8]
        self.assertLess(tracemalloc.get_traced_memory()[1] - before, MIN_WINDOW + (1 << 20))
        self.channel.resumeProducing()
        self.ssh.clock.advance(0)
        self.assertEqual(len(self.channel._protocol.data), MIN_WINDOW)
        self.ssh.lose()

    def test_channels_that_are_never_opened(self):
        """A server that does not answer for channels which rda has given up loses the connection in the end."""
        self.patch(channels, "MAX_LEFTOVER", 10)
        for _ in range(12):
            opening = streamlocal(self.ssh.connection, "/s").connect(Factory.forProtocol(Client))
            opening.addErrback(lambda failure: None)
            opening.cancel()
        self.assertIn("leaves 10 channels open", self.ended())

    def test_channels_that_are_never_closed(self):
        """The same for channels that rda has closed."""
        self.patch(channels, "MAX_LEFTOVER", 10)
        for opened in [self.opened() for _ in range(12)]:
            opened.loseConnection()
        self.assertFalse(self.ssh.client_io.disconnecting)
        streamlocal(self.ssh.connection, "/s").connect(Factory.forProtocol(Client)).addErrback(lambda failure: None)
        self.assertIn("leaves 10 channels open", self.ended())

    def test_many_channels(self):
        """Channels that are in use are not counted."""
        self.patch(channels, "MAX_LEFTOVER", 10)
        for _ in range(20):
            self.opened()
        self.assertFalse(self.ssh.client_io.disconnecting)
        self.ssh.lose()

    def listened(self):
        self.patch(channels, "MAX_ACCEPTED", 3)
        taken = []

        class Taken(Client):
            def connectionMade(self):
                taken.append(self)

        listening = self.ssh.connection.listen("/l", Factory.forProtocol(Taken))
        self.say(conch.MSG_REQUEST_SUCCESS, b"")
        self.successResultOf(listening)
        return taken

    def lose(self):
        """End the connection; the server of these tests would not know the channels that it is said to open."""
        self.ssh.client_io.getOutBuffer()
        self.ssh.lose()

    def connect_to_us(self, times=1):
        kind = NS(b"forwarded-streamlocal@openssh.com")
        self.say(conch.MSG_CHANNEL_OPEN, kind + struct.pack(">3L", 7, 1 << 20, 32768) + NS(b"/l") + NS(b""), times)

    def test_connections_to_us(self):
        """The server can make only so many connections to us at a time."""
        taken = self.listened()
        self.connect_to_us(10)
        self.assertEqual(len(taken), 3)
        self.assertFalse(self.ssh.client_io.disconnecting)
        self.lose()

    def test_a_connection_that_cannot_be_taken(self):
        """A defect of what takes a connection ends that connection alone."""

        class Broken(Client):
            def connectionMade(self):
                raise ZeroDivisionError

        listening = self.ssh.connection.listen("/l", Factory.forProtocol(Broken))
        self.say(conch.MSG_REQUEST_SUCCESS, b"")
        self.successResultOf(listening)
        self.connect_to_us()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertFalse(self.ssh.client_io.disconnecting)
        self.lose()

    def test_numbers_begin_again(self):
        """After channel 2**32 - 1 comes the next number that is free."""
        self.ssh.connection.localChannelID = 0xFFFF_FFFF
        self.assertEqual([self.opened().local_id for _ in range(3)], [0xFFFF_FFFF, 1, 2])
        self.ssh.lose()


class DowngradeTests(SynchronousTestCase):
    """Somebody in between changes the proposals, which are not protected yet: the host's signature covers them."""

    def exchange(self, to_client=(b"", b""), to_server=(b"", b"")):
        """Let the two greet each other through somebody who replaces bytes; returns how it ended."""
        ssh = SshInMemory(greet=False)
        said, answered = ssh.server_io.getOutBuffer(), ssh.client_io.getOutBuffer()
        changed = said.replace(*to_client), answered.replace(*to_server)
        self.assertNotEqual(changed, (said, answered))
        ssh.client.dataReceived(changed[0])
        ssh.server.dataReceived(changed[1])
        ssh.flush()
        ssh.lose()
        self.assertIsNone(ssh.client.algorithms)
        self.flushLoggedErrors()  # the server's, of what it cannot decrypt
        return str(self.failureResultOf(ssh.client.ready, LinkDown).value)

    def test_names_taken_away(self):
        """A cipher, a method or the marker of strict key exchange that is taken out of a proposal is missed."""
        for name in (
            b"aes128-gcm@openssh.com",
            b"curve25519-sha256,",
            b"kex-strict-s-v00@openssh.com",
        ):
            with self.subTest(name):
                reason = self.exchange(to_client=(name, name.translate(bytes.maketrans(b"-", b"x"))))
                self.assertIn("signature of its host key is wrong", reason)

    def test_names_taken_away_from_ours(self):
        """The same holds for what the server sees of our proposal."""
        for name in (b"aes128-gcm@openssh.com", b"kex-strict-c-v00@openssh.com", b"ext-info-c"):
            with self.subTest(name):
                reason = self.exchange(to_server=(name, name.translate(bytes.maketrans(b"-", b"x"))))
                self.assertIn("signature of its host key is wrong", reason)

    def test_version(self):
        """Nor can the other side's version be another one than it was."""
        self.assertIn("signature", self.exchange(to_client=(b"SSH-2.0-Twisted", b"SSH-2.0-Twosted")))


class TextTests(SynchronousTestCase):
    def test_peer_text(self):
        """A peer's text is shown in one line, cut, and without what a terminal would obey."""
        self.assertEqual(peer_text(b"\x1b[31mno\r\nway\x07"), "[31mno  way")
        self.assertEqual(peer_text(b"\xff\xc3\xa9"), "\N{REPLACEMENT CHARACTER}\N{LATIN SMALL LETTER E WITH ACUTE}")
        self.assertEqual(len(peer_text(b"x" * 5000)), MAX_TEXT)

    def test_disconnect(self):
        """That holds for the reason that a server gives when it hangs up, too."""
        ssh = SshInMemory()
        ssh.server.sendPacket(conch_transport.MSG_DISCONNECT, UINT32(2) + NS(b"\x1b]0;bye\x07" * 1000) + NS(b""))
        ssh.flush()
        ssh.lose()
        reason = self.successResultOf(ssh.client.lost)
        self.assertIsInstance(reason, LinkDown)
        self.assertNotIn("\x1b", str(reason))
        self.assertLess(len(str(reason)), 500)
