"""A hijacked connection: raw bytes both ways, each direction ending on its own."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from rda.errors import RdaError
from rda.flow import Flow
from rda.sockets import send_now

__all__ = ["HEAD_ALONE_SECONDS", "ClientEnd", "Tunnel", "hung_up"]

#: How long the head of a hijack's answer stays the only thing there is to read. Clients that read heads through a
#: buffer lose what they find behind one (docker-py's ``attach`` without ``stream``, after http.client). The daemon
#: writes the two apart; a client on a busy machine needs milliseconds to wake up, and nothing tells when it has.
HEAD_ALONE_SECONDS = 0.02


class ClientEnd(Protocol):
    """The client's connection, as a tunnel needs it."""

    transport: Any

    def end_output(self) -> None:
        """Send what is buffered, then the end of file; go on reading."""

    def linger(self) -> None:
        """Send what is buffered, then the end of file; drain what still comes for a while, then close."""


def hung_up(transport: Any) -> bool:
    """Return whether the peer is gone altogether, and not only done with sending.

    The kernel tells at once on a UNIX-domain socket; on TCP only when the peer answered something with a reset.
    """
    try:
        poll = select.poll()
        poll.register(transport.fileno(), 0)
        return any(events & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0))
    except (AttributeError, TypeError, ValueError, OSError):
        return False  # not a descriptor: its own protocol tells


class Tunnel:
    """Joins a client and the daemon. Nothing flows before :meth:`start`.

    :param daemon: the daemon connection's transport.
    :param linger_seconds: how long what a vanished client has sent is still flushed to the daemon.
    :param ended: called once, when neither side needs the tunnel any more.
    :param head_alone_seconds: what the daemon sends waits so long after the answer's head.
    :ivar to_daemon: bytes so far; likewise ``to_client``.
    :ivar half_closed: the client has ended its input; whether it is still there is not noticed by itself any more.
    """

    def __init__(
        self,
        client: ClientEnd,
        daemon: Any,
        clock: IReactorTime,
        linger_seconds: float,
        ended: Callable[[Tunnel], None],
        head_alone_seconds: float = 0.0,
    ) -> None:
        self.to_daemon = self.to_client = 0
        self._client = client
        self._daemon = daemon
        self._clock = clock
        self._linger_seconds = linger_seconds
        self._ended = ended
        self._head_alone_seconds = head_alone_seconds
        self._early: list[bytes] | None = []  # from the daemon, before the start; it is paused, so this is little
        self._early_end: Callable[[], None] | None = None
        self.half_closed = self._daemon_ended = self._over = False
        self._cut: IDelayedCall | None = None
        self._output_start: IDelayedCall | None = None

    def start(self, head: bytes, early: bytes) -> None:
        """Let the bytes flow.

        :param head: the answer's head and what came after it, for the client.
        :param early: what the client sent before the answer, held until now: the daemon loses what comes earlier.
        """
        client, daemon = self._client.transport, self._daemon
        daemon.unregisterProducer()
        daemon.registerProducer(Flow(client), True)
        self.to_client += len(head)
        send_now(client, head)
        if early:
            self.from_client(early)
        client.resumeProducing()
        if self._head_alone_seconds:
            daemon.pauseProducing()
            self._output_start = self._clock.callLater(self._head_alone_seconds, self._start_output)
        else:
            self._start_output()

    def _start_output(self) -> None:
        """Let what the daemon sends flow to the client."""
        self._output_start = None
        self._client.transport.registerProducer(Flow(self._daemon), True)
        waiting, self._early = self._early or [], None
        if waiting:
            self.from_daemon(b"".join(waiting))
        self._daemon.resumeProducing()
        if self._early_end is not None:
            self._early_end()

    def from_client(self, data: bytes) -> None:
        """Pass on what the client sent."""
        self.to_daemon += len(data)
        send_now(self._daemon, data)

    def from_daemon(self, data: bytes) -> None:
        """Pass on what the daemon sent."""
        if self._early is not None:
            self._early.append(data)
            return
        self.to_client += len(data)
        send_now(self._client.transport, data)

    def client_ended(self) -> None:
        """The client closed its sending half, or everything: end the daemon's input."""
        before, self.half_closed = self.half_closed, True
        if hung_up(self._client.transport):
            self._client.transport.abortConnection()
            return
        if before:
            return
        self._daemon.unregisterProducer()
        self._daemon.loseWriteConnection()
        if self._daemon_ended:
            self._close()

    def daemon_ended(self) -> None:
        """The daemon closed its sending half: end the client's input, after all that is on its way."""
        if self._early is not None:
            self._early_end = self.daemon_ended
            return
        self._daemon_ended = True
        self._client.transport.unregisterProducer()
        if self.half_closed:
            self._close()
        else:
            self._client.end_output()

    def client_lost(self) -> None:
        """The client is gone: free the daemon's connection, at once unless something is still to be flushed."""
        if not self._over:
            if self._output_start is not None:
                self._output_start.cancel()
            self._daemon.unregisterProducer()
            self._daemon.loseConnection()
            self._cut = self._clock.callLater(self._linger_seconds, self._daemon.abortConnection)
            self._end()

    def daemon_lost(self, reason: Failure) -> None:
        """The daemon's connection is gone.

        When the link broke, so does the client's connection: what the client saw is not all there was.
        """
        if self._cut is not None and self._cut.active():
            self._cut.cancel()
        if self._over:
            return
        if self._early is not None:
            self._early_end = lambda: self.daemon_lost(reason)
            return
        self._client.transport.unregisterProducer()
        self._end()
        if reason.check(RdaError):
            self._client.transport.abortConnection()
        else:
            self._client.linger()

    def _close(self) -> None:
        """Both directions have ended: a half-closed pair does not close itself."""
        self._client.transport.unregisterProducer()
        self._end()
        self._client.transport.loseConnection()
        self._daemon.loseConnection()

    def _end(self) -> None:
        self._over = True
        self._ended(self)
