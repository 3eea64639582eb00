"""One accepted connection joined to one channel: bytes both ways, each direction ending on its own.

Flow control is each transport's registered producer: while one side's buffer is full, the other side is not read.
Before there is somewhere to send it to, what comes first from the accepted connection (:data:`MAX_EARLY`) is kept, and
nothing more is read: a small request leaves as soon as there is a way, and a client that hangs up is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.errors import ChannelRefused, RdaError
from rda.flow import Flow
from rda.interfaces import IRoomy, ITakesViews
from rda.sockets import TURN_SIZE, receive_into, send_now, widen

__all__ = ["LINGER_SECONDS", "Splice"]

#: How long what a vanished client has sent is still flushed to the channel, seconds.
LINGER_SECONDS = 30.0

#: Seconds that a channel to a container that has just started has to stay open before the client's first byte is sent:
#: the daemon's proxy accepts before the program listens, and closes at once when it finds nobody.
SETTLE_SECONDS = 0.03

#: Seconds between two attempts to find the program listening.
AGAIN_SECONDS = 0.05


#: Bytes of an accepted connection after which no more is read while it has nowhere to go; one read may go beyond.
MAX_EARLY = 4096


@implementer(IHalfCloseableProtocol, ITakesViews)
class _Far(Protocol):
    """The channel's end.

    :param patient: do not take the channel for the container's before it has stayed open, or brought a byte.
    """

    def __init__(self, splice: Splice, clock: IReactorTime, patient: bool) -> None:
        self._splice = splice
        self._clock = clock
        self._patient = patient
        self._settling: IDelayedCall | None = None

    def connectionMade(self) -> None:
        if self._patient:
            self._settling = self._clock.callLater(SETTLE_SECONDS, self._settle)
            self._splice.settling = self
        else:
            self._settle()

    def _settle(self) -> None:
        if self._settling is not None and self._settling.active():
            self._settling.cancel()
        self._settling = None
        self._splice.settling = None
        assert self.transport is not None
        self._splice.far_made(self.transport)

    def give_up(self) -> None:
        """The client left before the channel had settled."""
        assert self._settling is not None
        assert self.transport is not None
        self._settling.cancel()
        transport: Any = self.transport
        transport.abortConnection()

    def dataReceived(self, data: bytes | memoryview) -> None:
        if self._settling is not None:
            self._settle()
        self._splice.far_data(data)

    def readConnectionLost(self) -> None:
        if self._settling is None:
            self._splice.far_ended()
        elif self.transport is not None:
            self.transport.loseConnection()  # nobody was there: connectionLost says so

    def writeConnectionLost(self) -> None:
        """The end of our input is on its way; there is nothing more to do."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._settling is None:
            self._splice.far_lost(reason)
            return
        if self._settling.active():
            self._settling.cancel()
        self._settling = None
        self._splice.settling = None
        self._splice.nobody_there()


