"""Mounts, again and again: whatever has changed before a start is there."""

from __future__ import annotations

from tests.live.test_files import StartedAtOnce
from tests.soak.support import size


class ManyStarts(StartedAtOnce):
    """The live tests' few starts, many times over."""

    times = size("STARTS", 200)


del StartedAtOnce
