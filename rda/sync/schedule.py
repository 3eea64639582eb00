"""When a mirror looks again by itself: in a while, at intervals, and at what failed, less and less often."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from rda.sync.tree import WHOLE, Scope

#: Seconds before a pass or a path that failed is tried again; doubled each time up to the second number.
RETRY_FIRST, RETRY_LONGEST = 1.0, 60.0


class Schedule:
    """The looks of one mirror that are due later, each under a name.

    :param look: called when one is due.
    """

    def __init__(self, clock: IReactorTime, look: Callable[[Scope], None]) -> None:
        self._clock = clock
        self._look = look
        self._timers: dict[str, IDelayedCall] = {}
        self._retry = RETRY_FIRST
        self._owed = Scope()
        self._stopped = False

    def __contains__(self, name: str) -> bool:
        return name in self._timers

    def later(self, name: str, delay: float, scope: Scope) -> None:
        """Look in ``delay`` seconds, and not when the look of that name was due before."""
        self._set(name, delay, lambda: self._look(scope))

    def again(self, scope: Scope) -> None:
        """Try this again when the time for trying again has come; passes in between do not put it off."""
        self._owed = both(self._owed, scope)
        if "retry" not in self._timers:
            self._set("retry", self._retry, self._look_at_owed)
            self._retry = min(self._retry * 2, RETRY_LONGEST)

    def went_well(self) -> None:
        """A pass left nothing to be tried again but what was owed before."""
        if not self._owed:
            self._retry = RETRY_FIRST
            self.cancel("retry")

    def hope(self) -> None:
        """What failed may work from now on: try soon."""
        self._retry = RETRY_FIRST

    def cancel(self, *names: str) -> None:
        """Those looks are not wanted any more."""
        for name in names:
            timer = self._timers.pop(name, None)
            if timer is not None:
                timer.cancel()

    def stop(self) -> None:
        """No look is wanted any more."""
        self._stopped = True
        self.cancel(*self._timers)

    def _look_at_owed(self) -> None:
        owed, self._owed = self._owed, Scope()
        self._look(owed)

    def _set(self, name: str, delay: float, do: Callable[[], None]) -> None:
        self.cancel(name)
        if self._stopped:
            return

        def due() -> None:
            del self._timers[name]
            do()

        self._timers[name] = self._clock.callLater(delay, due)


def both(one: Scope, other: Scope) -> Scope:
    """A scope that holds two others."""
    if b"" in one.trees or b"" in other.trees:
        return WHOLE
    return Scope(one.paths | other.paths, one.trees | other.trees)
