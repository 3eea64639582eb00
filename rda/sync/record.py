"""What becomes of each path of a plan: noted in the manifest, counted, and told to the one who ordered it."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from rda.sync.content import Unreadable
from rda.sync.large import Progress
from rda.sync.manifest import Manifest
from rda.sync.remote import RemoteTree
from rda.sync.tree import Entry, printable

#: A disk with fewer bytes left than this is called full.
FULL_BELOW = 1024 * 1024

#: Results are written to the manifest when so many have come together, and at the end.
RESULTS_AT_ONCE = 500

#: Conflict copies that one pass reports by name.
CONFLICTS_SHOWN = 100


_NOT_ALLOWED = (
    "the remote user may not write there: a container has probably given the directory to another user (chown) or "
    "taken its rights away (chmod). Give it back on the remote host, or log in as the user that it belongs to"
)


@dataclass
class Outcome:
    """What became of a plan.

    :ivar problems: by path: what is wrong, and whether the mount is incomplete because of it.
    :ivar conflicts: what somebody else had put in the way, and where it was moved.
    :ivar again: paths that changed while they were read.
    """

    problems: dict[bytes, tuple[str, bool]] = field(default_factory=dict)
    conflicts: dict[bytes, bytes] = field(default_factory=dict)
    again: set[bytes] = field(default_factory=set)


class Record:
    """The results of one plan, as they come in.

    :ivar outcome: what the one who ordered the plan is told.
    """

    def __init__(self, remote: RemoteTree, manifest: Manifest, progress: Progress) -> None:
        self._remote = remote
        self._manifest = manifest
        self._progress = progress
        self.outcome = Outcome()
        self._put: list[tuple[bytes, Entry, bytes | None]] = []
        self._removed: list[bytes] = []
        self._undone: list[bytes] = []
        self._asked = False
        self._free: int | None = None

    def done(self, path: bytes, entry: Entry, digest: bytes | None = None) -> None:
        """This is on the remote now."""
        self._put.append((path, entry, digest))
        self._count()

    def read(self, path: bytes, entry: Entry, steady: bool, digest: bytes | None) -> None:
        """This file is on the remote now; when it was not ``steady`` it changed while it was read."""
        if steady:
            self.done(path, entry, digest)
        else:  # whole as of its first byte or not, nobody knows: send it again
            self.done(path, entry.uncertain())
            self.outcome.again.add(path)

    def gone(self, path: bytes) -> None:
        """What we had put there is not there any more, or not ours any more."""
        self._removed.append(path)
        self._count()

    def not_done(self, path: bytes) -> None:
        """The remote is as it was before at this path."""
        self._undone.append(path)
        self._progress.files_done += 1

    def not_read(self, path: bytes, reason: Unreadable | None) -> None:
        """The local file cannot be read, or (None) is not there any more."""
        if reason is None:
            self.outcome.again.add(path)
        else:
            self.outcome.problems[path] = (str(reason), False)
        self.not_done(path)

    def not_inside(self, path: bytes, message: str) -> None:
        """The remote directory that would hold the path is not one of the tree's."""
        self.outcome.problems[path] = (message, False)
        self.not_done(path)

    async def failed(self, path: bytes, error: OSError, size: int = 0) -> None:
        """The remote refused.

        :param size: bytes of the file that was sent.
        """
        self.outcome.problems[path] = (await self._explain(error, size), True)
        self._progress.files_done += 1

    def twin(self, path: bytes, other: bytes) -> None:
        """The remote's file system does not tell two names apart; the first one has it."""
        self.outcome.problems[path] = (
            f"differs from {printable(other)} by case or Unicode form only, which the remote host does not tell apart. "
            "Rename one of them, or leave it out with .rdaignore",
            True,
        )
        self._progress.files_done += 1

    def is_kept_by_ours(self, directory: bytes) -> bool:
        """Whether a directory could not be removed because something in it is ours: then it is not forgotten.

        Something that could not be removed either, or that the local tree has got again meanwhile.
        """
        self.write()
        if not self._manifest.has_below(directory):
            return False
        below = directory + b"/"
        if any(path.startswith(below) for path in self.outcome.problems):
            self.outcome.problems[directory] = ("holds what cannot be removed", True)
        else:
            self.outcome.again.add(directory)
        self._progress.files_done += 1
        return True

    def moved_aside(self, path: bytes, copy: bytes) -> None:
        """What somebody else had put in the way is kept under another name."""
        if len(self.outcome.conflicts) < CONFLICTS_SHOWN:
            self.outcome.conflicts[path] = copy

    def write(self) -> None:
        """Write to the manifest what has come in."""
        put, self._put = self._put, []
        removed, self._removed = self._removed, []
        undone, self._undone = self._undone, []
        if put or removed or undone:
            self._manifest.settle(put, removed, undone)

    def _count(self) -> None:
        self._progress.files_done += 1
        if len(self._put) + len(self._removed) + len(self._undone) >= RESULTS_AT_ONCE:
            self.write()

    async def _explain(self, error: OSError, size: int) -> str:
        """The reason for people; SFTP says no more than "Failure" of a full disk, so it is asked for its space."""
        if isinstance(error, PermissionError):
            return _NOT_ALLOWED
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            if not self._asked:
                self._asked, self._free = True, await self._remote.files.space(self._remote.stage)
            if self._free is not None and self._free < FULL_BELOW + size:  # what was sent of it is not there any more
                return f"the remote disk is full ({self._free} bytes free)"
            return f"{error.strerror or error}; a quota of the remote user may be used up"
        return error.strerror or str(error)
