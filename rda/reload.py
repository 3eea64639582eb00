"""Applying a changed configuration to a running agent: whole or not at all, and only where it differs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from rda.config import Config, Context
from rda.deferreds import Waiters
from rda.errors import ConfigError
from rda.status import Problem

__all__ = ["Difference", "Reloading", "difference"]


@dataclass(frozen=True)
class Difference:
    """What has to happen to the contexts that run; those that are not named go on undisturbed.

    :ivar stop: names, in the order in which they run.
    :ivar start: in the order of the configuration. A context that changed is stopped, then started.
    """

    stop: tuple[str, ...]
    start: tuple[Context, ...]


def difference(running: Mapping[str, Context], wanted: Config) -> Difference:
    """Compare what runs with what is wanted."""
    after = {context.name: context for context in wanted.contexts}
    return Difference(
        stop=tuple(name for name, context in running.items() if after.get(name) != context),
        start=tuple(context for name, context in after.items() if running.get(name) != context),
    )


class Reloading:
    """Reads the configuration again when asked to, one time after the other.

    :param load: reads and checks it; raises :class:`~rda.errors.ConfigError`.
    :param change: applies it; returns what does not work, or raises ConfigError before it has changed anything.
    :param ended: called when there is nothing more to apply.
    :param now: seconds since the epoch.
    :ivar count: how often it has come to an end.
    """

    _log = Logger()

    def __init__(
        self,
        load: Callable[[], Config],
        change: Callable[[Config], Awaitable[list[Problem]]],
        ended: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        self._load = load
        self._change = change
        self._ended = ended
        self._now = now
        self._problems: tuple[Problem, ...] = ()
        self._busy = False
        self._again = False
        self._idle: Waiters[None] = Waiters()
        self.count = 0

    def problems(self) -> tuple[Problem, ...]:
        """What of the last configuration is not in effect, and why."""
        return self._problems

    def request(self) -> None:
        """Read it again; when that is going on already, once more afterwards."""
        self._again = True
        if not self._busy:
            Deferred.fromCoroutine(self._run()).addErrback(
                lambda failure: self._log.failure("defect while applying the configuration", failure)
            )

    async def _run(self) -> None:
        self._busy = True
        try:
            while self._again:
                self._again = False
                await self._once()
        finally:
            self._busy = False
            self.count += 1
            self._ended()
            self._idle.fire(None)

    def when_idle(self) -> Deferred[None]:
        """Fire when nothing is being applied."""
        return self._idle.wait() if self._busy else succeed(None)

    async def _once(self) -> None:
        try:
            problems = await self._change(self._load())
        except ConfigError as error:
            self._log.error("The configuration is not applied, the one before stays: {problems}", problems=str(error))
            self._problems = tuple(self._problem(problem) for problem in error.problems)
            return
        except BaseException:
            self._problems = (
                Problem("configuration", "a defect of rda was in its way; its log has more", self._now()),
            )
            raise
        self._problems = tuple(problems)
        if not problems:
            self._log.info("The configuration has been applied")
        for problem in problems:
            self._log.error("{subject}: {message}", subject=problem.subject, message=problem.message)

    def _problem(self, problem: str) -> Problem:
        message = f"{problem} (the file is not applied, the configuration before it stays; mend it and reload again)"
        return Problem("configuration", message, self._now())
