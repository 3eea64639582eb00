"""What has to be done so that the remote tree follows the local one, and when not to do it. Pure.

Everything here is a value: the executors carry a :class:`Plan` out, tests compare plans.

One-way: the ancestor is the manifest, i.e. what rda itself has put on the remote. Only what is in it may be replaced or
removed; whatever else is there is somebody else's, and the executors find that out without asking beforehand, because
new names are made with operations that refuse to replace anything.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from rda.sync.tree import Entry, Kind, Scope, Snapshot, deepest_first, parent, parents_first, printable, within

#: A root that held at least this many files and is empty now was more likely unmounted than emptied by hand.
EMPTIED_FROM = 10

#: Removing at least this many entries at once, and more than this share of all, waits for a person, where directories
#: that are still here have lost everything in them: as they do when a disk is unmounted. Who removes a directory, as
#: with ``rm -rf node_modules``, removes it and not only what is in it.
MASS_REMOVAL_FROM = 1000
MASS_REMOVAL_SHARE = 0.75


@dataclass(frozen=True)
class Put:
    """A file or symbolic link to send.

    :ivar ours: the name is in the manifest: what is there may be replaced.
    """

    path: bytes
    entry: Entry
    ours: bool


@dataclass(frozen=True)
class Plan:
    """Changes to the remote tree, in the order in which they have to be made.

    :ivar clear: what has to go first, because something of another kind takes its name; deepest first.
    :ivar make: directories to make, parents first.
    :ivar put: files to send.
    :ivar link: symbolic links to make.
    :ivar adjust: directories whose permission bits changed.
    :ivar remove: what is gone locally, deepest first. Last, so that a renamed file is never nowhere.
    """

    clear: tuple[tuple[bytes, Entry], ...] = ()
    make: tuple[tuple[bytes, Entry], ...] = ()
    put: tuple[Put, ...] = ()
    link: tuple[Put, ...] = ()
    adjust: tuple[tuple[bytes, Entry], ...] = ()
    remove: tuple[tuple[bytes, Entry], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.clear or self.make or self.put or self.link or self.adjust or self.remove)

    def new_entries(self) -> Iterator[tuple[bytes, Entry]]:
        """What will be on the remote that was not, or not like that: to be noted before it is touched."""
        yield from self.make
        for put in self.put:
            yield put.path, put.entry
        for put in self.link:
            yield put.path, put.entry

    def __len__(self) -> int:
        return sum(map(len, (self.clear, self.make, self.put, self.link, self.adjust, self.remove)))


@dataclass(frozen=True)
class Halt:
    """Why a plan must not be carried out, or only in part.

    :ivar reason: for people.
    :ivar removals_only: everything but the removals may go on.
    """

    reason: str
    removals_only: bool = False


def plan_one_way(known: Mapping[bytes, Entry], here: Snapshot, suspects: Container[bytes] = ()) -> Plan:
    """Compare the manifest with the local tree.

    :param known: the manifest.
    :param here: what is here now, in whole or in part.
    :param suspects: paths to send even though their entries look unchanged (modified within the clock's granularity).
    """
    make: list[tuple[bytes, Entry]] = []
    adjust: list[tuple[bytes, Entry]] = []
    clear: list[tuple[bytes, Entry]] = []
    remove: list[tuple[bytes, Entry]] = []
    put: list[Put] = []
    link: list[Put] = []
    cleared: set[bytes] = set()
    for path, entry in here.entries.items():
        old = known.get(path)
        if (old is entry or old == entry) and path not in suspects:
            continue
        if old is not None and old.kind != entry.kind:
            clear.append((path, old))
            cleared.add(path)
            old = None
        if entry.kind == Kind.DIRECTORY:
            (make if old is None else adjust).append((path, entry))
        elif entry.kind == Kind.FILE:
            put.append(Put(path, entry, old is not None))
        else:
            link.append(Put(path, entry, old is not None))
    for path in _gone(known, here):
        (clear if cleared and within(path, cleared) else remove).append((path, known[path]))
    return Plan(
        deepest_first(clear),
        parents_first(make),
        tuple(put),
        tuple(link),
        tuple(adjust),
        deepest_first(remove),
    )


def check(known: Mapping[bytes, Entry], here: Snapshot, plan: Plan) -> Halt | None:
    """Whether a plan looks like an accident rather than like work (compare Mutagen's ``safety.go``)."""
    gone = len(plan.remove)
    if gone < EMPTIED_FROM:
        return None
    total = len(known)
    if gone + 1 >= total and not any(here.entries):
        return Halt(
            f"the directory is empty now, but {gone} entries of it are on the remote host. Is a disk not mounted? "
            "They are kept until it is filled again or you confirm that they should go"
        )
    if gone >= MASS_REMOVAL_FROM and gone > MASS_REMOVAL_SHARE * total:
        gone = _gone_from_emptied(known, here, plan)
        if gone >= MASS_REMOVAL_FROM and gone > MASS_REMOVAL_SHARE * total:
            return Halt(
                f"{gone} of {total} entries are gone at once, out of directories that are empty now. Their remote "
                "copies are kept until they are back or you confirm that they should go",
                removals_only=True,
            )
    return None


def _gone_from_emptied(known: Mapping[bytes, Entry], here: Snapshot, plan: Plan) -> int:
    """How many of the entries that are to be removed were in directories that are still here, and empty."""
    left = known.keys() - {path for path, _ in plan.remove}
    left = left.union(here.entries, here.ignored, here.skipped, here.unknown)
    emptied = left - {parent(path) for path in left if path}
    return sum(1 for path, _ in plan.remove if within(path, emptied))


def summary(paths: Iterable[tuple[bytes, str]], most: int = 5) -> str:
    """Paths and what is wrong with each, for a message: the first few, and how many more there are."""
    lines = [f"{printable(path)}: {message}" for path, message in paths]
    more = f" (and {len(lines) - most} more)" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more


def _gone(known: Mapping[bytes, Entry], here: Snapshot) -> Iterator[bytes]:
    """Paths of the manifest that are in scope and not here any more."""
    entries = here.entries
    for path in _in_scope(known, entries, here.scope):
        if path not in entries and not here.hides(path, is_directory=known[path].kind == Kind.DIRECTORY):
            yield path


def _in_scope(known: Mapping[bytes, Entry], entries: Mapping[bytes, Entry], scope: Scope) -> Iterable[bytes]:
    if b"" in scope.trees:
        return known
    tops = set(scope.trees)
    for path in scope.paths:
        entry = entries.get(path)
        if entry is None or entry.kind != Kind.DIRECTORY:
            tops.add(path)
    directories = frozenset(p for p in tops if (old := known.get(p)) is not None and old.kind == Kind.DIRECTORY)
    if not directories:  # the common case: no walk over the whole manifest
        return [p for p in tops if p in known]
    return [p for p in known if p in tops or within(p, directories)]
