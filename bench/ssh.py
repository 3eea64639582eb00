"""rda's SSH link beside ``ssh -L`` (and asyncssh, if it is installed), in one interleaved run.

    python bench/ssh.py --remote root@127.0.0.1:2222 --identity ~/.ssh/id_ed25519

Every contender forwards a local UNIX-domain socket to the same remote one, where a small service of this file answers
(``--serve``: it is started on the remote host with ssh, which needs python3 there; or give ``--socket`` of one that
runs already). The measurements are the same program for all of them. Rounds are interleaved, so that what else happens
on the machine meets all alike. Medians are shown, and in brackets the median of the rounds' ratios to ``ssh -L`` with
its default cipher; how far that one's own values are apart, in percent of their median, says how noisy it was.

Added round trips are made by a relay of this file (``--delay``) between the contender and the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 256 * 1024
IDLE_CHANNELS = 1000
FAR_SECONDS = 0.05
TICKS = os.sysconf("SC_CLK_TCK")

# -- the service at the remote end: one line asks, the answer follows -----------------------------------------------


def serve(path: str) -> None:
    """Answer on a UNIX-domain socket: ``D n`` sends n bytes, ``U n`` takes n and answers, ``P`` answers at once."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen(1024)
    print("serving", flush=True)
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=serve_one, args=(peer,), daemon=True).start()


def serve_one(peer: socket.socket) -> None:
    """Answer the lines of one connection."""
    noise = os.urandom(CHUNK)
    with contextlib.suppress(OSError), peer, peer.makefile("rb", buffering=0) as lines:
        while line := lines.readline():
            what, _, number = line.strip().partition(b" ")
            left = int(number or 0)
            if what == b"D":
                while left > 0:
                    peer.sendall(noise if left >= CHUNK else noise[:left])
                    left -= CHUNK
            elif what == b"U":
                while left > 0:
                    left -= len(peer.recv(min(left, CHUNK)))
                peer.sendall(b".")
            elif what == b"GET":  # rda's link asks whether it is a Docker daemon that answers
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK")
                return
            else:
                peer.sendall(b".")


# -- the wire: a relay that takes its time ---------------------------------------------------------------------------


async def delay_one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Copy one direction, every byte ``delay`` seconds late, with at most 64 MiB on the way."""
    loop = asyncio.get_running_loop()
    flight: deque[tuple[float, bytes]] = deque()
    arrived, room = asyncio.Event(), asyncio.Event()
    size = 0
    room.set()

    async def land() -> None:
        nonlocal size
        while True:
            while not flight:
                arrived.clear()
                await arrived.wait()
            due, data = flight.popleft()
            wait = due - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            writer.write(data)
            size -= len(data)
            if size < 64 << 20:
                room.set()
            await writer.drain()

    landing = asyncio.create_task(land())
    data = b"."
    while data:
        await room.wait()
        try:
            data = await reader.read(CHUNK)
        except OSError:
            data = b""
        flight.append((loop.time() + delay, data))
        arrived.set()
        size += len(data)
        if size > 64 << 20:
            room.clear()
    with contextlib.suppress(OSError):
        await landing


async def delay_relay(port: int, round_trip: float, host: str, target_port: int) -> None:
    """Relay a TCP port with half of ``round_trip`` (seconds) added in each direction."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, target_port, limit=1 << 20)
        for end in (writer, far_writer):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ways = (delay_one_way(reader, far_writer, round_trip / 2), delay_one_way(far_reader, writer, round_trip / 2))
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (writer, far_writer):
            end.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port, limit=1 << 20)
    print("serving", flush=True)
    await server.serve_forever()


# -- the contenders: each a process that forwards a local socket -----------------------------------------------------


