"""Connections to the daemon: each carries one exchange at a time, or becomes one end of a tunnel; some are kept."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol as Interface

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.errors import DaemonUnreachable, RdaError
from rda.limits import Limits
from rda.proxy.tunnel import Tunnel
from rda.proxy.wire import AnswerHead, Framing, HeadReader, UntilClose, WireError
from rda.sockets import send_now

__all__ = ["AnswerReceiver", "DaemonConnection", "DaemonPool"]


class AnswerReceiver(Interface):
    """The exchange that a connection works for."""

    @property
    def request_complete(self) -> bool:
        """Whether the whole request has been written to the connection."""

    def may_hijack(self, head: AnswerHead) -> bool:
        """Return whether this answer turns the connection into a raw one."""

    def answer_begins(self, head: AnswerHead, framing: Framing) -> None:
        """Take the head of the answer."""

    def answer_data(self, data: bytes) -> None:
        """Take the next bytes of the answer's body."""

    def answer_read(self) -> None:
        """Note that what came together with the head has been handed over."""

    def answer_ends(self) -> None:
        """Note that the answer is complete; the connection is not this exchange's any more."""

    def answer_hijacked(self, head: AnswerHead, early: bytes) -> None:
        """Take over the connection; ``early`` came after the head."""

    def answer_broken(self, error: RdaError, began: bool) -> None:
        """Note that there will be no (further) answer.

        :param began: whether the daemon sent a byte of an answer.
        """


class _State(Enum):
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    RAW = auto()
    CLOSED = auto()


