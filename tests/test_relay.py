"""rda.proxy.relay: what is passed on as it is, in both directions, however slow or short-lived either side is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost, ConnectionRefusedError

from rda.errors import LinkDown
from rda.proxy.tunnel import HEAD_ALONE_SECONDS
from tests.memory_network import HIGH_WATER
from tests.relay_case import ATTACH, CHUNKED, EVENTS, GET, OK, UPGRADED, RelayCase, answer, post

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
