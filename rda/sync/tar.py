"""Tar archives as bytes: ustar headers with GNU's long names, which GNU tar, bsdtar and BusyBox all read. Pure.

Written here and not by ``tarfile``, because names are bytes, and because ten thousand headers a second is not enough.
Sources: POSIX.1-1988 (ustar), https://www.gnu.org/software/tar/manual/html_node/Standard.html.
"""

from __future__ import annotations

BLOCK = 512

#: Two empty blocks end an archive.
END = bytes(2 * BLOCK)

_NAME_LIMIT = 100
_SIZE_LIMIT = 1 << 33  # eleven octal digits

FILE, SYMLINK, DIRECTORY = b"0", b"2", b"5"
_LONG_NAME, _LONG_TARGET = b"L", b"K"

# Owner and group: whoever unpacks. After the link's target: magic and version; no names, devices, prefix.
_IDS = b"0000000\0" * 2
_REST = b"ustar  \0" + bytes(BLOCK - 265)

#: The sum of what is the same in all headers: the checksum counts itself as eight spaces.
_FIXED_SUM = sum(_REST) + sum(b" " * 8)


def member(name: bytes, kind: bytes, mode: int, size: int, mtime: int, target: bytes = b"") -> bytes:
    """The header of one member; of a file, its data and :func:`padding` follow.

    :param kind: :data:`FILE`, :data:`SYMLINK` or :data:`DIRECTORY`.
    :raises ValueError: the file is larger than a header can say.
    """
    if size >= _SIZE_LIMIT:
        raise ValueError(f"{size} bytes are more than a tar header can say")
    head = _header(name, kind, mode, size, mtime, target)
    if len(target) > _NAME_LIMIT:
        head = _long(_LONG_TARGET, target) + head
    if len(name) > _NAME_LIMIT:
        head = _long(_LONG_NAME, name) + head
    return head


def padding(size: int) -> bytes:
    """What fills the last block of a file of this size."""
    return bytes(-size % BLOCK)


def _long(kind: bytes, value: bytes) -> bytes:
    """A member whose data is the name (or link target) of the next one."""
    data = value + b"\0"
    return _header(b"././@LongLink", kind, 0, len(data), 0, b"") + data + padding(len(data))


def _header(name: bytes, kind: bytes, mode: int, size: int, mtime: int, target: bytes) -> bytes:
    name, target = name[:_NAME_LIMIT], target[:_NAME_LIMIT]
    numbers = b"%07o\0%b%011o\0%011o\0" % (mode, _IDS, size, min(mtime, 0o77777777777))
    checksum = sum(name) + sum(numbers) + sum(kind) + sum(target) + _FIXED_SUM
    return b"%b%b%06o\0 %b%b%b" % (
        name.ljust(_NAME_LIMIT, b"\0"), numbers, checksum, kind, target.ljust(_NAME_LIMIT, b"\0"), _REST,
    )  # fmt: skip
