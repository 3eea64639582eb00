"""A channel of an SSH connection as a transport: :class:`StreamChannel` behaves as a TCP connection does.

* What is written waits in the channel until the peer's window and the SSH socket have room. Meanwhile a registered
  producer is paused, so the writer is never ahead by more than one of its own writes.
* What the peer may send is its window, and the window is refilled only for what the protocol has taken while it was not
  paused. A paused reader costs at most the window.
* The end of one direction does not end the other (``IHalfCloseableProtocol``, ``loseWriteConnection``).
* Data comes before the end of data, and that before ``connectionLost``.

Incoming data arrives in batches: :meth:`StreamChannel.gather` and :meth:`StreamChannel.deliver` are called by
:class:`rda.ssh.transport.ClientTransport` for each read of the socket, not for each packet.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from twisted.conch.ssh import connection as conch
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    ITransport,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.errors import ChannelRefused
from rda.interfaces import IRoomy, ITakesViews
from rda.ssh.opening import LOCAL_PACKET, OpeningChannel

if TYPE_CHECKING:
    from rda.ssh.channels import Connection

__all__ = ["StreamChannel"]

#: The window is refilled when the reader has taken this part of it: often enough that the peer never waits. A near peer
#: does not wait for half of the window either, and each refill wakes it up.
REFILL_PARTS, NEAR_REFILL_PARTS = 8, 2

#: Bytes of the window that is kept up for a near peer. All of it may be on its way when we are the slower side, and
#: what others ask for waits behind it: half a millisecond, of which 2 MiB would make more than one.
NEAR_WINDOW = 768 << 10

#: Seconds of a round trip within which a peer is near: half of its window in each is 780 MB/s.
NEAR_SECONDS = 0.0005

#: The most bytes handed to a protocol at once when a pause ends.
DELIVERY_SIZE = 256 * 1024

_UINT32 = struct.Struct(">L")
_UINT32_X2 = struct.Struct(">2L")


Buffer = bytes | bytearray | memoryview

#: What is received into when it cannot leave at once; one for all channels, for each is done with it at once.
_aside = memoryview(bytearray(LOCAL_PACKET))


def _lasting(data: Buffer) -> memoryview:
    """A view of data that does not change: of the data itself, if it is immutable."""
    view = memoryview(data)
    return view if isinstance(view.obj, bytes) else memoryview(bytes(view))


@implementer(ITransport, IConsumer, IPushProducer, IRoomy)
class StreamChannel(OpeningChannel):
    """One channel, as the transport of a protocol; parameters as for :class:`OpeningChannel`.

    :ivar disconnecting: :meth:`loseConnection` was called.
    :cvar awaits_exit: the end of both directions is not the end yet: an exit status is to come.
    """

    opened: Deferred[StreamChannel]
    awaits_exit = False
    _log = Logger()

    def __init__(
        self,
        kind: bytes,
        what: str,
        address: IAddress | None,
        request: tuple[bytes, bytes] | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(kind, what, address, request, hint)
        self.disconnecting = False
        self._protocol: IProtocol | None = None
        self._takes_views = False
        # from the peer
        self._paused = False
        self._gathered: list[memoryview] = []
        self._incoming: deque[bytearray] = deque()  # what could not be delivered yet, at most the window
        self._taken = 0  # bytes taken by the protocol that the window was not refilled for
        self._round_start = 0.0
        self._round_bytes = 0
        self._delivery_scheduled = False
        self._eof_received = False
        self._eof_told = False
        self._close_reason: Failure | None = None  # what connectionLost says once everything is delivered
        # to the peer
        self._in_message = False  # what room() gave is a message
        self._outgoing: deque[memoryview] = deque()
        self._producer: Any = None  # an IPushProducer, or an IPullProducer when not _streaming
        self._streaming = True
        self._producer_paused = False
        self._pull_scheduled = False
        self._eof_wanted = False
        self._eof_sent = False

    def connect(self, connection: Connection, extra: bytes) -> Deferred[StreamChannel]:
        """Open the channel; :attr:`opened` is returned."""
        self._asked = connection.transport.clock.seconds()
        connection.open(self, extra)
        return self.opened

    def _take_data(self) -> None:
        self.conn.sinks[self.local_id] = self

    def _opened_as(self, remote: int, window: int, size: int) -> None:
        super()._opened_as(remote, window, size)
        self._round_start = self._opened_at

    def _abandon(self) -> None:
        self._incoming.clear()
        super()._abandon()

    def attach(self, protocol: IProtocol) -> None:
        """Make this the transport of a protocol; what came before is delivered in the next turn of the reactor."""
        self._protocol = protocol
        self._takes_views = ITakesViews.providedBy(protocol)
        protocol.makeConnection(self)
        if self._incoming or self._eof_received or self._close_reason is not None:
            self._schedule_delivery()

    # -- from the peer

    def accepts(self, size: int) -> bool:
        """Take ``size`` bytes off the window, if the peer kept to it."""
        if size > self.localWindowLeft or size > self.localMaxPacket or self._eof_received or self.remoteClosed:
            return False
        self.localWindowLeft -= size
        return True

    def gather(self, data: memoryview) -> bool:
        """Note data until :meth:`deliver`; True when it is the first of the batch."""
        self._gathered.append(data)
        return len(self._gathered) == 1

    def deliver(self) -> None:
        """Hand what was gathered to the protocol, or keep it until that wants it."""
        gathered = self._gathered
        data: Buffer = gathered[0] if len(gathered) == 1 else b"".join(gathered)
        gathered.clear()
        if self._lost or not data:
            return
        if self._paused or self._protocol is None or self._incoming or self._delivery_scheduled:
            self._keep(data)
        else:
            self._give(data)

    def _keep(self, data: Buffer) -> None:
        """Keep data for later, in pieces as they are delivered: many small ones would cost far more."""
        if self._incoming and len(self._incoming[-1]) + len(data) <= DELIVERY_SIZE:
            self._incoming[-1] += data
        else:
            self._incoming.append(bytearray(data))

    def _give(self, data: Buffer) -> None:
        self._taken += len(data)
        self._round_bytes += len(data)
        if not self._takes_views and not isinstance(data, bytes):
            data = bytes(data)
        self._tell(lambda protocol: protocol.dataReceived(data))  # type: ignore[arg-type]
        if not self._paused:
            self._refill()

    def _tell(self, call: Callable[[IProtocol], object]) -> None:
        """Call the protocol; its errors end its own channel, and nothing else."""
        assert self._protocol is not None
        try:
            call(self._protocol)
        except Exception:
            self._log.failure(
                "{protocol} failed; its channel to {what} is closed", protocol=self._protocol, what=self.what
            )
            self.abortConnection()

    def _refill(self) -> None:
        """Let the peer send as much as was taken, once it is worth a message."""
        if self.localClosed or self._eof_received:
            return
        near = self.conn.round_trip is not None and self.conn.round_trip < NEAR_SECONDS
        size = min(self.localWindowSize, NEAR_WINDOW) if near else self.localWindowSize
        more = self._taken - (self.localWindowSize - size)
        if more * (NEAR_REFILL_PARTS if near else REFILL_PARTS) < size:
            return
        self._taken = 0
        self.localWindowSize = size
        if not near:
            more += self._growth()
        self.localWindowLeft += more
        self.conn.transport.sendPacket(conch.MSG_CHANNEL_WINDOW_ADJUST, _UINT32_X2.pack(self.remote_id, more))

    def _growth(self) -> int:
        """How many bytes to add to the window: it doubles when more than half of it was taken in one round trip.

        A reader that keeps up on a path with a long round trip needs it; on a local network, a round trip is over
        before half a window has come.
        """
        round_trip = self.conn.round_trip
        now = self._clock.seconds()
        if not round_trip or now - self._round_start < round_trip:
            return 0
        rounds = (now - self._round_start) / round_trip
        limited = self._round_bytes / rounds > self.localWindowSize / 2
        self._round_start = now
        self._round_bytes = 0
        if not limited or self.localWindowSize >= self.conn.max_window:
            return 0
        growth = min(self.localWindowSize, self.conn.max_window - self.localWindowSize)
        self.localWindowSize += growth
        return growth

    def pauseProducing(self) -> None:
        """The protocol wants no more data: the peer can send what is left of the window, which is kept here."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The protocol wants data again."""
        if not self._paused:
            return
        self._paused = False
        if self._incoming or self._eof_received != self._eof_told or self._close_reason is not None:
            self._schedule_delivery()
        elif self.open:
            self._refill()

    def stopProducing(self) -> None:
        """The protocol wants no more data, ever."""
        self.loseConnection()

    def _schedule_delivery(self) -> None:
        # Not at once: a protocol does not expect data while it is calling its transport.
        if not self._delivery_scheduled:
            self._delivery_scheduled = True
            self._clock.callLater(0, self._deliver_kept)

    def _deliver_kept(self) -> None:
        self._delivery_scheduled = False
        while self._incoming and not self._paused and not self._lost:
            pieces = [self._incoming.popleft()]
            size = len(pieces[0])
            while self._incoming and size + len(self._incoming[0]) <= DELIVERY_SIZE:
                pieces.append(self._incoming.popleft())
                size += len(pieces[-1])
            self._give(b"".join(pieces))
        if not self._paused:
            self._tell_end()

    def _tell_end(self) -> None:
        """Tell the protocol of the end of data and of the connection, once all data has been given to it."""
        if self._incoming or self._lost or self._protocol is None or self._delivery_scheduled:
            return
        if self._eof_received and not self._eof_told:
            self._eof_told = True
            if IHalfCloseableProtocol.providedBy(self._protocol):
                self._tell(lambda protocol: IHalfCloseableProtocol(protocol).readConnectionLost())
            elif not self.awaits_exit:
                self.loseConnection()
            self._close_when_done()
        if self._close_reason is not None and not self._lost:
            self._tell_lost(self._close_reason)

    def _tell_lost(self, reason: Failure) -> None:
        self._lost = True
        self._incoming.clear()
        self._outgoing.clear()
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        protocol = self._protocol
        if protocol is not None:
            try:
                protocol.connectionLost(reason)
            except Exception:
                self._log.failure("{protocol} failed when its channel was closed", protocol=protocol)

    def extReceived(self, dataType: int, data: bytes) -> None:
        """Standard error is taken at once, so that what is chatty does not stop."""
        self._taken += len(data)
        if not self._paused:
            self._refill()

    def eofReceived(self) -> None:
        """The peer sends no more data."""
        if self._eof_received:
            return
        self._eof_received = True
        if not self._paused:
            self._tell_end()

    def closeReceived(self) -> None:
        """The peer has closed the channel; so do we, at once, to give its number back."""
        if self.remoteClosed:
            raise ValueError("a channel is closed twice")
        self.remoteClosed = True
        if not self.localClosed:
            self._send_close()
        self.conn.forget(self)
        self._outgoing.clear()
        if not self.opened.called:
            self._lost = True
            self.opened.errback(ChannelRefused(self._refusal("the SSH server closed it at once", ""), 0))
            return
        if self._close_reason is None:
            self._close_reason = self._why_closed()
        # A paused reader still gets what is left, and then the end: but only data can keep the end from it.
        self._tell_end()

    def _why_closed(self) -> Failure:
        """What connectionLost says when it is the peer that has closed the channel."""
        if self._eof_received or self.disconnecting or self._eof_sent:
            return connectionDone
        return Failure(ConnectionLost(f"{self.what} was closed before its end"))

    def requestReceived(self, requestType: bytes, data: bytes) -> bool:
        """Nothing that a server may ask means anything here."""
        return False

    def connection_gone(self, reason: Exception) -> None:
        """The SSH connection is lost, and the channel with it."""
        self.localClosed = self.remoteClosed = True
        if not self.opened.called:
            self._lost = True
            self.opened.errback(reason)
        elif not self._lost:
            self._tell_lost(self._close_reason or Failure(ConnectionLost(str(reason))))

    # -- to the peer

    def write(self, data: Buffer) -> None:
        """Send data; what cannot be sent yet is kept, and the producer, if there is one, paused.

        :param data: bytes, or a view of a buffer that changes afterwards.
        """
        if not data or self._lost or self._eof_wanted or self.remoteClosed:
            return
        if self.disconnecting and (self._producer is None or self._streaming):
            return  # closing waits for nobody but a pull producer
        if self._outgoing:
            self._outgoing.append(_lasting(data))
            return
        self._send(memoryview(data))
        self._mind_producer()

    def room(self) -> memoryview:
        """See :class:`IRoomy`: the next message itself, if it can leave at once."""
        room = None
        if not (self._outgoing or self._eof_wanted or self.disconnecting or self.remoteClosed or self._lost):
            room = self.conn.transport.data_room(min(self.remoteWindowLeft, self.remoteMaxPacket))
        self._in_message = room is not None
        return _aside if room is None else room

    def filled(self, size: int) -> None:
        """See :class:`IRoomy`."""
        if self._in_message:
            self.remoteWindowLeft -= size
            transport = self.conn.transport
            transport.send_piece(self.remote_id, size)
            if transport.congested:
                self._mind_producer()
        else:
            self.write(_aside[:size])

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send several pieces of data."""
        self.write(b"".join(data))

    def _send(self, data: memoryview) -> None:
        """Send as much as the window and the transport allow, and keep the rest in front of what is kept already."""
        sent = self.conn.transport.send_channel_data(
            self.remote_id, data[: self.remoteWindowLeft], self.remoteMaxPacket
        )
        self.remoteWindowLeft -= sent
        if sent < len(data):
            self._outgoing.appendleft(_lasting(data[sent:]))

    def _mind_producer(self) -> None:
        """Pause or resume the producer, and remember to come back when it is the transport that is full."""
        transport = self.conn.transport
        blocked = bool(self._outgoing) or not transport.may_send
        if blocked and not transport.may_send:
            self.conn.wait_to_send(self)
        if self._producer is None:
            return
        if not self._streaming:
            if not blocked and not self._pull_scheduled:
                self._pull_scheduled = True
                self._clock.callLater(0, self._pull)
        elif blocked and not self._producer_paused:
            self._producer_paused = True
            self._producer.pauseProducing()
        elif not blocked and self._producer_paused:
            self._producer_paused = False
            self._producer.resumeProducing()

    def _pull(self) -> None:
        """Ask a pull producer for its next piece: one for each turn of the reactor, while there is room."""
        self._pull_scheduled = False
        if self._producer is None or self._streaming:
            return
        if self._outgoing or not self.conn.transport.may_send:
            self._mind_producer()  # a key exchange has begun meanwhile: come back after it
        else:
            self._producer.resumeProducing()

    def pump(self) -> None:
        """Go on sending: there is room in the window or in the transport."""
        if self.localClosed or not self.open:
            return
        with self.conn.transport.batch():
            while self._outgoing and self.remoteWindowLeft and self.conn.transport.may_send:
                self._send(self._outgoing.popleft())
        if not self._outgoing:
            self._finish_writing()
        if not self.localClosed:
            self._mind_producer()

    def addWindowBytes(self, data: int) -> None:
        """The peer takes so many bytes more."""
        self.remoteWindowLeft += data
        if self.remoteWindowLeft > 0xFFFF_FFFF:
            raise ValueError("a window of more than 2**32 - 1 bytes")
        if self._outgoing or self._producer_paused:
            self.pump()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let a producer write here, paused and resumed as there is room."""
        if self._producer is not None:
            raise RuntimeError(f"{self.what} already has the producer {self._producer!r}")
        if self._lost or self.disconnecting:
            producer.stopProducing()
            return
        self._producer = producer
        self._streaming = streaming
        self._producer_paused = False
        self._mind_producer()

    def unregisterProducer(self) -> None:
        """The producer has written everything."""
        self._producer = None
        self._producer_paused = False
        if not self._outgoing and self.open and not self.localClosed:
            self._finish_writing()

    def loseWriteConnection(self) -> None:
        """Send the end of data after what was written; the other direction goes on."""
        if self._eof_wanted or self._lost:
            return
        self._eof_wanted = True
        if not self._outgoing:
            self._finish_writing()

    def loseConnection(self, _reason: object = None) -> None:
        """Close the channel after what was written (and, with a pull producer, after what that still has)."""
        if self.disconnecting or self._lost:
            return
        self.disconnecting = True
        if not self._outgoing:
            self._finish_writing()

    def abortConnection(self) -> None:
        """Close the channel now; what was not sent yet is not sent, and what came is not delivered."""
        if self._lost:
            return
        self.disconnecting = True
        self._outgoing.clear()
        self._incoming.clear()
        if not self.localClosed:
            self._send_close()
        self._tell_lost(Failure(ConnectionAborted()))

    def _finish_writing(self) -> None:
        """Everything written was sent: send the end that was asked for."""
        if self.localClosed or not self.open:
            return
        if self.disconnecting and (self._producer is None or self._streaming):
            self._send_close()
        elif self._eof_wanted and not self._eof_sent:
            self._eof_sent = True
            self.conn.transport.send_soon(conch.MSG_CHANNEL_EOF, _UINT32.pack(self.remote_id))
            if self._protocol is not None and IHalfCloseableProtocol.providedBy(self._protocol):
                self._tell(lambda protocol: IHalfCloseableProtocol(protocol).writeConnectionLost())
            self._close_when_done()

    def _close_when_done(self) -> None:
        """Both directions have ended: nothing can happen any more. (A command still has its exit status to tell.)"""
        if self._eof_sent and self._eof_told and not self.awaits_exit and not self.localClosed:
            self._send_close()
