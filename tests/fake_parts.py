"""Forwards and mirrors that only note what they are told, for the tests of those that tell them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from rda.docker.ports import Listener
from rda.errors import PortUnavailable
from rda.ports.forwards import Reservation
from rda.status import MirrorStatus
from rda.sync.placing import Place


class FakeForwards:
    """A table of ports without ports.

    :ivar journal: what was asked, in order; may be shared.
    :ivar failure: what the next reservations fail with.
    :ivar wanted: container -> what was reserved last.
    :ivar open: container -> its remote ports, None while they are only reserved.
    """

    def __init__(self, journal: list[str]) -> None:
        self.journal = journal
        self.failure: Exception | None = None
        self.open: dict[str, Mapping[str, int] | None] = {}
        self.wanted: dict[str, Any] = {}

    def reserve(self, container: str, name: str, wanted: Any, *, all_or_none: bool = True) -> Deferred[Any]:
        self.journal.append(f"reserve {name} " + ",".join(one.key for one in wanted))
        if (self.failure or self.rivals(container, wanted)) and all_or_none:
            return fail(self.failure or PortUnavailable("port is already allocated"))
        self.wanted[container] = tuple(wanted)
        self.open.setdefault(container, None)
        return succeed(Reservation(container, {}, str(self.failure or "")))

    def attach(self, container: str, remote: Mapping[str, int]) -> None:
        self.open[container] = dict(remote)

    def release(self, container: str) -> Deferred[None]:
        self.open.pop(container, None)
        return succeed(None)

    def local(self, container: str) -> dict[str, tuple[Listener, ...]] | None:
        return {"80/tcp": (Listener("", 8080),)} if container in self.open else None

    def rivals(self, container: str, wanted: Any) -> tuple[str, ...]:
        return tuple(other for other, ports in self.wanted.items() if other in self.open and ports == tuple(wanted))

    def udp_problem(self) -> Deferred[str]:
        return succeed("no python3")


class FakeMirrors:
    """Mirrors everything to below /mirror, when the test lets it.

    :ivar held: container -> the sources that it uses.
    :ivar apart: why sources have copies of their own, by source.
    :ivar inner: sources with copies of their own inside others, and their containers.
    :ivar flushing: flushes that the test has to end.
    :ivar failure: what places fail with.
    :ivar measured: what is to be transferred, by source.
    """

    def __init__(self, journal: list[str]) -> None:
        self.journal = journal
        self.held: dict[str, tuple[str, ...]] = {}
        self.flushing: list[Deferred[None]] = []
        self.failure: Exception | None = None
        self.measured: dict[str, MirrorStatus] = {}
        self.apart: dict[str, str] = {}
        self.inner: dict[str, dict[str, tuple[str, ...]]] = {}

    def place(self, source: str, create_missing: bool = False, alone: bool = False) -> Deferred[Place]:
        self.journal.append(f"place {source} {create_missing}{' alone' if alone else ''}")
        place = Place(source, "/mirror" + source, self.apart.get(source, ""))
        return fail(self.failure) if self.failure else succeed(place)

    def complete(self, source: str, mounted: Iterable[str] = (), starting: bool = False) -> Deferred[None]:
        self.journal.append(f"flush {source}")
        self.flushing.append(Deferred())
        return self.flushing[-1]

    def inner_copies(self, outer: str) -> dict[str, tuple[str, ...]]:
        return self.inner.get(outer, {})

    def join(self, source: str, outer: str, started: bool) -> Deferred[str]:
        self.journal.append(f"join {source} {outer} {started}")
        return succeed(self.apart.get(source, ""))

    def measure(self, source: str) -> Deferred[MirrorStatus | None]:
        return succeed(self.measured.get(source))

    def hold(
        self, container: str, sources: Iterable[str], mounted: Iterable[str] = (), created: bool = False
    ) -> Deferred[None]:
        self.held[container] = tuple(sources)
        return succeed(None)

    def release(self, container: str) -> Deferred[None]:
        self.held.pop(container, None)
        return succeed(None)
