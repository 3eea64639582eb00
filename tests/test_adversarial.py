"""What the daemon reads is what rda judged, whatever comes in."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rda.docker import routes
from rda.docker.routes import RequestBody
from rda.proxy.wire import RequestHead
from tests.adversarial import HOST, SMUGGLED, Attempt, Parsed, attempt, get, read_strictly
from tests.memory_network import MemoryEndpoint, Peer
from tests.relay_case import OK, RelayCase


class AnsweringDaemon(Peer):
    """Reads requests strictly, and answers each when it is complete."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Parsed] = []

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        complete, _ = read_strictly(self.received)
        for request in complete[len(self.read) :]:
            self.read.append(request)
            self.transport.write(OK.removesuffix(b"OK") if request.method == b"HEAD" else OK)


class JudgedTests(RelayCase):
    def setUp(self) -> None:
        super().setUp()
        self.daemon = MemoryEndpoint(self.network, AnsweringDaemon)
        self.site.proxy.pool._upstream = self.daemon
        self.judged: list[RequestHead] = []
        dispatch = self.site.dispatch

        def judge(request: Any, head: RequestHead) -> Any:
            exchange = dispatch(request, head)
            self.judged.append(head)
            return exchange

        self.site.dispatch = judge  # type: ignore[method-assign]

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, 2**32), st.integers(1, 200))
    def test_the_daemon_reads_what_was_judged(self, seed: int, size: int) -> None:
        """Each request that reaches the daemon is one that was let in, in the same words, with the same body."""
        self.setUp()
        self.check(attempt(Random(seed)), size)

    def check(self, made: Attempt, size: int) -> None:
        """Send it in pieces of ``size`` bytes and compare both sides."""
        client = self.client()
        for start in range(0, len(made.data), size):
            if client.lost is None and not client.ended:
                self.send(client, made.data[start : start + size])
        self.advance(self.limits.head_seconds)
        read = [request for peer in self.daemon.peers for request in peer.read]
        if made.malformed:
            self.assertNotIn(b"/volumes/create", [request.target for request in read])
            self.assertRegex(client.received, rb"\AHTTP/1.1 4\d\d ")
        judged = iter(self.judged)
        for request in read:  # in the same order; what was refused later, for what its body says, is left out
            self.assertTrue(any(self.same(request, head) for head in judged), request)
        self.assert_answers(client.received)

    @staticmethod
    def same(request: Parsed, head: RequestHead) -> bool:
        """Return whether a request that the daemon read is the one that was judged."""
        call = routes.match(head.method, head.target)
        if routes.match(request.method, request.target) != call:
            return False
        return head.length is None or call.route.body is not RequestBody.STREAM or len(request.body) == head.length

    def assert_answers(self, received: bytes) -> None:
        """What the client got is a row of whole answers."""
        line = rb"HTTP/1\.1 \d\d\d [^\r\n]*\r\n(?:[!-9;-~]+: [^\r\n]*\r\n)*\r\n"
        self.assertRegex(received, b"\\A(?:" + line + rb"(?:OK|\{[^\n]*\n)?)*\Z")


class StrictTests(SynchronousTestCase):
    """The reader that the others are measured with."""

    def test_reads(self) -> None:
        """Requests of every framing are read whole; what is incomplete stays."""
        chunked = get(HOST, b"Transfer-Encoding: chunked") + b"2\r\nhi\r\n0\r\nA: b\r\n\r\n"
        found, rest = read_strictly(get(HOST) + get(HOST, b"Content-Length: 2") + b"hi" + chunked + SMUGGLED + b"GET ")
        self.assertEqual([request.body for request in found], [b"", b"hi", b"hi", b'{"Name":"smuggled"}'])
        self.assertEqual((found[-1].method, found[-1].target, rest), (b"POST", b"/volumes/create", b"GET "))

    def test_refuses_a_choice(self) -> None:
        """What two parsers might read differently is an error."""
        for data in (
            get(HOST, b"Content-Length: 2", b"Transfer-Encoding: chunked"),
            get(HOST, b"Content-Length: +2"),
            get(HOST, b"A : b"),
            get(HOST, b"A: b", b" c"),
            get(HOST, b"Transfer-Encoding: chunked") + b"2;a\r\n",
            get(HOST, b"Transfer-Encoding: chunked") + b"2\r\nhi!!0\r\n",
        ):
            self.assertRaises(ValueError, read_strictly, data)

    def test_the_generator_makes_both_kinds(self) -> None:
        """A thousand attempts hold hundreds that are malformed, and hundreds that may be good."""
        made = [attempt(Random(seed)) for seed in range(1000)]
        malformed = sum(one.malformed for one in made)
        self.assertTrue(200 < malformed < 400, malformed)
        self.assertGreater(len({one.data for one in made}), 600)
        self.assertTrue(any(re.search(rb"chunked[^a-z]", one.data) for one in made if not one.malformed))
