"""Watching: what becomes of events, and watchdog itself on real directories."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from watchdog.events import DirCreatedEvent, FileModifiedEvent, FileMovedEvent

from rda.sync import watch
from rda.sync.tree import WHOLE, Scope
from rda.sync.watch import Hints, Watcher


class HintsTests(SynchronousTestCase):
    """Events become scopes."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.callFromThread = lambda f, *a: f(*a)  # type: ignore[attr-defined]
        self.seen: list[Scope] = []
        self.hints = Hints(self.clock, b"/r", None, self.seen.append)

    def modified(self, path: str) -> None:
        self.hints.dispatch(FileModifiedEvent("/r/" + path))

    def test_quiet(self) -> None:
        """A burst is handed over once, when it has been quiet for the named time."""
        self.modified("a")
        self.clock.advance(watch.QUIET * 0.9)
        self.modified("b")
        self.assertEqual(self.seen, [])
        self.clock.pump([watch.QUIET] * 3)
        self.assertEqual(self.seen, [Scope(frozenset([b"a", b"b"]))])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_longest_delay(self) -> None:
        """A stream of events cannot put the look off for longer than the named time."""
        for number in range(60):
            self.modified(f"f{number}")
            self.clock.advance(watch.QUIET / 2)
        self.assertGreaterEqual(len(self.seen), 2)
        self.assertLess(len(self.seen), 10)

    def test_same_file_again(self) -> None:
        """Writes to one file only do not put the look off."""
        for _ in range(3):
            self.modified("a")
            self.clock.advance(watch.QUIET / 2)
        self.assertEqual(len(self.seen), 1)

    def test_moves_and_directories(self) -> None:
        """Both ends of a move are looked at; a new directory with all that is in it."""
        self.hints.dispatch(FileMovedEvent("/r/a", "/r/b"))
        self.hints.dispatch(DirCreatedEvent("/r/d"))
        self.clock.pump([watch.QUIET] * 3)
        self.assertEqual(self.seen, [Scope(frozenset([b"a", b"b"]), frozenset([b"d"]))])

    def test_too_many(self) -> None:
        """More hints than the limit become one look at everything."""
        for number in range(watch.HINTS_LIMIT + 10):
            self.modified(f"f{number}")
        self.clock.pump([watch.QUIET] * 12)
        self.assertEqual(self.seen, [WHOLE])

    def test_lost(self) -> None:
        """Lost events mean a look at everything."""
        self.hints.lost()
        self.clock.pump([watch.QUIET] * 3)
        self.assertEqual(self.seen, [WHOLE])

    def test_stop(self) -> None:
        """After a stop nothing is told, and no timer is left."""
        self.modified("a")
        self.hints.stop()
        self.hints.lost()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.seen, [])

    def test_single_file(self) -> None:
        """Of a single file's directory only that file matters, by whatever name it arrives."""
        hints = Hints(self.clock, b"/r", b"conf", self.seen.append)
        hints.dispatch(FileModifiedEvent("/r/other"))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        hints.dispatch(FileMovedEvent("/r/conf.new", "/r/conf"))
        self.clock.pump([watch.QUIET] * 3)
        self.assertEqual(self.seen, [Scope(frozenset([b""]))])


class WatcherTests(SynchronousTestCase):
    """watchdog on real directories."""

    def setUp(self) -> None:
        self.root = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.root, True)
        self.changed = threading.Event()
        self.reactor: Any = Clock()
        self.reactor.callFromThread = self._called
        self.watcher = Watcher(self.reactor)
        self.hints = Hints(self.reactor, os.fsencode(self.root), None, lambda scope: None)

    def _called(self, function: Any, *arguments: Any) -> None:
        self.changed.set()

    def noted(self) -> set[bytes]:
        """Wait for a hint; returns all paths so far."""
        self.assertTrue(self.changed.wait(5.0))
        deadline = time.monotonic() + 0.05
        while time.monotonic() < deadline:
            time.sleep(0.005)
        return self.hints._paths | self.hints._trees

    def test_sees_changes(self) -> None:
        """Changes at any depth are seen, also in directories that are new; reading is not."""
        os.makedirs(os.path.join(self.root, "a/b"))
        with open(os.path.join(self.root, "a/f"), "w", encoding="utf-8") as file:
            file.write("x")
        watching = self.watcher.watch(os.fsencode(self.root), None, self.hints)
        self.assertNotIsInstance(watching, str)
        with open(os.path.join(self.root, "a/f"), encoding="utf-8") as file:
            file.read()
        self.assertFalse(self.changed.wait(0.1))
        os.unlink(os.path.join(self.root, "a/f"))
        self.assertIn(b"a/f", self.noted())
        os.makedirs(os.path.join(self.root, "a/b/c/d"))
        self.assertTrue({b"a/b/c", b"a/b/c/d"} & self.noted())
        self.watcher.unwatch(watching)
        self.assertIsNone(self.watcher._observer)

    def test_move_out_does_not_hold_up(self) -> None:
        """A file that leaves the tree does not hold back the events behind it."""
        elsewhere = tempfile.mkdtemp(dir=os.path.dirname(self.root))
        self.addCleanup(shutil.rmtree, elsewhere)
        for name in ("a", "b"):
            with open(os.path.join(self.root, name), "w", encoding="utf-8"):
                pass
        watching = self.watcher.watch(os.fsencode(self.root), None, self.hints)
        began = time.monotonic()
        os.rename(os.path.join(self.root, "a"), os.path.join(elsewhere, "a"))
        os.unlink(os.path.join(self.root, "b"))
        while b"b" not in self.hints._paths and time.monotonic() < began + 5:
            time.sleep(0.002)
        self.assertLess(time.monotonic() - began, 0.3)
        self.watcher.unwatch(watching)

    def test_overflow(self) -> None:
        """What watchdog says of an overflow in its log is heard."""
        watching = self.watcher.watch(os.fsencode(self.root), None, self.hints)
        logging.getLogger("watchdog.observers.inotify_c").warning("Inotify queue overflowed; events were lost")
        self.assertIn(b"", self.hints._trees)
        self.watcher.unwatch(watching)

    def test_missing_root(self) -> None:
        """A root that cannot be watched gives the reason."""
        self.assertIn("cannot be watched", self.watcher.watch(b"/does/not/exist", None, self.hints))

    def test_limit(self) -> None:
        """When the kernel gives no more watches, the reason names the setting."""
        self.patch(watch, "watches_left", lambda: False)
        reason = self.watcher.watch(os.fsencode(self.root), None, self.hints)
        self.assertIn("fs.inotify.max_user_watches", reason)
        self.assertIsNone(self.watcher._observer)

    def test_watches_left(self) -> None:
        """Here there are watches left."""
        self.assertTrue(watch.watches_left())
