"""The modes that look at both sides: mirror and two-way."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from typing import Any

from twisted.internet.defer import succeed
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from rda.errors import SyncFailed, SyncHalted
from rda.interfaces import Attributes
from rda.sync import pull, racy, remote_look
from rda.sync.remote import RemoteTree
from rda.sync.scan import entry_of_file
from rda.sync.settings import Settings
from rda.sync.tree import Entry, Kind
from tests.fakes_remote import contents
from tests.mirror_case import MirrorCase, write

#: Times that no two writes share: SFTP tells whole seconds only.
STAMPS = itertools.count(1_500_000_000)


class ModeCase(MirrorCase):
    """Mirrors in another mode than the default."""

    mode = "two-way"

    def settings(self, source: str) -> Settings:
        return Settings(self.mode, ("ignored",))

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


class HostileTests(ModeCase):
    """A remote host that lists what is not there decides what is written below the mount, and nowhere else."""

    def setUp(self) -> None:
        super().setUp()
        write(self.path("d/f"), b"original")
        self.outside = os.path.join(self.top, "outside")
        write(os.path.join(self.outside, "victim"), b"precious")
        self.remote = self.place()
        self.flush()
        self.before = contents(self.outside)

    def listed(self, lines: list[str]) -> None:
        """The remote host's find prints this, and its files have whatever content they are asked for."""
        self.host.commands = self.mirrors._pool.tools.look.available = True
        answer = "".join(line + "\0" for line in lines).replace("|", "\0").encode()
        self.patch(
            remote_look._Answer,
            "connectionMade",
            lambda receiver: (receiver.dataReceived(answer), receiver.connectionLost(Failure(ConnectionDone()))),
        )

    def assert_nothing_happened(self) -> None:
        self.failureResultOf(self.mirrors.complete(self.local), SyncFailed)
        self.assertEqual(contents(self.outside), self.before)
        self.assertEqual(set(contents(self.local)), {b"d", b"d/f"})

    def test_find(self) -> None:
        """Paths that lead out of the mount, and things "in" a link, are not believed; nothing seems removed either."""
        for lines in (
            [f"|f|666|4|1.0|1.0|1|../{os.path.basename(self.outside)}/victim|"],
            ["|d|755|0|1.0|1.0|1|..|", "|d|755|0|1.0|1.0|1|../outside|", "|f|666|4|1.0|1.0|1|../outside/victim|"],
            [f"|f|666|4|1.0|1.0|1|{self.outside}/victim|"],
            [f"|l|777|4|1.0|1.0|1|x|{self.outside}", "|f|666|4|1.0|1.0|1|x/victim|"],
            ["|d|755|0|1.0|1.0|1|.|"],
            ["|f|666|4|1.0|1.0|1|a/./b|"],
            ["|d|777|0|1.0|1.0|1||"],
            ["|f|rw|4|1.0|1.0|1|x|"],
        ):
            self.listed(lines)
            with self.subTest(lines=lines):
                if "rw" in lines[0]:  # that is no listing at all
                    self.failureResultOf(self.mirrors.complete(self.local))
                else:
                    self.assert_nothing_happened()
        self.flushLoggedErrors()

    def test_sftp(self) -> None:
        """Nor when SFTP says so."""
        files: Any = self.host.connections[-1]
        real = files.list
        directory = Attributes(0o40755, 0, 0)
        for name in (b"..", b"../outside", b"", b".", os.fsencode(self.outside)):
            files.list = lambda path, name=name: real(path).addCallback(lambda found: [*found, (name, directory)])
            with self.subTest(name=name):
                self.assert_nothing_happened()

    def test_a_directory_without_end(self) -> None:
        """Nor is more listed than there can be."""
        self.patch(remote_look, "MAX_PATHS", 100)
        files: Any = self.host.connections[-1]
        files.list = lambda path: succeed([(b"%d" % n, Attributes(0o100644, 0, 0)) for n in range(200)])
        self.assert_nothing_happened()
        files.list = lambda path: succeed([(b"x" * 200, Attributes(0o40755, 0, 0))])
        self.assert_nothing_happened()

    def test_links_here(self) -> None:
        """A directory here that has become a link since the look is not written through."""
        os.rename(self.path("d"), self.path("d.away"))
        os.symlink(self.outside, self.path("d"))
        root = os.fsencode(self.local)
        there = Entry(Kind.FILE, 0o644, 0, 0)
        os.close(pull._create(root, b".rda-incoming-1"))
        for attempt in (
            lambda: pull._install(root, b"d/new", b".rda-incoming-1", there, None),
            lambda: pull._link(root, b"d/new", b"x", None, b".rda-incoming-2"),
            lambda: pull._make(root, b"d/new", 0o755),
            lambda: pull._make(root, b"..", 0o700),
            lambda: pull._remove(root, b"d/victim", entry_of_file(os.lstat(os.path.join(self.outside, "victim")))),
            lambda: pull._create(root, b"d/new"),
        ):
            self.assertRaises(OSError, attempt)
        self.assertEqual(contents(self.outside), self.before)

    def test_a_root_that_is_a_link(self) -> None:
        """A root may be a link itself."""
        link = os.fsencode(os.path.join(self.top, "link"))
        os.symlink(self.local, link)
        pull._make(link, b"d/new", 0o755)
        self.assertTrue(os.path.isdir(self.path("d/new")))

    def test_rights_of_others(self) -> None:
        """A file that comes back lets nobody act as the user here, and is not fetched again and again for that."""
        self.write_there("tool", b"#!/bin/sh")
        os.chmod(self.there("tool"), 0o6755)
        self.flush()
        self.assertEqual(os.stat(self.path("tool")).st_mode & 0o7777, 0o755)
        inode = os.stat(self.path("tool")).st_ino
        self.flush()
        self.assertEqual(os.stat(self.path("tool")).st_ino, inode)
        os.chmod(self.path("tool"), 0o700)
        self.flush()
        self.assertEqual(os.stat(self.there("tool")).st_mode & 0o7777, 0o700)

    def test_a_file_without_end(self) -> None:
        """Of a file that is longer than the look said no more is read: the disk here is not filled."""
        self.write_there("log", b"12345")
        files: Any = self.host.connections[-1]
        asked: list[int] = []

        def endless(handle: bytes, offset: int, length: int) -> Any:
            asked.append(offset)
            return succeed(b"x" * 1000)

        files.read_at = endless
        self.mirrors.complete(self.local).addErrback(lambda failure: failure.trap(SyncFailed))
        self.assertLess(len(asked), 10)
        self.assertFalse(os.path.exists(self.path("log")))


