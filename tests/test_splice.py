"""rda.ports.splice: what flows through one connection, and how it ends."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone

from rda.errors import ChannelRefused, LinkDown
from rda.ports.splice import AGAIN_SECONDS, LINGER_SECONDS, MAX_EARLY, SETTLE_SECONDS
from rda.ports.tcp import STARTING_SECONDS
from tests.fake_machine import WEB, ForwardsCase
from tests.memory_network import HIGH_WATER, MemoryTransport, Peer


def _no_room(transport: MemoryTransport, producer: Any, streaming: bool) -> None:
    """What a transport's registerProducer does while it is full."""
    transport.producer = producer
    transport._producer_paused = True
    producer.pauseProducing()


class ConnectionTests(ForwardsCase):
    """What flows through one connection."""

    def pair(self) -> tuple[Peer, Peer]:
        """A client and the container's end."""
        self.up(WEB)
        client = self.connect()
        return client, self.host.endpoint.peers[-1]

    def test_both_ways(self) -> None:
        """Bytes pass both ways and are counted, now and after the end."""
        client, far = self.pair()
        client.send(b"question")
        far.send(b"answer!")
        self.network.pump()
        self.assertEqual((far.received, client.received), (b"question", b"answer!"))
        (status,) = self.forwards.status()
        self.assertEqual((status.connections, status.bytes_in, status.bytes_out), (1, 8, 7))
        client.transport.loseConnection()
        far.transport.loseConnection()
        self.network.pump()
        (status,) = self.forwards.status()
        self.assertEqual((status.connections, status.connections_total), (0, 1))
        self.assertEqual((status.bytes_in, status.bytes_out), (8, 7))

    def test_half_close_of_the_client(self) -> None:
        """A client that is done sending still gets the whole answer."""
        client, far = self.pair()
        client.send(b"all")
        client.transport.loseWriteConnection()
        self.network.pump()
        self.assertTrue(far.ended)
        self.assertIsNone(far.lost)
        far.send(b"answer")
        far.transport.loseConnection()
        self.network.pump()
        self.assertEqual(client.received, b"answer")
        self.assertTrue(client.closed_cleanly)
        self.assertEqual(self.forwards.status()[0].connections, 0)

    def test_half_close_of_the_container(self) -> None:
        """A container that is done sending still gets what the client sends."""
        client, far = self.pair()
        far.send(b"bye")
        far.transport.loseWriteConnection()
        self.network.pump()
        self.assertEqual((client.received, client.ended, client.lost), (b"bye", True, None))
        client.send(b"more")
        client.transport.loseConnection()
        self.network.pump()
        self.assertEqual(far.received, b"more")
        self.assertEqual(self.forwards.status()[0].connections, 0)
        self.assertTrue(far.ended)
        self.assertFalse(far.transport.other.connected)

    def test_slow_client(self) -> None:
        """While the client does not read, the channel is not read either."""
        client, far = self.pair()
        client.transport.pauseProducing()
        for _ in range(64):
            far.send(bytes(HIGH_WATER))
            self.network.pump()
        splice = client.transport.other
        self.assertLessEqual(splice.buffered, 3 * HIGH_WATER)
        self.assertTrue(far.transport.other.paused)
        client.transport.resumeProducing()
        self.network.pump()
        self.assertEqual(len(client.received), 64 * HIGH_WATER)

    def test_slow_container(self) -> None:
        """While the container does not read, the client is not read either."""
        client, far = self.pair()
        far.transport.pauseProducing()
        for _ in range(64):
            client.send(bytes(HIGH_WATER))
            self.network.pump()
        self.assertLessEqual(far.transport.other.buffered, 3 * HIGH_WATER)
        self.assertTrue(client.transport.other.paused)
        far.transport.resumeProducing()
        self.network.pump()
        self.assertEqual(len(far.received), 64 * HIGH_WATER)

    def test_reset_by_the_client(self) -> None:
        """A client that resets its connection resets the container's."""
        client, far = self.pair()
        client.transport.abortConnection()
        self.network.pump()
        assert far.lost is not None
        self.assertFalse(far.closed_cleanly)
        self.assertEqual(self.forwards.status()[0].connections, 0)

    def test_client_that_sends_and_leaves(self) -> None:
        """What a client sent before it closed arrives, however slow the container is, within a limit."""
        client, far = self.pair()
        far.transport.pauseProducing()
        client.send(b"last")
        client.transport.loseWriteConnection()
        self.network.pump()
        client.transport.abortConnection()
        self.network.pump()
        far.transport.resumeProducing()
        self.network.pump()
        self.assertEqual(far.received, b"last")
        self.assertTrue(far.closed_cleanly)

    def test_container_that_never_takes_it(self) -> None:
        """What nobody takes for a while is dropped."""
        client, far = self.pair()
        far.transport.pauseProducing()
        client.send(b"last")
        client.transport.loseWriteConnection()
        self.network.pump()
        client.transport.abortConnection()
        self.network.pump()
        self.clock.advance(LINGER_SECONDS)
        self.network.pump()
        self.assertIsNotNone(far.lost)

    def test_link_lost(self) -> None:
        """When the link breaks, the client's connection is reset: it has not seen all there was."""
        client, far = self.pair()
        far.send(b"half of it")
        self.network.pump()
        far.transport.other.lost(LinkDown("gone"))
        self.network.pump()
        assert client.lost is not None
        self.assertFalse(client.closed_cleanly)

    def test_no_link(self) -> None:
        """Without a link an accepted connection is reset at once, and does not wait for one."""
        self.up(WEB)
        self.host.up = False
        client = self.connect()
        self.assertIsNotNone(client.lost)
        self.assertEqual(self.host.asked, [])

    def starting(self) -> tuple[Peer, Peer]:
        """A client that connects as soon as the container has started, and the container's end."""
        self.reserve(WEB)
        self.forwards.attach("c1", {"80/tcp": 32768})
        client = self.connect()
        client.send(b"question")
        self.network.pump()
        return client, self.host.endpoint.peers[-1]

    def test_program_that_is_about_to_listen(self) -> None:
        """Just after the start, a channel that closes at once is opened again; no byte is sent over it, none twice."""
        client, far = self.starting()
        far.transport.loseConnection()
        self.network.pump()
        self.assertIsNone(client.lost)
        self.clock.advance(AGAIN_SECONDS)
        self.network.pump()
        again = self.host.endpoint.peers[-1]
        self.clock.advance(SETTLE_SECONDS)
        self.network.pump()
        self.assertEqual((far.received, again.received), (b"", b"question"))

    def test_program_that_speaks_first(self) -> None:
        """What the container sends first shows that it is there."""
        client, far = self.starting()
        far.send(b"hello")
        self.network.pump()
        self.assertEqual((client.received, far.received), (b"hello", b"question"))

    def test_program_that_never_listens(self) -> None:
        """After some seconds the client is told what Docker would have told it at once."""
        client, far = self.starting()
        for _ in range(int(STARTING_SECONDS / AGAIN_SECONDS) + 2):
            far.transport.loseConnection()
            self.network.pump()
            if client.lost:
                break
            self.clock.advance(AGAIN_SECONDS)
            self.network.pump()
            far = self.host.endpoint.peers[-1]
        self.assertTrue(client.closed_cleanly)

    def test_client_leaves_while_nobody_listens(self) -> None:
        """A client that does not wait leaves nothing behind."""
        client, far = self.starting()
        far.transport.loseConnection()
        self.network.pump()
        client.transport.abortConnection()
        self.network.pump()
        self.assertEqual(self.forwards.status()[0].connections, 0)

    def test_nobody_listens(self) -> None:
        """Where nobody listens behind the port, the connection is closed, as by Docker; the status says why."""
        self.up(WEB)
        self.host.endpoint.failure = ChannelRefused("AllowTcpForwarding may forbid it", 1)
        client = self.connect()
        self.assertTrue(client.closed_cleanly)
        self.assertEqual(self.forwards.status()[0].reason, "AllowTcpForwarding may forbid it")
        self.host.endpoint.failure = None
        client = self.connect()
        self.host.endpoint.peers[-1].transport.write(b"hello")
        self.network.pump()
        client.transport.abortConnection()
        self.network.pump()
        self.assertEqual(self.forwards.status()[0].reason, "")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_link_lost_while_connecting(self) -> None:
        """A connection whose channel cannot be opened is reset."""
        self.up(WEB)
        self.host.endpoint.failure = LinkDown("gone")
        client = self.connect()
        self.assertIsNotNone(client.lost)
        self.assertFalse(client.closed_cleanly)

    def test_defect_is_logged(self) -> None:
        """An error that is nobody's fault but ours is logged with its traceback."""
        self.up(WEB)
        self.host.endpoint.failure = ZeroDivisionError()
        self.assertIsNotNone(self.connect().lost)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_client_leaves_while_connecting(self) -> None:
        """A client that is gone before its channel is open leaves nothing open."""
        self.up(WEB)
        self.host.endpoint.waiting = []
        client = self.connect()
        client.transport.abortConnection()
        self.network.pump()
        self.assertEqual(self.forwards.status()[0].connections, 0)

    def test_data_before_the_channel(self) -> None:
        """Before there is somewhere to send it to, what comes first is kept, and no more is read."""
        self.up(WEB)
        self.host.endpoint.waiting = []
        client = self.connect()
        client.send(b"early")
        self.network.pump()
        client.send(b"x" * MAX_EARLY)
        self.network.pump()
        client.send(b"late")
        self.network.pump()
        self.assertEqual(client.transport.buffered, 4)
        self.host.endpoint.let_in()
        self.network.pump()
        self.assertEqual(self.host.endpoint.peers[0].received, b"early" + b"x" * MAX_EARLY + b"late")

    def test_end_before_the_channel(self) -> None:
        """A client that has sent all before the channel is open is answered."""
        self.up(WEB)
        self.host.endpoint.waiting = []
        clients = [self.connect(), self.connect()]
        clients[0].send(b"all")
        for client in clients:
            client.transport.loseWriteConnection()
        self.network.pump()
        self.host.endpoint.let_in()
        self.network.pump()
        self.assertEqual([peer.received for peer in self.host.endpoint.peers], [b"all", b""])
        for client, peer in zip(clients, self.host.endpoint.peers, strict=True):
            self.assertTrue(peer.ended)
            peer.send(b"answer")
            peer.transport.loseConnection()
            self.network.pump()
            self.assertEqual((client.received, client.closed_cleanly), (b"answer", True))
        self.assertEqual(self.forwards.status()[0].connections, 0)

    def test_full_channel(self) -> None:
        """A channel that has no room when it is opened does not let the client be read."""
        self.up(WEB)
        self.patch(MemoryTransport, "registerProducer", _no_room)
        client = self.connect()
        client.send(b"x" * 10)
        self.network.pump()
        self.assertEqual((client.transport.buffered, self.forwards.status()[0].bytes_in), (10, 0))

    def test_stop_while_connecting(self) -> None:
        """Stopping gives up channels that are being opened."""
        self.up(WEB)
        self.host.endpoint.waiting = []
        client = self.connect()
        self.forwards.stop()
        self.network.pump()
        assert client.lost is not None
        self.assertFalse(client.lost.check(ConnectionDone))
        self.machine.turn()
