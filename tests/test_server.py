"""The door: who may ask what, limits, timers, rda's own resources, and stopping."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv6Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource

from rda.access.caller import Caller, Proof
from rda.docker.routes import Call
from rda.errors import Refused
from rda.limits import Limits
from rda.proxy.authentication import Visitor
from rda.proxy.tunnel import HEAD_ALONE_SECONDS
from tests.adversarial import HOST, MALFORMED, MALFORMED_CHUNKS, get
from tests.memory_network import Peer
from tests.relay_case import GET, OK, RelayCase, answer, post

ATTACH = b"POST /containers/web/attach HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
UPGRADED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


class DoorTests(RelayCase):
    site_options = {"hosts": ("rda.example", "10.0.0.7")}

    def test_malformed_heads_are_refused(self) -> None:
        """Each malformed request is answered 4xx, and nothing of it reaches the daemon.

        Where it is not clear where it ends, neither does anything that follows it.
        """
        for name, request in MALFORMED.items():
            client = self.client(request)
            self.assertRegex(client.received, rb"^HTTP/1.1 4\d\d ", name)
            self.assertEqual(self.daemon.peers, [], name)
            understood = b"Connection: close" not in client.received
            self.send(client, GET)
            self.assertEqual([peer.received for peer in self.daemon.peers], [GET] * understood, name)
            client.transport.abortConnection()
            self.pump()
            self.daemon.peers.clear()

    def test_malformed_chunks_are_refused(self) -> None:
        """A body with a malformed chunk is never completed for the daemon."""
        head = b"POST /build HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        for name, body in MALFORMED_CHUNKS.items():
            client = self.client(head + body)
            self.assertRegex(client.received, rb"^HTTP/1.1 400 ", name)
            self.assertIsNotNone(self.upstream.lost, name)
            self.assertNotIn(b"0\r\n\r\n", self.upstream.received, name)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_malformed_document_body(self) -> None:
        """A malformed chunk in a document is refused too, and reaches nobody."""
        head = b"POST /containers/create HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.assert_error(self.client(head + b"x\r\n{}\r\n0\r\n\r\n"), 400)
        self.assertEqual((self.daemon.peers, self.rewriter.calls), ([], []))

    def test_folded_fields_are_unfolded(self) -> None:
        """A folded field is sent on as one line."""
        self.client(get(HOST, b"A: b", b"  c"))
        self.assertIn(b"\r\nA: b c\r\n", self.upstream.received)

    def test_odd_paths_are_normalised(self) -> None:
        """The daemon gets the path on which the decision was made."""
        for path in (b"/containers/%63reate", b"/containers%2fcreate"):
            self.client(post(path, b"{}"))
            self.assertTrue(self.upstream.received.startswith(b"POST /containers/create HTTP/1.1\r\n"), path)

    def test_paths_that_the_daemon_redirects(self) -> None:
        """A path with an empty or a dotted segment is redirected to its normal form, as the daemon does it."""
        for path in (b"//containers//create", b"/./containers/x/../create", b"/%2e%2e/containers/%2E/create"):
            for method in (b"POST", b"HEAD"):
                client = self.client(b"%b %b?name=a%%20b HTTP/1.1\r\nHost: localhost\r\n\r\n" % (method, path))
                redirection = b"HTTP/1.1 301 Moved Permanently\r\nLocation: /containers/create?name=a%20b\r\n"
                self.assertEqual(client.take(), redirection + b"Content-Length: 0\r\n\r\n", path)
        self.assertEqual(self.daemon.peers, [])
        self.client(get(HOST, target=b"/containers/a.b..c/%2f"))
        self.client(get(HOST, target=b"/containers/.a"))
        self.assertTrue(self.upstream.received.startswith(b"GET /containers/.a HTTP"))

    def test_bare_line_feeds_wait_for_the_head_timer(self) -> None:
        """A head that never ends is given up."""
        client = self.client(b"GET /_ping HTTP/1.1\nHost: localhost\n\n")
        self.assertEqual(client.received, b"")
        self.advance(self.limits.head_seconds)
        self.assert_error(client, 408, "head_seconds in [limits]")

    def test_hosts(self) -> None:
        """The listener answers to its names and addresses, with any port, and to no name; not to others."""
        for host in (b"localhost:23750", b"127.0.0.1", b"[::1]:1", b"LOCALHOST", b"rda.example", b"10.0.0.7:80", b""):
            client = self.client(get(b"Host: " + host))
            self.send(self.upstream, OK)
            self.assertEqual(client.received, OK, host)
        for host in (b"evil.example", b"localhost.evil.example", b"10.0.0.8", b"[::2]", b"127.0.0.1.evil"):
            self.assert_error(self.client(get(b"Host: " + host)), 403)

    def test_hosts_of_a_unix_socket(self) -> None:
        """Clients of a UNIX-domain socket may send any one Host: no browser reaches it."""
        client = self.client(get(b"Host: api.moby.localhost"), unix=True)
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK)

    def test_browsers(self) -> None:
        """What a page in a browser can send is refused, WebSockets of other origins included."""
        for field in (
            b"Origin: http://evil.example",
            b"Origin: null",
            b"Sec-Fetch-Site: cross-site",
            b"Sec-Fetch-Site: same-origin",
            b"Origin: http://localhost",
        ):
            self.assert_error(self.client(get(HOST, field)), 403)
            self.assert_error(self.client(get(HOST, field), unix=True), 403)
        upgrade = (b"Connection: Upgrade", b"Upgrade: websocket")
        target = b"/containers/web/attach/ws"
        for origin in (b"http://evil.example", b"http://localhost:3000", b"null", b"file://localhost"):
            self.assert_error(self.client(get(HOST, b"Origin: " + origin, *upgrade, target=target)), 403)
        self.assertEqual(self.daemon.peers, [])
        self.client(get(HOST, b"Origin: http://localhost", *upgrade, target=target))
        self.assertEqual(len(self.daemon.peers), 1)
        self.client(get(HOST, b"Sec-Fetch-Site: none"))
        self.assertEqual(len(self.daemon.peers), 2)

    def test_a_refusal_keeps_the_connection(self) -> None:
        """After a request that is understood and refused, the next one is served."""
        client = self.client(get(HOST, b"Origin: null") + GET)
        self.assertIn(b"403 Forbidden", client.take())
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK)

    def test_a_refused_body_is_drained(self) -> None:
        """A refused request with a body is answered at once, and its body read until the client has the answer."""
        client = self.client(post(b"/build", b"x" * 100_000, b"Origin: null\r\n")[:-50_000])
        self.assertEqual(self.assert_error(client, 403)["connection"], b"close")
        self.assertIsNone(client.lost)
        self.send(client, b"x" * 50_000 + GET)
        self.assertEqual(self.daemon.peers, [])
        self.advance(self.limits.linger_seconds)
        self.assertIsNotNone(client.lost)

    def test_head_refusals_have_no_body(self) -> None:
        """An error in answer to HEAD has a length, and no body."""
        client = self.client(get(HOST, b"Origin: null").replace(b"GET", b"HEAD"))
        self.assertTrue(client.received.endswith(b"\r\n\r\n"))
        self.assertIn(b"Content-Length: ", client.received)

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(
            st.sampled_from(
                [
                    b"GET",
                    b"POST",
                    b" ",
                    b"/",
                    b"//",
                    b"/_ping",
                    b"/build",
                    b"HTTP/1.1",
                    b"HTTP/1.0",
                    b"\r\n",
                    b"\n",
                    b"\r",
                    b"Host: localhost",
                    b"Host:",
                    b"Content-Length: 3",
                    b"Transfer-Encoding: chunked",
                    b"abc",
                    b"3\r\n",
                    b"0",
                    b"Connection: close",
                    b"Expect: 100-continue",
                    b":",
                    b"\t",
                    b"\0",
                    b"\xff",
                    b"Upgrade: tcp",
                    b"{}",
                ]
            ),
            max_size=25,
        ),
        st.integers(1, 60),
    )
    def test_noise(self, parts: list[bytes], size: int) -> None:
        """Whatever bytes come, however split: no traceback, nothing left, and only good heads reach the daemon."""
        RelayCase.setUp(self)
        client, data = self.client(), b"".join(parts)
        for start in range(0, len(data), size):
            if client.lost is None and not client.ended:
                self.send(client, data[start : start + size])
        self.advance(self.limits.head_seconds)
        for peer in self.daemon.peers:
            self.assertRegex(peer.received, rb"^(GET|POST) /[!-~]* HTTP/1\.[01]\r\n([!-9;-~]+: ?[^\r\n\0]*\r\n)*\r\n")
        self.assertEqual(self.flushLoggedErrors(), [])
        self.check_nothing_is_left()


class LimitTests(RelayCase):
    limits = Limits(connections=3, refusals=2, head=1000, header_count=10)

    def test_long_heads(self) -> None:
        """A head over the limit is 431, with the key that raises it: a long line, many short ones, too many fields."""
        for request, key in (
            (get(HOST, b"A: " + b"b" * 2000), "head"),
            (get(HOST, target=b"/" + b"a" * 2000), "head"),
            (b"G" * 2000, "head"),
            (get(HOST, *[b"A%d: " % n + b"b" * 300 for n in range(5)]), "head"),
            (get(HOST, *[b"A: b"] * 20), "header_count"),
        ):
            client = self.client(request)
            self.assert_error(client, 431, f"; {key} in [limits] of rda.toml raises that")
            client.transport.abortConnection()
            self.pump()

    def test_too_many_connections(self) -> None:
        """Beyond the limit a connection is told so; beyond some of those it is closed; when one ends, there is room."""
        clients = [self.client() for _ in range(3)]
        refused = [self.client(), self.client()]
        for client in refused:
            self.assert_error(client, 503, "3 connections already; connections in [limits] of rda.toml raises that")
        self.assertEqual(self.client().received, b"")
        self.assertIsNotNone(self.clients[-1].lost)
        self.advance(self.limits.linger_seconds)
        clients[0].transport.loseConnection()
        self.pump()
        self.assertEqual(self.site.connections, 2)
        client = self.client(GET)
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK)

    def test_slow_heads(self) -> None:
        """A head has to be complete in time, however steadily it trickles; the next one has its own time."""
        client = self.client(GET)
        self.send(self.upstream, OK)
        self.advance(self.limits.idle_seconds - 1)
        self.assertIsNone(client.lost)
        client.take()
        for byte in b"GET /":
            self.send(client, bytes([byte]))
            self.advance(self.limits.head_seconds / 5)
        self.assert_error(client, 408)

    def test_idle_connections(self) -> None:
        """A connection without a request is closed after a long while, silently."""
        client = self.client()
        self.advance(self.limits.idle_seconds)
        self.assertEqual(client.received, b"")
        self.assertTrue(client.closed_cleanly)

    def test_bodies_may_be_slow(self) -> None:
        """No timer runs while a body is on its way."""
        client = self.client(post(b"/build", b"abc")[:-3])
        for byte in b"abc":
            self.advance(3600)
            self.send(client, bytes([byte]))
        self.assertTrue(self.upstream.received.endswith(b"\r\n\r\nabc"))


class KeepAliveTests(RelayCase):
    def test_the_kernel_watches_peers_of_other_machines(self) -> None:
        """A connection from another machine has keepalive probes, soon enough; one from this machine needs none."""
        for host, watched in (("192.0.2.1", 1), ("2001:db8::1", 1), ("fe80::1%eth0", 1), ("127.0.0.1", 0), ("::1", 0)):
            with socket.socket() as connection:
                transport = StringTransport(peerAddress=IPv6Address("TCP", host, 50000))
                transport.socket = connection
                channel = self.site.buildProtocol(None)
                channel.makeConnection(transport)
                channel.connectionLost(Failure(ConnectionDone()))
                self.assertEqual(connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), watched, host)
                if watched:
                    self.assertEqual(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 60)


def unwelcome(transport: Any) -> Visitor:
    return Visitor(Refused(f"{transport.getPeer().host} is not welcome"))


class UnwelcomeTests(RelayCase):
    site_options = {"identify": unwelcome}
    limits = replace(Limits(), refusals=2)

    def test_refused_peers(self) -> None:
        """A peer that is not welcome is told why, whatever it asks, and has no part in anything."""
        client = self.client(GET)
        self.assert_error(client, 403, "127.0.0.1 is not welcome")
        self.assertEqual((self.site.connections, self.daemon.peers), (0, []))
        self.assertTrue(client.closed_cleanly)

    def test_the_refusal_answers_something(self) -> None:
        """Nothing is said before there is a request, which it then answers; nor is one waited for for ever."""
        client = self.client()
        self.assertEqual(client.received, b"")
        self.advance(self.limits.head_seconds)
        self.assertTrue(client.closed_cleanly)

    def test_a_large_head(self) -> None:
        """Little is read of a peer that is not welcome."""
        client = self.client(b"GET /_ping HTTP/1.1\r\nX: " + b"x" * (self.limits.refused_head + 1))
        self.assert_error(client, 431)
        self.advance(self.limits.linger_seconds)

    def test_a_body(self) -> None:
        """A refused peer that sends a body reads the refusal."""
        client = self.client(b"POST /build HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nxxx")
        self.assert_error(client, 403, "not welcome")
        self.advance(self.limits.linger_seconds)
        self.assertTrue(client.closed_cleanly)

    def test_few_at_a_time(self) -> None:
        """Only a few of them are listened to at a time."""
        waiting = [self.client(), self.client()]
        third = self.client(GET)
        self.assertEqual((third.received, third.lost is None), (b"", False))
        for client in waiting:
            client.transport.abortConnection()
        self.pump()
        self.assert_error(self.client(GET), 403)


class SomeUnwelcomeTests(RelayCase):
    """Half of those who come are not welcome, and others have yet to say who they are."""

    limits = replace(Limits(), refusals=1, connections=4)

    def setUp(self) -> None:
        self.next: Visitor = Visitor(Caller("me", Proof.SOCKET, 1000, own=True))
        self.site_options = {"identify": lambda transport: self.next}
        super().setUp()

    def test_they_keep_nobody_out(self) -> None:
        """However many of them there are, those who are welcome come in."""
        welcome = self.next
        self.next = Visitor(Refused("no"))
        for _ in range(5):
            self.client()
        self.next = welcome
        self.client(GET)
        self.send(self.upstream, OK)
        self.assertEqual(self.clients[-1].received, OK)

    def test_nor_do_strangers(self) -> None:
        """Those who have proved nothing yet get half of the room; a proof makes room for another of them."""
        welcome, me = self.next, Caller("me", Proof.TOKEN)
        strangers = []
        for _ in range(3):
            self.next = Visitor(Refused("send a token"), lambda token: me)
            strangers.append(self.client())
        self.assert_error(strangers[2], 503)
        self.next = welcome
        self.client(GET)
        self.send(self.upstream, OK)
        self.assertEqual(self.clients[-1].received, OK)
        self.send(strangers[0], get(HOST, b"Authorization: Bearer rda_x"))
        self.send(self.upstream, OK)
        self.next = Visitor(Refused("send a token"), lambda token: me)
        self.assertEqual(self.client().received, b"")
        self.assertIsNone(self.clients[-1].lost)
        self.advance(self.limits.linger_seconds)


class CallerTests(RelayCase):
    site_options = {"identify": lambda transport: Visitor(Caller("alice", Proof.SOCKET, 1000))}

    def test_calls_carry_their_caller(self) -> None:
        """Whoever decides about a call sees who makes it."""
        seen: list[Call] = []
        outgoing = self.rewriter.outgoing

        def look(call: Call, body: Any) -> Any:
            seen.append(call)
            return outgoing(call, body)

        self.rewriter.outgoing = look  # type: ignore[method-assign]
        self.client(post(b"/containers/create", b"{}"))
        self.assertEqual([call.caller.user for call in seen], ["alice"])


class Page(Resource):
    """A page of rda's own, which tells what it was asked."""

    isLeaf = True

    def render_GET(self, request: IRequest) -> bytes:
        return b"page " + b"/".join(request.postpath)

    def render_POST(self, request: IRequest) -> bytes:
        return request.content.read()


