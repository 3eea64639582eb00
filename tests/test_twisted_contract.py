"""What rda.proxy.channel takes from twisted.web beyond its public names. When this fails, read channel.py anew."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from OpenSSL.SSL import Connection
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import http, server

import rda
from rda.proxy.channel import DockerChannel

#: Private attributes of HTTPChannel that channel.py reads or sets, and what they are on a new channel.
STATE = {
    "_dataBuffer": [],
    "_handlingRequest": False,
    "_optimisticEagerReadSize": 0x4000,
    "_receivedHeaderCount": 0,
    "_receivedHeaderSize": 0,
    "_requestProducer": None,
    "_transferDecoder": None,
    "_waitingForTransport": False,
}

#: Private methods that it calls or overrides.
METHODS = {"_finishRequestBody", "_respondToBadRequestAndDisconnect"}

#: Private attributes that exist for a while only.
PASSING = {"_command", "_path", "_version", "_networkProducer"}


class Recorder(http.Request):
    """Notes when the channel calls it."""

    def __init__(self, channel: http.HTTPChannel, *args: object) -> None:
        super().__init__(channel)
        self.events: list[object] = channel.factory
        self.events.append("made")

    def gotLength(self, length: int | None) -> None:
        channel = self.channel
        names = (channel._command, channel._path, channel._version)
        self.events.append(("length", length, names, self.method))

    def handleContentChunk(self, data: bytes) -> None:
        self.events.append(("data", data, self.channel._handlingRequest))

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.events.append(("received", command, self.channel._handlingRequest))


class ContractTests(SynchronousTestCase):
    def channel(self) -> tuple[http.HTTPChannel, StringTransport, list[object]]:
        channel, transport, events = http.HTTPChannel(), StringTransport(), []
        channel.requestFactory = Recorder
        channel.factory = events
        channel.timeOut = None
        channel.makeConnection(transport)
        return channel, transport, events

    def test_every_private_name_is_pinned(self) -> None:
        """channel.py uses no private name of twisted.web's but those above, and no other module any."""
        theirs = set(dir(http.HTTPChannel())) | set(dir(http.Request)) | set(dir(server.Site)) | PASSING
        theirs |= {name for name in dir(http) if name.startswith("_")}
        for path in (Path(rda.__file__).parent / "proxy").glob("*.py"):
            source = path.read_text(encoding="utf-8")
            if "twisted.web" not in source:
                continue
            tree = ast.parse(source)
            used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            used |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            private = {name for name in used & theirs if name.startswith("_") and not name.startswith("__")}
            allowed = set(STATE) | METHODS | PASSING if path.name == "channel.py" else set()
            self.assertLessEqual(private - {"_log"}, allowed, path.name)

    def test_state(self) -> None:
        """The private attributes exist, with these first values."""
        channel, _, _ = self.channel()
        for name, value in STATE.items():
            self.assertEqual(getattr(channel, name), value, name)
        for name in METHODS:
            self.assertTrue(callable(getattr(channel, name)), name)

    def test_our_own_names_collide_with_none(self) -> None:
        """What DockerChannel adds does not happen to be something of HTTPChannel's."""
        added = {name for name in vars(DockerChannel) if name.startswith("_") and not name.startswith("__")}
        self.assertLessEqual(added & set(dir(http.HTTPChannel())), {"_log", *METHODS})

    def test_the_head_comes_before_the_body(self) -> None:
        """gotLength is called at the end of the head, when only the channel knows the request line."""
        channel, _, events = self.channel()
        channel.dataReceived(b"POST /x HTTP/1.1\r\nContent-Length: 4\r\n\r\n")
        self.assertEqual(events, ["made", ("length", 4, (b"POST", b"/x", b"HTTP/1.1"), http.Request.method)])
        channel.dataReceived(b"ab")
        channel.dataReceived(b"cd" + b"GET")
        self.assertEqual(events[2:], [("data", b"ab", False), ("data", b"cd", False), ("received", b"POST", True)])
        self.assertEqual(b"".join(channel._dataBuffer), b"GET")

    def test_chunked_length_is_none(self) -> None:
        """A chunked request has the length None, and its decoder is there when gotLength is called."""
        channel, _, events = self.channel()
        channel.dataReceived(b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.assertEqual(events[1][1], None)
        self.assertTrue(callable(channel._transferDecoder.dataReceived))

    def test_requests_without_a_body_are_received_at_once(self) -> None:
        """requestReceived follows gotLength within the same call when there is no body."""
        channel, _, events = self.channel()
        channel.dataReceived(b"GET /x HTTP/1.1\r\n\r\n")
        self.assertEqual(events[-1], ("received", b"GET", True))

    def test_the_channel_is_its_transport_s_producer(self) -> None:
        """Pausing goes transport, channel, producer of the answer; the network side is the transport."""
        channel, transport, _ = self.channel()
        self.assertIs(transport.producer, channel)
        self.assertIs(channel._networkProducer, transport)
        channel.pauseProducing()
        self.assertTrue(channel._waitingForTransport)

    def test_malformed_input_goes_through_one_method(self) -> None:
        """The parser gives up by calling the one method that we replace."""
        for data in (
            b"x\r\n",
            b"GET / HTTP/1.1\r\nA\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        ):
            channel, transport, _ = self.channel()
            called = []
            channel._respondToBadRequestAndDisconnect = lambda called=called: called.append(1)
            channel.dataReceived(data)
            self.assertTrue(called, data)
            self.assertEqual(transport.value(), b"")

    def test_header_counters(self) -> None:
        """Size and number of the header fields tell why the parser gave up."""
        channel, _, _ = self.channel()
        channel.dataReceived(b"GET / HTTP/1.1\r\nA: b\r\nC: d\r\nE: ")
        self.assertEqual((channel._receivedHeaderSize, channel._receivedHeaderCount), (22, 1))

    def test_half_closing_needs_the_bare_channel(self) -> None:
        """Twisted's default protocol hides half-closing; ours does not."""
        self.assertFalse(IHalfCloseableProtocol.implementedBy(http._GenericHTTPChannelProtocol))
        self.assertTrue(IHalfCloseableProtocol.implementedBy(DockerChannel))

    def test_expectations_are_answered_by_the_parser(self) -> None:
        """The parser sends 100 Continue after gotLength by what the header fields say then: we take the field out."""
        source = inspect.getsource(http.HTTPChannel.allHeadersReceived)
        self.assertLess(source.index("gotLength"), source.index('requestHeaders.getRawHeaders(b"Expect")'))


class TLSContractTests(SynchronousTestCase):
    """What rda.proxy.tls takes from twisted.protocols.tls."""

    def test_names(self) -> None:
        """A TLS transport keeps pyOpenSSL's connection, its unsent bytes and its aggregator under these names."""
        factory = TLSMemoryBIOFactory(CertificateOptions(), True, Factory.forProtocol(Protocol), Clock())
        transport = factory.buildProtocol(None)
        transport.makeConnection(StringTransport())
        self.assertIsInstance(transport, TLSMemoryBIOProtocol)
        self.assertIsInstance(transport._tlsConnection, Connection)
        self.assertEqual(transport._appSendBuffer, [])
        self.assertTrue(callable(transport._flushSendBIO))
        self.assertTrue(callable(transport._aggregator.flush))

    def test_the_end_is_an_exception_of_recv(self) -> None:
        """The peer's end of data is noticed in the one loop that reads, which ends with WantReadError."""
        source = inspect.getsource(TLSMemoryBIOProtocol._flushReceiveBIO)
        for part in ("self._tlsConnection.recv(", "except WantReadError:", "except ZeroReturnError:"):
            self.assertIn(part, source)
