"""The latest calls, for people who wonder what is going on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from twisted.internet.interfaces import IReactorTime

from rda.proxy.counters import Counters
from rda.proxy.relay import Exchange
from rda.status import CallStatus

__all__ = ["Calls"]

#: Calls that are remembered after their end, and that are told of as being under way.
REMEMBERED = 50
SHOWN_RUNNING = 50

#: Characters of a path that are remembered: names in it can be as long as a head may be.
LONGEST_PATH = 200

#: What :class:`CallStatus` holds, as far as it is known before the end; made into one only when somebody asks.
_Described = tuple[bytes, str, str, str, float, "int | None", "float | None"]


class Calls:
    """The calls of one site.

    :param wall_clock: seconds since the epoch.
    """

    def __init__(self, clock: IReactorTime, wall_clock: Callable[[], float], counters: Counters) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._counters = counters
        self._running: dict[Exchange, None] = {}
        self._over: deque[tuple[Any, ...]] = deque(maxlen=REMEMBERED)

    def began(self, exchange: Exchange) -> None:
        """A call is under way."""
        self._counters.active += 1
        self._running[exchange] = None

    def ended(self, exchange: Exchange) -> None:
        """It is over."""
        self._counters.active -= 1
        self._running.pop(exchange, None)
        passed = self._clock.seconds() - exchange.began
        self._over.append((*self._describe(exchange, passed), passed))

    def _describe(self, exchange: Exchange, passed: float) -> _Described:
        call = exchange.call
        began = self._wall_clock() - passed
        path = call.path[:LONGEST_PATH]
        return (call.method, path, call.route.name, call.caller.user, began, exchange.code, exchange.answered)

    def status(self) -> tuple[CallStatus, ...]:
        """The calls under way, then those that are over; newest first."""
        now = self._clock.seconds()
        latest = islice(reversed(self._running), SHOWN_RUNNING)
        running = [_status(*self._describe(one, now - one.began)) for one in latest]
        return (*running, *(_status(*one) for one in reversed(self._over)))


def _status(method: bytes, *rest: Any) -> CallStatus:
    return CallStatus(method.decode("ascii", "replace"), *rest)