class OwnTests(RelayCase):
    site_options = {"own": Page()}

    def test_own_pages(self) -> None:
        """Requests under /_rda/ are rda's own; the connection serves both kinds."""
        client = self.client(get(HOST, target=b"/_rda/status"))
        self.assertIn(b"200 OK", client.received)
        self.assertTrue(client.take().endswith(b"page status"))
        self.send(client, post(b"/_rda/x", b"body", b"Expect: 100-continue\r\n"))
        self.assertIn(b"\r\nbody", client.take().replace(b"\r\n\r\n", b"\r\n"))
        self.send(client, GET)
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK)

    def test_chunked_body(self) -> None:
        """A chunked body is read decoded, and pipelined requests follow."""
        request = b"POST /_rda/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        client = self.client(request + b"3\r\nabc\r\n0\r\n\r\n" + get(HOST, target=b"/_rda/y"))
        self.assertIn(b"\r\n\r\nabc", client.received)
        self.assertTrue(client.received.endswith(b"page y"))

    def test_guarded_and_bounded(self) -> None:
        """A browser may not ask here either; a body is bounded, malformed chunks are refused."""
        self.assert_error(self.client(get(HOST, b"Origin: http://evil", target=b"/_rda/status")), 403)
        self.assert_error(self.client(post(b"/_rda/x", b"x" * (self.limits.own_body + 1))), 413, "own_body in [limits]")
        request = b"POST /_rda/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.assert_error(self.client(request + b"x\r\n"), 400)
        self.assertEqual(self.daemon.peers, [])


