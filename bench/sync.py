"""rda's mirrors beside rsync, tar, scp, unison, lsyncd and Mutagen, those that are installed, in one interleaved run.

    python bench/sync.py                                  # against the throwaway remote host (see tests/live/host.py)
    python bench/sync.py --remote root@host:22 --identity KEY --known-hosts FILE --seen-at /mnt/host
    python bench/sync.py --round-trips 0,20,100           # a longer way: milliseconds added to each round trip

Trees are made from a seed: ``a`` 10,000 small files in 600 directories, ``b`` one file of 1 GiB, ``c`` 25,000 mixed
files in 5,400 directories (``--scale`` shrinks them all). What is measured: the first transfer; nothing changed; one
file changed; 1 % changed; for ``b`` 1 MiB appended, and 1 MiB changed inside; and how long a local write takes until it
is seen on the remote (which needs the remote's files to be visible here: ``--seen-at``). After each contender's turn
both sides are compared. Medians of the rounds are shown, and the ratio to rsync.

With each transfer goes the processor time used here and on the remote (there by sshd and what it starts, as /proc
tells it), and for each tree the largest resident size of any process here. On a machine that is busy with other things
processor time says more than seconds do; the load is told. So that a run with everything ends in less than half an
hour, a transfer that takes several times as long as rsync's, or longer than ``--patience``, is given up, and so is this
contender with this tree; one that is far behind takes part in the first round only; and there are fewer rounds over
longer ways.

rda runs as it does in service: one process, connected all the time (``--agent``); the others start and connect anew for
each transfer, as they do when they are used.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20

#: Seconds for the first transfer of a tree that is watched, and after which an edit counts as never seen.
FIRST_SECONDS = 60.0
EDIT_SECONDS = 5.0

#: Seconds between two looks at how large a program is.
SAMPLE_SECONDS = 0.02

#: A transfer that takes so many times as long as rsync's, and some seconds, is given up: scp and unison wait for round
#: trips by the thousand. Whose first transfer takes so many times as long takes part in one round only.
HOPELESS, HOPELESS_SECONDS = 4.0, 5.0
FAR_BEHIND = 2.0

#: How to get what may be missing.
HOW = {
    "rsync": "apt install rsync, also on the remote",
    "tar": "apt install tar, also on the remote",
    "scp": "apt install openssh-client",
    "unison": "apt install unison, the same version also on the remote",
    "lsyncd": "apt install lsyncd, and rsync also on the remote",
    "mutagen": "https://mutagen.io/documentation/introduction/installation",
}

#: What serves a transfer on the remote, by the names of the programs.
SERVING = ("sshd", "sftp-server", "scp", "rsync", "tar", "cp", "sh", "bash", "unison", "mutagen")


@dataclass(frozen=True)
class Target:
    """The remote host.

    :ivar seen_at: where its root directory is visible here, or None.
    """

    user: str
    host: str
    port: int
    identity: str
    known_hosts: str
    seen_at: str | None
    directory: str

    @property
    def ssh(self) -> list[str]:
        """The ssh command line, without the host."""
        options = ["-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "LogLevel=ERROR"]
        return ["ssh", "-F", "none", "-p", str(self.port), "-i", self.identity, *options]

    @property
    def login(self) -> str:
        """user@host."""
        return f"{self.user}@{self.host}"

    def run(self, command: str) -> None:
        """Run a shell command there."""
        subprocess.run([*self.ssh, self.login, command], check=True, stdin=subprocess.DEVNULL)

    def has(self, program: str) -> bool:
        """Whether it has a program, and can run it."""
        asked = [*self.ssh, self.login, f"{program} --version || {program} -version"]
        return subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0

    def cpu(self) -> float | None:
        """Seconds of processor time that serving SSH has taken there so far, or None where /proc does not tell.

        What has ended is counted with what had started it. Asking costs some too: :func:`cost_of_asking`.
        """
        asked = [*self.ssh, self.login, "cat /proc/[0-9]*/stat 2>/dev/null; true"]
        told = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout
        ticks = 0
        for line in told.splitlines():
            name, _, fields = line.partition("(")[2].rpartition(")")
            if name.startswith(SERVING):
                ticks += sum(map(int, fields.split()[11:15]))
        return ticks / TICKS if ticks else None

    def visible(self, path: str) -> str | None:
        """A remote path as it is seen here."""
        return None if self.seen_at is None else self.seen_at + path


# -- trees -----------------------------------------------------------------------------------------------------------


def make_tree(kind: str, top: Path, scale: float) -> None:
    """Make one of the trees, the same one for the same scale."""
    chance = random.Random(f"{kind} {scale}")
    top.mkdir(parents=True)
    if kind == "b":
        with open(top / "big", "wb") as file:
            for _ in range(max(int(1024 * scale), 8)):
                file.write(chance.randbytes(MIB))
        return
    files, directories, largest = (10_000, 600, 8_000) if kind == "a" else (25_165, 5_407, 42_000)
    places = [top]
    for number in range(int(directories * scale)):
        place = chance.choice(places[-200:]) / f"d{number}"
        if len(place.parts) - len(top.parts) > 8:
            place = top / f"d{number}"
        place.mkdir()
        places.append(place)
    for number in range(int(files * scale)):
        (chance.choice(places) / f"f{number}").write_bytes(chance.randbytes(chance.randint(0, largest)))


def tree_files(top: Path) -> list[Path]:
    """All files, in a fixed order."""
    return sorted(path for path in top.rglob("*") if path.is_file())


def compare(here: Path, there: str | None) -> None:
    """Raise AssertionError when the two trees differ."""
    if there is None:
        return
    answer = subprocess.run(["diff", "-rq", str(here), there], capture_output=True, text=True, check=False)
    assert not answer.stdout, f"not equal: {answer.stdout[:500]}"


# -- contenders ------------------------------------------------------------------------------------------------------


def process_cpu(pid: int) -> float:
    """Seconds of processor time that a process, and what it has started and seen ending, has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def process_memory(pid: int) -> int:
    """Largest resident size of a process so far, KiB; 0 when it has ended."""
    with contextlib.suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1])
    return 0


