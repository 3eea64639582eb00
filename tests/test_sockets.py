"""Writing to a socket at once: real sockets (a pair, no network), a reactor in memory."""

import socket

from twisted.internet.error import ConnectionDone
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from rda.sockets import MORE_TO_COME, receive_into, send_now, widen


class Writer(MemoryReactorClock):
    """A reactor that notes who wants to write."""

    def __init__(self):
        super().__init__()
        self.waiting = set()

    def addWriter(self, writer):
        self.waiting.add(writer)

    def removeWriter(self, writer):
        self.waiting.discard(writer)


class Reader(MemoryReactorClock):
    """A reactor that notes who wants to read."""

    def __init__(self):
        super().__init__()
        self.reading = set()

    def addReader(self, reader):
        self.reading.add(reader)

    def removeReader(self, reader):
        self.reading.discard(reader)


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


class ReceiveTests(SynchronousTestCase):
    def setUp(self):
        ours, self.theirs = socket.socketpair()
        for end in (ours, self.theirs):
            end.setblocking(False)
            self.addCleanup(end.close)
        self.reactor = Reader()
        self.transport = Connection(ours, Protocol(), self.reactor)
        self.transport.connected = True
        self.transport.startReading()
        self.buffer = memoryview(bytearray(4 * MORE_TO_COME))
        self.found = []

    def receive(self, turn=1):
        """Take what comes."""
        receive_into(self.transport, lambda: self.buffer, self.take, turn)

    def take(self, size):
        """Note what came."""
        self.found.append(bytes(self.buffer[:size]))

    def test_one_read(self):
        """What comes is in the caller's buffer; nothing is read where nothing is."""
        self.receive()
        self.theirs.send(b"hello")
        for _ in range(2):
            self.assertIsNone(self.transport.doRead())
        self.assertEqual(self.found, [b"hello"])

    def test_turns(self):
        """What is there is read piece by piece until the turn is over."""
        data = bytes(range(256)) * (MORE_TO_COME // 16)
        self.theirs.send(data)
        self.receive(turn=len(self.buffer) + 1)
        self.transport.doRead()
        self.assertEqual([len(piece) for piece in self.found], [len(self.buffer)] * 2)
        self.transport.doRead()
        self.assertEqual(b"".join(self.found), data)

    def test_paused(self):
        """A pause in the middle of a turn is obeyed, and its end, too."""
        self.theirs.send(bytes(3 * len(self.buffer)))
        receive_into(self.transport, lambda: self.buffer, self.pause, 1 << 20)
        self.transport.doRead()
        self.assertEqual((len(self.found), self.reactor.reading), (1, set()))
        self.transport.resumeProducing()
        self.assertEqual(self.reactor.reading, {self.transport})
        self.transport.doRead()
        self.assertEqual(len(self.found), 2)

    def pause(self, size):
        """Take what comes, and no more."""
        self.take(size)
        self.transport.pauseProducing()

    def test_end(self):
        """The end of the stream, behind what came, and a broken connection are told as Twisted does."""
        self.receive(turn=1 << 20)
        self.theirs.send(bytes(MORE_TO_COME))
        self.theirs.shutdown(socket.SHUT_WR)
        self.assertIs(self.transport.doRead(), CONNECTION_DONE)
        self.assertEqual(self.found, [bytes(MORE_TO_COME)])
        self.transport.socket.close()
        self.assertIs(self.transport.doRead(), CONNECTION_LOST)

    def test_aborted_while_reading(self):
        """Whoever takes what comes may end the connection."""

        def take(size):
            self.take(size)
            self.transport.connectionLost(Failure(ConnectionDone()))

        self.theirs.send(bytes(3 * len(self.buffer)))
        receive_into(self.transport, lambda: self.buffer, take, 1 << 20)
        self.assertIsNone(self.transport.doRead())
        self.assertEqual(len(self.found), 1)

    def test_other_transports(self):
        """Whatever is not a plain socket is left as it is: what decrypts must see every byte."""
        receive_into(StringTransport(), lambda: self.buffer, self.take)
        self.transport.TLS = True
        before = self.transport.doRead
        self.receive()
        self.assertEqual(self.transport.doRead, before)

    def test_widened(self):
        """A UNIX-domain socket holds more than the kernel's default; others are left alone."""
        widen(StringTransport())
        before = self.transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        widen(self.transport)
        self.assertGreater(self.transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), before)
