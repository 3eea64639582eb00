"""An in-memory Docker daemon: a real twisted.web site behind an endpoint that connects through iosim."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.test.iosim import FakeTransport, IOPump, connect
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

#: What answers one call: (status, JSON value).
Reply = tuple[int, Any]


class FakeDaemon(Resource):
    """Answers paths from a table; ``/events`` is a stream that the test feeds.

    :ivar answers: path -> (status, JSON value), or a callable of the request's arguments that gives one.
    :ivar seen: every (method, path, arguments) asked, in order.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Reply | Callable[[dict[bytes, list[bytes]]], Reply]] = {}
        self.seen: list[tuple[str, str, dict[bytes, list[bytes]]]] = []
        self.streams: list[Request] = []

    def render(self, request: Request) -> Any:
        path = request.path.decode()
        self.seen.append((request.method.decode(), path, request.args))
        if path == "/events":
            request.setResponseCode(200)
            request.write(b"")
            self.streams.append(request)
            return NOT_DONE_YET
        reply = self.answers.get(path, (404, {"message": f"no such thing: {path}"}))
        status, value = reply(request.args) if callable(reply) else reply
        request.setResponseCode(status)
        return value if isinstance(value, bytes) else json.dumps(value).encode()

    def event(self, document: dict[str, Any]) -> None:
        """Send one event on every open stream."""
        for stream in self.streams:
            stream.write(json.dumps(document).encode() + b"\n")

    def end_streams(self) -> None:
        """End the streams, as a daemon does that shuts down."""
        streams, self.streams = self.streams, []
        for stream in streams:
            stream.finish()


@implementer(IStreamClientEndpoint)
class MemoryEndpoint:
    """Connects to a server factory in memory; :meth:`pump` moves what has been written.

    :ivar refuse: set to make connections fail.
    """

    def __init__(self, server: Site) -> None:
        self._server = server
        self._pumps: list[IOPump] = []
        self.refuse: Exception | None = None
        self.connections = 0

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        if self.refuse is not None:
            return fail(self.refuse)
        client, server = factory.buildProtocol(None), self._server.buildProtocol(None)
        if client is None or server is None:
            return fail(ConnectError())
        self.connections += 1
        near, far = FakeTransport(client, isServer=False), FakeTransport(server, isServer=True)
        self._pumps.append(connect(server, far, client, near))
        return succeed(client)

    def pump(self) -> None:
        """Move bytes until nothing moves any more."""
        while sum(pump.pump() for pump in self._pumps):  # all of them, each time
            pass


def daemon() -> tuple[FakeDaemon, MemoryEndpoint]:
    """A daemon and the endpoint that leads to it."""
    fake = FakeDaemon()
    return fake, MemoryEndpoint(Site(fake))
