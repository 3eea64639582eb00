"""Carry out on the local tree what a two-way plan brings from the remote. Only two-way mirrors ever touch local files.

Everything is looked at again right before it is touched: a file that has changed since the plan was made stays, and
the next pass sees a conflict. A file is fetched beside the tree's own entries under a name that no scan reports, and
renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator

from twisted.internet.defer import Deferred

from rda.deferreds import each
from rda.errors import RdaError
from rda.sync import inside
from rda.sync.both import Pull
from rda.sync.scan import INCOMING, entry_of_file
from rda.sync.sides import Sides
from rda.sync.tree import OTHERS_RIGHTS, Entry, Kind, folded, join, printable

#: Files fetched at once, and what is asked for at once of each (a server may give less).
FILES_AT_ONCE = 32
PIECE = 256 * 1024

_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC


class Changed(Exception):
    """A local path is not what it was when the plan was made."""


class Fetch:
    """Carries out one :class:`rda.sync.both.Pull`.

    :ivar problems: by path, what went wrong.
    :ivar again: paths that changed here meanwhile.
    """

    def __init__(self, sides: Sides) -> None:
        self._root = sides.root
        self._remote = sides.remote
        self._files = sides.files
        self._manifest = sides.manifest
        self._in_thread = sides.in_thread
        self._progress = sides.progress
        self.problems: dict[bytes, str] = {}
        self.again: set[bytes] = set()

    async def run(self, pull: Pull) -> None:
        """Do everything.

        :raises RdaError: when the connection is lost.
        """
        for path, entry in pull.remove:
            await self._try(path, self._in_thread(_remove, self._root, path, entry))
        for path, entry in pull.make:
            await self._try(path, self._in_thread(_make, self._root, path, entry.mode))
        await each(pull.get, FILES_AT_ONCE, self._get)

    async def _try(self, path: bytes, doing: Deferred[Entry | None]) -> None:
        try:
            entry = await doing
        except Changed:
            self.again.add(path)
        except OSError as error:
            self.problems[path] = f"cannot be changed here: {error.strerror}"
        else:
            if entry is None:
                self._manifest.settle((), [path])
            else:
                self._manifest.settle([(path, entry, None)], ())
            self._progress.files_done += 1

    async def _get(self, item: tuple[bytes, Entry, Entry | None]) -> None:
        path, there, here = item
        self._progress.check()
        if there.kind == Kind.SYMLINK:
            await self._try(path, self._in_thread(_link, self._root, path, there.target, here, self._temporary()))
            return
        temporary = self._temporary()
        try:
            await self._fetch(path, temporary, there)
        except OSError as error:
            self.problems[path] = f"cannot be fetched from the remote host: {error.strerror}"
            await self._in_thread(_discard, self._root, temporary)
            return
        except RdaError:
            await self._in_thread(_discard, self._root, temporary)
            raise
        await self._try(path, self._in_thread(_install, self._root, path, temporary, there, here))

    def _temporary(self) -> bytes:
        """A name of its own for every fetch, also beside one that an earlier pass could not remove."""
        return INCOMING + secrets.token_hex(6).encode()

    async def _fetch(self, path: bytes, temporary: bytes, there: Entry) -> None:
        handle = await self._files.open(self._remote.full(path), write=False)
        descriptor = None
        try:
            descriptor = await self._in_thread(_create, self._root, temporary)
            offset = 0
            while data := await self._files.read_at(handle, offset, PIECE):
                self._progress.check()
                if offset + len(data) > there.size:
                    break  # another version, or a file without end
                await self._in_thread(os.pwrite, descriptor, data, offset)
                offset += len(data)
                self._progress.bytes_done += len(data)
            found = await self._files.handle_attributes(handle)
        finally:
            self._files.close(handle).addErrback(lambda _: None)
            if descriptor is not None:
                await self._in_thread(os.close, descriptor)
        if data or (found.size, found.mtime, offset) != (there.size, there.mtime, there.size):
            raise OSError(errno.EAGAIN, "it changed while it was read; it is fetched again")


def sweep(root: bytes) -> None:
    """Remove what an interrupted fetch has left. Blocking: runs in a thread."""
    try:
        names = [name for name in os.listdir(root) if name.startswith(INCOMING)]
    except OSError:
        return
    for name in names:
        _discard(root, name)


def _create(root: bytes, path: bytes) -> int:
    """Make a file to be written."""
    with inside.written(root, path) as full:
        return os.open(full, _CREATE, 0o600)


def keeps_nanoseconds(root: bytes) -> bool:
    """Whether the file system here keeps times as precisely as Linux' do: else they come back changed.

    Blocking: runs in a thread.
    """
    name, stamp = INCOMING + secrets.token_hex(6).encode(), 1_500_000_000_123_456_789
    probe = join(root, name)
    try:
        os.close(_create(root, name))
        os.utime(probe, ns=(stamp, stamp))
        return os.lstat(probe).st_mtime_ns == stamp
    except OSError:
        return False
    finally:
        _discard(root, name)


def _discard(root: bytes, path: bytes) -> None:
    try:
        with inside.written(root, path) as full:
            os.unlink(full)
    except OSError:
        pass


def _now(full: bytes) -> Entry | None:
    try:
        found = os.lstat(full)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(found.st_mode):
        return entry_of_file(found)
    if stat.S_ISDIR(found.st_mode):
        return Entry(Kind.DIRECTORY, found.st_mode & 0o7777)
    if stat.S_ISLNK(found.st_mode):
        return Entry(Kind.SYMLINK, target=os.readlink(full))
    raise Changed


def _unchanged(full: bytes, here: Entry | None) -> None:
    if _now(full) != here:
        if here is None:
            _refuse_twin(full)
        raise Changed


def _refuse_twin(full: bytes) -> None:
    """Tell whether what has a name only has it because the file system here takes it for another one."""
    directory, _, name = full.rpartition(b"/")
    names = os.listdir(directory)
    twins = [other for other in names if folded(other) == folded(name)]
    if name not in names and twins:
        raise OSError(
            errno.EEXIST,
            f"it differs from {printable(twins[0])} by case or Unicode form only, which is the same name here",
        )


def _remove(root: bytes, path: bytes, here: Entry) -> None:
    with inside.written(root, path) as full:
        _unchanged(full, here)
        if here.kind == Kind.DIRECTORY:
            try:
                os.rmdir(full)
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:  # something ignored, or new
                    raise Changed from error
                raise
        else:
            os.unlink(full)


def _make(root: bytes, path: bytes, mode: int) -> Entry:
    with inside.written(root, path) as full:
        try:
            os.mkdir(full)
        except FileExistsError:
            found = _now(full)
            if found is None or found.kind != Kind.DIRECTORY:
                raise Changed from None
        with _opened(full, os.O_RDONLY | os.O_DIRECTORY) as directory:
            os.fchmod(directory, mode)
    return Entry(Kind.DIRECTORY, mode)


@contextlib.contextmanager
def _opened(full: bytes, flags: int) -> Iterator[int]:
    """What has this name, and no link that somebody has put there: modes and times are given to what is open."""
    descriptor = os.open(full, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _install(root: bytes, path: bytes, temporary: bytes, there: Entry, here: Entry | None) -> Entry:
    try:
        with inside.written(root, temporary) as fetched, inside.written(root, path) as full:
            with _opened(fetched, os.O_WRONLY | os.O_NONBLOCK) as file:
                os.fchmod(file, there.mode & ~OTHERS_RIGHTS)
                os.utime(file, ns=(there.mtime_ns, there.mtime_ns))
            _put_in_place(fetched, full, here)
            return entry_of_file(os.lstat(full))
    except (Changed, OSError):
        _discard(root, temporary)
        raise


def _link(root: bytes, path: bytes, target: bytes, here: Entry | None, temporary: bytes) -> Entry:
    try:
        with inside.written(root, temporary) as made, inside.written(root, path) as full:
            os.symlink(target, made)
            _put_in_place(made, full, here)
    except (Changed, OSError):
        _discard(root, temporary)
        raise
    return Entry(Kind.SYMLINK, target=target)


def _put_in_place(temporary: bytes, full: bytes, here: Entry | None) -> None:
    _unchanged(full, here)
    if here is None:  # a link refuses to replace what appears at the last moment; a rename would not
        try:
            os.link(temporary, full, follow_symlinks=False)
        except FileExistsError as error:
            raise Changed from error
        os.unlink(temporary)
    else:
        os.rename(temporary, full)
