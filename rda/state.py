"""The state directory of a context: its owner's only, one process's at a time, with an identity of its own.

The lock is the kernel's, on an open file (flock): it goes with the process, however that ends. Without it two processes
would write over each other's record of what is theirs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from pathlib import Path

from rda.errors import RdaError, StateInUse

__all__ = ["StateLock", "identity", "private_directory"]

#: The lock file's name in the directory. It stays: removing it would be a race.
LOCK_NAME = "lock"

#: Bytes that are read of it: a process id.
_LONGEST = 32

#: What file systems without locks say: there, nobody is kept out.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def private_directory(path: Path) -> None:
    """Make a directory that only its owner can enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def identity(state_dir: Path) -> str:
    """The identity of this installation's context: made once, then read."""
    path = state_dir / "owner"
    try:
        owner = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        owner = secrets.token_hex(16)
        new = path.with_name(path.name + ".new")  # half an identity, on a full disk, would be a damaged one for ever
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(owner + "\n")
            file.flush()
            os.fsync(descriptor)
        os.replace(new, path)
    if not re.fullmatch("[0-9a-f]{32}", owner):
        raise RdaError(f"{path} is damaged; restore it, or remove it to begin with a new identity")
    return owner


class StateLock:
    """The right to use one state directory.

    :param directory: owner-only.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor: int | None = None

    def take(self) -> None:
        """Keep other processes out, until :meth:`release` or the end of this one.

        :raises StateInUse: another process has the directory.
        :raises OSError: the lock file cannot be made.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._directory / LOCK_NAME, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except BlockingIOError:
            holder = os.pread(descriptor, _LONGEST, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StateInUse(
                f"the state directory {self._directory} is in use by another rda"
                f"{f', process {holder}' if holder.isdecimal() else ''}. Stop that one, or give this one a state "
                "directory of its own (--state-dir)"
            ) from None
        except OSError as error:
            if error.errno not in (*_NO_LOCKS, errno.ENOSPC, errno.EDQUOT):  # the process id is only for the message
                os.close(descriptor)
                raise
        self._descriptor = descriptor

    def release(self) -> None:
        """Let others in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