class OwnStateTests(ModeCase):
    """rda's own state is in what is mounted, as it is when that is a home directory."""

    def setUp(self) -> None:
        super().setUp()
        self.successResultOf(self.mirrors.stopService())
        self.own = self.path("state/rda")
        write(self.path("state/rda/owner"), b"identity")
        write(self.path("state/other"), b"1")
        self.start()
        self.remote = self.place()
        self.flush()

    def test_is_not_sent(self) -> None:
        """It is not sent, whatever an ignore file says; what is beside it is."""
        write(self.path(".rdaignore"), b"!/state\n!/state/rda\n!**\n")
        write(self.path("state/rda-2"), b"2")
        self.flush()
        self.assertEqual(set(contents(self.remote)), {b".rdaignore", b"state", b"state/other", b"state/rda-2"})

    def test_is_not_written(self) -> None:
        """What a container puts there stays there."""
        self.write_there(".rdaignore", b"!/state/rda\n")
        self.write_there("state/rda/owner", b"theirs")
        self.write_there("state/rda/more", b"theirs")
        for _ in range(3):
            self.flush()
        with open(self.path("state/rda/owner"), "rb") as file:
            self.assertEqual(file.read(), b"identity")
        self.assertEqual(os.listdir(self.own), ["owner"])

    def test_cannot_be_the_source(self) -> None:
        """Nor can it be mounted itself, or something in it."""
        write(self.path("state/rda/default/containers"), b"= 1")
        for source in (self.own, self.path("state/rda/default"), self.path("state/rda/owner")):
            self.mirrors.place(source, alone=True)
            failure = self.failureResultOf(self.mirrors.complete(source), SyncHalted)
            self.assertIn("where rda keeps its own state", str(failure.value))


