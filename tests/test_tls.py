"""Tunnels over TLS: each direction ends on its own, with real TLS in memory."""

from __future__ import annotations

import datetime
import functools

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from twisted.protocols.tls import TLSMemoryBIOFactory

from rda.proxy import tls
from rda.proxy.tunnel import HEAD_ALONE_SECONDS
from tests.memory_network import Peer
from tests.relay_case import GET, OK, RelayCase

ATTACH = b"POST /containers/web/attach HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
UPGRADED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


@functools.cache
def server_options() -> CertificateOptions:
    """A certificate for localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime(2020, 1, 1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=36500))
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return PrivateCertificate.loadPEM(pem + private).options()


class TLSTests(RelayCase):
    def tls_client(self, data: bytes) -> Peer:
        """Connect a client over TLS; its ``transport`` is the TLS one."""
        client = Peer()
        far = TLSMemoryBIOFactory(CertificateOptions(), True, Factory.forProtocol(lambda: client), self.clock)
        near = TLSMemoryBIOFactory(server_options(), False, self.site, self.clock)
        client_end = far.buildProtocol(None)
        self.network.connect(client_end, near.buildProtocol(None))
        tls.notice_end(client.transport, client.readConnectionLost)
        self.tls_peers.append(client_end)
        self.clients.append(client)
        self.pump()
        self.send(client, data)
        return client

    def setUp(self) -> None:
        self.tls_peers: list[object] = []
        super().setUp()

    def everyone(self) -> list[Peer]:
        return [*super().everyone(), *self.tls_peers]  # type: ignore[list-item]

    def test_requests(self) -> None:
        """Requests after each other are answered."""
        client = self.tls_client(GET)
        self.send(self.upstream, OK)
        self.send(client, GET)
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK * 2)

    def test_input_ends_and_output_goes_on(self) -> None:
        """A client that ends its input gets all the output, and a clean end; then the connection is closed."""
        client = self.tls_client(ATTACH)
        upstream = self.upstream
        self.send(upstream, UPGRADED)
        self.advance(HEAD_ALONE_SECONDS)
        client.send(b"last input")
        tls.end_output(client.transport)
        self.pump()
        self.assertTrue(upstream.received.endswith(b"last input"))
        self.assertTrue(upstream.ended)
        self.send(upstream, b"output")
        self.assertFalse(client.ended)
        upstream.transport.loseConnection()
        self.pump()
        self.assertEqual(client.received, UPGRADED + b"output")
        self.assertTrue(client.closed_cleanly)
        self.assertEqual(self.site.connections, 0)

    def test_output_ends_and_input_goes_on(self) -> None:
        """A daemon that ends its output still gets the input."""
        client = self.tls_client(ATTACH)
        self.send(self.upstream, UPGRADED)
        self.advance(HEAD_ALONE_SECONDS)
        self.upstream.transport.loseWriteConnection()
        self.pump()
        self.assertTrue(client.ended)
        self.assertIsNone(client.lost)
        self.send(client, b"input")
        self.assertTrue(self.upstream.received.endswith(b"input"))

    def test_a_refusal_is_read_by_a_busy_client(self) -> None:
        """An error in the middle of a body arrives, and what the client still sends is drained."""
        client = self.tls_client(
            b"POST /build HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\nContent-Length: 900000\r\n\r\n"
            + b"x" * 100_000
        )
        self.assert_error(client, 403)
        self.assertTrue(client.ended)
        self.send(client, b"x" * 100_000)
        self.assertIsNone(client.lost)
        self.advance(self.limits.linger_seconds)
        self.assertIsNotNone(client.lost)

    def test_a_cut(self) -> None:
        """A client that is cut frees the daemon."""
        client = self.tls_client(ATTACH)
        self.send(self.upstream, UPGRADED)
        client.transport.abortConnection()
        self.pump()
        self.assertFalse(self.upstream.transport.other.connected)
