"""Applying a changed configuration to what runs."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from rda.config import Config, Context, Remote
from rda.errors import ConfigError
from rda.reload import Difference, Reloading, difference
from rda.status import Problem


def context(name: str, remote: str = "host") -> Context:
    return Context(name, Remote(remote), (f"unix:/run/{name}.sock",))


def config(*contexts: Context) -> Config:
    return Config(contexts, "/state")


A, B, C = context("a"), context("b"), context("c")
CHANGED = context("b", "elsewhere")

CONTEXTS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(("x", "y")), max_size=6).map(
    lambda made: tuple(context(name, remote) for name, remote in made.items())
)


class DifferenceTests(SynchronousTestCase):
    def test_described(self) -> None:
        """Contexts come, go and change; the others are not named."""
        running = {"a": A, "b": B}
        self.assertEqual(difference(running, config(A, B)), Difference((), ()))
        self.assertEqual(difference(running, config(A, B, C)), Difference((), (C,)))
        self.assertEqual(difference(running, config(B)), Difference(("a",), ()))
        self.assertEqual(difference(running, config(CHANGED, A)), Difference(("b",), (CHANGED,)))
        self.assertEqual(difference({}, config(A, B)), Difference((), (A, B)))

    @settings(max_examples=100, deadline=None)
    @given(CONTEXTS, CONTEXTS)
    def test_law(self, before: tuple[Context, ...], after: tuple[Context, ...]) -> None:
        """Doing it leads from what runs to what is wanted, and touches nothing that is in both."""
        running = {one.name: one for one in before}
        changes = difference(running, config(*after))
        for name in changes.stop:
            self.assertNotIn(running.pop(name), after)
        for one in changes.start:
            self.assertNotIn(one.name, running)
            self.assertNotIn(one, before)
            running[one.name] = one
        self.assertEqual(running, {one.name: one for one in after})


class ReloadingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.wanted: list[Config | ConfigError] = []
        self.applied: list[Config] = []
        self.result: Deferred[list[Problem]] | None = None
        self.ended = 0
        self.reloading = Reloading(self.load, self.change, self.ends, lambda: 7.0)

    def ends(self) -> None:
        self.ended += 1

    def load(self) -> Config:
        found = self.wanted.pop(0)
        if isinstance(found, ConfigError):
            raise found
        return found

    async def change(self, wanted: Config) -> list[Problem]:
        self.applied.append(wanted)
        return await self.result if self.result is not None else []

    def test_applied(self) -> None:
        """A good file is applied."""
        self.wanted = [config(A)]
        self.reloading.request()
        self.assertEqual((self.applied, self.reloading.problems(), self.ended), ([config(A)], (), 1))
        self.assertEqual(self.reloading.count, 1)
        self.successResultOf(self.reloading.when_idle())

    def test_a_bad_file(self) -> None:
        """A bad file changes nothing; each of its problems is shown, until a good one is read."""
        self.wanted = [ConfigError(["docker: is wrong", "listen: too"]), config(A)]
        self.reloading.request()
        self.assertEqual(self.applied, [])
        first, second = self.reloading.problems()
        self.assertEqual((first.subject, first.since), ("configuration", 7.0))
        self.assertIn("docker: is wrong (the file is not applied", first.message)
        self.assertIn("listen: too", second.message)
        self.reloading.request()
        self.assertEqual((self.applied, self.reloading.problems()), ([config(A)], ()))

    def test_what_does_not_work(self) -> None:
        """What cannot be applied is shown."""
        problem = Problem("context a", "cannot listen", 1.0)
        self.wanted = [config(A)]
        self.result = Deferred()
        self.reloading.request()
        self.result.callback([problem])
        self.assertEqual(self.reloading.problems(), (problem,))

    def test_one_after_the_other(self) -> None:
        """While one is applied, any number of further wishes are one more reading."""
        self.wanted = [config(A), config(B), config(C)]
        self.result = first = Deferred()
        self.reloading.request()
        idle = self.reloading.when_idle()
        for _ in range(3):
            self.reloading.request()
        self.assertEqual(self.applied, [config(A)])
        self.result = None
        self.assertNoResult(idle)
        first.callback([])
        self.assertEqual((self.applied, self.ended, self.reloading.count), ([config(A), config(B)], 1, 1))
        self.successResultOf(idle)

    def test_a_defect(self) -> None:
        """A defect is logged and said, and the next reading is not in its way."""
        self.wanted = [config(A), config(B)]
        self.result = Deferred()
        self.reloading.request()
        self.result.errback(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIn("defect", self.reloading.problems()[0].message)
        self.result = None
        self.reloading.request()
        self.assertEqual(self.reloading.problems(), ())
        self.assertEqual(self.applied[-1], config(B))
