"""The connection, or rda, ends at every operation of a sync, one after the other; then both sides have to be equal.

Each scenario is run four times for every operation that its sync consists of: see :meth:`FaultCase.interrupted`.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from typing import Any

from rda.sync import bulk, large
from rda.sync.settings import Settings
from tests.fakes_remote import contents
from tests.mirror_case import MirrorCase, write

NOISE = random.Random(1).randbytes(700_000)


class FaultCase(MirrorCase):
    """One sync that is interrupted.

    :cvar commands: whether the remote host runs tar and cp.
    :ivar step: the operation at which it is interrupted, counted from 1.
    """

    mode = "one-way"
    commands = False

    def settings(self, source: str) -> Settings:
        return Settings(self.mode)

    # -- what a scenario says

    def make_source(self) -> None:
        """The mirrored source itself."""
        os.makedirs(self.local)

    def prepare(self) -> None:
        """What is here before the first sync, which is not interrupted."""

    def change(self) -> None:
        """What the interrupted sync has to bring over."""

    def meanwhile(self) -> None:
        """What changes here before the next try."""

    def verify(self) -> None:
        """What has to hold afterwards."""
        self.assertEqual(contents(self.remote), contents(self.local), self.step)

    # -- the driver

    def interrupt_everywhere(self) -> int:
        """Run the scenario once for each of its operations; returns how many there are."""
        for restart, after in itertools.product((False, True), (False, True)):
            self.step = 1
            while self.interrupted(restart, after):
                self.step += 1
        return self.step - 1

    def interrupted(self, restart: bool, after: bool) -> bool:
        """Run it once; False when it ends before the step is reached.

        :param restart: rda ends, and is started again; else only the connection ends.
        :param after: the operation at which it ends is carried out, and only its answer is lost.
        """
        shutil.rmtree(self.top)
        self.make_source()
        self.host = self.new_host()
        self.host.commands = self.commands
        self.host.prepare = lambda files: setattr(files, "write_size", 100_000)
        self.start()
        self.prepare()
        self.remote = self.place()
        self.flush()
        self.change()
        files = self.host.connections[-1]
        files.fail_at, files.fail_after = len(files.operations) + self.step, after
        if restart:
            self.kill_when_lost()
        self.mirrors.complete(self.local).addErrback(lambda _: None)
        if not files.lost:
            self.successResultOf(self.mirrors.stopService())
            return False
        if restart:
            self.restart()
        self.meanwhile()
        self.flush()
        self.flush()  # what was moved aside, or brought back, by the first one
        self.verify()
        self.assert_no_temporaries()
        self.successResultOf(self.mirrors.stopService())
        self.host.lose()
        return True

    def assert_no_temporaries(self) -> None:
        stage = os.path.join(os.path.dirname(self.remote), "stage")
        left = {name: os.lstat(os.path.join(stage, name)).st_size for name in os.listdir(stage)}
        self.assertLessEqual(len(left), 4, self.step)  # kept for the next change, and empty
        self.assertEqual(set(left.values()) - {0}, set(), self.step)
        self.assertEqual([n for n in contents(self.local) if b"incoming" in n], [], self.step)


class FaultTests(FaultCase):
    """Over SFTP: every kind of change, with foreign files in between and in the way."""

    def prepare(self) -> None:
        write(self.path("d/f"), b"1")
        write(self.path("d/g"), b"1")
        write(self.path("k/l"), b"1")
        write(self.path("was a file"), b"1")
        os.symlink("x", self.path("l"))

    def change(self) -> None:
        write(os.path.join(self.remote, "d/foreign"), b"theirs")
        write(os.path.join(self.remote, "taken"), b"theirs too")
        write(self.path("d/f"), b"changed")
        write(self.path("new/n"), b"2")
        write(self.path("taken"), b"ours")
        os.unlink(self.path("d/g"))
        os.unlink(self.path("l"))
        os.symlink("y", self.path("l"))
        shutil.rmtree(self.path("k"))
        write(self.path("k"), b"was a directory")
        os.unlink(self.path("was a file"))
        os.makedirs(self.path("was a file/below"))
        write(self.path("large"), b"z" * 300_000)
        os.chmod(self.path("d"), 0o711)

    def meanwhile(self) -> None:
        write(self.path("d/f"), b"and changed again")

    def verify(self) -> None:
        found = contents(self.remote)
        self.assertEqual(found.pop(b"d/foreign")[3], b"theirs", self.step)
        self.assertEqual(found.pop(b"taken.rda-conflict")[3], b"theirs too", self.step)
        self.assertEqual(found, contents(self.local), self.step)

    def test_everywhere(self) -> None:
        """Afterwards both sides are equal, nothing foreign was touched, and no temporary is left."""
        self.assertGreater(self.interrupt_everywhere(), 40)


class FirstSyncFaults(FaultCase):
    """The very first sync, and the making of the place itself."""

    def interrupted(self, restart: bool, after: bool) -> bool:
        shutil.rmtree(self.top)
        os.makedirs(self.local)
        self.host = self.new_host()
        self.start()
        write(self.path("d/f"), b"1")
        os.symlink("x", self.path("l"))

        def fault(files: Any) -> None:
            files.fail_at, files.fail_after = self.step, after

        self.host.prepare = fault
        self.mirrors.place(self.local).addErrback(lambda _: None)
        self.host.prepare = lambda files: None
        lost = self.host.connections[0].lost
        if restart:
            self.restart()
        self.remote = self.place()
        self.flush()
        self.verify()
        self.assert_no_temporaries()
        self.successResultOf(self.mirrors.stopService())
        self.host.lose()
        return lost

    def test_everywhere(self) -> None:
        """A place that was made half-way is made whole."""
        self.assertGreater(self.interrupt_everywhere(), 15)


class BulkFaults(FaultCase):
    """Tar streams: new directories as a whole, and loose files."""

    commands = True

    def start(self) -> None:
        self.patch(bulk, "WORTHWHILE", 4)
        super().start()

    def prepare(self) -> None:
        for number in range(4):
            write(self.path(f"old/f{number}"), b"1")

    def change(self) -> None:
        for number in range(3):
            write(self.path(f"new{number}/deep/f"), b"2")
            write(self.path(f"old/f{number}"), b"changed")
            write(os.path.join(self.remote, f"foreign{number}"), b"theirs")
        os.symlink("x", self.path("new0/l"))
        write(os.path.join(self.remote, "new1/theirs"), b"theirs")
        write(os.path.join(self.remote, "new2"), b"in the way")
        write(self.path("loose"), b"2")

    def meanwhile(self) -> None:
        shutil.rmtree(self.path("new0"))

    def verify(self) -> None:
        found = contents(self.remote)
        for number in range(3):
            self.assertEqual(found.pop(b"foreign%d" % number)[3], b"theirs", self.step)
        self.assertEqual(found.pop(b"new1/theirs")[3], b"theirs", self.step)
        self.assertEqual(found.pop(b"new2.rda-conflict")[3], b"in the way", self.step)
        self.assertEqual(found, contents(self.local), self.step)

    def test_everywhere(self) -> None:
        """Afterwards both sides are equal, nothing foreign was touched, and no temporary is left."""
        self.assertGreater(self.interrupt_everywhere(), 20)


class DeltaFaults(FaultCase):
    """Changed blocks of a large file, copied by a command and by the server."""

    def start(self) -> None:
        self.patch(large, "DELTA_FROM", 300_000)
        super().start()

    def prepare(self) -> None:
        write(self.path("big"), NOISE)

    def change(self) -> None:
        write(self.path("big"), NOISE[:300_000] + b"changed" + NOISE[300_007:] + b"appended")

    def test_everywhere(self) -> None:
        """The file is the old one or the new one, and in the end the new one."""
        for self.commands in (True, False):
            self.assertGreater(self.interrupt_everywhere(), 8)


class SingleFileFaults(FaultCase):
    """A single file, written in place."""

    def make_source(self) -> None:
        os.mkdir(self.top)
        self.local = os.path.join(self.top, "conf")
        write(self.local, NOISE)

    def change(self) -> None:
        write(self.local, NOISE[::-1][:-100])

    def verify(self) -> None:
        with open(self.remote, "rb") as file:
            self.assertEqual(file.read(), NOISE[::-1][:-100], self.step)

    def test_everywhere(self) -> None:
        """In the end the new content is there."""
        self.assertGreater(self.interrupt_everywhere(), 10)


class MirrorModeFaults(FaultCase):
    """Mirror mode, which removes what was made on the remote."""

    mode = "mirror"

    def prepare(self) -> None:
        write(self.path("d/f"), b"1")
        write(self.path("g"), b"1")

    def change(self) -> None:
        write(os.path.join(self.remote, "d/made/there"), b"theirs")
        write(os.path.join(self.remote, "g"), b"changed there")
        os.unlink(os.path.join(self.remote, "d/f"))
        os.makedirs(os.path.join(self.remote, "d/f/in the way"))
        write(self.path("new"), b"2")

    def test_everywhere(self) -> None:
        """In the end nothing else is there."""
        self.assertGreater(self.interrupt_everywhere(), 15)


class TwoWayFaults(FaultCase):
    """Two-way: new, changed and removed on either side, and a conflict."""

    mode = "two-way"

    def prepare(self) -> None:
        for name in ("a", "b", "c", "d/e", "both", "gone here", "gone there"):
            write(self.path(name), b"1")

    def write_there(self, name: str, data: bytes) -> None:
        path = os.path.join(self.remote, name)
        write(path, data)
        os.utime(path, (1_500_000_000, 1_500_000_000))

    def change(self) -> None:
        self.write_there("made/there", b"made there")
        self.write_there("a", b"changed there")
        self.write_there("both", b"theirs")
        write(self.path("both"), b"ours")
        write(self.path("b"), b"changed here")
        os.symlink("target", os.path.join(self.remote, "link"))
        os.unlink(self.path("gone here"))
        os.unlink(os.path.join(self.remote, "gone there"))
        shutil.rmtree(os.path.join(self.remote, "d"))

    def verify(self) -> None:
        here = contents(self.local)
        self.assertEqual(contents(self.remote), here, self.step)
        files = {name: value[3] for name, value in here.items() if value[0] == "file"}
        wanted = {
            b"a": b"changed there",
            b"b": b"changed here",
            b"both": b"ours",
            b"both.rda-conflict": b"theirs",
            b"c": b"1",
            b"made/there": b"made there",
        }
        self.assertEqual(files, wanted, self.step)
        self.assertEqual(here[b"link"], ("link", b"target"), self.step)

    def test_everywhere(self) -> None:
        """In the end both sides hold the same, both versions of what was changed on both, and nothing removed."""
        self.assertGreater(self.interrupt_everywhere(), 20)