@implementer(IHalfCloseableProtocol)
class DaemonConnection(Protocol):
    """One connection to the Docker daemon.

    :ivar fresh: it was never kept for a later exchange, and so cannot have died of age.
    """

    def __init__(self, pool: DaemonPool) -> None:
        self._pool = pool
        self._state = _State.IDLE
        self._receiver: AnswerReceiver | None = None
        self._tunnel: Tunnel | None = None
        self._framing: Framing = UntilClose()
        self._reusable = False
        self._input_ended = False
        self.fresh = True

    # ---------------------------------------------------------------------------------------- for the exchange

    def begin(self, receiver: AnswerReceiver, method: bytes, producer: IPushProducer) -> None:
        """Carry an exchange; its request is then written with :meth:`write`.

        :param producer: paused while the daemon does not take the request's body.
        """
        self._receiver = receiver
        self._method = method
        self._state = _State.HEAD
        self._head = HeadReader(self._pool.limits.head)
        self.transport.registerProducer(producer, True)  # type: ignore[union-attr]

    def write(self, data: bytes) -> None:
        """Send bytes of the request."""
        send_now(self.transport, data)

    def end_of_input(self) -> None:
        """Tell the daemon that the client half-closed its connection."""
        if self._state is not _State.CLOSED and not self._input_ended:
            self._input_ended = True
            self.transport.unregisterProducer()  # type: ignore[union-attr]
            self.transport.loseWriteConnection()  # type: ignore[union-attr]

    def become_raw(self, tunnel: Tunnel) -> None:
        """Be one end of a tunnel from now on."""
        self._tunnel = tunnel
        self._receiver = None
        self._state = _State.RAW

    def abort(self) -> None:
        """Cut the connection: its exchange is of no interest any more."""
        self._receiver = None
        if self._state is not _State.CLOSED:
            self._state = _State.CLOSED
            self.transport.unregisterProducer()  # type: ignore[union-attr]
            self.transport.abortConnection()  # type: ignore[union-attr]

    def close(self) -> None:
        """End the connection cleanly: it was not needed."""
        self._state = _State.CLOSED
        self.transport.loseConnection()  # type: ignore[union-attr]

    # ----------------------------------------------------------------------------------------------- Protocol

    def dataReceived(self, data: bytes) -> None:
        """Follow the answer."""
        if self._tunnel is not None:
            self._tunnel.from_daemon(data)
            return
        try:
            if self._state is _State.BODY:
                self._body(data)
            elif self._state is _State.HEAD:
                found = self._head.feed(data)
                if found is not None:
                    self._head_complete(*found)
            elif self._state is _State.IDLE:
                self._pool.forget(self)
                self.abort()  # an answer to nothing
        except WireError as error:
            self._break(DaemonUnreachable(f"the Docker daemon's answer is not HTTP: {error}"))

    def _head_complete(self, head: AnswerHead, rest: bytes) -> None:
        receiver = self._receiver
        assert receiver is not None
        if receiver.may_hijack(head):
            receiver.answer_hijacked(head, rest)
            return
        if head.status == 101:
            raise WireError("it switches protocols without being asked to")
        self._framing = framing = head.framing(self._method)
        self._reusable = head.keeps_alive and not isinstance(framing, UntilClose)
        self._state = _State.BODY
        receiver.answer_begins(head, framing)
        if self._receiver is receiver:  # it may have given up
            self._body(rest)
            receiver.answer_read()

    def _body(self, data: bytes) -> None:
        receiver = self._receiver
        assert receiver is not None
        body, rest = self._framing.feed(data)
        if body:
            receiver.answer_data(body)
        if self._framing.done and self._receiver is receiver:
            self._complete(receiver, extra=bool(rest))

    def _complete(self, receiver: AnswerReceiver, extra: bool) -> None:
        """Part from the exchange, and stay for another one if nothing speaks against it."""
        self._receiver = None
        self.transport.unregisterProducer()  # type: ignore[union-attr]
        if self._reusable and not self._input_ended and receiver.request_complete and not extra:
            self._state = _State.IDLE
            self.transport.resumeProducing()  # type: ignore[union-attr]
            self._pool.put(self)
        else:
            self._state = _State.CLOSED
            self.transport.abortConnection()  # type: ignore[union-attr]
        receiver.answer_ends()

    def _break(self, error: RdaError) -> None:
        """End an exchange that has no complete answer."""
        receiver, began = (
            self._receiver,
            self._state is _State.BODY or (self._state is _State.HEAD and self._head.started),
        )
        self.abort()
        if receiver is not None:
            receiver.answer_broken(error, began)

    def readConnectionLost(self) -> None:
        """The daemon has sent everything."""
        if self._tunnel is not None:
            self._tunnel.daemon_ended()
        else:
            self._pool.forget(self)
            self._end(clean=True, error=None)

    def writeConnectionLost(self) -> None:
        """Our own half-close is done."""

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 (Twisted's signature)
        """The connection is gone."""
        self._pool.forget(self)
        if self._tunnel is not None:
            self._state = _State.CLOSED
            self._tunnel.daemon_lost(reason)
            return
        error = reason.value if isinstance(reason.value, RdaError) else None
        self._end(clean=reason.check(ConnectionDone) is not None, error=error)
        self._state = _State.CLOSED

    def _end(self, clean: bool, error: RdaError | None) -> None:
        """The daemon's bytes have ended: the end of an answer that lasts until then, or of one that is cut short."""
        receiver = self._receiver
        if receiver is not None and clean and self._state is _State.BODY and isinstance(self._framing, UntilClose):
            self._reusable = False
            self._complete(receiver, extra=False)
        elif receiver is not None:
            self._break(error or DaemonUnreachable("the Docker daemon closed the connection before its answer ended"))
        elif self._state is not _State.CLOSED:
            self.abort()


class _ConnectionFactory(Factory[DaemonConnection]):
    noisy = False

    def __init__(self, pool: DaemonPool) -> None:
        self._pool = pool

    def buildProtocol(self, addr: IAddress | None) -> DaemonConnection:
        return DaemonConnection(self._pool)


class DaemonPool:
    """Opens connections to the daemon and keeps a few for the next requests.

    :param upstream: the daemon's socket.
    :ivar opened: connections opened so far.
    """

    _log = Logger()

    def __init__(self, upstream: IStreamClientEndpoint, clock: IReactorTime, limits: Limits) -> None:
        self.limits = limits
        self.opened = 0
        self._upstream = upstream
        self._clock = clock
        self._factory = _ConnectionFactory(self)
        self._idle: list[tuple[DaemonConnection, float]] = []
        self._sweep: IDelayedCall | None = None

    @property
    def idle(self) -> int:
        """How many connections wait for a request."""
        return len(self._idle)

    def take(self) -> DaemonConnection | None:
        """Take a kept connection, the one used last, if there is one."""
        return self._idle.pop()[0] if self._idle else None

    def open(self) -> Deferred[DaemonConnection]:
        """Open a connection."""
        self.opened += 1
        return self._upstream.connect(self._factory)  # type: ignore[return-value]

    def put(self, connection: DaemonConnection) -> None:
        """Keep a connection that is ready for another exchange, or close it."""
        connection.fresh = False
        if len(self._idle) >= self.limits.idle_upstreams:
            connection.close()
            return
        self._idle.append((connection, self._clock.seconds()))
        if self._sweep is None:
            self._sweep = self._clock.callLater(self.limits.idle_upstream_seconds, self._close_old)

    def forget(self, connection: DaemonConnection) -> None:
        """Never hand out this connection again."""
        self._idle = [entry for entry in self._idle if entry[0] is not connection]

    def close(self) -> None:
        """Close the kept connections."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()

    def _close_old(self) -> None:
        """Close what has not been used for a while; look again when the next one is due."""
        self._sweep = None
        now = self._clock.seconds()
        old = [entry for entry in self._idle if now - entry[1] >= self.limits.idle_upstream_seconds]
        self._idle = [entry for entry in self._idle if entry not in old]
        for connection, _ in old:
            connection.close()
        if self._idle:
            due = self._idle[0][1] + self.limits.idle_upstream_seconds - now
            self._sweep = self._clock.callLater(due, self._close_old)
