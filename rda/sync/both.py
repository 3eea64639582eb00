"""Plans that look at both sides: ``mirror`` (the remote holds nothing else) and ``two-way``. Pure.

Two-way compares both sides with the ancestor, which is the manifest: what both agreed on last time. What changed on one
side only goes to the other. What changed on both sides keeps both: ours keeps the name, the other one is moved aside on
the remote, as everything is that is in the way, and comes back as a new file. An edit beats a deletion. A directory
that has to be removed for one side, and has something new in it for the other, stays.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from rda.sync.plan import EMPTIED_FROM, Halt, Plan, Put, plan_one_way
from rda.sync.tree import (
    OTHERS_RIGHTS,
    OWNER_KEEPS_ACCESS,
    UNCERTAIN,
    Entry,
    Kind,
    RemoteSnapshot,
    Snapshot,
    deepest_first,
    depth,
    lineage,
    parent,
    parents_first,
    within,
)


@dataclass(frozen=True)
class Pull:
    """Changes to the local tree, in the order in which they have to be made.

    Everything is paired with what was here when the plan was made (None: nothing): it is looked at again before it is
    touched.

    :ivar remove: deepest first.
    :ivar make: directories to make, or to give these permission bits; parents first.
    :ivar get: files and symbolic links.
    """

    remove: tuple[tuple[bytes, Entry], ...] = ()
    make: tuple[tuple[bytes, Entry], ...] = ()
    get: tuple[tuple[bytes, Entry, Entry | None], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.remove or self.make or self.get)

    def __len__(self) -> int:
        return len(self.remove) + len(self.make) + len(self.get)


@dataclass(frozen=True)
class TwoWay:
    """What has to be done on both sides.

    :ivar push: on the remote.
    :ivar pull: here.
    :ivar agreed: paths that are the same on both sides without anything being done.
    :ivar forgotten: paths that are gone on both sides.
    """

    push: Plan
    pull: Pull
    agreed: tuple[tuple[bytes, Entry], ...] = ()
    forgotten: tuple[bytes, ...] = ()


def alike(known: Entry, there: Entry) -> bool:
    """Whether a remote entry still is what was put there.

    What was sent has whole seconds there, what was fetched the very time that it has here; SFTP tells whole seconds
    only. The owner always has access to directories there. Bits that are not fetched do not count.
    """
    if known.kind != there.kind:
        return False
    if known.kind == Kind.DIRECTORY:
        return known.mode == UNCERTAIN or not (known.mode ^ there.mode) & ~OWNER_KEEPS_ACCESS
    if known.kind == Kind.FILE:
        if there.ctime_ns and there.mtime_ns not in (known.mtime * 1_000_000_000, known.mtime_ns):
            return False
        same_mode = known.mode == UNCERTAIN or not (known.mode ^ there.mode) & ~OTHERS_RIGHTS
        return (known.size, known.mtime) == (there.size, there.mtime) and same_mode
    return known.target == there.target


def plan_mirror(
    known: Mapping[bytes, Entry],
    here: Snapshot,
    remote: RemoteSnapshot,
    suspects: Iterable[bytes] = (),
    touched: Iterable[bytes] = (),
) -> Plan:
    """One-way, and what is on the remote and not here goes, too.

    :param remote: everything on the remote.
    :param suspects: changed here although their entries look unchanged.
    :param touched: on the remote, likewise.
    """
    there = remote.entries
    still = {path: entry for path, entry in known.items() if path == b"" or path in there or remote.hides(path)}
    changed = {path for path, entry in still.items() if path in there and not alike(entry, there[path])}
    changed.update(suspects, (path for path in touched if path in still))
    other_kind = {p for p in changed if p in still and p in there and still[p].kind != there[p].kind}
    still = {path: entry for path, entry in still.items() if not within(path, other_kind)}
    plan = plan_one_way(still, here, changed)
    planned = {path for path, _ in (*plan.clear, *plan.remove)}
    clear, remove = list(plan.clear), list(plan.remove)
    blocked = {
        path
        for path, entry in there.items()
        if (mine := here.entries.get(path)) is not None and mine.kind != entry.kind
    }
    for path, entry in there.items():
        if path in planned or here.hides(path, is_directory=entry.kind == Kind.DIRECTORY):
            continue
        if within(path, blocked):
            clear.append((path, entry))
        elif path not in here.entries:
            remove.append((path, entry))
    clear.sort(key=lambda item: depth(item[0]), reverse=True)
    remove.sort(key=lambda item: depth(item[0]), reverse=True)
    put, link = ([_replacing(one, there) for one in some] for some in (plan.put, plan.link))
    return Plan(tuple(clear), plan.make, tuple(put), tuple(link), plan.adjust, tuple(remove))


def _replacing(put: Put, there: Mapping[bytes, Entry]) -> Put:
    """In a mirror, whatever has the name may be replaced."""
    other = there.get(put.path)
    return replace(put, ours=True) if other is not None and other.kind == put.entry.kind else put


def plan_two_way(
    known: Mapping[bytes, Entry],
    here: Snapshot,
    there: RemoteSnapshot,
    suspects: Container[bytes] = (),
    intended: Mapping[bytes, Entry] | None = None,
    touched: Container[bytes] = (),
    edited: Container[bytes] = (),
) -> TwoWay:
    """Reconcile both sides with what they agreed on last time.

    :param here: everything that is here.
    :param there: everything that is on the remote.
    :param suspects: changed here although their entries look unchanged.
    :param intended: what an interrupted pass was about to put there: ours as well, should it be there.
    :param touched: perhaps changed there although their entries look unchanged: fetched, unless they changed here too.
    :param edited: known to be changed there, likewise.
    """
    return _Reconciliation(known, here, there, suspects, intended or {}, touched, edited).result()


def check_pull(known: Mapping[bytes, Entry], pull: Pull) -> Halt | None:
    """Whether the remote looks emptied by accident: nothing here is removed for that."""
    if len(pull.remove) >= EMPTIED_FROM and len(pull.remove) + 1 >= len(known):
        return Halt(
            f"the remote copy is empty now, but {len(pull.remove)} entries are here. They are kept, and nothing is "
            "synchronised, until it is filled again or you confirm that they should go"
        )
    return None


class _Reconciliation:
    """Decides path by path, then settles what directories and what is in them want of each other."""

    def __init__(
        self,
        known: Mapping[bytes, Entry],
        here: Snapshot,
        there: RemoteSnapshot,
        suspects: Container[bytes],
        intended: Mapping[bytes, Entry],
        touched: Container[bytes],
        edited: Container[bytes],
    ) -> None:
        self._suspects = suspects
        self._touched = touched
        self._edited = edited
        self._intended = intended
        self._known = known
        self._here = here.entries
        self._there = there.entries
        self._hidden_there = there.hides
        self._hides = here.hides
        self._push: dict[bytes, bool] = {}  # to the remote; the value: whether what is there may be replaced
        self._pull: set[bytes] = set()
        self._agreed: list[tuple[bytes, Entry]] = []
        self._forgotten: list[bytes] = []

    def result(self) -> TwoWay:
        for path in sorted({*self._known, *self._here, *self._there}, key=depth):
            if path and not self._hides(path, is_directory=self._is_directory(path)):
                self._decide(path)
        root = self._here.get(b"")
        if root is not None and root != self._known.get(b""):
            self._push[b""] = b"" in self._known
        self._settle_directories()
        return TwoWay(self._plan(), self._pulled(), tuple(self._agreed), tuple(self._forgotten))

    def _decide(self, path: bytes) -> None:
        old, mine, other = self._known.get(path), self._here.get(path), self._there.get(path)
        changed_here = mine != old or path in self._suspects
        if self._hidden_there(path):  # whatever is there, it is taken for what it was
            if changed_here:
                self._push[path] = old is not None and mine is not None and mine.kind == old.kind
            return
        changed_there = other is not None if old is None else other is None or not self._ours(path, old, other)
        if not changed_here and not changed_there:
            if path in self._touched:
                self._pull.add(path)
            return
        if not changed_there:
            self._push[path] = other is not None and mine is not None and mine.kind == other.kind
        elif not changed_here:
            self._pull.add(path)
        elif mine is None and other is None:
            self._forgotten.append(path)
        elif mine is None:  # an edit beats a deletion
            self._pull.add(path)
        elif other is None:
            self._push[path] = False
        elif mine.kind == Kind.DIRECTORY and other.kind == Kind.DIRECTORY:
            self._agree(path, mine, other)
        else:
            self._push[path] = False  # keeps both, unless they turn out to be the same

    def _agree(self, path: bytes, mine: Entry, other: Entry) -> None:
        """A directory is on both sides: at most its permission bits are sent."""
        if alike(mine, other):
            self._agreed.append((path, mine))
        else:
            self._push[path] = True

    def _is_directory(self, path: bytes) -> bool:
        entry = self._there.get(path) or self._known.get(path)
        return entry is not None and entry.kind == Kind.DIRECTORY

    def _ours(self, path: bytes, old: Entry, other: Entry) -> bool:
        if path in self._edited:
            return False
        intended = self._intended.get(path)
        return alike(old, other) or (intended is not None and alike(intended, other))

    def _settle_directories(self) -> None:
        """What is above something that is put somewhere has to be, or become, a directory there."""
        for path in [p for p in self._pull if p in self._there]:
            for above in list(lineage(parent(path)))[:-1]:
                mine = self._here.get(above)
                if mine is not None and mine.kind != Kind.DIRECTORY and above in self._pull:
                    continue  # unchanged here: it becomes the directory that it is there
                if mine is not None and mine.kind != Kind.DIRECTORY:
                    self._pull.discard(path)  # its directory is moved aside on the remote, with it
                    self._push.setdefault(above, False)
                    break
                if self._push.pop(above, None) is not None and mine is not None:
                    self._agree(above, mine, self._there[above])
                if mine is None:
                    self._pull.add(above)
        for path in [p for p in self._push if p in self._here]:
            for above in list(lineage(parent(path)))[:-1]:
                other = self._there.get(above)
                self._pull.discard(above)
                if self._hidden_there(above):
                    continue
                if other is None or other.kind != Kind.DIRECTORY:
                    self._push.setdefault(above, False)

    def _plan(self) -> Plan:
        make: list[tuple[bytes, Entry]] = []
        adjust: list[tuple[bytes, Entry]] = []
        clear: list[tuple[bytes, Entry]] = []
        remove: list[tuple[bytes, Entry]] = []
        put: list[Put] = []
        link: list[Put] = []
        for path, ours in self._push.items():
            mine, old, other = self._here.get(path), self._known.get(path), self._there.get(path)
            if mine is None:
                if old is not None:
                    remove.append((path, old))
                continue
            if other is not None and old is not None and other.kind != mine.kind and self._ours(path, old, other):
                clear.append((path, old))  # ours, of another kind
                ours = False
            if mine.kind == Kind.DIRECTORY:
                (adjust if ours else make).append((path, mine))
            elif mine.kind == Kind.FILE:
                put.append(Put(path, mine, ours))
            else:
                link.append(Put(path, mine, ours))
        cleared = {path for path, _ in clear}
        clear += [item for item in remove if within(item[0], cleared)]
        remove = [item for item in remove if not within(item[0], cleared)]
        return Plan(
            deepest_first(clear),
            parents_first(make),
            tuple(put),
            tuple(link),
            tuple(adjust),
            deepest_first(remove),
        )

    def _pulled(self) -> Pull:
        remove, make = [], []
        get: list[tuple[bytes, Entry, Entry | None]] = []
        for path in self._pull:
            mine, other = self._here.get(path), self._there.get(path)
            if mine is not None and (other is None or other.kind != mine.kind):
                remove.append((path, mine))
                mine = None
            if other is None:
                continue
            if other.kind == Kind.DIRECTORY:
                make.append((path, other))
            else:
                get.append((path, other, mine))
        return Pull(deepest_first(remove), parents_first(make), tuple(get))
