"""A published port through rda beside ``ssh -L`` to the same port, in interleaved rounds: ``python -m bench.ports``.

Makes a throwaway remote host (Linux, root) with one container, whose port 80 is a real HTTP server (twisted.web) and
whose port 81 sends and takes bytes. Measured at 0, 20 and 100 ms of added round trip: bulk each way, connections per
second, the latency of HTTP requests on kept connections (wrk, or with ``--own`` and where there is no wrk, a client of
our own: ``apt-get install wrk`` brings it); without delay also 1,000 connections at once of which one does not read.
Shown are medians and their ratios to ``ssh -L`` with its default cipher, and the processor time of each forwarder.
"""

from __future__ import annotations

import argparse
import os
import re
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rda.ports.tcp import STARTING_SECONDS
from tests.live.host import EXIT_UNSUPPORTED, SSHD_PORT, RemoteHost, wait_until
from tests.live.process import free_port, rda_command, throwaway_options
from tests.live.rootfs import Unsupported

MEBIBYTE = 1 << 20
CONTAINER = "rda-bench-ports"
BASE = "ssh -L"

#: What each measurement's ratio to ``ssh -L`` has to be at a distance (milliseconds): at least, at most. Farther away,
#: large transfers are as fast as the relay that adds the distance.
TARGETS = {
    ("bulk down, MiB/s", 0): (1.2, None),
    ("bulk up, MiB/s", 0): (1.2, None),
    ("connections/s", 0): (0.7, None),
    ("HTTP p50, ms", 0): (None, 1.3),
    ("HTTP p50, ms", 20): (None, 1.05),
}

#: Results: (measurement, contender) -> a value for each round.
Results = dict[tuple[str, str], list[float]]


# -- the services of the container -----------------------------------------------------------------------------------


def serve() -> None:
    """Serve in the network of the container, until ended. Port 81: ``d`` and 8 digits: that many MiB; ``u``: takes."""
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory, Protocol
    from twisted.web.resource import Resource
    from twisted.web.server import Site
    from twisted.web.static import Data

    piece = bytes(256 * 1024)

    class Mover(Protocol):
        order = b""
        left = 0

        def dataReceived(self, data: bytes) -> None:
            if len(self.order) < 9:
                self.order += data
                data, self.order = self.order[9:], self.order[:9]
                if len(self.order) == 9:
                    self.left = int(self.order[1:]) * MEBIBYTE or 1
                    if self.order[:1] == b"d":
                        self.transport.registerProducer(self, False)
            if self.order[:1] == b"u" and len(self.order) == 9:
                self.left -= len(data)
                if self.left <= 0:
                    self.transport.write(b".")

        def resumeProducing(self) -> None:
            self.transport.write(piece)
            self.left -= len(piece)
            if self.left <= 0:
                self.transport.unregisterProducer()

        def stopProducing(self) -> None:
            self.left = 0

    root = Resource()
    root.putChild(b"", Data(b"hello\n" * 20, "text/plain"))
    reactor.listenTCP(80, Site(root), backlog=4096)
    reactor.listenTCP(81, Factory.forProtocol(Mover), backlog=4096)
    reactor.run()


# -- the ways to it --------------------------------------------------------------------------------------------------


