"""Random histories of a tree and its copy: edits on both sides, lost connections, restarts, looks at parts.

The soak tests run a thousand of each mode.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterable, Mapping

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from rda.errors import RdaError, SyncHalted
from rda.sync import bulk
from rda.sync.settings import Settings
from rda.sync.tree import Entry, Scope
from tests.fakes_remote import contents
from tests.mirror_case import MirrorCase, write

#: Short and nested names, so that they meet: as files, as directories, and one as the other.
NAMES = st.sampled_from(["a", "b", "c/a", "c/b", "c/d/e", "c/d/f", "g/h/i", "g", "c"])

#: Times that no two writes share.
STAMPS = itertools.count(1_500_000_000)


class _Bench(MirrorCase):
    """A local directory and a remote host, for a machine instead of a test."""

    mode = "one-way"

    def settings(self, source: str) -> Settings:
        return Settings(self.mode)

    def runTest(self) -> None:
        """Never run."""


class Histories(RuleBasedStateMachine):
    """What may happen, and what both sides look like afterwards."""

    mode = ""

    def __init__(self) -> None:
        super().__init__()
        self.bench = bench = _Bench()
        bench.mode = self.mode
        bench.setUp()
        self.local = bench.local
        self.number = 0

    @initialize(commands=st.booleans())
    def begin(self, commands: bool) -> None:
        self.bench.host.commands = commands
        self.remote = self.bench.place()

    def teardown(self) -> None:
        try:
            self.complete()
        finally:
            self.bench.doCleanups()

    # -- what happens here

    @rule(name=NAMES, mode=st.integers(0o600, 0o677))
    def write(self, name: str, mode: int) -> None:
        self.make_file(self.local, name, mode)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if self.is_reachable(self.local, name):
            clear(os.path.join(self.local, name))

    @rule(name=NAMES)
    def make_directory(self, name: str) -> None:
        if self.is_reachable(self.local, name):
            clear(os.path.join(self.local, name))
            os.makedirs(os.path.join(self.local, name))

    @rule(name=NAMES, to=NAMES)
    def link(self, name: str, to: str) -> None:
        self.make_link(self.local, name, to)

    @rule(source=NAMES, to=NAMES)
    def rename(self, source: str, to: str) -> None:
        self.move(self.local, source, to)

    @rule(name=NAMES, mode=st.integers(0o700, 0o777))
    def change_mode(self, name: str, mode: int) -> None:
        path = os.path.join(self.local, name)
        if self.is_reachable(self.local, name) and os.path.lexists(path) and not os.path.islink(path):
            os.chmod(path, mode)

    # -- what happens to the connection and to rda

    @rule(name=NAMES, deep=st.booleans())
    def event(self, name: str, deep: bool) -> None:
        """Only this part of the tree is looked at."""
        part = frozenset([name.encode()])
        for hints in self.bench.watcher.hints:
            hints._changed(Scope(trees=part) if deep else Scope(paths=part))

    @rule(after=st.integers(1, 40), carried_out=st.booleans())
    def lose(self, after: int, carried_out: bool) -> None:
        files = self.bench.host.connections[-1]
        files.fail_at, files.fail_after = len(files.operations) + after, carried_out

    @rule(after=st.integers(1, 40), carried_out=st.booleans())
    def kill(self, after: int, carried_out: bool) -> None:
        """rda ends in the middle of a sync."""
        if self.bench.mirrors._mirrors[self.local]._manifest is not None:
            self.bench.kill_when_lost()
            self.lose(after, carried_out)
            self.bench.mirrors.complete(self.local).addErrback(lambda failure: failure.trap(RdaError))
            self.restart()

    @rule(after=st.integers(1, 40), name=NAMES, what=st.sampled_from(["remove", "write", "make_directory"]))
    def interfere(self, after: int, name: str, what: str) -> None:
        """Something changes here in the middle of a sync."""
        files = self.bench.host.connections[-1]
        due = len(files.operations) + after

        def look(_operation: str, _path: bytes) -> None:
            if len(files.operations) >= due:
                files.refuse = lambda operation, path: None
                if what == "write":
                    self.make_file(self.local, name)
                elif what == "remove":
                    self.remove(name)
                else:
                    self.make_directory(name)

        files.refuse = look

    @rule()
    def restart(self) -> None:
        self.bench.restart()
        self.bench.host.lose()
        self.bench.successResultOf(self.bench.mirrors.hold("c", [self.local]))

    @rule()
    def flush(self) -> None:
        self.complete()

    # -- what is checked

    def complete(self) -> None:
        """Flush until nothing is to be done any more, and check both sides."""
        for files in self.bench.host.connections:
            files.fail_at, files.refuse = None, lambda operation, path: None
        before = self.remembered()
        for _ in range(4):  # what was moved aside in one pass comes back in the next one
            done = self.bench.mirrors.complete(self.local)
            done.addErrback(self.confirm)
            self.bench.successResultOf(done)
        self.verify(before)
        stage = os.path.join(os.path.dirname(self.remote), "stage")
        assert len(os.listdir(stage)) <= 4
        assert all(os.lstat(os.path.join(stage, name)).st_size == 0 for name in os.listdir(stage))

    def confirm(self, failure: Failure) -> None:
        failure.trap(SyncHalted)
        self.bench.mirrors.confirm(self.local)

    def remembered(self) -> set[bytes]:
        """Contents that must not be lost."""
        return set()

    def verify(self, kept: set[bytes]) -> None:
        assert contents(self.remote) == contents(self.local)

    def known(self) -> Mapping[bytes, Entry]:
        """What both sides last agreed on."""
        manifest = self.bench.mirrors._mirrors[self.local]._manifest
        return {} if manifest is None else manifest.entries

    @invariant()
    def nothing_is_left_lying_about(self) -> None:
        assert not [name for name in os.listdir(self.local) if name.startswith(".rda")]

    # -- how it is done

    def make_file(self, side: str, name: str, mode: int = 0o644) -> None:
        if self.is_reachable(side, name):
            self.number += 1
            path = os.path.join(side, name)
            clear(path)
            write(path, b"%d" % self.number, mode)
            stamp = next(STAMPS)
            os.utime(path, (stamp, stamp))

    def make_link(self, side: str, name: str, target: str) -> None:
        if self.is_reachable(side, name):
            path = os.path.join(side, name)
            clear(path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(target, path)

    def move(self, side: str, source: str, target: str) -> None:
        if (
            self.is_reachable(side, source)
            and self.is_reachable(side, target)
            and not (source + "/").startswith(target + "/")
            and not (target + "/").startswith(source + "/")
            and os.path.lexists(os.path.join(side, source))
        ):
            clear(os.path.join(side, target))
            os.makedirs(os.path.dirname(os.path.join(side, target)), exist_ok=True)
            os.rename(os.path.join(side, source), os.path.join(side, target))

    def is_reachable(self, side: str, name: str) -> bool:
        """Whether everything above is a directory, or nothing."""
        above = os.path.dirname(os.path.join(side, name))
        while len(above) > len(side):
            if os.path.lexists(above) and (os.path.islink(above) or not os.path.isdir(above)):
                return False
            above = os.path.dirname(above)
        return True


def clear(path: str) -> None:
    """Make a name free."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def file_contents(side: str) -> Iterable[bytes]:
    return (value[3] for value in contents(side).values() if value[0] == "file")


