"""What a site has done, as numbers. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

__all__ = ["BUCKETS", "Counters", "Latency"]

#: Upper bounds of the buckets in which times until the answer are counted, in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Latency:
    """How long answers of one kind of call took.

    :ivar buckets: how many were within each of :data:`BUCKETS` (and not the one before), then those beyond.
    :ivar seconds: all of them together.
    """

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds


@dataclass
class Counters:
    """What a site has done so far, for status and metrics.

    :ivar requests: heads read, including the refused ones.
    :ivar refused: answered by rda instead of the daemon: errors of the client's or of the link.
    :ivar active: exchanges under way, tunnels included.
    :ivar hijacks: open tunnels; ``hijacks_total``: all there have been.
    :ivar retries: requests sent again because a kept connection turned out to be dead.
    :ivar to_daemon: bytes sent to the daemon; ``to_client``: bytes sent to clients.
    :ivar answers: how many there were, by route and status; ``latency``: how long they took, by route.
    """

    requests: int = 0
    refused: int = 0
    active: int = 0
    hijacks: int = 0
    hijacks_total: int = 0
    retries: int = 0
    to_daemon: int = 0
    to_client: int = 0
    answers: dict[tuple[str, int], int] = field(default_factory=dict)
    latency: dict[str, Latency] = field(default_factory=dict)

    def answered(self, name: str, code: int, seconds: float) -> None:
        """Count an answer, when its head is there.

        :param name: the route's: one of few.
        :param code: the HTTP status.
        """
        self.answers[name, code] = self.answers.get((name, code), 0) + 1
        latency = self.latency.get(name)
        if latency is None:
            latency = self.latency[name] = Latency()
        latency.add(seconds)
