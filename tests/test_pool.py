"""rda.proxy.pool: connections to the daemon that are kept for the next request."""

from __future__ import annotations

from rda.limits import Limits
from tests.relay_case import GET, OK, RelayCase, post


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
