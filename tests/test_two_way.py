"""The modes that look at both sides: mirror and two-way."""

from __future__ import annotations

import itertools
import os
import shutil
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rda.errors import SyncHalted
from rda.sync.mirror import Settings
from rda.sync.mirrors import Mirrors
from tests.fakes_remote import at_once, contents
from tests.test_mirrors import FakeWatcher, MirrorCase, write

#: Times that no two writes share: SFTP tells whole seconds only.
STAMPS = itertools.count(1_500_000_000)


class ModeCase(MirrorCase):
    """Mirrors in another mode than the default."""

    mode = "two-way"

    def start(self) -> None:
        super().start()
        watcher: Any = FakeWatcher()
        self.successResultOf(self.mirrors.stopService())
        state = os.path.join(self.top, "state")
        chosen = Settings(self.mode, ("ignored",))
        self.mirrors = Mirrors(
            self.host, state, "somebody", ".rda", self.clock, at_once, watcher, lambda source: chosen
        )
        self.mirrors.startService()

    def there(self, name: str) -> str:
        return os.path.join(self.remote, name)

    def write_there(self, name: str, data: bytes) -> None:
        write(self.there(name), data)
        stamp = next(STAMPS)
        os.utime(self.there(name), (stamp, stamp))

    def settle(self) -> None:
        """Flush until conflict copies have come back."""
        for _ in range(3):
            self.flush()


class MirrorModeTests(ModeCase):
    """Nothing else is on the remote."""

    mode = "mirror"

    def test_foreign_files_go(self) -> None:
        """What is made or changed on the remote is made undone; what is ignored stays."""
        write(self.path("a/f"), b"1")
        write(self.path("g"), b"2")
        self.remote = self.place()
        self.flush()
        self.write_there("a/theirs", b"x")
        self.write_there("d/e/theirs", b"x")
        self.write_there("ignored/cache", b"x")
        self.write_there("g", b"changed")
        os.unlink(self.there("a/f"))
        os.mkdir(self.there("a/f"))
        self.write_there("a/f/deep", b"x")
        write(self.path("d"), b"a file")
        self.flush()
        self.flush()
        found = contents(self.remote)
        self.assertEqual(found.pop(b"ignored/cache")[3], b"x")
        found.pop(b"ignored")
        self.assertEqual(found, contents(self.local))
        self.assertEqual(self.mirrors.status()[0].mode, "mirror")


class TwoWayTests(ModeCase):
    """What is made on the remote comes back."""

    def setUp(self) -> None:
        super().setUp()
        write(self.path("d/f"), b"original")
        write(self.path("d/g"), b"original")
        os.symlink("x", self.path("l"))
        self.remote = self.place()
        self.flush()

    def assert_same(self) -> None:
        self.assertEqual(contents(self.remote), contents(self.local))

    def test_comes_back(self) -> None:
        """New and changed files, directories and links come back with their modes and times; deletions too."""
        self.write_there("new/deep/f", b"made there")
        os.chmod(self.there("new/deep/f"), 0o750)
        self.write_there("d/f", b"changed there")
        os.symlink("y", self.there("m"))
        os.unlink(self.there("d/g"))
        os.unlink(self.there("l"))
        self.flush()
        self.assert_same()
        here = contents(self.local)
        self.assertEqual(here[b"new/deep/f"][1:], (0o750, here[b"new/deep/f"][2], b"made there"))
        self.assertEqual(here[b"d/f"][3], b"changed there")
        self.assertNotIn(b"d/g", here)
        self.assertEqual(here[b"m"], ("link", b"y"))

    def test_polled(self) -> None:
        """Remote changes are found by looking every few seconds."""
        self.write_there("new", b"made there")
        self.clock.advance(2.1)
        self.assert_same()

    def test_both_edited(self) -> None:
        """Both versions are kept, ours under the name, theirs beside it, on both sides."""
        self.write_there("d/f", b"theirs")
        write(self.path("d/f"), b"ours")
        self.settle()
        self.assert_same()
        here = contents(self.local)
        self.assertEqual(here[b"d/f"][3], b"ours")
        self.assertEqual(here[b"d/f.rda-conflict"][3], b"theirs")

    def test_same_edit(self) -> None:
        """The same edit on both sides is no conflict."""
        self.write_there("d/f", b"the same")
        write(self.path("d/f"), b"the same")
        self.settle()
        self.assert_same()
        self.assertNotIn(b"d/f.rda-conflict", contents(self.local))

    def test_edit_beats_deletion(self) -> None:
        """What is deleted on one side and edited on the other comes back, with its directories."""
        self.write_there("d/f", b"edited there")
        write(self.path("d/g"), b"edited here")
        os.unlink(self.path("d/f"))
        os.unlink(self.there("d/g"))
        self.settle()
        self.assert_same()
        self.assertEqual(contents(self.local)[b"d/f"][3], b"edited there")
        self.assertEqual(contents(self.local)[b"d/g"][3], b"edited here")
        self.write_there("d/f", b"again")
        shutil.rmtree(self.path("d"))
        self.settle()
        self.assert_same()
        self.assertEqual(contents(self.local)[b"d/f"][3], b"again")

    def test_changed_meanwhile(self) -> None:
        """A local file that changes while the remote's version is fetched is not replaced."""
        self.write_there("d/f", b"theirs")

        def refuse(name: str, path: bytes) -> None:
            if name == "open" and path.endswith(b"/d/f") and not self.changed:
                self.changed = True
                write(self.path("d/f"), b"at the last moment")

        self.changed = False
        self.host.connections[-1].refuse = refuse
        self.settle()
        self.assert_same()
        here = contents(self.local)
        self.assertEqual(here[b"d/f"][3], b"at the last moment")
        self.assertEqual(here[b"d/f.rda-conflict"][3], b"theirs")

    def test_emptied_remote(self) -> None:
        """A remote copy that is suddenly empty, or was removed, deletes nothing here."""
        for number in range(15):
            write(self.path(f"f{number}"), b"1")
        self.flush()
        before = contents(self.local)
        for name in os.listdir(self.remote):
            path = self.there(name)
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
        self.failureResultOf(self.mirrors.flush(self.local), SyncHalted)
        self.assertEqual(contents(self.local), before)
        shutil.rmtree(os.path.dirname(self.remote))
        self.flush()
        self.assertEqual(contents(self.local), before)
        self.assert_same()

    def test_leftovers_are_swept(self) -> None:
        """What an interrupted fetch left is removed at the next start, and never sent."""
        write(self.path(".rda-incoming-7"), b"half")
        self.flush()
        self.assertNotIn(b".rda-incoming-7", contents(self.remote))
        self.restart()
        self.flush()
        self.assertFalse(os.path.exists(self.path(".rda-incoming-7")))


