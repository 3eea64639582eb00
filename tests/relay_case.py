"""What the tests of the proxy share: the real twisted stack between a client and a daemon that the test plays."""

from __future__ import annotations

import json
import re
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from rda.docker.routes import Call, Outgoing
from rda.interfaces import ICallRewriter
from rda.limits import Limits
from rda.proxy.server import DockerSite
from tests.memory_network import SERVER_ADDRESS, MemoryEndpoint, Network, Peer

GET = b"GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"

ATTACH = (
    b"POST /v1.45/containers/web/attach?stream=1 HTTP/1.1\r\nHost: localhost\r\n"
    b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
)

RAW = b"Content-Type: application/vnd.docker.raw-stream\r\n"

UPGRADED = b"HTTP/1.1 101 UPGRADED\r\n" + RAW + b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"

EVENTS = b"GET /v1.45/events HTTP/1.1\r\nHost: localhost\r\n\r\n"

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@implementer(ICallRewriter)
class Rewriter:
    """Passes everything on; notes the calls; each answer can be replaced by setting an attribute.

    :ivar on_outgoing: a function of call and body instead of the default; likewise the others.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.on_outgoing: Any = lambda call, body: Outgoing(body=body)
        self.on_answered: Any = lambda status, body: body
        self.on_streamed: Any = lambda document: document

    def outgoing(self, call: Call, body: Any) -> Deferred[Outgoing]:
        self.calls.append(("outgoing", call.route.name, body))
        return maybeDeferred(self.on_outgoing, call, body)

    def answered(self, call: Call, sent: Outgoing, status: int, body: Any) -> Deferred[Any]:
        self.calls.append(("answered", call.route.name, sent.memo, status, body))
        return maybeDeferred(self.on_answered, status, body)

    def streamed(self, call: Call, sent: Outgoing, document: Any) -> Any:
        return self.on_streamed(document)

    def aborted(self, call: Call, sent: Outgoing) -> None:
        self.calls.append(("aborted", call.route.name, sent.memo))

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


class RelayCase(SynchronousTestCase):
    """A site, its network, and no delayed call left at the end."""

    limits = Limits()
    site_options: dict[str, Any] = {}

    def setUp(self) -> None:
        self.clock = Clock()
        self.network = Network(self.clock)
        self.daemon = MemoryEndpoint(self.network)
        self.rewriter = Rewriter()
        self.site = DockerSite(self.daemon, self.rewriter, self.clock, self.limits, **self.site_options)
        self.clients: list[Peer] = []
        self.addCleanup(self.check_nothing_is_left)

    def check_nothing_is_left(self) -> None:
        for client in self.clients:
            if client.lost is None:
                client.transport.abortConnection()
        self.network.pump()
        self.clock.advance(self.limits.linger_seconds)
        self.network.pump()
        self.assertEqual(self.site.counters.active, 0)
        self.assertEqual(self.site.counters.hijacks, 0)
        self.assertEqual(self.site.connections, 0)
        self.site.proxy.pool.close()
        self.network.pump()
        self.assertEqual([t for t in self.network.transports if t.connected and t.protocol not in self.everyone()], [])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def everyone(self) -> list[Peer]:
        return [*self.clients, *self.daemon.peers]

    def client(self, data: bytes = b"", unix: bool = False) -> Peer:
        """Connect a client that sends something."""
        peer = Peer()
        self.clients.append(peer)
        address = UNIXAddress("/run/x.sock") if unix else SERVER_ADDRESS
        channel = self.site.buildProtocol(None)
        self.network.connect(peer, channel, address)
        if data:
            peer.send(data)
        self.pump()
        return peer

    def pump(self) -> None:
        self.network.pump()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.pump()

    def send(self, peer: Peer, data: bytes) -> None:
        peer.send(data)
        self.pump()

    @property
    def upstream(self) -> Peer:
        """The daemon's end of the latest connection."""
        return self.daemon.peers[-1]

    def assert_error(self, client: Peer, status: int, contains: str = "") -> dict[str, bytes]:
        """The client got exactly one error of rda's; return its header fields."""
        head, _, body = client.received.partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        self.assertRegex(line, b"^HTTP/1.1 %d [A-Z]" % status)
        fields = {name.decode().lower(): value for name, value in (field.split(b": ", 1) for field in lines)}
        self.assertEqual(int(fields["content-length"]), len(body))
        message = json.loads(body)["message"]
        self.assertTrue(message.startswith("rda: "), message)
        self.assertIn(contains, message)
        return fields


def post(path: bytes, body: bytes, more: bytes = b"") -> bytes:
    """Write a POST request with a body of known length."""
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + more + length + b"\r\n" + body


def answer(document: Any, status: bytes = b"200 OK") -> bytes:
    """Write a JSON answer as the daemon does."""
    body = json.dumps(document).encode() + b"\n"
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


def body_of(message: bytes) -> bytes:
    """Return the body of one message, unchunked."""
    head, _, body = message.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    return b"".join(chunk for _, chunk in re.findall(rb"([0-9a-f]+)\r\n(.*?)\r\n", body, re.S))
