"""Deferreds, where several are waited for, and where several wait for one."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

__all__ = ["InThread", "Waiters", "each", "follow", "gather", "threads_of"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Arguments = ParamSpec("_Arguments")


class InThread(Protocol):
    """Runs a blocking function with its arguments in a thread, and fires with its result."""

    def __call__(
        self, function: Callable[_Arguments, _Result], /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Deferred[_Result]:
        """Begin."""


def threads_of(reactor: Any) -> InThread:
    """Return what runs functions in the thread pool of a reactor."""

    def run(
        function: Callable[_Arguments, _Result], /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Deferred[_Result]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), function, *args, **kwargs)

    return run


async def each(items: Iterable[_Item], limit: int, work: Callable[[_Item], Awaitable[None]]) -> None:
    """Do ``work`` for all items, at most ``limit`` at once; after the first failure nothing new is begun.

    :raises Exception: the first failure, when everything that was under way has ended.
    """
    failures: list[Failure] = []
    iterator = iter(items)

    async def worker(first: _Item) -> None:
        for item in itertools.chain((first,), iterator):
            if failures:
                return
            try:
                await work(item)
            except Exception:
                failures.append(Failure())
                return

    workers = [Deferred.fromCoroutine(worker(first)) for first in itertools.islice(iterator, limit)]
    await DeferredList(workers)
    if failures:
        failures[0].raiseException()


async def gather(*pending: Deferred[Any]) -> list[Any]:
    """Wait for all of them.

    :returns: their results, in their order.
    :raises Exception: the first failure in that order, when all have ended.
    """
    results = await DeferredList(pending, consumeErrors=True)
    for succeeded, result in results:
        if not succeeded:
            assert isinstance(result, Failure)
            result.raiseException()
    return [result for _, result in results]


def follow(source: Deferred[_Result]) -> Deferred[_Result]:
    """Return a Deferred of one's own that fires as ``source`` does, which never fails; it may be cancelled alone."""
    follower: Deferred[_Result] = Deferred()

    def pass_on(result: _Result) -> _Result:
        if not follower.called:
            follower.callback(result)
        return result

    source.addCallback(pass_on)
    return follower


class Waiters(Generic[_Result]):
    """Whoever waits for one thing: each has a Deferred of its own, and may cancel it alone."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[_Result]] = []

    def wait(self) -> Deferred[_Result]:
        """Fire with the next :meth:`fire`."""
        waiting: Deferred[_Result] = Deferred(self._cancelled)
        self._waiting.append(waiting)
        return waiting

    def fire(self, result: _Result | Failure) -> None:
        """Let all of them go on with a result, or fail; whoever waits from now on waits for the next one."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.called:  # else it was cancelled by one before it
                one.callback(result)  # a Failure is passed on as one

    def _cancelled(self, waiting: Deferred[_Result]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
