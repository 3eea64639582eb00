"""Run sets of tests with trial and close with one line that counts them all: ``python -m tests.report unit live``.

``unit`` is every ``tests/test_*.py``, ``live`` every ``tests/live/test_*.py``, ``soak`` every ``tests/soak/test_*.py``;
other names are what trial takes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent

#: How trial's counts add up to ours; a test that is known to fail and does is neither news nor a success.
_MEANING = {
    "successes": "passed",
    "expectedFailures": "skipped",
    "skips": "skipped",
    "failures": "failed",
    "errors": "failed",
    "unexpectedSuccesses": "failed",
}

_VERDICT = re.compile(r"^(?:PASSED|FAILED)(?: \((.*)\))?$")


def modules(name: str) -> list[str]:
    """Return the modules of the set ``name``."""
    sets = {"unit": (HERE, "tests"), "live": (HERE / "live", "tests.live"), "soak": (HERE / "soak", "tests.soak")}
    if name not in sets:
        return [name]
    directory, package = sets[name]
    return [f"{package}.{file.stem}" for file in sorted(directory.glob("test_*.py"))]


def counts(verdict: str) -> Counter[str] | None:
    """Read trial's closing line, ``PASSED (skips=1, successes=2)``; None when it is not one."""
    matched = _VERDICT.match(verdict)
    if matched is None:
        return None
    total: Counter[str] = Counter()
    for item in filter(None, (matched.group(1) or "").split(", ")):
        word, _, number = item.partition("=")
        total[_MEANING[word]] += int(number)
    return total


def run(name: str) -> Counter[str]:
    """Run one set, showing trial's output as it comes; a run that ends without a verdict counts as one failure."""
    # A unit test is a dot; of a live test, which takes seconds, one wants to see the name.
    reporter = "text" if name == "unit" else "verbose"
    command = [sys.executable, "-m", "twisted.trial", f"--reporter={reporter}", f"--temp-directory=_trial_temp.{name}"]
    found: Counter[str] | None = None
    with subprocess.Popen([*command, *modules(name)], stdout=subprocess.PIPE, text=True) as trial:
        assert trial.stdout is not None
        for line in trial.stdout:
            print(line, end="", flush=True)
            found = counts(line.rstrip("\n")) or found
    if found is None or (trial.returncode != 0 and not found["failed"]):
        print(f"{name}: trial ended with {trial.returncode} and no verdict", flush=True)
        return Counter(failed=1)
    return found


def main(names: Sequence[str]) -> int:
    """Run every set, whatever the earlier ones gave; return 0 only when nothing failed and something passed."""
    results = {name: run(name) for name in names}
    print()
    for name, result in results.items():
        print(f"{name}: " + ", ".join(f"{result[what]} {what}" for what in ("passed", "failed", "skipped")))
        if result["skipped"]:
            print(f"{name}: NOT EVERYTHING WAS TESTED: {result['skipped']} skipped, for the reasons given above")
    total: Counter[str] = sum(results.values(), Counter())
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped", flush=True)
    return 0 if total["passed"] and not total["failed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