class Contender:
    """A forwarder.

    :ivar web, moves: the local ports that lead to the container's 80 and 81.
    """

    def __init__(self, name: str, command: list[str], web: int, moves: int, log: Path) -> None:
        self.name, self.web, self.moves = name, web, moves
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/")
        self._log = log

    def wait(self) -> None:
        """Return when it forwards."""

        def works() -> bool:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended:\n{self._log.read_text()}")
            try:
                move(self, "u", 0)
            except OSError:
                return False
            return True

        wait_until(works, f"{self.name} forwards")

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self, key: str) -> float:
        """MiB of memory now (VmRSS) or at most (VmHWM)."""
        found = re.search(rf"{key}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def contenders(host: RemoteHost, server: int, service: Service, directory: Path) -> Iterator[Contender]:
    """Start both.

    :param server: the local port of 127.0.0.1 that leads to sshd; 0 for the host's own address.
    """
    known_hosts = directory / "known_hosts"
    address, port = ("127.0.0.1", server) if server else (host.address, SSHD_PORT)
    names = "".join(line.replace(host.address, f"[127.0.0.1]:{server}") for line in known_lines(host))
    known_hosts.write_text(names + host.known_hosts.read_text())
    own = (free_port(), free_port())
    command = ["ssh", "-N", "-F", "none", "-p", str(port), "-i", str(host.key), "-o", "BatchMode=yes"]
    command += ["-o", f"UserKnownHostsFile={known_hosts}", "-o", "IdentitiesOnly=yes"]
    for local, remote in zip(own, service.remote, strict=True):
        command += ["-L", f"127.0.0.1:{local}:127.0.0.1:{remote}"]
    yield Contender(BASE, [*command, f"{host.user}@{address}"], *own, directory / "ssh.log")
    options = {
        **throwaway_options(host),
        "remote": f"{host.user}@{address}:{port}",
        "known_hosts": str(known_hosts),
        "listen": f"unix:{directory / 'rda.sock'}",
        "state_dir": str(directory.parent / "state"),
    }
    yield Contender("rda", rda_command(options), *service.local, directory / "rda.log")


def known_lines(host: RemoteHost) -> list[str]:
    """The lines of the host's known_hosts file."""
    return host.known_hosts.read_text().splitlines(keepends=True)


@dataclass(frozen=True)
class Service:
    """The container's services, for its ports 80 and 81.

    :ivar local: where rda publishes them here.
    :ivar remote: where the daemon publishes them on the remote host's 127.0.0.1.
    """

    process: subprocess.Popen[bytes]
    local: tuple[int, int]
    remote: tuple[int, int]


def make_container(host: RemoteHost, directory: Path) -> Service:
    """Make the container through rda, and start its services."""
    web, moves = free_port(), free_port()
    endpoint = directory / "make.sock"
    options = {**throwaway_options(host), "listen": f"unix:{endpoint}", "state_dir": str(directory / "state")}
    maker = subprocess.Popen(rda_command(options), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/")
    try:
        wait_until(endpoint.exists, "rda listens")
        words = ["run", "-d", "--name", CONTAINER, "-p", f"{web}:80", "-p", f"{moves}:81", "busybox", "sleep", "86400"]
        environment = {**os.environ, "DOCKER_HOST": f"unix://{endpoint}", "DOCKER_CONFIG": str(host.docker_config)}
        subprocess.run([host.docker_cli, *words], check=True, stdout=subprocess.DEVNULL, env=environment)
    finally:
        maker.terminate()
        maker.wait()
    pid = host.docker("inspect", "-f", "{{.State.Pid}}", CONTAINER).stdout.decode().strip()
    namespace = f"/proc/{host.pid}/root/proc/{pid}/ns/net"
    server = subprocess.Popen(["nsenter", f"--net={namespace}", sys.executable, "-m", "bench.ports", "--serve"])
    remote = [host.docker("port", CONTAINER, key).stdout.decode().rpartition(":")[2].strip() for key in ("80", "81")]
    return Service(server, (web, moves), (int(remote[0]), int(remote[1])))


# -- what is measured ------------------------------------------------------------------------------------------------


def move(contender: Contender, way: str, size: int) -> None:
    """Move ``size`` MiB down (``d``) or up (``u``); of 0, one byte comes back."""
    with socket.create_connection(("127.0.0.1", contender.moves), timeout=60) as peer:
        peer.sendall(f"{way}{size:08}".encode())
        if way == "u":
            piece = memoryview(bytes(256 * 1024))
            for _ in range(size * 4):
                peer.sendall(piece)
            peer.sendall(b"x" * (not size))
            left = 1
        else:
            left = size * MEBIBYTE
        buffer = bytearray(256 * 1024)
        while left > 0:
            got = peer.recv_into(buffer)
            if not got:
                raise ConnectionError("ended early")
            left -= got


def bulk(contender: Contender, size: int) -> Iterator[tuple[str, float]]:
    """Large transfers each way, and what they cost the forwarder."""
    for name, way in (("down", "d"), ("up", "u")):
        begin, cpu = time.perf_counter(), contender.cpu()
        move(contender, way, size)
        yield f"bulk {name}, MiB/s", size / (time.perf_counter() - begin)
        yield f"  its CPU, s/GiB {name}", (contender.cpu() - cpu) / size * 1024


def connections(contender: Contender, count: int, at_once: int = 16) -> Iterator[tuple[str, float]]:
    """New connections, some at once, each with one byte back."""
    begin, cpu = time.perf_counter(), contender.cpu()
    selector = selectors.DefaultSelector()
    started = done = 0

    def start() -> None:
        peer = socket.create_connection(("127.0.0.1", contender.moves), timeout=60)
        peer.sendall(b"u00000000x")
        selector.register(peer, selectors.EVENT_READ)

    while done < count:
        while started < count and started - done < at_once:
            start()
            started += 1
        for key, _ in selector.select(60):
            peer: socket.socket = key.fileobj  # type: ignore[assignment]
            if peer.recv(1) != b".":
                raise ConnectionError("a connection was closed")
            selector.unregister(peer)
            peer.close()
            done += 1
    yield "connections/s", count / (time.perf_counter() - begin)
    yield "  its CPU, us each", (contender.cpu() - cpu) / count * 1e6


def http(contender: Contender, seconds: float, wrk: str | None) -> Iterator[tuple[str, float]]:
    """Requests on kept connections."""
    if wrk is None:
        times = own_requests(contender, seconds)
        yield "HTTP p50, ms", statistics.median(times) * 1e3
        yield "HTTP p99, ms", statistics.quantiles(times, n=100)[98] * 1e3
        return
    command = [wrk, "-t1", "-c4", f"-d{seconds:.0f}s", "--latency", f"http://127.0.0.1:{contender.web}/"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for what in ("50", "99"):
        found = re.search(rf"{what}%\s+([0-9.]+)(us|ms|s)", text)
        assert found is not None, text
        yield f"HTTP p{what}, ms", float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


def own_requests(contender: Contender, seconds: float) -> list[float]:
    """Seconds of requests, one after the other on one kept connection."""
    times = []
    with socket.create_connection(("127.0.0.1", contender.web), timeout=60) as peer:
        end = time.perf_counter() + seconds
        while len(times) < 100 or time.perf_counter() < end:
            begin = time.perf_counter()
            peer.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while not received.endswith(b"hello\n"):
                received += peer.recv(65536)
            times.append(time.perf_counter() - begin)
    return times


def crowd(contender: Contender, count: int = 1000) -> Iterator[tuple[str, float]]:
    """Many connections at once that each fetch 1 MiB, and one that asks for 1 GiB and reads nothing."""
    before = contender.memory("VmRSS")
    Path(f"/proc/{contender.process.pid}/clear_refs").write_text("5")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", contender.moves))
        slow.sendall(b"d00001024")
        peers = [socket.create_connection(("127.0.0.1", contender.moves), timeout=60) for _ in range(count)]
        begin, cpu = time.perf_counter(), contender.cpu()
        selector = selectors.DefaultSelector()
        for peer in peers:
            peer.sendall(b"d00000001")
            selector.register(peer, selectors.EVENT_READ, [MEBIBYTE])
        buffer = bytearray(256 * 1024)
        while selector.get_map():
            for key, _ in selector.select(60):
                peer = key.fileobj  # type: ignore[assignment]
                key.data[0] -= peer.recv_into(buffer) or MEBIBYTE
                if key.data[0] <= 0:
                    selector.unregister(peer)
                    peer.close()
        yield f"{count} at once, s", time.perf_counter() - begin
        yield "  its CPU, s", contender.cpu() - cpu
        yield "  memory more, MiB", contender.memory("VmHWM") - before


# -- a run -----------------------------------------------------------------------------------------------------------


def measure(contender: Contender, options: argparse.Namespace, distance: int) -> Iterator[tuple[str, float]]:
    """One round with one contender."""
    yield from bulk(contender, options.size if not distance else max(1, options.size // 4))
    yield from connections(contender, options.connections if not distance else options.connections // 4)
    yield from http(contender, options.seconds, None if options.own else shutil.which("wrk"))


def run_at(host: RemoteHost, options: argparse.Namespace, distance: int, service: Service, top: Path) -> bool:
    """All rounds at one distance, in milliseconds, and their table; returns whether the targets are met."""
    directory = Path(tempfile.mkdtemp(dir=top))
    relay, server = None, 0
    if distance:
        server = free_port()
        words = [str(server), str(distance / 1000), f"{host.address}:{SSHD_PORT}"]
        relay = subprocess.Popen([sys.executable, "-m", "tests.live.delay", *words])
    started: list[Contender] = []
    results: Results = defaultdict(list)
    try:
        if relay is not None:
            wait_until(lambda: not _refuses(server), "the delay relay listens")
        for contender in contenders(host, server, service, directory):
            started.append(contender)
            contender.wait()
        time.sleep(STARTING_SECONDS)  # in which a container that has just been found is treated as one that starts
        for number in range(options.rounds):
            for contender in started if number % 2 else started[::-1]:
                for what, value in measure(contender, options, distance):
                    results[what, contender.name].append(value)
                if not distance and number < 2:
                    for what, value in crowd(contender):
                        results[what, contender.name].append(value)
    finally:
        for contender in started:
            contender.stop()
        if relay is not None:
            relay.terminate()
            relay.wait()
    return print_table(results, distance, options.rounds)


def _refuses(port: int) -> bool:
    with socket.socket() as peer:
        return peer.connect_ex(("127.0.0.1", port)) != 0


def print_table(results: Results, distance: int, rounds: int) -> bool:
    """A line for each measurement: the medians, their ratio, and what it has to be; returns whether all are."""
    print(f"\n{distance} ms of added round trip, median of {rounds} rounds")
    print(f"{'':24}{BASE:>12}{'rda':>12}{'ratio':>10}")
    met = True
    for what in dict.fromkeys(what for what, _ in results):
        base, ours = (statistics.median(results[what, name]) for name in (BASE, "rda"))
        ratio = ours / base if base else float("nan")
        least, most = TARGETS.get((what, distance), (None, None))
        fine = (least is None or ratio >= least) and (most is None or ratio <= most)
        target = f"  >= {least}" if least is not None else f"  <= {most}" if most is not None else ""
        print(f"{what:24}{base:12.2f}{ours:12.2f}{ratio:9.2f}x{target}{'' if fine else '  MISSED'}", flush=True)
        met = met and fine
    return met


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="MiB of one bulk transfer [default: 256]")
    parser.add_argument("--connections", type=int, default=1000, help="new connections in one round [default: 1000]")
    parser.add_argument("--seconds", type=float, default=2, help="of HTTP requests in one round [default: 2]")
    parser.add_argument("--own", action="store_true", help="do not use wrk")
    parser.add_argument("--distances", default="0,20,100", help="milliseconds [default: 0,20,100]")
    return parser.parse_args()


def main() -> int:
    """Measure; the exit code is 1 when a target is missed."""
    options = parse()
    if options.serve:
        serve()
        return 0
    if not options.own and shutil.which("wrk") is None:
        print("there is no wrk here (apt-get install wrk): a client of our own asks instead", file=sys.stderr)
    host = RemoteHost()
    try:
        host.up()
    except Unsupported as reason:
        print(f"not on this machine: {reason}", file=sys.stderr)
        return EXIT_UNSUPPORTED
    with tempfile.TemporaryDirectory(prefix="rda-bench-") as directory:
        host.docker("rm", "-f", CONTAINER, check=False)
        service = make_container(host, Path(directory))
        try:
            met = [run_at(host, options, int(ms), service, Path(directory)) for ms in options.distances.split(",")]
        finally:
            service.process.terminate()
            service.process.wait()
            host.docker("rm", "-f", CONTAINER, check=False)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
