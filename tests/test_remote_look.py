"""Looks at remote trees, and watches on them: with the programs of this machine as those of the remote host."""

from __future__ import annotations

import os
import secrets
import select
import shutil
import subprocess
import tempfile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from rda.errors import ChannelRefused, CommandFailed
from rda.sync import remote_look
from rda.sync.remote import RemoteTree
from rda.sync.remote_look import RemoteLook, parse
from rda.sync.remote_watch import COMMANDS, WATCHED_AT_ONCE, RemoteWatch
from rda.sync.tree import Entry, Kind, RemoteSnapshot
from tests.fakes_remote import DirectoryHost, at_once


def fill(top: bytes) -> dict[bytes, Entry]:
    """Make a tree of everything; returns its entries."""
    os.makedirs(top + b"/d/e")
    os.symlink(b"no\nwhere", top + b"/l")
    os.mkfifo(top + b"/pipe")
    for name, data in ((b"f", b""), (b"d/\xff\n ", b"12345")):
        with open(top + b"/" + name, "wb") as file:
            file.write(data)
        os.utime(top + b"/" + name, ns=(0, 1_700_000_000_123_456_789))
    os.chmod(top + b"/f", 0o640)
    entries = {b"l": Entry(Kind.SYMLINK, target=b"no\nwhere")}
    for name in (b"d", b"d/e"):
        entries[name] = Entry(Kind.DIRECTORY, os.stat(top + b"/" + name).st_mode & 0o7777)
    for name in (b"f", b"d/\xff\n "):
        found = os.stat(top + b"/" + name)
        entries[name] = Entry(
            Kind.FILE, found.st_mode & 0o7777, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
        )
    return entries


class LookTests(SynchronousTestCase):
    """Everything in a tree."""

    def setUp(self) -> None:
        self.top = os.fsencode(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.top)
        self.host = DirectoryHost(os.fsdecode(self.top))
        self.addCleanup(self.host.lose)
        self.entries = fill(self.top + b"/base/tree")
        self.look = RemoteLook(self.host, at_once)

    def found(self) -> RemoteSnapshot:
        remote = RemoteTree(self.successResultOf(self.host.files()), b"/base", Kind.DIRECTORY)
        return self.successResultOf(Deferred.fromCoroutine(self.look.look(remote)))

    def test_real_find(self) -> None:
        """GNU find prints what is expected of it; what is no file, directory or link is left out."""
        done = subprocess.run(
            ["/bin/sh", "-c", os.fsdecode(remote_look.COMMAND)], input=self.top + b"/base/tree\n", capture_output=True
        )
        if done.returncode:
            raise SkipTest("this machine has no GNU find")
        self.assertEqual(parse(done.stdout), RemoteSnapshot(self.entries, {}, precise=True))

    def test_with_command(self) -> None:
        """One command tells everything."""
        self.host.commands = True
        self.assertEqual(self.found(), RemoteSnapshot(self.entries, {}, precise=True))
        self.assertEqual([name for name, _ in self.host.connections[-1].operations], ["command"])

    def test_over_sftp(self) -> None:
        """Without commands SFTP tells the same, in seconds."""
        self.assertEqual(self.found(), RemoteSnapshot(self.entries, {}, precise=True).in_seconds())
        self.assertFalse(self.look.available)

    def test_another_find(self) -> None:
        """A find that does not know what is asked is not asked again; one that stopped half-way is."""
        self.host.commands = True
        for printed, available in ((b"", False), (b"x", True)):
            self.look.available = True
            self.patch(
                remote_look._Answer,
                "connectionMade",
                lambda answer, data=printed: (
                    answer.dataReceived(data),
                    answer.connectionLost(Failure(CommandFailed("unknown predicate", 1))),
                ),
            )
            self.assertFalse(self.found().precise)
            self.assertEqual(self.look.available, available)

    def test_too_large(self) -> None:
        """An answer over the limit is dropped, and the tree is listed over SFTP."""
        self.host.commands = True
        self.patch(remote_look, "MAX_ANSWER", 10)
        self.assertFalse(self.found().precise)

    def test_closed_directories(self) -> None:
        """A directory that the remote user may not list is unknown."""
        found = parse(b"x\0d\x00700\x004096\x001.5\x002.0\x003\0d\0\0")
        self.assertEqual(found.entries, {b"d": Entry(Kind.DIRECTORY, 0o700)})
        self.assertTrue(found.hides(b"d/f"))
        self.assertFalse(found.hides(b"d"))
        self.assertFalse(found.hides(b"e"))

    def test_nonsense(self) -> None:
        """What is no answer is told."""
        for answer in (b"x", b"a\0b\0"):
            self.assertRaises(CommandFailed, parse, answer)

    @given(st.integers(-(10**18), 10**19))
    @settings(max_examples=50, deadline=None)
    def test_times(self, time: int) -> None:
        """Times are read as find prints them."""
        sign, value = "-" if time < 0 else "", abs(time)
        text = f"{sign}{value // 10**9}.{value % 10**9:09}0"
        found = parse(f"\0f\x00644\x000\0{text}\0{text}\x001\0a\0\0".encode())
        self.assertEqual(found.entries[b"a"].mtime_ns, time)


