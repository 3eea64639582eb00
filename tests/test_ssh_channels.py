"""rda.ssh.channels: opening and closing channels, and commands."""

import struct

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
    IPushProducer,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import Factory
from twisted.logger import LogLevel, globalLogPublisher
from zope.interface.verify import verifyObject

from rda.errors import ChannelRefused, CommandFailed, LinkDown
from rda.ssh.channels import MAX_LISTENERS, command, direct_tcp, streamlocal, subsystem
from rda.ssh.command_channel import STDERR_TAIL
from rda.ssh.opening import MIN_WINDOW
from rda.ssh.transport import ClientTransport
from tests.channel_case import ChannelCase, Client, HalfClient, HalfScript, Producer, Script
from tests.ssh_server import SERVER_WINDOW, ServerChannel, TrustAll, password_login


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
