"""What the agent writes down in its state directory when it listens, for the ``rda`` command on the same machine.

It says where the agent is, and which remote it was told to use, so that ``rda status`` needs no ``--host`` and
``rda doctor`` works when the agent does not run. It holds no secrets, and only its owner can read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rda import __version__
from rda.config import Context, Remote

__all__ = ["AgentRecord", "RecordedContext", "read_record", "state_directory", "write_record"]

#: The file's name in the state directory.
RECORD_NAME = "agent.json"


def state_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the agent keeps its state, and the ``rda`` command looks for it, unless they are told otherwise.

    :param environ: RDA_STATE_DIR counts first, then XDG_STATE_HOME (XDG Base Directory Specification).
    """
    home = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME", "~"), ".local/state")
    return Path(environ.get("RDA_STATE_DIR") or os.path.join(home, "rda")).expanduser()


@dataclass(frozen=True)
class RecordedContext:
    """One context, as far as it can be looked into from outside the agent.

    :ivar listeners: as in DOCKER_HOST; none when the agent has stopped.
    :ivar listen: Twisted server endpoint strings, as configured.
    """

    name: str
    listeners: tuple[str, ...]
    listen: tuple[str, ...]
    remote: Remote
    docker: str
    sync_root: str

    @classmethod
    def of(cls, context: Context, listeners: tuple[str, ...]) -> RecordedContext:
        """Record a context of the configuration."""
        return cls(context.name, listeners, context.listen, context.remote, context.docker, context.sync_root)


@dataclass(frozen=True)
class AgentRecord:
    """What the file says.

    :ivar pid: of the agent, 0 when it has stopped.
    :ivar reloads: how often it has read its configuration again.
    :ivar reload_problems: what of it is not in effect since the last time, and why.
    """

    version: str = __version__
    pid: int = 0
    contexts: tuple[RecordedContext, ...] = field(default=())
    reloads: int = 0
    reload_problems: tuple[str, ...] = ()


def write_record(directory: Path, record: AgentRecord) -> None:
    """Replace the file, at once and whole.

    :raises OSError: the directory cannot be written to.
    """
    path = directory / RECORD_NAME
    new = path.with_suffix(f".{os.getpid()}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(record), file)
    os.replace(new, path)


def read_record(directory: Path) -> AgentRecord:
    """Read the file; an empty record when there is none that can be understood."""
    try:
        found = json.loads((directory / RECORD_NAME).read_text(encoding="utf-8"))
        contexts = tuple(_context(one) for one in found["contexts"])
        problems = tuple(map(str, found.get("reload_problems", ())))
        return AgentRecord(str(found["version"]), int(found["pid"]), contexts, int(found.get("reloads", 0)), problems)
    except (OSError, ValueError, KeyError, TypeError):
        return AgentRecord()


def _context(found: dict[str, Any]) -> RecordedContext:
    known: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in found["remote"].items()
        if key in Remote.__dataclass_fields__
    }
    return RecordedContext(
        str(found["name"]),
        tuple(map(str, found["listeners"])),
        tuple(map(str, found["listen"])),
        Remote(**known),
        str(found["docker"]),
        str(found["sync_root"]),
    )
