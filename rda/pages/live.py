"""Server-sent events: the status whenever it changes, and the log's lines as they come.

Source: the HTML standard, https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.web import server
from twisted.web.iweb import IRequest
from zope.interface import implementer

from rda.errors import RdaError
from rda.pages.document import serialise
from rda.pages.resource import OwnResource

__all__ = ["Busy", "StatusEvents", "Stream", "Streams"]

#: Streams of one listener at a time: a few people's pages and terminals.
MAX_STREAMS = 32

#: Seconds between two looks at the status, while somebody watches; nobody looks otherwise.
LOOK_SECONDS = 1.0

#: Seconds between two comments on a stream: whoever has gone is noticed, proxies do not close it.
HEARTBEAT_SECONDS = 15.0

#: Milliseconds that a browser waits before it connects again.
RETRY_MS = 2000


class Busy(RdaError):
    """There are too many streams already."""

    status = 503
    retry_after = 10


@implementer(IPushProducer)
class Stream:
    """One client's stream of events. What it cannot take at the moment it does not get: a later event says it all.

    :param ended: called once, when the client has gone.
    :param caught_up: called when a client that missed something takes events again.
    :ivar position: for the owner's use: how far this client is.
    """

    def __init__(self, request: Any, ended: Callable[[Stream], None], caught_up: Callable[[Stream], None]) -> None:
        self._request = request
        self._paused = False
        self._missed = False
        self.open = True
        self.position = 0
        self._ended = ended
        self._caught_up = caught_up
        request.setHeader(b"content-type", b"text/event-stream; charset=utf-8")
        request.registerProducer(self, True)
        request.notifyFinish().addBoth(self._finished)
        request.write(b"retry: %d\n\n" % RETRY_MS)

    def send(self, event: bytes, data: bytes) -> bool:
        """Send an event, unless the client is behind; return whether it was sent.

        :param data: without line breaks.
        """
        if self._paused or not self.open:
            self._missed = True
            return False
        self._request.write(b"event: %b\ndata: %b\n\n" % (event, data))
        return True

    def beat(self) -> None:
        """Send something that means nothing."""
        if self.open and not self._paused:
            self._request.write(b":\n\n")

    def close(self) -> None:
        """End the stream."""
        if self.open:
            self._request.unregisterProducer()
            self._request.finish()

    def _finished(self, _: object) -> None:
        self.open = False
        self._ended(self)

    def pauseProducing(self) -> None:
        """The client is behind."""
        self._paused = True

    def resumeProducing(self) -> None:
        """It has caught up."""
        self._paused = False
        missed, self._missed = self._missed, False
        if missed and self.open:
            self._caught_up(self)

    def stopProducing(self) -> None:
        """It has gone; :meth:`_finished` is told as well."""
        self.open = False


class Streams(OwnResource):
    """A resource whose GETs become streams. Timers run only while somebody watches."""

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__()
        self._clock = clock
        self._heartbeat: IDelayedCall | None = None
        self.streams: list[Stream] = []
        self.closed = False

    def render_GET(self, request: IRequest) -> Any:
        """Begin a stream."""
        if len(self.streams) >= MAX_STREAMS or self.closed:
            raise Busy(f"{MAX_STREAMS} clients watch already; close one" if not self.closed else "rda is stopping")
        stream = Stream(request, self._left, self.send_missed)
        self.streams.append(stream)
        if self._heartbeat is None:
            self._heartbeat = self._clock.callLater(HEARTBEAT_SECONDS, self._beat)
        self.joined(stream)
        return server.NOT_DONE_YET

    def _beat(self) -> None:
        self._heartbeat = self._clock.callLater(HEARTBEAT_SECONDS, self._beat)
        for stream in list(self.streams):
            stream.beat()

    def joined(self, stream: Stream) -> None:
        """Send what a new client has to know."""

    def send_missed(self, stream: Stream) -> None:
        """Send what a client missed while it was behind."""

    def _left(self, stream: Stream) -> None:
        self.streams.remove(stream)
        if not self.streams and self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None

    def close(self) -> None:
        """End all streams, and take no more: rda is stopping."""
        self.closed = True
        for stream in list(self.streams):
            stream.close()


class StatusEvents(Streams):
    """``/_rda/events``: the status document, at once and then whenever it has changed.

    :param document: makes it.
    """

    def __init__(self, clock: IReactorTime, document: Callable[[], dict[str, Any]]) -> None:
        super().__init__(clock)
        self._document = document
        self._timer: IDelayedCall | None = None
        self._last: dict[str, Any] = {}

    def joined(self, stream: Stream) -> None:
        """Send the status, and look again from time to time."""
        self._last = self._document()
        stream.send(b"status", serialise(self._last))
        if self._timer is None:
            self._timer = self._clock.callLater(LOOK_SECONDS, self._look)

    def send_missed(self, stream: Stream) -> None:
        """Send the latest status."""
        stream.send(b"status", serialise(self._last))

    def _look(self) -> None:
        self._timer = self._clock.callLater(LOOK_SECONDS, self._look)
        found = self._document()
        if found | {"now": 0} != self._last | {"now": 0}:
            self._last = found
            data = serialise(found)
            for stream in list(self.streams):
                stream.send(b"status", data)

    def _left(self, stream: Stream) -> None:
        super()._left(stream)
        if not self.streams and self._timer is not None:
            self._timer.cancel()
            self._timer = None
