"""Every line of the table of routes, in each way that its exchange can go."""

from __future__ import annotations

from collections.abc import Iterator

from twisted.internet.error import ConnectionLost

from rda.docker.routes import ROUTES, Answer, RequestBody, Route
from rda.errors import LinkDown, Refused
from tests.memory_network import Peer
from tests.relay_case import GET, OK, RelayCase, answer, body_of, post

NOT_FOUND = answer({"message": "no such thing"}, b"404 Not Found")
SWITCHED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
STREAM = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"id": 1}\r\n'

#: A good answer of each kind, and what the client gets of it: the whole, or its body.
ANSWERS = {
    Answer.STREAM: OK,
    Answer.HELD: OK,
    Answer.DOCUMENT: answer({"id": 1}),
    Answer.DOCUMENTS: STREAM + b"0\r\n\r\n",
    Answer.HIJACK: SWITCHED,
}


class RouteTests(RelayCase):
    def routes(self) -> Iterator[tuple[Route, bytes, Peer]]:
        """Every route, with a request of it and a client that has sent that."""
        for route in ROUTES:
            path = b"/v1.45" + route.pattern.format(ref="web", any="x").encode()
            more = b"Connection: Upgrade\r\nUpgrade: tcp\r\n" if route.answer is Answer.HIJACK else b""
            body = b'{"a":1}' if route.body is RequestBody.DOCUMENT else b""
            request = post(path, body, more).replace(b"POST", route.method, 1)
            self.rewriter.calls = []
            with self.subTest(route=route.name):
                yield route, request, self.client(request)

    def told(self, route: Route, *how: str) -> None:
        """The rewriter was told this, if it is asked about the route at all."""
        self.assertEqual(self.rewriter.names, ["outgoing", *how] if route.asks else list(how))

    def test_answered(self) -> None:
        """A request reaches the daemon in the words that it came in, and a good answer the client."""
        for route, request, client in self.routes():
            self.assertEqual(self.upstream.take(), request)
            self.send(self.upstream, ANSWERS[route.answer])
            if route.answer in (Answer.DOCUMENT, Answer.DOCUMENTS) and route.method != b"HEAD":
                self.assertEqual(body_of(client.received), b'{"id":1}\n')
            elif route.method == b"HEAD":
                self.assertEqual(client.received, OK.removesuffix(b"OK"))
            else:
                self.assertEqual(client.received, ANSWERS[route.answer])
            held = route.asks or route.answer in (Answer.HELD, Answer.DOCUMENT)
            self.told(route, *["answered"] * held)
            client.transport.abortConnection()
            self.pump()

    def test_refused_by_the_daemon(self) -> None:
        """The daemon's own errors reach the client in its words, and the connections serve the next request."""
        for route, request, client in self.routes():
            upstream = self.upstream
            self.assertTrue(upstream.take().endswith(request[-20:]))
            self.send(upstream, NOT_FOUND if route.method != b"HEAD" else NOT_FOUND.partition(b"{")[0])
            self.assertTrue(client.take().startswith(b"HTTP/1.1 404 Not Found\r\n"))
            if route.method != b"HEAD":
                self.send(client, GET)
                self.assertEqual(upstream.take(), GET)
                self.send(upstream, OK)
                self.assertEqual(client.received, OK)

    def test_refused_by_rda(self) -> None:
        """What the rewriter refuses is answered with its reason, and never reaches the daemon."""

        def refuse(call: object, body: object) -> None:
            raise Refused("not that")

        self.rewriter.on_outgoing = refuse
        for route, _, client in self.routes():
            if route.asks:
                self.assertTrue(client.received.startswith(b"HTTP/1.1 403 Forbidden\r\n"))
                self.told(route)
            else:
                client.transport.abortConnection()
                self.pump()
        self.assertEqual(len(self.daemon.peers), sum(not route.asks for route in ROUTES))

    def test_no_link(self) -> None:
        """Without a link the answer is 503, with Retry-After, and what was reserved is given back."""
        self.daemon.failure = LinkDown("the link is down")
        for route, _, client in self.routes():
            self.assertTrue(client.received.startswith(b"HTTP/1.1 503 Service Unavailable\r\n"))
            self.assertIn(b"\r\nRetry-After: 2\r\n", client.received)
            self.told(route, *["aborted"] * route.asks)

    def test_the_client_leaves(self) -> None:
        """A client that leaves before its answer frees the daemon, and what was reserved."""
        for route, _, client in self.routes():
            client.transport.abortConnection()
            self.pump()
            self.assertIsNotNone(self.upstream.lost)
            self.told(route, *["aborted"] * route.asks)

    def test_the_daemon_leaves(self) -> None:
        """An answer that is cut short never looks whole; before its head, a safe request is tried once more."""
        for route, _, client in self.routes():
            whole = ANSWERS[route.answer]
            if route.answer is Answer.HIJACK or route.method == b"HEAD":
                cut = whole[: whole.index(b"\r\n") + 2]
            else:
                cut = whole.removesuffix(b"0\r\n\r\n")
                cut = cut[:-1] if cut == whole else cut
            self.send(self.upstream, cut)
            self.upstream.transport.loseConnection()
            self.pump()
            if client.received.startswith(b"HTTP/1.1 502 "):
                self.assertTrue(client.received.endswith(b"}\n" if route.method != b"HEAD" else b"\r\n\r\n"))
            else:
                assert client.lost is not None
                client.lost.trap(ConnectionLost)
