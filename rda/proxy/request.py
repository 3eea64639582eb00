"""A client's request: relayed by an exchange, or rendered in twisted.web's usual way where it is for rda itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import RESPONSES, Request

from rda.access.caller import UNPROVED
from rda.errors import BodyTooLarge, Moved, RdaError
from rda.limits import raised_by
from rda.proxy.relay import Exchange
from rda.proxy.tunnel import Tunnel
from rda.proxy.wire import RequestHead
from rda.sockets import send_now

if TYPE_CHECKING:
    from rda.proxy.channel import DockerChannel

__all__ = ["DockerRequest", "error_answer"]


def error_answer(error: RdaError, method: bytes = b"GET", *, close: bool = True) -> bytes:
    """Write the answer that an error becomes, as the daemon writes its own.

    :param method: the request's; the answer to HEAD has no body.
    :param close: say that the connection ends after it.
    """
    lines = [b"HTTP/1.1 %d %b" % (error.status, RESPONSES.get(error.status, b"Error"))]
    if isinstance(error, Moved):
        body = b""
        lines.append(b"Location: " + error.location)
    else:
        body = json.dumps({"message": f"{error.prefix}{error}"}).encode() + b"\n"
        lines += [b"Content-Type: application/json", b"X-Content-Type-Options: nosniff"]
    lines.append(b"Content-Length: %d" % len(body))
    if error.retry_after is not None:
        lines.append(b"Retry-After: %d" % error.retry_after)
    if close:
        lines.append(b"Connection: close")
    return b"\r\n".join([*lines, b"", b"" if method == b"HEAD" else body])


class DockerRequest(server.Request):
    """A request: relayed, or for rda's own resources rendered in twisted.web's usual way.

    Implements :class:`rda.proxy.relay.Downstream`.

    :ivar caller: who makes a request for rda's own resources.
    """

    channel: DockerChannel

    def __init__(self, channel: DockerChannel, *args: object, **kw: object) -> None:
        super().__init__(channel, parsePOSTFormSubmission=False)
        self.exchange: Exchange | None = None
        self.caller = UNPROVED
        self._complete = False
        self._expects_continue = False
        self._length: int | None = 0
        self._refusal: RdaError | None = None
        self._dispatching = False
        self._own_size = 0

    # ---------------------------------------------------------------------------------------- called by the channel

    def parseCookies(self) -> None:
        """Leave cookies alone."""

    def gotLength(self, length: int | None) -> None:
        """Dispatch at the end of the head.

        :param length: of the body, bytes; None for a chunked one.
        """
        self._length = length
        fields = tuple((name, value) for name, values in self.requestHeaders.getAllRawHeaders() for value in values)
        expectation = self.requestHeaders.getRawHeaders(b"expect")
        self._expects_continue = bool(expectation) and self.clientproto == b"HTTP/1.1" and length != 0
        self.requestHeaders.removeHeader(b"expect")  # 100 is sent when the body is wanted, not by the parser
        head = RequestHead(self.method, self.uri, int(self.clientproto == b"HTTP/1.1"), fields, length)
        self._dispatching = True
        try:
            self.exchange = self.channel.site.dispatch(self, head)
            if self.exchange is None:
                super().gotLength(0)  # content is kept in memory, bounded by handleContentChunk
                self.send_continue()
            else:
                if length is None and self.exchange.splices_body:
                    self.channel.splice_body(self)
                self.exchange.begin()
        except RdaError as error:
            self.refuse(error)
        finally:
            self._dispatching = False
        if self._refusal is not None and length != 0:
            self._refuse_now(self._refusal)

    def handleContentChunk(self, data: bytes) -> None:
        """Take body bytes."""
        if self.exchange is not None:
            self.exchange.body_data(data)
        elif self._refusal is None:
            self._own_size += len(data)
            if self._own_size > self.channel.site.limits.own_body:
                self.refuse(
                    BodyTooLarge(
                        f"the request's body is larger than rda takes for its own resources{raised_by('own_body')}"
                    )
                )
            else:
                super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The body is complete."""
        self._complete = True
        if self._refusal is not None:
            self._refuse_now(self._refusal)
        elif self.exchange is not None:
            self.exchange.body_ends()
        else:
            super().requestReceived(command, path, version)

    def half_closed(self) -> None:
        """The client will send nothing more."""
        if self.exchange is not None:
            self.exchange.client_half_closed()

    def broken(self, error: RdaError) -> None:
        """The body is malformed."""
        if self.exchange is not None:
            self.exchange.client_broke(error)
        elif self._refusal is None:
            self.refuse(error)

    def connectionLost(self, reason: Failure) -> None:
        """The client is gone."""
        if self.exchange is not None:
            self.exchange.client_gone()
        super().connectionLost(reason)

    # --------------------------------------------------------------------------------------- called by the exchange

    @property
    def client_end(self) -> DockerChannel:
        """See :class:`rda.proxy.relay.Downstream`, and for all that follow."""
        return self.channel

    @property
    def persistent(self) -> bool:
        """Whether the connection takes another request after this one."""
        return bool(self.channel.persistent) and not self.channel.site.draining

    def will_close(self) -> None:
        """Make this the last request of the connection."""
        self.channel.persistent = False

    def write(self, data: bytes) -> None:
        """Send bytes of the answer: as they are for a relayed one."""
        if self.exchange is not None:
            send_now(self.channel.transport, data)
        else:
            super().write(data)

    def register_producer(self, producer: IPushProducer) -> None:
        """Pause this one while the client does not take the answer."""
        self.channel.registerProducer(producer, True)

    def hold_body(self) -> None:
        """Stop reading the request's body."""
        if not self._complete:
            self.channel.hold_body()

    def release_body(self) -> None:
        """Read it again."""
        self.channel.release_body()

    def send_continue(self) -> None:
        """Send 100 Continue, once, if the client waits for it."""
        if self._expects_continue:
            self._expects_continue = False
            self.channel.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def refuse(self, error: RdaError) -> None:
        """Answer with an error; while the head is still being dispatched, as soon as that is over."""
        if self._dispatching:
            self._refusal = error
        else:
            self._refuse_now(error)

    def _refuse_now(self, error: RdaError) -> None:
        self._refusal = error
        if not self._complete:
            self.channel.persistent = False
        self.channel.transport.write(error_answer(error, self.method, close=not self.persistent))
        self.end()

    def end(self) -> None:
        """Note that the answer is complete."""
        if self._complete:
            self.startedWriting = 1
            self.chunked = 0
            Request.finish(self)
        else:
            self.channel.linger()

    def abort(self) -> None:
        """Cut the connection."""
        self.channel.unregisterProducer()
        self.channel.transport.abortConnection()

    def start_tunnel(self, tunnel: Tunnel, head: bytes) -> None:
        """Be one end of a tunnel from now on."""
        self.channel.start_tunnel(tunnel, head)
