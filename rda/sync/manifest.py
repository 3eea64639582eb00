"""What rda has put on the remote: one sqlite file per mirror, crash-safe.

Before anything on the remote is touched, the *intent* is written down; afterwards the *result*. Killed in between, the
next start finds intents without results: whatever is at such a path is looked at before it is believed to be ours.

Write-ahead logging without a sync per transaction: a killed process loses nothing, a power cut may lose the last
transactions, and both then look like intents or like unknown files, which are compared and adopted.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from rda.errors import SyncFailed
from rda.sync.tree import Entry

#: Raised when the tables change; an older file is dropped, and what is on the remote is compared and adopted.
FORMAT = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entry (path BLOB PRIMARY KEY, kind INTEGER, mode INTEGER, size INTEGER, mtime_ns INTEGER,
    ctime_ns INTEGER, inode INTEGER, target BLOB, digest BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS intent (path BLOB PRIMARY KEY, kind INTEGER, mode INTEGER, size INTEGER, mtime_ns INTEGER,
    ctime_ns INTEGER, inode INTEGER, target BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, hashes BLOB) WITHOUT ROWID;
"""

# A path and everything below it: names that begin with the same and a character before the slash come in between.
_IN_TREE = "path >= :top AND path < :end AND (path = :top OR path >= :below)"
_COUNT_TREE = f"SELECT count(*) FROM intent WHERE {_IN_TREE}"  # noqa: S608 - constants
_COPY_TREE = f"INSERT OR REPLACE INTO entry SELECT *, NULL FROM intent WHERE {_IN_TREE}"  # noqa: S608
_DROP_TREE = f"DELETE FROM intent WHERE {_IN_TREE}"  # noqa: S608

#: sqlite's INTEGER is signed 64 bit, inode numbers are unsigned.
_SIGN, _MASK = 1 << 63, (1 << 64) - 1


