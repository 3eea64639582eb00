"""Where copies are on the remote host: below the sync root, one directory for each owner and source."""

from __future__ import annotations

import hashlib
import os
import stat

from rda.deferreds import gather
from rda.errors import SyncFailed
from rda.interfaces import IRemoteFiles, IRemoteHost


class SyncRoot:
    """The copies of one owner.

    :param owner: this client's identity, unguessable: it names the directories on the remote.
    :param configured: the sync root; relative means below the login directory.
    """

    def __init__(self, host: IRemoteHost, owner: str, configured: bytes) -> None:
        self._host = host
        self._owner = os.fsencode(owner)
        self._configured = configured
        self._made: tuple[IRemoteFiles, bytes] | None = None

    @property
    def prefix(self) -> str:
        """What the names of all copies of this owner begin with."""
        return hashlib.sha256(self._owner).hexdigest()[:8] + "-"

    def name(self, source: str) -> str:
        """One for every owner and source; nobody can guess it who does not know the owner's identity."""
        return self.prefix + hashlib.sha256(self._owner + b"\0" + os.fsencode(source)).hexdigest()[:32]

    async def path(self) -> bytes:
        """The sync root's own absolute path; it is made when it is not there.

        :raises RdaError: it cannot be had.
        """
        files: IRemoteFiles = await self._host.files()
        if self._made is None or self._made[0] is not files or not await _is_there(files, self._made[1]):
            self._made = (files, await _make(files, self._configured))
        return self._made[1]

    async def base(self, source: str) -> bytes:
        """The absolute path of the directory of a source's copy; raises as :meth:`path`."""
        return await self.path() + b"/" + self.name(source).encode()


async def _is_there(files: IRemoteFiles, path: bytes) -> bool:
    """Whether nobody has removed a directory."""
    try:
        return stat.S_ISDIR((await files.attributes(path)).mode)
    except FileNotFoundError:
        return False


async def _make(files: IRemoteFiles, configured: bytes) -> bytes:
    """Make the sync root, owner-only, and return its absolute path."""
    path = configured if configured.startswith(b"/") else await files.real_path(b".") + b"/" + configured
    path = b"/" + b"/".join(part for part in path.split(b"/") if part)
    if b"\n" in path:
        raise SyncFailed("the sync root must not have a line break in its name")
    try:
        found, real = await gather(files.attributes(path), files.real_path(path))
    except FileNotFoundError:
        await _make_directories(files, path)
        found, real = await gather(files.attributes(path), files.real_path(path))
    if stat.S_ISLNK(found.mode):
        found = await files.attributes(real)
    if not stat.S_ISDIR(found.mode):
        raise SyncFailed(f"the sync root {os.fsdecode(real)} on the remote host is not a directory")
    if found.mode & 0o077:
        try:
            await files.set_attributes(real, 0o700, None)
        except OSError as error:
            raise SyncFailed(
                f"the sync root {os.fsdecode(real)} on the remote host belongs to somebody else. Choose another one"
            ) from error
    return bytes(real)


async def _make_directories(files: IRemoteFiles, path: bytes) -> None:
    """Make a directory, and first those above it that are missing."""
    try:
        await files.make_directory(path, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        await _make_directories(files, path.rpartition(b"/")[0])
        await files.make_directory(path, 0o700)
    except OSError as error:
        raise SyncFailed(
            f"the sync root needs {os.fsdecode(path)} on the remote host, which cannot be made: {error.strerror}. "
            "Choose another one (sync_root) that the remote user may write to"
        ) from error
