"""Look at the local tree: names, kinds and times, never content. Blocking: runs in a thread.

A path that cannot be listed or examined is *unknown*, which is not the same as missing: data has been lost in other
programs by taking the one for the other.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rda.errors import RdaError
from rda.sync import inside
from rda.sync.ignore import IGNORE_FILE, IGNORE_FILE_LIMIT, Rules, rules_from
from rda.sync.tree import WHOLE, Entry, Kind, Scope, Snapshot, join, lineage, parent, topmost, within

_SPECIAL = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


#: What a two-way mirror is fetching lies in the root under such names; no scan reports them.
INCOMING = b".rda-incoming-"


class RootProblem(RdaError):
    """The root of the tree is not there, or is not what it was: nothing can be concluded from that."""


def entry_of_file(found: os.stat_result) -> Entry:
    """The entry of a regular file."""
    return Entry(Kind.FILE, found.st_mode & 0o7777, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def is_still(entry: Entry, found: os.stat_result) -> bool:
    """Whether a regular file is still the version that ``entry`` was taken of."""
    kind, mode, size, mtime_ns, ctime_ns, inode, _ = entry
    return (
        found.st_mtime_ns == mtime_ns
        and found.st_ctime_ns == ctime_ns
        and found.st_size == size
        and found.st_ino == inode
        and found.st_mode == stat.S_IFREG | mode
        and kind == Kind.FILE
    )


class Scanner:
    """Looks at one local tree.

    :param root: a directory or a file; when it is a symbolic link, what it leads to (as the daemon does with a bind
        mount's source). Links below it are never followed.
    :param kind: whether the root has to be a directory or a file.
    :param rules: patterns of the configuration for this mount.
    :param own: the real path of rda's own state on this machine, which is never mirrored: each pass changes it, and it
        says what is ours. b"": there is none.
    """

    def __init__(self, root: bytes, kind: Kind, rules: Iterable[str] = (), own: bytes = b"") -> None:
        self.root = root
        self._kind = kind
        self._lines = tuple(rules)
        self._own = own
        self._own_inside = b""
        self._rules = Rules(b"", self._lines) if self._lines else None
        self._device: int | None = None

    def whole(self, known: Mapping[bytes, Entry]) -> Snapshot:
        """Look at everything.

        :param known: entries from before: where nothing has changed, these very objects are used, which saves the
            memory of a second tree.
        :raises RootProblem: when there is no root, or it is of another kind.
        """
        found = self._root_now()
        look = _Look(self.root, known, self._rules)
        if self._kind == Kind.FILE:
            look.add(b"", entry_of_file(found))
        else:
            look.add(b"", Entry(Kind.DIRECTORY, found.st_mode & 0o7777))
            look.walk(b"", self._rules)
        return look.snapshot(WHOLE)

    def part(self, scope: Scope, known: Mapping[bytes, Entry]) -> Snapshot:
        """Look at some paths, and at everything below a directory that is new.

        :raises RootProblem: as :meth:`whole`.
        """
        found = self._root_now()
        # What an ignore file says holds for all of its directory: what it left out before may be wanted now.
        ruled = {parent(path) for path in scope.paths if path.rpartition(b"/")[2] == IGNORE_FILE}
        if self._kind == Kind.FILE or b"" in scope.trees | ruled:
            return self.whole(known)
        look = _Look(self.root, known, self._rules)
        paths, trees = set(scope.paths), set(scope.trees) | ruled
        for path in [*paths, *trees]:
            self._reach(path, paths, trees, known)
        trees = topmost(trees)
        for path in trees | paths:
            if path:
                look.visit(path, deep=path in trees)
            else:
                look.add(b"", Entry(Kind.DIRECTORY, found.st_mode & 0o7777))
        look.leave_out_below({path for path in trees | paths if look.is_missing(path)})
        return look.snapshot(Scope(frozenset(paths), frozenset(trees | look.descended)))

    def _reach(self, path: bytes, paths: set[bytes], trees: set[bytes], known: Mapping[bytes, Entry]) -> None:
        """Events of a directory above may have been missed: start where the remote tree still has a directory."""
        for above in lineage(parent(path)):
            entry = known.get(above)
            if not above or (entry is not None and entry.kind == Kind.DIRECTORY):
                return
            trees.add(above)

    def _root_now(self) -> os.stat_result:
        name = os.fsdecode(self.root)
        try:
            found = inside.status(self.root)
        except OSError as error:
            raise RootProblem(f"{name} is not there: {error.strerror}") from error
        self._leave_out_own(name)
        right = stat.S_ISREG if self._kind == Kind.FILE else stat.S_ISDIR
        if not right(found.st_mode):
            what = "file" if self._kind == Kind.FILE else "directory"
            raise RootProblem(f"{name} is not a {what} any more")
        if self._kind == Kind.DIRECTORY:
            if self._device is None:
                self._device = found.st_dev
            if self._device != found.st_dev:
                raise RootProblem(f"{name} is on another file system than before: something was mounted or unmounted")
        return found

    def _leave_out_own(self, name: str) -> None:
        if not self._own:
            return
        real = os.path.realpath(self.root)
        if (self._own + b"/").startswith(real.rstrip(b"/") + b"/"):
            inside_root = self._own[len(real.rstrip(b"/")) + 1 :]
            if not inside_root:
                raise RootProblem(f"{name} is where rda keeps its own state, which is not mirrored")
        elif real.startswith(self._own + b"/"):
            raise RootProblem(f"{name} is in the directory where rda keeps its own state, which is not mirrored")
        else:
            inside_root = b""
        if inside_root != self._own_inside:
            self._own_inside = inside_root
            needed = bool(self._lines or inside_root)
            self._rules = Rules(b"", self._lines, never=inside_root) if needed else None

    def accept_device(self) -> None:
        """Take the file system that the root is on now as the right one: a person said so."""
        self._device = None


class _Directory(NamedTuple):
    """What a directory means for the paths below it.

    :ivar rules: that hold in it.
    :ivar left_out: the topmost directory that a rule leaves out, this one or one above.
    :ivar behind_link: this one, or one above, has become a symbolic link: what is behind it is not ours to send.
    """

    rules: Rules | None
    left_out: bytes | None
    behind_link: bool


class _Look:
    """What one look has found so far.

    :param rules: patterns of the configuration.
    """

    def __init__(self, root: bytes, known: Mapping[bytes, Entry], rules: Rules | None) -> None:
        self._root = root
        self._known = known
        self._configured = rules
        self._directories: dict[bytes, _Directory] = {}
        self._entries: dict[bytes, Entry] = {}
        self._ignored: set[bytes] = set()
        self._unknown: dict[bytes, str] = {}
        self._skipped: dict[bytes, str] = {}
        self._rules: dict[bytes, Rules] = {}
        self.descended: set[bytes] = set()

    def rules_hold(self, directory: bytes, rules: Rules | None) -> None:
        """Remember which rules hold in a directory."""
        if rules is not None:
            self._rules[directory] = rules

    def snapshot(self, scope: Scope) -> Snapshot:
        return Snapshot(self._entries, scope, frozenset(self._ignored), self._unknown, self._skipped, self._rules)

    def add(self, path: bytes, entry: Entry) -> None:
        old = self._known.get(path)
        self._entries[path] = old if old is not None and old == entry else entry

    def is_missing(self, path: bytes) -> bool:
        """Whether nothing was found at a path that was looked at."""
        return not any(path in group for group in (self._entries, self._ignored, self._unknown, self._skipped))

    def leave_out_below(self, missing: set[bytes]) -> None:
        """What is in a directory that was gone when it was looked at itself is about to go, or it is new again.

        Paths are looked at one after the other while others change them: a tree with a file in it and without its
        directory has never been there.
        """
        if missing:
            for path in [path for path in self._entries if within(path, missing)]:
                del self._entries[path]

    def visit(self, path: bytes, *, deep: bool) -> None:
        """Look at one path; walk it when it is a directory that is new or has to be looked into."""
        above = self._directory(parent(path))
        self.rules_hold(parent(path), above.rules)
        if path.startswith(INCOMING):
            return
        if above.left_out is not None:
            self._ignored.add(above.left_out)
            return
        try:
            with inside.placed(self._root, path) as full:
                self._look_at(path, full, above, deep)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._unknown[path] = f"cannot be examined: {error.strerror}"

    def _look_at(self, path: bytes, full: bytes, above: _Directory, deep: bool) -> None:
        found = os.lstat(full)
        if above.rules is not None and above.rules.ignores(path, is_directory=stat.S_ISDIR(found.st_mode)):
            self._ignored.add(path)
            return
        if above.behind_link:
            return
        if self._examine(path, full, found) and (deep or not self._knows_directory(path)):
            self.descended.add(path)
            self.walk(path, above.rules)

    def _directory(self, path: bytes) -> _Directory:
        """What a directory means for the paths below it; found out once for each look."""
        known = self._directories.get(path)
        if known is not None:
            return known
        found = _Directory(_own_rules(self._root, b"", self._configured), None, False)
        for directory in reversed(list(lineage(path))[:-1]):
            known = self._directories.get(directory)
            found = known if known is not None else self._below(directory, found)
            self._directories[directory] = found
        self._directories[path] = found
        return found

    def _below(self, directory: bytes, above: _Directory) -> _Directory:
        if above.left_out is not None or above.behind_link:
            return above
        if above.rules is not None and above.rules.ignores(directory, is_directory=True):
            return above._replace(left_out=directory)
        if os.path.islink(join(self._root, directory)):
            return above._replace(behind_link=True)
        return above._replace(rules=_own_rules(self._root, directory, above.rules))

    def _knows_directory(self, path: bytes) -> bool:
        old = self._known.get(path)
        return old is not None and old.kind == Kind.DIRECTORY

    def walk(self, top: bytes, rules: Rules | None) -> None:
        """Everything below a directory. A stack, not recursion: trees may be deeper than Python's."""
        stack = [(top, rules)]
        self.rules_hold(top, rules)
        while stack:
            directory, rules = stack.pop()
            try:
                with inside.directory(self._root, directory) as full:
                    with os.scandir(full) as listing:
                        found = list(listing)
                    stack += self._take(directory, found, rules)
            except FileNotFoundError:  # gone since its parent was listed: an event will say so
                continue
            except OSError as error:
                self._unknown[directory] = f"cannot be listed: {error.strerror}"

    def _take(
        self, directory: bytes, found: list[os.DirEntry[bytes]], rules: Rules | None
    ) -> list[tuple[bytes, Rules | None]]:
        """Look at everything in a directory; return the directories in it, each with the rules that hold there."""
        if IGNORE_FILE in [item.name for item in found]:
            rules = _own_rules(self._root, directory, rules)
            self.rules_hold(directory, rules)
        prefix = directory + b"/" if directory else b""
        if not directory:
            found = [item for item in found if not item.name.startswith(INCOMING)]
        below: list[tuple[bytes, Rules | None]] = []
        known, entries = self._known, self._entries
        for item in found:
            path = prefix + item.name
            if rules is not None and rules.ignores(path, is_directory=item.is_dir(follow_symlinks=False)):
                self._ignored.add(path)
                continue
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._unknown[path] = f"cannot be examined: {error.strerror}"
                continue
            old = known.get(path)
            if old is not None and is_still(old, status):
                entries[path] = old
            elif self._examine(path, item.path, status):
                below.append((path, rules))
        return below

    def _examine(self, path: bytes, full: bytes, found: os.stat_result) -> bool:
        """Add what is there; True when it is a directory."""
        mode = found.st_mode
        kind = stat.S_IFMT(mode)
        if kind == stat.S_IFREG:
            self.add(path, entry_of_file(found))
        elif kind == stat.S_IFDIR:
            self.add(path, Entry(Kind.DIRECTORY, mode & 0o7777))
            return True
        elif kind == stat.S_IFLNK:
            try:
                self.add(path, Entry(Kind.SYMLINK, target=os.readlink(full)))
            except OSError as error:
                self._unknown[path] = f"cannot be read: {error.strerror}"
        else:
            self._skipped[path] = f"is {_SPECIAL.get(kind, 'of an unknown kind')}, which cannot be mirrored"
        return False


def _own_rules(root: bytes, directory: bytes, above: Rules | None) -> Rules | None:
    """The rules that hold in a directory: those of its own ignore file on top of those from above."""
    try:
        with open(join(join(root, directory), IGNORE_FILE), "rb") as file:
            return rules_from(file.read(IGNORE_FILE_LIMIT), directory, above)
    except OSError:
        return above
