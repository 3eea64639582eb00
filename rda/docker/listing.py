"""The filters of ``/containers/json`` that name what rda rewrites: the user's ports and the user's paths. Pure.

The daemon would compare ``publish=8080`` with the port that the remote host happens to use, so filters on such values
are taken out of the query and applied here, to the list as the user sees it.

Source: the Engine API's ContainerList; moby's ``daemon/list.go`` for what the filters mean together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rda.docker.document import object_of, parse_any, serialise
from rda.docker.routes import Query
from rda.errors import RdaError

__all__ = ["ListFilter", "outward_filters"]

#: Filters that can name a value of the user's. ``expose`` never does, but the daemon takes a container that matches
#: either ``publish`` or ``expose``: the two cannot be told apart once one of them is missing.
_OURS = ("publish", "expose", "volume")

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/([a-z]*))?")


@dataclass(frozen=True)
class ListFilter:
    """What is left to filter when the daemon has answered.

    :ivar publish: spans of local ports: first, last, protocol.
    :ivar expose: the same of container ports.
    :ivar volumes: names, sources or targets of mounts.
    :ivar limit: the most entries to keep, or None.
    """

    publish: tuple[tuple[int, int, str], ...] = ()
    expose: tuple[tuple[int, int, str], ...] = ()
    volumes: tuple[str, ...] = ()
    limit: int | None = None

    def apply(self, items: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
        """Return the entries that match, in their order.

        :param items: entries as the user sees them.
        """
        return [item for item in items if self._matches_ports(item) and self._matches_volumes(item)][: self.limit]

    def _matches_ports(self, item: Mapping[str, object]) -> bool:
        if not self.publish and not self.expose:
            return True
        ports = item.get("Ports")
        return any(
            isinstance(port, dict)
            and (
                _within(self.publish, port.get("PublicPort"), port.get("Type"))
                or _within(self.expose, port.get("PrivatePort"), port.get("Type"))
            )
            for port in (ports if isinstance(ports, list) else ())
        )

    def _matches_volumes(self, item: Mapping[str, object]) -> bool:
        if not self.volumes:
            return True
        mounts = item.get("Mounts")
        return any(
            isinstance(mount, dict)
            and (mount.get("Destination") in self.volumes or (mount.get("Name") or mount.get("Source")) in self.volumes)
            for mount in (mounts if isinstance(mounts, list) else ())
        )


def _within(spans: tuple[tuple[int, int, str], ...], port: object, protocol: object) -> bool:
    return isinstance(port, int) and any(first <= port <= last and protocol == wanted for first, last, wanted in spans)


def outward_filters(query: Query) -> tuple[Query, ListFilter | None]:
    """Take the filters that name the user's values out of a list's query.

    :return: the query to send, and what to apply to the answer; the query as it is and None when there is nothing
        to take, or when the daemon will refuse it anyway.
    """
    values = dict(reversed(query))  # of a parameter that comes twice the daemon takes the first
    try:
        filters = object_of(parse_any(values.get("filters", "").encode("utf-8", "replace")), "filters")
        taken = {name: _values(filters[name]) for name in _OURS if name in filters}
        if not taken.get("publish") and not taken.get("volume"):
            return query, None
        limit = int(values.get("limit") or 0)
        rest = ListFilter(
            publish=_spans(taken.get("publish", ())),
            expose=_spans(taken.get("expose", ())),
            volumes=taken.get("volume", ()),
            limit=limit if limit > 0 else None,
        )
    except (RdaError, ValueError):
        return query, None
    kept = {name: value for name, value in filters.items() if name not in _OURS}
    return _query(query, kept, rest.limit), rest


def _query(query: Query, filters: Mapping[str, object], limit: int | None) -> Query:
    """Write the query anew: a limit counts what is left after all filters, and means all states."""
    skipped = ("filters", "limit", "all") if limit is not None else ("filters",)
    pairs = [pair for pair in query if pair[0] not in skipped]
    if limit is not None:
        pairs.append(("all", "1"))
    if filters:
        pairs.append(("filters", serialise(filters).decode("utf-8")))
    return tuple(pairs)


def _values(value: object) -> tuple[str, ...]:
    """Read one filter's values: a list, or, as clients before API 1.22 wrote them, an object of true ones."""
    if isinstance(value, dict):
        value = [name for name, on in value.items() if on]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("not a filter")
    return tuple(value)


def _spans(values: Sequence[str]) -> tuple[tuple[int, int, str], ...]:
    """Read ports: ``8080``, ``8080/udp``, ``8000-8010/tcp``."""
    spans = []
    for value in values:
        found = _PORTS.fullmatch(value)
        if not found:
            raise ValueError("not a port")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError("not a range of ports")
        spans.append((first, last, found[3] or "tcp"))
    return tuple(spans)
