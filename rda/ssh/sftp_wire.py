"""SFTP's messages as bytes, and what its answers mean: version 3 (draft-ietf-secsh-filexfer-02). Pure.

An *answer* is a function of a reply's type and payload that returns what the caller of a request waits for; it raises
``ValueError``, ``IndexError`` or ``struct.error`` when that is not what was asked for. A STATUS other than OK does not
get there (:func:`failure_of` makes an exception of it), save for EOF where it is an answer.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import Any

from rda.errors import RdaError
from rda.interfaces import Attributes

INIT, VERSION, OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT = range(1, 11)
OPENDIR, READDIR, REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME, READLINK, SYMLINK = range(11, 21)
STATUS, HANDLE, DATA, NAME, ATTRS = range(101, 106)
EXTENDED, EXTENDED_REPLY = 200, 201

OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE = range(6)
OP_UNSUPPORTED = 8

# What OPEN is asked for, and which attributes are there.
FLAG_READ, FLAG_WRITE, FLAG_CREATE, FLAG_EXCLUSIVE = 0x01, 0x02, 0x08, 0x20
ATTR_SIZE, ATTR_OWNER, ATTR_MODE, ATTR_TIMES, ATTR_EXTENDED = 0x01, 0x02, 0x04, 0x08, 0x80000000

U32, U64 = struct.Struct(">L"), struct.Struct(">Q")
HEAD = struct.Struct(">LBL")  #: length, type and number of a request or answer

#: What an answer of this type, with this payload, becomes.
Answer = Callable[[int, bytes], Any]


class ServerError(OSError):
    """A failure that SFTP has no better word for (disk full, not empty, exists, …: OpenSSH says ``Failure``)."""


class Unsupported(RdaError):
    """The server does not know an operation."""

    status = 502


def pack(value: bytes) -> bytes:
    """A string (RFC 4251, section 5)."""
    return U32.pack(len(value)) + value


def string(payload: bytes, offset: int) -> tuple[bytes, int]:
    """Read a string, and where it ends.

    :raises ValueError: it is longer than its packet.
    """
    length = U32.unpack_from(payload, offset)[0]
    end = offset + 4 + length
    if end > len(payload):
        raise ValueError("a string is longer than its packet")
    return payload[offset + 4 : end], end


def pack_attributes(
    size: int | None, mode: int | None, mtime: int | None, owner: tuple[int, int] | None = None
) -> bytes:
    """The attributes that are not None, for a request (the draft's section 5)."""
    flags, fields = 0, b""
    if size is not None:
        flags |= ATTR_SIZE
        fields += U64.pack(size)
    if owner is not None:
        flags |= ATTR_OWNER
        fields += struct.pack(">2L", *owner)
    if mode is not None:
        flags |= ATTR_MODE
        fields += U32.pack(mode)
    if mtime is not None:
        flags |= ATTR_TIMES
        stamp = min(mtime, 0xFFFFFFFF)  # the field ends in 2106
        fields += struct.pack(">2L", stamp, stamp)
    return U32.pack(flags) + fields


def unpack_attributes(payload: bytes, offset: int) -> tuple[Attributes, int]:
    """Read attributes, and where they end; what the server did not say is 0, an owner -1."""
    flags = U32.unpack_from(payload, offset)[0]
    offset += 4
    size = mode = mtime = 0
    uid = gid = -1
    if flags & ATTR_SIZE:
        size = U64.unpack_from(payload, offset)[0]
        offset += 8
    if flags & ATTR_OWNER:
        uid, gid = struct.unpack_from(">2L", payload, offset)
        offset += 8
    if flags & ATTR_MODE:
        mode = U32.unpack_from(payload, offset)[0]
        offset += 4
    if flags & ATTR_TIMES:
        mtime = U32.unpack_from(payload, offset + 4)[0]
        offset += 8
    if flags & ATTR_EXTENDED:
        count = U32.unpack_from(payload, offset)[0]
        offset += 4
        for _ in range(2 * count):
            _, offset = string(payload, offset)
    return Attributes(mode, size, mtime, uid, gid), offset


# -- answers


def _expect(kind: int, wanted: int) -> None:
    if kind != wanted:
        raise ValueError(f"type {kind} instead of {wanted}")


def nothing(kind: int, payload: bytes) -> None:
    """Done."""
    if kind != EXTENDED_REPLY:  # Conch's server says "done" to an extension like this
        _expect(kind, STATUS)


def handle_of(kind: int, payload: bytes) -> bytes:
    """The handle of a file or directory that was opened."""
    _expect(kind, HANDLE)
    return string(payload, 0)[0]


def data_of(kind: int, payload: bytes) -> bytes:
    """What was read; nothing at the end of the file."""
    if kind == STATUS:
        return b""
    _expect(kind, DATA)
    return string(payload, 0)[0]


def attributes_of(kind: int, payload: bytes) -> Attributes:
    """The attributes that were asked for."""
    _expect(kind, ATTRS)
    return unpack_attributes(payload, 0)[0]


def names_of(kind: int, payload: bytes) -> list[tuple[bytes, Attributes]]:
    """Some of a directory's names; none at its end."""
    if kind == STATUS:
        return []
    _expect(kind, NAME)
    found, offset = [], 4
    for _ in range(U32.unpack_from(payload)[0]):
        name, offset = string(payload, offset)
        _, offset = string(payload, offset)  # the line that ls -l would print
        attributes, offset = unpack_attributes(payload, offset)
        found.append((name, attributes))
    return found


def name_of(kind: int, payload: bytes) -> bytes:
    """The one name that was asked for."""
    _expect(kind, NAME)
    return string(payload, 4)[0]


def reply_of(kind: int, payload: bytes) -> bytes:
    """An extension's reply, which only it can read."""
    _expect(kind, EXTENDED_REPLY)
    return payload


def failure_of(code: int, payload: bytes, subject: bytes) -> OSError | RdaError:
    """An SFTP status as the exception that a local call would have raised."""
    try:
        message = string(payload, 4)[0].decode("utf-8", "replace")
    except (struct.error, ValueError):  # version 2 servers send the code alone
        message = ""
    if code == NO_SUCH_FILE:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), subject)
    if code == PERMISSION_DENIED:
        return PermissionError(errno.EACCES, os.strerror(errno.EACCES), subject)
    if code == OP_UNSUPPORTED:
        return Unsupported("the SFTP server does not support an operation that is needed")
    return ServerError(errno.EIO, f"the remote host answered: {message or f'error {code}'}", subject)
