"""One exchange: a request on its way to the daemon, and the answer on its way back. Two directions, two states.

The route decides once, when the head is there, what happens to each direction:

- the request's body is spliced as it arrives, or read whole and replaced by a document;
- the answer is spliced, or read whole and replaced, or passed on document by document, or becomes a tunnel; where
  the rewriter was asked on the way out, it also sees the answer before the client does.

For each :class:`~rda.docker.routes.Outgoing` that the rewriter gave, it is told exactly once how it went: ``answered``
or ``aborted``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum, auto
from typing import Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.docker import document, routes
from rda.docker.routes import Answer, Call, Outgoing, RequestBody
from rda.errors import BodyTooLarge, DaemonUnreachable, RdaError
from rda.flow import Flow
from rda.interfaces import ICallRewriter
from rda.limits import Limits, raised_by
from rda.proxy.counters import Counters
from rda.proxy.pool import DaemonConnection, DaemonPool
from rda.proxy.tunnel import HEAD_ALONE_SECONDS, ClientEnd, Tunnel
from rda.proxy.wire import (
    AnswerHead,
    Chunked,
    DocumentSplitter,
    Framing,
    RequestHead,
    UntilClose,
    WireError,
    chunk,
    request_head,
)

__all__ = ["Downstream", "Exchange"]

#: The docker CLI asks for gzip on tcp and ssh endpoints, and dockerd then spends five times the time of an archive
#: download on compressing it; and what is to be rewritten has to be readable.
_UNCOMPRESSED = (b"accept-encoding",)

#: Routes whose answer is the raw output of a process, and whose clients may not keep it apart from the head.
_RAW_STREAMS = ("container attach", "exec start")


class Downstream(Protocol):
    """The client's side of an exchange."""

    def write(self, data: bytes) -> None:
        """Send bytes of the answer."""

    def register_producer(self, producer: IPushProducer) -> None:
        """Pause this one while the client does not take the answer."""

    def hold_body(self) -> None:
        """Stop reading the request's body."""

    def release_body(self) -> None:
        """Read it again."""

    def send_continue(self) -> None:
        """Send 100 Continue, if the client waits for it."""

    @property
    def persistent(self) -> bool:
        """Whether the connection takes another request after this one."""

    def will_close(self) -> None:
        """Make this the last request of the connection."""

    def end(self) -> None:
        """Note that the answer is complete."""

    def refuse(self, error: RdaError) -> None:
        """Answer with an error instead; nothing of another answer has been sent."""

    def abort(self) -> None:
        """Cut the connection: the answer cannot be completed."""

    @property
    def client_end(self) -> ClientEnd:
        """The client's connection, as one end of a tunnel."""

    def start_tunnel(self, tunnel: Tunnel, head: bytes) -> None:
        """Be that end from now on, and start the tunnel with the answer's head."""


class _Answer(Enum):
    """How far the answer has come."""

    AWAITED = auto()
    HELD = auto()  # the rewriter is looking at it; nothing has been sent to the client
    FLOWING = auto()  # its head has been sent
    OVER = auto()  # complete, refused or given up: nobody waits for anything of this exchange


