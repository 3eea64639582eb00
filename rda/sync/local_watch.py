"""Hear of changes to the tree of one mirror, for as long as it is wanted, whichever directory its source leads to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger
from watchdog.observers.api import ObservedWatch

from rda.deferreds import InThread
from rda.sync.tree import Kind, Scope
from rda.sync.watch import Hints, Watcher


class LocalWatch:
    """The watch on one local tree.

    :param root: of the tree; of a single file, the directory that holds it is watched.
    :param reactor: clock, and ``callFromThread``.
    :param event: called with what has to be looked at.

    :ivar refused: why the tree has to be polled instead, or "".
    """

    _log = Logger()

    def __init__(
        self,
        root: bytes,
        kind: Kind,
        watcher: Watcher,
        reactor: Any,
        in_thread: InThread,
        event: Callable[[Scope], None],
    ) -> None:
        self._root = root
        self._kind = kind
        self._watcher = watcher
        self._reactor = reactor
        self._in_thread = in_thread
        self._event = event
        self._wanted = False
        self._watch: ObservedWatch | None = None
        self._hints: Hints | None = None
        self._identity: tuple[int, int] | None = None
        self.refused = ""

    async def ensure(self) -> bool:
        """Watch before the tree is scanned: what changes in between is seen by one of the two.

        :return: whether the watch is a new one: the first, or because the root is another directory than before.
        """
        self._wanted = True
        real, identity = await self._in_thread(_identity, self._root, self._kind)
        if self._watch is not None and identity == self._identity:
            return False
        self._end()
        self._identity = identity
        only = os.path.basename(real) if self._kind == Kind.FILE else None
        top = os.path.dirname(real) if self._kind == Kind.FILE else real
        hints = Hints(self._reactor, top, only, self._event)
        result = await self._in_thread(self._watcher.watch, top, only, hints)
        if isinstance(result, str):
            self.refused = result
            hints.stop()
            return True
        self.refused = ""
        self._watch, self._hints = result, hints
        if not self._wanted:
            self._end()
        return True

    def stop(self) -> None:
        """Do not watch any more."""
        self._wanted = False
        self._end()

    def _end(self) -> None:
        watch, self._watch = self._watch, None
        if self._hints is not None:
            self._hints.stop()
            self._hints = None
        if watch is not None:
            self._in_thread(self._watcher.unwatch, watch).addErrback(
                lambda failure: self._log.failure("cannot stop watching {root}", failure=failure, root=self._root)
            )


def _identity(root: bytes, kind: Kind) -> tuple[bytes, tuple[int, int] | None]:
    """Where the root really is, and which directory it is (for a file: the one that holds it)."""
    real = os.path.realpath(root)
    try:
        found = os.stat(os.path.dirname(real) if kind == Kind.FILE else real)
    except OSError:
        return real, None
    return real, (found.st_dev, found.st_ino)
