"""The lower half of the SSH transport: bytes and packets, batches and back-pressure, the beginning and the end.

:class:`PacketTransport` moves messages; which may come when, and under which keys, is for
:class:`rda.ssh.transport.ClientTransport` to say.

* Channel data takes a short way: a packet is decrypted into a buffer and a view of it goes to its channel. All data of
  one read reaches each channel in one piece, and all packets that are sent meanwhile leave with one write.
* The socket's back-pressure reaches the channels (:attr:`PacketTransport.may_send`); nothing piles up here.
* Whatever the peer sends that it may not send ends the connection with a reason.

Bytes leave through ``transport.write``, or :func:`rda.sockets.send_now` where that is a socket; the transport may as
well be a channel of another SSH connection (a jump host) or a process (ProxyCommand).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Protocol

from twisted.conch.ssh import transport as conch
from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.connection import MSG_CHANNEL_WINDOW_ADJUST
from twisted.conch.ssh.service import SSHService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rda import __version__
from rda.errors import LinkDown, RdaError
from rda.sockets import READ_SIZE, receive_into, send_now
from rda.ssh.channels import MSG_CHANNEL_DATA, Connection
from rda.ssh.options import Options
from rda.ssh.packets import MAX_RUN_PIECE, MalformedPacket, PacketReader, PacketWriter
from rda.ssh.peer_text import MAX_TEXT, peer_text
from rda.ssh.version import BadVersion, VersionReader

__all__ = ["PacketTransport", "ProtocolError"]

#: Packets in one direction after which new keys are agreed on: sequence numbers must not repeat under one key
#: (RFC 4344, section 3.1), and they wrap at 2**32.
REKEY_PACKETS = 1 << 31

#: Seconds that a closing connection has to deliver its last words: a dead peer would keep it for ever.
CLOSE_SECONDS = 5.0

#: Messages that wait for the end of a key exchange. They are window adjustments, requests and opened channels, no data:
#: a few for each channel. More than this means that something is wrong, and ends the connection.
MAX_BLOCKED = 20_000

#: Bytes that wait for a socket that is full, beyond what it holds. No data is sent to it then, only answers and window
#: adjustments: a server that asks on and on without reading would make us keep its answers for ever.
MAX_UNSENT = 4 << 20

#: Message numbers below are the transport's own (RFC 4250, section 4.1.2).
_FIRST_OF_SERVICES = 50

_DATA_HEAD = struct.Struct(">BLL")
_DATA_TO = struct.Struct(">BL")
_UINT32 = struct.Struct(">L")

#: RFC 4253, section 7.1: what may still be sent between one's own KEXINIT and NEWKEYS.
_ALLOWED_IN_EXCHANGE = (frozenset(range(1, 50)) - {5, 6, 7, 20}) | {conch.MSG_KEXINIT}

#: What parsing a malformed message raises, here and in Conch's services: the peer's fault, not a defect.
_MALFORMED = (struct.error, IndexError, KeyError, ValueError, TypeError)


class ProtocolError(Exception):
    """The peer broke the rules; the code is one of RFC 4253, section 11.1."""

    def __init__(self, message: str, code: int = conch.DISCONNECT_PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = code


@implementer(IPushProducer)
class PacketTransport(conch.SSHClientTransport):
    """The client's side of one SSH connection, as far as it does not know what the messages mean.

    :param clock: for timeouts, periodic rekeying and round trips.
    :ivar ready: fires with the :class:`Connection` when its service has started; fails with an :class:`RdaError` that
        says why it never did. Cancelling it ends the connection.
    :ivar lost: fires with the :class:`RdaError` that says why the connection ended, when it has.
    :ivar connection: the connection service.
    :ivar server_version: the server's identification, e.g. ``SSH-2.0-OpenSSH_10.0``; "" before it came.
    :ivar congested: the socket's buffer is full.
    """

    transport: Any  # an ITransport that is an IConsumer and an IPushProducer too: a socket, a channel, a process
    service: SSHService | None
    _log = Logger()
    ourVersionString = b"SSH-2.0-rda_" + __version__.encode("ascii")

    def __init__(self, clock: IReactorTime, options: Options | None, connection: Connection | None) -> None:
        self.clock = clock
        self._options = options or Options()
        self.connection = connection or Connection()
        self.ready: Deferred[Connection] = Deferred(self._cancelled)
        self.lost: Deferred[RdaError] = Deferred()
        self.server_version = ""
        self.congested = False
        self._unsent = 0  # bytes written while the socket was full
        self._reader = PacketReader()
        self._writer = PacketWriter()
        self._batching = 0
        self._flush_scheduled = False
        self._version = VersionReader()
        self._reason: RdaError | None = None
        self._ended = False  # nothing is parsed or sent any more
        self._is_ready = False
        self._timers: dict[str, IDelayedCall] = {}
        self._held = False  # nothing is parsed while the host key is being verified
        self._blocked: list[tuple[int, bytes]] | None = None  # a list from our KEXINIT to our NEWKEYS

    # -- life

    def connectionMade(self) -> None:
        """Send our version and the first KEXINIT."""
        if self._ended:
            self.transport.loseConnection()
            return
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        receive_into(self.transport, self._reader.room, self._received, READ_SIZE // 2)
        self.transport.registerProducer(self, True)
        seconds = self._options.handshake_seconds
        self._start_timer("handshake", seconds, lambda: self._give_up("took too long to log in"))
        self.transport.write(self.ourVersionString + b"\r\n")
        self.sendKexInit()

    def _loss(self, why: str) -> str:
        said = f"The SSH connection to {self._peer()} was lost: {why}"
        if self.server_version:
            return f"{said}."
        return f"{said}, before any SSH server answered. Does sshd run there, and let this machine in?"

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Tell everybody that waits for something."""
        self._ended = True
        for name in list(self._timers):
            self._stop_timer(name)
        if self._reason is None:
            self._reason = LinkDown(self._loss(_text_of(reason)))
        self._blocked = None
        self._reader.close()
        self._writer.close()
        if self.service is not None:
            service, self.service = self.service, None
            service.serviceStopped()
        if not self._is_ready:
            self._is_ready = True
            self.ready.errback(self._reason)
        self.lost.callback(self._reason)

    def fail(self, reason: RdaError, code: int = conch.DISCONNECT_BY_APPLICATION) -> None:
        """End the connection for a reason that :attr:`ready` and :attr:`lost` then give.

        :param code: what the server is told, of RFC 4253, section 11.1.
        """
        if self._ended:
            return
        if self._reason is None:
            self._reason = reason
        if self.transport is None:
            self._ended = True  # given up before it began
            return
        self.sendDisconnect(code, str(reason).encode("utf-8", "replace")[:MAX_TEXT])

    @property
    def reason(self) -> RdaError:
        """Why the connection is gone, or would be if it were now."""
        return self._reason or LinkDown(f"The SSH connection to {self._peer()} is closed.")

    def sendDisconnect(self, reason: int, desc: bytes) -> None:
        """Send a disconnect message and close; nothing that comes after is looked at."""
        if self._ended:
            return
        self.sendPacket(conch.MSG_DISCONNECT, _UINT32.pack(reason) + NS(desc) + NS(b""))
        self._end()

    def loseConnection(self) -> None:
        """Close the connection in order: the server is told."""
        self.fail(LinkDown(f"The SSH connection to {self._peer()} was closed by rda."))

    def abortConnection(self) -> None:
        """Close the connection at once, without a word."""
        self._ended = True
        abort = getattr(self.transport, "abortConnection", self.transport.loseConnection)
        abort()

    def _end(self) -> None:
        """Stop parsing and sending, and close what we run over once it has taken what was written."""
        self._batching = 0
        if self._writer.pending:
            self.transport.write(bytes(self._writer.take()))
        self._ended = True
        self._start_timer("close", CLOSE_SECONDS, self.abortConnection)
        # A producer that never finishes would keep some transports from closing.
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _start_timer(self, name: str, seconds: float, then: Callable[[], None]) -> None:
        """Call ``then`` in so many seconds; a timer of that name that runs already is stopped."""

        def due() -> None:
            del self._timers[name]
            then()

        self._stop_timer(name)
        self._timers[name] = self.clock.callLater(seconds, due)

    def _stop_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _cancelled(self, ready: Deferred[Connection]) -> None:
        self._is_ready = True
        self.fail(LinkDown("The attempt to connect was given up."))
        ready.errback(CancelledError())

    def give_up(self, reason: RdaError) -> None:
        """End the connection to a peer that would not take a disconnect message either."""
        self._reason = self._reason or reason
        self.abortConnection()

    def _give_up(self, why: str) -> None:
        self.give_up(LinkDown(f"{self._peer()} {why}."))

    def _peer(self) -> str:
        peer: Any = self.transport.getPeer() if self.transport is not None else None
        while hasattr(peer, "address"):
            peer = peer.address
        host = getattr(peer, "host", None) or getattr(peer, "hostname", None)
        if host is None:
            return "the server"
        name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
        return f"[{name}]:{peer.port}" if ":" in name else f"{name}:{peer.port}"

    # -- the socket's back-pressure, as its producer

    @property
    def may_send(self) -> bool:
        """Whether channel data may be sent now: the socket takes more, and no key exchange is under way."""
        return not self.congested and self._blocked is None and not self._ended

    def pauseProducing(self) -> None:
        """The socket's buffer is full: channels keep what they have."""
        self.congested = True

    def resumeProducing(self) -> None:
        """The socket takes more: let the channels that wait go on, each in its turn."""
        self.congested = False
        self._unsent = 0
        self._let_channels_send()

    def stopProducing(self) -> None:
        """The socket is gone; ``connectionLost`` follows."""
        self.congested = True

    def _let_channels_send(self) -> None:
        if self.may_send and self.service is self.connection:
            self._batching += 1
            try:
                self.connection.send_waiting()
            finally:
                self._unbatch()

    # -- sending

    def sendPacket(self, messageType: int, payload: bytes) -> None:
        """Send one message; during a key exchange it waits for the end of that if it has to."""
        if self._ended:
            return
        if self._blocked is not None and messageType not in _ALLOWED_IN_EXCHANGE:
            self._blocked.append((messageType, payload))
            if len(self._blocked) > MAX_BLOCKED:
                self.fail(LinkDown(f"Too much waits for the end of a key exchange with {self._peer()}."))
            return
        self._writer.put(bytes((messageType,)), payload)
        if not self._batching or self._writer.full:
            self.flush()

    def send_soon(self, messageType: int, payload: bytes) -> None:
        """Send a message that need not leave before the end of this turn of the reactor.

        Connections come and go in crowds: what opens, ends and closes their channels then leaves with one write.
        """
        self._batching += 1
        self.sendPacket(messageType, payload)
        self._batching = max(0, self._batching - 1)
        if not self._flush_scheduled and not self._batching:
            self._flush_scheduled = True
            self.clock.callLater(0, self._flush_now)

    def _flush_now(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def send_channel_data(self, recipient: int, data: memoryview, size: int) -> int:
        """Send CHANNEL_DATA messages of at most ``size`` bytes. The channel has looked at its window.

        :returns: how many bytes were sent: less than all when there is no room (:attr:`may_send`).
        """
        position, whole, writer = 0, len(data), self._writer
        head, size = _DATA_TO.pack(MSG_CHANNEL_DATA, recipient), min(size, MAX_RUN_PIECE)
        while position < whole and self.may_send:
            position += writer.put_run(head, data[position:], size)
            if not self._batching or writer.full:
                self.flush()
        self.data_sent()
        return position

    def data_sent(self) -> None:
        """Called when channel data has been sent, or would have been."""

    def data_room(self, size: int) -> memoryview | None:
        """Where to put channel data to send it with :meth:`send_piece`; None when it cannot be sent in this way now.

        :param size: bytes of data that one message may have.
        """
        writer = self._writer
        if not size or self.congested or self._blocked is not None or self._ended or writer.compresses:
            return None
        return writer.piece if size >= MAX_RUN_PIECE else writer.piece[:size]

    def send_piece(self, recipient: int, size: int) -> None:
        """Send the CHANNEL_DATA message whose data is in :meth:`data_room` now."""
        self._writer.put_piece(MSG_CHANNEL_DATA, recipient, size)
        self.flush()
        if size < MAX_RUN_PIECE:  # else more follows at once
            self.data_sent()

    def batch(self) -> _Batch:
        """A context in which packets gather, to leave with one write at its end."""
        return _Batch(self)

    def flush(self) -> None:
        """Hand what has gathered to the socket."""
        if self._writer.pending and not self._ended:
            taken = self._writer.take()
            if self.congested:
                self._unsent += len(taken)
                if self._unsent > MAX_UNSENT:
                    self._give_up("does not read what it asks for")
                    return
            send_now(self.transport, taken)
            if self._writer.octets > self._options.rekey_bytes or self._writer.packets > REKEY_PACKETS:
                self._rekey()

    def _unbatch(self) -> None:
        # _end() sets the count to zero: there is nothing to send any more.
        self._batching = max(0, self._batching - 1)
        if not self._batching:
            self.flush()

    # -- receiving

    def dataReceived(self, data: bytes) -> None:
        """Take what came from the network."""
        if not self._ended:
            self._reader.feed(data)
            self.take()

    def _received(self, size: int) -> None:
        """Take what came from the network, and is in the reader's buffer already."""
        self._reader.received(size)
        if not self._ended:
            self.take()

    def take(self) -> None:
        """Process what the reader has been given."""
        self._batching += 1
        try:
            if not self.gotVersion and not self._read_version():
                return
            self._read_packets()
        except ProtocolError as error:
            self._broken(str(error), error.code)
        finally:
            self._unbatch()

    def _broken(self, what: str, code: int) -> None:
        self.fail(LinkDown(f"{self._peer()} does not keep to the SSH protocol: {what}."), code)

    def _read_version(self) -> bool:
        """Look for the server's version; True when it is there."""
        try:
            found = self._version.feed(self._reader.unread())
        except BadVersion as error:
            raise ProtocolError(str(error), conch.DISCONNECT_PROTOCOL_VERSION_NOT_SUPPORTED) from None
        if found is None:
            return False
        self.otherVersionString, rest = found
        self.server_version = peer_text(self.otherVersionString)
        self.gotVersion = True
        self._reader.feed(rest)
        return True

    def _read_packets(self) -> None:
        """Take all whole packets there are; deliver the channels' data in the order it came, in one piece for each."""
        reader, sinks = self._reader, self.connection.sinks
        touched: list[_Sink] = []
        try:
            while not self._held and not self._ended and reader.next():
                body = reader.body
                if body[0] == MSG_CHANNEL_DATA and len(body) >= 9:
                    _, number, size = _DATA_HEAD.unpack_from(body)
                    sink = sinks.get(number)
                    if sink is not None:
                        if size + 9 > len(body) or not sink.accepts(size):
                            raise ProtocolError("channel data beyond its window")
                        data = reader.run(size, sink.localMaxPacket, sink.localWindowLeft)
                        sink.localWindowLeft -= len(data) - size
                        if sink.gather(data):
                            touched.append(sink)
                        continue
                # Whatever else it is comes after the data before it.
                self._deliver(touched)
                self._dispatch(body[0], bytes(body[1:]))
        except MalformedPacket as error:
            code = conch.DISCONNECT_MAC_ERROR if error.tampered else conch.DISCONNECT_PROTOCOL_ERROR
            raise ProtocolError(str(error), code) from None
        finally:
            self._deliver(touched)
            reader.rewind()
        if reader.octets > self._options.rekey_bytes or reader.packets > REKEY_PACKETS:
            self._rekey()

    @staticmethod
    def _deliver(touched: list[_Sink]) -> None:
        for sink in touched:
            sink.deliver()
        touched.clear()

    def _dispatch(self, number: int, payload: bytes) -> None:
        """Let the right method see one message, if it may come now."""
        self._check_order(number)
        try:
            if number == MSG_CHANNEL_WINDOW_ADJUST and self.service is self.connection:
                self.connection.ssh_CHANNEL_WINDOW_ADJUST(payload)  # ten for each megabyte that is sent
            else:
                self.dispatchMessage(number, payload)
        except ProtocolError:
            raise
        except _MALFORMED as error:
            self._log.debug("malformed message {number}: {error!r}", number=number, error=error)
            raise ProtocolError(f"message {number} is malformed") from None
        except Exception:
            self._log.failure("message {number} could not be processed", number=number)
            raise ProtocolError(f"message {number} could not be processed") from None

    def _check_order(self, number: int) -> None:
        """Raise :class:`ProtocolError` when this message may not come now."""

    def _rekey(self) -> None:
        """Begin to agree on new keys: so much has passed under the present ones."""

    def dispatchMessage(self, messageNum: int, payload: bytes) -> None:
        """Call the method of a message, or tell the server that it is not understood; without a word in the log."""
        method: Callable[[bytes], object] | None = None
        if messageNum < _FIRST_OF_SERVICES:
            method = getattr(self, "ssh_" + conch.messages.get(messageNum, "").removeprefix("MSG_"), None)
        elif self.service is not None:
            self.service.packetReceived(messageNum, payload)
            return
        if method is None:
            self.sendUnimplemented()
        else:
            method(payload)

    def sendUnimplemented(self) -> None:
        """Say that the message being processed is not understood, by its number."""
        self.sendPacket(conch.MSG_UNIMPLEMENTED, _UINT32.pack((self._reader.sequence - 1) & 0xFFFF_FFFF))

    # -- messages that say nothing about keys

    def ssh_DEBUG(self, packet: bytes) -> None:
        """What only the server's developers want to know."""

    def ssh_UNIMPLEMENTED(self, packet: bytes) -> None:
        """The server did not understand something: nothing that rda depends on."""

    def ssh_DISCONNECT(self, packet: bytes) -> None:
        """The server ends the connection, and says why."""
        (code,) = _UINT32.unpack_from(packet)
        text = peer_text(getNS(packet[4:])[0])
        if self._reason is None:
            said = text or f"code {code}"
            self._reason = LinkDown(f"The SSH server at {self._peer()} ended the connection: {said}")
        self._end()


class _Sink(Protocol):
    """Where channel data goes; see :class:`rda.ssh.channels.StreamChannel`."""

    localMaxPacket: int
    localWindowLeft: int

    def accepts(self, size: int) -> bool: ...
    def gather(self, data: memoryview) -> bool: ...
    def deliver(self) -> None: ...


class _Batch:
    """See :meth:`PacketTransport.batch`."""

    def __init__(self, transport: PacketTransport) -> None:
        self._transport = transport

    def __enter__(self) -> None:
        self._transport._batching += 1

    def __exit__(self, *exception: object) -> None:
        self._transport._unbatch()


def _text_of(reason: Failure | None) -> str:
    return reason.getErrorMessage().rstrip(".") if reason is not None else "it was closed"
