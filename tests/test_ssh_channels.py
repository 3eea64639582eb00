"""Channels as transports, against Conch's server in memory."""

import struct
import tracemalloc

from twisted.conch.error import ConchError
from twisted.conch.ssh import connection as conch
from twisted.conch.ssh.common import NS
from twisted.internet.address import HostnameAddress, UNIXAddress
from twisted.internet.error import (
    ConnectingCancelledError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    NoProtocol,
)
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from rda.errors import ChannelRefused, CommandFailed, LinkDown
from rda.ssh.channels import MAX_LISTENERS, MAX_WINDOW, Connection, command, direct_tcp, streamlocal, subsystem
from rda.ssh.command_channel import STDERR_TAIL
from rda.ssh.stream import LOCAL_PACKET, MIN_WINDOW
from rda.ssh.transport import ClientTransport
from tests.ssh_server import SERVER_WINDOW, Remote, ServerChannel, SshInMemory, TrustAll, password_login


class Script(Protocol):
    """The remote end: what a test wants of it is done by hand, through :attr:`transport`."""

    def __init__(self):
        self.data = bytearray()
        self.lost = False

    def dataReceived(self, data):
        self.data += data

    def connectionLost(self, reason):
        self.lost = True


@implementer(IHalfCloseableProtocol)
class HalfScript(Script):
    """A remote end that is told of the end of data."""

    ended = False

    def readConnectionLost(self):
        self.ended = True

    def writeConnectionLost(self):
        pass


class Client(Protocol):
    """Our end: it notes what happens to it, in order."""

    def __init__(self):
        self.data = bytearray()
        self.events = []
        self.reasons = []

    def dataReceived(self, data):
        self.data += data
        self.events.append("data")

    def connectionLost(self, reason):
        self.reasons.append(reason)
        self.events.append("lost")


@implementer(IHalfCloseableProtocol)
class HalfClient(Client):
    """Our end, which is told of the end of data."""

    def readConnectionLost(self):
        self.events.append("read end")

    def writeConnectionLost(self):
        self.events.append("write end")


@implementer(IPushProducer)
class Producer:
    """Notes what it is told. As a pull producer, it writes a piece for each call, and ends."""

    def __init__(self, consumer=None, pieces=()):
        self.calls = []
        self.consumer = consumer
        self.pieces = list(pieces)

    def pauseProducing(self):
        self.calls.append("pause")

    def resumeProducing(self):
        self.calls.append("resume")
        if self.pieces:
            self.consumer.write(self.pieces.pop(0))
        elif self.consumer is not None:
            self.consumer.unregisterProducer()

    def stopProducing(self):
        self.calls.append("stop")


class ChannelCase(SynchronousTestCase):
    """One SSH connection; :meth:`open` gives both ends of a channel over it."""

    def setUp(self):
        self.remote = Remote()
        self.ends = []
        for path, kind in (("/s", Script), ("/half", HalfScript)):
            self.remote.sockets[path] = self.factory(kind)
        self.ssh = SshInMemory(self.remote)
        self.addCleanup(self.check_end)

    def check_end(self):
        self.ssh.lose()
        self.assertEqual(self.ssh.connection.channels, {})
        self.assertEqual(self.ssh.connection.sinks, {})

    def factory(self, kind):
        def make():
            self.ends.append(kind())
            return self.ends[-1]

        return Factory.forProtocol(make)

    def connect(self, endpoint, kind=Client):
        connected = endpoint.connect(Factory.forProtocol(kind))
        self.ssh.flush()
        return connected

    def open(self, kind=Client, path="/s"):
        ours = self.successResultOf(self.connect(streamlocal(self.ssh.connection, path), kind))
        return ours, self.ends[-1]

    def run_command(self, kind=Client, name=b"run", remote_kind=Script):
        self.remote.commands[name] = self.factory(remote_kind)
        ours = self.successResultOf(self.connect(command(self.ssh.connection, name), kind))
        return ours, self.ends[-1]

    def reason(self, protocol):
        self.assertEqual(len(protocol.reasons), 1)
        return protocol.reasons[0].value