class NoOwnTests(RelayCase):
    def test_nothing_there(self) -> None:
        """Without pages of rda's own, their paths are 404 and never relayed."""
        for path in (b"/_rda/status", b"/_rda", b"/_rda%2fx"):
            client = self.client(get(HOST, target=path))
            self.assertIn(b"404 Not Found", client.received)
            self.assertIn("rda: ", json.loads(client.received.partition(b"\r\n\r\n")[2])["message"])
        self.assertEqual(self.daemon.peers, [])


class DrainTests(RelayCase):
    def test_nothing_to_wait_for(self) -> None:
        """Without clients there is nothing to wait for; idle ones are closed at once."""
        idle = self.client()
        done = self.site.drain(10)
        self.pump()
        self.successResultOf(done)
        self.assertTrue(idle.closed_cleanly)
        self.successResultOf(self.site.drain(10))

    def test_running_requests_finish(self) -> None:
        """Running answers and tunnels end in their own time; new requests are told to come back."""
        tunnel = self.client(ATTACH)
        tunnel_upstream = self.upstream
        self.send(tunnel_upstream, UPGRADED)
        self.advance(HEAD_ALONE_SECONDS)
        client = self.client(GET)
        done = self.site.drain(10)
        self.pump()
        late = self.client(GET)
        self.assertIn("retry-after", self.assert_error(late, 503, "stopping"))
        self.assertTrue(late.closed_cleanly)
        self.send(self.upstream, OK)
        self.assertIn(b"Connection: close", client.received)
        self.assertTrue(client.received.endswith(b"OK"))
        self.assertTrue(client.closed_cleanly)
        self.assertNoResult(done)
        self.send(tunnel, b"x")
        tunnel.transport.loseWriteConnection()
        self.pump()
        tunnel_upstream.transport.loseConnection()
        self.pump()
        self.successResultOf(done)

    def test_what_does_not_end_is_cut(self) -> None:
        """After its time, what is still running is cut."""
        client = self.client(GET)
        done = self.site.drain(10)
        self.advance(9)
        self.assertNoResult(done)
        self.advance(1)
        self.successResultOf(done)
        assert client.lost is not None
        client.lost.trap(ConnectionLost)
        self.assertIsNotNone(self.upstream.lost)


