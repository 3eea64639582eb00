"""One process for each state directory: two would write over each other's record of what is theirs.

The lock is the kernel's, on an open file (flock): it goes with the process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from rda.errors import StateInUse

__all__ = ["StateLock"]

#: The lock file's name in the directory. It stays: removing it would be a race.
NAME = "lock"

#: Bytes that are read of it: a process id.
_LONGEST = 32

#: What file systems without locks say: there, nobody is kept out.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


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
        descriptor = os.open(self._directory / NAME, flags, 0o600)
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
