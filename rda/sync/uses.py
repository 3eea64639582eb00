"""Which sources are used, by which containers, and whose copy each is mounted from. Pure.

Most sources have a copy of their own. One that lies within another can be mounted from that one's copy instead, see
:mod:`rda.sync.nested`; which of the two it is was decided when its container was created, and stays so for that one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

#: Seconds for which a place stays live after it was given: the create may still be on its way, and for whoever runs one
#: short-lived container after the other it is ready.
GRACE = 120.0


@dataclass
class _Given:
    """A place that was given to creates.

    :ivar server: the source whose copy it is in.
    :ivar at: when it was given last.
    :ivar under_way: how many of the creates have not ended.
    """

    server: str
    at: float
    under_way: int = 1


class Uses:
    """All that uses the mirrors of one context. A *server* is a source with a copy of its own."""

    def __init__(self) -> None:
        self._given: dict[str, _Given] = {}
        self._held: dict[str, Mapping[str, str]] = {}

    def give(self, source: str, server: str, now: float) -> None:
        """A create that is under way gets a source's place."""
        before = self._given.get(source)
        others = before.under_way if before is not None and before.server == server else 0
        self._given[source] = _Given(server, now, others + 1)

    def taken(self, sources: Iterable[str]) -> None:
        """A create that got these has ended, and its container holds them."""
        for source in sources:
            given = self._given.get(source)
            if given is not None and given.under_way:
                given.under_way -= 1

    def hold(self, container: str, sources: Mapping[str, str]) -> None:
        """A container uses these sources, each from the copy of its server."""
        self._held[container] = dict(sources)

    def correct(self, container: str, source: str, server: str) -> None:
        """It has turned out whose copy a container has a source mounted from."""
        if source in self._held.get(container, {}):
            self._held[container] = {**self._held[container], source: server}

    def move(self, old: str, new: str) -> None:
        """All that was mounted from one copy is mounted from another one from now on."""
        for given in self._given.values():
            if given.server == old:
                given.server = new
        for container, sources in self._held.items():
            self._held[container] = {source: new if by == old else by for source, by in sources.items()}

    def release(self, container: str) -> None:
        """A container is gone."""
        self._held.pop(container, None)

    def held(self, container: str) -> Mapping[str, str]:
        """What a container uses, with the server of each source."""
        return self._held.get(container, {})

    def expire(self, now: float) -> bool:
        """Forget places that were given long ago; whether there are others."""
        self._given = {source: given for source, given in self._given.items() if given.at + GRACE > now}
        return bool(self._given)

    def servers(self, source: str) -> tuple[str, ...]:
        """Whose copies a source is mounted from now: hardly ever more than one."""
        return tuple(dict.fromkeys(server for one, server in self._all() if one == source))

    def with_own_copy(self) -> tuple[str, ...]:
        """The sources that are mounted from copies of their own."""
        return tuple(sorted({source for source, by in self._all() if by == source}))

    def containers(self, server: str) -> tuple[str, ...]:
        """The containers that have something mounted from a server's copy."""
        return tuple(container for container, sources in self._held.items() if server in sources.values())

    def nested(self, server: str) -> tuple[str, ...]:
        """The other sources that are mounted from a server's copy."""
        return tuple(sorted({source for source, by in self._all() if by == server != source}))

    def is_used(self, server: str) -> bool:
        """Whether anything is mounted from a server's copy, or was a moment ago."""
        return any(given.server == server for given in self._given.values()) or bool(self.containers(server))

    def is_mounted_itself(self, server: str) -> bool:
        """Whether a server is mounted as a whole, and not only something in it."""
        return any(source == by == server for source, by in self._all())

    def _all(self) -> Iterator[tuple[str, str]]:
        for source, given in self._given.items():
            if given.under_way:
                yield source, given.server
        for sources in self._held.values():
            yield from sources.items()


def above(source: str) -> Iterator[str]:
    """The directories above a path, the nearest first."""
    directory = os.path.dirname(source)
    while directory != source:
        yield directory
        source, directory = directory, os.path.dirname(directory)


def below(server: str, source: str) -> bytes:
    """The path of a source in the tree of its server; b"" for the server itself."""
    return b"" if source == server else os.fsencode(os.path.relpath(source, server))
