"""Exchanges: requests to the daemon and answers back, through the real twisted stack in memory."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError

from rda.docker.routes import Outgoing
from rda.errors import LinkDown, Refused
from rda.limits import Limits
from rda.proxy.tunnel import HEAD_ALONE_SECONDS
from tests.memory_network import HIGH_WATER
from tests.relay_case import GET, OK, RelayCase, answer, body_of, post

CREATE = b"/v1.45/containers/create"
ATTACH = (
    b"POST /v1.45/containers/web/attach?stream=1 HTTP/1.1\r\nHost: localhost\r\n"
    b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
)
RAW = b"Content-Type: application/vnd.docker.raw-stream\r\n"
UPGRADED = b"HTTP/1.1 101 UPGRADED\r\n" + RAW + b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
EVENTS = b"GET /v1.45/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
START = b"POST /v1.45/containers/web/start HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BUILD = b"POST /v1.45/build HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


class StreamedTests(RelayCase):
    """Requests that nobody looks into."""

    def test_request_and_answer_pass(self) -> None:
        """A request reaches the daemon as it came, and its answer the client."""
        client = self.client(GET)
        self.assertEqual(self.upstream.received, GET)
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK)
        self.assertEqual((self.site.counters.requests, self.site.counters.active), (1, 0))

    def test_head_and_body_leave_together(self) -> None:
        """An answer that comes in one piece leaves in one piece: half the system calls of a small request."""
        client, writes = self.client(GET), []
        transport = client.transport.other
        self.patch(transport, "write", writes.append)
        self.send(self.upstream, OK)
        self.assertEqual(writes, [OK])

    def test_keep_alive_and_one_daemon_connection(self) -> None:
        """Requests after each other use one connection on both sides."""
        client = self.client(GET)
        for _ in range(3):
            self.send(self.upstream, OK)
            self.send(client, GET)
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK * 4)
        self.assertEqual(len(self.daemon.peers), 1)

    def test_pipelined_requests_are_answered_in_order(self) -> None:
        """A pipelined request waits for the answer to the one before it."""
        client = self.client(GET + GET.replace(b"_ping", b"info"))
        self.assertEqual(self.upstream.take(), GET)
        self.send(self.upstream, OK)
        self.assertIn(b"GET /info", self.upstream.take())
        self.send(self.upstream, OK.replace(b"OK", b"ok"))
        self.assertEqual(client.received, OK + OK.replace(b"OK", b"ok"))

    def test_any_split_of_a_request(self) -> None:
        """A request may come byte by byte; the daemon gets each byte of a body as soon as it can be passed on."""
        client = self.client()
        for byte in BUILD + b"5\r\nhello\r\n0\r\n\r\n":
            self.send(client, bytes([byte]))
        self.assertEqual(self.upstream.received, BUILD + b"5\r\nhello\r\n0\r\n\r\n")

    def test_body_of_known_length(self) -> None:
        """A body of known length is spliced, and its end known."""
        client = self.client(post(b"/images/load", b"x" * 70_000))
        self.assertTrue(self.upstream.take().endswith(b"\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000))
        self.send(self.upstream, OK)
        self.send(client, GET)
        self.assertEqual(self.upstream.received, GET)

    def test_chunked_answer_with_trailers(self) -> None:
        """The chunks of an answer, and its trailers, arrive as they came."""
        message = CHUNKED + b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
        client = self.client(GET)
        self.send(self.upstream, message)
        self.assertEqual(client.take(), message)
        self.send(client, GET)
        self.send(self.upstream, OK)
        self.assertEqual((client.received, len(self.daemon.peers)), (OK, 1))

    def test_answer_until_close(self) -> None:
        """An answer without a length ends, on both sides, with its connection."""
        client = self.client(GET)
        self.send(self.upstream, b"HTTP/1.1 200 OK\r\n\r\nabc")
        self.assertEqual(client.received, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc")
        self.upstream.transport.loseConnection()
        self.pump()
        self.assertTrue(client.closed_cleanly)

    def test_head_has_no_body(self) -> None:
        """The answer to HEAD, and 204 and 304, end with their heads, whatever length they name."""
        client = self.client(GET.replace(b"GET", b"HEAD"))
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        self.send(self.upstream, head)
        self.assertEqual(client.take(), head)
        for status in (b"204 No Content", b"304 Not Modified"):
            self.send(client, GET)
            self.send(self.upstream, b"HTTP/1.1 " + status + b"\r\n\r\n")
            self.assertEqual(client.take(), b"HTTP/1.1 " + status + b"\r\n\r\n")
        self.assertEqual(len(self.daemon.peers), 1)

    def test_http_1_0(self) -> None:
        """An HTTP/1.0 client gets its answer without chunks, and then the end of the connection."""
        client = self.client(b"GET /_ping HTTP/1.0\r\n\r\n")
        self.assertEqual(self.upstream.received, b"GET /_ping HTTP/1.0\r\n\r\n")
        self.send(self.upstream, CHUNKED + b"3\r\nabc\r\n0\r\n\r\n")
        self.assertEqual(client.received, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc")
        self.assertTrue(client.closed_cleanly)

    def test_connection_close(self) -> None:
        """A client that wants its connection closed gets that, and the daemon's connection stays."""
        client = self.client(GET.replace(b"\r\n\r\n", b"\r\nConnection: Close\r\n\r\n"))
        self.assertEqual(self.upstream.received, GET)
        self.send(self.upstream, OK)
        self.assertIn(b"Connection: close", client.received)
        self.assertTrue(client.closed_cleanly)
        self.assertEqual(self.site.proxy.pool.idle, 1)

    def test_expect_continue(self) -> None:
        """100 Continue is sent when there is somewhere to send the body, and not before."""
        self.daemon.waiting = []
        head = post(b"/images/load", b"hello", b"Expect: 100-continue\r\n").removesuffix(b"hello")
        client = self.client(head)
        self.assertEqual(client.received, b"")
        self.daemon.let_in()
        self.pump()
        self.assertEqual(client.take(), b"HTTP/1.1 100 Continue\r\n\r\n")
        self.assertNotIn(b"Expect", self.upstream.received)
        self.send(client, b"hello")
        self.assertTrue(self.upstream.received.endswith(b"\r\n\r\nhello"))
        self.send(self.upstream, b"HTTP/1.1 100 Continue\r\n\r\n" + OK)
        self.assertEqual(client.received, OK)

    def test_errors_of_the_daemon_pass(self) -> None:
        """401 and other errors are the daemon's to word."""
        message = answer({"message": "unauthorized"}, b"401 Unauthorized")
        client = self.client(GET)
        self.send(self.upstream, message)
        self.assertEqual(client.received, message)

    def test_accept_encoding_is_dropped_for_archives(self) -> None:
        """An archive is never compressed on its way out of a container."""
        self.client(b"GET /containers/web/archive?path=/x HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n")
        self.assertNotIn(b"gzip", self.upstream.received)
        self.client(b"GET /info HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n")
        self.assertIn(b"gzip", self.upstream.received)

    def test_early_answer_closes_after_draining(self) -> None:
        """When the daemon answers before the body is complete, the client still reads the answer."""
        client = self.client(post(b"/images/load", b"x" * 100)[:-50])
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        self.assertTrue(client.ended)
        self.assertIsNone(client.lost)
        self.assertIsNotNone(self.upstream.lost)
        self.send(client, b"x" * 200_000)
        client.transport.loseConnection()
        self.pump()

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.integers(1, 40), st.booleans())
    def test_any_split_of_an_answer(self, parts: list[bytes], size: int, chunked: bool) -> None:
        """However an answer arrives, the client gets the same bytes, and the connections stay usable."""
        self.setUp()
        if chunked:
            message = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        else:
            body = b"".join(parts)
            message = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        client = self.client(GET)
        for start in range(0, len(message), size):
            self.send(self.upstream, message[start : start + size])
        self.assertEqual(client.take(), message)
        self.send(client, GET)
        self.send(self.upstream, OK)
        self.assertEqual((client.received, len(self.daemon.peers)), (OK, 1))


