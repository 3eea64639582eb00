"""The fast ways: tar streams, block deltas; and random histories with everything mixed."""

from __future__ import annotations

import os
import random
import shutil
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rda.errors import SyncHalted
from rda.sync import bulk, large
from rda.sync.tree import Scope
from tests.fakes_remote import DirectoryFiles, contents
from tests.test_mirrors import MirrorCase, write


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

    def test_killed_at_every_operation(self) -> None:
        """The connection may end at any operation of a bulk transfer."""
        step = 0
        while True:
            step += 4
            self.setUp()
            self.fill(4, 28)
            remote = self.place()
            for number in range(4):
                write(os.path.join(remote, f"foreign{number}"), b"theirs")
            files = self.host.connections[-1]
            write(self.path("d0/e0/f0"), b"late")
            files.fail_at, files.fail_after = len(files.operations) + step, bool(step % 8)
            if step % 3:
                self.kill_when_lost()
            self.mirrors.flush(self.local).addErrback(lambda _: None)
            if not files.lost:
                return
            if step % 3:
                self.restart()
            shutil.rmtree(self.path("d1"))
            self.flush()
            found = {p: v for p, v in contents(remote).items() if not p.startswith(b"foreign")}
            self.assertEqual(found, contents(self.local), step)
            self.assertLessEqual(len(os.listdir(os.path.join(os.path.dirname(remote), "stage"))), 4)


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


OPERATIONS = st.tuples(
    st.sampled_from(
        ["write", "write", "write", "remove", "directory", "link", "rename", "mode", "foreign", "flush", "hint", "lose",
         "restart", "edit there"]
    ),
    st.integers(0, 30),
    st.integers(0, 30),
)  # fmt: skip
NAMES = ["a", "b", "c/a", "c/b", "c/d/e", "c/d/f", "g/h/i", "g", "c"]


class HistoryTests(CommandCase):
    """Random histories of both sides."""

    @given(st.lists(OPERATIONS, min_size=3, max_size=25), st.booleans())
    @settings(max_examples=100, deadline=None)
    def test_one_way(self, history: list[tuple[str, int, int]], commands: bool) -> None:
        """Whatever happens, in the end the remote holds all that is here, and all that was made there."""
        self.setUp()
        self.patch(bulk, "WORTHWHILE", 2)
        self.host.commands = commands
        self.remote = self.place()
        foreign: dict[str, bytes] = {}
        for number, (what, one, other) in enumerate(history):
            getattr(self, "do_" + what.replace(" ", "_"))(one, other, number, foreign)
        for files in self.host.connections:
            files.fail_at = None
        self.final_flush()
        found, here = contents(self.remote), contents(self.local)
        for path, value in here.items():
            self.assertEqual(found[path], value, path)
        held = [value[3] for value in found.values() if value[0] == "file"]
        for name, data in foreign.items():
            self.assertIn(data, held, name)
        extra = [p for p, v in found.items() if p not in here and v[0] == "file"]
        self.assertEqual(sorted(found[p][3] for p in extra), sorted(foreign.values()))
        self.assertLessEqual(len(os.listdir(os.path.join(os.path.dirname(self.remote), "stage"))), 4)

    def final_flush(self) -> None:
        done = self.mirrors.flush(self.local)
        failure: list[Any] = []
        done.addErrback(failure.append)
        if failure:
            failure[0].trap(SyncHalted)
            self.mirrors.confirm(self.local)
            self.flush()

    def name(self, number: int) -> str:
        return NAMES[number % len(NAMES)]

    def free(self, path: str) -> bool:
        """Whether something can be made at a path: its parents are directories, or can be."""
        above = os.path.dirname(path)
        while len(above) > len(self.local):
            if os.path.lexists(above) and (os.path.islink(above) or not os.path.isdir(above)):
                return False
            above = os.path.dirname(above)
        return True

    def clear(self, path: str) -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)

    def do_write(self, one: int, other: int, number: int, foreign: dict[str, bytes]) -> None:
        path = self.path(self.name(one))
        if self.free(path):
            self.clear(path)
            write(path, b"local %d %d" % (number, other), 0o600 + other)

    def do_remove(self, one: int, other: int, number: int, foreign: dict[str, bytes]) -> None:
        path = self.path(self.name(one))
        if self.free(path):
            self.clear(path)

    def do_directory(self, one: int, other: int, number: int, foreign: dict[str, bytes]) -> None:
        path = self.path(self.name(one))
        if self.free(path):
            self.clear(path)
            os.makedirs(path)

    def do_link(self, one: int, other: int, number: int, foreign: dict[str, bytes]) -> None:
        path = self.path(self.name(one))
        if self.free(path):
            self.clear(path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(self.name(other), path)

    def do_rename(self, one: int, other: int, number: int, foreign: dict[str, bytes]) -> None:
        source, target = self.path(self.name(one)), self.path(self.name(other))
        if not (self.free(source) and self.free(target)) or target.startswith(source) or source.startswith(target):
            return
        if os.path.lexists(source):
            self.clear(target)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.rename(source, target)

    def do_mode(self, one: int, other: int, number: int, foreign: dict[str, bytes]) -> None:
        path = self.path(self.name(one))
        if self.free(path) and os.path.lexists(path) and not os.path.islink(path):
            os.chmod(path, 0o700 + other)

    def do_foreign(self, one: int, other: int, number: int, foreign: dict[str, bytes]) -> None:
        """A container makes a file at a path that is not ours."""
        path = os.path.join(self.remote, self.name(one))
        if self.free(path.replace(self.remote, self.local)) and not os.path.lexists(path):
            try:
                write(path, b"foreign %d" % number)
            except OSError:
                return
            foreign[path] = b"foreign %d" % number

    def do_flush(self, one: int, other: int, number: int, foreign: dict[str, bytes]) -> None:
        self.mirrors.flush(self.local).addErrback(lambda failure: failure.trap(SyncHalted))

    def do_hint(self, one: int, other: int, number: int, foreign: dict[str, bytes]) -> None:
        path = self.name(one).encode()
        scope = Scope(paths=frozenset([path])) if other % 2 else Scope(trees=frozenset([path]))
        for hints in self.watcher.hints:
            hints._changed(scope)

    def do_lose(self, one: int, other: int, number: int, foreign: dict[str, bytes]) -> None:
        files: DirectoryFiles = self.host.connections[-1]
        files.fail_at, files.fail_after = len(files.operations) + one, bool(other % 2)

    def do_restart(self, one: int, other: int, number: int, foreign: dict[str, bytes]) -> None:
        self.restart()
        self.host.lose()
        self.successResultOf(self.mirrors.hold("c", [self.local]))

    def do_edit_there(self, one: int, other: int, number: int, foreign: dict[str, bytes]) -> None:
        """A container removes one of our files: its own business, until the file changes here."""
        self.flush_quietly()
        path = os.path.join(self.remote, self.name(one))
        if (
            os.path.isfile(path)
            and not os.path.islink(path)
            and path not in foreign
            and self.free(path.replace(self.remote, self.local))
        ):
            local = path.replace(self.remote, self.local)
            if os.path.isfile(local) and not os.path.islink(local):
                os.unlink(path)
                write(local, b"again %d" % number)

    def flush_quietly(self) -> None:
        self.mirrors.flush(self.local).addErrback(lambda failure: failure.trap(Exception))
