"""The Docker socket over ``ssh -L``, over rda, and ``docker -H ssh://``, side by side in one interleaved run.

    python bench/relay.py                                                         (makes a throwaway remote host)
    python bench/relay.py --remote user@host --identity ~/.ssh/id_ed25519 --known-hosts ~/.ssh/known_hosts

Measured is what a person waits for: ``/_ping`` and ``docker ps`` (latency on a new connection and on a kept one),
``docker run --rm IMAGE true``, and the transfer of SIZE MB each way with load, save and cp; then what PARALLEL
``logs -f`` at once cost in time, memory and descriptors; and the forwarder's own processor time for a small request,
which is what a busy machine changes least. Rounds are interleaved, so that what else happens on the machine meets all
alike. Shown are medians and their ratios to ``ssh -L`` with its default cipher: less than 1 is faster than ``ssh -L``.
With the throwaway host, whose socket can be reached without a network, ``docker run``'s overhead over that is shown
too. Needs ssh and the docker CLI here, and IMAGE on the remote daemon.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOCKET = "/var/run/docker.sock"
REQUEST = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"
BASE = "ssh -L"
RDA = "rda"
SSH = "docker -H ssh"
DIRECT = "no network"
RUN = "docker run --rm true"
START_SECONDS = 30.0

#: Results: measurement -> contender -> seconds of each repetition.
Times = dict[str, dict[str, list[float]]]


class Contender:
    """A way to the remote Docker socket.

    :ivar host: the docker CLI's ``-H``.
    :ivar path: the local UNIX-domain socket, or None where there is none (``docker -H ssh://``).
    :ivar process: the forwarder, or None.
    """

    def __init__(self, name: str, host: str, path: str | None, process: subprocess.Popen[bytes] | None) -> None:
        self.name = name
        self.host = host
        self.path = path
        self.process = process

    def connect(self) -> socket.socket:
        """Open a connection."""
        peer = socket.socket(socket.AF_UNIX)
        assert self.path is not None
        peer.connect(self.path)
        return peer

    def memory(self) -> int:
        """Resident memory of the forwarder, bytes."""
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def processor_seconds(self) -> float:
        """Processor time of the forwarder so far."""
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9

    def descriptors(self) -> int:
        """Open descriptors of the forwarder."""
        assert self.process is not None
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


class Bench:
    """The measurements of one run."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.options = options
        self.directory = directory
        self.times: Times = defaultdict(lambda: defaultdict(list))
        self.processor: Times = defaultdict(lambda: defaultdict(list))
        self.environment = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}
        self.environment.pop("DOCKER_HOST", None)
        self.environment.pop("DOCKER_CONTEXT", None)
        if options.docker_config:
            self.environment["DOCKER_CONFIG"] = options.docker_config
        self.docker_cli = shutil.which(options.docker) or sys.exit(f"no {options.docker!r} here")

    # -- contenders

    def ssh(self) -> list[str]:
        """The ssh command, with what was said about keys."""
        command = ["ssh", "-o", "BatchMode=yes"]
        if self.options.identity:
            command += ["-i", self.options.identity, "-o", "IdentitiesOnly=yes"]
        if self.options.known_hosts:
            command += ["-o", f"UserKnownHostsFile={self.options.known_hosts}"]
        return command

    @contextlib.contextmanager
    def contenders(self) -> Iterator[list[Contender]]:
        """Start them all; end them afterwards."""
        started: list[Contender] = []
        try:
            started.append(self._forwarder(BASE, "l.sock", self._ssh_forward))
            started.append(self._forwarder(RDA, "r.sock", self._rda))
            self._wrap_ssh()
            if not self.options.without_ssh:
                started.append(Contender(SSH, f"ssh://{self.options.remote}", None, None))
            if self.options.direct:
                started.append(Contender(DIRECT, f"unix://{self.options.direct}", None, None))
            yield started
        finally:
            for contender in started:
                if contender.process is not None:
                    contender.process.send_signal(signal.SIGTERM)
                    contender.process.wait()

    def _forwarder(self, name: str, file_name: str, command: Callable[[str], list[str]]) -> Contender:
        path = str(self.directory / file_name)
        with open(self.directory / f"{file_name}.log", "wb") as log:
            process = subprocess.Popen(
                command(path), stdout=log, stderr=log, cwd=self.directory, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )
        contender = Contender(name, f"unix://{path}", path, process)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with contender.connect() as peer:
                    ask(peer, b"/_ping")
                return contender
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    sys.exit(f"{name} does not work:\n{Path(log.name).read_text()}")
                time.sleep(0.1)

    def _ssh_forward(self, path: str) -> list[str]:
        forward = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", f"{path}:{SOCKET}"]
        return [*self.ssh(), *forward, f"ssh://{self.options.remote}"]

    def _rda(self, path: str) -> list[str]:
        state = self.directory / "state"
        command = [sys.executable, "-m", "twisted", "rda"]
        twistd = Path(sys.executable).with_name("twistd")
        if twistd.exists():
            command = [str(twistd), "-n", "--pidfile=", "rda"]
        command += ["--remote", self.options.remote, "--listen", f"unix:{path}", "--state-dir", str(state)]
        if self.options.identity:
            command += ["--identity", self.options.identity]
        if self.options.known_hosts:
            command += ["--known-hosts", self.options.known_hosts]
        return command

    def _wrap_ssh(self) -> None:
        """The docker CLI starts ``ssh`` from PATH and cannot be told about keys."""
        real = [shutil.which("ssh") or "ssh", *self.ssh()[1:]]
        wrapper = self.directory / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(real)} "$@"\n')
        wrapper.chmod(0o755)

    # -- measuring

    def note(self, what: str, contender: Contender, action: Callable[[], object]) -> None:
        """Measure one action once."""
        begin = time.perf_counter()
        action()
        self.times[what][contender.name].append(time.perf_counter() - begin)

    def docker(self, contender: Contender, *words: str, stdin: str | None = None, out: str = os.devnull) -> None:
        """Run a docker command; its failure ends the benchmark."""
        command = [self.docker_cli, "-H", contender.host, *words]
        with open(stdin or os.devnull, "rb") as source, open(out, "wb") as sink:
            done = subprocess.run(
                command, stdin=source, stdout=sink, stderr=subprocess.PIPE, env=self.environment, check=False
            )
        if done.returncode:
            sys.exit(f"{contender.name}: {shlex.join(command)}: {done.stderr.decode(errors='replace')}")

    @contextlib.contextmanager
    def working(self, what: str, contender: Contender, count: int) -> Iterator[None]:
        """Note the forwarder's processor time for each of the ``count`` requests made within."""
        before = contender.processor_seconds()
        yield
        self.processor[what][contender.name].append((contender.processor_seconds() - before) / count)

    def latencies(self, contender: Contender) -> None:
        """Small requests."""
        if contender.path is not None:
            self._pings(contender)
        run = ("run", "--rm", self.options.image, "true")
        for _ in range(3):
            self.note("docker ps", contender, lambda: self.docker(contender, "ps"))
            self.note(RUN, contender, lambda: self.docker(contender, *run))

    def _pings(self, contender: Contender) -> None:
        count = self.options.pings
        with self.working("/_ping, new connection", contender, count):
            for _ in range(count):
                self.note("/_ping, new connection", contender, lambda: self._ping_new(contender))
        with contender.connect() as peer:
            for what, path in (
                ("/_ping, kept connection", b"/_ping"),
                ("list containers, kept", b"/v1.41/containers/json?all=1"),
            ):
                with self.working(what, contender, count):
                    for _ in range(count):
                        self.note(what, contender, lambda path=path: ask(peer, path))

    def _ping_new(self, contender: Contender) -> None:
        with contender.connect() as peer:
            ask(peer, b"/_ping")

    def transfers(self, contender: Contender, container: str, archive: str, blob: str) -> None:
        """Large bodies each way."""
        self.note("docker load", contender, lambda: self.docker(contender, "load", stdin=archive))
        self.note("docker save", contender, lambda: self.docker(contender, "save", "rda-bench"))
        inward = ("cp", blob, f"{container}:/blob")
        self.note("docker cp in", contender, lambda: self.docker(contender, *inward))
        self.note("docker cp out", contender, lambda: self.docker(contender, "cp", f"{container}:/blob", "-"))

    def streams(self, contender: Contender, container: str) -> str:
        """Many followed logs at once: the time until each has its first line, and what they cost the forwarder."""
        count, memory, descriptors = self.options.parallel, contender.memory(), contender.descriptors()
        begin = time.perf_counter()
        peers = [contender.connect() for _ in range(count)]
        try:
            for peer in peers:
                peer.sendall(REQUEST % f"/containers/{container}/logs?follow=1&stdout=1".encode())
            for peer in peers:
                peer.settimeout(START_SECONDS)
                if b"200 OK" not in peer.recv(65536):
                    sys.exit(f"{contender.name}: a followed log was refused")
            seconds = time.perf_counter() - begin
            grown = (contender.memory() - memory) / count / 1024
            opened = (contender.descriptors() - descriptors) / count
        finally:
            for peer in peers:
                peer.close()
        return f"{seconds * 1000:8.0f} ms  {grown:6.1f} KB each  {opened:4.1f} descriptors each"

    # -- the run

    def run(self) -> None:
        """Prepare, measure in rounds, print."""
        with self.contenders() as contenders:
            base = contenders[0]
            blob = self.directory / "blob"
            archive = str(self.directory / "image.tar")
            self._prepare(base, blob, archive)
            container = f"rda-bench-{os.getpid()}"
            command = ("sh", "-c", "echo up; exec sleep 86400")
            self.docker(base, "run", "-d", "--name", container, self.options.image, *command)
            try:
                for number in range(self.options.rounds):
                    for contender in contenders:
                        self.latencies(contender)
                        if self.options.size and contender.name != DIRECT:
                            self.transfers(contender, container, archive, str(blob))
                    print(f"round {number + 1} of {self.options.rounds} done", file=sys.stderr)
                streams = {c.name: self.streams(c, container) for c in contenders if c.process is not None}
            finally:
                self.docker(base, "rm", "-f", container)
                if self.options.size:
                    self.docker(base, "rmi", "rda-bench")
            report(self.times, self.options.size)
            report_processor(self.processor)
            report_overhead(self.times[RUN])
            print(f"\n{self.options.parallel} logs -f at once: first lines, memory, descriptors of the forwarder")
            for name, text in streams.items():
                print(f"  {name:14} {text}")

    def _prepare(self, base: Contender, blob: Path, archive: str) -> None:
        """Make a blob that does not compress, and an image of it on the remote."""
        if not self.options.size:
            return
        with open(blob, "wb") as target:
            for _ in range(self.options.size):
                target.write(os.urandom(1_000_000))
        layer = str(self.directory / "layer.tar")
        with tarfile.open(layer, "w") as tar:
            tar.add(blob, "blob")
        self.docker(base, "import", "-", "rda-bench", stdin=layer)
        os.unlink(layer)
        self.docker(base, "save", "rda-bench", out=archive)


