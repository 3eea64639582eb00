"""rda.ports.forwards: local listeners that are there exactly while they should be, and lead where they should."""

from __future__ import annotations

import errno

from rda.docker.ports import Listener, Published
from rda.errors import PortUnavailable
from rda.ports import forwards
from rda.ports.splice import SETTLE_SECONDS
from tests.fake_machine import WEB, ForwardsCase


class ReserveTests(ForwardsCase):
    """What listens."""

    def test_default_addresses(self) -> None:
        """Without an address, all default ones are opened, on the port asked for."""
        reservation = self.reserve(WEB)
        self.assertEqual(set(self.machine.open), {("127.0.0.1", 8080), ("::1", 8080)})
        self.assertEqual(reservation.listeners, {"80/tcp": (Listener("", 8080),)})
        self.assertEqual(self.states(), [("80/tcp", "127.0.0.1:8080, [::1]:8080", "", "reserved")])

    def test_named_address(self) -> None:
        """The address that was asked for is opened, and no other."""
        self.reserve(Published(80, "tcp", "0.0.0.0", 8080, 8080), Published(81, "tcp", "::1", 8081, 8081))
        self.assertEqual(set(self.machine.open), {("0.0.0.0", 8080), ("::1", 8081)})
        self.assertEqual(
            self.forwards.local("c1"), {"80/tcp": (Listener("0.0.0.0", 8080),), "81/tcp": (Listener("::1", 8081),)}
        )

    def test_several_bindings_of_one_port(self) -> None:
        """A container port may be open on several local ports, in the order asked for."""
        self.reserve(Published(80, "tcp", "", 9000, 9000), WEB)
        self.assertEqual(self.forwards.local("c1"), {"80/tcp": (Listener("", 9000), Listener("", 8080))})

    def test_ephemeral(self) -> None:
        """Any free port is the same on every default address."""
        self.machine.errors["::1", 49152] = errno.EADDRINUSE
        self.reserve(Published(80, "tcp"))
        self.machine.turn()
        self.assertEqual(set(self.machine.open), {("127.0.0.1", 49153), ("::1", 49153)})
        self.assertEqual(self.forwards.local("c1"), {"80/tcp": (Listener("", 49153),)})

    def test_range(self) -> None:
        """Of a range, each binding takes the first port that is free on every address."""
        self.machine.errors["::1", 8000] = errno.EADDRINUSE
        self.reserve(Published(80, "tcp", "", 8000, 8003), Published(81, "tcp", "", 8000, 8003))
        self.machine.turn()
        self.assertEqual(self.forwards.local("c1"), {"80/tcp": (Listener("", 8001),), "81/tcp": (Listener("", 8002),)})
        self.assertEqual({port for _, port in self.machine.open}, {8001, 8002})

    def test_range_used_up(self) -> None:
        """A range without a free port fails, and says so."""
        for port in (8000, 8001):
            self.machine.errors["127.0.0.1", port] = errno.EADDRINUSE
        error = self.fails(Published(80, "tcp", "", 8000, 8001))
        self.assertIn("all ports in the range 0.0.0.0:8000-8001 are already allocated", str(error))

    def fails(self, *wanted: Published) -> PortUnavailable:
        """The error that reserving ends with."""
        failure = self.failureResultOf(self.forwards.reserve("c1", "/web", wanted), PortUnavailable)
        self.machine.turn()
        error = failure.value
        assert isinstance(error, PortUnavailable)
        return error

    def test_in_use(self) -> None:
        """A port in use fails in the daemon's words and status, and leaves nothing open: all or nothing."""
        self.machine.errors["::1", 8081] = errno.EADDRINUSE
        error = self.fails(WEB, Published(81, "tcp", "", 8081, 8081))
        self.assertEqual(
            str(error),
            "driver failed programming external connectivity on endpoint web (c1): "
            "Bind for 0.0.0.0:8081 failed: port is already allocated",
        )
        self.assertEqual(error.status, 500)
        self.assertEqual(self.machine.open, {})
        self.assertEqual([one.state for one in self.forwards.status()], ["not forwarded"] * 2)
        self.assertIn("already allocated", self.forwards.status()[1].reason)

    def test_in_use_by_another_container(self) -> None:
        """Two containers cannot have the same port, and the first keeps it."""
        self.reserve(WEB, container="c0", name="first")
        self.assertIn("Bind for 0.0.0.0:8080 failed", str(self.fails(WEB)))
        self.assertEqual(set(self.machine.open), {("127.0.0.1", 8080), ("::1", 8080)})

    def test_rivals(self) -> None:
        """It is known who holds a port that somebody else wants: of the same protocol, and not of oneself."""
        self.reserve(WEB, container="c0", name="first")
        for wanted, rivals in (
            (WEB, ("c0",)),
            (Published(443, "tcp", "127.0.0.1", 8000, 8090), ("c0",)),
            (Published(80, "udp", "", 8080, 8080), ()),
            (Published(80, "tcp", "", 0, 0), ()),
            (Published(80, "tcp", "", 8081, 8081), ()),
        ):
            self.assertEqual(self.forwards.rivals("c1", [wanted]), rivals, wanted)
        self.assertEqual(self.forwards.rivals("c0", [WEB]), ())

    def test_failure_keeps_what_was(self) -> None:
        """A failed change leaves what the container had open."""
        self.reserve(WEB)
        self.machine.errors["127.0.0.1", 8081] = errno.EADDRINUSE
        self.fails(WEB, Published(81, "tcp", "", 8081, 8081))
        self.assertEqual(set(self.machine.open), {("127.0.0.1", 8080), ("::1", 8080)})

    def test_in_use_partly(self) -> None:
        """For a container that runs already, what can be opened is, and the rest is told and tried again later."""
        self.machine.errors["127.0.0.1", 8081] = errno.EADDRINUSE
        ports = (WEB, Published(81, "tcp", "", 8081, 8081))
        reservation = self.successResultOf(self.forwards.reserve("c1", "/web", ports, all_or_none=False))
        self.assertIn("Bind for 0.0.0.0:8081 failed", reservation.problem)
        self.assertEqual(set(self.machine.open), {("127.0.0.1", 8080), ("::1", 8080)})
        self.assertEqual([one.state for one in self.forwards.status()], ["reserved", "not forwarded"])
        self.machine.errors.clear()
        reservation = self.successResultOf(self.forwards.reserve("c1", "/web", ports, all_or_none=False))
        self.assertEqual((reservation.problem, len(self.machine.open)), ("", 4))

    def test_privileged(self) -> None:
        """A privileged port that cannot be opened fails with what to do about it."""
        self.machine.errors["127.0.0.1"] = errno.EACCES
        error = str(self.fails(Published(80, "tcp", "", 80, 80)))
        self.assertIn("net.ipv4.ip_unprivileged_port_start", error)
        self.assertIn("cap_net_bind_service", error)

    def test_no_descriptors(self) -> None:
        """Running out of descriptors is told as that, and not as a port in use."""
        self.machine.errors["127.0.0.1"] = errno.EMFILE
        self.assertIn("ulimit -n", str(self.fails(WEB)))

    def test_without_ipv6(self) -> None:
        """A default address that this machine does not have is left out."""
        for code in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            self.machine.errors["::1"] = code
            self.reserve(WEB, container=str(code))
            self.assertEqual(set(self.machine.open), {("127.0.0.1", 8080)})
            closing = self.forwards.release(str(code))
            self.machine.turn()
            self.successResultOf(closing)

    def test_without_any_address(self) -> None:
        """With none of the addresses there is no port."""
        self.machine.errors |= {"127.0.0.1": errno.EADDRNOTAVAIL, "::1": errno.EADDRNOTAVAIL}
        self.assertIn("cannot assign requested address", str(self.fails(WEB)))

    def test_foreign_address(self) -> None:
        """An address that the user named and this machine does not have fails in the daemon's words."""
        self.machine.errors["10.9.9.9"] = errno.EADDRNOTAVAIL
        error = str(self.fails(Published(80, "tcp", "10.9.9.9", 8080, 8080)))
        self.assertIn("listen tcp4 10.9.9.9:8080: bind: cannot assign requested address", error)

    def test_too_many(self) -> None:
        """The listeners of one container are bounded."""
        self.patch(forwards, "MAX_PORTS", 1)
        self.fails(WEB, Published(81, "tcp"))
        self.assertEqual(self.machine.open, {})

    def test_sctp(self) -> None:
        """What cannot pass is not opened; the status says why."""
        self.reserve(WEB, Published(90, "sctp", "", 90, 90))
        self.assertEqual([one.state for one in self.forwards.status()], ["reserved", "not forwarded"])
        self.assertIn("SCTP", self.forwards.status()[1].reason)

    def test_again(self) -> None:
        """Reserving the same again changes nothing; a difference is made up, without touching the rest."""
        self.reserve(WEB)
        before = dict(self.machine.open)
        self.reserve(WEB)
        self.assertEqual(self.machine.open, before)
        other = Published(81, "tcp", "", 8081, 8081)
        self.reserve(WEB, other)
        self.reserve(other)
        self.machine.turn()
        self.assertEqual({port for _, port in self.machine.open}, {8081})

    def test_waits_for_closing(self) -> None:
        """A port that another container has just given back is waited for."""
        self.reserve(WEB, container="c0")
        self.forwards.release("c0")
        reserving = self.forwards.reserve("c1", "web", [WEB])
        self.assertNoResult(reserving)
        self.machine.turn()
        self.successResultOf(reserving)
        self.assertIsNone(self.forwards.local("c0"))
        self.assertEqual(self.forwards.local("c1"), {"80/tcp": (Listener("", 8080),)})

    def test_rename(self) -> None:
        """The name in the status is the last one told."""
        self.reserve(WEB)
        self.reserve(WEB, name="/other")
        self.assertEqual(self.forwards.status()[0].name, "other")