class OpenTests(ChannelCase):
    def test_interfaces(self):
        """Endpoints and transports provide what they say."""
        ours, _ = self.open()
        verifyObject(IStreamClientEndpoint, streamlocal(self.ssh.connection, "/s"))
        for interface in (ITransport, IConsumer, IPushProducer):
            verifyObject(interface, ours.transport)

    def test_socket(self):
        """A socket is asked for by its path (OpenSSH's PROTOCOL, section 2.4)."""
        ours, _ = self.open()
        self.assertEqual(self.remote.opened, [(b"direct-streamlocal@openssh.com", NS(b"/s") + NS(b"") + bytes(4))])
        self.assertEqual(ours.transport.getPeer(), UNIXAddress("/s"))

    def test_port(self):
        """A TCP port is asked for by host and number, IPv6 ones without brackets (RFC 4254, section 7.2)."""
        for host in ("localhost", "127.0.0.1", "::1"):
            self.remote.ports[host, 8080] = self.factory(Script)
            ours = self.successResultOf(self.connect(direct_tcp(self.ssh.connection, host, 8080)))
            ours.transport.write(b"hello")
            self.ssh.flush()
            self.assertEqual(self.ends[-1].data, b"hello")
            self.assertEqual(ours.transport.getPeer(), HostnameAddress(host.encode(), 8080))

    def test_refused_socket(self):
        """A refused socket says which, and what may be the reason: they cannot be told apart."""
        reason = self.failureResultOf(
            self.connect(streamlocal(self.ssh.connection, "/run/docker.sock")), ChannelRefused
        ).value
        self.assertEqual((reason.code, reason.status), (conch.OPEN_CONNECT_FAILED, 502))
        for part in ("/run/docker.sock", "open failed", "does not exist", "AllowStreamLocalForwarding"):
            self.assertIn(part, str(reason))

    def test_refused_port(self):
        """A refused port says which, and whether it was the server that forbids it."""
        endpoint = direct_tcp(self.ssh.connection, "::1", 80)
        reason = self.failureResultOf(self.connect(endpoint), ChannelRefused).value
        self.assertRegex(str(reason), r"\[::1\]:80 .*could not connect.*Connection refused")
        self.remote.tcp_allowed = False
        reason = self.failureResultOf(self.connect(endpoint), ChannelRefused).value
        self.assertEqual(reason.code, conch.OPEN_ADMINISTRATIVELY_PROHIBITED)
        self.assertIn("does not allow it", str(reason))

    def test_refused_command(self):
        """A refused command or subsystem, or a session too many, says which, and no channel is left."""
        connection = self.ssh.connection
        for endpoint, name in ((command(connection, b"no"), "'no'"), (subsystem(connection, b"sftp"), "sftp")):
            reason = self.failureResultOf(self.connect(endpoint), ChannelRefused).value
            self.assertIn(name, str(reason))
            self.assertEqual(connection.channels, {})
        self.remote.sessions_left = 0
        reason = self.failureResultOf(self.connect(command(connection, b"no")), ChannelRefused).value
        self.assertIn("MaxSessions", str(reason))

    def test_subsystem(self):
        """A subsystem is a stream whose end is no failure, whatever its exit status."""
        self.remote.subsystems[b"sftp"] = self.factory(Script)
        ours = self.successResultOf(self.connect(subsystem(self.ssh.connection, b"sftp")))
        self.ends[-1].transport.write(b"hello")
        self.ends[-1].transport.loseWriteConnection()
        self.ssh.flush()
        self.assertEqual(ours.data, b"hello")
        self.assertIsInstance(self.reason(ours), ConnectionDone)

    def test_cancelled(self):
        """Cancelling before the server answered closes the channel as soon as it is open, and tells no protocol."""
        made = []
        factory = Factory.forProtocol(lambda: made.append(Client()) or made[-1])
        opening = streamlocal(self.ssh.connection, "/s").connect(factory)
        opening.cancel()
        self.failureResultOf(opening, ConnectingCancelledError)
        self.ssh.flush()
        self.assertEqual((made, self.ssh.connection.channels), ([], {}))
        self.assertTrue(self.ends[-1].lost)

    def test_cancelled_and_refused(self):
        """A refusal that comes after the cancellation is nobody's any more."""
        opening = streamlocal(self.ssh.connection, "/no").connect(Factory.forProtocol(Client))
        opening.cancel()
        self.failureResultOf(opening, ConnectingCancelledError)
        self.ssh.flush()

    def test_cancelled_command(self):
        """Cancelling after the channel is open, before the command has started, closes it."""
        self.remote.commands[b"run"] = self.factory(Script)
        opening = command(self.ssh.connection, b"run").connect(Factory.forProtocol(Client))
        while not any(channel.open for channel in self.ssh.connection.channels.values()):
            self.ssh.pump.pump()
        opening.cancel()
        self.failureResultOf(opening, ConnectingCancelledError)
        self.ssh.flush()
        self.assertEqual(self.ssh.connection.channels, {})

    def test_no_protocol(self):
        """A factory that makes no protocol has its channel closed."""
        factory = Factory.forProtocol(lambda: None)
        factory.buildProtocol = lambda address: None
        opening = streamlocal(self.ssh.connection, "/s").connect(factory)
        self.ssh.flush()
        self.failureResultOf(opening, NoProtocol)
        self.assertEqual(self.ssh.connection.channels, {})

    def test_broken_factory(self):
        """A factory that raises has its channel closed, and its error reported."""
        factory = Factory()
        factory.buildProtocol = lambda address: 1 / 0
        opening = streamlocal(self.ssh.connection, "/s").connect(factory)
        self.ssh.flush()
        self.failureResultOf(opening, ZeroDivisionError)
        self.assertEqual(self.ssh.connection.channels, {})

    def test_lost_while_opening(self):
        """A connection lost before the server answered fails connect with the reason; later ones fail at once."""
        endpoint = streamlocal(self.ssh.connection, "/s")
        opening = endpoint.connect(Factory.forProtocol(Client))
        self.ssh.client_io.getOutBuffer()
        self.ssh.lose()
        self.failureResultOf(opening, LinkDown)
        self.failureResultOf(endpoint.connect(Factory.forProtocol(Client)), LinkDown)

    def test_before_the_login(self):
        """A connection that has not started yet opens nothing."""
        client = ClientTransport(TrustAll(), password_login, self.ssh.clock)
        self.failureResultOf(streamlocal(client.connection, "/s").connect(Factory.forProtocol(Client)), LinkDown)

    def test_by_the_server(self):
        """The server cannot open channels to us, nor ask for anything."""
        refused = []
        server = self.ssh.server.service
        server.ssh_CHANNEL_OPEN_FAILURE = refused.append
        server.transport.sendPacket(conch.MSG_CHANNEL_OPEN, NS(b"x11") + struct.pack(">3L", 7, 1000, 1000))
        answered = server.sendGlobalRequest(b"hostkeys-prove-00@openssh.com", b"", wantReply=1)
        server.sendGlobalRequest(b"hostkeys-00@openssh.com", b"")
        self.ssh.flush()
        self.assertEqual(refused[0][:8], struct.pack(">2L", 7, conch.OPEN_ADMINISTRATIVELY_PROHIBITED))
        self.failureResultOf(answered, ConchError)
        # Keepalives (OpenSSH's ClientAliveInterval) are answered on channels too.
        self.open()
        asked = server.sendRequest(self.remote.channels[-1], b"keepalive@openssh.com", b"", wantReply=1)
        self.ssh.flush()
        self.failureResultOf(asked, ConchError)

    def listen(self, grants=True):
        """Listen on a socket of the remote host; returns the listener, what our ends are, and how to connect there."""
        self.remote.answers_pings = grants
        ours = []

        def make():
            ours.append(HalfClient())
            return ours[-1]

        listening = self.ssh.connection.listen("/run/x.sock", Factory.forProtocol(make))
        self.ssh.flush()

        def connect():
            channel = ServerChannel(self.factory(HalfScript), conn=self.ssh.server.service)
            channel.name = b"forwarded-streamlocal@openssh.com"
            self.ssh.server.service.openChannel(channel, NS(b"/run/x.sock") + NS(b""))
            self.ssh.flush()
            return channel

        return listening, ours, connect

    def test_listening(self):
        """Who connects to a socket that we listen on there is connected to us: both ways, each ending on its own."""
        listening, ours, connect = self.listen()
        listener = self.successResultOf(listening)
        self.assertEqual(listener.getHost(), UNIXAddress(b"/run/x.sock"))
        self.assertEqual(self.remote.global_requests[-1], b"streamlocal-forward@openssh.com")
        connect()
        self.ends[-1].transport.write(b"ping")
        self.ends[-1].transport.loseWriteConnection()
        self.ssh.flush()
        self.assertEqual((bytes(ours[0].data), ours[0].events), (b"ping", ["data", "read end"]))
        ours[0].transport.write(b"pong")
        ours[0].transport.loseWriteConnection()
        self.ssh.flush()
        self.assertEqual(bytes(self.ends[-1].data), b"pong")
        self.assertEqual(ours[0].events[-1], "lost")

    def test_listening_ends(self):
        """A listener that has ended takes no more connections."""
        listening, ours, connect = self.listen()
        listener = self.successResultOf(listening)
        stopped = listener.stopListening()
        self.ssh.flush()
        self.successResultOf(stopped)
        self.assertEqual(self.remote.global_requests[-1], b"cancel-streamlocal-forward@openssh.com")
        connect()
        self.assertEqual((ours, listener.over), ([], True))
        self.successResultOf(listener.stopListening())

    def test_listening_refused(self):
        """A server that does not listen for us is an error that says which setting may forbid it."""
        listening, ours, connect = self.listen(grants=False)
        self.assertIn("AllowStreamLocalForwarding", str(self.failureResultOf(listening, ChannelRefused).value))
        connect()
        self.assertEqual(ours, [])

    def test_listening_and_the_connection_is_lost(self):
        """A listener ends with the SSH connection; one that is asked for on a lost connection fails."""
        listening, _, _ = self.listen()
        self.remote.deaf = True
        waiting = self.ssh.connection.listen("/run/y.sock", Factory.forProtocol(Client))
        self.ssh.lose()
        self.assertTrue(self.successResultOf(listening).over)
        self.failureResultOf(waiting, LinkDown)
        self.failureResultOf(self.ssh.connection.listen("/run/z.sock", Factory.forProtocol(Client)), LinkDown)

    def test_listeners_are_bounded(self):
        """So many sockets, and no more."""
        self.remote.answers_pings = True
        for number in range(MAX_LISTENERS):
            listening = self.ssh.connection.listen(f"/run/{number}", Factory.forProtocol(Client))
            self.ssh.flush()
            self.successResultOf(listening)
        self.failureResultOf(self.ssh.connection.listen("/run/more", Factory.forProtocol(Client)), LinkDown)

    def test_no_log_lines(self):
        """A channel that is opened, used and closed leaves no line in the log."""
        events = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        ours, _ = self.open()
        ours.transport.write(b"hello")
        self.ssh.flush()
        ours.transport.loseConnection()
        self.ssh.flush()
        ours_only = [event for event in events if event.get("log_namespace", "").startswith("rda.")]
        self.assertEqual([event for event in ours_only if event["log_level"] >= LogLevel.info], [])


