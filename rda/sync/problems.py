"""What is wrong in one mirror, path by path, and what was found in the way on the remote."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rda.status import Problem
from rda.sync import plan
from rda.sync.record import Outcome
from rda.sync.tree import Snapshot, printable, within

#: Problems, and conflicts, that the status lists; the rest is a number.
SHOWN = 100


class Problems:
    """The problems of single paths, and the conflicts.

    :ivar incomplete: paths that are not on the remote as they are here: a flush fails for them.
    """

    def __init__(self) -> None:
        self._problems: dict[bytes, Problem] = {}
        self._conflicts: dict[bytes, tuple[bytes, Problem]] = {}
        self.incomplete: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._problems)

    def paths(self) -> Iterable[bytes]:
        """Where there is a problem."""
        return self._problems.keys()

    def add(self, path: bytes, message: str, *, fatal: bool = False) -> None:
        """Something is wrong with a path.

        :param fatal: the mount is incomplete because of it.
        """
        old = self._problems.get(path)
        since = old.since if old is not None else time.time()
        self._problems[path] = Problem(printable(path), message, since)
        if fatal:
            self.incomplete.add(path)

    def take_stock(self, snapshot: Snapshot) -> None:
        """What is in scope is about to be tried again: forget its problems, and note those of the look itself."""
        scope = snapshot.scope
        for path in list(self._problems):
            if path in scope.paths or path in snapshot.entries or within(path, scope.trees):
                del self._problems[path]
                self.incomplete.discard(path)
        for group in (snapshot.unknown, snapshot.skipped):
            for path, message in group.items():
                self.add(path, message)

    def note(self, outcome: Outcome) -> None:
        """What became of a plan."""
        for path, (message, fatal) in outcome.problems.items():
            self.add(path, message, fatal=fatal)
        for path, copy in outcome.conflicts.items():
            text = f"something that was made on the remote host was in the way; it is kept as {printable(copy)}"
            self._conflicts[path] = copy, Problem(printable(path), text, time.time())

    def copies(self) -> list[bytes]:
        """Where what was in the way is kept, of as many as are shown."""
        return [copy for copy, _ in self._conflicts.values()][:SHOWN]

    def resolved(self, copies: set[bytes]) -> None:
        """Somebody has dealt with these: they are not there any more."""
        self._conflicts = {path: item for path, item in self._conflicts.items() if item[0] not in copies}

    def incomplete_at(self, place: bytes) -> str:
        """Why what is mounted from a path of the tree is not complete there; "" when it is."""
        concerned = [p for p in sorted(self.incomplete) if not place or within(p, {place}) or within(place, {p})]
        return plan.summary([(path, self._problems[path].message) for path in concerned])

    def shown(self) -> list[Problem]:
        """The problems that the status lists."""
        return list(self._problems.values())[:SHOWN]

    def conflicts(self) -> tuple[Problem, ...]:
        """The conflicts that the status lists."""
        return tuple(problem for _, problem in self._conflicts.values())[:SHOWN]
