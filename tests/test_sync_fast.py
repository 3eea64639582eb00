"""The fast ways: tar streams and block deltas."""

from __future__ import annotations

import os
import random

from rda.sync import bulk, large
from tests.fakes_remote import contents
from tests.mirror_case import MirrorCase, write


class CommandCase(MirrorCase):
    """A remote host that runs tar and cp."""

    def setUp(self) -> None:
        super().setUp()
        self.host.commands = True

    def operations(self, name: str) -> int:
        return [each for each, _ in self.host.connections[-1].operations].count(name)

    def fill(self, directories: int = 6, files: int = 30) -> None:
        for d in range(directories):
            for f in range(files):
                write(self.path(f"d{d}/e{d}/f{f}"), b"%d" % f * (f + 1), 0o600 + f)


class BulkTests(CommandCase):
    """Many files in one stream."""

    def test_new_tree(self) -> None:
        """New directories arrive as a whole, one rename each, with all that is in them."""
        self.fill()
        write(self.path("x" * 120 + "/" + "y" * 130), b"long names")
        os.symlink("z" * 150, self.path("d0/link"))
        os.mkdir(self.path("d0/empty"))
        write(self.path("d1/large"), b"l" * (bulk.SMALL + 1))
        for number in range(5):
            write(self.path(f"top{number}"), b"t")
        remote = self.place()
        self.flush()
        self.assert_equal_trees(remote)
        self.assertLess(self.operations("make_directory"), 10)
        self.assertLess(self.operations("open"), 10)
        self.assertEqual(self.mirrors.status()[0].problems, ())

    def test_changed_files(self) -> None:
        """Many changed files are staged together, and renamed one by one."""
        self.fill()
        remote = self.place()
        self.flush()
        self.fill(files=31)
        self.flush()
        self.assert_equal_trees(remote)
        self.assertGreater(self.operations("rename"), 100)

    def test_foreign_directory(self) -> None:
        """Where a container has made the directory already, its files stay, and ours come beside them."""
        remote = self.place()
        self.flush()
        write(os.path.join(remote, "d0/theirs"), b"1")
        write(os.path.join(remote, "d1/e1/f1"), b"in the way")
        self.fill()
        self.flush()
        found = contents(remote)
        self.assertEqual(found.pop(b"d0/theirs")[3], b"1")
        self.assertEqual(found.pop(b"d1/e1/f1.rda-conflict")[3], b"in the way")
        self.assertEqual(found, contents(self.local))

    def test_without_tar(self) -> None:
        """A host without tar, or without commands, gets the files over SFTP."""
        self.host.commands = False
        self.fill()
        remote = self.place()
        self.flush()
        self.assert_equal_trees(remote)
        self.assertGreater(self.operations("open"), 100)


class DeltaTests(CommandCase):
    """Large files."""

    def setUp(self) -> None:
        super().setUp()
        self.host.prepare = lambda files: setattr(files, "write_size", 100_000)
        self.patch(large, "DELTA_FROM", 300_000)
        self.noise = random.Random(1).randbytes(1_500_000)
        write(self.path("big"), self.noise)
        self.remote = self.place()
        self.flush()

    def change(self, data: bytes) -> int:
        """Change the file; returns how many writes that took."""
        before = self.operations("write_at")
        write(self.path("big"), data)
        self.flush()
        self.assert_equal_trees(self.remote)
        return self.operations("write_at") - before

    def test_only_changes(self) -> None:
        """Of a change inside, of an append and of a cut, only the blocks concerned are sent."""
        for commands in (True, False):
            self.host.commands = commands
            inside = self.noise[:700_000] + b"changed" + self.noise[700_007:]
            self.assertLessEqual(self.change(inside), 4)
            self.assertLessEqual(self.change(inside + b"appended"), 4)
            self.assertLessEqual(self.change(self.noise[:800_000]), 6)
            self.change(self.noise)

    def test_touched_on_the_remote(self) -> None:
        """When a container has written to the file it is sent whole."""
        with open(os.path.join(self.remote, "big"), "ab") as file:
            file.write(b"theirs")
        self.assertGreater(self.change(self.noise[:-5] + b"12345"), 10)

    def test_no_copy(self) -> None:
        """Where nothing can copy on the remote the file is sent whole."""
        self.host.commands = False
        self.host.connections[-1].features = frozenset({"posix-rename"})
        self.assertGreater(self.change(self.noise[:-5] + b"12345"), 10)

    def test_holes(self) -> None:
        """Zeros are not sent to a new file: a hole stays a hole."""
        before = self.operations("write_at")
        write(self.path("sparse"))
        os.truncate(self.path("sparse"), 5_000_000)
        self.flush()
        self.assert_equal_trees(self.remote)
        self.assertLess(self.operations("write_at") - before, 10)
