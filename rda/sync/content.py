"""Read local files, so that what is sent is known to be one version of them. Blocking: runs in a thread."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rda.sync import inside
from rda.sync.scan import entry_of_file, is_still
from rda.sync.tree import Entry, join, lineage

#: A file that changed less than this before it was read may change again without a trace in its times: the kernel
#: stamps with the time of its last timer tick (at most 10 ms apart).
RACY_NS = 100_000_000

#: The same for file systems that keep whole or even seconds (FAT, HFS+, old NFS).
RACY_COARSE_NS = 2_000_000_000

#: What is read from a large file at once.
PIECE = 1024 * 1024

#: The unit in which changes of a large file are found, and the bytes of its digest.
BLOCK = 128 * 1024
DIGEST = 16

#: Blocks are digested with GMAC (NIST SP 800-38D): with the instructions of today's processors ten times as fast as
#: SHA-256, and of the same 128 bits. Two versions of a file collide by chance with a probability of 2**-110 or so. The
#: key is no secret, so somebody could make two that do; that only keeps their own file from being sent again.
_GMAC = AESGCM(hashlib.sha256(b"rda blocks of files").digest()[:16])
_NONCE = bytes(12)

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Unreadable(Exception):
    """A local file cannot be read; the message says why."""


class Loaded(NamedTuple):
    """One small file's content.

    :ivar entry: of the version that was read.
    :ivar steady: whether it stayed the same while it was read.
    :ivar digest: of the content, where the times cannot be trusted to show the next change (see :data:`RACY_NS`).
    """

    data: bytes
    entry: Entry
    steady: bool
    digest: bytes | None


def _open(root: bytes, path: bytes) -> int:
    """Open a file to be read.

    A root is what it leads to, also where it is a single file; links in a tree are sent as links.

    :raises OSError: ELOOP where it is a link, or behind one below a plain root.
    """
    follow = not path and not isinstance(root, inside.PlainRoot)
    descriptor = os.open(join(root, path), _OPEN & ~os.O_NOFOLLOW if follow else _OPEN)
    inside.check(descriptor, root, path)
    return descriptor


def _opened(root: bytes, path: bytes) -> int | Unreadable | None:
    """Open a file to be read; None when it is not there any more, or is a link by now."""
    try:
        descriptor = _open(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return None if error.errno == errno.ELOOP else Unreadable(f"cannot be read: {error.strerror}")
    return descriptor


def load(root: bytes, path: bytes, limit: int, planned: Entry | None = None) -> Loaded | Unreadable | None:
    """Read one file whole.

    :param limit: bytes; a file that has grown beyond it is not read to its end, and is not ``steady``.
    :param planned: what a scan found: a file that still is that after it was read was the same all the time, and needs
        no look beforehand.
    :return: None when it is not there any more (or is no regular file any more: the next look will tell).
    """
    descriptor = _opened(root, path)
    if not isinstance(descriptor, int):
        return descriptor
    try:
        started = time.time_ns()
        if planned is not None and planned.size <= limit:
            # One read: that of a regular file is short only at its end. Each call here gives up and takes back the GIL.
            data = os.read(descriptor, planned.size + 1)
            after = os.fstat(descriptor)
            if len(data) == planned.size and is_still(planned, after):
                return Loaded(data, planned, True, _digest_if_racy(data, planned, started))
        return _load_slowly(descriptor, limit, started)
    except BlockingIOError:  # it is a named pipe by now
        return None
    except OSError as error:
        return Unreadable(f"cannot be read: {error.strerror}")
    finally:
        os.close(descriptor)


def _load_slowly(descriptor: int, limit: int, started: int) -> Loaded | None:
    """Read a file that is not what was expected: look before and after."""
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        return None
    entry, size = entry_of_file(before), before.st_size
    data = os.pread(descriptor, min(size, limit) + 1, 0)
    steady = len(data) == size and is_still(entry, os.fstat(descriptor))
    if len(data) != size:
        data = data[:size]
        entry = entry._replace(size=len(data))
    return Loaded(data, entry, steady, _digest_if_racy(data, entry, started))


def _digest_if_racy(data: bytes, entry: Entry, started: int) -> bytes | None:
    return fingerprint(block_digests(data)) if racy(entry, started) else None


def load_all(root: bytes, files: Sequence[tuple[bytes, Entry]], limit: int) -> list[Loaded | Unreadable | None]:
    """Read several small files, as a scan found them: one visit to the thread pool for all of them."""
    return [load(root, path, limit, entry) for path, entry in files]


def racy(entry: Entry, read_at: int) -> bool:
    """Whether the file could have changed once more after it was read, at ``read_at``, leaving the same times."""
    coarse = entry.ctime_ns % 1_000_000_000 == 0
    return entry.ctime_ns >= read_at - (RACY_COARSE_NS if coarse else RACY_NS)


def block_digests(data: bytes) -> bytes:
    """Digests of the blocks of ``data``, one after the other."""
    view = memoryview(data)
    return b"".join(_GMAC.encrypt(_NONCE, b"", view[at : at + BLOCK]) for at in range(0, len(data), BLOCK))


def fingerprint(digests: bytes) -> bytes:
    """One digest for a whole file, from those of its blocks."""
    return hashlib.sha256(digests).digest()


def changed_since(root: bytes, known: Sequence[tuple[bytes, bytes]]) -> tuple[set[bytes], list[bytes]]:
    """Which racily clean files did change after all.

    :param known: paths, and the fingerprints of what was sent.
    :return: those whose content differs, and those that are old enough by now to be trusted from here on.
    """
    different, settled = set(), []
    for path, sent in known:
        now = time.time_ns()
        try:
            descriptor = _open(root, path)
        except OSError:  # gone or unreadable: the look has seen that, or the next one will
            continue
        try:
            found = fingerprint(_digests_of(descriptor))
            entry = entry_of_file(os.fstat(descriptor))
        except OSError:
            continue
        finally:
            os.close(descriptor)
        if found != sent:
            different.add(path)
        elif not racy(entry, now):
            settled.append(path)
    return different, settled


def _digests_of(descriptor: int) -> bytes:
    digests, offset = [], 0
    while piece := read_piece(descriptor, offset, PIECE):
        digests.append(block_digests(piece))
        offset += len(piece)
    return b"".join(digests)


def digests(root: bytes, files: Iterable[tuple[bytes, Entry]]) -> dict[bytes, bytes]:
    """SHA-256 of those files that still are these versions."""
    found = {}
    for path, entry in files:
        try:
            descriptor = _open(root, path)
        except OSError:
            continue
        try:
            digest, offset = hashlib.sha256(), 0
            while piece := read_piece(descriptor, offset, PIECE):
                digest.update(piece)
                offset += len(piece)
            if unchanged(descriptor, entry):
                found[path] = digest.digest()
        except OSError:  # the next look will tell
            continue
        finally:
            os.close(descriptor)
    return found


def back_again(root: bytes, paths: Iterable[bytes]) -> set[bytes]:
    """Which of these paths, found missing a moment ago, are there again.

    An editor that saves moves the old file away, and then the new one in: nobody has removed anything.
    """
    return {path for path in paths if _is_there(root, path)}


def _is_there(root: bytes, path: bytes) -> bool:
    directory, _, name = path.rpartition(b"/")
    try:
        os.lstat(join(root, path))
        if any(os.path.islink(join(root, above)) for above in lineage(directory) if above):
            return False
        return name in os.listdir(join(root, directory))  # spelled like this, where Name and name are the same
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # nobody knows
        return True


def open_large(root: bytes, path: bytes) -> tuple[int, Entry] | Unreadable | None:
    """Open a file that is sent in pieces; returns a descriptor (which the caller closes) and its entry now."""
    descriptor = _opened(root, path)
    if not isinstance(descriptor, int):
        return descriptor
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        return None
    return descriptor, entry_of_file(found)


def read_piece(descriptor: int, offset: int, length: int) -> bytes:
    """A piece of a large file; shorter than ``length`` only at its end."""
    pieces = []
    while length > 0:
        piece = os.pread(descriptor, length, offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def is_hole(descriptor: int, offset: int, length: int) -> bool:
    """Whether a piece of an open file is known to be a hole, so that there are only zeros in it."""
    if not hasattr(os, "SEEK_DATA"):
        return False
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA) >= offset + length
    except OSError as error:  # ENXIO: there is no data from there on, or nothing at all
        return error.errno == errno.ENXIO and offset + length <= os.fstat(descriptor).st_size


def unchanged(descriptor: int, entry: Entry) -> bool:
    """Whether an open file still is the version that ``entry`` was taken of."""
    return is_still(entry, os.fstat(descriptor))


def now() -> int:
    """The clock that stamps local files, nanoseconds."""
    return time.time_ns()


def close(descriptor: int) -> None:
    """Close a file: in a thread, because a network file system may take its time."""
    os.close(descriptor)