class KindTests(ModeCase):
    """Something becomes something else on one side."""

    def put(self, path: str, kind: str) -> None:
        """Have a path be nothing, a file, a link, an empty directory, or one with something in it."""
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
        if kind == "file":
            write(path, b"a file")
            stamp = next(STAMPS)
            os.utime(path, (stamp, stamp))
        elif kind == "link":
            os.symlink("elsewhere", path)
        elif kind != "nothing":
            os.makedirs(path)
        if kind == "full":
            os.mkdir(os.path.join(path, "deep"))
            self.put(os.path.join(path, "deep", "child"), "file")

    def test_on_one_side(self) -> None:
        """It becomes that on the other side, and nothing is in the way of it."""
        self.remote = self.place()
        self.flush()
        kinds = ("nothing", "file", "link", "empty", "full")
        for self.host.commands in (False, True):
            self.mirrors._pool.tools.look.available = True
            for before, after, side in itertools.product(kinds, kinds, (self.path, self.there)):
                with self.subTest(before=before, after=after, here=side == self.path):
                    self.put(self.path("d"), before)
                    self.settle()
                    self.assert_equal_trees(self.remote)
                    self.put(side("d"), after)
                    expected = contents(os.path.dirname(side("d")))
                    self.settle()
                    self.assertEqual((contents(self.local), contents(self.remote)), (expected, expected))


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

    def test_link_in_place_of_what_is_fetched(self) -> None:
        """Modes and times are given to what was fetched, never through a link that somebody has put in its place."""
        victim = os.path.join(self.mktemp(), "victim")
        write(victim, b"theirs", 0o600)
        before = os.stat(victim)

        def install(root: bytes, path: bytes, temporary: bytes, there: Entry, here: Entry | None) -> Entry:
            fetched = os.path.join(root, temporary)
            if not self.swapped:
                self.swapped = True
                os.unlink(fetched)
                os.symlink(os.path.abspath(victim), fetched)
            return real(root, path, temporary, there, here)

        real, self.swapped = pull._install, False
        self.patch(pull, "_install", install)
        self.write_there("d/f", b"changed there")
        os.chmod(self.there("d/f"), 0o777)
        self.settle()
        after = os.stat(victim)
        self.assertTrue(self.swapped)
        self.assertEqual((after.st_mode, after.st_mtime_ns), (before.st_mode, before.st_mtime_ns))
        self.assertFalse(os.path.islink(self.path("d/f")))

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

    def let_commands_run(self) -> None:
        """From here on the remote host runs commands."""
        self.host.commands = True
        self.mirrors.reconnected()
        self.flush()
        self.assertTrue(self.mirrors._pool.tools.look.available)

    def test_same_second(self) -> None:
        """An edit that leaves size and second as they were comes back, where the host can tell more than seconds."""
        self.let_commands_run()
        stamp = os.stat(self.there("d/f")).st_mtime
        for data, nanoseconds in ((b"ORIGINAL", 5), (b"ANOTHER.", 7)):
            with open(self.there("d/f"), "r+b") as file:
                file.write(data)
            os.utime(self.there("d/f"), ns=(int(stamp) * 10**9 + nanoseconds,) * 2)
            self.flush()
            self.assertEqual(contents(self.local)[b"d/f"][3], data)
        self.assertEqual(os.stat(self.path("d/f")).st_mtime_ns, int(stamp) * 10**9 + 7)

    def test_times_set_back(self) -> None:
        """So does one whose times were set back, as archives and builds do; equal ones are fetched no second time."""
        self.let_commands_run()
        found = os.stat(self.there("d/f"))
        with open(self.there("d/f"), "r+b") as file:
            file.write(b"ORIGINAL")
        os.utime(self.there("d/f"), ns=(found.st_mtime_ns, found.st_mtime_ns))
        self.flush()
        self.assertEqual(contents(self.local)[b"d/f"][3], b"ORIGINAL")
        before = len(self.host.connections[-1].operations)
        self.flush()
        names = [name for name, _ in self.host.connections[-1].operations[before:]]
        self.assertNotIn("read_at", names)

    def edit_in_the_same_second(self, data: bytes) -> None:
        """Edit a file there so that size and second stay."""
        found = os.stat(self.there("d/f"))
        with open(self.there("d/f"), "r+b") as file:
            file.write(data)
        os.utime(self.there("d/f"), (found.st_mtime, found.st_mtime))

    def test_same_second_over_sftp(self) -> None:
        """Where the host tells seconds only, files that have changed in the last one are compared by their content."""
        self.edit_in_the_same_second(b"ORIGINAL")
        self.flush()
        self.assertEqual(contents(self.local)[b"d/f"][3], b"ORIGINAL")
        self.edit_in_the_same_second(b"ANOTHER.")
        self.clock.advance(2.1)
        self.assertEqual(contents(self.local)[b"d/f"][3], b"ANOTHER.")
        self.assert_same()
        self.assertEqual(self.mirrors.status()[0].conflicts, ())

    def test_same_second_on_both_sides(self) -> None:
        """Such an edit is as good as any other: when both sides have edited, both versions are kept."""
        self.edit_in_the_same_second(b"ORIGINAL")
        write(self.path("d/f"), b"edited here")
        self.settle()
        here = contents(self.local)
        self.assertEqual((here[b"d/f"][3], here[b"d/f.rda-conflict"][3]), (b"edited here", b"ORIGINAL"))

    def test_compared_until_the_second_is_over(self) -> None:
        """A file whose second is over is compared once more, and then believed."""

        def read() -> int:
            before = len(self.host.connections[-1].operations)
            self.flush()
            return [name for name, _ in self.host.connections[-1].operations[before:]].count("read_at")

        self.assertGreater(read(), 0)
        self.patch(RemoteTree, "now", lambda tree: self.later())
        self.assertGreater(read(), 0)
        self.assertEqual(read(), 0)

    async def later(self) -> int:
        """The remote clock, in a while."""
        return int(time.time()) + 10

    def test_compared_within_limits(self) -> None:
        """A look compares so many bytes; what is left is compared by the next one."""
        self.patch(racy, "BYTES", 1)
        self.edit_in_the_same_second(b"ORIGINAL")
        for _ in range(2):
            self.flush()
        self.patch(RemoteTree, "now", lambda tree: self.later())
        for _ in range(3):
            self.flush()
        self.assertEqual(contents(self.local)[b"d/f"][3], b"ORIGINAL")

    def test_no_clock(self) -> None:
        """On a full disk there is no clock to be had; the rest goes on."""

        def refuse(name: str, path: bytes) -> None:
            if name == "open" and b"/stage/" in path:
                raise OSError(28, "No space left on device")

        self.host.connections[-1].refuse = refuse
        self.write_there("d/f", b"changed there")
        self.flush()
        self.assertEqual(contents(self.local)[b"d/f"][3], b"changed there")

    def test_touched_and_edited_here(self) -> None:
        """A change of owner there is no edit: what is edited here meanwhile is no conflict."""
        self.let_commands_run()
        os.chmod(self.there("d/f"), 0o600)
        os.chmod(self.there("d/f"), 0o644)
        write(self.path("d/f"), b"edited")
        self.settle()
        self.assert_same()
        self.assertEqual(self.mirrors.status()[0].conflicts, ())

    def test_coarse_times_here(self) -> None:
        """Where local files keep whole seconds only, equal files are not fetched again and again."""
        self.patch(pull, "keeps_nanoseconds", lambda root: False)
        self.restart()
        self.let_commands_run()
        os.utime(self.there("d/f"), ns=(1_600_000_000_123_456_789,) * 2)
        self.flush()
        self.assertEqual(os.stat(self.path("d/f")).st_mtime_ns, 1_600_000_000_000_000_000)
        before = os.stat(self.path("d/f")).st_ino
        self.flush()
        self.assertEqual(os.stat(self.path("d/f")).st_ino, before)

    def test_closed_directory(self) -> None:
        """A directory that a container keeps to itself is reported; nothing below it is taken for removed."""
        os.mkdir(self.there("private"))

        def refuse(name: str, path: bytes) -> None:
            if name == "list" and path.endswith((b"/private", b"/d")):
                raise PermissionError(13, "Permission denied")

        self.host.connections[-1].refuse = refuse
        self.write_there("other", b"x")
        write(self.path("d/f"), b"edited here")
        self.settle()
        here = contents(self.local)
        self.assertEqual((here[b"other"][3], here[b"d/g"][3]), (b"x", b"original"))
        self.assertEqual(contents(self.remote)[b"d/f"][3], b"edited here")
        problems = {problem.subject: problem.message for problem in self.mirrors.status()[0].problems}
        self.assertEqual(set(problems), {"private", "d"})
        self.assertIn("a container made it", problems["private"])
        self.host.connections[-1].refuse = lambda name, path: None
        self.settle()
        self.assert_same()
        self.assertEqual(self.mirrors.status()[0].problems, ())

    def test_leftovers_are_swept(self) -> None:
        """What an interrupted fetch left is removed at the next start, and never sent."""
        write(self.path(".rda-incoming-7"), b"half")
        self.flush()
        self.assertNotIn(b".rda-incoming-7", contents(self.remote))
        self.restart()
        self.flush()
        self.assertFalse(os.path.exists(self.path(".rda-incoming-7")))
