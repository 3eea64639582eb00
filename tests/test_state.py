"""rda.state: a state directory is its owner's, has one process and keeps one identity."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rda.errors import RdaError, StateInUse
from rda.state import StateLock, identity, private_directory


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


class PrivateDirectoryTests(SynchronousTestCase):
    def test_open_to_others(self) -> None:
        """A state directory that others could enter is closed to them."""
        directory = Path(self.mktemp())
        directory.mkdir(mode=0o755)
        private_directory(directory)
        self.assertEqual(stat.S_IMODE(directory.stat().st_mode), 0o700)


class IdentityTests(SynchronousTestCase):
    def directory(self) -> Path:
        directory = Path(self.mktemp())
        private_directory(directory)
        return directory

    def test_made_once(self) -> None:
        """The identity of a context is made once, unlike any other, and only its owner can read it."""
        first, second = self.directory(), self.directory()
        made = identity(first)
        self.assertEqual(identity(first), made)
        self.assertNotEqual(identity(second), made)
        self.assertEqual(stat.S_IMODE((first / "owner").stat().st_mode), 0o600)

    def test_damaged(self) -> None:
        """A damaged identity is not replaced: the containers and copies that it owns would be lost sight of."""
        directory = self.directory()
        (directory / "owner").write_text("x")
        self.assertIn("is damaged", str(self.assertRaises(RdaError, identity, directory)))
