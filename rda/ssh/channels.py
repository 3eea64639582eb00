"""The connection service (RFC 4254), and the endpoints that open its channels.

``endpoint.connect(factory)`` opens one channel; the protocol's transport is a :class:`rda.ssh.stream.StreamChannel`.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.conch.ssh import connection as conch
from twisted.conch.ssh.common import NS, getNS
from twisted.internet.address import HostnameAddress, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import NoProtocol
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.logger import Logger
from zope.interface import implementer

from rda.errors import ChannelRefused, LinkDown
from rda.interfaces import IRemoteListener
from rda.ssh.command_channel import CommandChannel
from rda.ssh.peer_text import peer_text
from rda.ssh.stream import StreamChannel

if TYPE_CHECKING:
    from rda.ssh.transport import ClientTransport

__all__ = [
    "MSG_CHANNEL_DATA",
    "ChannelEndpoint",
    "Connection",
    "RemoteListener",
    "StreamChannel",
    "command",
    "direct_tcp",
    "streamlocal",
    "subsystem",
]

MSG_CHANNEL_DATA = 94

#: Bytes that a channel's window may grow to, when the measured round trip shows that it is the window that slows the
#: peer down. It is also what a stalled reader can cost. Windows of 16 MiB were slower on a local network (they defeat
#: the processor's cache).
MAX_WINDOW = 4 << 20

#: Questions to the server that wait for an answer (pings mostly); more would mean that nobody looks at the answers.
MAX_QUESTIONS = 16

#: Sockets of the remote host that one connection listens on: each exposed port is one.
MAX_LISTENERS = 64

#: Channels that the server has opened to us (connections to those sockets) at a time; more are refused.
MAX_ACCEPTED = 256

#: Channels that rda has given up or closed, and that the server still has to answer for. A server that never does would
#: make us remember them for ever.
MAX_LEFTOVER = 4096

_FORWARDED = b"forwarded-streamlocal@openssh.com"

_UINT32 = struct.Struct(">L")
_UINT32_X2 = struct.Struct(">2L")
_UINT32_X3 = struct.Struct(">3L")
_UINT32_X4 = struct.Struct(">4L")


class Connection(conch.SSHConnection):
    """The connection service: it opens channels, and hands messages to them.

    What Conch's own lacks: it looks at every number that the peer sends, writes no line per channel, and remembers
    which channels wait to send.

    :param max_window: bytes that the window of a channel may grow to.
    :ivar sinks: channels that take data, by our number; the transport's short way.
    :ivar closed: the login is not done yet, or the SSH connection is gone.
    :ivar round_trip: seconds of the fastest answer seen so far, None before any: what a round trip is without queues.
    """

    transport: ClientTransport
    channels: dict[int, StreamChannel]
    _log = Logger()

    def __init__(self, max_window: int = MAX_WINDOW) -> None:
        super().__init__()
        self.max_window = max_window
        self.sinks: dict[int, StreamChannel] = {}
        self.round_trip: float | None = None
        self._waiting: dict[StreamChannel, None] = {}
        self._questions: deque[tuple[Deferred[tuple[bool, float]], float]] = deque()
        self._listeners: dict[bytes, RemoteListener] = {}
        self.closed = True  # until it is started

    # -- life

    def serviceStarted(self) -> None:
        """The login is done."""
        self.closed = False

    def serviceStopped(self) -> None:
        """The SSH connection is gone: so is every channel."""
        self.closed = True
        reason = self.transport.reason
        channels, self.channels = self.channels, {}
        self.sinks.clear()
        self._waiting.clear()
        for channel in channels.values():
            channel.connection_gone(reason)
        listeners, self._listeners = self._listeners, {}
        for listener in listeners.values():
            listener.over = True
        while self._questions:
            asked = self._questions.popleft()[0]
            if not asked.called:
                asked.errback(reason)

    def ping(self) -> Deferred[float]:
        """Ask for a sign of life; see :meth:`rda.ssh.transport.ClientTransport.ping`."""
        return self._ask(NS(b"keepalive@openssh.com") + b"\1").addCallback(lambda answer: answer[1])

    def _ask(self, request: bytes) -> Deferred[tuple[bool, float]]:
        """Make a global request (RFC 4254, section 4); fires with whether it was granted, and the seconds it took."""
        if self.closed or self.transport is None:
            return fail(LinkDown("The SSH connection is closed."))
        if len(self._questions) >= MAX_QUESTIONS:
            return fail(LinkDown("The SSH server does not answer."))
        answered: Deferred[tuple[bool, float]] = Deferred()
        self._questions.append((answered, self.transport.clock.seconds()))
        self.transport.sendPacket(conch.MSG_GLOBAL_REQUEST, request)
        return answered

    def _answered(self, granted: bool) -> None:
        # Answers come in the order of the questions (RFC 4254, section 4), and an IndexError here is the peer's fault.
        answered, asked = self._questions.popleft()
        seconds = self.transport.clock.seconds() - asked
        self.note_round_trip(seconds)
        if not answered.called:
            answered.callback((granted, seconds))

    def ssh_REQUEST_SUCCESS(self, packet: bytes) -> None:
        """The oldest question is answered with yes."""
        self._answered(True)

    def ssh_REQUEST_FAILURE(self, packet: bytes) -> None:
        """The oldest question is answered with no; of a ping, that is an answer too."""
        self._answered(False)

    def listen(self, path: str, factory: IProtocolFactory) -> Deferred[IRemoteListener]:
        """Listen on a UNIX-domain socket of the remote host (OpenSSH's PROTOCOL, section 2.4).

        :param path: absolute, and nothing is there yet.
        :param factory: makes the protocol of each connection; None from it refuses that connection.
        :returns: fails with :class:`ChannelRefused` when the server does not do it. The listener ends with the SSH
            connection.
        """
        if len(self._listeners) >= MAX_LISTENERS:
            return fail(LinkDown(f"More than {MAX_LISTENERS} sockets of the remote host are listened on."))
        name = path.encode()
        listener = RemoteListener(self, name, factory)
        self._listeners[name] = listener  # connections may come before the answer is read

        def answered(answer: tuple[bool, float]) -> IRemoteListener:
            if not answer[0]:
                self._listeners.pop(name, None)
                raise ChannelRefused(
                    f"The SSH server does not listen on the socket {path} for us. Its AllowStreamLocalForwarding or "
                    "DisableForwarding may forbid it.",
                    conch.OPEN_ADMINISTRATIVELY_PROHIBITED,
                )
            return listener

        return self._ask(NS(b"streamlocal-forward@openssh.com") + b"\1" + NS(name)).addCallback(answered)

    def stop_listening(self, listener: RemoteListener) -> Deferred[None]:
        """End a listener; its connections live on. Fires when the server has said so, or is gone."""
        if self._listeners.pop(listener.name, None) is None:
            return succeed(None)
        listener.over = True
        request = NS(b"cancel-streamlocal-forward@openssh.com") + b"\1" + NS(listener.name)
        return self._ask(request).addBoth(lambda _: None)

    def note_round_trip(self, seconds: float) -> None:
        """Remember how long an answer took, if it is the fastest so far."""
        if self.round_trip is None or seconds < self.round_trip:
            self.round_trip = seconds

    # -- sending

    def open(self, channel: StreamChannel, extra: bytes) -> None:
        """Ask the server for a channel."""
        self._check_leftovers()
        self._number(channel)
        head = _UINT32_X3.pack(channel.local_id, channel.localWindowSize, channel.localMaxPacket)
        self.transport.send_soon(conch.MSG_CHANNEL_OPEN, NS(channel.name) + head + extra)

    def _check_leftovers(self) -> None:
        """End the connection when the server forgets about its channels."""
        if len(self.channels) > MAX_LEFTOVER and sum(c.given_up for c in self.channels.values()) > MAX_LEFTOVER:
            self.transport.fail(LinkDown(f"The SSH server leaves {MAX_LEFTOVER} channels open that rda has closed."))

    def _number(self, channel: StreamChannel) -> None:
        """Give a channel our number of it."""
        while self.localChannelID in self.channels:
            self.localChannelID = (self.localChannelID + 1) & 0xFFFF_FFFF
        channel.local_id = self.localChannelID
        self.localChannelID = (self.localChannelID + 1) & 0xFFFF_FFFF
        channel.conn = self
        self.channels[channel.local_id] = channel

    def wait_to_send(self, channel: StreamChannel) -> None:
        """Call the channel's ``pump`` when the transport may send again."""
        self._waiting[channel] = None

    def send_waiting(self) -> None:
        """Let waiting channels send, each in its turn, until the transport is full again.

        A channel that is stopped by the transport, and not by its own window, comes back at the end of the queue.
        """
        for _ in range(len(self._waiting)):
            if not self.transport.may_send or not self._waiting:
                return
            channel = next(iter(self._waiting))
            del self._waiting[channel]
            channel.pump()

    def forget(self, channel: StreamChannel) -> None:
        """Both sides have closed the channel: its number is free."""
        self.channels.pop(channel.local_id, None)
        self.sinks.pop(channel.local_id, None)
        self._waiting.pop(channel, None)

    # -- what the server sends; a KeyError is a message for a channel that is not there, which ends the connection

    def packetReceived(self, messageNum: int, packet: bytes) -> None:
        """Hand one message to its method, without a log line for it."""
        name = self.protocolMessages.get(messageNum, "")
        method = getattr(self, "ssh_" + name.removeprefix("MSG_"), None)
        if method is None:
            self.transport.sendUnimplemented()
        else:
            method(packet)

    def ssh_GLOBAL_REQUEST(self, packet: bytes) -> None:
        """Nothing that a server may ask of a client is for us (``hostkeys-00@openssh.com``, keepalives)."""
        _, rest = getNS(packet)
        if rest[0]:
            self.transport.sendPacket(conch.MSG_REQUEST_FAILURE, b"")

    def ssh_CHANNEL_OPEN(self, packet: bytes) -> None:
        """The server opens a channel to us: only for a socket that it was asked to listen on."""
        kind, rest = getNS(packet)
        sender, window, size = _UINT32_X3.unpack_from(rest)
        code = conch.OPEN_ADMINISTRATIVELY_PROHIBITED
        if kind == _FORWARDED and size:
            path, _ = getNS(rest[12:])
            if sum(channel.name == _FORWARDED for channel in self.channels.values()) >= MAX_ACCEPTED:
                code = conch.OPEN_RESOURCE_SHORTAGE
            elif self._accept(path, (sender, window, size)):
                return
        refusal = _UINT32_X2.pack(sender, code) + NS(b"not asked for, or too many") + NS(b"")
        self.transport.sendPacket(conch.MSG_CHANNEL_OPEN_FAILURE, refusal)

    def _accept(self, path: bytes, remote: tuple[int, int, int]) -> bool:
        """Confirm a connection to a socket that is listened on, and make its channel the transport of a protocol."""
        listener = self._listeners.get(path)
        protocol = None if listener is None else listener.factory.buildProtocol(listener.getHost())
        if protocol is None:
            return False
        shown = path.decode("utf-8", "replace")
        channel = StreamChannel(_FORWARDED, f"a connection to {shown}", UNIXAddress(path))
        self._number(channel)
        head = _UINT32_X4.pack(remote[0], channel.local_id, channel.localWindowSize, channel.localMaxPacket)
        self.transport.sendPacket(conch.MSG_CHANNEL_OPEN_CONFIRMATION, head)
        channel.accepted(*remote)
        try:
            channel.attach(protocol)
        except Exception:
            self._log.failure("a connection to {path} could not be taken", path=shown)
            channel.abortConnection()
        return True

    def ssh_CHANNEL_OPEN_CONFIRMATION(self, packet: bytes) -> None:
        """A channel is open."""
        number, remote, window, size = _UINT32_X4.unpack_from(packet)
        channel = self._opening(number)
        if not size:
            raise ValueError("packets of no bytes")
        channel.confirmed(remote, window, size)

    def ssh_CHANNEL_OPEN_FAILURE(self, packet: bytes) -> None:
        """A channel is refused."""
        number, code = _UINT32_X2.unpack_from(packet)
        text, _ = getNS(packet[8:])
        channel = self._opening(number)
        del self.channels[number]
        channel.refused(code, peer_text(text))

    def _opening(self, number: int) -> StreamChannel:
        channel = self.channels[number]
        if channel.open:
            raise ValueError("a channel is opened twice")
        return channel

    def _opened(self, packet: bytes) -> StreamChannel:
        (number,) = _UINT32.unpack_from(packet)
        channel = self.channels[number]
        if not channel.open:
            raise ValueError("a message for a channel that is not open yet")
        return channel

    def ssh_CHANNEL_WINDOW_ADJUST(self, packet: bytes) -> None:
        """The server takes more data."""
        _, more = _UINT32_X2.unpack_from(packet)
        self._opened(packet).addWindowBytes(more)

    def ssh_CHANNEL_DATA(self, packet: bytes) -> None:
        """Data that did not go the short way: for a channel that has no sink, or does not exist."""
        channel = self._opened(packet)
        data, _ = getNS(packet[4:])
        if not channel.accepts(len(data)):
            raise ValueError("channel data beyond its window")
        if channel.gather(memoryview(data)):
            channel.deliver()

    def ssh_CHANNEL_EXTENDED_DATA(self, packet: bytes) -> None:
        """A command's standard error."""
        channel = self._opened(packet)
        (kind,) = _UINT32.unpack_from(packet, 4)
        data, _ = getNS(packet[8:])
        if not channel.accepts(len(data)):
            raise ValueError("channel data beyond its window")
        channel.extReceived(kind, data)

    def ssh_CHANNEL_EOF(self, packet: bytes) -> None:
        """The server sends no more data on a channel."""
        self._opened(packet).eofReceived()

    def ssh_CHANNEL_CLOSE(self, packet: bytes) -> None:
        """The server closes a channel."""
        self._opened(packet).closeReceived()

    def ssh_CHANNEL_REQUEST(self, packet: bytes) -> None:
        """The server tells something about a channel (exit statuses), or asks whether we are alive."""
        channel = self._opened(packet)
        kind, rest = getNS(packet[4:])
        known = channel.requestReceived(kind, rest[1:])
        if rest[0] and not channel.localClosed:
            answer = conch.MSG_CHANNEL_SUCCESS if known else conch.MSG_CHANNEL_FAILURE
            self.transport.sendPacket(answer, _UINT32.pack(channel.remote_id))

    def ssh_CHANNEL_SUCCESS(self, packet: bytes) -> None:
        """What was asked of a channel (its command or subsystem) is done."""
        self._opened(packet).request_answered(True)

    def ssh_CHANNEL_FAILURE(self, packet: bytes) -> None:
        """What was asked of a channel is refused."""
        self._opened(packet).request_answered(False)


@implementer(IRemoteListener)
class RemoteListener:
    """A socket of the remote host that is listened on.

    :ivar name: its path.
    :ivar over: it has ended, by :meth:`stopListening` or with the SSH connection.
    """

    def __init__(self, connection: Connection, name: bytes, factory: IProtocolFactory) -> None:
        self._connection = connection
        self.name = name
        self.factory = factory
        self.over = False

    def getHost(self) -> IAddress:
        """Where it is, on the remote host."""
        return UNIXAddress(self.name)

    def stopListening(self) -> Deferred[None]:
        """Accept no more connections; those that there are live on."""
        return self._connection.stop_listening(self)


@implementer(IStreamClientEndpoint)
class ChannelEndpoint:
    """Opens one channel for each ``connect``.

    :param make: makes the channel.
    :param extra: what the channel's type adds to the open message.
    """

    def __init__(self, connection: Connection, make: Callable[[], StreamChannel], extra: bytes = b"") -> None:
        self._connection = connection
        self._make = make
        self._extra = extra

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Open the channel.

        :returns: fires with the protocol; fails with :class:`ChannelRefused`, or :class:`LinkDown` when the SSH
            connection is lost. Cancelling it closes the channel as soon as the server has opened it.
        """
        if self._connection.closed:
            return fail(LinkDown("The SSH connection is closed."))
        channel = self._make()

        def attach(channel: StreamChannel) -> IProtocol:
            try:
                protocol = protocolFactory.buildProtocol(channel.getPeer())
                if protocol is None:
                    raise NoProtocol
                channel.attach(protocol)
            except Exception:
                channel.abortConnection()
                raise
            return protocol

        opened = channel.connect(self._connection, self._extra)
        return opened.addCallback(attach)


def streamlocal(connection: Connection, path: str) -> ChannelEndpoint:
    """A UNIX-domain socket of the remote host (OpenSSH's PROTOCOL, section 2.4).

    :param path: absolute.
    """
    hint = (
        "A socket that does not exist, one that this user may not open and a server with "
        "AllowStreamLocalForwarding no all look the same from here."
    )

    def make() -> StreamChannel:
        kind = b"direct-streamlocal@openssh.com"
        return StreamChannel(kind, f"the socket {path} on the remote host", UNIXAddress(path), hint=hint)

    return ChannelEndpoint(connection, make, NS(path.encode()) + NS(b"") + _UINT32.pack(0))


def direct_tcp(connection: Connection, host: str, port: int) -> ChannelEndpoint:
    """A TCP port as seen from the remote host (RFC 4254, section 7.2).

    :param host: a name, or an IPv4 or IPv6 address without brackets.
    """
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    hint = "Either nothing listens there, or the server's AllowTcpForwarding or PermitOpen forbids it."

    def make() -> StreamChannel:
        address = HostnameAddress(host.encode(), port)
        return StreamChannel(b"direct-tcpip", f"{shown} from the remote host", address, hint=hint)

    # The originator is informational: it is this program, and no port of it.
    origin = NS(b"127.0.0.1") + _UINT32.pack(0)
    return ChannelEndpoint(connection, make, NS(host.encode()) + _UINT32.pack(port) + origin)


def command(connection: Connection, command: bytes) -> ChannelEndpoint:
    """A command run by the remote user's shell (RFC 4254, section 6.5); the transport is its stdin and stdout.

    ``connectionLost`` gets ``ConnectionDone`` for exit status 0, else :class:`~rda.errors.CommandFailed` with the end
    of stderr.
    """
    hint = "The account may be restricted to one command, or the server's MaxSessions be reached."
    return ChannelEndpoint(connection, lambda: CommandChannel(command, hint))


def subsystem(connection: Connection, name: bytes) -> ChannelEndpoint:
    """A subsystem of the server (RFC 4254, section 6.5), e.g. ``b"sftp"``."""
    what = f"the subsystem {name.decode('ascii', 'replace')}"
    hint = "It may be switched off in the server's configuration, or the server's MaxSessions be reached."

    def make() -> StreamChannel:
        return StreamChannel(b"session", what, None, (b"subsystem", NS(name)), hint)

    return ChannelEndpoint(connection, make)
