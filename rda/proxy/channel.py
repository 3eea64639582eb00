"""A client's connection: twisted.web's server-side HTTP/1.1 parser, made to hand over each request at its head.

This is the only module that uses private names of twisted.web; tests/test_twisted_contract.py pins each of them.

What differs from :class:`twisted.web.http.HTTPChannel`:

- a request (:mod:`rda.proxy.request`) is dispatched when its head is complete, its body is not collected;
- chunked bodies that are passed on keep their chunks, checked strictly;
- reading is paused and resumed by the exchange, for as long as the body has nowhere to go;
- the timeout is for the head only: bodies, answers and hijacks may be quiet for as long as they like;
- the client may close its sending half and still gets its answer;
- errors are Docker's ``{"message": …}``, and a connection that is closed with unread input is drained first, for the
  kernel would otherwise throw away what the client has not read yet;
- it can stop being HTTP: :meth:`DockerChannel.start_tunnel`.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from zope.interface import implementer

from rda.errors import BadRequest, HeadTooLarge, RdaError, RequestTimeout
from rda.limits import Limits, raised_by
from rda.proxy import tls
from rda.proxy.authentication import Visitor
from rda.proxy.request import error_answer
from rda.proxy.tunnel import Tunnel, hung_up
from rda.proxy.wire import Chunked, WireError, tokens
from rda.sockets import widen

if TYPE_CHECKING:
    from rda.proxy.server import DockerSite

__all__ = ["DockerChannel"]


def _watch_peer(transport: Any, limits: Limits) -> None:
    """Have the kernel find out when a client on another machine is gone without a word, as a laptop that sleeps.

    A quiet stream (events, logs, attach) would otherwise keep its channel for ever. On this machine nobody leaves so.
    """
    host = getattr(transport.getPeer(), "host", None)
    if host is None or ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        return
    connection = transport.socket
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # not on every platform; then the system's own, longer times hold
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(limits.keepalive_seconds))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, int(limits.keepalive_seconds / 4))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


class _Phase(Enum):
    """What a connection is doing."""

    IDLE = auto()  # between requests
    HEAD = auto()
    EXCHANGE = auto()  # from the end of the head to the end of the answer
    TUNNEL = auto()
    DISCARDING = auto()  # everything has been said; input is drained so that the client can read it


class _SplicedBody:
    """A chunked request body that is passed on with its chunks: takes the place of twisted.web's decoder."""

    __slots__ = ("_body_data", "_finish", "_framing")

    def __init__(self, body_data: Callable[[bytes], None], finish: Callable[[bytes], None]) -> None:
        self._framing = Chunked()
        self._body_data = body_data
        self._finish = finish

    def dataReceived(self, data: bytes) -> None:
        """Take what arrived next; raise WireError when it is no chunked body."""
        body, rest = self._framing.feed(data)
        if body:
            self._body_data(body)
        if self._framing.done:
            self._finish(rest)


