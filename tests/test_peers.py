"""Whose a connection is, asked of this machine's own kernel."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from rda.access import peers
from rda.access.peers import ProcTable, SocketTable

#: A line of /proc/net/tcp: local, remote, state, uid, inode.
LINE = "   0: {} {} {} 00000000:00000000 00:00000000 00000000 {:5d}        0 {} 1 0000000000000000 100 0 0 10 0\n"


class TableTests(SynchronousTestCase):
    def setUp(self) -> None:
        if sys.platform != "linux":
            raise SkipTest("the kernel's table of sockets is Linux's")
        self.tables: list[SocketTable | ProcTable] = [ProcTable()]
        try:
            self.tables.append(SocketTable())
        except OSError:
            pass  # a sandbox without netlink: the other one is what rda uses there
        for table in self.tables:
            self.addCleanup(table.close)

    def pair(self, family: int = socket.AF_INET, host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
        """A connection: the client's socket and the server's."""
        with socket.socket(family) as listener:
            try:
                listener.bind((host, 0))
            except OSError as e:
                raise SkipTest(f"no {host} here") from e
            listener.listen()
            client = socket.create_connection(listener.getsockname()[:2])
            server, _ = listener.accept()
        for one in (client, server):
            self.addCleanup(one.close)
        return client, server

    def owners(self, server: socket.socket) -> set[int | None]:
        return {table.owner(server.getpeername()[:2], server.getsockname()[:2]) for table in self.tables}

    def test_own_connections(self) -> None:
        """A connection of this process is this user's, over IPv4 and IPv6."""
        self.assertEqual(self.owners(self.pair()[1]), {os.geteuid()})
        self.assertEqual(self.owners(self.pair(socket.AF_INET6, "::1")[1]), {os.geteuid()})

    def test_half_closed(self) -> None:
        """A client that has ended its input still is who it is."""
        client, server = self.pair()
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(server.recv(1), b"")
        self.assertEqual(self.owners(server), {os.geteuid()})

    def test_closed_is_nobodys(self) -> None:
        """A connection that its client has closed is nobody's, although the kernel lists it as root's."""
        client, server = self.pair()
        client.send(b"POST /containers/create")
        client.close()
        self.assertEqual(server.recv(100), b"POST /containers/create")
        self.assertEqual(server.recv(100), b"")
        self.assertEqual(self.owners(server), {None})

    def test_listeners_are_no_connections(self) -> None:
        """Somebody who listens at the port that is asked about is not taken for its connection's owner."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            here = listener.getsockname()
            self.assertEqual({table.owner(here, ("127.0.0.1", 1)) for table in self.tables}, {None})

    def test_ipv4_in_ipv6_clothes(self) -> None:
        """Addresses that a dual-stack listener shows are those of IPv4."""
        _, server = self.pair()
        (near, far) = server.getpeername(), server.getsockname()
        mapped = [(f"::ffff:{host}", port) for host, port in (near, far)]
        self.assertEqual({table.owner(*mapped) for table in self.tables}, {os.geteuid()})

    def test_the_best_there_is(self) -> None:
        """A table is only used when it finds a connection that is known to be there."""
        table = peers.socket_table()
        assert table is not None
        self.addCleanup(table.close)
        self.assertIs(type(table), type(self.tables[-1]))

    def test_unix_socket(self) -> None:
        """The other end of a UNIX socket is this process."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            found = peers.credentials(ours)
        self.assertEqual(found, peers.Credentials(os.getpid(), os.geteuid(), os.getegid()))

    def test_who_listens(self) -> None:
        """The process that has a port is named."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.assertIn(f"process {os.getpid()} (", peers.who_listens(listener.getsockname()[1]))
        self.assertEqual(peers.who_listens(-1), "")


class ProcTests(SynchronousTestCase):
    def table(self, *lines: str) -> ProcTable:
        root = Path(self.mktemp())
        (root / "net").mkdir(parents=True)
        (root / "net/tcp").write_text("heading\n" + "".join(lines))
        return ProcTable(str(root))

    def owner(self, state: str, uid: int, inode: int) -> int | None:
        line = LINE.format("0100007F:C350", "0100007F:5CC6", state, uid, inode)
        return self.table(line).owner(("127.0.0.1", 50000), ("127.0.0.1", 23750))

    def test_states(self) -> None:
        """Only a connection that a process holds has an owner: not one that waits out its time, or is being made."""
        if sys.byteorder != "little":
            raise SkipTest("the lines are a little-endian machine's")
        self.assertEqual(self.owner("01", 1000, 77), 1000)
        self.assertEqual(self.owner("05", 1000, 77), 1000)
        for state, uid, inode in (("01", 0, 0), ("06", 0, 0), ("02", 1000, 77), ("08", 1000, 77), ("0A", 1000, 77)):
            self.assertIsNone(self.owner(state, uid, inode), state)

    def test_names(self) -> None:
        """A user without a name is called by number, and is in no group."""
        self.assertEqual(peers.user_name(4_000_000_000), "#4000000000")
        self.assertEqual(peers.groups_of(4_000_000_000), frozenset())
        self.assertEqual(peers.user_name(0), "root")


class AnswerTests(SynchronousTestCase):
    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=100))
    def test_any_answer(self, answer: bytes) -> None:
        """Whatever comes instead of an answer is no owner."""
        self.assertIsNone(peers._owner_in(answer, ("127.0.0.1", 1), ("127.0.0.1", 2)))
