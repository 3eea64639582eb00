"""The status page with made-up contexts, for the tests of the page: ``python -m tests.live.page_server busy``.

Prints its URL. A line on its standard input names the next picture; its end ends the server.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace

from twisted.internet import reactor, stdio
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import Clock
from twisted.protocols.basic import LineReceiver

from rda.pages.document import Process
from rda.pages.logs import RecentLog
from rda.pages.tree import Pages
from rda.proxy.server import DockerSite
from rda.status import (
    CallStatus,
    ContextStatus,
    ForwardStatus,
    LinkStatus,
    MirrorStatus,
    Problem,
    RelayStatus,
    WaitStatus,
)
from tests.memory_network import MemoryEndpoint, Network
from tests.relay_case import Rewriter
from tests.test_pages import FakeControl


def link(now: float) -> LinkStatus:
    """A link that has been measured for a quarter of an hour, with one interruption."""
    trips = []
    for n in range(180):
        if 100 < n < 118:
            continue
        seconds = 0.018 + 0.004 * math.sin(n / 7) + 0.003 * math.sin(n * 1.7) + (0.02 if n in (40, 41, 130) else 0)
        trips.append((now - (180 - n) * 5, seconds))
    return LinkStatus(
        "dev@gpu-box.example.com:22",
        "connected",
        since=now - 310,
        round_trip=trips[-1][1],
        connects=2,
        channels=7,
        cipher="aes128-gcm@openssh.com",
        key_exchange="mlkem768x25519-sha256",
        server="SSH-2.0-OpenSSH_10.0p2 Debian-7",
        socket_via="streamlocal",
        round_trips=tuple(trips),
    )


def calls(now: float) -> tuple[CallStatus, ...]:
    return (
        CallStatus("POST", "/containers/trainer/start", "container start", "alice", now - 21),
        CallStatus("GET", "/events", "events", "alice", now - 300, 200, 0.012),
        CallStatus("POST", "/containers/create", "container create", "alice", now - 22, 201, 0.31, 0.32),
        CallStatus("GET", "/images/pytorch:latest/json", "relayed", "alice", now - 23, 200, 0.021, 0.022),
        CallStatus("POST", "/containers/nope/start", "container start", "bob", now - 60, 404, 0.02, 0.021),
        CallStatus("GET", "/_ping", "relayed", "bob", now - 61, 200, 0.019, 0.019),
    )


def busy(now: float) -> ContextStatus:
    """A context in which everything there is happens."""
    secret = Problem(
        "etc/secret.pem", "cannot be read: Permission denied. Let the user that rda runs as read it", now - 900
    )
    conflict = Problem("out.log", "something that was made on the remote host was in the way; it is kept as out.log.1")
    mirrors = (
        MirrorStatus(
            "/home/alice/projects/vision/datasets",
            "",
            "applying",
            files=40_000,
            bytes=1_200_000_000,
            files_done=40_212,
            files_total=81_500,
            bytes_done=1_934_000_000,
            bytes_total=4_120_000_000,
            rate=58_400_000.0,
            time_left=37.5,
        ),
        MirrorStatus(
            "/home/alice/projects/vision/src",
            "",
            "idle",
            mode="two-way",
            files=1_204,
            bytes=3_400_000,
            last_change=now - 42,
            latency=0.046,
        ),
        MirrorStatus(
            "/home/alice/projects/vision/config",
            "",
            "idle",
            files=14,
            bytes=18_000,
            last_change=now - 4000,
            latency=0.031,
            problems=(secret,),
            problems_total=1,
            conflicts=(conflict,),
        ),
        MirrorStatus(
            "/home/alice/projects/old-experiment",
            "",
            "halted",
            files=310,
            bytes=9_100_000,
            problems=(
                Problem(
                    "/home/alice/projects/old-experiment",
                    "it is empty here, and 310 files are on the remote host: perhaps a disk is not mounted. "
                    "If it is meant: rda confirm /home/alice/projects/old-experiment",
                    now - 60,
                ),
            ),
            problems_total=1,
        ),
    )
    forwards = (
        ForwardStatus(
            "c1", "web", "80/tcp", "127.0.0.1:8080", "127.0.0.1:32768", "open", "", 3, 120, 48_000, 9_300_000
        ),
        ForwardStatus("c2", "jupyter-notebook-of-alice", "8888/tcp", "127.0.0.1:8888", "", "reserved"),
        ForwardStatus(
            "c3",
            "db",
            "5432/tcp",
            "127.0.0.1:5432",
            "",
            "not forwarded",
            "127.0.0.1:5432 is in use by another program here. Stop it, or publish another port",
        ),
        ForwardStatus("c4", "dns", "53/udp", "127.0.0.1:5353", "127.0.0.1:32770", "open", "", 1, 4, 800, 2_400),
    )
    waiting = (WaitStatus("start of trainer", "/home/alice/projects/vision/datasets", now - 21),)
    relay = RelayStatus(6, 18_421, 12, 2, 1, 0, 48_300_000, 912_000_000)
    return ContextStatus(
        "default", ("tcp://localhost:23750",), link(now), forwards, mirrors, (), relay, calls(now), waiting
    )


def down(now: float) -> ContextStatus:
    reason = "dev@lab.example.com:22 cannot be reached: Connection refused"
    lost = LinkStatus("dev@lab.example.com:22", "waiting", reason, now - 95, connects=1, next_try=now + 4000)
    return ContextStatus("lab", ("unix:///run/user/1000/rda/lab.sock",), lost)


def empty(now: float) -> ContextStatus:
    fresh = replace(link(now), connects=1, since=now - 3, round_trips=(), round_trip=0.0183, channels=1)
    return ContextStatus("default", ("tcp://localhost:23750",), fresh)


def pictures(name: str) -> tuple[ContextStatus, ...]:
    now = time.time()
    return {
        "empty": lambda: (empty(now),),
        "busy": lambda: (busy(now), down(now)),
        "failed": lambda: (
            replace(empty(now), link=LinkStatus("dev@x:22", "failed", "<b>its key</b> is not known", now - 5)),
        ),
    }[name]()


class _Input(LineReceiver):
    delimiter = b"\n"

    def __init__(self) -> None:
        self.name = sys.argv[1]

    def lineReceived(self, line: bytes) -> None:
        self.name = line.decode()

    def connectionLost(self, reason: object = None) -> None:
        if reactor.running:
            reactor.stop()


def main() -> None:
    chosen = _Input()
    stdio.StandardIO(chosen)
    shown: dict[str, tuple[ContextStatus, ...]] = {}
    status = lambda: shown.setdefault(chosen.name, pictures(chosen.name))  # noqa: E731
    pages = Pages(reactor, status, status, FakeControl(), RecentLog(), Process(1, time.time()))
    site = DockerSite(MemoryEndpoint(Network(Clock())), Rewriter(), reactor, own=pages)

    def listening(port: object) -> None:
        print(f"http://localhost:{port.getHost().port}/_rda/", flush=True)

    serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(site).addCallback(listening)
    reactor.run()


if __name__ == "__main__":
    main()