class Manifest:
    """The manifest of one mirror, in memory and in its file.

    :param path: of the sqlite file; ``:memory:`` in tests.
    :raises SyncFailed: the file cannot be opened now. One that is damaged is begun anew.

    :ivar entries: what is on the remote because of us. Read it; change it through the methods only.
    :ivar digests: of files whose content was read so soon after their last change that a later change could have
        left the same times and size (git calls them racily clean).
    :ivar doubtful: intents of an earlier run without a result, at paths that were not ours before.
    :ivar damaged: the file turned out not to be what we wrote; see :meth:`discard`.
    :ivar intended: intents without a result at paths that were ours before: there is either this or the old version.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._read()
        except _Damaged:
            remove_manifest(path)
            self._read()

    def _read(self) -> None:
        """Open the file and take it in.

        :raises _Damaged: it cannot be used.
        """
        self._db = self._connect(self._path)
        self.damaged = False
        self.digests: dict[bytes, bytes] = {}
        self.entries: dict[bytes, Entry] = {}
        self._size = 0
        self.doubtful: dict[bytes, Entry] = {}
        self.intended: dict[bytes, Entry] = {}
        try:
            self._load()
        except (sqlite3.Error, TypeError, ValueError, OverflowError) as error:  # values of other types than we write
            self._db.close()
            if isinstance(error, sqlite3.Error) and not _is_damage(error):
                raise self._unusable(error) from error
            raise _Damaged from error

    def _connect(self, path: str) -> sqlite3.Connection:
        # Made in a thread (loading takes a while), then used by the reactor's alone.
        db = None
        try:
            db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            if db.execute("PRAGMA user_version").fetchone()[0] not in (0, FORMAT):
                raise _Damaged("of another format")
            db.executescript(_TABLES)
            db.execute(f"PRAGMA user_version={FORMAT}")
        except (sqlite3.Error, _Damaged) as error:
            if db is not None:
                db.close()
            if isinstance(error, sqlite3.Error) and not _is_damage(error):
                raise self._unusable(error) from error
            raise _Damaged from error
        return db

    def _unusable(self, error: sqlite3.Error) -> SyncFailed:
        """Say why the file cannot be used now; it may be later, and is kept."""
        return SyncFailed(f"rda's note of what it has sent, {self._path}, cannot be used: {error}")

    def _failed(self, error: sqlite3.Error) -> SyncFailed:
        self.damaged = self.damaged or _is_damage(error)
        return self._unusable(error)

    def _row(self, statement: str, *values: object) -> Any:
        """The first row of what a statement gives, or None.

        :raises SyncFailed: the file cannot be used.
        """
        try:
            return self._db.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """``BEGIN`` … ``COMMIT``, or ``ROLLBACK`` when something is raised.

        :raises SyncFailed: it cannot be written, because the disk is full, for one.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):
                if self._db.in_transaction:  # sqlite rolls some of them back itself, as on a full disk
                    self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._failed(error) from error
            raise

    def _load(self) -> None:
        for path, kind, mode, size, mtime, ctime, inode, target, digest in self._db.execute("SELECT * FROM entry"):
            self._change(path, Entry(kind, mode, size, mtime, ctime, inode & _MASK, target))
            if digest is not None:
                self.digests[path] = digest
        for path, kind, mode, size, mtime, ctime, inode, target in self._db.execute("SELECT * FROM intent"):
            entry = Entry(kind, mode, size, mtime, ctime, inode & _MASK, target)
            if path in self.entries:  # ours before and after: only which of the two contents is there is not known
                self.entries[path] = self.entries[path].uncertain()
                self.intended[path] = entry
            else:
                self.doubtful[path] = entry

    def meta(self, name: str) -> str | None:
        """A value that was remembered with :meth:`remember`, or None."""
        row = self._row("SELECT value FROM meta WHERE name = ?", name)
        return None if row is None else str(row[0])

    def remember(self, name: str, value: str) -> None:
        """Keep a value about the mirror as a whole."""
        self._row("INSERT OR REPLACE INTO meta VALUES (?, ?)", name, value)

    def intend(self, entries: Iterable[tuple[bytes, Entry]]) -> None:
        """Note what is about to be put on the remote."""
        entries = list(entries)
        self.intended.update((path, entry) for path, entry in entries if path in self.entries)
        with self._writing():
            self._db.executemany(
                "INSERT OR REPLACE INTO intent VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                ((path, *_signed(entry)) for path, entry in entries),
            )

    def settle(
        self, put: Iterable[tuple[bytes, Entry, bytes | None]], removed: Iterable[bytes], undone: Iterable[bytes] = ()
    ) -> None:
        """Note results; a path that is in both was removed first (a file takes the place of a directory).

        :param put: what is on the remote now, with the digest of racy files.
        :param removed: what is not there any more, or not ours any more.
        :param undone: intents that were not carried out: the remote is as it was before.
        """
        put, removed, undone = list(put), list(removed), list(undone)
        with self._writing():
            self._db.executemany("DELETE FROM entry WHERE path = ?", ((path,) for path in removed))
            self._db.executemany("DELETE FROM blocks WHERE path = ?", ((path,) for path in removed))
            self._db.executemany(
                "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ((path, *_signed(entry), digest) for path, entry, digest in put),
            )
            self._db.executemany(
                "DELETE FROM intent WHERE path = ?",
                ((path,) for path in (*(p for p, _, _ in put), *undone)),  # one that is removed may be about to be put
            )
        for path in removed:
            self._change(path, None)
            self.digests.pop(path, None)
        for path, entry, digest in put:
            self._change(path, entry)
            if digest is None:
                self.digests.pop(path, None)
            else:
                self.digests[path] = digest
        for path in (*(p for p, _, _ in put), *removed, *undone):
            self.doubtful.pop(path, None)
            self.intended.pop(path, None)

    def _change(self, path: bytes, entry: Entry | None) -> None:
        """Change one of the entries; ``None`` removes it."""
        old = self.entries.get(path)
        if old is not None:
            self._size -= old.size
        if entry is not None:
            self._size += entry.size
            self.entries[path] = entry
        elif old is not None:
            del self.entries[path]

    def promote(self, tops: Iterable[bytes], entries: Mapping[bytes, Entry]) -> None:
        """Note that whole new trees are on the remote just as intended: :meth:`settle`, but sqlite copies the rows.

        :param tops: the roots of these trees.
        :param entries: everything in them.
        """
        spans = [{"top": top, "below": top + b"/", "end": top + b"0"} for top in tops]  # "0" comes after "/"
        with self._writing():
            intents = sum(self._db.execute(_COUNT_TREE, span).fetchone()[0] for span in spans)
            copied = intents == len(entries)  # else there are intents of an earlier pass among them
            if copied:
                self._db.executemany(_COPY_TREE, spans)
                self._db.executemany(_DROP_TREE, spans)
        if not copied:
            self.settle([(path, entry, None) for path, entry in entries.items()], ())
            return
        for path, entry in entries.items():
            self._change(path, entry)
        for known in (self.digests, self.doubtful, self.intended):
            for path in known.keys() & entries.keys():
                del known[path]

    def has_below(self, directory: bytes) -> bool:
        """Whether anything in a directory is on the remote because of us."""
        span = (directory + b"/", directory + b"0")  # "0" comes after "/"
        return self._row("SELECT 1 FROM entry WHERE path > ? AND path < ? LIMIT 1", *span) is not None

    def doubt(self, paths: Iterable[bytes]) -> None:
        """The content of these is not known any more (in memory: the intents in the file say the same)."""
        for path in paths:
            old = self.entries.get(path)
            if old is not None:
                self.entries[path] = old.uncertain()

    def forget_everything(self) -> None:
        """The remote tree is not the one we knew: nothing in it is known to be ours."""
        with self._writing():
            for table in ("entry", "intent", "blocks"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - names of ours
        self.entries.clear()
        self._size = 0
        self.digests.clear()
        self.doubtful.clear()
        self.intended.clear()

    def blocks(self, path: bytes) -> tuple[int, int, bytes] | None:
        """Size, mtime_ns and block hashes of a large file as it was sent, or None."""
        row = self._row("SELECT size, mtime_ns, hashes FROM blocks WHERE path = ?", path)
        return None if row is None else (row[0], row[1], row[2])

    def remember_blocks(self, path: bytes, size: int, mtime_ns: int, hashes: bytes) -> None:
        """Keep the block hashes of a large file as it was sent."""
        self._row("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?)", path, size, mtime_ns, hashes)

    def totals(self) -> tuple[int, int]:
        """How many entries there are, and the bytes of all files."""
        return len(self.entries), self._size

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def discard(self) -> None:
        """Close a damaged file and remove it, to begin anew."""
        self.close()
        remove_manifest(self._path)


def peek(path: str, name: str) -> str | None:
    """A value that was remembered in a manifest which may be gone, or open elsewhere. Blocking: runs in a thread."""
    if not os.path.exists(path):
        return None
    try:
        with closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    except sqlite3.Error:
        return None
    return None if row is None else str(row[0])


def remove_manifest(path: str) -> None:
    """Remove a manifest's files. Blocking: runs in a thread."""
    for suffix in ("", "-wal", "-shm"):
        try:
            os.unlink(path + suffix)
        except FileNotFoundError:
            pass


class _Damaged(Exception):
    """The file is no manifest that we understand: what is on the remote is compared and adopted."""


#: What sqlite says of a file that is not, or no longer, what we made. Everything else (a full disk, no descriptor left,
#: another process) is over some time, and no reason to give up what the file knows.
_DAMAGE = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_ERROR,  # no such table, no such column
)


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_INTERNAL) & 0xFF in _DAMAGE


def _signed(entry: Entry) -> tuple[object, ...]:
    inode = entry.inode
    return (
        int(entry.kind),
        entry.mode,
        entry.size,
        entry.mtime_ns,
        entry.ctime_ns,
        inode - (1 << 64) if inode & _SIGN else inode,
        entry.target,
    )
