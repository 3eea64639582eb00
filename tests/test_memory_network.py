"""The in-memory network behaves as sockets do."""

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from rda.proxy.tunnel import hung_up
from tests.memory_network import HIGH_WATER, MemoryEndpoint, Network, Peer


class _Source:
    """A producer that notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class NetworkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = Network(Clock())
        self.near, self.far = Peer(), Peer()
        self.network.connect(self.near, self.far)

    def test_bytes_arrive_in_order(self) -> None:
        """What is written arrives when the network is pumped."""
        self.near.send(b"a")
        self.near.send(b"b")
        self.assertEqual(self.far.received, b"")
        self.network.pump()
        self.assertEqual(self.far.received, b"ab")

    def test_half_close(self) -> None:
        """After a half-close the other direction still works."""
        self.near.transport.loseWriteConnection()
        self.network.pump()
        self.assertTrue(self.far.ended)
        self.far.send(b"answer")
        self.network.pump()
        self.assertEqual(self.near.received, b"answer")

    def test_close_is_an_end_of_file_and_then_a_broken_pipe(self) -> None:
        """The peer of a closed connection sees its end, and loses it when it writes."""
        self.near.transport.loseConnection()
        self.network.pump()
        self.assertTrue(self.near.lost.check(ConnectionDone))
        self.assertTrue(self.far.ended)
        self.assertIsNone(self.far.lost)
        self.far.send(b"x")
        self.network.pump()
        self.assertTrue(self.far.lost.check(ConnectionLost))

    def test_abort_is_a_reset(self) -> None:
        """An aborted connection throws away what is on its way."""
        self.near.send(b"x")
        self.near.transport.abortConnection()
        self.network.pump()
        self.assertEqual(self.far.received, b"")
        self.assertTrue(self.far.lost.check(ConnectionLost))

    def test_a_paused_reader_fills_the_writer(self) -> None:
        """The writer's producer is paused above the high-water mark, and resumed when everything has left."""
        source = _Source()
        self.near.transport.registerProducer(source, True)
        self.far.transport.pauseProducing()
        self.near.send(b"x" * (HIGH_WATER + 1))
        self.network.pump()
        self.assertEqual((source.calls, self.far.received), (["pause"], b""))
        self.far.transport.resumeProducing()
        self.network.pump()
        self.assertEqual((source.calls, len(self.far.received)), (["pause", "resume"], HIGH_WATER + 1))

    def test_a_vanished_peer_polls_as_hung_up(self) -> None:
        """Only a peer that is gone altogether polls as hung up."""
        self.near.transport.loseWriteConnection()
        self.network.pump()
        self.assertFalse(hung_up(self.far.transport))
        self.near.transport.vanish()
        self.assertTrue(hung_up(self.far.transport))
        self.far.transport.loseConnection()
        self.network.pump()


class EndpointTests(SynchronousTestCase):
    def test_connects_now_later_or_not(self) -> None:
        """The endpoint connects at once, when let in, or fails."""
        endpoint = MemoryEndpoint(Network(Clock()))
        factory = Factory.forProtocol(Peer)
        self.successResultOf(endpoint.connect(factory))
        endpoint.waiting = []
        later = endpoint.connect(factory)
        self.assertNoResult(later)
        endpoint.let_in()
        self.successResultOf(later)
        endpoint.failure = OSError("no")
        self.failureResultOf(endpoint.connect(factory), OSError)
        self.assertEqual(len(endpoint.peers), 2)