class BackPressureTests(RelayCase):
    def test_upload_waits_for_the_daemon(self) -> None:
        """While the daemon does not read, the client's body stays with the client."""
        client = self.client(BUILD)
        self.upstream.transport.pauseProducing()
        for _ in range(20):
            self.send(client, b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        self.assertGreater(client.transport.buffered, 15 * HIGH_WATER)
        self.upstream.transport.resumeProducing()
        self.send(client, b"0\r\n\r\n")
        self.assertEqual(len(self.upstream.received), len(BUILD) + 20 * (0x10000 + 9) + 5)

    def test_download_waits_for_the_client(self) -> None:
        """While the client does not read, the daemon's answer stays with the daemon."""
        client = self.client(GET)
        client.transport.pauseProducing()
        size = 20 * HIGH_WATER
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
        self.send(self.upstream, head + b"x" * size)
        self.assertGreater(self.upstream.transport.buffered, 15 * HIGH_WATER)
        client.transport.resumeProducing()
        self.pump()
        self.assertEqual(len(client.take()), len(head) + size)
        self.send(client, GET)
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK)

    def test_body_waits_for_the_connection(self) -> None:
        """While the daemon's connection is being made, the body stays with the client."""
        self.daemon.waiting = []
        client = self.client(BUILD)
        for _ in range(20):
            self.send(client, b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        self.assertGreater(client.transport.buffered, 15 * HIGH_WATER)
        self.daemon.let_in()
        self.send(client, b"0\r\n\r\n")
        self.assertEqual(len(self.upstream.received), len(BUILD) + 20 * (0x10000 + 9) + 5)
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK)

    def test_pipelined_bytes_are_bounded(self) -> None:
        """What a client sends ahead of its answer is not read beyond the limit."""
        client = self.client(GET)
        for _ in range(20):
            self.send(client, b"x" * HIGH_WATER)
        self.assertGreater(client.transport.buffered, 15 * HIGH_WATER)

    def test_tunnel_both_ways(self) -> None:
        """In a tunnel, each side waits for the other to read."""
        client = self.client(ATTACH)
        self.send(self.upstream, UPGRADED)
        self.advance(HEAD_ALONE_SECONDS)
        for reader, writer in ((self.upstream, client), (client, self.upstream)):
            reader.transport.pauseProducing()
            for _ in range(20):
                self.send(writer, b"x" * HIGH_WATER)
            self.assertGreater(writer.transport.buffered, 15 * HIGH_WATER)
            reader.transport.resumeProducing()
            self.pump()
        self.assertEqual(len(client.received), len(UPGRADED) + 20 * HIGH_WATER)
        self.assertEqual(self.site.counters.hijacks, 1)