def forward_rda(options: argparse.Namespace) -> None:
    """Run rda's link as a forwarder of a UNIX-domain socket: what the socket of the Docker daemon is for rda."""
    from twisted.internet import reactor
    from twisted.internet.endpoints import UNIXServerEndpoint
    from twisted.internet.interfaces import IHalfCloseableProtocol
    from twisted.internet.protocol import Factory, Protocol
    from zope.interface import implementer

    from rda.config import Remote
    from rda.interfaces import IRoomy, ITakesViews
    from rda.sockets import TURN_SIZE, receive_into, send_now, widen
    from rda.ssh.link import Link

    @implementer(IHalfCloseableProtocol, ITakesViews)
    class End(Protocol):
        """One end of a forwarded connection: its data goes to the other end's transport."""

        other: End

        def connectionMade(self) -> None:
            widen(self.transport)

        def join(self, other: End) -> None:
            self.other = other
            if IRoomy.providedBy(other.transport):
                receive_into(self.transport, other.transport.room, other.transport.filled, TURN_SIZE)
            other.transport.registerProducer(self.transport, True)

        def dataReceived(self, data: bytes) -> None:
            send_now(self.other.transport, data)

        def readConnectionLost(self) -> None:
            self.other.transport.loseWriteConnection()

        def writeConnectionLost(self) -> None:
            pass

        def connectionLost(self, reason: object = None) -> None:
            if hasattr(self, "other"):
                self.other.transport.unregisterProducer()
                self.other.transport.loseConnection()

    class Local(End):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.pauseProducing()
            opened = link.docker().connect(Factory.forProtocol(End))
            opened.addCallbacks(self.opened, lambda failure: self.transport.abortConnection())

        def opened(self, far: End) -> None:
            self.join(far)
            far.join(self)
            self.transport.resumeProducing()

    user, host, port = split_remote(options.remote)
    remote = Remote(f"{user}@{host}:{port}", (options.identity,), known_hosts=(options.known_hosts,), ssh_config="none")
    link = Link(reactor, remote, f"unix://{options.socket}", environ={})
    UNIXServerEndpoint(reactor, options.listen, backlog=1024).listen(Factory.forProtocol(Local))
    reactor.callWhenRunning(link.startService)
    if options.profile:
        import cProfile

        profile = cProfile.Profile()
        profile.runcall(reactor.run)
        profile.dump_stats(options.profile)
    else:
        reactor.run()


def forward_asyncssh(options: argparse.Namespace) -> None:
    """Run asyncssh as a forwarder of a UNIX-domain socket."""
    import asyncssh

    async def main() -> None:
        user, host, port = split_remote(options.remote)
        async with asyncssh.connect(
            host,
            port,
            username=user,
            client_keys=[options.identity],
            known_hosts=None,
            encryption_algs=["aes128-gcm@openssh.com"],
        ) as connection:
            await connection.forward_local_path(options.listen, options.socket)
            print("serving", flush=True)
            await asyncio.sleep(1e6)

    asyncio.run(main())


def split_remote(remote: str) -> tuple[str, str, int]:
    """``user@host:port`` in its parts."""
    user, _, where = remote.rpartition("@")
    host, _, port = where.partition(":")
    return user or "root", host, int(port or 22)


