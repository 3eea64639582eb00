"""Numbers for Prometheus, made from the status when they are asked for: counting costs nothing that it did not before.

Every name is in docs/metrics.rst, and used by the sample dashboard and alert rules in etc/.

Source: https://prometheus.io/docs/practices/naming/ and https://prometheus.io/docs/instrumenting/writing_exporters/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import get_args

from prometheus_client import ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from rda import __version__
from rda.status import LATENCY_BUCKETS, ContextStatus, ForwardState, ForwardStatus, LinkState, MirrorState, MirrorStatus

__all__ = ["Metrics"]

_LINK_STATES = tuple(state for state in get_args(LinkState) if state not in ("stopped", "idle"))
_FORWARD_STATES = get_args(ForwardState)
_MIRROR_STATES = get_args(MirrorState)

Status = Callable[[], Sequence[ContextStatus]]


class Metrics:
    """The metrics of one agent, in a registry of their own.

    :param status: gives the contexts' status at the time of the call.
    """

    def __init__(self, status: Status) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Contexts(status))
        ProcessCollector(registry=self._registry)  # processor time, memory, descriptors: where there is a /proc

    def write(self, accept: bytes) -> tuple[bytes, bytes]:
        """Write all of them; return the text and its content type.

        :param accept: what the collector said it understands.
        """
        encode, kind = choose_encoder(accept.decode("latin-1"))
        return encode(self._registry), kind.encode("ascii")


class _Contexts(Collector):
    """Collects what the contexts tell of themselves."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Make all metrics from one status."""
        contexts = self._status()
        yield InfoMetricFamily("rda_build", "The version of rda.", value={"version": __version__})
        yield from _link(contexts)
        yield from _relay(contexts)
        yield from _routes(contexts)
        yield from _forwards(contexts)
        yield from _mirrors(contexts)
        problems = _gauge("rda_problems", "What does not work of a context, all parts together.", "context")
        for context in contexts:
            problems.add_metric([context.name], problem_count(context))
        yield problems


def problem_count(context: ContextStatus) -> int:
    """How many things of a context do not work."""
    return (
        len(context.problems)
        + bool(context.link.reason)
        + sum(1 for forward in context.forwards if forward.reason)
        + sum(_problems(mirror) for mirror in context.mirrors)
    )


def _problems(mirror: MirrorStatus) -> int:
    return max(len(mirror.problems), mirror.problems_total)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=labels)


def _link(contexts: Sequence[ContextStatus]) -> Iterator[Metric]:
    state = _gauge("rda_link_state", "Which state the SSH link is in: 1 for that one.", "context", "state")
    since = _gauge("rda_link_state_since_timestamp_seconds", "When that state began.", "context")
    connects = _counter("rda_link_connects", "How often the link was connected.", "context")
    channels = _gauge("rda_link_channels", "SSH channels that are open.", "context")
    trip = _gauge("rda_link_round_trip_seconds", "Round trip to the remote host, as last measured.", "context")
    for context in contexts:
        link, name = context.link, context.name
        for one in _LINK_STATES:
            state.add_metric([name, one], link.state == one)
        since.add_metric([name], link.since)
        connects.add_metric([name], link.connects)
        channels.add_metric([name], link.channels)
        if link.round_trip is not None:
            trip.add_metric([name], link.round_trip)
    yield from (state, since, connects, channels, trip)


def _relay(contexts: Sequence[ContextStatus]) -> Iterator[Metric]:
    connections = _gauge("rda_client_connections", "Connections of Docker clients.", "context")
    requests = _counter("rda_requests", "Requests of Docker clients.", "context")
    refused = _counter("rda_requests_refused", "Requests that rda answered with an error itself.", "context")
    active = _gauge("rda_requests_active", "Requests under way, attached streams among them.", "context")
    hijacks = _gauge("rda_hijacks_active", "Attached terminals, execs and build sessions.", "context")
    retries = _counter("rda_request_retries", "Requests sent again over another connection to the daemon.", "context")
    carried = _counter("rda_relayed_bytes", "Bytes of API calls.", "context", "direction")
    for context in contexts:
        relay, name = context.relay, context.name
        connections.add_metric([name], relay.connections)
        requests.add_metric([name], relay.requests)
        refused.add_metric([name], relay.refused)
        active.add_metric([name], relay.active)
        hijacks.add_metric([name], relay.hijacks)
        retries.add_metric([name], relay.retries)
        carried.add_metric([name, "to_daemon"], relay.to_daemon)
        carried.add_metric([name, "to_client"], relay.to_client)
    yield from (connections, requests, refused, active, hijacks, retries, carried)


