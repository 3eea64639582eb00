"""The line that closes a test run."""

from twisted.trial.unittest import SynchronousTestCase

from tests.report import counts, modules


class Counts(SynchronousTestCase):
    """Reading trial's verdict."""

    def test_passed(self):
        """Successes count as passed, skips and expected failures as skipped."""
        self.assertEqual(counts("PASSED (skips=2, expectedFailures=1, successes=40)"), {"passed": 40, "skipped": 3})

    def test_failed(self):
        """Failures, errors and unexpected successes count as failed."""
        self.assertEqual(
            counts("FAILED (failures=1, errors=2, unexpectedSuccesses=4, successes=8)"), {"passed": 8, "failed": 7}
        )

    def test_nothing_ran(self):
        """A verdict without numbers is a verdict."""
        self.assertEqual(counts("PASSED"), {})

    def test_other_lines(self):
        """Nothing else that a test prints is taken for the verdict."""
        self.assertIsNone(counts("PASSED (nearly) everything"[:6] + "!"))
        self.assertIsNone(counts("test_x ... PASSED (successes=1)"))


class Modules(SynchronousTestCase):
    """Which modules belong to a set."""

    def test_sets(self):
        """The unit tests are those outside tests.live and tests.soak, the other sets those inside."""
        self.assertIn("tests.test_report", modules("unit"))
        self.assertFalse([name for name in modules("unit") if ".live" in name or ".soak" in name])
        self.assertTrue(all(name.startswith("tests.live.test_") for name in modules("live")))
        self.assertIn("tests.soak.test_relay", modules("soak"))

    def test_a_name(self):
        """Anything else is passed to trial as it is."""
        self.assertEqual(modules("tests.test_x"), ["tests.test_x"])
