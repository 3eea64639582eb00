"""rda.sync.mirrors: which source is where on the remote, who uses it, and what people can tell it."""

from __future__ import annotations

import os
import shutil
from unittest import mock

from twisted.logger import formatEvent, globalLogPublisher

from rda.errors import BadRequest, LinkDown, SyncFailed, SyncHalted
from rda.status import MirrorStatus
from rda.sync.mirrors import MEASURE_SECONDS
from rda.sync.progress import REPORT_SECONDS
from rda.sync.tree import Scope
from tests.fakes_remote import contents
from tests.mirror_case import MirrorCase, write


class PlaceTests(MirrorCase):
    """Where things are."""

    def test_directory(self) -> None:
        """A directory's place is a directory that only the remote user can reach, and it is filled by the flush."""
        write(self.path("a/b"), b"hello")
        remote = self.place()
        self.assertTrue(os.path.isdir(remote))
        self.assertEqual(os.stat(os.path.join(self.host.root, "home/.rda")).st_mode & 0o777, 0o700)
        self.assertEqual(os.stat(os.path.dirname(remote)).st_mode & 0o777, 0o700)
        self.flush()
        self.assert_equal_trees(remote)

    def test_same_place(self) -> None:
        """The same source has the same place again, also after a restart; another source has another one."""
        first = self.place()
        self.assertEqual(self.place(), first)
        other = os.path.join(self.top, "other")
        os.mkdir(other)
        self.assertNotEqual(self.place(other), first)
        self.restart()
        self.assertEqual(self.place(), first)

    def test_missing(self) -> None:
        """A source that is not there is refused in the daemon's words, or made when that is asked for."""
        gone = self.path("gone")
        failure = self.failureResultOf(self.mirrors.place(gone), BadRequest)
        self.assertIn("bind source path does not exist", str(failure.value))
        self.assertTrue(os.path.isdir(self.place(gone, create_missing=True)))
        self.assertTrue(os.path.isdir(gone))

    def test_special(self) -> None:
        """A named pipe cannot be mirrored."""
        os.mkfifo(self.path("pipe"))
        self.failureResultOf(self.mirrors.place(self.path("pipe")), BadRequest)

    def test_link_down(self) -> None:
        """Without a link there is no place, and the reason is given; later there is."""
        self.host.down = True
        self.failureResultOf(self.mirrors.place(self.local), LinkDown)
        self.host.down = False
        self.assertTrue(os.path.isdir(self.place()))


class HolderTests(MirrorCase):
    """Who uses a mirror."""

    def test_watched_while_used(self) -> None:
        """A mirror is watched from its place on, while a container uses it, and not any more afterwards."""
        self.place()
        self.assertEqual(len(self.watcher.hints), 1)
        self.successResultOf(self.mirrors.hold("c1", [self.local]))
        self.successResultOf(self.mirrors.hold("c2", [self.local]))
        self.clock.advance(1000)
        self.mirrors.release("c1")
        self.assertEqual(len(self.watcher.hints), 1)
        self.assertEqual(self.mirrors.status()[0].containers, ("c2",))
        self.mirrors.release("c2")
        self.assertEqual(self.watcher.hints, [])

    def test_adopted(self) -> None:
        """After a restart a container's mirrors go on from where they were, without sending anything again."""
        write(self.path("f"), b"1")
        remote = self.place()
        self.flush()
        self.restart()
        write(self.path("g"), b"2")
        count = len(self.host.connections[-1].operations)
        self.successResultOf(self.mirrors.hold("c", [self.local]))
        self.assert_equal_trees(remote)
        names = [name for name, _ in self.host.connections[-1].operations[count:]]
        self.assertEqual(names.count("rename_new"), 1)

    def test_hold_without_link(self) -> None:
        """A container's mirror waits for the link, and catches up when it is back."""
        self.host.down = True
        write(self.path("f"), b"1")
        self.successResultOf(self.mirrors.hold("c", [self.local]))
        self.assertEqual(self.mirrors.status()[0].state, "waiting")
        self.host.down = False
        self.mirrors.reconnected()
        self.assertEqual(self.mirrors.status()[0].state, "idle")
        self.successResultOf(self.mirrors.flush(self.local))

    def test_hold_missing(self) -> None:
        """A source that is not there any more shows in the status."""
        self.successResultOf(self.mirrors.hold("c", [self.path("gone")]))
        (status,) = self.mirrors.status()
        self.assertEqual((status.state, status.containers), ("halted", ("c",)))

    def test_polling(self) -> None:
        """A tree that cannot be watched is polled, and the status says why."""
        self.watcher.refusal = "the limit of inotify is reached"
        remote = self.place()
        self.flush()
        write(self.path("f"), b"1")
        self.clock.advance(2.1)
        self.assert_equal_trees(remote)
        self.assertIn("inotify", self.mirrors.status()[0].problems[0].message)

    def test_stop_leaves_nothing(self) -> None:
        """Stopping leaves no timer behind."""
        write(self.path("f"), b"1")
        self.place()
        self.flush()
        self.successResultOf(self.mirrors.stopService())
        self.assertEqual([call.getTime() for call in self.clock.getDelayedCalls()], [])


