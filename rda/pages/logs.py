"""The end of the log, kept in memory: ``rda logs`` works wherever the log itself goes to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import ILogObserver, LogEvent, LogLevel
from twisted.web.iweb import IRequest
from zope.interface import implementer

from rda.json_log import described
from rda.pages.document import SCHEMA_VERSION, serialise
from rda.pages.live import Stream, Streams
from rda.pages.resource import OwnResource

__all__ = ["LogEvents", "LogLines", "RecentLog"]

#: Lines that are kept, and characters of each: a megabyte or two at most.
LINES_KEPT = 1000
LONGEST_LINE = 2000


@implementer(ILogObserver)
class RecentLog:
    """Keeps the last lines of the log. Each is a text by then: nothing that was logged is kept alive.

    :ivar count: how many lines there have been.
    """

    def __init__(self) -> None:
        self._lines: deque[dict[str, Any]] = deque(maxlen=LINES_KEPT)
        self.count = 0
        self.listeners: list[Callable[[dict[str, Any]], None]] = []

    def __call__(self, event: LogEvent) -> None:
        """Take one event; debugging is left out."""
        if event.get("log_level") is LogLevel.debug:
            return
        line = {"number": self.count, "time": event.get("log_time", 0.0), **described(event)}
        if len(line["text"]) > LONGEST_LINE:
            line["text"] = line["text"][:LONGEST_LINE] + " …"
        self.count += 1
        self._lines.append(line)
        for listener in list(self.listeners):
            listener(line)

    def since(self, number: int) -> list[dict[str, Any]]:
        """The lines from that number on, as far as they are still kept."""
        return [line for line in self._lines if line["number"] >= number]


class LogLines(OwnResource):
    """``/_rda/logs``: the lines that are kept."""

    isLeaf = False
    for_guests = False

    def __init__(self, log: RecentLog) -> None:
        super().__init__()
        self._recent = log

    def render_GET(self, request: IRequest) -> bytes:
        """Answer with all of them."""
        return self.document(request, {"schema": SCHEMA_VERSION, "lines": self._recent.since(0)})


class LogEvents(Streams):
    """``/_rda/logs/events``: the lines that are kept, and then each new one."""

    for_guests = False

    def __init__(self, clock: IReactorTime, log: RecentLog) -> None:
        super().__init__(clock)
        self._recent = log
        log.listeners.append(self._logged)

    def joined(self, stream: Stream) -> None:
        """Send what there is."""
        self.send_missed(stream)

    def send_missed(self, stream: Stream) -> None:
        """Send what a client has not had; how many it never will shows in the numbers."""
        for line in self._recent.since(stream.position):
            self._send(stream, line)

    def _logged(self, line: dict[str, Any]) -> None:
        for stream in list(self.streams):
            self._send(stream, line)

    def _send(self, stream: Stream, line: dict[str, Any]) -> None:
        if stream.send(b"line", serialise(line)):
            stream.position = line["number"] + 1

    def close(self) -> None:
        """End all streams."""
        if not self.closed:
            self._recent.listeners.remove(self._logged)
        super().close()