class OneWay(Histories):
    """The remote holds all that is here, all that was made there, and nothing else."""

    mode = "one-way"

    def __init__(self) -> None:
        super().__init__()
        self.made: set[bytes] = set()
        self.made_directories: set[bytes] = set()

    @rule(name=NAMES)
    def make_there(self, name: str) -> None:
        """A container makes a file where there is none, and where none of ours was: that would stand for ours."""
        if (
            self.is_reachable(self.remote, name)
            and not os.path.lexists(os.path.join(self.remote, name))
            and name.encode() not in self.known()
        ):
            before = set(contents(self.remote))
            self.make_file(self.remote, name)
            self.made.add(b"%d" % self.number)
            self.made_directories |= set(contents(self.remote)) - before

    @rule(name=NAMES)
    def remove_there(self, name: str) -> None:
        """A container removes one of our files, which is its own business until the file changes here."""
        self.complete()
        here, there = os.path.join(self.local, name), os.path.join(self.remote, name)
        if os.path.isfile(here) and not os.path.islink(here) and self.is_reachable(self.local, name):
            os.unlink(there)
            self.make_file(self.local, name)

    def remembered(self) -> set[bytes]:
        return self.made

    def verify(self, kept: set[bytes]) -> None:
        here, there = contents(self.local), contents(self.remote)
        assert {path: there.get(path) for path in here} == here
        others = sorted(value[3] for path, value in there.items() if path not in here and value[0] == "file")
        assert others == sorted(kept)
        for path, value in there.items():
            if path not in here and value[0] == "directory" and path not in self.made_directories:
                assert any(other.startswith(path + b"/") and other not in here for other in there), path


class MirrorMode(Histories):
    """Nothing is on the remote that is not here, whatever is done there."""

    mode = "mirror"

    @rule(name=NAMES)
    def write_there(self, name: str) -> None:
        self.make_file(self.remote, name)

    @rule(name=NAMES)
    def remove_there(self, name: str) -> None:
        if self.is_reachable(self.remote, name):
            clear(os.path.join(self.remote, name))

    @rule(source=NAMES, to=NAMES)
    def rename_there(self, source: str, to: str) -> None:
        self.move(self.remote, source, to)

    @rule(name=NAMES, to=NAMES)
    def link_there(self, name: str, to: str) -> None:
        self.make_link(self.remote, name, to)


class TwoWay(MirrorMode):
    """Both sides are equal, and no edit that nobody took back is lost on either."""

    mode = "two-way"

    def remembered(self) -> set[bytes]:
        known = self.known()
        return {
            value[3]
            for side in (self.local, self.remote)
            for path, value in contents(side).items()
            if value[0] == "file" and (path not in known or known[path].mtime != value[2])
        }

    def verify(self, kept: set[bytes]) -> None:
        super().verify(kept)
        assert kept <= set(file_contents(self.local))


class HistoryTests(SynchronousTestCase):
    """Random histories of both sides, in every mode."""

    examples = 40
    steps = 25

    def run_histories(self, machine: type[Histories]) -> None:
        self.patch(bulk, "WORTHWHILE", 2)
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine, settings=settings(max_examples=self.examples, stateful_step_count=self.steps, deadline=None)
        )

    def test_one_way(self) -> None:
        """Whatever happens, in the end the remote holds all that is here, and all that was made there."""
        self.run_histories(OneWay)

    def test_mirror(self) -> None:
        """In the end the remote holds what is here, and nothing else."""
        self.run_histories(MirrorMode)

    def test_two_way(self) -> None:
        """In the end both sides are equal, and no edit that nobody took back is lost on either."""
        self.run_histories(TwoWay)