class GaveUp(Exception):
    """A transfer takes too long."""


class Contender:
    """One way to make a remote tree equal to a local one."""

    name = ""
    watches = False
    #: A program that the remote needs too.
    needs = ""
    #: Seconds after which a transfer is given up.
    patience = 120.0

    def __init__(self, target: Target, source: Path, work: Path) -> None:
        self.target = target
        self.source = source
        self.work = work
        self.remote = f"{target.directory}/{self.name}"
        self.largest = 0

    @classmethod
    def is_here(cls, target: Target) -> bool:
        """Whether this machine has it, and the remote too where that is needed."""
        return shutil.which(cls.name) is not None and (not cls.needs or target.has(cls.needs))

    def start(self) -> None:
        """Get ready, with nothing on the remote."""
        self.target.run(f"rm -rf {self.remote} && mkdir -p {self.remote}")

    def transfer(self) -> None:
        """Make the remote equal; return when it is."""
        raise NotImplementedError

    def stop(self) -> None:
        """End."""
        self.target.run(f"rm -rf {self.remote}")

    def cpu(self) -> float:
        """Seconds of processor time used here so far."""
        times = os.times()
        return times.children_user + times.children_system

    def memory(self) -> int:
        """Largest resident size so far of any process here, KiB; 0 when not known."""
        return self.largest

    def call(self, *commands: Sequence[str]) -> None:
        """Run programs to their ends, each one's output being the next one's input.

        :raises GaveUp: they took longer than the run's patience.
        """
        processes: list[subprocess.Popen[bytes]] = []
        for command in commands:
            ahead = processes[-1].stdout if processes else subprocess.DEVNULL
            out = subprocess.DEVNULL if command is commands[-1] else subprocess.PIPE
            processes.append(subprocess.Popen(command, stdin=ahead, stdout=out))
            if processes[:-1]:
                processes[-2].stdout.close()  # type: ignore[union-attr]
        over = threading.Event()
        late: list[bool] = []
        minding = threading.Thread(target=self._mind, args=(processes, over, late))
        minding.start()
        statuses = [process.wait() for process in processes]
        over.set()
        minding.join()
        if late:
            raise GaveUp(f"it took longer than {self.patience:.0f} s")
        if any(statuses):
            raise RuntimeError(f"{shlex.join(commands[-1])} ended with {statuses}")

    def _mind(self, processes: list[subprocess.Popen[bytes]], over: threading.Event, late: list[bool]) -> None:
        """See how large programs become, and end them when they take too long."""
        end = time.perf_counter() + self.patience
        while not over.wait(SAMPLE_SECONDS):
            self.largest = max(self.largest, *(process_memory(process.pid) for process in processes))
            if time.perf_counter() > end:
                late.append(True)
                for process in processes:
                    process.kill()
                return