def ask(peer: socket.socket, path: bytes) -> bytes:
    """Send a GET and read the whole answer."""
    peer.sendall(REQUEST % path)
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(peer)
    head, _, body = data.partition(b"\r\n\r\n")
    lower = head.lower()
    if b"content-length:" in lower:
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += receive(peer)
    else:
        while not body.endswith(b"0\r\n\r\n"):
            body += receive(peer)
    return body


def receive(peer: socket.socket) -> bytes:
    """Read something; the end of the stream is an error."""
    data = peer.recv(65536)
    if not data:
        raise OSError("the connection was closed")
    return data


def report(times: Mapping[str, Mapping[str, list[float]]], size: int) -> None:
    """Print medians, 99th percentiles and ratios to ``ssh -L``."""
    print(f"{'':26} {'':14} {'median':>10} {'p99':>10} {'ratio':>7}  (size {size} MB)")
    for what, by_name in times.items():
        base = statistics.median(by_name[BASE])
        for name, values in by_name.items():
            middle = statistics.median(values)
            high = sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]
            rate = f"{size / middle:7.0f} MB/s" if what.split()[-1] in ("load", "save", "in", "out") else ""
            line = f"{what:26} {name:14} {middle * 1000:7.1f} ms {high * 1000:7.1f} ms {middle / base:7.2f} {rate}"
            print(line.rstrip())