class WatchTests(SynchronousTestCase):
    """Real programs, a real kernel."""

    def setUp(self) -> None:
        self.top = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.top, True)
        os.makedirs(os.path.join(self.top, "d"))

    def run_command(self, command: bytes) -> None:
        """Begin to watch, and wait until that is said."""
        self.watch = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(self.end)
        assert self.watch.stdin is not None
        self.watch.stdin.write(os.fsencode(self.top) + b"\n")
        self.watch.stdin.flush()
        self.assertTrue(self.is_heard(10))

    def end(self) -> None:
        """It ends with its input, and is not killed."""
        assert self.watch.stdin is not None
        assert self.watch.stdout is not None
        self.watch.stdin.close()
        self.watch.stdout.close()
        self.watch.wait(10)

    def is_heard(self, seconds: float) -> bool:
        """Whether something is said until then."""
        assert self.watch.stdout is not None
        if not select.select([self.watch.stdout], [], [], seconds)[0]:
            return False
        self.assertNotEqual(os.read(self.watch.stdout.fileno(), 65536), b"")
        return True

    def make_files_until_heard(self, directory: str) -> None:
        """The watch on a new directory follows a little later than the directory itself."""
        while self.is_heard(0):
            pass  # what came before
        for _ in range(100):
            open(os.path.join(self.top, directory, secrets.token_hex(4)), "w").close()
            if self.is_heard(0.1):
                return
        self.fail("nothing is heard of new files")

    def watch_everything(self) -> None:
        outside = os.path.join(tempfile.mkdtemp(dir=self.top + "/.."), "outside")
        self.addCleanup(shutil.rmtree, os.path.dirname(outside), True)
        os.makedirs(os.path.join(outside, "deep"))
        os.mkdir(os.path.join(self.top, "d/new"))
        self.make_files_until_heard("d/new")
        os.rename(outside, os.path.join(self.top, "moved"))
        self.make_files_until_heard("moved/deep")

    def test_python(self) -> None:
        """Changes in new directories, and in those that were moved into the tree, are heard of."""
        if not os.path.exists("/proc/sys/fs/inotify") or shutil.which("python3") is None:
            raise SkipTest("needs inotify and python3")
        self.run_command(COMMANDS["python3"])
        self.watch_everything()

    def test_inotifywait(self) -> None:
        """The program of that name does the same, where it is."""
        if shutil.which("inotifywait") is None:
            raise SkipTest("needs inotifywait")
        self.run_command(COMMANDS["inotifywait"])
        self.watch_everything()

    def test_neither(self) -> None:
        """Without it the command says at once that it is not there."""
        done = subprocess.run(
            ["/bin/sh", "-c", COMMANDS["inotifywait"]],
            input=os.fsencode(self.top) + b"\n",
            env={"PATH": "/nowhere"},
            timeout=10,
        )
        self.assertEqual(done.returncode, 127)


class _Refusing:
    """A host that lets commands run or not; counts them."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.asked = 0
        self.protocols: list[Any] = []

    def command(self, command: bytes) -> Any:
        return self

    def connect(self, factory: Any) -> Deferred[Any]:
        self.asked += 1
        if self.error is not None:
            return fail(self.error)
        self.protocols.append(factory.buildProtocol(None))
        return succeed(self.protocols[-1])


class LadderTests(SynchronousTestCase):
    """What is tried, and when."""

    def watch_on(self, host: Any, watches: set[RemoteWatch]) -> RemoteWatch:
        return RemoteWatch(host, watches, lambda: None)

    def test_nothing_works(self) -> None:
        """Each way is tried once for each connection."""
        host = _Refusing(ChannelRefused("no", 1))
        watch = self.watch_on(host, set())
        for connection in ("first", "first", "second"):
            watch.start(b"/tree", connection)
            self.assertFalse(watch.active)
        self.assertEqual(host.asked, 2 * len(COMMANDS))

    def test_ends(self) -> None:
        """A watch that ends is followed by the next way, and in the end by none."""
        host = _Refusing(None)
        watch = self.watch_on(host, set())
        watch.start(b"/tree", "first")
        for protocol in (0, 1):
            host.protocols[protocol].dataReceived(b".")
            self.assertTrue(watch.active)
            host.protocols[protocol].connectionLost(Failure(CommandFailed("limit", 1)))
        self.assertFalse(watch.active)

    def test_why_not(self) -> None:
        """The log says in a sentence why there is no watch, without the command, which is a whole script."""
        lines: list[str] = []
        globalLogPublisher.addObserver(observer := lambda event: lines.append(str(formatEvent(event))))
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        for error in (CommandFailed("IFS= read -r top …", 127), CommandFailed("IFS= …", 1), ChannelRefused("no", 1)):
            self.watch_on(_Refusing(error), set()).start(b"/tree", "first")
        told = [line for line in lines if "/tree" in line]
        self.assertIn("is not watched with inotifywait: the remote host has no such program", told[0])
        self.assertIn("are found by looking every few seconds", told[2])
        self.assertIn("it ended, with status 1", told[3])
        self.assertIn("runs no commands", told[6])
        self.assertNotIn("IFS", "".join(told))

    def test_only_so_many(self) -> None:
        """More trees than a few are not watched: the commands are needed for what is sent."""
        host, watches = _Refusing(None), set[RemoteWatch]()
        all_of_them = [self.watch_on(host, watches) for _ in range(WATCHED_AT_ONCE + 2)]
        for watch in all_of_them:
            watch.start(b"/tree", "first")
        self.assertEqual(host.asked, WATCHED_AT_ONCE)
        all_of_them[0].stop()
        all_of_them[-1].start(b"/tree", "first")
        self.assertEqual(host.asked, WATCHED_AT_ONCE + 1)
