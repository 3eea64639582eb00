"""Whose things are on the remote: by default the remote user's; the configuration may give them to somebody else.

Everything gets its owner right after it was put there, and before a flush ends: whoever waits for that sees it right.
After a new connection all of it gets its owner again, because what an interrupted pass left out is not written down.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rda.deferreds import InThread, each
from rda.interfaces import IRemoteFiles
from rda.sync.remote import OPERATIONS_AT_ONCE, RemoteTree
from rda.sync.tree import Entry, Kind, join

#: Added to permission bits where everybody may write: of files, and of directories.
EVERYBODY_FILE, EVERYBODY_DIRECTORY = 0o666, 0o777


@dataclass(frozen=True)
class OwnerChoice:
    """Whose the remote tree should be.

    :ivar owner: ``login``: the remote user's; ``preserve``: of the numbers that it has here; else ``UID:GID``.
    :ivar world_writable: whether everybody may write there.
    """

    owner: str = "login"
    world_writable: bool = False

    def __bool__(self) -> bool:
        return self.owner != "login" or self.world_writable


#: Everything belongs to the remote user, with the permission bits that it has here.
DEFAULT_OWNER = OwnerChoice()


async def give(
    ownership: OwnerChoice,
    root: bytes,
    remote: RemoteTree,
    things: Mapping[bytes, Entry],
    in_thread: InThread,
) -> dict[bytes, str]:
    """Give these things their owner; returns problems by path.

    :param root: of the local tree.
    :raises RdaError: the connection is lost.
    """
    files: IRemoteFiles = remote.files
    if "lsetstat" not in files.features:
        return {b"": "cannot get another owner: the SSH server is older than OpenSSH 8.0 (it lacks lsetstat)"}
    owners = await in_thread(_owners, ownership.owner, root, things)
    problems: dict[bytes, str] = {}

    async def change(path: bytes) -> None:
        uid, gid = owners[path]
        if problems:
            return
        try:
            await files.give(remote.full(path), uid, gid, _mode(ownership, things[path]))
        except FileNotFoundError:  # gone again, or never arrived, which has its own problem
            pass
        except OSError as error:
            problems[b""] = (
                f"cannot get another owner or other permissions ({error.strerror}): only root may give files away. "
                "Log in as root, or leave owner and world_writable out of the [[bind]] rule"
            )

    await each(owners, OPERATIONS_AT_ONCE, change)
    return problems


def _mode(ownership: OwnerChoice, entry: Entry) -> int | None:
    if not ownership.world_writable or entry.kind == Kind.SYMLINK:
        return None
    return entry.mode | (EVERYBODY_DIRECTORY if entry.kind == Kind.DIRECTORY else EVERYBODY_FILE)


def _owners(owner: str, root: bytes, paths: Iterable[bytes]) -> dict[bytes, tuple[int | None, int | None]]:
    """Whose each path should be. Blocking: runs in a thread."""
    if owner == "login":
        return dict.fromkeys(paths, (None, None))
    if owner != "preserve":
        uid, _, gid = owner.partition(":")
        return dict.fromkeys(paths, (int(uid), int(gid)))
    found: dict[bytes, tuple[int | None, int | None]] = {}
    for path in paths:
        try:
            status = os.stat(root) if not path else os.lstat(join(root, path))
        except OSError:
            continue
        found[path] = status.st_uid, status.st_gid
    return found