def report_processor(processor: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Print the forwarders' processor time for one request."""
    print("\nprocessor time of the forwarder for one request")
    for what, by_name in processor.items():
        for name, values in by_name.items():
            print(f"  {what:24} {name:14} {statistics.median(values) * 1e6:7.0f} us")


def report_overhead(run: Mapping[str, list[float]]) -> None:
    """Print what the ways to the daemon add to ``docker run`` on the daemon's own machine."""
    if DIRECT not in run:
        return
    direct = statistics.median(run[DIRECT])
    over = {name: statistics.median(values) - direct for name, values in run.items() if name != DIRECT}
    print(f"\n{RUN}, beyond the {direct * 1000:.0f} ms that it takes without a network")
    for name, seconds in over.items():
        print(f"  {name:14} {seconds * 1000:7.1f} ms")
    if SSH in over:
        times = f"{over[SSH] / over[RDA]:.1f} times as much" if over[RDA] > 0 else "rda adds nothing measurable"
        print(f"  {SSH} compared with rda: {times}")


def throwaway(options: argparse.Namespace, directory: Path) -> None:
    """Use the tests' remote host, at a distance if that is wanted."""
    sys.path.insert(0, str(ROOT))
    from tests.live.host import SSHD_PORT, USER, RemoteHost, wait_until
    from tests.live.process import free_port
    from tests.live.support import is_open

    host = RemoteHost(options.host_name)
    host.up()
    options.remote = f"{USER}@{host.address}"
    options.identity = str(host.key)
    options.known_hosts = str(host.known_hosts)
    if options.delay:
        port = free_port()
        words = [str(port), str(options.delay / 1000), f"{host.address}:{SSHD_PORT}"]
        relay = subprocess.Popen([sys.executable, "-m", "tests.live.delay", *words], cwd=ROOT)
        atexit.register(relay.kill)
        wait_until(lambda: is_open(port), "the delay relay listens")
        options.remote = f"{USER}@127.0.0.1:{port}"
        known_hosts = directory / "known_hosts"
        known_hosts.write_text(host.known_hosts.read_text().replace(host.address, f"[127.0.0.1]:{port}"))
        options.known_hosts = str(known_hosts)
    options.direct = host.docker_url.removeprefix("unix://")
    options.docker = host.docker_cli
    options.docker_config = str(host.docker_config)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--remote", help="user@host; by default a throwaway host is made (needs root)")
    parser.add_argument("--identity", help="private key file")
    parser.add_argument("--known-hosts", help="known_hosts file")
    parser.add_argument("--host-name", default="", help="which throwaway host")
    parser.add_argument("--docker", default="docker", help="the docker CLI")
    parser.add_argument("--docker-config", help="its configuration directory")
    parser.add_argument("--image", default="busybox", help="an image with sh, on the remote daemon")
    parser.add_argument("--size", type=int, default=300, help="MB of each transfer; 0 for none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pings", type=int, default=100, help="per round")
    parser.add_argument("--parallel", type=int, default=200, help="followed logs at once")
    parser.add_argument("--without-ssh", action="store_true", help="leave out docker -H ssh://, the slow one")
    parser.add_argument("--delay", type=float, default=0.0, help="round trip to the throwaway host, in milliseconds")
    parser.add_argument("--direct", help="the daemon's own socket, where it can be reached without a network")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rda-bench-") as directory:
        if not options.remote:
            throwaway(options, Path(directory))
        Bench(options, Path(directory)).run()


if __name__ == "__main__":
    main()
