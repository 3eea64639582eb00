"""A thousand random histories of a tree and its copy in every mode; in memory."""

from __future__ import annotations

from tests.soak.support import size
from tests.test_sync_histories import HistoryTests


class ManyHistories(HistoryTests):
    """The unit tests' histories, longer and many more of them."""

    examples = size("HISTORIES", 1000)
    steps = 50


del HistoryTests
