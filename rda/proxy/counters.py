"""What a site has done, as numbers. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from rda.status import LATENCY_BUCKETS, RouteStatus

__all__ = ["Counters", "RouteCounters"]


class RouteCounters:
    """The answers to one kind of call: see :class:`rda.status.RouteStatus`."""

    __slots__ = ("buckets", "codes", "seconds")

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.buckets = [0] * (len(LATENCY_BUCKETS) + 1)
        self.seconds = 0.0

    def add(self, code: int, seconds: float) -> None:
        """Count one."""
        self.codes[code] = self.codes.get(code, 0) + 1
        self.buckets[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self.seconds += seconds


@dataclass
class Counters:
    """What a site has done so far, for status and metrics.

    :ivar requests: heads read, including the refused ones.
    :ivar refused: answered by rda instead of the daemon: errors of the client's or of the link.
    :ivar active: exchanges under way, tunnels included.
    :ivar hijacks: open tunnels.
    :ivar retries: requests sent again because a kept connection turned out to be dead.
    :ivar to_daemon: bytes sent to the daemon; ``to_client``: bytes sent to clients.
    :ivar routes: the answers, by the route's name.
    """

    requests: int = 0
    refused: int = 0
    active: int = 0
    hijacks: int = 0
    retries: int = 0
    to_daemon: int = 0
    to_client: int = 0
    routes: dict[str, RouteCounters] = field(default_factory=dict)

    def answered(self, name: str, code: int, seconds: float) -> None:
        """Count an answer, when its head is there.

        :param name: the route's: one of few.
        :param code: the HTTP status.
        """
        route = self.routes.get(name)
        if route is None:
            route = self.routes[name] = RouteCounters()
        route.add(code, seconds)

    def route_status(self) -> tuple[RouteStatus, ...]:
        """The answers so far, by kind of call."""
        return tuple(
            RouteStatus(name, tuple(sorted(route.codes.items())), tuple(route.buckets), route.seconds)
            for name, route in sorted(self.routes.items())
        )
