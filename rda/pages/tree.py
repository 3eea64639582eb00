"""The tree of resources below ``/_rda/``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource

from rda.pages.control import ACTIONS, Action, Copies, IControl
from rda.pages.document import Process, status_document
from rda.pages.live import StatusEvents
from rda.pages.logs import LogEvents, LogLines, RecentLog
from rda.pages.resource import Nothing, OwnResource
from rda.status import ContextStatus

__all__ = ["Pages"]


class Pages(Resource):
    """What is served below ``/_rda/``.

    :param clock: for the streams of events.
    :param status: gives the contexts' status at the time of the call.
    :param control: what can be told to do something.
    :param log: the end of the log.
    """

    def __init__(
        self,
        clock: IReactorTime,
        status: Callable[[], tuple[ContextStatus, ...]],
        control: IControl,
        log: RecentLog,
    ) -> None:
        super().__init__()
        process = Process(os.getpid(), time.time())

        def document() -> dict[str, Any]:
            return status_document(status(), process, time.time())

        self._streams = (StatusEvents(clock, document), LogEvents(clock, log))
        self.putChild(b"status", _Status(document))
        self.putChild(b"events", self._streams[0])
        lines = LogLines(log)
        lines.putChild(b"events", self._streams[1])
        self.putChild(b"logs", lines)
        self.putChild(b"unused", Copies(control))
        for name, deed in ACTIONS.items():
            self.putChild(name.encode(), Action(control, deed))

    def getChild(self, path: bytes, request: IRequest) -> Resource:
        """Answer for any other path that there is nothing."""
        return Nothing()

    def close(self) -> None:
        """End what would go on for ever: rda is stopping."""
        for streams in self._streams:
            streams.close()


class _Status(OwnResource):
    """``/_rda/status``: the whole status as JSON."""

    def __init__(self, document: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self._make = document

    def render_GET(self, request: IRequest) -> bytes:
        """Answer with the document that docs/status-schema.rst describes."""
        return self.document(request, self._make())