class LossTests(RelayCase):
    def test_truncated_answers_abort_the_client(self) -> None:
        """An answer that is cut short never ends cleanly, whatever its framing and however the daemon left."""
        for head in (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", CHUNKED + b"3\r\nabc\r\n"):
            for leave in ("loseConnection", "loseWriteConnection", "abortConnection"):
                client = self.client(GET)
                self.send(self.upstream, head)
                getattr(self.upstream.transport, leave)()
                self.pump()
                assert client.lost is not None
                client.lost.trap(ConnectionLost)

    def test_a_reset_is_no_end(self) -> None:
        """An answer that lasts until the connection ends does not end cleanly with a reset."""
        client = self.client(GET)
        self.send(self.upstream, b"HTTP/1.1 200 OK\r\n\r\nabc")
        self.upstream.transport.abortConnection()
        self.pump()
        assert client.lost is not None
        client.lost.trap(ConnectionLost)

    def test_malformed_answer(self) -> None:
        """An answer that is no HTTP is an error, and once it has begun the end of the client's connection."""
        client = self.client(GET)
        self.send(self.upstream, b"SSH-2.0-OpenSSH\r\n\r\n")
        self.assert_error(client, 502, "not HTTP")
        client = self.client(GET)
        self.send(self.upstream, CHUNKED + b"x\r\n")
        assert client.lost is not None
        client.lost.trap(ConnectionLost)

    def test_a_client_that_leaves_frees_the_daemon(self) -> None:
        """When the client is gone, in whichever part of an exchange, the daemon's connection is too."""
        for sent in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"):
            client = self.client(GET)
            self.send(self.upstream, sent)
            client.transport.abortConnection()
            self.pump()
            assert self.upstream.lost is not None
            self.upstream.lost.trap(ConnectionLost)

    def test_a_client_that_leaves_while_connecting(self) -> None:
        """A connection that comes too late is kept for the next request."""
        self.daemon.waiting = []
        client = self.client(GET)
        client.transport.abortConnection()
        self.pump()
        self.daemon.let_in()
        self.pump()
        self.assertEqual((self.upstream.received, self.site.proxy.pool.idle), (b"", 1))

    def test_a_half_closed_client_gets_its_answer(self) -> None:
        """The daemon learns of a client's half-close, and what it still answers arrives."""
        for request in (GET, post(b"/images/load", b"hello"), BUILD + b"5\r\nhello\r\n0\r\n\r\n"):
            client = self.client(request)
            client.transport.loseWriteConnection()
            self.pump()
            self.assertTrue(self.upstream.ended)
            self.send(self.upstream, OK)
            self.assertEqual(client.received, OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            self.assertTrue(client.closed_cleanly)
        self.assertEqual(self.site.proxy.pool.idle, 0)

    def test_pipelined_requests_before_a_half_close(self) -> None:
        """All requests that came before a half-close are answered; the daemon learns of it with the last one."""
        client = self.client(GET + GET.replace(b"_ping", b"info") + GET.replace(b"_ping", b"version"))
        client.transport.loseWriteConnection()
        self.pump()
        for path in (b"_ping", b"info"):
            self.assertIn(path, self.upstream.take())
            self.assertFalse(self.upstream.ended)
            self.send(self.upstream, OK)
        self.assertIn(b"version", self.upstream.take())
        self.assertTrue(self.upstream.ended)
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK * 2 + OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        self.assertTrue(client.closed_cleanly)

    def test_a_part_of_a_request_before_a_half_close(self) -> None:
        """Part of a request behind a complete one, and a refused one, do not keep the connection open."""
        for more in (GET[:10], b"\r\n", b"nonsense\r\n\r\n", GET.replace(b"localhost", b"elsewhere")):
            client = self.client(GET + more)
            client.transport.loseWriteConnection()
            self.pump()
            self.send(self.upstream, OK)
            self.assertTrue(client.received.startswith(OK), more)
            self.assertTrue(client.closed_cleanly, more)

    def test_a_client_that_half_closed_and_then_vanished(self) -> None:
        """A client that goes away after its half-close is found by the reaper."""
        client = self.client(EVENTS)
        self.send(self.upstream, CHUNKED)
        client.transport.loseWriteConnection()
        self.pump()
        self.assertIsNone(self.upstream.lost)
        client.transport.vanish()
        self.advance(self.limits.reap_seconds)
        self.assertIsNotNone(self.upstream.lost)

    def test_a_client_that_closes_altogether(self) -> None:
        """Where the kernel tells a close from a half-close, the daemon is freed at once."""
        client = self.client(EVENTS)
        self.send(self.upstream, CHUNKED)
        client.transport.vanish()
        self.pump()
        self.assertIsNotNone(self.upstream.lost)

    def test_truncated_request(self) -> None:
        """A request that ends before its body does is not completed."""
        client = self.client(post(b"/images/load", b"x" * 100)[:-50])
        client.transport.loseWriteConnection()
        self.pump()
        self.assertIsNotNone(client.lost)
        assert self.upstream.lost is not None
        self.upstream.lost.trap(ConnectionLost)

    def test_no_daemon(self) -> None:
        """An unreachable daemon is 502, a link that is down 503 with Retry-After; the client may go on."""
        self.daemon.failure = ConnectionRefusedError()
        client = self.client(GET)
        self.assert_error(client, 502, "cannot reach the remote Docker daemon")
        client.take()
        self.daemon.failure = LinkDown("the SSH connection to dev is down")
        self.send(client, GET)
        self.assertEqual(self.assert_error(client, 503, "the SSH connection to dev is down")["retry-after"], b"2")
        client.take()
        self.daemon.failure = None
        self.send(client, GET)
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK)

    def test_no_daemon_for_a_body(self) -> None:
        """When the daemon cannot be reached for a request with a body, the client reads why and is drained."""
        self.daemon.failure = LinkDown("down")
        client = self.client(post(b"/images/load", b"x" * 200_000)[:-100_000])
        self.assertEqual(self.assert_error(client, 503)["connection"], b"close")
        self.assertTrue(client.ended)


class PoolTests(RelayCase):
    limits = Limits(idle_upstreams=2, idle_upstream_seconds=60)

    def idle_connection(self) -> None:
        self.client(GET)
        self.send(self.upstream, OK)

    def test_a_dead_connection_is_not_used(self) -> None:
        """A kept connection that the daemon closes is forgotten."""
        self.idle_connection()
        self.upstream.transport.loseConnection()
        self.pump()
        self.assertEqual(self.site.proxy.pool.idle, 0)

    def test_safe_retry(self) -> None:
        """A GET on a kept connection that turns out to be dead is sent again on a new one, once."""
        self.idle_connection()
        old = self.upstream
        client = self.client(GET)
        self.assertEqual(len(self.daemon.peers), 1)
        old.transport.abortConnection()
        self.pump()
        self.assertEqual((len(self.daemon.peers), self.site.counters.retries), (2, 1))
        self.assertEqual(self.upstream.received, GET)
        self.upstream.transport.abortConnection()
        self.pump()
        self.assert_error(client, 502)
        self.assertEqual(len(self.daemon.peers), 2)

    def test_no_retry_of_what_is_not_safe(self) -> None:
        """A POST, and a GET of which an answer has begun, are not sent twice."""
        for request, begun in ((post(b"/images/prune", b""), b""), (GET, b"HTTP/1.1 ")):
            self.idle_connection()
            count = len(self.daemon.peers)
            client = self.client(request)
            self.send(self.upstream, begun)
            self.upstream.transport.abortConnection()
            self.pump()
            self.assert_error(client, 502)
            self.assertEqual(len(self.daemon.peers), count)

    def test_only_a_few_are_kept(self) -> None:
        """Beyond the limit, connections are closed after use; the kept ones when they have been idle for long."""
        clients = [self.client(GET) for _ in range(4)]
        for peer in self.daemon.peers:
            self.send(peer, OK)
        self.assertEqual([client.received for client in clients], [OK] * 4)
        self.assertEqual(self.site.proxy.pool.idle, 2)
        self.advance(30)
        self.send(clients[0], GET)
        self.send(self.daemon.peers[1], OK)
        self.advance(30)
        self.assertEqual(self.site.proxy.pool.idle, 1)
        self.advance(30)
        self.assertEqual(self.site.proxy.pool.idle, 0)

    def test_unasked_bytes(self) -> None:
        """A connection on which something comes unasked is not used again."""
        self.idle_connection()
        self.send(self.upstream, OK)
        self.assertEqual(self.site.proxy.pool.idle, 0)
        client = self.client(GET)
        self.send(self.upstream, OK + b"more")
        self.assertEqual((client.received, self.site.proxy.pool.idle), (OK, 0))

    def test_a_closing_answer(self) -> None:
        """A connection that the daemon says it closes is not kept, and the client's is."""
        client = self.client(GET)
        self.send(self.upstream, OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        self.assertEqual((client.received, self.site.proxy.pool.idle), (OK, 0))


class RewrittenTests(RelayCase):
    """Requests that the rewriter is asked about."""

    def test_document_both_ways(self) -> None:
        """create's body is replaced, with its length, and so is its answer."""
        self.rewriter.on_outgoing = lambda call, body: Outgoing(body={**body, "Labels": {"rda": "1"}}, memo=7)
        self.rewriter.on_answered = lambda status, body: {**body, "Warnings": ["w"]}
        client = self.client(post(CREATE, b'{"Image": "x"}', b"Accept-Encoding: gzip\r\n"))
        sent = b'{"Image":"x","Labels":{"rda":"1"}}'
        self.assertEqual(self.upstream.received, post(CREATE, sent))
        self.send(self.upstream, answer({"Id": "1"}, b"201 Created"))
        self.assertEqual(
            client.received,
            b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\r\n"
            b'{"Id":"1","Warnings":["w"]}\n',
        )
        self.assertEqual(self.rewriter.calls[-1], ("answered", "container create", 7, 201, {"Id": "1"}))

    def test_chunked_documents(self) -> None:
        """A chunked document is replaced by one with a length, both ways."""
        request = post(CREATE, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        client = self.client(request + b'5\r\n{"a":\r\n3\r\n 1}\r\n0\r\n\r\n')
        self.assertTrue(self.upstream.received.endswith(b'Content-Length: 7\r\n\r\n{"a":1}'))
        head = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.send(self.upstream, head + b'4\r\n{"Id\r\n5\r\n": 1}\r\n0\r\n\r\n')
        self.assertTrue(client.received.endswith(b'Content-Length: 9\r\n\r\n{"Id":1}\n'))

    def test_refusal(self) -> None:
        """What the rewriter refuses never reaches the daemon, and the client may go on."""

        def refuse(call: object, body: object) -> Outgoing:
            raise Refused("not that mount")

        self.rewriter.on_outgoing = refuse
        client = self.client(post(CREATE, b"{}"))
        self.assert_error(client, 403, "not that mount")
        self.assertEqual(self.daemon.peers, [])
        client.take()
        self.send(client, GET)
        self.assertEqual(self.upstream.received, GET)
        self.assertEqual(self.rewriter.names, ["outgoing"])

    def test_defects_are_logged_and_answered(self) -> None:
        """A defect in the rewriter becomes a 500 without details, and a log entry."""
        self.rewriter.on_outgoing = lambda call, body: 1 / 0
        client = self.client(post(CREATE, b"{}"))
        self.assert_error(client, 500, "internal error")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_bad_documents(self) -> None:
        """A body that is not one unambiguous JSON object is refused."""
        for body in (b"[]", b'{"a":1,"a":2}', b"{} {}"):
            self.assert_error(self.client(post(CREATE, body)), 400)
        self.assertEqual((self.daemon.peers, self.rewriter.calls), ([], []))

    def test_too_large(self) -> None:
        """A document over the limit is refused by its length, or as soon as it is over it."""
        size = self.limits.document + 1
        client = self.client(post(CREATE, b"", b"").replace(b"Length: 0", b"Length: %d" % size))
        self.assertEqual(self.assert_error(client, 413, "; document in [limits]")["connection"], b"close")
        client = self.client(post(CREATE, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        for _ in range(5):
            self.send(client, b"100000\r\n" + b" " * 0x100000 + b"\r\n")
        self.assert_error(client, 413)
        self.assertEqual(self.daemon.peers, [])

    def test_larger_limit(self) -> None:
        """The limit of documents is the configured one, and no other."""
        self.site.limits = self.site.proxy.pool.limits = Limits(document=6 << 20)
        large = b'{"Image":"%b"}' % (b"x" * (5 << 20))
        self.client(post(CREATE, large))
        self.assertTrue(self.upstream.received.endswith(large))

    def test_expect_continue_for_a_document(self) -> None:
        """A document is asked for at once, for it has to be read before anything is sent; a too long one is not."""
        more = b"Expect: 100-continue\r\n"
        client = self.client(post(CREATE, b"{}", more)[:-2])
        self.assertEqual(client.received, b"HTTP/1.1 100 Continue\r\n\r\n")
        self.send(client, b"{}")
        self.assertTrue(self.upstream.received.endswith(b"{}"))
        client = self.client(post(CREATE, b"", more).replace(b"Length: 0", b"Length: 99999999"))
        self.assert_error(client, 413)

    def test_start_waits(self) -> None:
        """start reaches the daemon when the rewriter lets it, and its answer the client likewise."""
        ready: Deferred[Outgoing] = Deferred()
        seen: Deferred[None] = Deferred()
        self.rewriter.on_outgoing = lambda call, body: ready
        self.rewriter.on_answered = lambda status, body: seen
        client = self.client(START)
        self.assertEqual(self.daemon.peers, [])
        ready.callback(Outgoing())
        self.pump()
        self.assertEqual(self.upstream.received, START)
        self.send(self.upstream, NO_CONTENT)
        self.assertEqual(client.received, b"")
        seen.callback(None)
        self.pump()
        self.assertEqual(client.received, NO_CONTENT)

    def test_an_answer_may_be_refused(self) -> None:
        """When the rewriter cannot let the client see the answer, the client gets the reason instead."""
        seen: Deferred[None] = Deferred()
        self.rewriter.on_answered = lambda status, body: seen
        client = self.client(START)
        self.send(self.upstream, NO_CONTENT)
        seen.errback(Refused("port 80 is taken"))
        self.pump()
        self.assert_error(client, 403, "port 80 is taken")

    def test_a_held_answer_keeps_its_body(self) -> None:
        """The body of a held answer follows its head, and the daemon is not read meanwhile."""
        seen: Deferred[None] = Deferred()
        self.rewriter.on_answered = lambda status, body: seen
        client = self.client(b"GET /containers/web/archive?path=/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        size = 20 * HIGH_WATER
        message = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
        self.send(self.upstream, message)
        self.assertEqual(client.received, b"")
        self.assertGreater(self.upstream.transport.buffered, 15 * HIGH_WATER)
        seen.callback(None)
        self.pump()
        self.assertEqual(client.received, message)

    def test_a_body_waits_for_the_decision(self) -> None:
        """While the rewriter decides, a streamed body stays with the client; when it refuses, the body is drained."""
        for verdict in (True, False):
            ready: Deferred[Outgoing] = Deferred()
            self.rewriter.on_outgoing = lambda call, body, ready=ready: ready
            size = 20 * HIGH_WATER
            head = b"PUT /containers/web/archive HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size
            client = self.client(head)
            for _ in range(20):
                self.send(client, b"x" * HIGH_WATER)
            self.assertGreater(client.transport.buffered, 15 * HIGH_WATER)
            if verdict:
                ready.callback(Outgoing())
                self.pump()
                self.assertTrue(self.upstream.received.endswith(b"\r\n\r\n" + b"x" * size))
            else:
                ready.errback(Refused("no"))
                self.pump()
                self.assert_error(client, 403)
            self.assertEqual(client.transport.buffered, 0)

    def test_a_body_that_outlives_its_held_answer(self) -> None:
        """What the client still sends after the daemon has answered goes nowhere, least of all into the answer."""
        seen: Deferred[None] = Deferred()
        self.rewriter.on_answered = lambda status, body: seen
        client = self.client(b"PUT /containers/web/archive HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
        self.send(self.upstream, OK)
        self.send(client, b"def")
        seen.callback(None)
        self.pump()
        self.assertEqual(client.received, OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    def test_aborted_when_the_client_leaves(self) -> None:
        """What outgoing reserved is undone, once, when the client leaves: before it was decided, and after."""
        ready: Deferred[Outgoing] = Deferred()
        self.rewriter.on_outgoing = lambda call, body: ready
        client = self.client(START)
        client.transport.abortConnection()
        self.pump()
        self.assertEqual(self.rewriter.names, ["outgoing"])
        ready.callback(Outgoing(memo=1))
        self.assertEqual(self.rewriter.calls[1:], [("aborted", "container start", 1)])
        self.assertEqual(self.daemon.peers, [])

        self.rewriter.calls = []
        self.rewriter.on_outgoing = lambda call, body: Outgoing(memo=2)
        client = self.client(START)
        client.transport.abortConnection()
        self.pump()
        self.assertEqual(self.rewriter.calls[1:], [("aborted", "container start", 2)])

    def test_aborted_when_the_daemon_does_not_answer(self) -> None:
        """What outgoing reserved is undone when no answer comes; the client learns why."""
        client = self.client(START)
        self.upstream.transport.loseConnection()
        self.pump()
        self.assert_error(client, 502)
        self.daemon.failure = LinkDown("down")
        self.assert_error(self.client(START), 503)
        self.assertEqual(self.rewriter.names, ["outgoing", "aborted"] * 2)

    def test_answered_is_not_also_aborted(self) -> None:
        """A client that leaves while its answer is held is not an abort: the daemon has done it."""
        seen: Deferred[None] = Deferred()
        self.rewriter.on_answered = lambda status, body: seen
        client = self.client(START)
        self.send(self.upstream, NO_CONTENT)
        client.transport.abortConnection()
        self.pump()
        seen.callback(None)
        self.assertEqual(self.rewriter.names, ["outgoing", "answered"])

    def test_query_is_replaced(self) -> None:
        """The rewriter may change the query."""
        self.rewriter.on_outgoing = lambda call, body: Outgoing(query=(("all", "1"),))
        self.client(b"GET /v1.45/containers/json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertTrue(self.upstream.received.startswith(b"GET /v1.45/containers/json?all=1 HTTP/1.1\r\n"))

    def test_an_answer_that_is_no_json(self) -> None:
        """An answer of another type passes; one that claims to be JSON and is not, is an error."""
        inspect = b"GET /v1.45/containers/web/json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client = self.client(inspect)
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK)
        client = self.client(inspect)
        self.send(self.upstream, answer({}).replace(b"{}", b"{,"))
        self.assert_error(client, 502, "cannot be read")


class LargeAnswerTests(RelayCase):
    limits = Limits(answer_document=1000, held=1000, stream_document=100)

    def test_documents_are_bounded(self) -> None:
        """A document answer over the limit is an error instead of memory."""
        client = self.client(b"GET /v1.45/containers/web/json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.send(self.upstream, answer({"a": "x" * 1000}))
        self.assert_error(client, 502, "more than the 1000 bytes")

    def test_stream_documents_are_bounded(self) -> None:
        """One document of a stream over the limit ends the stream, uncleanly."""
        client = self.client(EVENTS)
        self.send(self.upstream, CHUNKED + b'6e\r\n{"a": "' + b"x" * 100 + b'"}\r\n')
        self.assertIsNotNone(client.lost)


class EventsTests(RelayCase):
    def event(self, number: int) -> bytes:
        line = json.dumps({"id": number}).encode() + b"\n"
        return b"%x\r\n%b\r\n" % (len(line), line)

    def test_each_document_is_forwarded_at_once(self) -> None:
        """An event reaches the client with its last byte, changed, or is left out."""
        self.rewriter.on_streamed = lambda d: None if d["id"] == 2 else {**d, "x": 1}
        client = self.client(EVENTS)
        self.send(self.upstream, CHUNKED)
        self.assertEqual(client.take(), CHUNKED)
        self.send(self.upstream, self.event(1))
        self.assertEqual(client.take(), b'f\r\n{"id":1,"x":1}\n\r\n'.replace(b"f", b"%x" % 15, 1))
        self.send(self.upstream, self.event(2))
        self.assertEqual(client.take(), b"")
        third = self.event(3)
        self.send(self.upstream, third[:8])
        self.assertEqual(client.take(), b"")
        self.send(self.upstream, third[8:] + b"0\r\n\r\n")
        self.assertTrue(client.received.endswith(b'{"id":3,"x":1}\n\r\n0\r\n\r\n'))
        self.send(client, GET)
        self.send(self.upstream, OK)
        self.assertTrue(client.received.endswith(OK))

    def test_a_held_head(self) -> None:
        """Documents that come while the head is held follow it, changed like all others."""
        seen: Deferred[None] = Deferred()
        self.rewriter.on_answered = lambda status, body: seen
        client = self.client(EVENTS)
        self.send(self.upstream, CHUNKED + self.event(1))
        self.send(self.upstream, self.event(2))
        self.assertEqual(client.received, b"")
        seen.callback(None)
        self.pump()
        self.assertEqual(body_of(client.received), b'{"id":1}\n{"id":2}\n')

    def test_a_held_head_before_nonsense(self) -> None:
        """Nonsense that comes while the head is held cuts the stream, too."""
        seen: Deferred[None] = Deferred()
        self.rewriter.on_answered = lambda status, body: seen
        client = self.client(EVENTS)
        self.send(self.upstream, CHUNKED + b"5\r\nhello\r\n")
        seen.callback(None)
        self.pump()
        self.assertIsNotNone(client.lost)

    def test_http_1_0(self) -> None:
        """An HTTP/1.0 client gets the documents without chunks."""
        client = self.client(b"GET /events HTTP/1.0\r\n\r\n")
        self.send(self.upstream, b'HTTP/1.0 200 OK\r\n\r\n{"id": 1}\n')
        self.assertEqual(body_of(client.received), b'{"id":1}\n')

    def test_cut_in_the_middle(self) -> None:
        """A stream that ends within a document does not end cleanly."""
        client = self.client(EVENTS)
        self.send(self.upstream, CHUNKED + b'3\r\n{"a\r\n0\r\n\r\n')
        self.assertIsNotNone(client.lost)
        self.assertNotIn(b"0\r\n\r\n", client.received)

    def test_not_json(self) -> None:
        """A stream that is not JSON is cut."""
        client = self.client(EVENTS)
        self.send(self.upstream, CHUNKED + b"5\r\nhello\r\n")
        assert client.lost is not None
        client.lost.trap(ConnectionLost)

    def test_errors_pass(self) -> None:
        """An error instead of the stream passes as it is."""
        message = answer({"message": "bad filter"}, b"400 Bad Request")
        client = self.client(EVENTS)
        self.send(self.upstream, message)
        self.assertEqual(client.received, message)


class HijackTests(RelayCase):
    def hijacked(self, request: bytes = ATTACH, reply: bytes = UPGRADED) -> tuple:
        client = self.client(request)
        upstream = self.upstream
        self.assertEqual(upstream.take(), request)
        self.send(upstream, reply)
        self.advance(HEAD_ALONE_SECONDS)
        self.assertEqual(client.take(), reply)
        return client, upstream

    def test_raw_both_ways(self) -> None:
        """After 101 bytes pass in both directions; the answer keeps its reason phrase."""
        client, upstream = self.hijacked()
        self.send(client, b"GET / HTTP/1.1\r\n\r\n\0\xff")
        self.assertEqual(upstream.take(), b"GET / HTTP/1.1\r\n\r\n\0\xff")
        self.send(upstream, b"\1\0\0\0")
        self.assertEqual(client.take(), b"\1\0\0\0")
        self.assertEqual(self.site.counters.hijacks, 1)

    def test_early_bytes_are_held(self) -> None:
        """What the client sends before the 101 is handed over after it; what comes with the 101 is not lost."""
        client = self.client(ATTACH + b"early ")
        self.send(client, b"bytes")
        self.assertEqual(self.upstream.take(), ATTACH)
        self.send(self.upstream, UPGRADED + b"output")
        self.assertEqual(self.upstream.take(), b"early bytes")
        self.advance(HEAD_ALONE_SECONDS)
        self.assertEqual(client.received, UPGRADED + b"output")

    def test_output_follows_the_head(self) -> None:
        """Output that comes with the 101 of an attach or soon after it is a moment later, for the head to be read."""
        client = self.client(ATTACH)
        self.send(self.upstream, UPGRADED + b"out")
        self.assertEqual(client.take(), UPGRADED)
        self.send(self.upstream, b"put")
        self.send(client, b"input does not wait")
        self.assertEqual((client.received, self.upstream.take()[len(ATTACH) :]), (b"", b"input does not wait"))
        self.upstream.transport.loseWriteConnection()
        self.advance(HEAD_ALONE_SECONDS)
        self.assertEqual(client.received, b"output")
        self.assertTrue(client.ended)

    def test_a_client_that_leaves_at_the_head(self) -> None:
        """A client that leaves before the output follows leaves nothing behind."""
        client = self.client(ATTACH)
        self.send(self.upstream, UPGRADED + b"out")
        client.transport.abortConnection()
        self.pump()
        self.assertFalse(self.upstream.transport.other.connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_old_style(self) -> None:
        """Without an upgrade, a 200 without framing on attach is a hijack too."""
        request = b"POST /containers/web/attach?stream=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        raw = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
        client, upstream = self.hijacked(request, raw)
        self.send(client, b"in")
        self.send(upstream, b"out")
        self.assertEqual((client.received, upstream.received), (b"out", b"in"))

    def test_logs_are_no_hijack(self) -> None:
        """The same content type with chunks, or on another path, is an ordinary answer."""
        client = self.client(GET.replace(b"/_ping", b"/containers/web/logs"))
        message = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
        self.send(self.upstream, message + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        self.send(client, GET)
        self.send(self.upstream, OK)
        self.assertTrue(client.received.endswith(OK))

    def test_exec_start_has_a_body(self) -> None:
        """The document of exec start goes before the tunnel; the rewriter sees the 101 before the client."""
        seen: Deferred[None] = Deferred()
        self.rewriter.on_answered = lambda status, body: seen
        request = post(b"/v1.45/exec/1/start", b'{"Tty":false}', b"Connection: Upgrade\r\nUpgrade: tcp\r\n")
        client = self.client(request + b"early")
        self.assertTrue(self.upstream.take().endswith(b'{"Tty":false}'))
        self.send(self.upstream, UPGRADED)
        self.send(self.upstream, b"out")
        self.assertEqual((client.received, self.upstream.received), (b"", b""))
        seen.callback(None)
        self.advance(HEAD_ALONE_SECONDS)
        self.assertEqual((client.received, self.upstream.received), (UPGRADED + b"out", b"early"))

    def test_a_held_hijack_whose_sides_leave(self) -> None:
        """While a hijack is held, a client that leaves frees the daemon; a daemon that ends is seen after the start."""
        request = post(b"/v1.45/exec/1/start", b"{}", b"Connection: Upgrade\r\nUpgrade: tcp\r\n")
        seen: Deferred[None] = Deferred()
        self.rewriter.on_answered = lambda status, body: seen
        client = self.client(request)
        self.send(self.upstream, UPGRADED)
        client.transport.abortConnection()
        self.pump()
        self.assertIsNotNone(self.upstream.lost)
        seen.callback(None)

        seen = Deferred()
        client = self.client(request)
        self.send(self.upstream, UPGRADED + b"out")
        self.upstream.transport.loseConnection()
        self.pump()
        seen.callback(None)
        self.advance(HEAD_ALONE_SECONDS)
        self.assertEqual(client.received, UPGRADED + b"out")
        self.assertTrue(client.ended)

    def test_an_upgrade_that_is_not_granted(self) -> None:
        """When the daemon answers otherwise, what follows is the next request, as it is for the daemon."""
        client = self.client(ATTACH + GET)
        self.send(self.upstream, answer({"message": "No such container"}, b"404 Not Found"))
        self.assertEqual(self.upstream.received, ATTACH + GET)
        self.send(self.upstream, OK)
        self.assertTrue(client.received.endswith(OK))

    def test_any_protocol(self) -> None:
        """h2c on /session and /grpc (with the empty Host of Docker's clients), and WebSockets, are tunnels too."""
        for path, protocol in ((b"/session", b"h2c"), (b"/grpc", b"h2c")):
            request = b"POST %b HTTP/1.1\r\nHost: \r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % (path, protocol)
            self.hijacked(request, b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        request = (
            b"GET /containers/web/attach/ws HTTP/1.1\r\nHost: localhost\r\nSec-Websocket-Key: x\r\n"
            b"Origin: http://localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        self.hijacked(request, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")

    def test_101_before_the_request_is_complete(self) -> None:
        """A switch of protocols in the middle of a request's body is an error on both sides."""
        request = post(b"/v1.45/exec/1/start", b"{}", b"Connection: Upgrade\r\nUpgrade: tcp\r\n")
        client = self.client(request[:-1])
        self.send(self.upstream, UPGRADED)
        self.assert_error(client, 502)
        self.assertIsNotNone(self.upstream.lost)

    def test_much_early_input(self) -> None:
        """Early input beyond what is read ahead waits with the client, and flows when the tunnel starts."""
        client = self.client(ATTACH)
        for _ in range(10):
            self.send(client, b"x" * HIGH_WATER)
        self.assertGreater(client.transport.buffered, 5 * HIGH_WATER)
        self.send(self.upstream, UPGRADED)
        self.assertEqual(self.upstream.received, ATTACH + b"x" * 10 * HIGH_WATER)

    def test_101_unasked(self) -> None:
        """A 101 that nobody asked for is not HTTP."""
        client = self.client(GET)
        self.send(self.upstream, UPGRADED)
        self.assert_error(client, 502)

    def test_half_close_each_way(self) -> None:
        """Each direction of a tunnel ends on its own; when both have ended, both connections do."""
        client, upstream = self.hijacked()
        client.send(b"last")
        client.transport.loseWriteConnection()
        self.pump()
        self.assertTrue(upstream.ended)
        self.assertEqual(upstream.received, b"last")
        self.send(upstream, b"answer")
        upstream.transport.loseWriteConnection()
        self.pump()
        self.assertEqual(client.received, b"answer")
        self.assertIsNotNone(client.transport.other.protocol)
        self.assertFalse(client.transport.other.connected)
        self.assertFalse(upstream.transport.other.connected)

        client, upstream = self.hijacked()
        upstream.transport.loseWriteConnection()
        self.pump()
        self.assertTrue(client.ended)
        self.send(client, b"more")
        self.assertEqual(upstream.received, b"more")

    def test_a_half_close_before_the_answer(self) -> None:
        """A client that half-closes before the 101 has that passed on after its early bytes."""
        client = self.client(ATTACH + b"all there is")
        client.transport.loseWriteConnection()
        self.pump()
        self.send(self.upstream, UPGRADED)
        self.assertTrue(self.upstream.ended)
        self.assertEqual(self.upstream.received, ATTACH + b"all there is")

    def test_a_half_close_while_the_answer_is_held(self) -> None:
        """A half-close while the rewriter looks at the 101 is passed on after the early bytes, too."""
        seen: Deferred[None] = Deferred()
        self.rewriter.on_answered = lambda status, body: seen
        client = self.client(post(b"/v1.45/exec/1/start", b"{}", b"Connection: Upgrade\r\nUpgrade: tcp\r\n") + b"early")
        self.send(self.upstream, UPGRADED)
        client.transport.loseWriteConnection()
        self.pump()
        self.assertFalse(self.upstream.ended)
        seen.callback(None)
        self.pump()
        self.assertTrue(self.upstream.received.endswith(b"{}early"))
        self.assertTrue(self.upstream.ended)

    def test_the_daemon_leaves(self) -> None:
        """A busy client still reads everything when the daemon is gone: it is drained, not cut."""
        client, upstream = self.hijacked()
        upstream.send(b"last words")
        self.pump()
        upstream.transport.abortConnection()
        client.send(b"x" * 100_000)
        self.pump()
        self.assertEqual(client.received, b"last words")
        self.assertTrue(client.ended)
        self.assertIsNone(client.lost)
        self.advance(self.limits.linger_seconds)
        self.assertIsNotNone(client.lost)

    def test_the_link_breaks(self) -> None:
        """When the link breaks, the client's connection breaks: it did not see everything."""
        client, upstream = self.hijacked()
        upstream.transport.other.lost(LinkDown("gone"))
        self.pump()
        assert client.lost is not None
        client.lost.trap(ConnectionLost)

    def test_the_client_leaves(self) -> None:
        """A client that is cut frees the daemon's connection; what it had sent is flushed for a while first."""
        client, upstream = self.hijacked()
        client.transport.abortConnection()
        self.pump()
        self.assertTrue(upstream.closed_cleanly)
        self.assertFalse(upstream.transport.other.connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])

        client, upstream = self.hijacked()
        upstream.transport.pauseProducing()
        self.send(client, b"x" * 1000)
        client.transport.abortConnection()
        self.pump()
        self.assertTrue(upstream.transport.other.connected)
        self.advance(self.limits.linger_seconds)
        self.assertFalse(upstream.transport.other.connected)

    def test_the_client_vanishes(self) -> None:
        """A client that closes altogether is noticed at once, and one that half-closed before by the reaper."""
        client, upstream = self.hijacked()
        client.transport.vanish()
        self.pump()
        self.assertFalse(upstream.transport.other.connected)

        client, upstream = self.hijacked()
        client.transport.loseWriteConnection()
        self.pump()
        client.transport.vanish()
        self.assertTrue(upstream.transport.other.connected)
        self.advance(self.limits.reap_seconds)
        self.assertFalse(upstream.transport.other.connected)

    def test_quiet_tunnels_last(self) -> None:
        """Nothing ends a tunnel for being quiet, nor a quiet answer."""
        client, upstream = self.hijacked()
        waiting = self.client(GET)
        for _ in range(20):
            self.advance(3600)
        self.send(upstream, b"still here")
        self.assertEqual(client.received, b"still here")
        self.assertIsNone(waiting.lost)
