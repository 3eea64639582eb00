"""rda.ports.tcp: listeners of this machine, and how many connections one takes."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from rda.ports import tcp
from rda.ports.tcp import tcp_listener
from tests.fake_machine import WEB, ForwardsCase


class BoundsTests(ForwardsCase):
    """How many connections a forward takes."""

    def test_held_are_bounded(self) -> None:
        """Only so many connections wait; a further one is reset, and counted."""
        self.patch(tcp, "MAX_HELD", 2)
        self.reserve(WEB)
        clients = [self.connect() for _ in range(3)]
        self.assertEqual([client.lost is not None for client in clients], [False, False, True])
        self.assertIn("refused", self.forwards.status()[0].reason)

    def test_connections_are_bounded(self) -> None:
        """Only so many connections are open; when one ends there is room again."""
        self.patch(tcp, "MAX_CONNECTIONS", 1)
        self.up(WEB)
        first, second = self.connect(), self.connect()
        self.assertIsNone(first.lost)
        self.assertIsNotNone(second.lost)
        first.transport.abortConnection()
        self.network.pump()
        self.assertIsNone(self.connect().lost)


class ListenerTests(SynchronousTestCase):
    """listener, with sockets of this machine."""

    def setUp(self) -> None:
        self.adopted: list[socket.socket] = []
        self.listen = tcp_listener(self)

    def tearDown(self) -> None:
        for one in self.adopted:
            one.close()

    def adoptStreamPort(self, descriptor: int, family: int, factory: object) -> socket.socket:
        """What the reactor does: it takes a duplicate."""
        self.adopted.append(socket.fromfd(descriptor, family, socket.SOCK_STREAM))
        return self.adopted[-1]

    def test_listens(self) -> None:
        """A listener takes connections, and its port is in use."""
        port: Any = self.listen(Factory(), "127.0.0.1", 0)
        address = port.getsockname()
        socket.create_connection(address, timeout=5).close()
        error = self.assertRaises(CannotListenError, self.listen, Factory(), *address)
        self.assertEqual(error.socketError.errno, errno.EADDRINUSE)

    def test_families_are_apart(self) -> None:
        """An IPv6 listener on every address leaves the IPv4 port free."""
        try:
            port: Any = self.listen(Factory(), "::", 0)
        except CannotListenError as error:
            self.assertIn(error.socketError.errno, (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL))
            return
        self.listen(Factory(), "0.0.0.0", port.getsockname()[1])

    def test_address_of_another_machine(self) -> None:
        """An address that is not here fails with the system's reason."""
        error = self.assertRaises(CannotListenError, self.listen, Factory(), "192.0.2.1", 0)
        self.assertEqual(error.socketError.errno, errno.EADDRNOTAVAIL)
