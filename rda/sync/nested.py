"""Directories inside one mirror's tree that containers have mounted from its copy: sources that lie within its own.

With a copy for each, what a container writes through the outer mount would not be in the inner one. From one copy, both
show the same files at once, as a local daemon's mounts do. It is done where nobody could tell the difference otherwise:
the inner mount must hold what it would hold on its own, so nothing in it may be left out by rules from above.

Such a directory stays the very directory that is mounted: it is made before anything is put into it, and where it is
gone here only its content goes over there, until no container has it any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from twisted.internet.defer import Deferred

from rda.errors import RdaError
from rda.sync.plan import Plan
from rda.sync.remote import RemoteTree
from rda.sync.tree import Entry, Kind, Snapshot, lineage, parent, printable, within


class NotServed(RdaError):
    """A directory cannot be mounted from the copy of one above it; the message says why."""


class Nested:
    """The directories of one tree that are mounted from its copy.

    :ivar paths: all of them.
    """

    def __init__(self) -> None:
        self.paths: set[bytes] = set()
        self._asked: list[tuple[bytes, Deferred[None]]] = []
        self._judged: list[tuple[bytes, Deferred[None]]] = []

    def ask(self, path: bytes) -> Deferred[None]:
        """Fire when the directory is there on the remote; somebody has to look at everything after this call.

        :raises NotServed: through the Deferred: it has to have a copy of its own.
        """
        done: Deferred[None] = Deferred()
        self._asked.append((path, done))
        return done

    def judge(self, snapshot: Snapshot) -> None:
        """Decide about those that were asked for, by what a look at everything has found."""
        asked, self._asked = self._asked, []
        for path, done in asked:
            reason = refusal(snapshot, path)
            if reason:
                self.paths.discard(path)
                done.errback(NotServed(reason))
            else:
                self.paths.add(path)
                self._judged.append((path, done))

    def problems(self, snapshot: Snapshot) -> dict[bytes, str]:
        """What is wrong by now with those that are mounted: rules from above may have come later."""
        reasons = {path: refusal(snapshot, path) for path in self.paths if path in snapshot.entries}
        return {
            path: f"a container has it mounted from this copy, and {reason}. A new container will have another copy"
            for path, reason in reasons.items()
            if reason
        }

    def first(self, plan: Plan) -> tuple[tuple[bytes, Entry], ...]:
        """The directories of a plan that have to be made one by one before others."""
        return tuple(item for item in plan.make if item[0] and self._is_above(item[0]))

    def kept(self, plan: Plan) -> Plan:
        """A plan that leaves what is mounted where it is."""
        if not self.paths:
            return plan
        return replace(plan, remove=tuple(item for item in plan.remove if not self._is_above(item[0])))

    def _is_above(self, path: bytes) -> bool:
        return any(within(one, {path}) for one in self.paths)

    async def made(self, remote: RemoteTree) -> None:
        """Everything that was judged should be on the remote now: tell those who wait."""
        judged, self._judged = self._judged, []
        if not judged:
            return
        try:
            misplaced = await remote.misplaced(path for path, _ in judged)
        except Exception as error:
            for _, done in judged:
                done.errback(error)
            raise
        for path, done in judged:
            reasons = [(above, misplaced[above]) for above in reversed(list(lineage(path))) if above in misplaced]
            if reasons:
                self.paths.discard(path)
                done.errback(NotServed(f"{printable(reasons[0][0])} {reasons[0][1]}"))
            else:
                done.callback(None)

    def keep_only(self, paths: Iterable[bytes]) -> None:
        """No container has any others mounted."""
        asked = {path for path, _ in self._judged}
        self.paths = set(paths) | asked

    def take_waiting(self) -> list[Deferred[None]]:
        """Those who wait: what they wait for will not come."""
        waiting = [done for _, done in (*self._asked, *self._judged)]
        self._asked, self._judged = [], []
        return waiting


def refusal(snapshot: Snapshot, path: bytes) -> str:
    """Why a directory cannot be mounted from the copy of the whole tree; "" when it can.

    :param snapshot: of everything.
    """
    if any(above in snapshot.ignored for above in lineage(path)):
        return LEFT_OUT
    entry = snapshot.entries.get(path)
    if entry is None or entry.kind != Kind.DIRECTORY:
        return "it is reached through a symbolic link, or cannot be read there"
    for ignored in snapshot.ignored:
        if within(ignored, {path}) and not _by_own_rules(snapshot, ignored, path):
            return f"a rule from above leaves out {printable(ignored)}"
    return ""


#: That rules keep a directory apart is what they are there for: nobody is warned of it.
LEFT_OUT = "it is left out there by a rule"


def _by_own_rules(snapshot: Snapshot, path: bytes, top: bytes) -> bool:
    """Whether what is left out would be as well, were there no rules above ``top``."""
    for directory in lineage(parent(path)):
        rules = snapshot.rules.get(directory)
        if rules is not None:
            return rules.ignores_below(top, path)
        if directory == top:
            break
    return False