class Contender:
    """A process that forwards ``local`` to the remote socket through the server at ``remote``."""

    def __init__(self, name: str, local: str, command: list[str]) -> None:
        self.name = name
        self.local = local
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=None, text=True, cwd=ROOT)
        self._wait()

    def _wait(self) -> None:
        give_up = time.monotonic() + 30
        while time.monotonic() < give_up and self.process.poll() is None:
            with contextlib.suppress(OSError), self.connect() as peer:
                if ping(peer):
                    return
            time.sleep(0.05)
        raise SystemExit(f"{self.name} did not start")

    def connect(self) -> socket.socket:
        """A new connection through it."""
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(120)
        peer.connect(self.local)
        return peer

    def cpu(self) -> float:
        """CPU seconds used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """End the process."""
        self.process.send_signal(signal.SIGINT if self.process.args[0] == sys.executable else signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def start(name: str, options: argparse.Namespace, remote: str, directory: Path) -> Contender:
    """Start one contender by its name."""
    known_hosts = know(options, remote, directory)
    local = str(directory / f"{name.replace(' ', '-')}.sock")
    user, host, port = split_remote(remote)
    if name.startswith("ssh -L"):
        command = ["ssh", "-N", "-p", str(port), "-i", options.identity, "-L", f"{local}:{options.socket}"]
        command += ["-o", f"UserKnownHostsFile={known_hosts}", "-o", "BatchMode=yes", "-F", "none"]
        command += ["-o", "IdentitiesOnly=yes"]
        if "gcm" in name:
            command += ["-c", "aes128-gcm@openssh.com"]
        return Contender(name, local, [*command, f"{user}@{host}"])
    command = [sys.executable, __file__, "--forward", name.split()[0], "--listen", local, "--remote", remote]
    command += ["--socket", options.socket, "--identity", options.identity, "--known-hosts", known_hosts]
    if options.profile and name == "rda":
        command += ["--profile", options.profile]
    return Contender(name, local, command)


def know(options: argparse.Namespace, remote: str, directory: Path) -> str:
    """A known_hosts file in which the server's keys have the name of the relay in front of it, too."""
    lines = []
    for name in (host_name(options.remote), host_name(remote)):
        command = ["ssh-keygen", "-F", host_name(options.remote), "-f", options.known_hosts]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        lines += [f"{name} {line.split(maxsplit=1)[1]}" for line in found if line and not line.startswith("#")]
    if not lines:
        raise SystemExit(f"{host_name(options.remote)} is not in {options.known_hosts}")
    path = directory / "known_hosts"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def host_name(remote: str) -> str:
    """The server's name as known_hosts files have it."""
    _, host, port = split_remote(remote)
    return host if port == 22 else f"[{host}]:{port}"


# -- what is measured ------------------------------------------------------------------------------------------------


def ping(peer: socket.socket) -> bool:
    """One small request and its answer."""
    peer.sendall(b"P\n")
    return peer.recv(1) == b"."


def receive(peer: socket.socket, size: int) -> None:
    """Ask for bytes, and take them."""
    peer.sendall(b"D %d\n" % size)
    buffer = bytearray(CHUNK)
    while size > 0:
        got = peer.recv_into(buffer)
        if not got:
            raise SystemExit("the connection broke during a download")
        size -= got


def send(peer: socket.socket, size: int) -> None:
    """Give bytes, and wait until they have been taken."""
    noise = os.urandom(CHUNK)
    peer.sendall(b"U %d\n" % size)
    for start_at in range(0, size, CHUNK):
        peer.sendall(noise[: size - start_at])
    if peer.recv(1) != b".":
        raise SystemExit("the connection broke during an upload")


def bulk(contender: Contender, move: Callable[[socket.socket, int], None], size: int) -> Iterator[tuple[str, float]]:
    """Megabytes a second and CPU seconds a gigabyte of one large transfer."""
    name = "down" if move is receive else "up"
    with contender.connect() as peer:
        ping(peer)
        cpu, began = contender.cpu(), time.perf_counter()
        move(peer, size)
        seconds = time.perf_counter() - began
        yield f"{name} MB/s", size / seconds / 1e6
        yield f"{name} CPU s/GB", (contender.cpu() - cpu) / size * 1e9


