"""The record of the containers that this context made: what counts as ours, whatever labels something else carries.

Labels keep what the user asked for, but they can be copied: by ``docker commit`` into an image and from there into
containers, by tools that make a container anew, by anybody who may read them. What rda does for a container (open ports
here, send local directories there) it therefore does only for those whose id is in this record, which never leaves this
machine. Labels of a container cannot be changed after its create, so that the id vouches for them.

The record is a file of lines: ``? nonce`` before a create is sent, ``= nonce id`` when the daemon has answered it,
``- nonce`` when there is no such container (any more). A create whose answer never came is recognised by its nonce,
which nobody else knows: the first container that carries it is the one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from twisted.logger import Logger

from rda.errors import StateUnwritable

__all__ = ["MAX_PENDING", "MadeHere", "volume_id"]

#: Creates whose outcome is not known; the oldest are given up, as no container is made that late.
MAX_PENDING = 1024

#: Containers remembered: those that were removed while rda did not run are never heard of again.
MAX_REMEMBERED = 50_000

#: The file is written anew when it has this many lines more than it needs.
SPARE_LINES = 10_000


def volume_id(name: str, request: str) -> str:
    """Return what a volume is called in the record, where containers are by their ids.

    A volume has no id. Another one that takes its name and label is the same to us: it names the same local paths.

    :param request: the label that says what was asked for.
    """
    return hashlib.sha256(f"{name}\0{request}".encode("utf-8", "surrogateescape")).hexdigest()


def _no_sync(descriptor: int) -> None:
    """Leave it to the system when the file reaches the disk."""


class MadeHere:
    """The containers of one context.

    :param path: the file, or None for a record in memory only.
    :param sync: has what was written reach the disk, beside the reactor; called with a descriptor.
    """

    _log = Logger()

    def __init__(self, path: Path | None = None, sync: Callable[[int], object] = _no_sync) -> None:
        self._path = path
        self._sync = sync
        self._descriptor: int | None = None
        self._nonces: dict[str, str] = {}  # id -> nonce
        self._pending: dict[str, None] = {}
        self._lines = 0
        self._torn = False

    def open(self) -> None:
        """Read the record, and be ready to write it."""
        if self._path is None:
            return
        if self._path.exists():
            made: dict[str, str] = {}
            for line in self._path.read_text(encoding="ascii", errors="replace").splitlines():
                self._read(line.split(" "), made)
            self._nonces = {container: nonce for nonce, container in [*made.items()][-MAX_REMEMBERED:]}
        try:
            self._write_anew()
        except OSError as error:  # a full disk: what is written down stays as it is; creates will say why not
            if not self._path.exists():
                raise
            self._log.warn("{path} cannot be written: {reason}", path=str(self._path), reason=error.strerror)
            self._append()

    def _read(self, fields: list[str], made: dict[str, str]) -> None:
        """Take in one line; the last one may be torn."""
        match fields:
            case ["?", nonce]:
                self._pending[nonce] = None
            case ["=", nonce, container] if len(container) == 64:
                self._pending.pop(nonce, None)
                made[nonce] = container
            case ["-", nonce]:
                self._pending.pop(nonce, None)
                made.pop(nonce, None)

    def close(self) -> None:
        """Write no more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def intend(self, nonce: str) -> None:
        """A create with this nonce is about to be sent.

        :raises StateUnwritable: that cannot be noted, so that the container would not be known after a restart.
        """
        self._pending[nonce] = None
        while len(self._pending) > MAX_PENDING:
            self._pending.pop(next(iter(self._pending)))
        try:
            self._write(f"? {nonce}")
        except OSError as error:
            del self._pending[nonce]
            raise StateUnwritable(
                f"the container is not created: {self._path} cannot be written ({error.strerror}). Make room for it"
            ) from error

    def made(self, nonce: str, container: str) -> None:
        """The daemon has made it, with this full id."""
        self._pending.pop(nonce, None)
        self._nonces[container] = nonce
        self._note(f"= {nonce} {container}")

    def failed(self, nonce: str) -> None:
        """The daemon has not made it."""
        if nonce in self._pending:
            del self._pending[nonce]
            self._note(f"- {nonce}")

    def removed(self, container: str) -> None:
        """The container is no more."""
        nonce = self._nonces.pop(container, None)
        if nonce is not None:
            self._note(f"- {nonce}")

    def holds(self, container: str, nonce: str) -> bool:
        """Return whether a container is ours.

        :param container: its full id.
        :param nonce: of the request in its label.
        """
        if nonce in self._pending:
            self.made(nonce, container)
        return self._nonces.get(container) == nonce

    def _note(self, line: str) -> None:
        """Write what has happened already; without it, a restart finds a create whose outcome is not known."""
        try:
            self._write(line)
        except OSError as error:
            self._log.error("{path} cannot be written: {reason}", path=str(self._path), reason=error.strerror)

    def _append(self) -> None:
        """Go on with the file as it is; its last line may be torn."""
        assert self._path is not None
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._torn = True

    def _write(self, line: str) -> None:
        if self._descriptor is None:
            return
        begin = "\n" if self._torn else ""
        self._torn = True  # until it is known to be whole: what was torn off must not become one line with the next
        _write_whole(self._descriptor, f"{begin}{line}\n".encode("ascii"))
        self._torn = False
        self._lines += 1
        if self._lines > len(self._nonces) + len(self._pending) + SPARE_LINES:
            self._shorten()
        else:
            self._sync(self._descriptor)

    def _shorten(self) -> None:
        """Leave out what is over; where there is no room for that, the line is written all the same."""
        try:
            self._write_anew()
        except OSError as error:
            self._lines = len(self._nonces) + len(self._pending)  # not again for each line
            self._log.warn("{path} cannot be written anew: {reason}", path=str(self._path), reason=error.strerror)

    def _write_anew(self) -> None:
        """Replace the file by one without what is over."""
        assert self._path is not None
        lines = [f"= {nonce} {container}\n" for container, nonce in self._nonces.items()]
        lines += [f"? {nonce}\n" for nonce in self._pending]
        fresh = self._path.with_name(self._path.name + ".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(fresh, flags, 0o600)
        try:
            _write_whole(descriptor, "".join(lines).encode("ascii"))
            os.fsync(descriptor)
            os.replace(fresh, self._path)
        except OSError:
            os.close(descriptor)
            raise
        self.close()
        self._descriptor = descriptor
        self._lines = len(lines)
        self._torn = False


def _write_whole(descriptor: int, data: bytes) -> None:
    """Write all of it: a disk that is nearly full takes a part, and says so only when asked to take the rest."""
    while data:
        data = data[os.write(descriptor, data) :]
