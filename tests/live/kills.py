"""Kill rda's SSH connections under load, again and again, and measure how long it takes to be back."""

from __future__ import annotations

import http.client
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.live.support import MEBIBYTE, Rda

#: Seconds from a kill until requests are answered again: the longest back-off of a server that is there
#: (rda.ssh.line.MOST_UNSTABLE: 2 s), and a login on a machine that is busy with the load.
BACK_SECONDS = 15.0

#: Bytes that each download and upload moves.
TRANSFER = 64 * MEBIBYTE

#: One in so many kills is followed by another before rda is back.
TWICE = 5


def answers(rda: Rda, seconds: float = BACK_SECONDS) -> bool:
    """Whether a small request on a new connection is answered by the daemon."""
    connection = http.client.HTTPConnection("127.0.0.1", rda.port, timeout=seconds)
    try:
        connection.request("GET", "/_ping")
        return connection.getresponse().read() == b"OK"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def load(rda: Rda, container: str) -> Iterator[None]:
    """Keep small requests, a download and an upload going, whatever becomes of each."""
    over = threading.Event()

    def ping() -> None:
        answers(rda)

    def download() -> None:
        words = ("exec", container, "head", "-c", str(TRANSFER), "/dev/zero")
        rda.docker(*words, check=False, stdout=subprocess.DEVNULL)

    def upload() -> None:
        rda.docker("exec", "-i", container, "wc", "-c", check=False, input=bytes(TRANSFER))

    def repeat(action: Callable[[], None]) -> None:
        while not over.wait(0.01):
            action()

    threads = [threading.Thread(target=repeat, args=(action,)) for action in (ping, ping, download, upload)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def kill_again_and_again(rda: Rda, count: int, container: str) -> list[float]:
    """Kill all SSH connections ``count`` times at random moments of the load.

    :returns: how many seconds it took each time until a request was answered again.
    :raises AssertionError: it took longer than :data:`BACK_SECONDS`.
    """
    times = []
    with load(rda, container):
        for number in range(count):
            time.sleep(random.uniform(0.0, 1.5))  # the random moment is the condition under test
            rda.host.drop_ssh_connections()
            if number % TWICE == TWICE - 1:
                time.sleep(random.uniform(0.0, 1.0))
                rda.host.drop_ssh_connections()
            killed = time.monotonic()
            while not answers(rda):
                if time.monotonic() - killed > BACK_SECONDS:
                    raise AssertionError(f"not back {BACK_SECONDS:g} s after kill {number + 1}:\n{rda.output}")
            times.append(time.monotonic() - killed)
    return times