@implementer(IHalfCloseableProtocol)
class Splice(Protocol):
    """The accepted end. Held until :meth:`join` says where it leads.

    :param made: called with this once the connection is there.
    :param ended: called with this once, when the connection is over.
    :ivar bytes_in: from the client to the channel, so far; ``bytes_out``, the other way.
    :ivar refusal: why the SSH server has not let it through, or "".
    """

    _log = Logger()
    refusal = ""

    def __init__(
        self, clock: IReactorTime, made: Callable[[Splice], object], ended: Callable[[Splice], object]
    ) -> None:
        self._clock = clock
        self._made = made
        self._ended = ended
        self._far: Any = None
        self._connecting: Deferred[Any] | None = None
        self._early = b""
        self._near_half_closed = self._far_half_closed = False
        self._near_over = self._far_over = False
        self._cut: IDelayedCall | None = None
        self._again: IDelayedCall | None = None
        self.settling: _Far | None = None
        self._endpoint: IStreamClientEndpoint | None = None
        self._until = 0.0
        self.bytes_in = 0
        self.bytes_out = 0

    # What the forward asks for.

    @property
    def joined(self) -> bool:
        """Whether this connection has somewhere to lead to."""
        return self._endpoint is not None

    def join(self, endpoint: IStreamClientEndpoint, until: float = 0.0) -> None:
        """Connect to where the accepted connection leads, and let the bytes flow.

        :param until: by the clock: until then, a channel that closes before anything was sent over it is taken for a
            program that does not listen yet, and opened again.
        """
        self._endpoint, self._until = endpoint, until
        self._connect(endpoint)

    def _connect(self, endpoint: IStreamClientEndpoint) -> None:
        self._again = None
        patient = self._clock.seconds() < self._until
        connecting = endpoint.connect(Factory.forProtocol(lambda: _Far(self, self._clock, patient)))
        if self._far is None:
            self._connecting = connecting
        connecting.addErrback(self._not_joined)

    def nobody_there(self) -> None:
        """The channel closed at once: the program may only be about to listen."""
        self._connecting = None
        if self._near_over:
            return
        assert self._endpoint is not None
        if self._clock.seconds() < self._until:
            self._again = self._clock.callLater(AGAIN_SECONDS, self._connect, self._endpoint)
        else:
            self.close()

    def abort(self) -> None:
        """End both sides at once, with a reset."""
        self._stop_connecting()
        if self._far is not None and not self._far_over:
            self._far.abortConnection()
        if not self._near_over:
            self._abort_near()

    def _stop_connecting(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self.settling is not None:
            self.settling.give_up()
        if self._connecting is not None:
            connecting, self._connecting = self._connecting, None
            connecting.cancel()

    def close(self) -> None:
        """End a connection that leads nowhere, as a proxy does that finds nobody behind it."""
        assert self.transport is not None
        self.transport.loseConnection()

    # The accepted side.

    def connectionMade(self) -> None:
        """Somebody has connected."""
        self._made(self)

    def dataReceived(self, data: bytes) -> None:
        """Pass on what the client sent."""
        self.bytes_in += len(data)
        if self._far is not None:
            self._far.write(data)
            return
        self._early += data
        if len(self._early) >= MAX_EARLY:
            transport: Any = self.transport
            transport.pauseProducing()

    def _filled(self, size: int) -> None:
        """What the client sent has been received into the channel already."""
        self.bytes_in += size
        self._far.filled(size)

    def readConnectionLost(self) -> None:
        """The client has sent all: end the channel's input behind it."""
        self._near_half_closed = True
        if self._far is None:
            return  # it is told when there is somebody to tell
        if self._far_over:
            self._lose_near()
            return
        self._far.unregisterProducer()
        self._far.loseWriteConnection()
        self._close_if_both_ended()

    def writeConnectionLost(self) -> None:
        """The client has been told of the end; what it still sends is passed on."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client is gone: let what it sent before a proper end arrive, and drop the rest."""
        self._near_over = True
        self._stop_connecting()
        if self._far is not None and not self._far_over:
            self._far.unregisterProducer()
            if self._near_half_closed or reason.check(ConnectionDone):
                self._far.loseConnection()
                self._cut = self._clock.callLater(LINGER_SECONDS, self._far.abortConnection)
            else:
                self._far.abortConnection()
        self._ended(self)

    # The channel's side.

    def far_made(self, far: Any) -> None:
        """The channel is open: join the two."""
        self._far, self._connecting = far, None
        near: Any = self.transport
        if self._near_over:
            far.abortConnection()
            return
        widen(near)
        if IRoomy.providedBy(far):
            receive_into(near, far.room, self._filled, TURN_SIZE)
        near.registerProducer(Flow(far), True)
        if len(self._early) >= MAX_EARLY:
            near.resumeProducing()
        far.registerProducer(Flow(near), True)  # last: the channel may have no room, and pause the client again
        early, self._early = self._early, b""
        if early:
            far.write(early)
        if self._near_half_closed:
            far.unregisterProducer()
            far.loseWriteConnection()

    def far_data(self, data: bytes | memoryview) -> None:
        """Pass on what the container sent."""
        if not self._near_over:
            self.bytes_out += len(data)
            send_now(self.transport, data)

    def far_ended(self) -> None:
        """The container has sent all: end the client's input behind it."""
        self._far_half_closed = True
        if self._near_over:
            return
        near: Any = self.transport
        near.unregisterProducer()
        if not self._close_if_both_ended():
            near.loseWriteConnection()

    def far_lost(self, reason: Failure) -> None:
        """The channel is over. Only when it ended properly has the client seen all there was."""
        self._far_over = True
        if self._cut is not None and self._cut.active():
            self._cut.cancel()
        if self._near_over:
            return
        if reason.check(ConnectionDone):
            self._lose_near()
        else:
            self._abort_near()

    def _not_joined(self, failure: Failure) -> None:
        """Nobody is there: end as Docker's proxy does; with the link gone, as a cut cable does."""
        if self._connecting is None and failure.check(CancelledError):
            return
        self._connecting = None
        if self._near_over:
            return
        if not failure.check(RdaError, CancelledError):
            self._log.failure("A forwarded connection could not be joined", failure)
        if failure.check(ChannelRefused):
            self.refusal = failure.getErrorMessage()
            self.close()
        else:
            self._abort_near()

    def _close_if_both_ended(self) -> bool:
        """Both directions have ended: a half-closed pair does not close by itself."""
        if not (self._near_half_closed and self._far_half_closed):
            return False
        self._lose_near()
        self._far.loseConnection()
        return True

    def _lose_near(self) -> None:
        near: Any = self.transport
        near.unregisterProducer()
        near.loseConnection()

    def _abort_near(self) -> None:
        near: Any = self.transport
        near.unregisterProducer()
        near.abortConnection()