class IgnoreFileTests(MirrorCase):
    """Ignore files change while a mirror is live."""

    def changed(self, *paths: bytes) -> None:
        """The kernel tells of these."""
        self.watcher.hints[0]._changed(Scope(paths=frozenset(paths)))

    def test_brings_back(self) -> None:
        """What an ignore file does not leave out any more is sent at once, wherever the file is and however it went."""
        for directory in ("", "sub/"):
            write(self.path(f"{directory}.rdaignore"), b"left-out\n*.log\n")
            for name in ("left-out/f", "x.log", "deep/y.log"):
                write(self.path(directory + name), b"1")
        remote = self.place()
        self.flush()
        self.assertEqual(set(contents(remote)), {b".rdaignore", b"deep", b"sub", b"sub/.rdaignore", b"sub/deep"})
        os.unlink(self.path("sub/.rdaignore"))
        self.changed(b"sub/.rdaignore")
        self.assertNotIn(b"sub/left-out/f", contents(remote))  # the one above still says so
        write(self.path(".rdaignore"), b"")
        self.changed(b".rdaignore")
        self.assert_equal_trees(remote)
        write(self.path("sub/.rdaignore"), b"left-out")
        self.changed(b"sub/.rdaignore")
        write(self.path("sub/left-out/f"), b"22")
        self.changed(b"sub/left-out/f")
        self.assertEqual(contents(remote)[b"sub/left-out/f"][3], b"1")
        write(self.path("sub/.rdaignore"), b"")
        self.changed(b"sub/.rdaignore")
        self.assert_equal_trees(remote)