@implementer(IPushProducer)
class Exchange:
    """One request and its answer.

    :param downstream: the client's side.
    :param ended: called once, when nothing of this exchange is left.
    :ivar began: when, by the clock.
    :ivar code: the answer's HTTP status, None before it is there; ``answered``: after how many seconds it was.
    :ivar to_daemon: bytes sent so far; ``to_client`` likewise. A tunnel's are added when it ends.
    """

    __slots__ = (
        "_answer",
        "_chunked_answer",
        "_clock",
        "_collected",
        "_corked",
        "_counters",
        "_daemon_done",
        "_downstream",
        "_early",
        "_early_size",
        "_ended",
        "_half_closed",
        "_head",
        "_limits",
        "_owed",
        "_pool",
        "_rewriter",
        "_sent",
        "_splitter",
        "_spool",
        "_upstream",
        "answered",
        "began",
        "call",
        "code",
        "request_complete",
        "to_client",
        "to_daemon",
    )
    _log = Logger()

    def __init__(
        self,
        downstream: Downstream,
        head: RequestHead,
        call: Call,
        pool: DaemonPool,
        rewriter: ICallRewriter,
        clock: IReactorTime,
        counters: Counters,
        ended: Callable[[Exchange], None],
    ) -> None:
        self._downstream = downstream
        self._head = head
        self.call = call
        self.began = clock.seconds()
        self.code: int | None = None
        self.answered: float | None = None
        self.to_daemon = self.to_client = 0
        self._pool = pool
        self._rewriter = rewriter
        self._clock = clock
        self._limits: Limits = pool.limits
        self._counters = counters
        self._ended = ended
        self._sent = Outgoing()
        self._owed = False  # whether the rewriter decided something and has not been told yet how it went
        self._answer = _Answer.AWAITED
        self._upstream: DaemonConnection | None = None
        self._spool: list[bytes] | None = [] if call.route.body is RequestBody.DOCUMENT else None
        self._early: list[bytes] = []  # the body before there is somewhere to send it; then the answer before its head
        self._early_size = 0
        self._collected: AnswerHead | None = None  # the head of an answer that is read whole
        self._splitter: DocumentSplitter | None = None
        self._chunked_answer = False
        self._corked: list[bytes] | None = None  # what is sent together with what follows it at once
        self._daemon_done = False
        self._half_closed = False
        self.request_complete = False

    # ---------------------------------------------------------------------------------- the request, from the client

    @property
    def splices_body(self) -> bool:
        """Whether the body is wanted with its chunk framing, to be passed on as it is."""
        return self._spool is None

    def begin(self) -> None:
        """Start, at the end of the request's head."""
        if self._spool is None:
            self._ask(None)
        elif (self._head.length or 0) > self._limits.document:
            self._fail(self._too_large())
        else:
            self._downstream.send_continue()

    def body_data(self, data: bytes) -> None:
        """Take the next bytes of the request's body."""
        if self._answer is _Answer.OVER or self._daemon_done:
            return
        if self._spool is not None:
            self._spool.append(data)
            self._early_size += len(data)
            if self._early_size > self._limits.document:
                self._fail(self._too_large())
        elif self._upstream is not None:
            self._send(data)
        else:
            self._early.append(data)  # the client's side is held: this is what one read brought

    def body_ends(self) -> None:
        """Note that the request is complete."""
        self.request_complete = True
        if self._answer is _Answer.OVER or self._spool is None:
            return
        try:
            body = document.parse(b"".join(self._spool))
        except RdaError as error:
            self._fail(error)
            return
        self._spool = []
        self._ask(body)

    def client_half_closed(self) -> None:
        """The client will send nothing more, and may or may not still be there.

        The daemon is told the same, for it then decides the same: it ends a request whose client left.
        """
        if not self.request_complete:
            self._downstream.abort()
            return
        self._half_closed = True
        self._downstream.will_close()
        self._end_of_input()

    def client_broke(self, error: RdaError) -> None:
        """The request's body is malformed: the daemon gets no more of it."""
        if self._answer is _Answer.FLOWING:
            self._give_up()
            self._downstream.abort()
        else:
            self._fail(error)

    def client_gone(self) -> None:
        """The client's connection is lost: free everything."""
        self._give_up()

    # ------------------------------------------------------------------------------------- the request, to the daemon

    def _ask(self, body: dict[str, object] | None) -> None:
        """Let the rewriter decide what is sent."""
        if not self.call.route.asks:
            self._decided(Outgoing(body=body))
            return
        decision: Deferred[Outgoing] = maybeDeferred(self._rewriter.outgoing, self.call, body)
        if not decision.called:
            self._downstream.hold_body()
        decision.addCallbacks(self._decided, self._failed)
        decision.addErrback(self._defect)

    def _decided(self, outgoing: Outgoing) -> None:
        self._sent = outgoing
        self._owed = self.call.route.asks
        if self._answer is _Answer.OVER:  # the client left meanwhile
            self._tell_aborted()
        else:
            self._connect(fresh=False)

    def _connect(self, fresh: bool) -> None:
        kept = None if fresh else self._pool.take()
        if kept is not None:
            self._connected(kept)
            return
        connecting = self._pool.open()
        if not connecting.called:
            self._downstream.hold_body()
        connecting.addCallbacks(self._connected, self._unreachable)
        connecting.addErrback(self._defect)

    def _unreachable(self, failure: Failure) -> None:
        if not failure.check(RdaError):
            failure = Failure(
                DaemonUnreachable(f"cannot reach the remote Docker daemon: {failure.getErrorMessage()}; is it running?")
            )
        self._failed(failure)

    def _connected(self, connection: DaemonConnection) -> None:
        if self._answer is _Answer.OVER:
            self._pool.put(connection)
            return
        self._upstream = connection
        connection.begin(self, self._head.method, self)
        early, self._early, self._early_size = self._early, [], 0
        self._downstream.send_continue()
        self._downstream.release_body()
        self._send(self._request_head() + b"".join(early))
        self._end_of_input()

    def _end_of_input(self) -> None:
        """Pass on the client's half-close, but not before a hijack's early bytes, which wait for the answer."""
        may_follow = self.call.route.answer is Answer.HIJACK and self._answer is not _Answer.FLOWING
        if self._half_closed and self._upstream is not None and not may_follow:
            self._upstream.end_of_input()

    def _request_head(self) -> bytes:
        """Write the head of what is sent; and, for a replaced body, the body with it."""
        route, head = self.call.route, self._head
        body = document.serialise(self._sent.body) if route.body is RequestBody.DOCUMENT else None
        rewritten = route.answer in (Answer.DOCUMENT, Answer.DOCUMENTS)
        has_length = bool(head.length) or head.first(b"content-length") is not None
        written = request_head(
            head.method,
            routes.target(self.call, self._sent),
            head.minor,
            head.fields,
            length=len(body) if body is not None else (head.length if has_length else None),
            chunked=body is None and head.length is None,
            upgrade=self._upgrade(),
            drop=_UNCOMPRESSED if rewritten or route.name == "container archive" else (),
        )
        return written + (body or b"")

    def _upgrade(self) -> bytes | None:
        """Return the protocol that the client wants to switch to, where that can be granted."""
        if self._head.minor and self.call.route.answer in (Answer.STREAM, Answer.HIJACK):
            return self._head.first(b"upgrade")
        return None

    def _send(self, data: bytes) -> None:
        assert self._upstream is not None
        self._count(len(data), 0)
        self._upstream.write(data)

    def pauseProducing(self) -> None:
        """The daemon does not take the request's body at the moment."""
        if not self.request_complete:
            self._downstream.hold_body()

    def resumeProducing(self) -> None:
        """The daemon takes it again."""
        if self._answer is not _Answer.OVER:
            self._downstream.release_body()

    def stopProducing(self) -> None:
        """Do nothing: the connection's loss is reported in its own way."""

    # ----------------------------------------------------------------------------------- the answer, from the daemon

    def may_hijack(self, head: AnswerHead) -> bool:
        """See :class:`rda.proxy.pool.AnswerReceiver`: 101 after an upgrade, or the old way, a 200 without framing."""
        if head.status == 101:
            return self._upgrade() is not None
        unframed = not head.values(b"content-length") and not head.values(b"transfer-encoding")
        return (
            self.call.route.answer is Answer.HIJACK and self._head.method == b"POST" and head.status == 200 and unframed
        )

    def answer_begins(self, head: AnswerHead, framing: Framing) -> None:
        """See :class:`rda.proxy.pool.AnswerReceiver`."""
        self._corked = []
        self._note_answer(head.status)
        mode = self.call.route.answer
        if mode is Answer.DOCUMENT and _is_json(head) and not framing.done:
            self._collected = head
        elif mode is Answer.DOCUMENTS and head.status == 200:
            self._splitter = DocumentSplitter(self._limits.stream_document)
            self._chunked_answer = bool(self._head.minor)
        framing.decoding = bool(self._collected or self._splitter or not self._head.minor)  # HTTP/1.0 has no chunks
        if self._collected:
            return
        if self.call.route.asks or mode is Answer.HELD:
            self._hold(head.status, None, lambda _: self._flow(head, framing))
        else:
            self._flow(head, framing)

    def _note_answer(self, code: int) -> None:
        """The head of the answer is there; in the end another one may be given in its place."""
        if self.code is None:
            self.answered = self._clock.seconds() - self.began
            self._counters.answered(self.call.route.name, code, self.answered)
        self.code = code

    def answer_data(self, data: bytes) -> None:
        """See :class:`rda.proxy.pool.AnswerReceiver`."""
        if self._answer is _Answer.FLOWING:
            self._deliver(data)
            return
        self._early.append(data)
        self._early_size += len(data)
        key = "answer_document" if self._collected else "held"
        limit = getattr(self._limits, key)
        if self._early_size > limit:
            raise WireError(f"it has more than the {limit} bytes that rda reads of such an answer{raised_by(key)}")

    def answer_read(self) -> None:
        """See :class:`rda.proxy.pool.AnswerReceiver`: the head and what came with it leave in one piece."""
        corked, self._corked = self._corked, None
        if corked:
            self._downstream.write(b"".join(corked))

    def answer_ends(self) -> None:
        """See :class:`rda.proxy.pool.AnswerReceiver`."""
        self._upstream = None
        self._daemon_done = True
        if self._collected is not None:
            self._answer_read(self._collected)
        elif self._answer is _Answer.FLOWING:
            self._finish()

    def answer_broken(self, error: RdaError, began: bool) -> None:
        """See :class:`rda.proxy.pool.AnswerReceiver`."""
        upstream, self._upstream = self._upstream, None
        if self._answer is _Answer.FLOWING:
            self._give_up()
            self._downstream.abort()  # never end cleanly what is not complete
        elif upstream is not None and not began and not upstream.fresh and self._repeatable():
            self._counters.retries += 1
            self._connect(fresh=True)
        else:
            self._fail(error)

    def _repeatable(self) -> bool:
        """Whether sending the request twice does what sending it once does (RFC 9110, section 9.2.2)."""
        return self._head.method in (b"GET", b"HEAD") and self._head.length == 0 and not self._half_closed

    def answer_hijacked(self, head: AnswerHead, early: bytes) -> None:
        """See :class:`rda.proxy.pool.AnswerReceiver`."""
        connection = self._upstream
        assert connection is not None
        if not self.request_complete:
            raise WireError("it switches protocols before the request is complete")
        self._note_answer(head.status)

        client = self._downstream.client_end
        linger = self._limits.linger_seconds
        alone = HEAD_ALONE_SECONDS if self.call.route.name in _RAW_STREAMS else 0.0
        tunnel = Tunnel(client, connection.transport, self._clock, linger, self._tunnel_ended, alone)
        connection.become_raw(tunnel)
        if early:
            tunnel.from_daemon(early)

        def granted(_: object) -> None:
            self._upstream = None
            self._answer = _Answer.OVER
            self._counters.hijacks += 1
            self._downstream.start_tunnel(tunnel, head.verbatim)

        if self.call.route.asks:
            self._hold(head.status, None, granted)
        else:
            granted(None)

    def _tunnel_ended(self, tunnel: Tunnel) -> None:
        self._counters.hijacks -= 1
        self._count(tunnel.to_daemon, tunnel.to_client)
        self._ended(self)

    def _count(self, to_daemon: int, to_client: int) -> None:
        """Count bytes, for this call and for the site."""
        self.to_daemon += to_daemon
        self.to_client += to_client
        self._counters.to_daemon += to_daemon
        self._counters.to_client += to_client

    # --------------------------------------------------------------------------------------- the answer, to the client

    def _hold(self, status: int, body: object, granted: Callable[[object], None]) -> None:
        """Show the answer to the rewriter; go on with ``granted`` when the client may see it."""
        self._answer = _Answer.HELD
        self._owed = False
        verdict: Deferred[object] = maybeDeferred(self._rewriter.answered, self.call, self._sent, status, body)
        if not verdict.called and self._upstream is not None:
            self._upstream.transport.pauseProducing()  # type: ignore[union-attr]
        verdict.addCallbacks(self._granted, self._forbidden, callbackArgs=(granted,))
        verdict.addErrback(self._defect)

    def _granted(self, result: object, granted: Callable[[object], None]) -> None:
        if self._answer is not _Answer.HELD:
            return  # the client left, or the daemon broke off
        try:
            granted(result)
        except WireError:
            self._give_up()
            self._downstream.abort()

    def _forbidden(self, failure: Failure) -> None:
        if self._answer is _Answer.HELD:
            self._failed(failure)

    def _flow(self, head: AnswerHead, framing: Framing) -> None:
        """Send the answer's head and what there is of its body; the rest follows as it comes."""
        self._answer = _Answer.FLOWING
        self._end_of_input()
        if self._chunked_answer:
            self._send_head(head, (), b"Transfer-Encoding: chunked\r\n", closes=False)
        elif self._splitter or (framing.decoding and isinstance(framing, Chunked)):
            self._send_head(head, (), b"", closes=True)
        else:
            endless = isinstance(framing, UntilClose)
            self._send_head(head, (b"content-length", b"transfer-encoding"), b"", closes=endless)
        early, self._early = self._early, []
        for data in early:
            self._deliver(data)
        if self._daemon_done:
            self._finish()
        elif self._upstream is not None:
            self._downstream.register_producer(Flow(self._upstream.transport))
            self._upstream.transport.resumeProducing()  # type: ignore[union-attr]

    def _send_head(self, head: AnswerHead, keep: Collection[bytes], more: bytes, closes: bool) -> None:
        if closes or not self.request_complete:
            self._downstream.will_close()
        if not self._downstream.persistent:
            more += b"Connection: close\r\n"
        self._write(head.write(keep, more))

    def _deliver(self, data: bytes) -> None:
        """Send bytes of the answer's body."""
        if self._splitter is None:
            self._write(data)
            return
        try:
            for piece in self._splitter.feed(data):
                changed = self._rewriter.streamed(self.call, self._sent, document.parse_any(piece))
                if changed is not None:
                    line = document.serialise(changed) + b"\n"
                    self._write(chunk(line) if self._chunked_answer else line)
        except RdaError as error:
            raise WireError(str(error)) from error

    def _write(self, data: bytes) -> None:
        self._count(0, len(data))
        if self._corked is None:
            self._downstream.write(data)
        else:
            self._corked.append(data)

    def _answer_read(self, head: AnswerHead) -> None:
        """The whole of an answer that is a document is there."""
        raw, self._early = b"".join(self._early), []
        try:
            body = document.parse_any(raw)
        except RdaError as error:
            self._fail(DaemonUnreachable(f"the Docker daemon's answer cannot be read: {error}"))
            return

        def granted(result: object) -> None:
            self._answer = _Answer.FLOWING
            changed = document.serialise(result) + b"\n"
            self._send_head(head, (), b"Content-Length: %d\r\n" % len(changed), closes=False)
            self._write(changed)
            self._finish()

        self._hold(head.status, body, granted)

    def _finish(self) -> None:
        """The whole answer has been sent."""
        if self._splitter is not None:
            if self._splitter.pending:
                self._give_up()
                self._downstream.abort()
                return
            if self._chunked_answer:
                self._write(b"0\r\n\r\n")
        self.answer_read()
        self._over()
        self._downstream.end()

    # ------------------------------------------------------------------------------------------------ ends without one

    def _too_large(self) -> RdaError:
        limit = self._limits.document
        return BodyTooLarge(
            f"the request's document is larger than the {limit} bytes that rda reads{raised_by('document')}"
        )

    def _failed(self, failure: Failure) -> None:
        """Answer with a failure: the user's if it is one, else an internal error that is logged."""
        if failure.check(RdaError):
            self._fail(failure.value)  # type: ignore[arg-type]
        else:
            self._log.failure("defect while handling {route}", failure, route=self.call.route.name)
            self._fail(RdaError("internal error; rda's log has the details"))

    def _fail(self, error: RdaError) -> None:
        """Answer with an error, if there is still somebody to answer."""
        if self._answer is not _Answer.OVER:
            self._note_answer(error.status)
            self._give_up()
            self._counters.refused += 1
            self._downstream.refuse(error)

    def _defect(self, failure: Failure) -> None:
        """Nothing below is meant to raise; what does must not leave a client waiting for ever."""
        self._log.failure("defect while relaying {route}", failure, route=self.call.route.name)
        self._give_up()
        self._downstream.abort()

    def _give_up(self) -> None:
        """Let go of the daemon's connection and of what the rewriter reserved."""
        if self._answer is _Answer.OVER:
            return
        upstream, self._upstream = self._upstream, None
        self._over()
        if upstream is not None:
            upstream.abort()

    def _over(self) -> None:
        self._answer = _Answer.OVER
        self._early = []
        self._corked = None
        self._spool = None if self._spool is None else []
        self._tell_aborted()
        self._ended(self)

    def _tell_aborted(self) -> None:
        """Tell the rewriter, unless it knows or has not decided yet (then it is told when it has)."""
        if self._owed:
            self._owed = False
            try:
                self._rewriter.aborted(self.call, self._sent)
            except Exception:  # whatever it is, the exchange's connections still have to be freed
                self._log.failure("defect while undoing {route}", route=self.call.route.name)


def _is_json(head: AnswerHead) -> bool:
    """Return whether an answer's body is one JSON document."""
    return any(value.split(b";")[0].strip().lower() == b"application/json" for value in head.values(b"content-type"))