class SecretsTests(RelayCase):
    def test_credentials_are_not_logged(self) -> None:
        """Request heads, which hold registry credentials, appear in no log event: in success, refusal or failure."""
        from twisted.logger import globalLogPublisher

        events: list[object] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        secret = b"X-Registry-Auth: c2VjcmV0"
        self.client(get(HOST, secret, target=b"/c2VjcmV0"))
        self.send(self.upstream, OK)
        self.client(get(HOST, secret, b"Origin: null"))
        self.client(get(HOST, secret, b"A : b"))
        self.client(get(HOST, secret))
        self.upstream.transport.abortConnection()
        self.pump()
        self.rewriter.on_outgoing = lambda call, body: 1 / 0
        self.client(post(b"/containers/create", b"{}", secret + b"\r\n"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertNotIn("c2VjcmV0", repr(events))


class CounterTests(RelayCase):
    def test_bytes_each_way(self) -> None:
        """Bytes are counted as they are sent, tunnels included."""
        self.client(GET)
        self.send(self.upstream, OK)
        self.assertEqual((self.site.counters.to_daemon, self.site.counters.to_client), (len(GET), len(OK)))
        client: Peer = self.client(ATTACH)
        self.send(self.upstream, UPGRADED)
        self.send(client, b"12345")
        client.transport.abortConnection()
        self.pump()
        self.assertEqual(self.site.counters.to_daemon, len(GET) + len(ATTACH) + 5)
        self.assertEqual(self.site.counters.to_client, len(OK) + len(UPGRADED))
        self.client(get(HOST, b"Origin: null"))
        self.client(b"x\r\n")
        self.assertEqual((self.site.counters.requests, self.site.counters.refused), (3, 2))
        self.send(self.client(GET), b"")
        self.send(self.upstream, answer({}))