class ControlTests(MirrorCase):
    """What a person can do with a mirror."""

    def test_pause(self) -> None:
        """While a mirror is paused nothing travels, and what waits for it is told so; then it catches up."""
        write(self.path("f"), b"1")
        remote = self.place()
        self.flush()
        self.mirrors.pause(self.local)
        write(self.path("f"), b"22")
        write(self.path("g"), b"new")
        self.watcher.hints[0]._changed(Scope(paths=frozenset([b"f"])))
        failure = self.failureResultOf(self.mirrors.complete(self.local), SyncHalted)
        self.assertIn("rda resume", str(failure.value))
        self.clock.pump([60.0] * 20)
        self.assertEqual(contents(remote)[b"f"][3], b"1")
        self.assertEqual(self.mirrors.status()[0].state, "paused")
        self.mirrors.resume()
        self.assert_equal_trees(remote)
        self.assertEqual(self.mirrors.status()[0].state, "idle")

    def test_paused_over_a_restart(self) -> None:
        """A mirror that is paused still is after a restart, until it is resumed."""
        write(self.path("f"), b"1")
        remote = self.place()
        self.flush()
        self.successResultOf(self.mirrors.pause())
        self.restart()
        write(self.path("f"), b"22")
        self.successResultOf(self.mirrors.hold("c", [self.local]))
        self.assertEqual(self.mirrors.status()[0].state, "paused")
        self.failureResultOf(self.mirrors.complete(self.local), SyncHalted)
        self.assertEqual(contents(remote)[b"f"][3], b"1")
        self.successResultOf(self.mirrors.resume())
        self.assert_equal_trees(remote)
        self.restart()
        write(self.path("f"), b"333")
        self.flush()
        self.assert_equal_trees(remote)

    def test_pause_not_written_down(self) -> None:
        """A pause that cannot be written down holds, and the person is told."""
        self.place()
        shutil.rmtree(os.path.join(self.top, "state"))
        failure = self.failureResultOf(self.mirrors.pause(self.local), SyncFailed)
        self.assertIn("cannot be written down", str(failure.value))
        self.assertEqual(self.mirrors.status()[0].state, "paused")

    def test_defect(self) -> None:
        """A defect is logged, tells whoever waits, and the mirror goes on with the next look."""
        remote = self.place()
        mirror = self.mirrors._mirrors[self.local]
        write(self.path("f"), b"1")
        with mock.patch.object(mirror, "_passed", side_effect=ZeroDivisionError("a defect")):
            failure = self.failureResultOf(self.mirrors.complete(self.local), SyncFailed)
        self.assertIn("a defect", str(failure.value))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.flush()
        self.assert_equal_trees(remote)

    def test_names(self) -> None:
        """A mirror is named by its source or anything in it; without a name all used ones are meant."""
        write(self.path("a/f"), b"1")
        write(self.path("b/f"), b"1")
        a, b = self.place(self.path("a")), self.place(self.path("b"))
        self.successResultOf(self.mirrors.flush(self.path("a/deep/file")))
        self.successResultOf(self.mirrors.flush())
        self.assertEqual([set(contents(a)), set(contents(b))], [{b"f"}, {b"f"}])
        for control in (self.mirrors.pause, self.mirrors.resume, self.mirrors.confirm):
            with self.assertRaises(BadRequest):
                control(self.top)
        self.failureResultOf(self.mirrors.flush(self.top), BadRequest)

    def test_long_transfer(self) -> None:
        """A transfer that takes long is told of in the log, now and then and at its end."""
        for number in range(40):
            write(self.path(f"f{number:02}"), b"x" * 300_000)
        lines: list[str] = []
        globalLogPublisher.addObserver(observer := lambda event: lines.append(str(formatEvent(event))))
        self.addCleanup(globalLogPublisher.removeObserver, observer)

        def look(name: str, path: bytes) -> None:
            self.clock.rightNow += 0.5

        self.host.prepare = lambda files: setattr(files, "refuse", look)
        self.place()
        told = [line for line in lines if line.startswith(f"{self.local}: ")]
        self.assertRegex(told[0], r": \d+ of 41 files, \S+ [kM]B of 12.0 MB, .* left$")
        self.assertRegex(told[-1], r": all 41 files of this transfer are on the remote host, after \d\d+ s$")
        self.assertLess(len(told), self.clock.seconds() / REPORT_SECONDS + 2)

    def test_measure(self) -> None:
        """What there is to transfer is told as soon as it is known, and not waited for for long."""
        write(self.path("f"), b"1")
        self.assertIsNone(self.successResultOf(self.mirrors.measure(self.local)))
        self.place()
        found = self.successResultOf(self.mirrors.measure(self.local))
        assert found is not None
        self.assertEqual((found.state, found.files_total), ("idle", 2))
        mirror = self.mirrors._mirrors[self.local]
        mirror._busy, mirror._counted = True, False
        late = self.mirrors.measure(self.local)
        self.assertNoResult(late)
        self.clock.advance(MEASURE_SECONDS)
        self.assertIsNone(self.successResultOf(late))
        soon = self.mirrors.measure(self.local)
        mirror._busy = False
        mirror._measured()
        self.assertIsNotNone(self.successResultOf(soon))

    def test_progress(self) -> None:
        """The status tells how far a transfer is, how fast it goes and how long the rest will take."""
        for number in range(4):
            write(self.path(f"f{number}"), b"x" * 300_000)
        seen: list[MirrorStatus] = []

        def look(name: str, path: bytes) -> None:
            self.clock.rightNow += 0.001
            if name == "rename_new":
                seen.append(self.mirrors.status()[0])

        self.host.prepare = lambda files: setattr(files, "refuse", look)
        self.place()
        first = seen[0]
        self.assertEqual((first.state, first.files_total, first.bytes_total), ("applying", 5, 1200000))
        self.assertGreater(seen[-1].files_done, 0)
        self.assertGreater(seen[-1].rate, 100_000)
        assert seen[-1].time_left is not None
        self.assertLess(seen[-1].time_left, 10)
        after = self.mirrors.status()[0]
        self.assertEqual((after.files_done, after.bytes_done, after.time_left), (5, 1200000, None))
        self.assertEqual((after.files, after.bytes), (5, 1200000))
