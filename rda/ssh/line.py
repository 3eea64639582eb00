"""One SSH connection that always comes back: :class:`Line`.

``ClientService`` owns the reconnecting. Its machine does not allow a connection to be lost while it is being prepared,
so its protocol here is a stand-in that only exists from the end of the login to the loss of the connection::

    connecting ──▶ connected ──▶ waiting ──▶ connecting …
        │  └───────────────────────▲
        └──▶ failed (a person has to act) ──retry()──▶ connecting
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from twisted.application.internet import ClientService
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.deferreds import follow
from rda.errors import HostKeyRefused, LinkDown, RdaError
from rda.ssh.channels import Connection
from rda.ssh.keepalive import Keepalive, Opened
from rda.ssh.transport import ClientTransport
from rda.status import LinkState

__all__ = ["Backoff", "Line"]

#: Seconds before the first new attempt, and the most between two. The second is what a user whose network is back waits
#: at worst without :meth:`Line.retry`.
FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0

#: A connection that lasts less than so many seconds counts as a failed attempt, up to so many in a row: a server that
#: takes and drops connections is not to be hammered, but it was reached, and so the delay stays below
#: :data:`WAIT_FOR_LINK`.
STABLE_SECONDS = 2.0
MOST_UNSTABLE = 2

#: Seconds that a request waits for the connection to come back; a Docker client gets 503 with the reason then. The
#: docker CLI makes two requests, one after the other, before it gives up.
WAIT_FOR_LINK = 5.0

#: Requests that wait for the connection; more fail at once.
MAX_WAITING = 1024

#: Seconds without a channel after which a line that is only connected when needed is closed.
IDLE_SECONDS = 60.0

#: Seconds that pass before a request makes rda try again what only a person can mend, as they may have done: a host key
#: that was not trusted, which costs nothing; and a refused login, which servers count.
TRUST_AGAIN_SECONDS = 2.0
LOG_IN_AGAIN_SECONDS = 30.0

#: Measured round trips that are remembered, for the status: a quarter of an hour of a quiet link's.
ROUND_TRIPS_KEPT = 180

T = TypeVar("T")


class Backoff:
    """How long to wait before each attempt: exponential, with jitter, so that many do not come back at once.

    :param jitter: a number from 0 to 1.
    """

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._unstable = 0

    def lasted(self, seconds: float) -> None:
        """A connection was lost after so many seconds."""
        self._unstable = 0 if seconds >= STABLE_SECONDS else min(self._unstable + 1, MOST_UNSTABLE)

    def __call__(self, attempt: int) -> float:
        """Seconds to wait before the next attempt, after ``attempt`` failures in a row.

        Between half and all of the doubled delay: never at once, never more than :data:`LONGEST_DELAY`.
        """
        failures = min(attempt + self._unstable, 32)
        delay = min(FIRST_DELAY * 2.0 ** max(0, failures - 1), LONGEST_DELAY)
        return delay * (0.5 + 0.5 * self._jitter())


class _Session(Protocol):
    """Stands for a connection in ClientService: connected when the login is done, lost when the transport is."""


class Line(Service):
    """An SSH connection, kept up as long as the service runs.

    :param reactor: the clock.
    :param open: opens one connection, verified and logged in; can be cancelled.
    :param wall_clock: seconds since the epoch, for the status.
    :param on_change: called when :attr:`state` has changed.
    :param on_demand: connect only when somebody asks, and close when nothing has used it for a while.
    :ivar state: ``stopped``, ``idle``, ``connecting``, ``connected``, ``waiting`` or ``failed``.
    :ivar ended: it was stopped; before its start, requests wait for that.
    :ivar reason: why it is not connected.
    :ivar since: when the state began, seconds since the epoch.
    :ivar next_try: when the next attempt is made, seconds since the epoch.
    :ivar round_trip: seconds, as last measured; ``round_trips``: the last ones, with the time of each.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        open: Callable[[], Deferred[Opened]],
        wall_clock: Callable[[], float],
        on_change: Callable[[], None] = lambda: None,
        *,
        on_demand: bool = False,
        backoff: Backoff | None = None,
    ) -> None:
        self._clock = reactor
        self._open = open
        self._wall_clock = wall_clock
        self._on_change = on_change
        self._on_demand = on_demand
        self._backoff = backoff or Backoff()
        self._client: ClientService | None = None
        self._waiting: dict[Deferred[ClientTransport], IDelayedCall] = {}
        self._failure: RdaError | None = None
        self._failed_at = 0.0
        self._connected_at = 0.0
        self._watch: Keepalive | None = None
        self._idle_timer: IDelayedCall | None = None
        self._closing: Deferred[None] | None = None
        self.opened: Opened | None = None
        self.ended = False
        self.state: LinkState = "stopped"
        self.reason = ""
        self.since = wall_clock()
        self.next_try: float | None = None
        self.connects = 0
        self.round_trip: float | None = None
        self.round_trips: deque[tuple[float, float]] = deque(maxlen=ROUND_TRIPS_KEPT)

    # -- asked from outside

    @property
    def transport(self) -> ClientTransport | None:
        """The connection while there is one.

        Its channels are told before :meth:`_lost` is: they must not be sent back to what is just being lost.
        """
        if self.opened is None or self.opened.transport.connection.closed:
            return None
        return self.opened.transport

    @property
    def usable(self) -> bool:
        """Whether asking for :meth:`session` has a chance."""
        return not self.ended and (self._failure is None or self._on_demand)

    def startService(self) -> None:
        """Connect, or be ready to."""
        if self.running:
            return
        super().startService()
        self._failure = None
        self.ended = False
        if self._on_demand and not self._waiting:
            self._become("idle")
        else:
            self._connect()

    def stopService(self) -> Deferred[None]:
        """Close the connection; fires when it is closed. Whoever waits for it is told."""
        super().stopService()
        self.ended = True
        self._release(LinkDown("rda is closing its connection to the remote host."))
        closed = self._disconnect()
        self._become("stopped")
        return closed

    def session(self, limit: float = WAIT_FOR_LINK) -> Deferred[ClientTransport]:
        """The connection, as soon as there is one.

        :param limit: seconds to wait.
        :returns: fails with the reason: at once when only a person can bring it back, else when the time is up.
        """
        if self.transport is not None:
            return succeed(self.transport)
        if self.ended:
            return fail(LinkDown("rda is not connected to the remote host: it is stopping."))
        if self._failure is not None and not self._on_demand and not self._may_be_mended:
            return fail(self._failure)
        if len(self._waiting) >= MAX_WAITING:
            return fail(LinkDown(f"More than {MAX_WAITING} requests wait for the connection. {self.reason}".strip()))
        waiting: Deferred[ClientTransport] = Deferred(self._forget)
        self._waiting[waiting] = self._clock.callLater(limit, self._tired, waiting, limit)
        if self.running and self._client is None:
            self._failure = None
            self._connect()
        return waiting

    @property
    def _may_be_mended(self) -> bool:
        """Whether a person has had time to mend what they alone can."""
        seconds = TRUST_AGAIN_SECONDS if isinstance(self._failure, HostKeyRefused) else LOG_IN_AGAIN_SECONDS
        return self._clock.seconds() - self._failed_at >= seconds

    async def attempt(self, open_channel: Callable[[Connection], Awaitable[T]]) -> T:
        """Open a channel; once more on the next connection when this one is lost before the channel is open.

        Nothing has been said over the channel by then, so that trying again cannot do anything twice.

        :raises rda.errors.LinkDown: there is no connection within the time that a request waits.
        """
        deadline = self._clock.seconds() + WAIT_FOR_LINK
        while True:
            transport = await self.session(max(0.0, deadline - self._clock.seconds()))
            try:
                return await open_channel(transport.connection)
            except LinkDown:
                if not transport.connection.closed or self._clock.seconds() >= deadline:
                    raise

    def retry(self) -> None:
        """Try now, whatever stands against it: a person or the network has changed something."""
        if not self.running or self.state not in ("waiting", "failed"):
            return
        self._failure = None
        self._backoff.lasted(STABLE_SECONDS)
        self._disconnect().addCallback(lambda _: self._connect() if self._wanted else None)

    def probe(self) -> None:
        """Something may have happened to the network: find out now whether the connection still lives."""
        if self._watch is not None:
            self._watch.doubt()
        else:
            self.retry()

    @property
    def _wanted(self) -> bool:
        return bool(self.running) and self._client is None and (not self._on_demand or bool(self._waiting))

    # -- connecting

    def _connect(self) -> None:
        factory = Factory.forProtocol(_Session)
        factory.noisy = False
        self._client = ClientService(_LineEndpoint(self._attempt), factory, self._delay, self._clock)
        # ClientService tells every attempt at info level, with our endpoint's name: the state's own lines say more.
        self._client.startService()

    def _disconnect(self) -> Deferred[None]:
        client, self._client = self._client, None
        self.next_try = None
        if client is None:
            return succeed(None) if self._closing is None else follow(self._closing)
        closing: Deferred[None] = Deferred()
        self._closing = closing

        def closed(result: object) -> None:
            if self._closing is closing:
                self._closing = None
            closing.callback(None)

        client.stopService().addBoth(closed)
        return follow(closing)

    def _attempt(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        self.next_try = None
        self._become("connecting", self.reason)
        return self._open().addCallback(self._deliver, factory).addErrback(self._not_opened)

    def _deliver(self, opened: Opened, factory: IProtocolFactory) -> IProtocol:
        transport = opened.transport
        if transport.lost.called:
            raise transport.reason
        session = factory.buildProtocol(_Nowhere())
        assert session is not None
        session.makeConnection(transport)  # type: ignore[arg-type]  # ClientService only closes it

        def lost(reason: RdaError) -> RdaError:
            self._lost(opened, reason)
            session.connectionLost(Failure(reason))
            return reason

        transport.lost.addCallback(lost)
        # Not before ClientService has got it: whoever hears of it may want to close it at once.
        self._clock.callLater(0, self._up, opened)
        return session

    def _not_opened(self, failure: Failure) -> Failure:
        error = failure.value
        if isinstance(error, (CancelledError, ConnectingCancelledError)):
            return failure
        if not isinstance(error, RdaError):
            self._log.failure("connecting failed unexpectedly", failure)
            error = LinkDown(f"Connecting failed unexpectedly ({error!r}); the log has more.")
        self._log.info("not connected: {reason}", reason=str(error))
        if error.permanent:
            self._clock.callLater(0, self._give_up, error, self._client)
        self._become("failed" if error.permanent else "waiting", str(error))
        return failure

    def _give_up(self, error: RdaError, client: ClientService | None) -> None:
        if client is None or client is not self._client:
            return  # stopped or tried again meanwhile
        self._failure = error
        self._failed_at = self._clock.seconds()
        self._disconnect()
        self._release(error)
        self._become("failed", str(error))

    def _delay(self, attempt: int) -> float:
        delay = self._backoff(attempt)
        self.next_try = self._wall_clock() + delay
        return delay

    # -- connected

    def _up(self, opened: Opened) -> None:
        if opened.transport.lost.called or self._client is None:
            return
        self.opened = opened
        self.connects += 1
        self._connected_at = self._clock.seconds()
        self._watch = Keepalive(opened, self._clock, self._measured)
        self._become("connected")
        waiting = list(self._waiting)
        for one in waiting:
            self._settle(one, opened.transport)
        self._watch.start()
        if self._on_demand:
            self._look_for_idleness()

    def _measured(self, seconds: float) -> None:
        self.round_trip = seconds
        self.round_trips.append((self._wall_clock(), seconds))

    def _lost(self, opened: Opened, reason: RdaError) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self.opened is opened:
            self.opened = None
            self.round_trip = None
            self._backoff.lasted(self._clock.seconds() - self._connected_at)
        if self.running and self._client is not None:
            self._log.info("connection lost: {reason}", reason=str(reason))
            self._become("waiting", str(reason))
        if self._on_demand and not self._waiting and self._client is not None:
            # Nobody needs it any more. Not now: ClientService has not been told yet.
            self._clock.callLater(0, self._rest)

    def _look_for_idleness(self) -> None:
        self._idle_timer = self._clock.callLater(IDLE_SECONDS, self._idle_check)

    def _idle_check(self) -> None:
        self._idle_timer = None
        if self.opened is None:
            return
        if self.opened.transport.connection.channels:
            self._look_for_idleness()
        else:
            self._rest()

    def _rest(self) -> None:
        if self._client is not None and not self._waiting and self.running:
            self._disconnect()
            self._become("idle")

    # -- whoever waits

    def _tired(self, waiting: Deferred[ClientTransport], limit: float) -> None:
        reason = self.reason or "The SSH connection is still being made."
        self._settle(waiting, Failure(LinkDown(f"{reason} (rda waited {limit:.0f} s for it, and goes on trying)")))
        if self._on_demand:
            self._rest()

    def _release(self, error: RdaError) -> None:
        for waiting in list(self._waiting):
            self._settle(waiting, Failure(error))

    def _settle(self, waiting: Deferred[ClientTransport], result: ClientTransport | Failure) -> None:
        if waiting in self._waiting:
            self._forget(waiting)
            waiting.callback(result)  # a Failure is passed on as one

    def _forget(self, waiting: Deferred[ClientTransport]) -> None:
        timer = self._waiting.pop(waiting, None)
        if timer is not None and timer.active():
            timer.cancel()

    def _become(self, state: LinkState, reason: str = "") -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason, self.since = state, reason, self._wall_clock()
            self._on_change()


@implementer(IStreamClientEndpoint)
class _LineEndpoint:
    """What ClientService connects: the whole way to the end of the login."""

    def __init__(self, attempt: Callable[[IProtocolFactory], Deferred[IProtocol]]) -> None:
        self._attempt = attempt

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        return self._attempt(protocolFactory)

    def __repr__(self) -> str:
        return "the SSH connection"


@implementer(IAddress)
class _Nowhere:
    """The stand-in's address: nobody asks for it."""
