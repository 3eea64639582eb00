"""Nothing that passes through the relay stays in it."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import socket
from collections.abc import Iterator

from tests.live.support import MEBIBYTE
from tests.soak.support import SoakTestCase, size

#: Bytes that an idle stream may cost rda.
IDLE_STREAM = 20 * 1024

#: Bytes that may stay after many requests or containers: what an allocator keeps of its peak.
GROWTH = 10 * MEBIBYTE

#: Seconds that one call may take.
TIMEOUT = 60


class Requests(SoakTestCase):
    """Many requests."""

    @contextlib.contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """A connection to rda."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rda.port, timeout=TIMEOUT)
        with contextlib.closing(connection):
            yield connection

    def call(self, connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> object:
        """Make one call and return what the answer holds; an error status fails the test."""
        document = None if body is None else json.dumps(body)
        connection.request(method, path, document, {} if body is None else {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        self.assertLess(answer.status, 400, f"{method} {path}: {content!r}")
        return json.loads(content) if content.startswith((b"{", b"[")) else content

    def ping(self, count: int) -> None:
        """Make small requests, one in ten on a connection of its own, one in ten answered by a rewritten document."""
        with self.connection() as kept:
            for n in range(count):
                if n % 10 == 0:
                    with self.connection() as new:
                        self.call(new, "GET", "/_ping")
                elif n % 10 == 1:
                    self.call(kept, "GET", "/containers/json?all=1")
                else:
                    self.call(kept, "GET", "/_ping")

    def test_small_requests(self) -> None:
        """REQUESTS (100,000) small requests leave nothing behind."""
        count = size("REQUESTS", 100_000)
        self.ping(max(1000, count // 20))  # what caches cost is paid before it is measured
        before = self.holdings()
        self.ping(count)
        self.assert_back(before, GROWTH)

    def cycle(self, connection: http.client.HTTPConnection) -> None:
        """Create, start, await and remove one container."""
        created = self.call(connection, "POST", "/containers/create", {"Image": "busybox", "Cmd": ["true"]})
        path = f"/containers/{created['Id']}"  # type: ignore[index]
        self.call(connection, "POST", path + "/start")
        self.call(connection, "POST", path + "/wait")
        self.call(connection, "DELETE", path)

    def test_container_cycles(self) -> None:
        """CYCLES (10,000) containers that are created, started and removed leave nothing behind."""
        count = size("CYCLES", 10_000)
        with self.connection() as connection:
            for _ in range(max(20, count // 100)):
                self.cycle(connection)
        before = self.holdings()
        with self.connection() as connection:
            for n in range(1, count + 1):
                self.cycle(connection)
                if n % 1000 == 0:
                    self.tell(f"{n} of {count}: {self.holdings()}")
        self.assert_back(before, GROWTH)


class Streams(SoakTestCase):
    """Many streams, and large ones."""

    def test_idle_streams(self) -> None:
        """STREAMS (1,000) followed logs at once cost little each, and the same memory serves the next ones."""
        count = size("STREAMS", 1000)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.rda.docker("run", "-d", "--name", "quiet", "busybox", "sh", "-c", "echo up; exec sleep 86400")
        with self.followed("quiet", 20):
            pass  # what caches cost is paid before it is measured
        before = self.holdings()
        with self.followed("quiet", count):
            during = self.holdings()
        each = (during.memory - before.memory) / count
        self.tell(f"{count} streams: {during}, {each / 1024:.1f} KB each")
        self.assertLessEqual(each, IDLE_STREAM)
        self.settled(before)
        for _ in range(2):  # collected garbage of the first round is still there in the second
            once = self.settled(before)
            with self.followed("quiet", count):
                pass
        self.assert_back(once, MEBIBYTE)

    @contextlib.contextmanager
    def followed(self, container: str, count: int) -> Iterator[None]:
        """Follow a container's logs on many connections, each of which has seen the first line."""
        request = f"GET /containers/{container}/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        with contextlib.ExitStack() as opened:
            peers = [
                opened.enter_context(socket.create_connection(("127.0.0.1", self.rda.port), timeout=TIMEOUT))
                for _ in range(count)
            ]
            for peer in peers:
                peer.sendall(request)
            for peer in peers:
                received = b""
                while not received.endswith(b"up\n\r\n"):
                    data = peer.recv(65536)
                    self.assertTrue(data, received)
                    received += data
            yield

    def test_large_image(self) -> None:
        """An image of IMAGE (1024) MiB passes ``save | load`` without more memory than a small one needs."""
        amount = size("IMAGE", 1024)
        self.addCleanup(self.host.docker, "rmi", "-f", "large", check=False)
        script = f"head -c {amount * MEBIBYTE} /dev/urandom >/tmp/blob"
        self.rda.docker("run", "--name", "maker", "busybox", "sh", "-c", script)
        self.rda.docker("commit", "maker", "large")
        identity = self.host.docker("image", "inspect", "-f", "{{.Id}}", "large").stdout
        self.rda.docker("rm", "maker")
        before = self.holdings()
        self.rda.reset_peak()
        with self.rda.running("save", "large") as saving:
            loaded = self.rda.docker("load", stdin=saving.stdout, timeout=1800)
            self.assertEqual(saving.wait(TIMEOUT), 0, saving.stderr.read())
        self.assertEqual(loaded.stdout, b"Loaded image: large:latest\n")
        self.assertEqual(self.host.docker("image", "inspect", "-f", "{{.Id}}", "large").stdout, identity)
        growth = self.rda.memory("VmHWM") - before.memory
        self.tell(f"memory grew by {growth / MEBIBYTE:.1f} MiB at most")
        self.assertLessEqual(growth, GROWTH)
        self.assert_back(before, GROWTH)
