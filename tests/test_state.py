"""rda.state: a state directory has one process."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rda.errors import StateInUse
from rda.state import StateLock


class StateLockTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def test_alone(self) -> None:
        """While one has the directory, another is told who, and what to do; afterwards it may have it."""
        first, second = StateLock(self.directory), StateLock(self.directory)
        first.take()
        self.addCleanup(second.release)
        message = str(self.assertRaises(StateInUse, second.take))
        self.assertIn(f"process {os.getpid()}", message)
        self.assertIn("--state-dir", message)
        first.release()
        first.release()
        second.take()
        self.assertEqual((self.directory / "lock").stat().st_mode & 0o777, 0o600)

    def test_without_locks(self) -> None:
        """A file system that has no locks keeps nobody out."""

        def no_locks(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        self.patch(fcntl, "flock", no_locks)
        lock = StateLock(self.directory)
        lock.take()
        lock.release()

    def test_link(self) -> None:
        """Nothing is written through a link that somebody has put there."""
        target = self.directory / "target"
        target.write_text("precious")
        (self.directory / "lock").symlink_to(target)
        self.assertRaises(OSError, StateLock(self.directory).take)
        self.assertEqual(target.read_text(), "precious")
