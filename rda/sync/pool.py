"""The mirrors that there are in one context, by source: made when they are needed, one for each copy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twisted.internet.defer import Deferred

from rda.deferreds import Waiters
from rda.status import Problem
from rda.sync.joined import Joined
from rda.sync.marks import Marks
from rda.sync.mirror import Mirror
from rda.sync.settings import Settings, Tools
from rda.sync.source import kind_of
from rda.sync.sync_root import SyncRoot
from rda.sync.uses import above


class Pool:
    """All mirrors, and which of them are going away.

    :param root: where their copies are on the remote host.
    :param state: local directory with what is known of them.
    :param settings: tells how a source is mirrored.

    :ivar mirrors: by source. A source whose copy is a link into another one has none of its own.
    :ivar absent: sources that are used, and why there is no mirror.
    :ivar joined: the copies that are links.
    :ivar paused: marks those that a person has paused.
    """

    def __init__(self, root: SyncRoot, state: str, tools: Tools, settings: Callable[[str], Settings]) -> None:
        self.root = root
        self.state = state
        self.tools = tools
        self.settings = settings
        self.mirrors: dict[str, Mirror] = {}
        self.absent: dict[str, Problem] = {}
        self.joined = Joined(tools.host, root, Marks(state, "joined", tools.in_thread))
        self.paused = Marks(state, "paused", tools.in_thread)
        self._leaving: dict[str, Waiters[None]] = {}

    async def get(self, source: str, kind_hint: str | None = None, *, create_missing: bool = False) -> Mirror:
        """The mirror of a source, or of what its copy is a link into; begins one where there is none.

        :param kind_hint: ``directory`` or ``file``: what a missing source is made as.
        :param create_missing: make it where nothing is.
        :raises BadRequest: nothing is there, or nothing that can be mirrored.
        """
        if source not in self.mirrors:
            await self.settled(source)
            if source in self.joined.servers:
                return await self.get(self.joined.servers[source])
            name = self.root.name(source)
            path = self.manifest(name)
            kind = await self.tools.in_thread(kind_of, source, kind_hint, create_missing, path)
            paused = await self.paused.has(name)
            if source not in self.mirrors:
                self.absent.pop(source, None)
                self.mirrors[source] = Mirror(
                    source,
                    kind,
                    lambda: Deferred.fromCoroutine(self.root.base(source)),
                    path,
                    self.tools,
                    self.settings(source),
                    paused=paused,
                )
        return self.mirrors[source]

    async def settled(self, source: str) -> None:
        """Wait while a source's copy is being removed, or replaced by a link."""
        name = self.root.name(source)
        while name in self._leaving:
            await self._leaving[name].wait()

    @contextmanager
    def leaving(self, name: str) -> Iterator[None]:
        """For the length of a block, whoever needs the mirror of a copy, by its name, waits."""
        self._leaving[name] = Waiters()
        try:
            yield
        finally:
            self._leaving.pop(name).fire(None)

    async def drop(self, name: str) -> None:
        """End the mirror of a copy that nobody uses."""
        for source in [source for source in self.mirrors if self.root.name(source) == name]:
            await self.mirrors.pop(source).stop()

    async def forget(self, name: str) -> None:
        """A copy has been removed: what is noted of it goes, too."""
        await self.paused.take([name])
        await self.joined.forget(name)

    def manifest(self, name: str) -> str:
        """The file of a copy's manifest."""
        return os.path.join(self.state, name + ".sqlite")

    def server_of(self, source: str, mounted: tuple[str, ...]) -> str:
        """Whose copy a source is mounted from, as the remote paths that a container has mounted tell: they name it."""
        for outer in above(source):
            end = f"/{self.root.name(outer)}/tree/{os.path.relpath(source, outer)}"
            if any(path.endswith(end) for path in mounted):
                return self.joined.servers.get(outer, outer)
        return self.joined.servers.get(source, source)

    async def learnt_server(self, source: str, mounted: tuple[str, ...]) -> str:
        """The same, when it is known of that copy whether it is a link.

        :raises RdaError: the link to the host is down, or somebody else has put a link there.
        """
        await self.joined.learn(self.server_of(source, mounted))
        return self.server_of(source, mounted)
