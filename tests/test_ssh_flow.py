"""rda.ssh.stream: what is sent and received on a channel, within its window, and what that costs."""

import struct
import tracemalloc

from twisted.conch.ssh import connection as conch
from twisted.conch.ssh.common import NS
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
)
from twisted.internet.protocol import Factory

from rda.ssh.channels import MAX_WINDOW, Connection, streamlocal
from rda.ssh.opening import LOCAL_PACKET, MIN_WINDOW
from rda.ssh.stream import NEAR_REFILL_PARTS, NEAR_SECONDS, NEAR_WINDOW, REFILL_PARTS
from tests.channel_case import ChannelCase, Client, HalfClient, Producer, Script
from tests.ssh_server import SERVER_WINDOW, SshInMemory


class SendTests(ChannelCase):
    def test_order(self):
        """What is written in many pieces, over many windows, arrives in order."""
        ours, theirs = self.open()
        pieces = [bytes([n % 256]) * (n * 997 % 70_000) for n in range(300)]
        for piece in pieces[:150]:
            ours.transport.write(piece)
        ours.transport.writeSequence(pieces[150:])
        self.ssh.flush()
        self.assertEqual(theirs.data, b"".join(pieces))

    def test_window(self):
        """Not a byte more than the server's window is sent before it says so."""
        ours, _ = self.open()
        ours.transport.write(bytes(SERVER_WINDOW + 5))
        self.assertEqual(ours.transport.remoteWindowLeft, 0)
        sent = self.ssh.client_io.getOutBuffer()
        self.assertLess(len(sent), SERVER_WINDOW * 1.01)
        ours.transport.loseConnection()
        self.assertFalse(ours.transport.localClosed)
        self.ssh.server.dataReceived(sent)
        self.ssh.flush()
        self.assertIsInstance(self.reason(ours), ConnectionDone)

    def test_a_server_that_takes_huge_packets(self):
        """Packets are never longer than what every implementation takes, whatever the server would take."""
        ours, theirs = self.open()
        ours.transport.remoteMaxPacket = 0xFFFF_FFFF
        data = bytes(range(256)) * 4096
        ours.transport.write(data)
        self.ssh.flush()
        self.assertEqual(theirs.data, data)

    def test_push_producer(self):
        """A push producer is paused while its data waits, and resumed when it has been sent."""
        ours, theirs = self.open()
        producer = Producer()
        ours.transport.registerProducer(producer, True)
        ours.transport.write(bytes(1000))
        self.assertEqual(producer.calls, [])
        ours.transport.write(bytes(SERVER_WINDOW))
        self.assertEqual(producer.calls, ["pause"])
        self.ssh.flush()
        self.assertEqual(producer.calls, ["pause", "resume"])
        self.assertEqual(len(theirs.data), SERVER_WINDOW + 1000)

    def test_push_producer_of_a_full_socket(self):
        """A push producer is paused while the socket is full, even if nothing of its own waits."""
        ours, _ = self.open()
        producer = Producer()
        self.ssh.client_io.full()
        ours.transport.registerProducer(producer, True)
        self.assertEqual(producer.calls, ["pause"])
        self.ssh.client_io.drained()
        self.assertEqual(producer.calls, ["pause", "resume"])
        ours.transport.write(b"x")
        self.ssh.client_io.full()
        ours.transport.write(b"y")
        self.assertEqual(producer.calls[2:], ["pause"])

    def test_pull_producer(self):
        """A pull producer is asked for a piece whenever there is room, and closing waits for its end."""
        ours, theirs = self.open()
        producer = Producer(ours.transport, [bytes([n]) * 600_000 for n in range(1, 9)])
        ours.transport.registerProducer(producer, False)
        ours.transport.loseConnection()
        self.ssh.flush()
        # loseConnection before the producer has written anything: what it writes afterwards is still sent.
        self.assertEqual(len(theirs.data), 8 * 600_000)
        self.assertIsInstance(self.reason(ours), ConnectionDone)

    def test_pull_producer_when_keys_change(self):
        """A pull producer goes on after a key exchange that began just when it was to be asked for a piece."""
        ours, theirs = self.open()
        producer = Producer(ours.transport, [bytes([n]) * 1000 for n in range(1, 4)])
        ours.transport.registerProducer(producer, False)
        self.ssh.client.sendKexInit()
        self.ssh.clock.advance(0)
        self.assertEqual(producer.calls, [])
        self.ssh.flush()
        self.assertEqual(len(theirs.data), 3000)

    def test_second_producer(self):
        """Two producers at a time are a defect of the caller."""
        ours, _ = self.open()
        ours.transport.registerProducer(Producer(), True)
        self.assertRaises(RuntimeError, ours.transport.registerProducer, Producer(), True)
        ours.transport.unregisterProducer()
        ours.transport.registerProducer(Producer(), True)

    def test_producer_of_a_closed_channel(self):
        """A producer for a closed channel is stopped at once; one that is there when it closes, then."""
        ours, theirs = self.open()
        first, second = Producer(), Producer()
        ours.transport.registerProducer(first, True)
        theirs.transport.loseConnection()
        self.ssh.flush()
        ours.transport.registerProducer(second, True)
        self.assertEqual((first.calls, second.calls), (["stop"], ["stop"]))

    def test_fair(self):
        """A small message does not wait behind all of a large transfer of another channel."""
        large, _ = self.open()
        small, theirs = self.open()
        self.ssh.client_io.full()
        for _ in range(4):
            large.transport.write(bytes(SERVER_WINDOW // 2))
        small.transport.write(b"small")

        write = self.ssh.client_io.write

        def fills(data):
            # A socket buffer that is full after each write.
            write(data)
            self.ssh.client.pauseProducing()

        self.patch(self.ssh.client_io, "write", fills)
        self.ssh.client_io.drained()
        self.ssh.client_io.drained()
        self.ssh.server.dataReceived(self.ssh.client_io.getOutBuffer())
        self.assertEqual(theirs.data, b"small")


class ReceiveTests(ChannelCase):
    def test_order(self):
        """What the server sends over many windows arrives in order."""
        ours, theirs = self.open()
        pieces = [bytes([n % 256]) * (n * 9973 % 70_000) for n in range(300)]
        for piece in pieces:
            theirs.transport.write(piece)
        self.ssh.flush()
        self.assertEqual(ours.data, b"".join(pieces))

    def test_interleaved(self):
        """Data of several channels in one read reaches each in one piece, before what follows it."""
        pairs = [self.open(HalfClient) for _ in range(3)]
        for turn in range(5):
            for _, theirs in pairs:
                theirs.transport.write(b"%d" % turn)
        for _, theirs in pairs:
            theirs.transport.loseWriteConnection()
        self.ssh.flush()
        for ours, _ in pairs:
            self.assertEqual((ours.data, ours.events), (b"01234", ["data", "read end"]))

    def test_paused(self):
        """A reader that is paused costs at most the window, and gets everything in order when it goes on."""
        ours, theirs = self.open()
        ours.transport.pauseProducing()
        data = bytes(range(256)) * (3 * MIN_WINDOW // 256)
        theirs.transport.write(data)
        self.ssh.flush()
        kept = sum(len(piece) for piece in ours.transport._incoming)
        self.assertEqual((ours.data, kept, ours.transport.localWindowLeft), (b"", MIN_WINDOW, 0))
        ours.transport.resumeProducing()
        self.assertEqual(ours.data, b"")  # not from inside the call
        self.ssh.flush()
        self.assertEqual(ours.data, data)

    def test_paused_while_reading(self):
        """A reader that pauses after each piece is given one for each resume, and the window stays shut meanwhile."""
        ours, theirs = self.open()
        received = ours.dataReceived

        def pausing(data):
            ours.transport.pauseProducing()
            received(data)

        ours.dataReceived = pausing
        theirs.transport.write(bytes(2 * MIN_WINDOW))
        turns = 0
        while len(ours.data) < 2 * MIN_WINDOW:
            self.ssh.flush()
            size = len(ours.data)
            self.ssh.flush()
            self.assertEqual(len(ours.data), size)
            ours.transport.resumeProducing()
            turns += 1
        self.assertGreater(turns, 1)

    def test_paused_after_taking(self):
        """What a reader took before it paused is not asked for again until it goes on."""
        ours, theirs = self.open()
        self.ssh.connection.round_trip = NEAR_SECONDS
        received = ours.dataReceived

        def pausing(data):
            received(data)
            ours.transport.pauseProducing()

        ours.dataReceived = pausing
        theirs.transport.write(bytes(MIN_WINDOW))
        self.ssh.flush()
        self.assertEqual((len(ours.data), ours.transport.localWindowLeft), (MIN_WINDOW, 0))
        ours.transport.resumeProducing()
        self.assertEqual(ours.transport.localWindowLeft, MIN_WINDOW)

    def test_data_between_resume_and_delivery(self):
        """Data that comes when kept data is about to be delivered does not overtake it."""
        ours, theirs = self.open()
        ours.transport.pauseProducing()
        theirs.transport.write(b"first ")
        self.ssh.flush()
        ours.transport.resumeProducing()
        theirs.transport.write(b"second")
        self.ssh.client.dataReceived(self.ssh.server_io.getOutBuffer())
        self.assertEqual(ours.data, b"")
        self.ssh.flush()
        self.assertEqual(ours.data, b"first second")

    def test_paused_by_the_last_data(self):
        """A reader that pauses on its last data is told of the end when it goes on."""
        ours, theirs = self.open(HalfClient)
        received = ours.dataReceived

        def pausing(data):
            received(data)
            ours.transport.pauseProducing()

        ours.dataReceived = pausing
        ours.transport.pauseProducing()
        theirs.transport.write(b"last words")
        theirs.transport.loseWriteConnection()
        self.ssh.flush()
        ours.transport.resumeProducing()
        self.ssh.flush()
        self.assertEqual(ours.events, ["data"])
        ours.transport.resumeProducing()
        self.ssh.flush()
        self.assertEqual(ours.events, ["data", "read end"])

    def test_end_while_paused(self):
        """Data that waits for a paused reader comes before the end of data, and that before the close."""
        ours, theirs = self.open(HalfClient)
        ours.transport.pauseProducing()
        theirs.transport.write(b"last words")
        theirs.transport.loseWriteConnection()
        theirs.transport.loseConnection()
        self.ssh.flush()
        self.assertEqual(ours.events, [])
        self.assertEqual(self.ssh.connection.channels, {})  # the number is free already
        ours.transport.resumeProducing()
        self.ssh.flush()
        self.assertEqual((ours.events, ours.data), (["data", "read end", "lost"], b"last words"))
        self.assertIsInstance(self.reason(ours), ConnectionDone)

    def test_refill(self):
        """The window is refilled as the reader takes data, with few messages; that of a near peer gets smaller."""
        near, far = (NEAR_WINDOW, NEAR_REFILL_PARTS), (MIN_WINDOW, REFILL_PARTS)
        for round_trip, (window, parts) in ((NEAR_SECONDS, far), (NEAR_SECONDS / 2, near), (None, far)):
            with self.subTest(round_trip):
                ours, theirs = self.open()
                self.ssh.connection.round_trip = round_trip
                received = self.ssh.server.received
                before = received.count(conch.MSG_CHANNEL_WINDOW_ADJUST)
                theirs.transport.write(bytes(4 * MIN_WINDOW + 100))
                self.ssh.flush()
                self.assertEqual(len(ours.data), 4 * MIN_WINDOW + 100)
                adjustments = received.count(conch.MSG_CHANNEL_WINDOW_ADJUST) - before
                self.assertLessEqual(adjustments, 4 * MIN_WINDOW * parts // window)
                self.assertEqual(ours.transport.localWindowSize, window)
                self.assertLessEqual(ours.transport.localWindowLeft, window)
                self.assertGreaterEqual(ours.transport.localWindowLeft, window - window // parts)

    def test_growth(self):
        """A window that is taken in less than a round trip grows up to its bound; one that is not, does not."""
        for per_second, expected in ((MIN_WINDOW / 8, MIN_WINDOW), (MIN_WINDOW * 40, MAX_WINDOW)):
            ours, theirs = self.open()
            self.ssh.connection.round_trip = 0.1
            for _ in range(60):
                theirs.transport.write(bytes(int(per_second / 10)))
                self.ssh.flush()
                self.ssh.clock.advance(0.1)
            self.assertEqual(ours.transport.localWindowSize, expected)
            self.assertLessEqual(ours.transport.localWindowLeft, expected)

    def test_beyond_the_window(self):
        """A server that sends more than it may, or a larger packet, is not heard any longer."""
        for size in (LOCAL_PACKET + 1, 100):
            ssh = SshInMemory(self.remote)
            opening = streamlocal(ssh.connection, "/s").connect(Factory.forProtocol(Client))
            ssh.flush()
            ours = self.successResultOf(opening)
            if size == 100:
                ours.transport.localWindowLeft = 99
            ssh.server.sendPacket(94, struct.pack(">L", 0) + NS(bytes(size)))
            ssh.flush()
            self.assertIn("beyond its window", str(self.successResultOf(ssh.client.lost)))
            self.assertEqual(ours.data, b"")

    def test_after_the_end(self):
        """Data after the end of data ends the connection."""
        _, theirs = self.open(HalfClient)
        theirs.transport.loseWriteConnection()
        theirs.transport.write(b"more")
        self.ssh.flush()
        self.assertIn("does not keep to the SSH protocol", str(self.successResultOf(self.ssh.client.lost)))

    def test_broken_protocol(self):
        """A protocol that raises loses its own channel, and nobody else's."""
        ours, theirs = self.open()
        other, their_other = self.open()
        ours.dataReceived = lambda data: 1 / 0
        theirs.transport.write(b"hello")
        their_other.transport.write(b"hello")
        self.ssh.flush()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsInstance(self.reason(ours), ConnectionAborted)
        self.assertEqual((other.data, other.reasons), (b"hello", []))

    def test_early(self):
        """What a command prints before its protocol is there waits for it."""

        class Hasty(Script):
            def connectionMade(self):
                self.transport.write(b"hello")
                clock.callLater(0, self.transport.exit, 0)

        clock = self.remote.clock
        self.remote.clock = _Now(clock)
        ours, _ = self.run_command(remote_kind=Hasty)
        self.ssh.flush()
        self.assertEqual((ours.data, ours.events), (b"hello", ["data", "lost"]))


class _Now:
    """A clock that calls at once what should be called soon."""

    def __init__(self, clock):
        self._clock = clock

    def __getattr__(self, name):
        return getattr(self._clock, name)

    def callLater(self, delay, call, *arguments):
        return self._clock.callLater(delay, call, *arguments) if delay else call(*arguments)


class CostTests(ChannelCase):
    def test_idle_channels(self):
        """A thousand open channels that do nothing cost less than 10 KB each (this process holds both ends of them)."""
        before = self.measure(0)
        after = self.measure(1000)
        self.assertLess((after - before) / 1000, 10_000)

    def measure(self, count):
        tracemalloc.start()
        try:
            opened = [streamlocal(self.ssh.connection, "/s").connect(Factory.forProtocol(Client)) for _ in range(count)]
            self.ssh.flush()
            for deferred in opened:
                self.successResultOf(deferred)
            self.assertEqual(len(self.ssh.connection.channels), count)
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    def test_many_opened_and_closed(self):
        """Nothing is left of channels that were opened and closed."""
        for _ in range(200):
            ours, _ = self.open()
            ours.transport.write(b"x")
            ours.transport.loseConnection()
            self.ssh.flush()
        connection = self.ssh.connection
        self.assertEqual([connection.channels, connection.sinks, connection._waiting], [{}, {}, {}])
        self.assertEqual(len(self.ssh.clock.getDelayedCalls()), 1)  # the next rekey

    def test_window_bound(self):
        """The bound of the window can be set."""
        self.assertEqual(Connection(max_window=MIN_WINDOW).max_window, MIN_WINDOW)