def _routes(contexts: Sequence[ContextStatus]) -> Iterator[Metric]:
    answers = _counter("rda_answers", "Answers to Docker clients.", "context", "route", "code")
    latency = HistogramMetricFamily("rda_answer_seconds", "Time until an answer began.", labels=["context", "route"])
    bounds = [*map(str, LATENCY_BUCKETS), "+Inf"]
    for context in contexts:
        for route in context.relay.routes:
            for code, count in route.codes:
                answers.add_metric([context.name, route.name, str(code)], count)
            buckets = list(zip(bounds, map(float, accumulate(route.buckets)), strict=True))
            latency.add_metric([context.name, route.name], buckets=buckets, sum_value=route.seconds)
    yield from (answers, latency)


def _forwards(contexts: Sequence[ContextStatus]) -> Iterator[Metric]:
    labels = ("context", "container", "port", "local")
    states = _gauge("rda_forwards", "Published ports, by state.", "context", "state")
    connections = _gauge("rda_forward_connections_open", "Connections through a published port.", *labels)
    total = _counter("rda_forward_connections", "Connections through a published port so far.", *labels)
    carried = _counter("rda_forwarded_bytes", "Bytes through a published port.", *labels, "direction")
    dropped = _counter("rda_forward_dropped", "Datagrams and connections not passed on.", *labels)
    for context in contexts:
        counts = Counter(forward.state for forward in context.forwards)
        for state in _FORWARD_STATES:
            states.add_metric([context.name, state.replace(" ", "_")], counts[state])
        for forward in context.forwards:
            named = _forward_labels(context, forward)
            connections.add_metric(named, forward.connections)
            total.add_metric(named, forward.connections_total)
            dropped.add_metric(named, forward.dropped)
            carried.add_metric([*named, "in"], forward.bytes_in)
            carried.add_metric([*named, "out"], forward.bytes_out)
    yield from (states, connections, total, carried, dropped)


def _forward_labels(context: ContextStatus, forward: ForwardStatus) -> list[str]:
    return [context.name, forward.name, forward.port, forward.local]


def _mirrors(contexts: Sequence[ContextStatus]) -> Iterator[Metric]:
    labels = ("context", "source")
    states = _gauge("rda_mirrors", "Mirrors, by state.", "context", "state")
    files = _gauge("rda_mirror_files", "Files on the remote host because of a mirror.", *labels)
    size = _gauge("rda_mirror_bytes", "Bytes on the remote host because of a mirror.", *labels)
    lag = _gauge("rda_mirror_lag_seconds", "From the last noticed change to its arrival.", *labels)
    at = _gauge("rda_mirror_last_change_timestamp_seconds", "When the last change arrived.", *labels)
    queue = _gauge("rda_mirror_queue_files", "Files that are still to be transferred.", *labels)
    queued = _gauge("rda_mirror_queue_bytes", "Bytes that are still to be transferred.", *labels)
    problems = _gauge("rda_mirror_problems", "Paths of a mirror that do not work.", *labels)
    conflicts = _gauge("rda_mirror_conflicts", "Remote files that are kept under another name.", *labels)
    for context in contexts:
        counts = Counter(mirror.state for mirror in context.mirrors)
        for state in _MIRROR_STATES:
            states.add_metric([context.name, state], counts[state])
        for mirror in context.mirrors:
            named = [context.name, mirror.source.encode("utf-8", "backslashreplace").decode()]
            files.add_metric(named, mirror.files)
            size.add_metric(named, mirror.bytes)
            if mirror.latency is not None and mirror.last_change is not None:
                lag.add_metric(named, mirror.latency)
                at.add_metric(named, mirror.last_change)
            queue.add_metric(named, max(0, mirror.files_total - mirror.files_done))
            queued.add_metric(named, max(0, mirror.bytes_total - mirror.bytes_done))
            problems.add_metric(named, _problems(mirror))
            conflicts.add_metric(named, len(mirror.conflicts))
    yield from (states, files, size, lag, at, queue, queued, problems, conflicts)
