"""rda.proxy.relay: documents that are read whole, changed and sent on; events, changed one by one."""

from __future__ import annotations

import json

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost

from rda.docker.routes import Outgoing
from rda.errors import LinkDown, Refused
from rda.limits import Limits
from tests.memory_network import HIGH_WATER
from tests.relay_case import CHUNKED, EVENTS, GET, OK, RelayCase, answer, body_of, post

CREATE = b"/v1.45/containers/create"


START = b"POST /v1.45/containers/web/start HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


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
