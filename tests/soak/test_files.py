"""Mirrors of large trees, and of trees that never stand still."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from rda.sync.scan import Scanner
from rda.sync.tree import Kind
from tests.live.support import MEBIBYTE, Rda
from tests.soak.support import SoakTestCase, size

#: What a mirror of a large tree may cost rda, in bytes of memory at its height.
FOOTPRINT = 150 * MEBIBYTE

#: Seconds that one look at the names, kinds and times of the large tree may take.
LOOK_SECONDS = 1.0

#: How long rda is watched doing nothing, and the processor time that a mirror may cost it meanwhile: one tick or two.
IDLE_SECONDS = 30.0
IDLE_CPU = 0.05

#: Seconds after the last change until both sides must be equal, with nobody asking for it.
QUIET_SECONDS = 60.0

#: Seconds from a local write until it is seen on the remote: 99 of 100 must not take longer.
VISIBLE_SECONDS = 0.1

#: Seconds after which a change counts as missed.
MISSED_SECONDS = 10.0


def digests(top: Path) -> dict[str, str]:
    """Return what a tree holds: by path, the digest of a file, the target of a link, or that it is a directory."""
    found = {}
    for directory, directories, files in os.walk(top):
        for name in [*directories, *files]:
            path = Path(directory, name)
            with contextlib.suppress(FileNotFoundError):  # it has gone since its directory was listed
                found[str(path.relative_to(top))] = digest(path)
    return found


def digest(path: Path) -> str:
    """Return what is at a path, in a few words."""
    if path.is_symlink():
        return "link " + os.readlink(path)
    return "directory" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()


class MirrorSoakTestCase(SoakTestCase):
    """A tree, mounted into an idle container."""

    def choose_rda(self) -> Rda:
        """Start an rda for this test alone; the test may put another one in its place."""
        rda = super().choose_rda()
        self.addCleanup(lambda: self.rda.stop())
        return rda

    def setUp(self) -> None:
        super().setUp()
        self.source = self.directory()
        self.addCleanup(shutil.rmtree, self.source, ignore_errors=True)
        self.chance = random.Random(self.id())

    def fill(self, files: int, directories: int, largest: int = 2000) -> list[Path]:
        """Make small files in nested directories; return their paths."""
        places = [self.source]
        for n in range(directories):
            place = self.chance.choice(places[-100:]) / f"d{n}"
            if len(place.parts) - len(self.source.parts) > 8:
                place = self.source / f"d{n}"
            place.mkdir()
            places.append(place)
        paths = [self.chance.choice(places) / f"f{n}" for n in range(files)]
        for path in paths:
            path.write_bytes(self.chance.randbytes(self.chance.randint(0, largest)))
        return paths

    def mount(self) -> Path:
        """Run a container that has the tree at /x; return the remote copy as it is seen here."""
        self.rda.docker("run", "-d", "--name", "box", "-v", f"{self.source}:/x", "busybox", "sleep", "1000000")
        (mount,) = json.loads(self.host.docker("inspect", "box").stdout)[0]["Mounts"]
        return Path(f"{self.host.root}{mount['Source']}")

    def differences(self, remote: Path) -> list[str]:
        """Return what is not the same on both sides."""
        here, there = digests(self.source), digests(remote)
        return sorted(path for path in here.keys() | there.keys() if here.get(path) != there.get(path))

    def assert_equal_soon(self, remote: Path) -> None:
        """Check that both sides become equal by themselves, by the digests of everything."""
        deadline = time.monotonic() + QUIET_SECONDS
        while different := self.differences(remote):
            if time.monotonic() > deadline:
                self.fail(f"{len(different)} paths differ, among them {different[:5]}\n{self.rda.output}")
            time.sleep(0.5)

    def cpu(self) -> float:
        """Return the seconds of processor time that rda has used so far."""
        fields = Path(f"/proc/{self.rda.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wakings(self) -> dict[str, int]:
        """Return how often each of rda's threads has gone to sleep by itself so far."""
        found = {}
        for thread in Path(f"/proc/{self.rda.process.pid}/task").iterdir():
            match = re.search(r"^voluntary_ctxt_switches:\s+(\d+)$", (thread / "status").read_text(), re.MULTILINE)
            assert match is not None
            found[thread.name] = int(match.group(1))
        return found


