"""rda.proxy.tunnel: connections that stop being HTTP, such as attached terminals."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost

from rda.access.caller import Caller, Proof
from rda.errors import LinkDown
from rda.proxy.authentication import Visitor
from rda.proxy.tunnel import HEAD_ALONE_SECONDS
from tests.memory_network import HIGH_WATER, Peer
from tests.relay_case import ATTACH, GET, OK, UPGRADED, RelayCase, answer, post


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

    def leaving(self) -> Peer:
        """A hijacked connection whose client has left, which looks like a half-close; return the daemon's end."""
        self.left = False
        visitor = Visitor(Caller("alice", Proof.LOOPBACK), has_left=lambda: self.left)
        self.site_options = {"identify": lambda _: visitor}
        self.setUp()
        client, upstream = self.hijacked()
        client.transport.loseWriteConnection()
        self.advance(self.limits.reap_seconds)
        self.assertTrue(upstream.transport.other.connected)
        self.left = True
        return upstream

    def test_the_client_leaves_over_tcp(self) -> None:
        """What looks like a half-close ends the daemon's side once the kernel says that nobody is there."""
        upstream = self.leaving()
        self.advance(self.limits.reap_seconds)
        self.assertFalse(upstream.transport.other.connected)

    def test_a_client_that_left_does_not_delay_the_stop(self) -> None:
        """Nor does a stop wait for it."""
        upstream = self.leaving()
        stopped = self.site.drain(60)
        self.pump()
        self.successResultOf(stopped)
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
