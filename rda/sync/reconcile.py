"""What a look at the local tree leads to: a plan, its safety stops, and both sides of carrying it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rda.deferreds import InThread
from rda.errors import SyncHalted
from rda.sync import both, content, owner, plan
from rda.sync.apply import Apply
from rda.sync.bulk import Bulk
from rda.sync.large import DELTA_FROM
from rda.sync.manifest import Manifest
from rda.sync.nested import Nested
from rda.sync.owner import OwnerChoice
from rda.sync.problems import Problems
from rda.sync.progress import Transfer
from rda.sync.pull import Fetch
from rda.sync.record import Outcome
from rda.sync.remote import RemoteTree
from rda.sync.remote_look import RemoteView, Seen
from rda.sync.sides import Sides
from rda.sync.tree import RemoteSnapshot, Snapshot


class Reconcile:
    """Makes the two sides of one mirror what its mode says.

    :param root: of the local tree.
    :param counted: called when it is known how much is to be transferred.
    :param applying: called when something begins to be transferred.
    :param nested: what is mounted from inside the tree.

    :ivar view: of the remote tree, for the modes that look at it.
    :ivar confirmed: a person has said that what looks like an accident is meant: taken for the next whole look.
    :ivar held: why removals were held back, or "".
    """

    def __init__(
        self,
        root: bytes,
        mode: str,
        ownership: OwnerChoice,
        in_thread: InThread,
        bulk: Bulk,
        transfer: Transfer,
        problems: Problems,
        counted: Callable[[], None],
        applying: Callable[[], None],
        nested: Nested,
    ) -> None:
        self._root = root
        self._mode = mode
        self._ownership = ownership
        self._in_thread = in_thread
        self._bulk = bulk
        self._transfer = transfer
        self._problems = problems
        self._counted = counted
        self._applying = applying
        self._nested = nested
        self._given: RemoteTree | None = None
        self.view: RemoteView | None = None
        self.confirmed = False
        self.held = ""

    async def carry_out(self, snapshot: Snapshot, manifest: Manifest, remote: RemoteTree) -> Outcome:
        """Do what has to be done because of what was found here.

        :raises SyncHalted: it looks like an accident as a whole.
        :raises RdaError: the connection is lost.
        """
        suspects = await self._suspects(snapshot, manifest)
        back: both.TwoWay | None = None
        seen, view = Seen(RemoteSnapshot({})), self.view
        if view is None or b"" not in snapshot.scope.trees:
            todo = plan.plan_one_way(manifest.entries, snapshot, suspects)
        else:
            seen = await view.look(remote)
            todo, back = self._compared(manifest, snapshot, seen, suspects)
        todo = self._nested.kept(self._held_back(todo, back, snapshot, manifest))
        self._take_stock(snapshot, seen.tree)
        self._count(todo, back)
        ours = {path for path, _ in todo.new_entries()}
        if view is not None:
            view.forget(ours)
        sides = Sides(self._root, remote, manifest, self._in_thread, self._transfer)
        again = await self._bring_back(back, sides) if back is not None else set()
        outcome = Outcome()
        if todo:
            self._applying()
            outcome = await Apply(sides, self._bulk, self._nested).run(todo)
            self._problems.note(outcome)
        await self._nested.made(remote)
        outcome.again |= again
        if self._ownership:
            ours |= await self._give(manifest, remote, ours | {path for path, _ in todo.adjust})
        if view is not None:
            await view.keep(seen.tree, ours, {*again, *self._problems.paths()}, manifest)
        return outcome

    def _compared(
        self, manifest: Manifest, snapshot: Snapshot, seen: Seen, suspects: set[bytes]
    ) -> tuple[plan.Plan, both.TwoWay | None]:
        """Compare both sides; the remote's half of the plan is there in two-way mode only."""
        known, there = manifest.entries, seen.tree
        if self._mode == "mirror":
            return both.plan_mirror(known, snapshot, there, suspects, seen.touched | seen.edited), None
        back = both.plan_two_way(known, snapshot, there, suspects, manifest.intended, seen.touched, seen.edited)
        return back.push, back

    async def _suspects(self, snapshot: Snapshot, manifest: Manifest) -> set[bytes]:
        """Racily clean files whose content has changed although nothing else has."""
        whole, now = b"" in snapshot.scope.trees, content.now()
        unsure = [
            (path, digest)
            for path, digest in manifest.digests.items()
            if (entry := snapshot.entries.get(path)) is not None
            and entry == manifest.entries.get(path)
            # An event that comes in right after a large file was sent is most likely the one of the change that was
            # sent: hashing it can wait until it settles something.
            and (whole or entry.size < DELTA_FROM or not content.racy(entry, now))
        ]
        if not unsure:
            return set()
        different, settled = await self._in_thread(content.changed_since, self._root, unsure)
        manifest.settle([(path, manifest.entries[path], None) for path in settled if path in manifest.entries], ())
        return different

    def _held_back(
        self, todo: plan.Plan, back: both.TwoWay | None, snapshot: Snapshot, manifest: Manifest
    ) -> plan.Plan:
        """Refuse what looks like an accident, unless somebody said that it is meant."""
        if self.confirmed:
            if b"" in snapshot.scope.trees:
                self.confirmed = False
            return todo
        halt = plan.check(manifest.entries, snapshot, todo)
        if back is not None and halt is None:
            halt = both.check_pull(manifest.entries, back.pull)
        if halt is None:
            return todo
        if not halt.removals_only:
            raise SyncHalted(halt.reason)
        self.held = halt.reason
        return replace(todo, remove=())

    def _take_stock(self, snapshot: Snapshot, there: RemoteSnapshot) -> None:
        self._problems.take_stock(snapshot)
        for path, message in there.unknown.items():
            self._problems.add(path, f"{message} on the remote host")

    def _count(self, todo: plan.Plan, back: both.TwoWay | None) -> None:
        self._transfer.expect(len(todo), sum(put.entry.size for put in todo.put))
        if back is not None:
            self._transfer.expect(len(back.pull), sum(entry.size for _, entry, _ in back.pull.get))
        self._counted()

    async def _bring_back(self, back: both.TwoWay, sides: Sides) -> set[bytes]:
        """The remote's half of a two-way plan; returns what changed here meanwhile."""
        sides.manifest.settle([(path, entry, None) for path, entry in back.agreed], back.forgotten)
        if not back.pull:
            return set()
        self._applying()
        fetch = Fetch(sides)
        await fetch.run(back.pull)
        for path, message in fetch.problems.items():
            self._problems.add(path, message)
        return fetch.again

    async def _give(self, manifest: Manifest, remote: RemoteTree, paths: set[bytes]) -> set[bytes]:
        """Give what was put there its owner; returns what was given: all there is, after a new connection."""
        chosen = paths if self._given is remote else manifest.entries.keys()
        things = {path: manifest.entries[path] for path in chosen if path in manifest.entries}
        problems = await owner.give(self._ownership, self._root, remote, things, self._in_thread)
        for path, message in problems.items():
            self._problems.add(path, message)
        if not problems:
            self._given = remote
        return set(things)
