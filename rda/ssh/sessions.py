"""Session channels (commands, subsystems) within what the server allows.

sshd's MaxSessions limits them per connection, to 10 by default, and says so only by refusing.
:class:`SessionConnection` counts them; :class:`SessionPool` spreads them over a few connections and lets the rest wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.internet.task import deferLater

from rda.errors import ChannelRefused, LinkDown
from rda.ssh.channels import Connection, StreamChannel
from rda.ssh.line import WAIT_FOR_LINK, Line

__all__ = ["SessionConnection", "SessionPool"]

#: Session channels on one connection, until the server shows that it allows fewer: sshd's default MaxSessions.
MAX_SESSIONS = 10

#: Requests for a session channel that wait for one to be closed; more are refused at once.
MAX_WAITING = 256

#: Seconds that a request waits for a session channel.
SESSION_WAIT = 30.0

#: Seconds after the end of a session during which the server may still count it, and between two attempts then.
SETTLE_SECONDS = 0.5
SETTLE_POLL = 0.05

_SESSION = b"session"


class SessionConnection(Connection):
    """A connection service that knows how many session channels it has.

    :ivar session_limit: how many the server allows, as far as is known.
    :ivar session_closed_at: when one was last closed, by the transport's clock.
    :ivar on_session_closed: called when one is closed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.session_limit = MAX_SESSIONS
        self.session_closed_at = float("-inf")
        self.on_session_closed: Callable[[], None] | None = None

    @property
    def sessions(self) -> int:
        """Session channels that are open or being opened."""
        return sum(1 for channel in self.channels.values() if channel.name == _SESSION)

    @property
    def confirmed_sessions(self) -> int:
        """Session channels that the server has opened: at least so many it allows."""
        return sum(1 for channel in self.channels.values() if channel.name == _SESSION and channel.open)

    def forget(self, channel: StreamChannel) -> None:
        """A channel is closed on both sides."""
        super().forget(channel)
        if channel.name == _SESSION:
            self.session_closed_at = self.transport.clock.seconds()
            if self.on_session_closed is not None:
                self.on_session_closed()


class SessionPool:
    """Opens session channels on the first of some lines that has room.

    :param clock: for the time limit.
    :param lines: in the order of preference; those that are not needed are not connected.
    """

    def __init__(self, clock: IReactorTime, lines: Sequence[Line]) -> None:
        self._clock = clock
        self._lines = tuple(lines)
        self._waiting: deque[Deferred[None]] = deque()

    def connect(
        self,
        make: Callable[[Connection], IStreamClientEndpoint],
        factory: IProtocolFactory,
        *,
        patient: bool = True,
    ) -> Deferred[IProtocol]:
        """Open a session channel.

        :param make: given a connection, makes the endpoint to connect.
        :param patient: wait for room; else fail with :class:`rda.errors.LinkDown` when there is none at once.
        :returns: fails with :class:`rda.errors.LinkDown` when there is no connection, or no room within a named time,
            and with :class:`rda.errors.ChannelRefused` when the server refuses what was asked for itself.
        """
        return Deferred.fromCoroutine(self._connect(make, factory, SESSION_WAIT if patient else 0.0))

    async def _connect(
        self, make: Callable[[Connection], IStreamClientEndpoint], factory: IProtocolFactory, patience: float
    ) -> IProtocol:
        deadline = self._clock.seconds() + patience
        while True:
            if all(line.ended for line in self._lines):
                raise LinkDown("rda is not connected to the remote host: it is stopping.")
            line = next((line for line in self._lines if _room(line)), None)
            if line is None:
                await self._wait(deadline)
                continue
            transport = await line.session(max(0.0, min(WAIT_FOR_LINK, deadline - self._clock.seconds())))
            connection = transport.connection
            assert isinstance(connection, SessionConnection)
            if connection.sessions >= connection.session_limit:
                continue  # somebody was faster
            connection.on_session_closed = self._closed
            try:
                return await make(connection).connect(factory)
            except LinkDown:
                # Lost before the channel was open: nothing has been said over it, so it may be opened again.
                if not connection.closed or self._clock.seconds() >= deadline:
                    raise
            except ChannelRefused as error:
                await self._refused(error, connection, deadline)

    async def _refused(self, error: ChannelRefused, connection: SessionConnection, deadline: float) -> None:
        """Learn from a refusal, if it was MaxSessions that spoke.

        :raises ChannelRefused: it was not: what was asked for is refused itself.
        """
        confirmed, now = connection.confirmed_sessions, self._clock.seconds()
        if not error.code or now >= deadline:
            raise error  # code 0 is a refusal of the command, not of its channel
        if now - connection.session_closed_at < SETTLE_SECONDS:
            # sshd counts a session for a moment longer than it says, and does not tell when it stops to.
            await deferLater(self._clock, SETTLE_POLL, lambda: None)
        elif confirmed:
            connection.session_limit = min(connection.session_limit, confirmed)
        else:
            raise error

    async def _wait(self, deadline: float) -> None:
        left = deadline - self._clock.seconds()
        if left <= 0 or len(self._waiting) >= MAX_WAITING:
            raise LinkDown(
                "The SSH server allows no more sessions at a time, and none has ended in time "
                f"({len(self._waiting)} more are waiting). Raise MaxSessions in its sshd_config."
            )
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        timer = self._clock.callLater(left, self._wake, waiting)
        try:
            await waiting
        finally:
            if timer.active():
                timer.cancel()
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def _closed(self) -> None:
        if self._waiting:
            self._wake(self._waiting.popleft())

    def wake_all(self) -> None:
        """The lines have changed: whoever waits looks again."""
        waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            self._wake(one)

    def _wake(self, waiting: Deferred[None]) -> None:
        if not waiting.called:
            waiting.callback(None)


def _room(line: Line) -> bool:
    transport = line.transport
    if transport is None:
        return line.usable
    connection = transport.connection
    assert isinstance(connection, SessionConnection)
    return connection.sessions < connection.session_limit