class LifeTests(ForwardsCase):
    """attach, release and stop."""

    def test_attach(self) -> None:
        """An attached port is open, and leads to the remote port."""
        self.up(WEB)
        self.assertEqual(self.states(), [("80/tcp", "127.0.0.1:8080, [::1]:8080", "127.0.0.1:32768", "open")])
        self.connect("::1")
        self.assertEqual(self.host.asked, [("127.0.0.1", 32768)])

    def test_held(self) -> None:
        """A connection that comes before it is known where it leads waits, and loses nothing that it sent."""
        self.reserve(WEB)
        client = self.connect()
        client.send(b"early")
        self.network.pump()
        self.assertEqual(self.host.asked, [])
        self.forwards.attach("c1", {"80/tcp": 32768})
        self.network.pump()
        self.clock.advance(SETTLE_SECONDS)
        self.network.pump()
        self.assertEqual(self.host.endpoint.peers[0].received, b"early")

    def test_moved(self) -> None:
        """When the daemon moves a port, new connections go to the new one and open ones stay."""
        self.up(WEB)
        client = self.connect()
        self.forwards.attach("c1", {"80/tcp": 40000})
        self.connect()
        self.assertEqual(self.host.asked, [("127.0.0.1", 32768), ("127.0.0.1", 40000)])
        self.clock.advance(SETTLE_SECONDS)
        client.send(b"x")
        self.network.pump()
        self.assertEqual(self.host.endpoint.peers[0].received, b"x")

    def test_not_published(self) -> None:
        """A port that the daemon does not publish is closed, and says why, until it is reserved again."""
        self.up(WEB)
        self.forwards.attach("c1", {})
        self.machine.turn()
        self.assertEqual(self.machine.open, {})
        self.assertEqual(self.states(), [("80/tcp", "0.0.0.0:8080", "", "not forwarded")])
        self.up(WEB)
        self.assertEqual(len(self.machine.open), 2)
        self.assertEqual([state for *_, state in self.states()], ["open"])

    def test_release(self) -> None:
        """Released listeners are closed, and those that waited are let go; open connections end by themselves."""
        self.reserve(Published(81, "tcp", "", 8081, 8081), WEB)
        waiting = self.connect(port=8081)
        self.forwards.attach("c1", {"80/tcp": 1, "81/tcp": 2})
        client = self.connect()
        held = self.connect(port=8081)
        self.clock.advance(SETTLE_SECONDS)
        self.assertIsNone(waiting.lost)
        closing = self.forwards.release("c1")
        self.assertNoResult(closing)
        self.machine.turn()
        self.successResultOf(closing)
        self.assertEqual((self.machine.open, self.forwards.status()), ({}, ()))
        far = self.host.endpoint.peers[1]
        far.send(b"last words")
        far.transport.loseConnection()
        self.network.pump()
        self.assertEqual(client.received, b"last words")
        self.assertIsNone(held.lost)
        self.forwards.stop()
        self.network.pump()
        self.assertIsNotNone(held.lost)

    def test_release_of_held(self) -> None:
        """A container that ends before it was up resets what waited for it."""
        self.reserve(WEB)
        client = self.connect()
        self.forwards.release("c1")
        self.network.pump()
        self.assertIsNotNone(client.lost)
        self.machine.turn()

    def test_unknown(self) -> None:
        """Containers that are not in the table can be attached and released without effect."""
        self.forwards.attach("x", {"80/tcp": 1})
        self.successResultOf(self.forwards.release("x"))
        self.assertIsNone(self.forwards.local("x"))

    def test_stop(self) -> None:
        """Stopping closes every listener and resets every connection."""
        self.up(WEB)
        client = self.connect()
        stopping = self.forwards.stop()
        self.network.pump()
        self.machine.turn()
        self.successResultOf(stopping)
        assert client.lost is not None
        self.assertEqual(self.machine.open, {})
        self.assertIsNotNone(self.host.endpoint.peers[0].lost)
