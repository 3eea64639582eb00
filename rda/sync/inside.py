"""Stay inside a tree, whoever exchanges directories for symbolic links meanwhile. Blocking: runs in a thread.

A policy judges where a bind source really leads. So that this still holds when its files are opened, the root of such a
mirror is a :class:`PlainRoot`, its own real path, and whatever is opened below it is asked where it really is: the
kernel knows that of an open descriptor, and nobody can change it. Paths below other roots are taken as they are to be
read, and looked at in the same way to be written (:func:`written`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rda.sync.tree import join, parent

__all__ = ["PlainRoot", "check", "directory", "placed", "status"]

#: macOS' F_GETPATH, and the longest path that it gives (MAXPATHLEN).
_F_GETPATH, _LONGEST = 50, 1024

#: Opens anything to be looked at, and no more, where there is such a thing.
_LOOK = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK) | os.O_NOFOLLOW | os.O_CLOEXEC


class PlainRoot(bytes):
    """The root of a tree that is reached through no symbolic link, and in which none is followed."""


def _real_path(descriptor: int) -> bytes:
    """Return where an open file is, as the kernel knows."""
    if sys.platform == "darwin":
        return fcntl.fcntl(descriptor, _F_GETPATH, bytes(_LONGEST)).rstrip(b"\0")
    return os.readlink(b"/proc/self/fd/%d" % descriptor)


def check(descriptor: int, root: bytes, path: bytes) -> None:
    """Close an open file, and raise, unless it is what its path says.

    :raises OSError: ELOOP, as for a link that ``O_NOFOLLOW`` meets.
    """
    if not isinstance(root, PlainRoot) or _real_path(descriptor) == join(root, path):
        return
    os.close(descriptor)
    raise OSError(errno.ELOOP, "it is reached through a symbolic link, or was moved")


def status(root: bytes) -> os.stat_result:
    """Look at a root: what it leads to, or, of a plain one, itself.

    :raises OSError: as :func:`os.stat` and :func:`check`.
    """
    if not isinstance(root, PlainRoot):
        return os.stat(root)
    descriptor = os.open(root, _LOOK)
    check(descriptor, root, b"")
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def directory(root: bytes, path: bytes) -> Iterator[bytes]:
    """Give a path of a directory, which leads to that one for as long as the context lasts.

    :raises OSError: as :func:`os.open` and :func:`check`.
    """
    if not isinstance(root, PlainRoot):
        yield join(root, path)
        return
    descriptor = os.open(join(root, path), _LOOK | os.O_DIRECTORY)
    check(descriptor, root, path)
    try:
        yield join(root, path) if sys.platform == "darwin" else b"/proc/self/fd/%d" % descriptor
    finally:
        os.close(descriptor)


@contextmanager
def placed(root: bytes, path: bytes) -> Iterator[bytes]:
    """Give a path of something below a root, in a directory that stays the same for as long as the context lasts.

    :raises OSError: as :func:`directory`.
    """
    with directory(root, parent(path)) as above:
        yield above + b"/" + path.rpartition(b"/")[2]


@contextmanager
def written(root: bytes, path: bytes) -> Iterator[bytes]:
    """Give a path of something that is about to be written below a root: :func:`placed`, for any root.

    A root may be a link itself. Below it none is followed: what comes from another host, and where it comes to, is then
    in the tree, whatever that host says and whoever exchanges directories for links meanwhile.

    :raises OSError: as :func:`directory`.
    """
    if path.rpartition(b"/")[2] in (b"", b".", b".."):
        raise OSError(errno.EINVAL, "it is no name")
    if not isinstance(root, PlainRoot):
        descriptor = os.open(root, _LOOK & ~os.O_NOFOLLOW | os.O_DIRECTORY)
        try:
            root = PlainRoot(_real_path(descriptor))
        finally:
            os.close(descriptor)
    with placed(root, path) as full:
        yield full
