"""What Docker clients connect to: the site, its door, and the proxy resource behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.web import server
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource

from rda.access.caller import Caller
from rda.deferreds import Waiters
from rda.docker import routes
from rda.errors import Moved, RdaError
from rda.interfaces import ICallRewriter, IGate
from rda.limits import Limits, raised_by
from rda.proxy.authentication import Visitor, anybody
from rda.proxy.calls import Calls
from rda.proxy.channel import DockerChannel
from rda.proxy.counters import Counters
from rda.proxy.guard import check_framing, check_origin
from rda.proxy.pool import DaemonPool
from rda.proxy.relay import Exchange
from rda.proxy.request import DockerRequest
from rda.proxy.wire import RequestHead
from rda.status import RelayStatus

__all__ = ["OWN_PREFIX", "Busy", "DockerSite", "ProxyResource"]

#: Where rda's own resources are; the Engine API has nothing there.
OWN_PREFIX = "/_rda"


class Busy(RdaError):
    """rda takes no more work at the moment: it is stopping, or has too many connections."""

    status = 503
    retry_after = 2


class ProxyResource(Resource):
    """The Docker Engine API: every request becomes an :class:`~rda.proxy.relay.Exchange` at the end of its head.

    Requests under :data:`OWN_PREFIX` are rda's own and are rendered by the child of that name in twisted.web's way.

    :param pool: connections to the daemon.
    :param rewriter: who knows what the calls mean.
    """

    def __init__(self, pool: DaemonPool, rewriter: ICallRewriter, clock: IReactorTime) -> None:
        super().__init__()
        self.pool = pool
        self._rewriter = rewriter
        self._clock = clock

    def exchange(
        self,
        request: DockerRequest,
        head: RequestHead,
        call: routes.Call,
        counters: Counters,
        ended: Callable[[Exchange], None],
    ) -> Exchange:
        """Begin to relay a request.

        :param ended: called when the exchange is over.
        """
        return Exchange(request, head, call, self.pool, self._rewriter, self._clock, counters, ended)

    def render(self, request: IRequest) -> bytes:
        """Answer what is under :data:`OWN_PREFIX` when nothing is served there."""
        request.setResponseCode(404)
        request.setHeader(b"content-type", b"application/json")
        return b'{"message": "rda: there is no such page"}\n'

    def getChild(self, path: bytes, request: IRequest) -> Resource:
        """Answer so for any path."""
        return self


def _admitted(gate: IGate, call: routes.Call, head: RequestHead, own: bool) -> tuple[routes.Call, RequestHead]:
    """Show a request to the gate; return it as it may go on.

    :raises RdaError: it may not.
    """
    if own:
        gate.admit_own(call)
        return call, head
    call, fields = gate.admit(call, head.fields)
    return call, head if fields is head.fields else replace(head, fields=tuple(fields))


class DockerSite(server.Site):
    """A factory for listeners (TCP, TLS, UNIX) that serve one remote Docker daemon.

    :param upstream: the daemon's socket.
    :param rewriter: who knows what the calls mean.
    :param clock: for timeouts.
    :param hosts: names in lower case (addresses as in URLs) that clients may use for a TCP listener, besides
        ``localhost``, 127.0.0.1, ::1 and the address they connected to.
    :param identify: given a new connection's transport, says who that is; every call then carries its caller.
    :param own: what is served under ``/_rda/``.
    :param gate: who looks at every call; None: nobody.
    :ivar counters: what has been done so far; ``calls``: the latest of it.
    :ivar draining: no new requests are taken.
    :ivar hosts: as given, and replaceable.
    """

    protocol = DockerChannel  # type: ignore[assignment]  # bare: the wrapper of twisted.web hides half-closing
    noisy = False
    _log = Logger()

    def __init__(
        self,
        upstream: IStreamClientEndpoint,
        rewriter: ICallRewriter,
        clock: Any,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        hosts: Collection[str] = (),
        identify: Callable[[Any], Visitor] = anybody,
        own: IResource | None = None,
        gate: IGate | None = None,
    ) -> None:
        self.counters = Counters()
        self._gate = gate
        self._table = routes.TABLE if gate is None else gate.table
        self.calls = Calls(clock, time.time, self.counters)
        self.limits = limits
        self.clock: IReactorTime = clock
        self.draining = False
        self.hosts = frozenset(name.lower() for name in hosts)
        self._identify = identify
        self._channels: set[DockerChannel] = set()
        self._unproved: set[DockerChannel] = set()  # of these
        self._refused: set[DockerChannel] = set()
        self._drained: Waiters[None] = Waiters()
        self._reaper: IDelayedCall | None = None
        self.proxy = ProxyResource(DaemonPool(upstream, clock, limits), rewriter, clock)
        if own is not None:
            self.proxy.putChild(OWN_PREFIX[1:].encode(), own)
        super().__init__(self.proxy, DockerRequest, timeout=None, reactor=clock)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._channels)

    # ------------------------------------------------------------------------------------------------ IProtocolFactory

    def startFactory(self) -> None:
        """Start no access log: request heads hold registry credentials."""

    def stopFactory(self) -> None:
        """See :meth:`startFactory`. Runs when the last listener is closed; connections may go on."""

    def log(self, request: object) -> None:
        """Log no requests."""

    def acceptableProtocols(self) -> list[bytes]:
        """Speak HTTP/1.1 only; the daemon's API has no other."""
        return [b"http/1.1"]

    # ---------------------------------------------------------------------------------------------- called by channels

    def opened(self, channel: DockerChannel) -> RdaError | None:
        """Count a new connection and ask who it is; return why it cannot stay.

        One that nobody may use stays for one request, so that the refusal is the answer to something. Of those that are
        refused only some are told so: none of them takes the place of one that is not.
        """
        channel.visitor = visitor = self._identify(channel.transport)
        full = self._full(visitor)
        if full or visitor.hopeless:
            if len(self._refused) >= self.limits.refusals:
                channel.transport.abortConnection()
            self._refused.add(channel)
            if not full:
                return None
            self.counters.refused += 1
            return Busy(f"there are {self.limits.connections} connections already{raised_by('connections')}")
        self._channels.add(channel)
        if not visitor.known:
            self._unproved.add(channel)
        if self._reaper is None:
            self._reaper = self.clock.callLater(self.limits.reap_seconds, self._reap)
        return None

    def _full(self, visitor: Visitor) -> bool:
        """Whether there is no room; half of it is kept from those who have not proved yet who they are."""
        room = self.limits.connections
        return len(self._channels) >= room or (not visitor.known and len(self._unproved) * 2 >= room)

    def closed(self, channel: DockerChannel) -> None:
        """Count a connection that is gone."""
        for channels in (self._channels, self._unproved, self._refused):
            channels.discard(channel)
        if not self._channels and self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        if self.draining and not self._channels:
            self._now_drained()

    def dispatch(self, request: DockerRequest, head: RequestHead) -> Exchange | None:
        """Decide what happens to a request, at the end of its head; None when it is for rda itself.

        :raises RdaError: it is refused.
        """
        self.counters.requests += 1
        try:
            caller, head = self._identified(request, head)
            self._check_framing(request, head)
            call = routes.match(head.method, head.target, caller, self._table)
            own = call.path == OWN_PREFIX or call.path.startswith(OWN_PREFIX + "/")
            self._check_origin(request.channel.getHost(), head, own)
            if self.draining:
                raise Busy("rda is stopping; try again when it is back")
            moved = routes.moved_to(head.target)
            if moved is not None:
                raise Moved(moved)
            if self._gate is not None:
                call, head = _admitted(self._gate, call, head, own)
        except RdaError:
            self.counters.refused += 1
            raise
        if own:
            request.caller = caller
            return None
        exchange = self.proxy.exchange(request, head, call, self.counters, self._ended)
        self.calls.began(exchange)
        return exchange

    def _ended(self, exchange: Exchange) -> None:
        """Note a call that is over, and have the gate note it."""
        self.calls.ended(exchange)
        if self._gate is not None:
            seconds = self.clock.seconds() - exchange.began
            self._gate.over(exchange.call, exchange.code, seconds, exchange.to_daemon, exchange.to_client)

    def _identified(self, request: DockerRequest, head: RequestHead) -> tuple[Caller, RequestHead]:
        """Say who makes a request, and take out of its head what only proves that."""
        try:
            caller, fields = request.channel.visitor.identify(head.fields)
        except RdaError:
            request.will_close()
            raise
        self._unproved.discard(request.channel)
        return caller, head if fields is head.fields else replace(head, fields=tuple(fields))

    @staticmethod
    def _check_framing(request: DockerRequest, head: RequestHead) -> None:
        try:
            check_framing(head.method, head.target, head.minor, head.fields)
        except RdaError:
            request.will_close()
            raise

    def _check_origin(self, address: IAddress, head: RequestHead, own: bool) -> None:
        check_origin(
            head.minor,
            head.fields,
            self.hosts,
            getattr(address, "host", None),
            names_matter=not isinstance(address, UNIXAddress),
            own_page=own and head.method in (b"GET", b"HEAD"),
        )

    def status(self) -> RelayStatus:
        """What has been relayed so far."""
        counters = self.counters
        return RelayStatus(
            connections=self.connections,
            requests=counters.requests,
            refused=counters.refused,
            active=counters.active,
            hijacks=counters.hijacks,
            retries=counters.retries,
            to_daemon=counters.to_daemon,
            to_client=counters.to_client,
            routes=counters.route_status(),
        )

    # -------------------------------------------------------------------------------------------------- stop and clean

    def drain(self, seconds: float) -> Deferred[None]:
        """Stop gracefully; the listeners should be closed first.

        New requests are answered 503 and idle connections closed at once; running exchanges may finish. The Deferred
        fires when no connection is left; after ``seconds``, those that are left are cut.
        """
        self.draining = True
        self.proxy.pool.close()
        for channel in [*self._channels, *self._refused]:
            channel.reap()
            channel.close_if_idle()
        if not self._channels:
            return succeed(None)
        timeout = self.clock.callLater(seconds, self._cut)

        def finished(result: None) -> None:
            if timeout.active():
                timeout.cancel()

        return self._drained.wait().addCallback(finished)

    def _cut(self) -> None:
        """Cut what is still running."""
        self._log.info("cutting {count} connections that did not end in time", count=len(self._channels))
        for channel in list(self._channels):
            channel.transport.abortConnection()

    def _now_drained(self) -> None:
        self.proxy.pool.close()
        self._drained.fire(None)

    def _reap(self) -> None:
        """Look for clients that are gone without having been noticed."""
        self._reaper = self.clock.callLater(self.limits.reap_seconds, self._reap)
        for channel in list(self._channels):
            channel.reap()
