"""Calls that wait for a bind mount to be complete: told in the status, and in the log when it takes long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from rda.status import WaitStatus

__all__ = ["Waiting"]

#: Seconds that a call waits before the log says why, and between two further lines.
EXPLAIN_SECONDS = 3.0
REPEAT_SECONDS = 10.0


class Waiting:
    """The calls of one context that wait.

    :param clock: for the log.
    :param wall_clock: seconds since the epoch.
    :param explain: says how far a source is.
    """

    _log = Logger()

    def __init__(self, clock: Any, wall_clock: Callable[[], float], explain: Callable[[str], str]) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._explain = explain
        self._waits: dict[Deferred[Any], WaitStatus] = {}

    def status(self) -> tuple[WaitStatus, ...]:
        """The calls that wait now, the longest first."""
        return tuple(self._waits.values())

    def watch(self, call: str, source: str, work: Deferred[Any]) -> Deferred[Any]:
        """Have it be known that a call waits for a source until ``work`` fires.

        :param call: for people, e.g. ``start of web``.
        """
        if work.called:
            return work
        wait = self._waits[work] = WaitStatus(call, source, self._wall_clock())
        began = self._clock.seconds()
        timer: list[IDelayedCall] = []

        def explain() -> None:
            timer[:] = [self._clock.callLater(REPEAT_SECONDS, explain)]
            how = self._explain(source)
            self._log.info("{call} waits for {source}: {how}", call=wait.call, source=source, how=how)

        def over(result: Any) -> Any:
            del self._waits[work]
            timer[0].cancel()
            seconds = self._clock.seconds() - began
            if seconds >= EXPLAIN_SECONDS:
                self._log.info(
                    "{call} has waited {seconds:.0f} s for {source}", call=wait.call, source=source, seconds=seconds
                )
            return result

        timer.append(self._clock.callLater(EXPLAIN_SECONDS, explain))
        return work.addBoth(over)
