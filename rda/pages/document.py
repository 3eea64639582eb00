"""The status document: what rda is doing, as JSON. Pure. Its fields are described in docs/status-schema.rst."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rda import __version__
from rda.status import ContextStatus

__all__ = ["SCHEMA_VERSION", "Process", "serialise", "status_document"]

#: Raised when a field of the status document changes its meaning or goes away; new fields do not raise it.
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Process:
    """The agent's process.

    :ivar started: seconds since the epoch.
    """

    pid: int
    started: float


def status_document(contexts: Sequence[ContextStatus], process: Process, now: float) -> dict[str, Any]:
    """Make the document.

    :param now: seconds since the epoch, by the clock that all its times are by.
    """
    return {
        "schema": SCHEMA_VERSION,
        "version": __version__,
        "now": now,
        "process": asdict(process),
        "contexts": [asdict(context) for context in contexts],
    }


def serialise(document: Any) -> bytes:
    """Write JSON in ASCII: names of files need not be Unicode, and what is not is escaped as a lone surrogate."""
    return json.dumps(document, separators=(",", ":")).encode("ascii")
