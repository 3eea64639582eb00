"""Mounts, again and again: whatever has changed before a start is there."""

from __future__ import annotations

from tests.live.test_files import Mount
from tests.soak.support import size


class ManyStarts(Mount):
    """Only the one of the live tests that counts."""

    def test_started_at_once(self):
        """Each of many containers, started right after thousands of files have changed, finds them as they are."""
        self.start_at_once(size("STARTS", 200))


for _name in [name for name in dir(Mount) if name.startswith("test_") and name != "test_started_at_once"]:
    setattr(ManyStarts, _name, None)
del Mount