@implementer(IHalfCloseableProtocol)
class DockerChannel(HTTPChannel):
    """One client connection."""

    site: DockerSite
    transport: Any
    visitor: Visitor
    _log = Logger()

    _phase = _Phase.IDLE
    _tunnel: Tunnel | None = None
    _body_held = False
    _input_ended = False
    _lost = False
    _timer: IDelayedCall | None = None

    # ------------------------------------------------------------------------------------------------- connection

    def connectionMade(self) -> None:
        """Take a client, or tell it why not.

        One that nobody may use gets a small head's worth of attention: its first request is answered with the reason.
        """
        super().connectionMade()
        self._host = self.transport.getHost()
        widen(self.transport)
        _watch_peer(self.transport, self.site.limits)
        if tls.is_tls(self.transport):
            tls.notice_end(self.transport, self.readConnectionLost)
        limits = self.site.limits
        self.MAX_LENGTH = self.totalHeadersSize = limits.head
        self.maxHeaders = limits.header_count
        self._optimisticEagerReadSize = limits.pipelined
        self._idle_since = self.site.clock.seconds()
        refusal = self.site.opened(self)
        if refusal is not None:
            self.transport.write(error_answer(refusal))
            self.linger()
            return
        if self.visitor.hopeless:
            self.MAX_LENGTH = self.totalHeadersSize = min(limits.head, limits.refused_head)
        if not self.visitor.known:
            self._wait(limits.head_seconds, self.loseConnection)

    def getHost(self) -> Any:
        """Return the address at which the client came in, without asking the kernel for each request."""
        return self._host

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Let go of everything that worked for this client."""
        self._lost = True
        self._wait(None, None)
        if self._tunnel is not None:
            self._tunnel.client_lost()
        super().connectionLost(reason)
        self.site.closed(self)

    def readConnectionLost(self) -> None:
        """The client closed its sending half, or altogether."""
        self._input_ended = True
        if self._phase is _Phase.TUNNEL:
            assert self._tunnel is not None
            self._tunnel.client_ended()
        elif self._phase is _Phase.EXCHANGE and hung_up(self.transport):
            self.transport.abortConnection()
        else:
            self._end_input()

    def _end_input(self) -> None:
        """Close when everything that came before the end of the input has its answer: pipelined requests as well."""
        if self._phase is not _Phase.EXCHANGE:
            self.loseConnection()
        elif not any(self._dataBuffer):  # else it is not the last request, or a hijack's input
            self.persistent = False
            self.requests[0].half_closed()

    def writeConnectionLost(self) -> None:
        """All output has left, and its end: what is left to do is to drain."""
        if self._phase is _Phase.DISCARDING:
            self._wait(self.site.limits.linger_seconds, self.transport.abortConnection)

    def reap(self) -> None:
        """End the connection if nobody needs it any more; asked from time to time.

        Not every state shows by itself that a client is gone: only while input is awaited, its end tells.
        """
        if self._phase is _Phase.IDLE:
            if self.site.clock.seconds() - self._idle_since >= self.site.limits.idle_seconds:
                self.loseConnection()
            return
        done_sending = (
            self._tunnel.half_closed if self._tunnel is not None else bool(self.requests) and self._handlingRequest
        )
        if self._phase not in (_Phase.EXCHANGE, _Phase.TUNNEL) or not done_sending:
            return
        if hung_up(self.transport) or (self._input_ended and self.visitor.has_left()):
            self.transport.abortConnection()

    def close_if_idle(self) -> None:
        """Close the connection if it has no request."""
        if self._phase is _Phase.IDLE:
            self.loseConnection()

    def end_output(self) -> None:
        """See :class:`rda.proxy.tunnel.ClientEnd`."""
        if self._lost:
            return
        if tls.is_tls(self.transport):
            tls.end_output(self.transport)
            self.writeConnectionLost()  # nobody else tells
        else:
            self.transport.loseWriteConnection()

    def linger(self) -> None:
        """Close with unread input on its way: end the output, drain for a while, then close (RFC 9112, section 9.6)."""
        if self._lost or self._phase is _Phase.DISCARDING:
            return
        self._phase = _Phase.DISCARDING
        self._tunnel = None
        self.persistent = False
        self.unregisterProducer()
        self.transport.unregisterProducer()
        self._wait(None, None)  # a slow client may take what is buffered in its own time; see writeConnectionLost
        self.end_output()
        self._body_held = False
        if not self.transport.disconnecting:
            self._networkProducer.resumeProducing()

    # ---------------------------------------------------------------------------------------------------- parsing

    def dataReceived(self, data: bytes) -> None:
        """Take what arrived, for the parser or the tunnel."""
        if self._tunnel is not None:
            self._tunnel.from_client(data)
        elif self._phase is not _Phase.DISCARDING:
            self._head_begins()
            super().dataReceived(data)
            if self._phase is _Phase.HEAD and self._timer is None:  # most heads come whole
                self._wait(self.site.limits.head_seconds, self._head_over)

    def lineReceived(self, line: bytes) -> None:
        """Take a line of a head."""
        if self._phase is not _Phase.DISCARDING:
            self._head_begins()
            super().lineReceived(line)

    def _head_begins(self) -> None:
        if self._phase is _Phase.IDLE:
            self._phase = _Phase.HEAD

    def rawDataReceived(self, data: bytes) -> None:
        """Take body bytes, or what comes after a request that is being answered."""
        if self._phase is _Phase.DISCARDING:
            return
        try:
            super().rawDataReceived(data)
        except WireError as error:
            self._refuse_input(BadRequest(f"the request's body is malformed: {error}"))

    def headerReceived(self, line: bytes) -> bool:
        """Take one header field; lengths beyond any that Python reads are refused like other malformed ones."""
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            self._respondToBadRequestAndDisconnect()
            return False

    def lineLengthExceeded(self, line: bytes) -> None:
        """A line is longer than a whole head may be."""
        self._refuse_input(
            HeadTooLarge(f"the request's head is larger than {self.totalHeadersSize} bytes{raised_by('head')}")
        )

    def _respondToBadRequestAndDisconnect(self) -> None:
        """twisted.web's parser gave up."""
        if self._receivedHeaderSize > self.totalHeadersSize:
            self.lineLengthExceeded(b"")
        elif self._receivedHeaderCount > self.maxHeaders:
            self._refuse_input(
                HeadTooLarge(f"the request has more than {self.maxHeaders} header fields{raised_by('header_count')}")
            )
        else:
            self._refuse_input(BadRequest("the request is malformed"))

    def _refuse_input(self, error: RdaError) -> None:
        """Answer input that is no HTTP, and stop reading: nobody can tell where a next request would begin."""
        if self._phase is _Phase.EXCHANGE:
            self.requests[-1].broken(error)
        elif self._phase is not _Phase.DISCARDING:
            self.site.counters.refused += 1
            self.transport.write(error_answer(error))
            self.linger()

    def allHeadersReceived(self) -> None:
        """Dispatch the request; the parser itself would name its method only after the body."""
        self._phase = _Phase.EXCHANGE
        self._wait(None, None)
        request = self.requests[-1]
        request.method, request.uri, request.clientproto = self._command, self._path, self._version
        super().allHeadersReceived()

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Return whether another request may follow (RFC 9112, section 9.3)."""
        connection = tokens(request.requestHeaders.getRawHeaders(b"connection", []))
        return version == b"HTTP/1.1" and b"close" not in connection

    def splice_body(self, request: Request) -> None:
        """Hand over the present request's chunked body with its chunks."""
        self._transferDecoder = _SplicedBody(request.handleContentChunk, self._finishRequestBody)

    def requestDone(self, request: Request) -> None:
        """The answer is complete: go on with the next request, which may be here already."""
        self.unregisterProducer()
        if self._phase is _Phase.EXCHANGE:
            self._phase = _Phase.IDLE
            if self.persistent and not self.site.draining:
                self._idle_since = self.site.clock.seconds()
            else:
                self.persistent = False
        super().requestDone(request)
        if self._input_ended and not self._lost:
            self._end_input()

    # ----------------------------------------------------------------------------------------------------- timers

    def _wait(self, seconds: float | None, then: Callable[[], None] | None) -> None:
        """Set the connection's one timer, or none."""
        if self._timer is not None:
            if self._timer.active():
                self._timer.cancel()
            self._timer = None
        if seconds is not None and then is not None:
            self._timer = self.site.clock.callLater(seconds, then)

    def _head_over(self) -> None:
        seconds = f"{self.site.limits.head_seconds:g} s"
        self._refuse_input(
            RequestTimeout(f"the request's head was not complete within {seconds}{raised_by('head_seconds')}")
        )

    # ---------------------------------------------------------------------------------------------- back-pressure

    def hold_body(self) -> None:
        """Stop reading from the client."""
        if not self._body_held and not self._lost:
            self._body_held = True
            self._networkProducer.pauseProducing()

    def release_body(self) -> None:
        """Read from the client again."""
        if self._body_held and not self._lost:
            self._body_held = False
            self._read_on()

    def resumeProducing(self) -> None:
        """The client takes its answer again."""
        self._waitingForTransport = False
        if self._requestProducer is not None:
            self._requestProducer.resumeProducing()
        self._read_on()

    def _read_on(self) -> None:
        """Read from the client, unless there is a reason not to."""
        ahead = sum(map(len, self._dataBuffer)) > self._optimisticEagerReadSize
        if not (self._body_held or self._waitingForTransport or ahead or self._lost or self.transport.disconnecting):
            self._networkProducer.resumeProducing()

    # ---------------------------------------------------------------------------------------------------- tunnels

    def start_tunnel(self, tunnel: Tunnel, head: bytes) -> None:
        """Stop being HTTP; what the client has sent since its request is the tunnel's."""
        self._phase = _Phase.TUNNEL
        self._tunnel = tunnel
        early = b"".join(self._dataBuffer) + self.clearLineBuffer()
        self._dataBuffer = []
        self.requests = []
        self._body_held = False
        self.unregisterProducer()
        self.transport.unregisterProducer()
        tunnel.start(head, early)
        if self._input_ended:
            tunnel.client_ended()
