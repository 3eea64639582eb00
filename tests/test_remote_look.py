"""Looks at remote trees, and watches on them: with the programs of this machine as those of the remote host."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from rda.errors import ChannelRefused, CommandFailed
from rda.sync import remote_look, remote_watch
from rda.sync.remote import RemoteTree
from rda.sync.remote_look import RemoteLook, parse
from rda.sync.remote_watch import COMMANDS, WATCHED_AT_ONCE, RemoteWatch
from rda.sync.tree import Entry, Kind, RemoteSnapshot
from tests.fakes_remote import DirectoryHost, LocalHost, at_once


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


class WatchTests(TestCase):
    """Real programs, a real kernel."""

    def setUp(self) -> None:
        self.top = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.top, True)
        os.makedirs(os.path.join(self.top, "d"))
        self.heard: Deferred[None] = Deferred()
        self.watches: set[RemoteWatch] = set()
        self.watch = RemoteWatch(LocalHost(reactor, []), self.watches, self.hear)

    def hear(self) -> None:
        heard, self.heard = self.heard, Deferred()
        heard.callback(None)

    async def until_heard(self, directory: str) -> None:
        """Make files, until one is heard of: the watch on a new directory follows a little later than that itself."""
        heard, path = self.heard, os.path.join(self.top, directory)
        while not heard.called:
            open(os.path.join(path, secrets.token_hex(4)), "w").close()
            await deferLater(reactor, 0.05)  # type: ignore[arg-type]

    async def test_python(self) -> None:
        """New files, changes in new directories, and in those that were moved into the tree are heard of."""
        if not os.path.exists("/proc/sys/fs/inotify") or shutil.which("python3") is None:
            raise SkipTest("needs inotify and python3")
        self.patch(remote_watch, "COMMANDS", COMMANDS[1:])
        outside = tempfile.mkdtemp()
        os.mkdir(os.path.join(outside, "deep"))
        self.watch.start(os.fsencode(self.top), "connection")
        await self.heard
        self.assertTrue(self.watch.active)
        os.mkdir(os.path.join(self.top, "d/new"))
        await self.heard
        await self.until_heard("d/new")
        os.rename(outside, os.path.join(self.top, "moved"))
        await self.heard
        await self.until_heard("moved/deep")
        self.watch.stop()
        self.assertEqual((self.watch.active, self.watches), (False, set()))
        await deferLater(reactor, 0.1)  # type: ignore[arg-type]

    async def test_inotifywait(self) -> None:
        """The program of that name is asked where it is."""
        if shutil.which("inotifywait") is None:
            raise SkipTest("needs inotifywait")
        self.patch(remote_watch, "COMMANDS", COMMANDS[:1])
        self.watch.start(os.fsencode(self.top), "connection")
        await self.heard
        await self.until_heard("d")
        self.watch.stop()
        await deferLater(reactor, 0.1)  # type: ignore[arg-type]


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
