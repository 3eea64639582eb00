"""What is known of mirrors beside their manifests: empty files, each of which is there while something holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from twisted.internet.defer import Deferred

from rda.deferreds import InThread


class Marks:
    """Marks of one kind.

    :param directory: where they are, on this machine.
    :param kind: the end of their names.
    """

    def __init__(self, directory: str, kind: str, in_thread: InThread) -> None:
        self._directory = directory
        self._kind = kind
        self._in_thread = in_thread

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, f"{name}.{self._kind}")

    def has(self, name: str) -> Deferred[bool]:
        """Whether a copy, by its name, has the mark."""
        return self._in_thread(os.path.exists, self._path(name))

    def give(self, names: Iterable[str]) -> Deferred[None]:
        """Give it to these.

        :raises OSError: through the Deferred.
        """
        return self._in_thread(_make, [self._path(name) for name in names])

    def take(self, names: Iterable[str]) -> Deferred[None]:
        """Take it from those of these that have it; raises likewise."""
        return self._in_thread(_remove, [self._path(name) for name in names])


def _make(paths: Iterable[str]) -> None:
    for path in paths:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _remove(paths: Iterable[str]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)
