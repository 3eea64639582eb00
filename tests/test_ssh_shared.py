"""One link for all contexts of the same remote."""

from __future__ import annotations

import gc

from twisted.internet.protocol import Factory
from zope.interface.verify import verifyObject

from rda.config import Remote as RemoteConfig
from rda.errors import ConfigError, LinkDown
from rda.interfaces import IRemoteHost
from rda.ssh.docker_socket import SPARES
from rda.ssh.link import Link
from rda.ssh.shared import Links, SharedLink
from tests.link_case import SOCKET, Daemon, LinkCase

OTHER = "/run/user/1000/docker.sock"


class SharedCase(LinkCase):
    def setUp(self) -> None:
        super().setUp()
        self.made: list[str] = []
        self.links = Links(self.make)
        self.remote.sockets[OTHER] = Factory.forProtocol(Daemon)
        self.addCleanup(self.stop_all)
        self.shares: list[SharedLink] = []

    def make(self, remote: RemoteConfig, docker: str) -> Link:
        self.made.append(remote.target)
        self.docker = docker
        return self.make_link()

    def share(self, path: str = SOCKET, target: str = "host") -> SharedLink:
        self.shares.append(self.links.share(RemoteConfig(target), f"unix://{path}"))
        return self.shares[-1]

    def started(self, path: str = SOCKET) -> SharedLink:
        share = self.share(path)
        share.startService()
        self.network.settle()
        return share

    def stop_all(self) -> None:
        for share in self.shares:
            share.stopService()
        self.network.advance(6.0)

    def stopped(self, share: SharedLink) -> None:
        closed = share.stopService()
        self.network.settle()
        self.successResultOf(closed)


class SharedTests(SharedCase):
    def test_interface(self) -> None:
        """A share is a remote host for everybody who uses it."""
        verifyObject(IRemoteHost, self.share())

    def test_one_login(self) -> None:
        """Contexts that lead to the same host over the same way in share one connection."""
        first, second = self.started(), self.started(OTHER)
        self.assertEqual((self.made, self.network.attempts), (["host"], 1))
        for share in (first, second):
            self.assertTrue(share.connected)
            self.assertEqual(share.status().state, "connected")
            self.connected(share.docker())
        self.assertIs(first.link, second.link)

    def test_another_remote(self) -> None:
        """Another user, jump, key or pin makes another link."""
        self.share()
        for other in (RemoteConfig("root@host"), RemoteConfig("host", host_keys=("SHA256:x",))):
            self.assertIsNot(self.links.share(other, f"unix://{SOCKET}").link, self.shares[0].link)

    def test_own_daemons(self) -> None:
        """Each share reaches its own daemon, over channels that are open before they are needed."""
        shares = [self.started(), self.started(OTHER)]
        for share, path in zip(shares, (SOCKET, OTHER), strict=True):
            self.network.advance(0.1, 0.1)
            before = len(self.remote.opened)
            client = self.connected(share.docker())
            client.transport.write(b"GET /_ping HTTP/1.1\r\n\r\n")
            self.network.settle()
            self.assertTrue(client.received.startswith(b"HTTP/1.1 200 OK"))
            self.network.advance(0.1, 0.1)  # what is opened then is the next spare, of the same daemon
            self.assertEqual({data[4 : 4 + data[3]] for _, data in self.remote.opened[before:]}, {path.encode()})
            self.assertEqual(share.status().socket_via, "streamlocal")
            client.transport.loseConnection()

    def test_the_last_one_closes(self) -> None:
        """The connection lives as long as one share does."""
        first, second = self.started(), self.started()
        self.stopped(first)
        self.assertEqual(len(self.network.live), 1)
        self.connected(second.docker())
        self.stopped(second)
        self.assertEqual(self.network.live, [])
        self.assertEqual([share.status().state for share in (first, second)], ["stopped"] * 2)

    def test_stopped_twice(self) -> None:
        """Stopping one share twice does not stop the others."""
        first, second = self.started(), self.started()
        for _ in range(2):
            self.stopped(first)
        self.assertEqual(second.status().state, "connected")

    def test_nothing_after_the_end(self) -> None:
        """A share that was stopped opens nothing, though the link still lives."""
        first, _ = self.started(), self.started()
        endpoints = [first.docker(), first.tcp("localhost", 80), first.socket("/s"), first.command(b"true")]
        self.stopped(first)
        for endpoint in endpoints:
            self.failureResultOf(self.connect(endpoint), LinkDown)
        for asked in (first.files(), first.listen("/s", Factory())):
            self.failureResultOf(asked, LinkDown)

    def test_no_spares_for_nobody(self) -> None:
        """The channels to a daemon that no share needs any more are closed."""
        first, second = self.started(), self.started(OTHER)
        self.network.advance(0.1, 0.1)
        before = first.status().channels
        self.stopped(second)
        self.assertEqual(first.status().channels, before - SPARES)
        self.started(OTHER)
        self.network.advance(0.1, 0.1)
        self.assertEqual(first.status().channels, before)

    def test_started_again(self) -> None:
        """A share that was the last one connects again when it is started again."""
        first = self.started()
        self.stopped(first)
        first.startService()
        self.network.settle()
        self.assertTrue(first.connected)
        self.connected(first.docker())

    def test_observers(self) -> None:
        """Each share's observer hears of every change while the share runs, first of how things are."""
        first = self.started()
        seen: list[str] = []
        second = self.share()
        second.add_observer(lambda status: seen.append(status.state))
        second.startService()
        self.assertEqual(seen, ["connected"])
        self.network.cut()
        self.network.advance(2.0)
        self.assertEqual(seen, ["connected", "waiting", "connecting", "connected"])
        self.stopped(second)
        self.network.cut()
        self.network.advance(2.0)
        self.assertEqual(seen[4:], ["stopped"])
        self.assertEqual(first.status().state, "connected")

    def test_an_observer_that_fails(self) -> None:
        """An observer that fails is logged, and keeps nothing from the others."""
        share = self.share()
        seen: list[str] = []
        share.add_observer(lambda status: seen[0])  # fails as long as there is nothing
        share.add_observer(lambda status: seen.append(status.state))
        share.startService()
        self.network.settle()
        self.assertEqual(seen[-1], "connected")
        self.assertTrue(self.flushLoggedErrors(IndexError))

    def test_not_an_address(self) -> None:
        """A daemon's address that is none is refused before a link is made."""
        self.assertRaises(ConfigError, self.links.share, RemoteConfig("host"), "http://x")
        self.assertEqual(self.made, [])

    def test_forgotten(self) -> None:
        """Nothing remembers a link that nobody has a share of."""
        self.links.share(RemoteConfig("elsewhere"), f"unix://{SOCKET}")
        gc.collect()
        self.assertEqual(len(self.links), 0)
