"""A thousand requests that nobody should send, on real sockets, to a real daemon."""

from __future__ import annotations

import re
import resource
import selectors
import socket
import time
from random import Random

from tests.adversarial import Attempt, attempt
from tests.live.support import LiveTestCase, Rda

#: How many connections send something.
ATTEMPTS = 1000

#: What rda is told to wait for a request's head, and what a busy machine may take beyond that; seconds.
HEAD_SECONDS = 1
PATIENCE_SECONDS = 60.0


class Adversarial(LiveTestCase):
    """Malformed, ambiguous and odd requests."""

    def choose_rda(self) -> Rda:
        """Start an rda that does not wait for long."""
        configuration = self.directory() / "rda.toml"
        configuration.write_text(f"[limits]\nhead_seconds = {HEAD_SECONDS}\n")
        rda = self.own_rda(config=str(configuration))
        rda.wait_ready()
        return rda

    def test_a_thousand(self) -> None:
        """Each is answered or closed within the head timer; no malformed one does anything; rda's log stays clean."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        attempts = [attempt(Random(seed)) for seed in range(ATTEMPTS)]
        for made, received, open_ in self.exchange(attempts):
            with self.subTest(sent=made.data):
                if made.malformed:
                    self.assertRegex(received, rb"\AHTTP/1\.1 4\d\d ")
                elif open_:
                    self.assertTrue(received or incomplete(made.data), "neither answered nor closed")
        self.assertNotIn(b"smuggled", self.host.docker("volume", "ls", "-q").stdout)
        self.assertNotIn("Traceback", "".join(self.rda.lines))
        self.assertEqual(self.rda.docker("ps", "-q").stdout, b"")

    def exchange(self, attempts: list[Attempt]) -> list[tuple[Attempt, bytes, bool]]:
        """Send everything at once; return what each connection received and whether it is still open."""
        received = [b""] * len(attempts)
        with selectors.DefaultSelector() as waiting:
            for number, made in enumerate(attempts):
                peer = socket.create_connection(("127.0.0.1", self.rda.port), timeout=PATIENCE_SECONDS)
                self.addCleanup(peer.close)
                peer.sendall(made.data)
                waiting.register(peer, selectors.EVENT_READ, number)
            # The others have announced a body, which may take its time.
            expected = {n for n, made in enumerate(attempts) if made.malformed or not incomplete(made.data)}
            deadline = time.monotonic() + PATIENCE_SECONDS
            while expected and time.monotonic() < deadline:
                for key, _ in waiting.select(timeout=HEAD_SECONDS):
                    data = read(key.fileobj)
                    received[key.data] += data
                    expected.discard(key.data)
                    if not data:
                        waiting.unregister(key.fileobj)
            still = {key.data for key in waiting.get_map().values()}
        return [(made, received[number], number in still) for number, made in enumerate(attempts)]


def read(peer: socket.socket) -> bytes:
    """Return what a connection has for us, nothing when it has ended, however it did."""
    try:
        return peer.recv(1 << 16)
    except OSError:
        return b""


def incomplete(data: bytes) -> bool:
    """Return whether a body is announced that may take its time: only heads are timed."""
    return re.search(rb"(?i)content-length|transfer-encoding", data) is not None
