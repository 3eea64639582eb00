"""The source of a bind mount as it is on this machine. Blocking: everything here runs in a thread."""

from __future__ import annotations

import os
import stat

from rda.errors import BadDocument, BadRequest
from rda.sync.manifest import peek
from rda.sync.tree import Kind

#: What a manifest notes as the kind of its source.
_KINDS: dict[str | None, Kind] = {str(int(kind)): kind for kind in (Kind.FILE, Kind.DIRECTORY)}


def kind_of(source: str, kind_hint: str | None, create_missing: bool, manifest: str) -> Kind:
    """What a source is.

    :param manifest: the file of its manifest, which knows what a source was that is not there any more.
    :raises BadRequest: it is not there, or nothing that can be mirrored.
    """
    try:
        mode = os.stat(source).st_mode
    except FileNotFoundError as error:
        known = peek(manifest, "kind")
        if known in _KINDS and not create_missing:  # its remote copy still is what it was
            return _KINDS[known]
        if not create_missing or os.path.islink(source):
            message = f'invalid mount config for type "bind": bind source path does not exist: {source}'
            raise BadDocument(message) from error
        try:
            _create(source, kind_hint)
        except OSError as reason:
            raise BadRequest(f"bind source path {source} cannot be created: {reason.strerror}") from reason
        return Kind.FILE if kind_hint == "file" else Kind.DIRECTORY
    except OSError as error:
        raise BadRequest(f"bind source path {source} cannot be used: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        return Kind.DIRECTORY
    if stat.S_ISREG(mode):
        return Kind.FILE
    raise BadRequest(f"bind source path {source} is neither a file nor a directory, and cannot be mirrored")


def is_really_inside(outer: str, source: str) -> bool:
    """Whether nothing between a directory and one below it is a symbolic link."""
    real = os.path.join(os.path.realpath(outer), os.path.relpath(source, outer))
    return os.path.realpath(source) == real


def _create(source: str, kind_hint: str | None) -> None:
    if kind_hint == "file":
        os.makedirs(os.path.dirname(source), exist_ok=True)
        os.close(os.open(source, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    else:
        os.makedirs(source, exist_ok=True)
