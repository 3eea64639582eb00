"""What a file tree is: entries by path, and what was left out of it. Pure.

Paths are bytes, relative to the root of the tree, with ``/`` between names; ``b""`` is the root itself.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from rda.sync.ignore import Rules

#: Directories always stay usable for the remote user who keeps them up to date.
OWNER_KEEPS_ACCESS = 0o700


#: The permission bits of an entry whose content has to be sent again, see :meth:`Entry.uncertain`.
UNCERTAIN = -1

#: Permission bits of files that are never fetched: set-user-ID and set-group-ID let whoever runs the file act as the
#: user that rda runs as, and what is in it comes from another host.
OTHERS_RIGHTS = 0o6000


class Kind(IntEnum):
    """What is mirrored; sockets, FIFOs and devices are not."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3


class Entry(NamedTuple):
    """One thing in a tree. Two equal entries of one path mean: nothing has changed (save for racy ones).

    A tuple, and not a dataclass, because a scan makes a hundred thousand of them in half a second.

    :ivar kind: a :class:`Kind`.
    :ivar mode: permission bits; 0 for symbolic links.
    :ivar size: bytes; files only.
    :ivar mtime_ns: modification time, nanoseconds by the clock of the tree's own host; files only.
    :ivar ctime_ns: change time, likewise: it cannot be set back, as mtime can; files only.
    :ivar inode: a file that was replaced has another one; files only.
    :ivar target: of a symbolic link, verbatim.
    """

    kind: int
    mode: int = 0
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    target: bytes = b""

    @property
    def mtime(self) -> int:
        """Modification time in whole seconds, as SFTP and tar carry it (never negative: their field is unsigned)."""
        return max(self.mtime_ns // 1_000_000_000, 0)

    def uncertain(self) -> Entry:
        """The same kind of thing, but equal to nothing that a scan can find: its content has to be sent again."""
        return self._replace(ctime_ns=-1, mode=UNCERTAIN)


class HasEntry(Protocol):
    """Something that is sent."""

    @property
    def entry(self) -> Entry:
        """What it is."""


_Sent = TypeVar("_Sent", bound=HasEntry)


@dataclass(frozen=True)
class Scope:
    """Which part of a tree was looked at.

    :ivar paths: these themselves (and what is below them, where they are no directories any more).
    :ivar trees: these and everything below them.
    """

    paths: frozenset[bytes] = frozenset()
    trees: frozenset[bytes] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.paths or self.trees)


#: Everything.
WHOLE = Scope(trees=frozenset([b""]))


@dataclass(frozen=True)
class Snapshot:
    """What a look at a tree found.

    :ivar entries: everything in scope that is there and can be mirrored.
    :ivar scope: what was looked at: a path out of scope is not known to be missing.
    :ivar ignored: paths left out by a rule, with everything below them.
    :ivar unknown: paths that could not be looked at, with the reason; what is below them is not known to be missing.
    :ivar skipped: things that are there but cannot be mirrored, with the reason.
    :ivar rules: by directory, the ignore rules that hold in it and below, where they differ from those above it.
    """

    entries: Mapping[bytes, Entry]
    scope: Scope = WHOLE
    ignored: frozenset[bytes] = frozenset()
    unknown: Mapping[bytes, str] = field(default_factory=dict)
    skipped: Mapping[bytes, str] = field(default_factory=dict)
    rules: Mapping[bytes, Rules] = field(default_factory=dict)

    def hides(self, path: bytes, *, is_directory: bool = False) -> bool:
        """Whether ``path`` was left out or not looked at, or would be if it were here: its absence means nothing."""
        if not self.ignored and not self.unknown and not self.rules:
            return False
        for p in lineage(path):
            if p in self.ignored or p in self.unknown or self._ignores(p, is_directory or p != path):
                return True
        return False

    def _ignores(self, path: bytes, is_directory: bool) -> bool:
        if not path or path in self.entries:
            return False
        for above in lineage(parent(path)):
            rules = self.rules.get(above)
            if rules is not None:
                return rules.ignores(path, is_directory=is_directory)
        return False