class SendTests(ChannelCase):
    def test_order(self):
        """What is written in many pieces, over many windows, arrives in order."""
        ours, theirs = self.open()
        pieces = [bytes([n % 256]) * (n * 997 % 70_000) for n in range(300)]
        for piece in pieces[:150]:
            ours.transport.write(piece)
        ours.transport.writeSequence(pieces[150:])
        self.ssh.flush()
        self.assertEqual(theirs.data, b"".join(pieces))

    def test_window(self):
        """Not a byte more than the server's window is sent before it says so."""
        ours, _ = self.open()
        ours.transport.write(bytes(SERVER_WINDOW + 5))
        self.assertEqual(ours.transport.remoteWindowLeft, 0)
        sent = self.ssh.client_io.getOutBuffer()
        self.assertLess(len(sent), SERVER_WINDOW * 1.01)
        ours.transport.loseConnection()
        self.assertFalse(ours.transport.localClosed)
        self.ssh.server.dataReceived(sent)
        self.ssh.flush()
        self.assertIsInstance(self.reason(ours), ConnectionDone)

    def test_a_server_that_takes_huge_packets(self):
        """Packets are never longer than what every implementation takes, whatever the server would take."""
        ours, theirs = self.open()
        ours.transport.remoteMaxPacket = 0xFFFF_FFFF
        data = bytes(range(256)) * 4096
        ours.transport.write(data)
        self.ssh.flush()
        self.assertEqual(theirs.data, data)

    def test_push_producer(self):
        """A push producer is paused while its data waits, and resumed when it has been sent."""
        ours, theirs = self.open()
        producer = Producer()
        ours.transport.registerProducer(producer, True)
        ours.transport.write(bytes(1000))
        self.assertEqual(producer.calls, [])
        ours.transport.write(bytes(SERVER_WINDOW))
        self.assertEqual(producer.calls, ["pause"])
        self.ssh.flush()
        self.assertEqual(producer.calls, ["pause", "resume"])
        self.assertEqual(len(theirs.data), SERVER_WINDOW + 1000)

    def test_push_producer_of_a_full_socket(self):
        """A push producer is paused while the socket is full, even if nothing of its own waits."""
        ours, _ = self.open()
        producer = Producer()
        self.ssh.client_io.full()
        ours.transport.registerProducer(producer, True)
        self.assertEqual(producer.calls, ["pause"])
        self.ssh.client_io.drained()
        self.assertEqual(producer.calls, ["pause", "resume"])
        ours.transport.write(b"x")
        self.ssh.client_io.full()
        ours.transport.write(b"y")
        self.assertEqual(producer.calls[2:], ["pause"])

    def test_pull_producer(self):
        """A pull producer is asked for a piece whenever there is room, and closing waits for its end."""
        ours, theirs = self.open()
        producer = Producer(ours.transport, [bytes([n]) * 600_000 for n in range(1, 9)])
        ours.transport.registerProducer(producer, False)
        ours.transport.loseConnection()
        self.ssh.flush()
        # loseConnection before the producer has written anything: what it writes afterwards is still sent.
        self.assertEqual(len(theirs.data), 8 * 600_000)
        self.assertIsInstance(self.reason(ours), ConnectionDone)

    def test_pull_producer_when_keys_change(self):
        """A pull producer goes on after a key exchange that began just when it was to be asked for a piece."""
        ours, theirs = self.open()
        producer = Producer(ours.transport, [bytes([n]) * 1000 for n in range(1, 4)])
        ours.transport.registerProducer(producer, False)
        self.ssh.client.sendKexInit()
        self.ssh.clock.advance(0)
        self.assertEqual(producer.calls, [])
        self.ssh.flush()
        self.assertEqual(len(theirs.data), 3000)

    def test_second_producer(self):
        """Two producers at a time are a defect of the caller."""
        ours, _ = self.open()
        ours.transport.registerProducer(Producer(), True)
        self.assertRaises(RuntimeError, ours.transport.registerProducer, Producer(), True)
        ours.transport.unregisterProducer()
        ours.transport.registerProducer(Producer(), True)

    def test_producer_of_a_closed_channel(self):
        """A producer for a closed channel is stopped at once; one that is there when it closes, then."""
        ours, theirs = self.open()
        first, second = Producer(), Producer()
        ours.transport.registerProducer(first, True)
        theirs.transport.loseConnection()
        self.ssh.flush()
        ours.transport.registerProducer(second, True)
        self.assertEqual((first.calls, second.calls), (["stop"], ["stop"]))

    def test_fair(self):
        """A small message does not wait behind all of a large transfer of another channel."""
        large, _ = self.open()
        small, theirs = self.open()
        self.ssh.client_io.full()
        for _ in range(4):
            large.transport.write(bytes(SERVER_WINDOW // 2))
        small.transport.write(b"small")

        write = self.ssh.client_io.write

        def fills(data):
            # A socket buffer that is full after each write.
            write(data)
            self.ssh.client.pauseProducing()

        self.patch(self.ssh.client_io, "write", fills)
        self.ssh.client_io.drained()
        self.ssh.client_io.drained()
        self.ssh.server.dataReceived(self.ssh.client_io.getOutBuffer())
        self.assertEqual(theirs.data, b"small")


class ReceiveTests(ChannelCase):
    def test_order(self):
        """What the server sends over many windows arrives in order."""
        ours, theirs = self.open()
        pieces = [bytes([n % 256]) * (n * 9973 % 70_000) for n in range(300)]
        for piece in pieces:
            theirs.transport.write(piece)
        self.ssh.flush()
        self.assertEqual(ours.data, b"".join(pieces))

    def test_interleaved(self):
        """Data of several channels in one read reaches each in one piece, before what follows it."""
        pairs = [self.open(HalfClient) for _ in range(3)]
        for turn in range(5):
            for _, theirs in pairs:
                theirs.transport.write(b"%d" % turn)
        for _, theirs in pairs:
            theirs.transport.loseWriteConnection()
        self.ssh.flush()
        for ours, _ in pairs:
            self.assertEqual((ours.data, ours.events), (b"01234", ["data", "read end"]))

    def test_paused(self):
        """A reader that is paused costs at most the window, and gets everything in order when it goes on."""
        ours, theirs = self.open()
        ours.transport.pauseProducing()
        data = bytes(range(256)) * (3 * MIN_WINDOW // 256)
        theirs.transport.write(data)
        self.ssh.flush()
        kept = sum(len(piece) for piece in ours.transport._incoming)
        self.assertEqual((ours.data, kept, ours.transport.localWindowLeft), (b"", MIN_WINDOW, 0))
        ours.transport.resumeProducing()
        self.assertEqual(ours.data, b"")  # not from inside the call
        self.ssh.flush()
        self.assertEqual(ours.data, data)

    def test_paused_while_reading(self):
        """A reader that pauses after each piece is given one for each resume, and the window stays shut meanwhile."""
        ours, theirs = self.open()
        received = ours.dataReceived

        def pausing(data):
            ours.transport.pauseProducing()
            received(data)

        ours.dataReceived = pausing
        theirs.transport.write(bytes(2 * MIN_WINDOW))
        turns = 0
        while len(ours.data) < 2 * MIN_WINDOW:
            self.ssh.flush()
            size = len(ours.data)
            self.ssh.flush()
            self.assertEqual(len(ours.data), size)
            ours.transport.resumeProducing()
            turns += 1
        self.assertGreater(turns, 1)

    def test_paused_after_taking(self):
        """What a reader took before it paused is not asked for again until it goes on."""
        ours, theirs = self.open()
        received = ours.dataReceived

        def pausing(data):
            received(data)
            ours.transport.pauseProducing()

        ours.dataReceived = pausing
        theirs.transport.write(bytes(MIN_WINDOW))
        self.ssh.flush()
        self.assertEqual((len(ours.data), ours.transport.localWindowLeft), (MIN_WINDOW, 0))
        ours.transport.resumeProducing()
        self.assertEqual(ours.transport.localWindowLeft, MIN_WINDOW)

    def test_data_between_resume_and_delivery(self):
        """Data that comes when kept data is about to be delivered does not overtake it."""
        ours, theirs = self.open()
        ours.transport.pauseProducing()
        theirs.transport.write(b"first ")
        self.ssh.flush()
        ours.transport.resumeProducing()
        theirs.transport.write(b"second")
        self.ssh.client.dataReceived(self.ssh.server_io.getOutBuffer())
        self.assertEqual(ours.data, b"")
        self.ssh.flush()
        self.assertEqual(ours.data, b"first second")

    def test_paused_by_the_last_data(self):
        """A reader that pauses on its last data is told of the end when it goes on."""
        ours, theirs = self.open(HalfClient)
        received = ours.dataReceived

        def pausing(data):
            received(data)
            ours.transport.pauseProducing()

        ours.dataReceived = pausing
        ours.transport.pauseProducing()
        theirs.transport.write(b"last words")
        theirs.transport.loseWriteConnection()
        self.ssh.flush()
        ours.transport.resumeProducing()
        self.ssh.flush()
        self.assertEqual(ours.events, ["data"])
        ours.transport.resumeProducing()
        self.ssh.flush()
        self.assertEqual(ours.events, ["data", "read end"])

    def test_end_while_paused(self):
        """Data that waits for a paused reader comes before the end of data, and that before the close."""
        ours, theirs = self.open(HalfClient)
        ours.transport.pauseProducing()
        theirs.transport.write(b"last words")
        theirs.transport.loseWriteConnection()
        theirs.transport.loseConnection()
        self.ssh.flush()
        self.assertEqual(ours.events, [])
        self.assertEqual(self.ssh.connection.channels, {})  # the number is free already
        ours.transport.resumeProducing()
        self.ssh.flush()
        self.assertEqual((ours.events, ours.data), (["data", "read end", "lost"], b"last words"))
        self.assertIsInstance(self.reason(ours), ConnectionDone)

    def test_refill(self):
        """The window is refilled as the reader takes data, with few messages."""
        ours, theirs = self.open()
        theirs.transport.write(bytes(4 * MIN_WINDOW))
        self.ssh.flush()
        self.assertEqual(len(ours.data), 4 * MIN_WINDOW)
        adjustments = self.ssh.server.received.count(conch.MSG_CHANNEL_WINDOW_ADJUST)
        self.assertLessEqual(adjustments, 4 * 8)
        self.assertGreater(ours.transport.localWindowLeft, MIN_WINDOW * 3 // 4)

    def test_growth(self):
        """A window that is taken in less than a round trip grows up to its bound; one that is not, does not."""
        for per_second, expected in ((MIN_WINDOW / 8, MIN_WINDOW), (MIN_WINDOW * 40, MAX_WINDOW)):
            ours, theirs = self.open()
            self.ssh.connection.round_trip = 0.1
            for _ in range(60):
                theirs.transport.write(bytes(int(per_second / 10)))
                self.ssh.flush()
                self.ssh.clock.advance(0.1)
            self.assertEqual(ours.transport.localWindowSize, expected)
            self.assertLessEqual(ours.transport.localWindowLeft, expected)

    def test_beyond_the_window(self):
        """A server that sends more than it may, or a larger packet, is not heard any longer."""
        for size in (LOCAL_PACKET + 1, 100):
            ssh = SshInMemory(self.remote)
            opening = streamlocal(ssh.connection, "/s").connect(Factory.forProtocol(Client))
            ssh.flush()
            ours = self.successResultOf(opening)
            if size == 100:
                ours.transport.localWindowLeft = 99
            ssh.server.sendPacket(94, struct.pack(">L", 0) + NS(bytes(size)))
            ssh.flush()
            self.assertIn("beyond its window", str(self.successResultOf(ssh.client.lost)))
            self.assertEqual(ours.data, b"")

    def test_after_the_end(self):
        """Data after the end of data ends the connection."""
        _, theirs = self.open(HalfClient)
        theirs.transport.loseWriteConnection()
        theirs.transport.write(b"more")
        self.ssh.flush()
        self.assertIn("does not keep to the SSH protocol", str(self.successResultOf(self.ssh.client.lost)))

    def test_broken_protocol(self):
        """A protocol that raises loses its own channel, and nobody else's."""
        ours, theirs = self.open()
        other, their_other = self.open()
        ours.dataReceived = lambda data: 1 / 0
        theirs.transport.write(b"hello")
        their_other.transport.write(b"hello")
        self.ssh.flush()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsInstance(self.reason(ours), ConnectionAborted)
        self.assertEqual((other.data, other.reasons), (b"hello", []))

    def test_early(self):
        """What a command prints before its protocol is there waits for it."""

        class Hasty(Script):
            def connectionMade(self):
                self.transport.write(b"hello")
                clock.callLater(0, self.transport.exit, 0)

        clock = self.remote.clock
        self.remote.clock = _Now(clock)
        ours, _ = self.run_command(remote_kind=Hasty)
        self.ssh.flush()
        self.assertEqual((ours.data, ours.events), (b"hello", ["data", "lost"]))


class _Now:
    """A clock that calls at once what should be called soon."""

    def __init__(self, clock):
        self._clock = clock

    def __getattr__(self, name):
        return getattr(self._clock, name)

    def callLater(self, delay, call, *arguments):
        return self._clock.callLater(delay, call, *arguments) if delay else call(*arguments)


class CloseTests(ChannelCase):
    def test_half_closed_by_us(self):
        """After we end our data, the answer still comes; the channel is closed when that has ended too."""
        ours, theirs = self.open(HalfClient, "/half")
        ours.transport.write(b"question")
        ours.transport.loseWriteConnection()
        ours.transport.write(b"never sent")
        self.ssh.flush()
        self.assertEqual((theirs.data, theirs.ended), (b"question", True))
        theirs.transport.write(b"answer")
        self.ssh.flush()
        self.assertEqual((ours.data, ours.reasons), (b"answer", []))
        theirs.transport.loseWriteConnection()
        self.ssh.flush()
        self.assertEqual(ours.events, ["write end", "data", "read end", "lost"])
        self.assertIsInstance(self.reason(ours), ConnectionDone)

    def test_half_closed_by_them(self):
        """After the server's end of data we can still send; our end closes the channel."""
        ours, theirs = self.open(HalfClient, "/half")
        theirs.transport.loseWriteConnection()
        self.ssh.flush()
        self.assertEqual(ours.events, ["read end"])
        ours.transport.write(b"more")
        ours.transport.loseWriteConnection()
        self.ssh.flush()
        self.assertEqual((theirs.data, theirs.ended), (b"more", True))
        self.assertEqual(ours.events, ["read end", "write end", "lost"])

    def test_half_close_waits_for_data(self):
        """The end of data comes after data that waits for the window."""
        ours, theirs = self.open(HalfClient, "/half")
        ours.transport.write(bytes(2 * SERVER_WINDOW))
        ours.transport.loseWriteConnection()
        self.assertEqual(ours.events, [])
        self.ssh.flush()
        self.assertEqual((len(theirs.data), theirs.ended), (2 * SERVER_WINDOW, True))

    def test_not_half_closeable(self):
        """A protocol that knows no half-closed connections has its own closed at the end of data."""
        ours, theirs = self.open()
        theirs.transport.write(b"all")
        theirs.transport.loseWriteConnection()
        self.ssh.flush()
        self.assertEqual((ours.data, ours.events), (b"all", ["data", "lost"]))
        self.assertIsInstance(self.reason(ours), ConnectionDone)

    def test_closed_without_an_end(self):
        """A channel that the server closes before the end of data was cut off."""
        ours, theirs = self.open()
        theirs.transport.loseConnection()
        self.ssh.flush()
        self.assertIsInstance(self.reason(ours), ConnectionLost)

    def test_aborted(self):
        """Aborting closes at once, sends nothing that waits, and delivers nothing that came."""
        ours, theirs = self.open()
        ours.transport.pauseProducing()
        theirs.transport.write(b"unread")
        self.ssh.flush()
        ours.transport.write(bytes(3 * SERVER_WINDOW))
        ours.transport.abortConnection()
        self.assertIsInstance(self.reason(ours), ConnectionAborted)
        self.ssh.flush()
        self.assertEqual((ours.events, theirs.lost), (["lost"], True))
        ours.transport.abortConnection()
        ours.transport.loseConnection()
        ours.transport.loseWriteConnection()
        ours.transport.resumeProducing()
        ours.transport.write(b"x")
        self.ssh.flush()
        self.assertEqual(len(ours.reasons), 1)

    def test_both_close(self):
        """Both sides may close at once."""
        ours, theirs = self.open()
        ours.transport.loseConnection()
        theirs.transport.loseConnection()
        self.ssh.flush()
        self.assertIsInstance(self.reason(ours), ConnectionDone)

    def test_ssh_lost(self):
        """With the SSH connection, every channel is lost, uncleanly, whether its reader is paused or not."""
        pairs = [self.open() for _ in range(3)]
        pairs[1][0].transport.pauseProducing()
        pairs[1][1].transport.write(b"unread")
        self.ssh.flush()
        producer = Producer()
        pairs[2][0].transport.registerProducer(producer, True)
        self.ssh.lose()
        for ours, _ in pairs:
            self.assertIsInstance(self.reason(ours), ConnectionLost)
            ours.transport.write(b"x")
            ours.transport.loseConnection()
        self.assertEqual(producer.calls, ["stop"])

    def test_ssh_lost_after_the_close(self):
        """What a paused reader has not taken of a closed channel is still its own when the SSH connection goes."""
        ours, theirs = self.open()
        ours.transport.pauseProducing()
        theirs.transport.write(b"last words")
        theirs.transport.loseWriteConnection()
        theirs.transport.loseConnection()
        self.ssh.flush()
        self.ssh.lose()
        ours.transport.resumeProducing()
        self.ssh.clock.advance(0)
        self.assertEqual((ours.data, ours.events), (b"last words", ["data", "lost"]))

    def test_stop_producing(self):
        """A consumer that has enough closes the channel."""
        ours, theirs = self.open()
        ours.transport.stopProducing()
        self.ssh.flush()
        self.assertTrue(theirs.lost)
        self.assertIsInstance(self.reason(ours), ConnectionDone)


class CommandTests(ChannelCase):
    def test_success(self):
        """Status 0 is a clean end, after everything the command printed."""
        ours, theirs = self.run_command()
        theirs.transport.write(b"output")
        theirs.transport.exit(0)
        self.ssh.flush()
        self.assertEqual((ours.data, ours.events), (b"output", ["data", "lost"]))
        self.assertIsInstance(self.reason(ours), ConnectionDone)

    def test_failure(self):
        """Another status is a failure that tells the end of standard error."""
        ours, theirs = self.run_command()
        theirs.transport.writeExtended(1, b"x" * 100_000 + b"\nno such file\n")
        theirs.transport.exit(3)
        self.ssh.flush()
        reason = self.reason(ours)
        self.assertIsInstance(reason, CommandFailed)
        self.assertEqual(reason.exit_status, 3)
        self.assertIn("'run' ended with status 3", str(reason))
        self.assertTrue(str(reason).endswith("no such file"))
        self.assertLess(len(str(reason)), STDERR_TAIL + 200)

    def test_much_stderr(self):
        """Standard error does not stop a command that writes a lot of it."""
        ours, theirs = self.run_command()
        theirs.transport.writeExtended(1, bytes(2 * MIN_WINDOW))
        theirs.transport.write(b"done")
        self.ssh.flush()
        theirs.transport.exit(0)
        self.ssh.flush()
        self.assertEqual(ours.data, b"done")

    def test_signal(self):
        """A signal is a failure without a status."""
        ours, theirs = self.run_command()
        theirs.transport.exit_by_signal(b"KILL")
        self.ssh.flush()
        self.assertIn("signal KILL", str(self.reason(ours)))
        self.assertIsNone(self.reason(ours).exit_status)

    def test_no_status(self):
        """An end without a status is a failure."""
        ours, theirs = self.run_command()
        theirs.transport.loseConnection()
        self.ssh.flush()
        self.assertIsInstance(self.reason(ours), CommandFailed)
        self.assertIn("without an exit status", str(self.reason(ours)))

    def test_end_of_output(self):
        """A command that closes its output goes on, and its status is waited for, whatever the protocol knows."""
        for kind in (Client, HalfClient):
            ours, theirs = self.run_command(kind)
            theirs.transport.loseWriteConnection()
            ours.transport.write(b"input")
            self.ssh.flush()
            self.assertEqual((theirs.data, ours.reasons), (b"input", []))
            theirs.transport.exit(7)
            self.ssh.flush()
            self.assertEqual(self.reason(ours).exit_status, 7)

    def test_end_of_input(self):
        """A command sees the end of its input, and its output and status come all the same."""
        ours, theirs = self.run_command(HalfClient, remote_kind=HalfScript)
        ours.transport.write(b"input")
        ours.transport.loseWriteConnection()
        self.ssh.flush()
        self.assertEqual((theirs.data, theirs.ended), (b"input", True))
        theirs.transport.write(b"output")
        theirs.transport.loseWriteConnection()
        self.ssh.flush()
        theirs.transport.exit(0)
        self.ssh.flush()
        self.assertEqual(ours.data, b"output")
        self.assertIsInstance(self.reason(ours), ConnectionDone)

    def test_closed_by_us(self):
        """A command that we end has not failed."""
        ours, _ = self.run_command()
        ours.transport.loseConnection()
        self.ssh.flush()
        self.assertIsInstance(self.reason(ours), ConnectionDone)


class CostTests(ChannelCase):
    def test_idle_channels(self):
        """A thousand open channels that do nothing cost less than 10 KB each (this process holds both ends of them)."""
        before = self.measure(0)
        after = self.measure(1000)
        self.assertLess((after - before) / 1000, 10_000)

    def measure(self, count):
        tracemalloc.start()
        try:
            opened = [streamlocal(self.ssh.connection, "/s").connect(Factory.forProtocol(Client)) for _ in range(count)]
            self.ssh.flush()
            for deferred in opened:
                self.successResultOf(deferred)
            self.assertEqual(len(self.ssh.connection.channels), count)
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    def test_many_opened_and_closed(self):
        """Nothing is left of channels that were opened and closed."""
        for _ in range(200):
            ours, _ = self.open()
            ours.transport.write(b"x")
            ours.transport.loseConnection()
            self.ssh.flush()
        connection = self.ssh.connection
        self.assertEqual([connection.channels, connection.sinks, connection._waiting], [{}, {}, {}])
        self.assertEqual(len(self.ssh.clock.getDelayedCalls()), 1)  # the next rekey

    def test_window_bound(self):
        """The bound of the window can be set."""
        self.assertEqual(Connection(max_window=MIN_WINDOW).max_window, MIN_WINDOW)