def parallel(contender: Contender, size: int) -> Iterator[tuple[str, float]]:
    """Eight downloads at once."""
    peers = [contender.connect() for _ in range(8)]
    threads = [threading.Thread(target=receive, args=(peer, size // 8)) for peer in peers]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield "8 down MB/s", size / (time.perf_counter() - began) / 1e6
    for peer in peers:
        peer.close()


def latency(contender: Contender, count: int) -> Iterator[tuple[str, float]]:
    """Milliseconds (p50) of a small request on a new connection, and on one that is kept."""
    fresh = []
    for _ in range(count):
        began = time.perf_counter()
        with contender.connect() as peer:
            ping(peer)
            fresh.append(time.perf_counter() - began)
    yield "fresh ms", statistics.median(fresh) * 1e3
    kept = []
    with contender.connect() as peer:
        ping(peer)
        for _ in range(count):
            began = time.perf_counter()
            ping(peer)
            kept.append(time.perf_counter() - began)
    yield "kept ms", statistics.median(kept) * 1e3


def latency_under_load(contender: Contender, size: int, fresh: float) -> Iterator[tuple[str, float]]:
    """Milliseconds (p50) of a small request while another downloads, on a kept connection and on new ones; the latter
    in ``fresh``, which is how many they are when nothing else happens.
    """
    kept_times, fresh_times = [], []
    with contender.connect() as busy, contender.connect() as peer:
        ping(peer)
        thread = threading.Thread(target=receive, args=(busy, size))
        thread.start()
        while thread.is_alive():
            began = time.perf_counter()
            ping(peer)
            kept_times.append(time.perf_counter() - began)
            began = time.perf_counter()
            with contender.connect() as new:
                ping(new)
                fresh_times.append(time.perf_counter() - began)
        thread.join()
    loaded = statistics.median(fresh_times) * 1e3
    yield "loaded kept ms", statistics.median(kept_times) * 1e3
    yield "loaded fresh ms", loaded
    yield "loaded/idle", loaded / fresh


def memory(contender: Contender) -> Iterator[tuple[str, float]]:
    """MiB that a reader who does not read costs, and KB for each of many open channels that do nothing."""
    before = contender.memory()
    with contender.connect() as peer:
        peer.sendall(b"D %d\n" % (256 << 20))
        time.sleep(2)
        yield "stalled MiB", max(0, contender.memory() - before) / (1 << 20)
    time.sleep(0.2)
    before = contender.memory()
    peers = []
    for _ in range(IDLE_CHANNELS):
        peers.append(contender.connect())
        ping(peers[-1])
    yield "idle KB/channel", max(0, contender.memory() - before) / IDLE_CHANNELS / 1e3
    for peer in peers:
        peer.close()


def measure(contender: Contender, options: argparse.Namespace, round_trip: float) -> Iterator[tuple[str, float]]:
    """One round of everything."""
    # A far transfer takes round trips, not processor time: less is enough, and the run comes to its end.
    part = 1 if not round_trip else 4 if round_trip < FAR_SECONDS else 16
    size = (options.size // part) << 20
    yield from bulk(contender, receive, size)
    yield from bulk(contender, send, size)
    yield from parallel(contender, size)
    count = 200 if not round_trip else 10 if round_trip < FAR_SECONDS else 5
    times = dict(latency(contender, count))
    yield from times.items()
    yield from latency_under_load(contender, size, times["fresh ms"])


# -- the run ---------------------------------------------------------------------------------------------------------


def start_relay(options: argparse.Namespace, round_trip: float) -> tuple[str, subprocess.Popen[str] | None]:
    """A remote that is ``round_trip`` seconds farther away."""
    if not round_trip:
        return options.remote, None
    user, host, port = split_remote(options.remote)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = free.getsockname()[1]
    command = [sys.executable, __file__, "--delay", str(round_trip), "--listen", str(own), "--remote", f"{host}:{port}"]
    relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert relay.stdout is not None
    relay.stdout.readline()
    return f"{user}@127.0.0.1:{own}", relay


def run_at(options: argparse.Namespace, names: list[str], round_trip: float, directory: Path) -> None:
    """All rounds at one distance, and their table."""
    remote, relay = start_relay(options, round_trip)
    contenders: list[Contender] = []
    results: dict[tuple[str, str], list[float]] = defaultdict(list)
    try:
        for name in names:
            contenders.append(start(name, options, remote, directory))
        for number in range(options.rounds):
            turn = number % len(contenders)
            for contender in contenders[turn:] + contenders[:turn]:
                for what, value in measure(contender, options, round_trip):
                    results[what, contender.name].append(value)
        if not round_trip:
            for contender in contenders:
                for what, value in memory(contender):
                    results[what, contender.name].append(value)
    finally:
        for contender in contenders:
            contender.stop()
        if relay is not None:
            relay.terminate()
            relay.wait()
    print_table(results, names, f"{round_trip * 1e3:.0f} ms added round trip, median of {options.rounds} rounds")


def print_table(results: dict[tuple[str, str], list[float]], names: list[str], title: str) -> None:
    """A line for each measurement: the medians, and the ratios to the first contender."""
    print(f"\n{title}")
    print(f"{'':16}" + "".join(f"{name:>22}" for name in names) + f"{'spread':>10}")
    for what in dict.fromkeys(what for what, _ in results):
        first = results[what, names[0]]
        cells = []
        for name in names:
            values = results[what, name]
            ratio = statistics.median(
                value / (other or float("nan")) for value, other in zip(values, first, strict=True)
            )
            cells.append(f"{statistics.median(values):14.2f} ({ratio:4.2f}x)")
        spread = (max(first) - min(first)) / (statistics.median(first) or float("nan"))
        print(f"{what:16}" + "".join(cells) + f"{spread:10.0%}", flush=True)


def serve_remotely(options: argparse.Namespace) -> subprocess.Popen[str]:
    """Run ``--serve`` on the remote host; it ends with its ssh."""
    user, host, port = split_remote(options.remote)
    options.socket = f"/tmp/rda-bench-{os.getpid()}.sock"
    command = ["ssh", "-tt", "-p", str(port), "-i", options.identity, "-F", "none", "-o", "BatchMode=yes"]
    command += ["-o", f"UserKnownHostsFile={options.known_hosts}", f"{user}@{host}"]
    source = Path(__file__).read_text()
    scp = [*command[:1], *command[2:], f"cat > /tmp/rda-bench-{os.getpid()}.py"]
    subprocess.run(scp, input=source, text=True, check=True)
    files = f"/tmp/rda-bench-{os.getpid()}.py {options.socket}"
    # The end of its ssh hangs up the terminal, which ends both.
    python = (
        f"trap 'rm -f {files}; exit' HUP TERM EXIT; python3 /tmp/rda-bench-{os.getpid()}.py --serve {options.socket}"
    )
    service = subprocess.Popen([*command, python], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    if "serving" not in service.stdout.readline():
        raise SystemExit("the service could not be started on the remote host; give --socket of one that runs there")
    return service


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--remote", help="user@host[:port]")
    parser.add_argument("--socket", default="", help="remote socket of a service started with --serve")
    parser.add_argument("--identity", default=str(Path.home() / ".ssh/id_ed25519"), help="private key file")
    parser.add_argument("--known-hosts", default=str(Path.home() / ".ssh/known_hosts"), help="where its host key is")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--size",
        type=int,
        default=256,
        help="MiB of a bulk transfer (a quarter with a delay, a sixteenth from 50 ms on)",
    )
    parser.add_argument("--delays", default="0,20,100", help="added round trips, milliseconds")
    parser.add_argument("--only", default="", help="contenders, separated by commas: " + ", ".join(CONTENDERS))
    parser.add_argument("--profile", default="", help="file for a profile of rda's process")
    for internal in ("--serve", "--delay", "--forward", "--listen"):
        parser.add_argument(internal, default="", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


CONTENDERS = ("ssh -L", "ssh -L gcm", "asyncssh", "rda")


def main() -> None:
    """Run what the options say."""
    sys.path.insert(0, str(ROOT))
    options = parse()
    if options.serve:
        serve(options.serve)
    elif options.delay:
        _, host, port = split_remote(options.remote)
        asyncio.run(delay_relay(int(options.listen), float(options.delay), host, port))
    elif options.forward:
        {"rda": forward_rda, "asyncssh": forward_asyncssh}[options.forward](options)
    else:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the idle channels, here and in what is started
        names = options.only.split(",") if options.only else list(CONTENDERS)
        if importlib.util.find_spec("asyncssh") is None:
            names = [name for name in names if name != "asyncssh"]
        service = None if options.socket else serve_remotely(options)
        directory = Path(tempfile.mkdtemp(prefix="rda-bench-"))
        try:
            for delay in options.delays.split(","):
                place = directory / delay
                place.mkdir()
                run_at(options, names, float(delay) / 1e3, place)
        finally:
            if service is not None:
                service.terminate()
            shutil.rmtree(directory)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
