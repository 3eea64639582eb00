"""Whether the other end still lives: an SSH connection that knows when it was last heard of, and who asks it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from rda.errors import LinkDown
from rda.ssh.transport import ClientTransport

__all__ = ["Keepalive", "Opened", "WatchedTransport"]

#: Seconds of silence after which sending makes rda ask the peer for a sign of life.
QUIET_SECONDS = 2.0

#: Seconds that a peer in doubt has to answer, and the same in round trips for slow paths.
DOUBT_SECONDS = 3.0
DOUBT_ROUND_TRIPS = 4

#: Seconds that the machine has slept between two questions after which a connection is in doubt.
SLEEP_SECONDS = 2.0


def time_asleep() -> float:
    """Seconds that the machine has slept since it was started, by two clocks of which one stands still meanwhile.

    Where there are no such clocks it is 0.
    """
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    if boottime is None:
        return 0.0
    return time.clock_gettime(boottime) - time.clock_gettime(time.CLOCK_MONOTONIC)


class WatchedTransport(ClientTransport):
    """A transport that knows when it last heard of its peer.

    :ivar heard_at: by its clock, in seconds.
    :ivar on_quiet: called when data is sent to a peer that has been quiet for :data:`QUIET_SECONDS`.
    """

    heard_at = float("-inf")
    on_quiet: Callable[[], None] | None = None

    def data_sent(self) -> None:
        """Whoever sends waits for an answer: do not trust a silence of some seconds."""
        if self.on_quiet is not None and self.clock.seconds() - self.heard_at >= QUIET_SECONDS:
            self.on_quiet()

    def take(self) -> None:
        """Anything that comes is a sign of life: on a busy line the answer to a ping may queue behind megabytes."""
        self.heard_at = self.clock.seconds()
        super().take()


@dataclass(frozen=True)
class Opened:
    """What opening gives: the transport, ready, and how its life is watched.

    :ivar label: ``user@host:port`` as resolved.
    :ivar alive_interval: seconds between probes.
    :ivar alive_count: probes without an answer until the peer counts as dead.
    """

    transport: WatchedTransport
    label: str
    alive_interval: float
    alive_count: int


class Keepalive:
    """Asks the peer for a sign of life, and ends the connection of one that gives none (ssh_config's ServerAlive*).

    Like ssh, it takes whatever comes from the peer for one. After the machine has slept it wants one soon: the peer may
    have given up meanwhile.

    :param measured: called with the seconds that each answer took.
    """

    def __init__(self, opened: Opened, clock: IReactorTime, measured: Callable[[float], None]) -> None:
        self._opened = opened
        self._clock = clock
        self._measured = measured
        self._missed = 0
        self._asked = False
        self._timer: IDelayedCall | None = None
        self._doubt: IDelayedCall | None = None
        self._asleep = 0.0

    def start(self) -> None:
        """Begin to watch, with a first question."""
        self._opened.transport.on_quiet = self.doubt
        self._asleep = time_asleep()
        self.probe()

    def stop(self) -> None:
        """The connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._trust()

    def _trust(self) -> None:
        if self._doubt is not None:
            self._doubt.cancel()
            self._doubt = None

    def doubt(self) -> None:
        """Perhaps the peer is not there any more: then it does not answer soon."""
        if self._doubt is not None:
            return  # it is in doubt already, and must not become less so by more changes
        seconds = max(DOUBT_SECONDS, DOUBT_ROUND_TRIPS * (self._opened.transport.connection.round_trip or 0.0))
        self._asked = False  # the last question may have got lost on the old way
        self.probe()
        self._doubt = self._clock.callLater(seconds, self._unanswered, seconds)

    def _heard_within(self, seconds: float) -> bool:
        return self._clock.seconds() - self._opened.transport.heard_at < seconds

    def _unanswered(self, seconds: float) -> None:
        self._doubt = None
        if not self._heard_within(seconds):
            self._dead(f"has not answered for {seconds:.0f} s")

    def probe(self) -> None:
        """Ask now, and again after each interval."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.callLater(self._opened.alive_interval, self._tick)
        if not self._asked:
            self._asked = True
            self._opened.transport.ping().addCallbacks(self._answered, lambda _: None)

    def _answered(self, seconds: float) -> None:
        self._asked = False
        self._missed = 0
        self._trust()
        self._measured(seconds)

    def _tick(self) -> None:
        self._timer = None
        if self._heard_within(self._opened.alive_interval):
            self._missed = 0
        elif self._asked:
            self._missed += 1
        if self._missed >= self._opened.alive_count:
            silence = self._opened.alive_interval * self._opened.alive_count
            self._dead(f"has not answered for {silence:.0f} s")
        else:
            self.probe()
            # Looked at here, so that a process that is idle wakes up for nothing else.
            before, self._asleep = self._asleep, time_asleep()
            if self._asleep - before >= SLEEP_SECONDS:
                self.doubt()

    def _dead(self, what: str) -> None:
        self._opened.transport.give_up(LinkDown(f"{self._opened.label} {what}."))
