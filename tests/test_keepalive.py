"""rda.ssh.keepalive: noticing that the other side is gone."""

from __future__ import annotations

from twisted.internet.protocol import Factory, Protocol

from rda.ssh import keepalive
from rda.ssh.keepalive import DOUBT_SECONDS, QUIET_SECONDS
from tests.link_case import SOCKET, LinkCase


class KeepaliveTests(LinkCase):
    def test_a_dead_peer(self) -> None:
        """A peer that does not answer is given up after interval times count, and the link comes back."""
        self.start()
        client = self.connected(self.link.docker())
        self.network.advance(5)
        self.remote.deaf = True
        self.network.advance(14.75)
        self.assertEqual(self.link.status().state, "connected")
        self.network.advance(5.25)
        self.assertEqual(self.link.status().state, "waiting")
        self.assertIn("has not answered for 15 s", self.link.status().reason)
        self.assertIsNotNone(client.lost)
        self.remote.deaf = False
        self.network.advance(1)
        self.assertEqual(self.link.status().state, "connected")

    def test_a_busy_peer(self) -> None:
        """A peer that sends anything lives, even if its answers to pings are stuck behind a long queue."""
        self.start()
        client = self.connected(self.link.docker())
        self.remote.deaf = True
        self.link.network_changed()
        for _ in range(30):
            client.transport.write(b"x")
            self.network.advance(1)
        self.assertEqual(self.link.status().connects, 1)
        self.assertEqual(client.received, b"x" * 30)

    def test_an_idle_peer_that_lives(self) -> None:
        """A peer that answers keeps its connection, idle or not."""
        self.start()
        self.network.advance(300, step=5.0)
        self.assertEqual(self.link.status().connects, 1)
        self.assertGreater(len(self.remote.global_requests), 50)

    def test_a_request_to_a_peer_that_is_gone(self) -> None:
        """Sending to a peer that has been quiet finds out within seconds that it is gone."""
        self.remote.sockets[SOCKET] = Factory.forProtocol(Protocol)  # it answers nothing
        self.start()
        client = self.connected(self.link.docker())
        self.remote.deaf = True
        self.network.advance(QUIET_SECONDS + 1)
        client.transport.write(b"x")
        self.network.advance(DOUBT_SECONDS + 0.5)
        self.assertIn("tester@host:22 has not answered for 3 s.", [status.reason for status in self.seen])

    def test_a_peer_that_is_gone_after_a_change(self) -> None:
        """A peer that does not answer soon after a change of the network is given up without waiting for longer."""
        self.start()
        self.network.advance(5)
        self.remote.deaf = True
        for _ in range(3):
            self.link.network_changed()
            self.network.advance(1)
        self.assertIn("has not answered for 3 s", self.link.status().reason)
        self.remote.deaf = False
        self.network.advance(1)
        self.assertEqual(self.link.status().state, "connected")
        self.link.network_changed()
        self.network.advance(10)
        self.assertEqual(self.link.status().connects, 2)

    def test_a_peer_that_is_gone_after_sleep(self) -> None:
        """A machine that slept asks its peers at the next keepalive, and does not wait long for those that are gone."""
        slept = 0.0
        self.patch(keepalive, "time_asleep", lambda: slept)
        self.start()
        self.remote.deaf = True
        slept = 3600.0
        self.network.advance(5 + DOUBT_SECONDS + 0.5)
        self.assertIn("tester@host:22 has not answered for 3 s.", [status.reason for status in self.seen])

    def test_sleep_with_a_peer_that_lives(self) -> None:
        """Sleep alone ends nothing, and is noticed once."""
        slept = 0.0
        self.patch(keepalive, "time_asleep", lambda: slept)
        self.start()
        slept = 3600.0
        self.network.advance(5)
        asked = len(self.remote.global_requests)
        self.network.advance(5)
        self.assertEqual(len(self.remote.global_requests), asked + 1)
        self.assertEqual(self.link.status().connects, 1)

    def test_the_real_clocks(self) -> None:
        """How long this machine has slept is a number of seconds."""
        self.assertGreaterEqual(keepalive.time_asleep(), -1.0)

    def test_network_changed(self) -> None:
        """After a change of the network the peer is asked at once, and a waiting link does not wait."""
        self.start()
        asked = len(self.remote.global_requests)
        self.link.network_changed()
        self.network.settle()
        self.assertEqual(len(self.remote.global_requests), asked + 1)
        self.network.state = "refused"
        self.network.cut()
        self.network.advance(60)
        self.network.state = "up"
        self.link.network_changed()
        self.network.settle()
        self.assertEqual(self.link.status().state, "connected")