class LargeTree(MirrorSoakTestCase):
    """FILES (100,000) files in a tenth as many directories."""

    def idle(self) -> tuple[float, float]:
        """Watch rda doing nothing; return seconds of processor time, and wakings a second of all its threads."""
        cpu, wakings = self.cpu(), self.wakings()
        time.sleep(IDLE_SECONDS)
        woken = sum(count - wakings.get(thread, 0) for thread, count in self.wakings().items())
        return self.cpu() - cpu, woken / IDLE_SECONDS

    def test_footprint(self) -> None:
        """A large mirror is looked at within a second, costs little memory and, while nothing happens, no processor."""
        files = size("FILES", 100_000)
        self.fill(files, files // 10)
        self.rda.docker("run", "--rm", "-v", f"{self.directory()}:/x", "busybox", "true")  # what comes with any mirror
        idle, before = self.idle(), self.rda.memory()
        self.rda.reset_peak()
        began, used = time.monotonic(), self.cpu()
        remote = self.mount()
        self.tell(f"container started after {time.monotonic() - began:.1f} s, {self.cpu() - used:.1f} s of processor")
        self.assertEqual(len(digests(remote)), files + files // 10)
        self.assertEqual(self.differences(remote), [])
        peak, now = (self.rda.memory(key) - before for key in ("VmHWM", "VmRSS"))
        self.tell(
            f"memory at most {peak / MEBIBYTE:.0f} MiB, then {now / MEBIBYTE:.0f} MiB above {before / MEBIBYTE:.0f}"
        )
        time.sleep(5)  # racily clean files are looked at once more
        busy = self.idle()
        self.tell(f"idle for {IDLE_SECONDS:.0f} s: {busy[0]:.2f} s of processor, {busy[1]:.1f} wakings a second; "
                  f"without it {idle[0]:.2f} s, {idle[1]:.1f}")  # fmt: skip
        self.look()
        self.restart(remote)
        self.assertLess(peak, FOOTPRINT)
        self.assertLessEqual(busy[0] - idle[0], IDLE_CPU)

    def look(self) -> None:
        """Measure looks at the tree: the first one, and one that knows what to expect."""
        scanner = Scanner(os.fsencode(self.source), Kind.DIRECTORY)
        times = []
        known = scanner.whole({}).entries
        for _ in range(3):
            began = time.monotonic()
            scanner.whole(known)
            times.append(time.monotonic() - began)
        self.tell(f"a look at {len(known)} entries takes {min(times):.2f} s")
        self.assertLess(min(times), LOOK_SECONDS)

    def restart(self, remote: Path) -> None:
        """Start rda anew: it finds its mirror again and goes on."""
        self.rda.stop()
        (self.source / "meanwhile").write_text("changed while rda was away")
        began = time.monotonic()
        self.rda = Rda(self.host, state_dir=str(self.rda.state))
        self.rda.wait_ready()
        ready = time.monotonic() - began
        self.eventually((remote / "meanwhile").exists, "the mirror is taken up again", 60)
        caught_up = time.monotonic() - began
        self.rda.docker("exec", "box", "true")
        self.tell(f"started anew: ready after {ready:.1f} s, up to date after {caught_up:.1f} s, "
                  f"{self.cpu():.1f} s of processor, {self.rda.memory() / MEBIBYTE:.0f} MiB")  # fmt: skip
        self.assertEqual(self.differences(remote), [])


class Edits(MirrorSoakTestCase):
    """EDITS (10,000) edits of a tree of a thousand files, as editors, build tools and programs make them."""

    def setUp(self) -> None:
        super().setUp()
        self.paths = self.fill(1000, 100)
        self.remote = self.mount()

    def test_none_is_missed(self) -> None:
        """Bursts of edits of all kinds: in the end both sides are equal, by the digests of everything."""
        edits = self.edits()
        began = time.monotonic()
        for _ in range(size("EDITS", 10_000)):
            next(edits)
            if self.chance.random() < 0.02:
                time.sleep(self.chance.uniform(0, 0.1))
        self.tell(f"edited for {time.monotonic() - began:.1f} s")
        self.assert_equal_soon(self.remote)

    def edits(self) -> Iterator[None]:
        """Make one edit after the other."""
        kinds = (
            self.write,
            self.write,
            self.save,
            self.save,
            self.rewrite,
            self.append,
            self.make,
            self.move,
            self.drop,
        )
        while True:
            self.chance.choice(kinds)(self.chance.choice(self.paths))
            yield

    def write(self, path: Path) -> None:
        """Write a file in place."""
        path.write_bytes(self.chance.randbytes(self.chance.randint(0, 3000)))

    def save(self, path: Path) -> None:
        """Write a file beside it and rename it, as editors do."""
        beside = path.with_name(f".{path.name}.swp")
        beside.write_bytes(self.chance.randbytes(self.chance.randint(0, 3000)))
        beside.rename(path)

    def rewrite(self, path: Path) -> None:
        """Write one file many times at once, always as long."""
        for _ in range(10):
            path.write_bytes(self.chance.randbytes(100))

    def append(self, path: Path) -> None:
        """Add to a file."""
        with open(path, "ab") as file:
            file.write(self.chance.randbytes(50))

    def make(self, path: Path) -> None:
        """Make nested directories with a file."""
        place = path.parent / f"n{self.chance.randrange(1 << 30)}" / "x" / "y"
        place.mkdir(parents=True)
        (place / "z").write_bytes(b"new")
        self.paths.append(place / "z")

    def move(self, path: Path) -> None:
        """Rename a file."""
        other = path.with_name(f"m{self.chance.randrange(1 << 30)}")
        path.rename(other)
        self.paths[self.paths.index(path)] = other

    def drop(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()
        self.paths.remove(path)

    def test_soon_visible(self) -> None:
        """Edits made one after the other, as people make them, are each seen on the remote in a tenth of a second."""
        for name, edit in (("different files", self.write), ("rename-save", self.save), ("same file", self.write)):
            times = sorted(self.visible(edit, name == "same file") for _ in range(size("VISIBLE", 300)))
            slow = times[int(len(times) * 0.99)]
            self.tell(f"{name}: visible after {statistics.median(times) * 1000:.0f} ms, 99 % {slow * 1000:.0f} ms")
            self.assertLess(slow, VISIBLE_SECONDS)
        self.assert_equal_soon(self.remote)

    def visible(self, edit: object, same: bool) -> float:
        """Make one edit; return the seconds until the remote file holds the same."""
        path = self.paths[0] if same else self.chance.choice(self.paths)
        there = self.remote / path.relative_to(self.source)
        edit(path)  # type: ignore[operator]
        began, data = time.perf_counter(), path.read_bytes()
        while there.read_bytes() != data:
            if time.perf_counter() - began > MISSED_SECONDS:
                self.fail(f"{path} was never seen on the remote\n{self.rda.output}")
            time.sleep(0.0005)
        seen = time.perf_counter() - began
        time.sleep(self.chance.uniform(0.02, 0.06))
        return seen


class Checkouts(MirrorSoakTestCase):
    """git, which changes a whole tree at once."""

    def git(self, *words: str) -> None:
        """Run git in the tree."""
        ours = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        who = ("-c", "user.name=soak", "-c", "user.email=soak@example.com", "-c", "gc.auto=0")
        subprocess.run(["git", *who, *words], cwd=self.source, check=True, capture_output=True, env=os.environ | ours)

    def test_checkouts(self) -> None:
        """CHECKOUTS (10) checkouts that change, add and remove 5,000 files each end with both sides equal."""
        self.git("init", "-b", "one")
        paths = self.fill(5000, 300)
        self.git("add", ".")
        self.git("commit", "-m", "one")
        self.git("checkout", "-b", "two")
        for n, path in enumerate(paths):
            if n % 5 == 0:
                path.unlink()
            elif n % 5 == 1:
                (path.parent / "moved").mkdir(exist_ok=True)
                path.rename(path.parent / "moved" / path.name)
            else:
                path.write_bytes(self.chance.randbytes(1500))
        self.git("add", "-A")
        self.git("commit", "-m", "two")
        remote = self.mount()
        for n in range(size("CHECKOUTS", 10)):
            began, used = time.monotonic(), self.cpu()
            self.git("checkout", ("one", "two")[n % 2])
            made = time.monotonic() - began
            self.assert_equal_soon(remote)
            later = time.monotonic() - began - made
            self.tell(f"checkout took {made:.1f} s, equal {later:.1f} s later, {self.cpu() - used:.1f} s of processor")