class Rsync(Contender):
    """rsync(1), the measure of all things."""

    name = "rsync"
    needs = "rsync"

    def transfer(self) -> None:
        """See :class:`Contender`."""
        self.call(["rsync", "-a", "--delete", "-e", shlex.join(self.target.ssh), f"{self.source}/",
                   f"{self.target.login}:{self.remote}/"])  # fmt: skip


class Tar(Contender):
    """tar piped through ssh: no state, everything each time."""

    name = "tar"
    needs = "tar"

    def transfer(self) -> None:
        """See :class:`Contender`."""
        there = f"tar -C {self.remote} -xf -"
        self.call(["tar", "-C", str(self.source), "-cf", "-", "."], [*self.target.ssh, self.target.login, there])


class Scp(Contender):
    """scp(1): no state, everything each time."""

    name = "scp"

    def transfer(self) -> None:
        """See :class:`Contender`."""
        ssh = self.target.ssh[1:]
        ssh[ssh.index("-p")] = "-P"
        self.call(["scp", "-q", "-r", "-p", *ssh, f"{self.source}/.", f"{self.target.login}:{self.remote}/"])


class Unison(Contender):
    """unison(1), two-way by nature."""

    name = "unison"
    needs = "unison"

    def start(self) -> None:
        """See :class:`Contender`; what either side remembers of an earlier turn would be wrong."""
        super().start()
        os.environ["UNISON"] = tempfile.mkdtemp(dir=self.work)
        self.target.run(f"rm -rf {self.remote}.state && mkdir -p {self.remote}.state")

    def stop(self) -> None:
        """See :class:`Contender`."""
        self.target.run(f"rm -rf {self.remote}.state")
        super().stop()

    def transfer(self) -> None:
        """See :class:`Contender`."""
        root = f"ssh://{self.target.login}:{self.target.port}/{self.remote}"
        ssh = [word for word in self.target.ssh[1:] if word not in ("-p", str(self.target.port))]
        options = ["-batch", "-silent", "-prefer", str(self.source), "-sshargs", " ".join(ssh)]
        options += ["-servercmd", f"env UNISON={self.remote}.state unison"]
        self.call(["unison", *options, str(self.source), root])


