"""The tree of resources below ``/_rda/``."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource
from twisted.web.util import Redirect

from rda.pages.control import ACTIONS, Action, Copies, IControl
from rda.pages.document import Process, status_document
from rda.pages.live import StatusEvents
from rda.pages.logs import LogEvents, LogLines, RecentLog
from rda.pages.resource import Nothing, OwnResource, is_guest
from rda.status import ContextStatus

if TYPE_CHECKING:
    from rda.pages.metrics import Metrics

__all__ = ["Pages"]

Status = Callable[[], tuple[ContextStatus, ...]]

#: Nothing from elsewhere, nothing inline, in nobody's frame: what the page shows comes from containers and files.
CONTENT_SECURITY_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

#: The files of the status page, by name, and their types.
STATIC = {
    "": ("index.html", b"text/html; charset=utf-8"),
    "page.css": ("page.css", b"text/css; charset=utf-8"),
    "page.js": ("page.js", b"text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", b"image/svg+xml"),
}


class Pages(Resource):
    """What is served below ``/_rda/``.

    :param clock: for the streams of events.
    :param status: gives the status of all contexts of the process at the time of the call.
    :param own_status: gives that of the context whose listener this is: guests (:func:`is_guest`) see no other.
    :param control: what can be told to do something.
    :param log: the end of the log.
    :param process: the process that all this is about.
    """

    def __init__(
        self,
        clock: IReactorTime,
        status: Status,
        own_status: Status,
        control: IControl,
        log: RecentLog,
        process: Process,
    ) -> None:
        super().__init__()
        views = [_View(clock, source, process) for source in (status, own_status)]
        log_events = LogEvents(clock, log)
        self._streams = (*(view.events for view in views), log_events)
        for name, (file, kind) in STATIC.items():
            self.putChild(name.encode(), _Static(file, kind))
        self.putChild(b"status", _ByCaller(*(view.status for view in views)))
        self.putChild(b"events", _ByCaller(*(view.events for view in views)))
        self.putChild(b"metrics", _ByCaller(*(view.metrics for view in views)))
        lines = LogLines(log)
        lines.putChild(b"events", log_events)
        self.putChild(b"logs", lines)
        self.putChild(b"unused", Copies(control))
        for name, deed in ACTIONS.items():
            self.putChild(name.encode(), Action(control, deed))

    def render_GET(self, request: Any) -> bytes:
        """Lead from ``/_rda`` to the page."""
        return bytes(Redirect(b"/_rda/").render(request))

    def getChild(self, path: bytes, request: IRequest) -> Resource:
        """Answer for any other path that there is nothing."""
        return Nothing()

    def close(self) -> None:
        """End what would go on for ever: rda is stopping."""
        for streams in self._streams:
            streams.close()


class _View:
    """What somebody may see, in its three forms."""

    def __init__(self, clock: IReactorTime, status: Status, process: Process) -> None:
        def document() -> dict[str, Any]:
            return status_document(status(), process, time.time())

        self.status = _Status(document)
        self.events = StatusEvents(clock, document)
        self.metrics = _Metrics(status)


class _ByCaller(OwnResource):
    """One resource for the user that rda runs as, another for guests."""

    def __init__(self, full: OwnResource, guests: OwnResource) -> None:
        super().__init__()
        self._full = full
        self._guests = guests

    def render(self, request: IRequest) -> Any:
        """Let the one answer that is for whoever asks."""
        return (self._guests if is_guest(request) else self._full).render(request)


class _Status(OwnResource):
    """``/_rda/status``: the whole status as JSON."""

    def __init__(self, document: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self._make = document

    def render_GET(self, request: IRequest) -> bytes:
        """Answer with the document that docs/status-schema.rst describes."""
        return self.document(request, self._make())


class _Metrics(OwnResource):
    """``/_rda/metrics``: the same numbers for Prometheus."""

    def __init__(self, status: Status) -> None:
        super().__init__()
        self._status = status
        self._metrics: Metrics | None = None

    def render_GET(self, request: Any) -> bytes:
        """Answer in the text format, or in OpenMetrics' when that is what is asked for."""
        if self._metrics is None:
            # Only where somebody collects them: the library takes a fifth of a second to import.
            from rda.pages.metrics import Metrics

            self._metrics = Metrics(self._status)
        text, kind = self._metrics.write(request.getHeader(b"accept") or b"")
        request.setHeader(b"content-type", kind)
        return text


class _Static(OwnResource):
    """A file of the status page, read when it is first asked for."""

    def __init__(self, file: str, kind: bytes) -> None:
        super().__init__()
        self._file = file
        self._kind = kind
        self._content: bytes | None = None

    def render_GET(self, request: IRequest) -> bytes:
        """Answer with the file."""
        if self._content is None:
            self._content = files("rda.pages").joinpath("static", self._file).read_bytes()
        request.setHeader(b"content-type", self._kind)
        request.setHeader(b"content-security-policy", CONTENT_SECURITY_POLICY)
        request.setHeader(b"x-frame-options", b"DENY")
        request.setHeader(b"referrer-policy", b"no-referrer")
        return self._content
