"""rda.deferreds: several are waited for, and several wait for one."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from rda.deferreds import Waiters, each, follow, gather


class EachTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.begun: list[Deferred[None]] = []

    async def work(self, item: int) -> None:
        done: Deferred[None] = Deferred()
        self.begun.append(done)
        await done

    def test_limit(self) -> None:
        """No more is under way at once than the limit; the next begins when one has ended."""
        all_done = Deferred.fromCoroutine(each(range(5), 2, self.work))
        self.assertEqual(len(self.begun), 2)
        self.begun[1].callback(None)
        self.assertEqual(len(self.begun), 3)
        for done in (0, 2, 3, 4):
            self.begun[done].callback(None)
        self.successResultOf(all_done)

    def test_failure(self) -> None:
        """After a failure nothing new is begun, and it is raised when all that was under way has ended."""
        all_done = Deferred.fromCoroutine(each(range(5), 2, self.work))
        self.begun[0].errback(KeyError("first"))
        self.assertNoResult(all_done)
        self.begun[1].errback(KeyError("second"))
        self.assertEqual(self.failureResultOf(all_done, KeyError).value.args, ("first",))
        self.assertEqual(len(self.begun), 2)


class GatherTests(SynchronousTestCase):
    def test_order(self) -> None:
        """The results are in the order of what is waited for, not of their coming."""
        first, second = Deferred[int](), Deferred[int]()
        both = Deferred.fromCoroutine(gather(first, second))
        second.callback(2)
        first.callback(1)
        self.assertEqual(self.successResultOf(both), [1, 2])

    def test_failure(self) -> None:
        """A failure is raised only when nothing is under way any more."""
        first, second = Deferred[int](), Deferred[int]()
        both = Deferred.fromCoroutine(gather(first, second))
        first.errback(KeyError("first"))
        self.assertNoResult(both)
        second.callback(2)
        self.failureResultOf(both, KeyError)


class FollowTests(SynchronousTestCase):
    def test_alone(self) -> None:
        """A follower that is cancelled leaves the source, and other followers, alone."""
        source = Deferred[int]()
        given_up, other = follow(source), follow(source)
        given_up.cancel()
        self.failureResultOf(given_up, CancelledError)
        source.callback(1)
        self.assertEqual((self.successResultOf(other), self.successResultOf(source)), (1, 1))


class WaitersTests(SynchronousTestCase):
    def test_all(self) -> None:
        """Everybody who waits gets the result; who comes later waits for the next one."""
        waiters = Waiters[int]()
        early = [waiters.wait(), waiters.wait()]
        waiters.fire(1)
        late = waiters.wait()
        self.assertEqual([self.successResultOf(one) for one in early], [1, 1])
        self.assertNoResult(late)

    def test_failure(self) -> None:
        """A failure is everybody's."""
        waiters = Waiters[int]()
        waiting = [waiters.wait(), waiters.wait()]
        waiters.fire(Failure(KeyError("no")))
        for one in waiting:
            self.failureResultOf(one, KeyError)

    def test_cancelled(self) -> None:
        """One that is cancelled, be it by another one that goes on, gets nothing; the others do."""
        waiters = Waiters[int]()
        first, second, third, fourth = (waiters.wait() for _ in range(4))
        second.cancel()
        first.addCallback(lambda _: third.cancel())
        waiters.fire(1)
        self.successResultOf(fourth)
        for one in (second, third):
            self.failureResultOf(one, CancelledError)
