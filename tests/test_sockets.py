"""Writing to a socket at once: real sockets (a pair, no network), a reactor in memory."""

import socket

from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from rda.sockets import send_now


class Writer(MemoryReactorClock):
    """A reactor that notes who wants to write."""

    def __init__(self):
        super().__init__()
        self.waiting = set()

    def addWriter(self, writer):
        self.waiting.add(writer)

    def removeWriter(self, writer):
        self.waiting.discard(writer)


class SendNowTests(SynchronousTestCase):
    def setUp(self):
        self.reactor = Writer()
        ours, self.theirs = socket.socketpair()
        for end in (ours, self.theirs):
            end.setblocking(False)
            self.addCleanup(end.close)
        self.transport = Connection(ours, Protocol(), self.reactor)
        self.transport.connected = True

    def received(self):
        """All that has arrived."""
        data = b""
        while True:
            try:
                piece = self.theirs.recv(1 << 20)
            except BlockingIOError:
                return data
            if not piece:
                return data
            data += piece

    def test_at_once(self):
        """What fits leaves at once, and the reactor is not asked for anything."""
        send_now(self.transport, b"hello")
        send_now(self.transport, memoryview(b" world"))
        self.assertEqual(self.received(), b"hello world")
        self.assertEqual(self.reactor.waiting, set())

    def test_full(self):
        """What does not fit waits for the reactor, and everything after it, in order."""
        data = bytes(range(256)) * 20_000
        buffer = bytearray(data)
        send_now(self.transport, memoryview(buffer))
        buffer[:] = bytes(len(buffer))  # the caller may use its buffer again
        send_now(self.transport, b"next")
        self.transport.write(b"last")
        self.assertEqual(self.reactor.waiting, {self.transport})
        found = b""
        while self.reactor.waiting:
            found += self.received()
            self.transport.doWrite()
        self.assertEqual(found + self.received(), data + b"nextlast")

    def test_behind_a_write(self):
        """Data never overtakes what was written before."""
        self.transport.write(b"first")
        send_now(self.transport, b"second")
        self.assertEqual(self.received(), b"")
        self.transport.doWrite()
        self.assertEqual(self.received(), b"firstsecond")

    def test_closing(self):
        """A transport that is closing decides by itself what it still takes."""
        self.transport.write(b"first")
        self.transport.loseConnection()
        send_now(self.transport, b"second")
        self.transport.doWrite()
        plain = self.received()
        self.assertTrue(plain.startswith(b"first"))

    def test_broken(self):
        """A broken socket is left to the reactor, which tells the protocol."""
        self.theirs.close()
        send_now(self.transport, b"hello")
        self.assertEqual(self.reactor.waiting, {self.transport})

    def test_other_transports(self):
        """Whatever is not a plain socket gets write, with bytes."""
        other = StringTransport()
        send_now(other, memoryview(b"hello"))
        self.assertEqual(other.value(), b"hello")
        self.transport.TLS = True  # as after startTLS: write encrypts
        encrypted = []
        self.transport.write = encrypted.append
        send_now(self.transport, b"secret")
        self.assertEqual((self.received(), encrypted), (b"", [b"secret"]))

    def test_other_twisted(self):
        """A Twisted that keeps its buffer elsewhere gets write."""
        del self.transport._tempDataBuffer
        written = []
        self.transport.write = written.append
        send_now(self.transport, b"hello")
        self.assertEqual(written, [b"hello"])
