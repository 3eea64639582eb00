"""rda.containers.made_here: which containers are ours, and that a restart or a torn line does not change that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rda.containers import made_here as module
from rda.containers.made_here import MadeHere
from rda.errors import StateUnwritable

ONE, TWO = "a" * 64, "b" * 64


class MadeHereTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.synced = 0

    def sync(self, descriptor: int) -> None:
        os.fstat(descriptor)
        self.synced += 1

    def record(self) -> MadeHere:
        """A process's view of the file."""
        record = MadeHere(self.path, self.sync)
        record.open()
        self.addCleanup(record.close)
        return record

    def test_made(self) -> None:
        """The container that a create made is ours, in this process and in the next; no other with its labels is."""
        record = self.record()
        record.intend("n1")
        record.made("n1", ONE)
        for view in (record, self.record()):
            self.assertTrue(view.holds(ONE, "n1"))
            self.assertFalse(view.holds(TWO, "n1"))
            self.assertFalse(view.holds(ONE, "n2"))
        self.assertEqual(self.synced, 2)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    def test_not_answered(self) -> None:
        """After a create whose answer never came, the first container with its nonce is the one, and stays it."""
        self.record().intend("n1")
        record = self.record()
        self.assertTrue(record.holds(ONE, "n1"))
        for view in (record, self.record()):
            self.assertFalse(view.holds(TWO, "n1"))
            self.assertTrue(view.holds(ONE, "n1"))

    def test_failed(self) -> None:
        """A create that failed has made nothing."""
        record = self.record()
        record.intend("n1")
        record.failed("n1")
        record.failed("n1")
        for view in (record, self.record()):
            self.assertFalse(view.holds(ONE, "n1"))

    def test_removed(self) -> None:
        """A container that was removed is nobody's: labels copied from it make nothing ours."""
        record = self.record()
        record.made("n1", ONE)
        record.removed(ONE)
        record.removed(ONE)
        for view in (record, self.record()):
            self.assertFalse(view.holds(ONE, "n1"))

    def test_torn(self) -> None:
        """Of a file whose last line is torn, the others count."""
        record = self.record()
        record.made("n1", ONE)
        record.close()
        with self.path.open("a") as file:
            file.write(f"= n2 {TWO[:10]}")
        record = self.record()
        self.assertTrue(record.holds(ONE, "n1"))
        self.assertFalse(record.holds(TWO[:10], "n2"))
        record.made("n3", TWO)
        self.assertTrue(self.record().holds(TWO, "n3"))

    def test_bounded(self) -> None:
        """The file is written anew when most of it is over; pending creates and old containers are bounded."""
        self.patch(module, "SPARE_LINES", 10)
        self.patch(module, "MAX_PENDING", 3)
        self.patch(module, "MAX_REMEMBERED", 1)
        record = self.record()
        for number in range(100):
            record.made(f"n{number}", ONE)
        self.assertLessEqual(len(self.path.read_text().splitlines()), 12)
        for number in range(5):
            record.intend(f"p{number}")
        self.assertFalse(record.holds(TWO, "p1"))
        self.assertTrue(record.holds(TWO, "p2"))
        record.close()
        again = self.record()
        self.assertEqual((again.holds(ONE, "n99"), again.holds(TWO, "p2")), (False, True))

    def test_unwritable(self) -> None:
        """A create that cannot be noted is refused with the reason; what happened already only loses its note."""

        def full(descriptor: int, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        record = self.record()
        record.intend("n0")
        self.patch(os, "write", full)
        error = self.assertRaises(StateUnwritable, record.intend, "n1")
        self.assertIn("No space left on device", str(error))
        self.assertFalse(record.holds(TWO, "n1"))
        record.made("n0", ONE)
        self.assertTrue(record.holds(ONE, "n0"))
        self.flushLoggedErrors()

    def test_taken_in_parts(self) -> None:
        """A write that a nearly full disk takes only a part of loses nothing: not the line, and not the next one."""
        write = os.write
        self.patch(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
        record = self.record()
        record.made("n1", ONE)
        record.made("n2", TWO)
        again = self.record()
        self.assertEqual((again.holds(ONE, "n1"), again.holds(TWO, "n2")), (True, True))

    def test_torn_by_a_full_disk(self) -> None:
        """A line of which only a part was written does not spoil the one after it."""
        record = self.record()
        with self.full_disk(3):
            self.assertRaises(StateUnwritable, record.intend, "n1")
        record.made("n2", TWO)
        self.assertTrue(self.record().holds(TWO, "n2"))

    def test_full_at_start(self) -> None:
        """On a full disk the record of before is kept as it is, whole, and is written on when there is room again."""
        record = self.record()
        record.made("n1", ONE)
        record.close()
        before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
        with self.full_disk(5):
            record = self.record()
        self.assertTrue(record.holds(ONE, "n1"))
        if before is not None:
            self.assertEqual(len(os.listdir("/proc/self/fd")), len(before) + 1)
        record.made("n2", TWO)
        again = self.record()
        self.assertEqual((again.holds(ONE, "n1"), again.holds(TWO, "n2")), (True, True))

    def test_no_room_to_shorten(self) -> None:
        """A line that is written counts, though there is no room for a shorter file."""
        self.patch(module, "SPARE_LINES", 3)
        record = self.record()
        self.patch(os, "replace", self.no_room)
        for _ in range(10):
            record.intend("n1")
            record.made("n1", ONE)
            record.removed(ONE)
        record.made("n2", TWO)
        self.assertTrue(self.record().holds(TWO, "n2"))

    def no_room(self, *_: object) -> None:
        raise OSError(28, "No space left on device")

    @contextlib.contextmanager
    def full_disk(self, room: int) -> Iterator[None]:
        """For the length of a block, the disk takes so many bytes, and no more."""
        write, left = os.write, room

        def fills(descriptor: int, data: bytes) -> int:
            nonlocal left
            if not left:
                self.no_room()
            taken = write(descriptor, data[:left])
            left -= taken
            return taken

        patched = self.patch(os, "write", fills)
        try:
            yield
        finally:
            patched.restore()

    def test_in_memory(self) -> None:
        """Without a file, it is kept as long as the process."""
        record = MadeHere()
        record.open()
        record.made("n1", ONE)
        self.assertTrue(record.holds(ONE, "n1"))
        record.close()