@dataclass(frozen=True)
class RemoteSnapshot:
    """What a look at a whole remote tree found.

    :ivar entries: everything that can be mirrored, by path, without the root; times are by the remote's clock.
    :ivar unknown: what could not be looked at, and why: its absence, and that of what is below it, means nothing.
    :ivar precise: whether files have nanoseconds, change times and inodes; else whole seconds, and zeros.
    """

    entries: Mapping[bytes, Entry]
    unknown: Mapping[bytes, str] = field(default_factory=dict)
    precise: bool = False

    def hides(self, path: bytes) -> bool:
        """Whether nothing can be concluded from a path's absence."""
        return bool(self.unknown) and path not in self.entries and any(p in self.unknown for p in lineage(path))

    def in_seconds(self) -> RemoteSnapshot:
        """The same as a less precise look would have found it."""
        entries = {
            path: entry._replace(mtime_ns=entry.mtime * 1_000_000_000, ctime_ns=0, inode=0)
            if entry.kind == Kind.FILE
            else entry
            for path, entry in self.entries.items()
        }
        return RemoteSnapshot(entries, self.unknown)

    def touched_since(self, before: Mapping[bytes, Entry]) -> set[bytes]:
        """Files that look unchanged, and are not the same inode, or not with the same change time, as before.

        :param before: entries of an earlier look; of files that nobody else is known to have changed since.
        """
        return {
            path
            for path, entry in self.entries.items()
            if entry.ctime_ns
            and (old := before.get(path)) is not None
            and old.ctime_ns
            and (old.ctime_ns, old.inode) != (entry.ctime_ns, entry.inode)
        }


def folded(path: bytes) -> str:
    """Equal for paths that a file system without regard to case or Unicode form takes for one."""
    return unicodedata.normalize("NFC", path.decode("utf-8", "surrogateescape").casefold())


def parent(path: bytes) -> bytes:
    """The directory that holds ``path``; of a name at the top, the root."""
    return path.rpartition(b"/")[0]


def depth(path: bytes) -> int:
    """How many steps below the root."""
    return path.count(b"/") + 1 if path else 0


def parents_first(items: Iterable[tuple[bytes, Entry]]) -> tuple[tuple[bytes, Entry], ...]:
    """Return entries in an order in which they can be made."""
    return tuple(sorted(items, key=lambda item: depth(item[0])))


def deepest_first(items: Iterable[tuple[bytes, Entry]]) -> tuple[tuple[bytes, Entry], ...]:
    """Return entries in an order in which they can be removed."""
    return tuple(sorted(items, key=lambda item: depth(item[0]), reverse=True))


def batches(items: Iterable[_Sent], most: int, most_bytes: int) -> Iterator[list[_Sent]]:
    """Divide what is sent: so many at the most, and so many bytes at the most, unless one alone has more."""
    batch: list[_Sent] = []
    size = 0
    for item in items:
        if batch and (len(batch) >= most or size + item.entry.size > most_bytes):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.entry.size
    if batch:
        yield batch


def lineage(path: bytes) -> Iterator[bytes]:
    """``path``, its parent, and so on up to the root."""
    while path:
        yield path
        path = parent(path)
    yield b""


def join(directory: bytes, path: bytes) -> bytes:
    """``path`` below ``directory``; the root's path is the directory itself."""
    return directory + b"/" + path if path else directory


def within(path: bytes, tops: frozenset[bytes] | set[bytes]) -> bool:
    """Whether ``path`` is one of ``tops`` or below one."""
    return any(p in tops for p in lineage(path))


def printable(path: bytes) -> str:
    """A path for people: undecodable bytes and control characters escaped."""
    text = path.decode("utf-8", "backslashreplace") or "."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def topmost(paths: Iterable[bytes]) -> set[bytes]:
    """Those of ``paths`` that are below no other of them."""
    chosen: set[bytes] = set()
    for path in sorted(paths, key=depth):
        if not within(path, chosen):
            chosen.add(path)
    return chosen
