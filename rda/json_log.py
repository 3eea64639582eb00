"""The log as lines of JSON, for whatever collects logs: ``twistd -n --logger rda.json_log.to_stdout rda …``.

Each line is an object with ``time`` (UTC, ISO 8601), ``level``, ``where`` (what part of the program says it) and
``text``, which may have several lines and never has secrets.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText
from zope.interface import implementer

__all__ = ["JSONLines", "described", "to_stdout"]


def described(event: LogEvent) -> dict[str, Any]:
    """What an event says, with its level and which part of the program says it."""
    level = event.get("log_level") or LogLevel.info
    return {
        "level": level.name,
        "where": str(event.get("log_namespace") or event.get("log_system") or "-"),
        "text": eventAsText(event, includeTimestamp=False, includeSystem=False),
    }


@implementer(ILogObserver)
class JSONLines:
    """Writes a line for each event.

    :param file: is flushed after each.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, event: LogEvent) -> None:
        """Write one event; debugging is left out."""
        if event.get("log_level") is LogLevel.debug:
            return
        time = datetime.fromtimestamp(event.get("log_time", 0.0), UTC).isoformat(timespec="milliseconds")
        # In ASCII: names of files need not be Unicode.
        self._file.write(json.dumps({"time": time.replace("+00:00", "Z"), **described(event)}) + "\n")
        self._file.flush()


def to_stdout() -> ILogObserver:
    """Make the observer that ``twistd --logger`` asks for. What the program prints is part of the log by then."""
    return JSONLines(sys.__stdout__ or sys.stdout)