class Lsyncd(Contender):
    """lsyncd(1): inotify and rsync; it has no way to say that it is done."""

    name = "lsyncd"
    needs = "rsync"
    watches = True
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """See :class:`Contender`."""
        super().start()
        settings = self.work / "lsyncd.lua"
        target = f"{self.target.login}:{self.remote}"
        settings.write_text(
            "settings { nodaemon = true }\n"
            f'sync {{ default.rsync, source="{self.source}", target="{target}", delay=0,'
            f' rsync = {{ archive=true, rsh="{shlex.join(self.target.ssh)}" }} }}\n'
        )
        self.process = subprocess.Popen(["lsyncd", str(settings)], stdout=subprocess.DEVNULL)

    def transfer(self) -> None:
        """See :class:`Contender`."""
        raise NotImplementedError

    def stop(self) -> None:
        """See :class:`Contender`."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
        super().stop()


class Mutagen(Contender):
    """Mutagen, with its daemon here and its agent on the remote."""

    name = "mutagen"
    watches = True

    def daemons(self) -> list[int]:
        """Its processes here: the daemon, and the ssh that it has started."""
        found = subprocess.run(["pgrep", "-f", "mutagen daemon|mutagen-agent"], capture_output=True, check=False).stdout
        return [pid for pid in map(int, found.split()) if Path(f"/proc/{pid}").exists()]

    def cpu(self) -> float:
        """Of its processes."""
        return super().cpu() + sum(map(process_cpu, self.daemons()))

    def memory(self) -> int:
        """Of its daemon."""
        return max(map(process_memory, self.daemons()), default=0)

    def start(self) -> None:
        """See :class:`Contender`."""
        super().start()
        self.call(["mutagen", "sync", "create", "--name=rda-bench", "--mode=one-way-replica", str(self.source),
                   f"{self.target.login}:{self.target.port}:{self.remote}"])  # fmt: skip

    def transfer(self) -> None:
        """See :class:`Contender`."""
        self.call(["mutagen", "sync", "flush", "rda-bench"])

    def stop(self) -> None:
        """See :class:`Contender`."""
        self.call(["mutagen", "sync", "terminate", "rda-bench"])
        super().stop()


class Rda(Contender):
    """A process of this file that runs a link and mirrors, and is told what to do line by line."""

    name = "rda"
    watches = True
    process: subprocess.Popen[str] | None = None

    @classmethod
    def is_here(cls, target: Target) -> bool:
        """Always."""
        return True

    def start(self) -> None:
        """See :class:`Contender`."""
        super().start()
        state = tempfile.mkdtemp(dir=self.work)
        arguments = json.dumps({"target": vars(self.target), "state": state, "sync_root": self.remote})
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--agent", arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._ask("connect")
        self.root = self.remote

    def _ask(self, command: str) -> str:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer.startswith("ok"):
            raise RuntimeError(answer or "the agent ended")
        return answer[3:]

    def transfer(self) -> None:
        """See :class:`Contender`."""
        self.remote = self._ask(f"flush {self.source}")

    def cpu(self) -> float:
        """Of the agent."""
        assert self.process is not None
        return process_cpu(self.process.pid)

    def memory(self) -> int:
        """Of the agent."""
        assert self.process is not None
        return process_memory(self.process.pid)

    def stop(self) -> None:
        """See :class:`Contender`."""
        if self.process is not None:
            with contextlib.suppress(RuntimeError):
                self._ask("stop")
            self.process.wait()
        self.remote = self.root
        super().stop()


CONTENDERS: list[type[Contender]] = [Rsync, Rda, Tar, Scp, Unison, Lsyncd, Mutagen]


def agent(arguments: dict[str, Any]) -> None:
    """The process behind :class:`Rda`."""
    from twisted.internet import reactor, stdio
    from twisted.internet.defer import Deferred
    from twisted.protocols.basic import LineReceiver

    from rda.config import Remote
    from rda.ssh.link import Link
    from rda.sync.mirrors import Mirrors

    target = Target(**arguments["target"])
    remote = Remote(
        f"{target.login}:{target.port}",
        identities=(target.identity,),
        known_hosts=(target.known_hosts,),
        ssh_config="none",
    )
    link = Link(reactor, remote)
    mirrors = Mirrors(link, arguments["state"], "bench", arguments["sync_root"], reactor)

    async def carry_out(command: str, subject: str) -> str:
        if command == "connect":
            link.startService()
            mirrors.startService()
            await link.files()
        elif command == "flush":
            place = await mirrors.place(subject)
            await mirrors.flush(subject)
            return place.remote
        elif command == "stop":
            await mirrors.stopService()
            await link.stopService()
        return ""

    class Commands(LineReceiver):
        delimiter = b"\n"

        def lineReceived(self, line: bytes) -> None:
            command, _, subject = line.decode().partition(" ")
            done = Deferred.fromCoroutine(carry_out(command, subject))
            done.addCallbacks(lambda result: f"ok {result}", lambda failure: f"failed: {failure.getErrorMessage()}")
            done.addCallback(lambda answer: self.sendLine(answer.encode()))
            if command == "stop":
                done.addCallback(lambda _: reactor.callLater(0, reactor.stop))  # type: ignore[attr-defined]

    stdio.StandardIO(Commands())
    reactor.run()  # type: ignore[attr-defined]


# -- measurements ----------------------------------------------------------------------------------------------------

Results = dict[str, dict[str, list[float]]]


def cost_of_asking(target: Target) -> float:
    """Seconds of processor time on the remote that :meth:`Target.cpu` itself costs."""
    told = [target.cpu() for _ in range(4)]
    return min(((after or 0) - (before or 0) for before, after in itertools.pairwise(told)), default=0.0)


def timed(
    contender: Contender, row: str, results: Results, asking: float, change: Callable[[], object] = lambda: None
) -> None:
    """Change the tree and measure one transfer: seconds, and seconds of processor time here and there.

    :param asking: see :func:`cost_of_asking`.
    :param change: called right before: one who watches begins at once.
    :raises GaveUp: it took too long.
    """
    if type(contender) not in (Rsync, Rda) and results[row]["rsync"]:
        hopeless = HOPELESS * statistics.median(results[row]["rsync"]) + HOPELESS_SECONDS
        contender.patience = min(contender.patience, hopeless)
    there, used = contender.target.cpu(), contender.cpu()
    change()
    began = time.perf_counter()
    try:
        contender.transfer()
    except GaveUp:
        results[row][contender.name].append(math.inf)
        raise
    seconds = time.perf_counter() - began
    print(f"{row}, {contender.name}: {seconds:.3f} s", file=sys.stderr)  # what there is, should the run be ended early
    results[row][contender.name].append(seconds)
    results[f"{row}, CPU here"][contender.name].append(contender.cpu() - used)
    after = contender.target.cpu()
    if there is not None and after is not None:
        results[f"{row}, CPU there"][contender.name].append(max(after - there - asking, 0.0))


def changes(kind: str, source: Path, chance: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is done to a tree between transfers: a name, and a function that does it."""
    yield "nothing changed", lambda: None
    if kind == "b":
        big = source / "big"

        def append() -> None:
            with open(big, "ab") as file:
                file.write(chance.randbytes(MIB))

        def inside() -> None:
            with open(big, "r+b") as file:
                file.seek(big.stat().st_size // 2)
                file.write(chance.randbytes(MIB))

        yield "1 MiB appended", append
        yield "1 MiB inside", inside
        return
    files = tree_files(source)
    yield "one file", lambda: chance.choice(files).write_bytes(chance.randbytes(3000)) and None

    def percent() -> None:
        for path in chance.sample(files, len(files) // 100):
            path.write_bytes(chance.randbytes(3000))

    yield "1 % changed", percent


def measure_transfers(kind: str, contender: Contender, results: Results, chance: random.Random, asking: float) -> None:
    """First transfer, and those after changes.

    :raises GaveUp: one took too long.
    """
    contender.start()
    try:
        timed(contender, f"{kind}: initial", results, asking)
        if isinstance(contender, Tar | Scp):  # they know nothing but everything
            return
        for row, change in changes(kind, contender.source, chance):
            timed(contender, f"{kind}: {row}", results, asking, change)
        compare(contender.source, contender.target.visible(contender.remote))
    finally:
        if contender.memory():
            results[f"{kind}: memory, MiB"][contender.name].append(contender.memory() / 1024)
        contender.stop()


def measure_latency(contender: Contender, results: Results, chance: random.Random, edits: int) -> None:
    """Seconds from a local write until the content is there, in a tree that is watched."""
    contender.start()
    try:
        if not isinstance(contender, Lsyncd):
            contender.transfer()
        files = tree_files(contender.source)
        if wait_for(contender, files[-1], files[-1].read_bytes(), FIRST_SECONDS) is None:
            print(f"{contender.name}: nothing has arrived after {FIRST_SECONDS:.0f} s, left out", file=sys.stderr)
            return
        same = chance.choice(files)
        for row in ("different files", "rename-save", "same file"):
            for _ in range(edits):
                path = same if row == "same file" else chance.choice(files)
                data = chance.randbytes(2000)
                began = time.perf_counter()
                if row == "rename-save":
                    beside = path.with_name("." + path.name)
                    beside.write_bytes(data)
                    beside.rename(path)
                else:
                    path.write_bytes(data)
                arrived = wait_for(contender, path, data, EDIT_SECONDS)
                if arrived is None:
                    results[f"never seen: {row}"][contender.name].append(1.0)
                else:
                    results[f"write to visible: {row}"][contender.name].append(arrived - began)
                time.sleep(chance.uniform(0.02, 0.06))  # people, and the rest of the burst's events, take a moment
    finally:
        contender.stop()


def wait_for(contender: Contender, path: Path, data: bytes, seconds: float) -> float | None:
    """Poll until the remote copy of ``path`` holds ``data``; returns when that was, None when it never was."""
    there = contender.target.visible(contender.remote)
    assert there is not None
    copy = f"{there}/{path.relative_to(contender.source)}"
    end = time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        with contextlib.suppress(OSError), open(copy, "rb") as file:
            if file.read() == data:
                return now
        time.sleep(0.0005)
    return None


def show(results: Results, names: list[str]) -> None:
    """Print the medians, and each one's ratio to rsync."""
    width = max(map(len, results), default=0)
    print(f"{'median, seconds':{width}}  " + "  ".join(f"{name:>16}" for name in names))
    for row, by_name in results.items():
        base = statistics.median(by_name["rsync"]) if by_name.get("rsync") else None
        cells = []
        for name in names:
            values = by_name.get(name)
            if not values:
                cells.append(f"{'-':>16}")
                continue
            value = statistics.median(values)
            extra = f"{value / base:5.2f}x" if base and value < math.inf else "      "
            if row.startswith("write to visible"):
                extra = f"<{sorted(values)[int(len(values) * 0.99)]:.3f}"
            cells.append(f"{value:9.3f} {extra}")
        print(f"{row:{width}}  " + "  ".join(cells))
    print("ratios are to rsync; of latencies, the number after < is the 99th percentile")


# -- the run ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def delayed(target: Target, round_trip: float) -> Iterator[Target]:
    """The same host behind a relay that adds a round-trip time."""
    if not round_trip:
        yield target
        return
    from tests.live.host import wait_until
    from tests.live.process import free_port

    port = free_port()
    command = [sys.executable, "-m", "tests.live.delay", str(port), str(round_trip), f"{target.host}:{target.port}"]
    relay = subprocess.Popen(command, cwd=ROOT)
    try:
        key = Path(target.known_hosts + f".{port}")

        def scanned() -> bool:
            scan = ["ssh-keyscan", "-T", "10", "-p", str(port), "127.0.0.1"]
            key.write_bytes(subprocess.run(scan, capture_output=True, check=False).stdout)
            return key.stat().st_size > 0

        wait_until(scanned, "the relay that adds the round trip")
        yield Target(target.user, "127.0.0.1", port, target.identity, str(key), target.seen_at, target.directory)
        key.unlink()
    finally:
        relay.send_signal(signal.SIGKILL)
        relay.wait()


def find_target(options: argparse.Namespace) -> Target:
    """The host that was named, or the throwaway one."""
    if options.remote:
        login, _, port = options.remote.partition(":")
        user, _, host = login.rpartition("@")
        return Target(
            user or "root", host, int(port or 22), options.identity, options.known_hosts, options.seen_at,
            options.directory,
        )  # fmt: skip
    from tests.live.host import USER, RemoteHost

    host = RemoteHost()
    host.up()
    lend(host.root, "unison")
    return Target(USER, host.address, 22, str(host.key), str(host.known_hosts), str(host.root), options.directory)


def lend(root: Path, program: str) -> None:
    """Give the throwaway host, which has only what tests need, a program of this machine."""
    found = shutil.which(program)
    if found is not None and not (root / "usr/bin" / program).exists():
        shutil.copy(found, root / "usr/bin" / program)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--remote", help="user@host:port; default: the throwaway remote host")
    parser.add_argument("--identity")
    parser.add_argument("--known-hosts", default=os.path.expanduser("~/.ssh/known_hosts"))
    parser.add_argument("--seen-at", help="where the remote's root directory is visible here")
    parser.add_argument("--directory", default="/dev/shm/rda-bench-there", help="on the remote")
    parser.add_argument("--work", default="/dev/shm", help="where trees are made here")
    parser.add_argument("--trees", default="a,c,b")
    parser.add_argument("--scale", type=float, default=1.0, help="of the trees")
    parser.add_argument("--rounds", default="3,2,1", help="for each of the round trips; the last one counts on")
    parser.add_argument("--edits", type=int, default=100, help="for each latency; 0 leaves latencies out")
    parser.add_argument("--round-trips", default="0", help="milliseconds added, e.g. 0,20,100")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds for one transfer")
    parser.add_argument("--contenders", default=",".join(each.name for each in CONTENDERS))
    parser.add_argument("--agent", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.agent:
        agent(json.loads(options.agent))
        return
    work = Path(tempfile.mkdtemp(prefix="rda-bench-", dir=options.work))
    target = find_target(options)
    Contender.patience = options.patience
    wanted = [each for each in CONTENDERS if each.name in options.contenders.split(",")]
    chosen = [each for each in wanted if each.is_here(target)]
    for each in wanted:
        if each not in chosen:
            print(f"left out: {each.name} ({HOW[each.name]})")
    try:
        rounds = [int(text) for text in options.rounds.split(",")]
        for number, round_trip in enumerate(float(text) / 1000 for text in options.round_trips.split(",")):
            began, times = time.perf_counter(), rounds[min(number, len(rounds) - 1)]
            with delayed(target, round_trip) as there:
                results = run(options, chosen, there, work, times)
            load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
            took = (time.perf_counter() - began) / 60
            print(f"\n== {round_trip * 1000:.0f} ms added: {times} rounds in {took:.0f} min, load {load} ==")
            show(results, [each.name for each in chosen])
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run(options: argparse.Namespace, chosen: list[type[Contender]], target: Target, work: Path, rounds: int) -> Results:
    """All rounds at one distance, contenders taking turns."""
    results: Results = defaultdict(lambda: defaultdict(list))
    asking = cost_of_asking(target)
    chance = random.Random(target.port)  # another one behind another relay: the trees stay, their edits must differ
    for kind in [kind for kind in options.trees.split(",") if kind]:
        source = work / f"tree-{kind}"
        if not source.exists():
            make_tree(kind, source, options.scale)
        out: set[type[Contender]] = {Lsyncd}  # it has no way to say that it is done
        for _ in range(rounds):
            for each in [each for each in chosen if each not in out]:
                try:
                    measure_transfers(kind, each(target, source, work), results, chance, asking)
                except (GaveUp, RuntimeError) as error:  # the others go on
                    print(f"{each.name} left out from here on: {error}", file=sys.stderr)
                    out.add(each)
                if each is not Rda and is_far_behind(results[f"{kind}: initial"], each.name):
                    out.add(each)
    if options.edits and target.seen_at:
        source = work / "tree-a"
        if not source.exists():
            make_tree("a", source, options.scale)
        for each in chosen:
            if each.watches:
                measure_latency(each(target, source, work), results, chance, options.edits)
    return results


def is_far_behind(initial: dict[str, list[float]], name: str) -> bool:
    """Whether one round tells enough of a contender."""
    base, own = initial.get("rsync"), initial.get(name)
    return bool(base and own) and own[0] > FAR_BEHIND * base[0]


if __name__ == "__main__":
    main()
