"""A mirror whose source a policy has judged stays inside of it, whoever exchanges directories for symbolic links."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from rda.sync import content, inside, pull
from rda.sync.inside import PlainRoot
from rda.sync.scan import RootProblem, Scanner, entry_of_file
from rda.sync.tree import Entry, Kind, Scope


class SwapCase(SynchronousTestCase):
    """A tree, and a secret outside of it."""

    def setUp(self) -> None:
        top = Path(os.path.realpath(self.mktemp()))
        self.outside, self.inside = top / "outside", top / "inside"
        (self.outside / "deep").mkdir(parents=True)
        (self.outside / "deep" / "file").write_text("secret")
        (self.outside / "deep" / "link").symlink_to("secret-target")
        (self.inside / "a" / "deep").mkdir(parents=True)
        (self.inside / "a" / "deep" / "file").write_text("mine")
        (self.inside / "a" / "deep" / "link").symlink_to("my-target")
        self.root = PlainRoot(os.fsencode(self.inside))

    def swap(self) -> None:
        """Exchange a directory for a link that leads outside."""
        (self.inside / "a").rename(self.inside.parent / "moved")
        (self.inside / "a").symlink_to(self.outside)

    def snapshot(self) -> dict[bytes, Entry]:
        return dict(Scanner(self.root, Kind.DIRECTORY).whole({}).entries)


class SwapTests(SwapCase):
    def test_unswapped(self) -> None:
        """A tree without links is read as any other."""
        loaded: Any = content.load(self.root, b"a/deep/file", 100)
        self.assertEqual(loaded.data, b"mine")
        entries = self.snapshot()
        self.assertEqual(set(entries), {b"", b"a", b"a/deep", b"a/deep/file", b"a/deep/link"})
        self.assertEqual(entries[b"a/deep/link"].target, b"my-target")
        self.assertEqual(entries, dict(Scanner(bytes(self.root), Kind.DIRECTORY).whole({}).entries))

    def test_files(self) -> None:
        """A file behind a link is not read, though it is no link itself."""
        self.swap()
        self.assertIsNone(content.load(self.root, b"a/deep/file", 100))
        self.assertIsNone(content.open_large(self.root, b"a/deep/file"))
        self.assertEqual(content.changed_since(self.root, [(b"a/deep/file", b"")]), (set(), []))
        loaded: Any = content.load(bytes(self.root), b"a/deep/file", 100)
        self.assertEqual(loaded.data, b"secret")  # as below any other root: the test swaps what it says

    def test_listing(self) -> None:
        """A directory that becomes a link while the tree is walked is not listed."""
        scandir, swapped = os.scandir, []

        def swap_before_deep(path: Any) -> Any:
            found = scandir(path)
            if not swapped:  # the root has been opened: what is below is exchanged now
                swapped.append(True)
                self.swap()
            return found

        with mock.patch("os.scandir", swap_before_deep):
            entries = self.snapshot()
        self.assertNotIn(b"a/deep/file", entries)
        self.assertNotIn(b"a/deep", entries)

    def test_single_paths(self) -> None:
        """A path that is looked at alone is not found behind a link, nor is where a link leads told."""
        self.swap()
        paths = Scope(frozenset((b"a/deep/file", b"a/deep/link")), frozenset((b"a/deep",)))
        with mock.patch("os.path.islink", return_value=False):  # it becomes one right after it was looked at
            snapshot = Scanner(self.root, Kind.DIRECTORY).part(paths, {b"a": Entry(Kind.DIRECTORY, 0o755)})
        self.assertEqual(snapshot.entries, {})

    def test_root(self) -> None:
        """A root that has become a link is a problem of the whole mirror."""
        self.inside.rename(self.inside.parent / "moved")
        self.inside.symlink_to(self.outside)
        with self.assertRaises(RootProblem):
            self.snapshot()
        self.assertIsNone(content.load(self.root, b"deep/file", 100))
        self.assertIn(b"deep", Scanner(bytes(self.root), Kind.DIRECTORY).whole({}).entries)

    def test_above_the_root(self) -> None:
        """So is one that is reached through a link further up."""
        moved = self.inside.parent.rename(f"{self.inside.parent}-moved")
        self.inside.parent.symlink_to(moved)
        with self.assertRaises(RootProblem):
            self.snapshot()

    def test_single_file(self) -> None:
        """A mirrored file that becomes a link is not followed."""
        root = PlainRoot(os.fsencode(self.inside / "a" / "deep" / "file"))
        loaded: Any = content.load(root, b"", 100)
        self.assertEqual(loaded.data, b"mine")
        self.assertEqual(set(Scanner(root, Kind.FILE).whole({}).entries), {b""})
        self.swap()
        self.assertIsNone(content.load(root, b"", 100))
        with self.assertRaises(RootProblem):
            Scanner(root, Kind.FILE).whole({})

    def test_writes_stay_inside(self) -> None:
        """What comes back from the remote host is written below the root, and nowhere else."""
        before = {path: path.lstat().st_mtime_ns for path in self.outside.rglob("*")}
        here = entry_of_file((self.inside / "a" / "deep" / "file").lstat())
        os.close(pull._create(self.root, b".rda-incoming-1"))
        self.swap()
        outside_here = entry_of_file((self.outside / "deep" / "file").lstat())
        there = Entry(Kind.FILE, 0o644, 0, 0)
        for attempt in (
            lambda: pull._install(self.root, b"a/deep/file", b".rda-incoming-1", there, outside_here),
            lambda: pull._install(self.root, b"a/deep/new", b".rda-incoming-1", there, None),
            lambda: pull._link(self.root, b"a/deep/new", b"x", None, b".rda-incoming-2"),
            lambda: pull._make(self.root, b"a/deep/directory", 0o755),
            lambda: pull._remove(self.root, b"a/deep/file", outside_here),
            lambda: pull._create(self.root, b"a/deep/new"),
        ):
            with self.assertRaises(OSError):
                attempt()
        self.assertEqual({path: path.lstat().st_mtime_ns for path in self.outside.rglob("*")}, before)
        self.assertEqual(here, entry_of_file((self.inside.parent / "moved" / "deep" / "file").lstat()))

    def test_writes(self) -> None:
        """Without a link they are carried out as below any other root."""
        os.close(pull._create(self.root, b".rda-incoming-1"))
        pull._make(self.root, b"a/new", 0o755)
        pull._install(self.root, b"a/new/file", b".rda-incoming-1", Entry(Kind.FILE, 0o600, 0, 0), None)
        pull._link(self.root, b"a/new/link", b"target", None, b".rda-incoming-2")
        self.assertEqual(sorted(os.listdir(self.inside / "a" / "new")), ["file", "link"])
        self.assertEqual(os.readlink(self.inside / "a" / "new" / "link"), "target")
        pull._remove(self.root, b"a/new/link", Entry(Kind.SYMLINK, target=b"target"))
        self.assertEqual(os.listdir(self.inside), ["a"])

    def test_no_descriptor_is_left(self) -> None:
        """Refused or not, nothing stays open."""
        before = len(os.listdir("/proc/self/fd"))
        self.test_files()
        self.assertRaises(OSError, pull._make, self.root, b"a/deep/x", 0o755)
        self.assertRaises(OSError, inside.status, PlainRoot(self.root + b"/a/deep"))
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
