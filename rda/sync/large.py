"""Large files: sent piece by piece with bounded memory, and when they change, only the blocks that did.

For every large file the manifest keeps a digest of each block as it was sent. To change the remote file, the remote
copies it to a temporary by itself (``cp``, or SFTP's ``copy-data``), the changed blocks are written over that, and it
is cut to size and renamed: readers still see whole versions only. Before and after the copy the remote file's size and
time are compared with what was sent, because a container may have written to it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from rda.deferreds import InThread, gather
from rda.interfaces import Attributes, IRemoteFiles
from rda.sync import content
from rda.sync.content import BLOCK, DIGEST, PIECE
from rda.sync.tree import Entry

#: Pieces of one file that may be on their way.
PIECES_AHEAD = 4

#: Smaller files are sent whole: that takes no longer than having the server copy them.
DELTA_FROM = 4 * 1024 * 1024

_ZEROS = bytes(PIECE)


Copy = Callable[[bytes, bytes], Awaitable[bool]]


class Progress(Protocol):
    """Told how far things are."""

    files_done: int
    bytes_done: int

    def check(self) -> None:
        """Raise an RdaError when no more should be done."""


@dataclass(frozen=True)
class Base:
    """A version of the file that is on the remote already.

    :ivar path: absolute, there.
    :ivar hashes: of its blocks, one after the other.
    """

    path: bytes
    size: int
    mtime: int
    hashes: bytes

    def is_still(self, found: Attributes) -> bool:
        """Whether the remote file still is what was sent."""
        return stat.S_ISREG(found.mode) and (found.size, found.mtime) == (self.size, self.mtime)


@dataclass(frozen=True)
class Sent:
    """A file that was sent.

    :ivar steady: whether it stayed the same while it was read.
    :ivar hashes: of its blocks.
    """

    size: int
    steady: bool
    hashes: bytes


class Sender:
    """Sends open local files into open remote ones.

    :param copy: has the remote copy one path to another by a command; fires with whether that worked.
    """

    def __init__(self, files: IRemoteFiles, in_thread: InThread, progress: Progress, copy: Copy) -> None:
        self._copy_by_command = copy
        self._files = files
        self._in_thread = in_thread
        self._progress = progress

    async def send(
        self, path: bytes, handle: bytes, descriptor: int, entry: Entry, *, base: Base | None = None, fresh: bool = True
    ) -> Sent:
        """Fill an open remote file, set its size, mode and time, and close it.

        :param path: of the open remote file.
        :param descriptor: of the local file, whose version ``entry`` is.
        :param base: start from this on the remote; the open file must be empty.
        :param fresh: the open file is empty, so that zeros need not be written.
        :raises OSError: from either side.
        """
        files = self._files
        try:
            hashes = None if base is None else await self._send_changes(path, handle, descriptor, entry, base)
            if hashes is None:
                hashes = await self._send_pieces(handle, descriptor, entry, fresh)
            size = min(entry.size, await self._in_thread(_size_now, descriptor))
            attributes = files.set_handle_attributes(handle, size=size, mode=entry.mode, mtime=entry.mtime)
            _, found = await gather(attributes, files.handle_attributes(handle))
            if found.size != size:
                raise OSError(errno.EIO, f"only {found.size} of {size} bytes arrived on the remote host")
        except Exception:
            files.close(handle).addErrback(lambda _: None)
            raise
        await files.close(handle)
        steady = size == entry.size and bool(await self._in_thread(content.unchanged, descriptor, entry))
        return Sent(size, steady, hashes)

    async def _send_pieces(self, handle: bytes, descriptor: int, entry: Entry, fresh: bool) -> bytes:
        """Everything. At most as much as the file had when it was opened."""
        under_way: deque[Deferred[Any]] = deque()
        hashes = []
        try:
            for offset in range(0, entry.size, PIECE):
                self._progress.check()
                length = min(PIECE, entry.size - offset)
                piece, digests = await self._in_thread(_read_piece, descriptor, offset, length)
                hashes.append(digests)
                if not (fresh and piece == _ZEROS):  # a hole stays a hole
                    under_way.append(self._write(handle, offset, piece))
                self._progress.bytes_done += len(piece)
                if len(under_way) >= PIECES_AHEAD:
                    await under_way.popleft()
                if len(piece) < length:
                    break
        finally:
            await gather(*under_way)
        return b"".join(hashes)

    def _write(self, handle: bytes, offset: int, piece: bytes) -> Deferred[Any]:
        step, view = self._files.write_size, memoryview(piece)
        writes = [self._files.write_at(handle, offset + at, view[at : at + step]) for at in range(0, len(view), step)]
        return Deferred.fromCoroutine(gather(*writes))

    async def _send_changes(
        self, path: bytes, handle: bytes, descriptor: int, entry: Entry, base: Base
    ) -> bytes | None:
        """What differs from the base; None when the base is not what it was, or the server will not copy it."""
        copying = Deferred.fromCoroutine(self._copy(path, handle, base))
        hashes: list[bytes] = []
        under_way: deque[Deferred[Any]] = deque()
        copied: bool | None = None
        try:
            for offset in range(0, entry.size, PIECE):
                self._progress.check()
                length = min(PIECE, entry.size - offset)
                at = offset // BLOCK * DIGEST
                old = base.hashes[at : at + PIECE // BLOCK * DIGEST]
                changes, digests = await self._in_thread(_changes, descriptor, offset, length, old)
                hashes.append(digests)
                self._progress.bytes_done += length
                if changes and copied is None:
                    copied = await copying
                if copied is False:
                    return None
                for where, data in changes:
                    under_way.append(self._write(handle, where, data))
                    if len(under_way) >= PIECES_AHEAD:
                        await under_way.popleft()
        finally:
            await gather(*under_way)
            if copied is None:
                copied = await copying
        return b"".join(hashes) if copied else None

    async def _copy(self, path: bytes, handle: bytes, base: Base) -> bool:
        """Have the server copy the base; False when that is no basis."""
        try:
            source = await self._files.open(base.path, write=False)
            try:
                before = await self._files.handle_attributes(source)
                if not base.is_still(before):
                    return False
                if not await self._copy_by_command(base.path, path):
                    if "copy-data" not in self._files.features:
                        return False
                    await self._files.copy_data(source, handle)
                return base.is_still(await self._files.handle_attributes(source))
            finally:
                await self._files.close(source)
        except OSError:
            return False


def _size_now(descriptor: int) -> int:
    return os.fstat(descriptor).st_size


def _read_piece(descriptor: int, offset: int, length: int) -> tuple[bytes, bytes]:
    """A piece, and the digests of its blocks. Blocking: runs in a thread."""
    if length == PIECE and content.is_hole(descriptor, offset, length):
        return _ZEROS, _zero_digests()
    piece = content.read_piece(descriptor, offset, length)
    return piece, content.block_digests(piece)


@cache
def _zero_digests() -> bytes:
    return content.block_digests(_ZEROS)


def _changes(descriptor: int, offset: int, length: int, old: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The blocks of a piece whose digests are not those in ``old``, and all digests. Blocking: runs in a thread."""
    piece, digests = _read_piece(descriptor, offset, length)
    changed = [
        (offset + at, piece[at : at + BLOCK])
        for number, at in enumerate(range(0, len(piece), BLOCK))
        if digests[number * DIGEST : (number + 1) * DIGEST] != old[number * DIGEST : (number + 1) * DIGEST]
    ]
    return changed, digests
