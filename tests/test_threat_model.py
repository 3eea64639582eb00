"""The threat model names a test for each of its claims: the tests exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

TEXT = (Path(__file__).parent.parent / "docs" / "threat-model.rst").read_text(encoding="utf-8")

#: Between these headings each item is a claim.
CLAIMS = TEXT.partition("Who can do what\n")[2].partition("Out of scope\n")[0]


class ThreatModelTests(SynchronousTestCase):
    def test_every_claim_names_a_test(self) -> None:
        """No claim stands without one."""
        items = re.split(r"^- ", CLAIMS, flags=re.MULTILINE)[1:]
        self.assertGreater(len(items), 25)
        for item in items:
            self.assertRegex(item.partition("\n\n")[0].strip(), r"\[test_[\w.]+\]$")

    def test_the_tests_exist(self) -> None:
        """Each is a module, a class or a method of tests/."""
        for name in re.findall(r"\[(test_[\w.]+)\]", CLAIMS):
            module, *rest = name.split(".")
            found: object = importlib.import_module(f"tests.{module}")
            for part in rest:
                found = getattr(found, part)