STEPS = st.tuples(
    st.sampled_from(["write", "write", "remove", "directory", "link", "flush", "lose", "restart"]),
    st.booleans(),
    st.integers(0, 8),
    st.integers(0, 40),
)
NAMES = ["a", "b", "c/a", "c/b", "c/d/e", "c/d/f", "g/h/i", "g", "c"]


class HistoryTests(ModeCase):
    """Random histories of both sides."""

    @given(st.lists(STEPS, min_size=3, max_size=25))
    @settings(max_examples=100, deadline=None)
    def test_two_way(self, history: list[tuple[str, bool, int, int]]) -> None:
        """In the end both sides are equal, and no edit that nobody took back is lost on either."""
        self.setUp()
        self.remote = self.place()
        for number, (what, far, name, other) in enumerate(history):
            if what == "flush":
                self.check_flush()
            elif what == "lose":
                files = self.host.connections[-1]
                files.fail_at, files.fail_after = len(files.operations) + other, bool(name % 2)
            elif what == "restart":
                self.restart()
                self.host.lose()
                self.successResultOf(self.mirrors.hold("c", [self.local]))
            else:
                self.change(what, self.remote if far else self.local, NAMES[name], number)
        self.check_flush()
        self.assertEqual(contents(self.remote), contents(self.local))

    def check_flush(self) -> None:
        """Everything that was edited since the last time is somewhere afterwards."""
        for files in self.host.connections:
            files.fail_at = None
        mirror = self.mirrors._mirrors[self.local]
        manifest = mirror._manifest
        known = {} if manifest is None else dict(manifest.entries)
        kept = set()
        for side in (self.local, self.remote):
            for path, value in contents(side).items():
                if value[0] == "file" and (path not in known or known[path].mtime != value[2]):
                    kept.add(value[3])
        for _ in range(4):
            done = self.mirrors.flush(self.local)
            done.addErrback(lambda failure: (failure.trap(SyncHalted), self.mirrors.confirm(self.local))[1])
        held = {value[3] for value in contents(self.local).values() if value[0] == "file"}
        self.assertLessEqual(kept, held)
        self.assertEqual(contents(self.remote), contents(self.local))

    def change(self, what: str, side: str, name: str, number: int) -> None:
        path = os.path.join(side, name)
        above = os.path.dirname(path)
        while len(above) > len(side):
            if os.path.lexists(above) and (os.path.islink(above) or not os.path.isdir(above)):
                return
            above = os.path.dirname(above)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
        if what == "write":
            write(path, b"%d" % number)
            stamp = next(STAMPS)
            os.utime(path, (stamp, stamp))
        elif what == "directory":
            os.makedirs(path)
        elif what == "link":
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(f"target{number}", path)
