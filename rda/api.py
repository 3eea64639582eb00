"""rda's own calls of the remote daemon's API, with treq over the link.

Clients' calls never pass here: they are relayed (:mod:`rda.proxy`). These are the few that rda makes to learn the
truth: inspect, list, events. Source: https://docs.docker.com/reference/api/engine/.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from urllib.parse import quote

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.interfaces import IConsumer, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, PartialDownloadError, ResponseFailed
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from rda.errors import DaemonError, DaemonUnreachable, RdaError

if TYPE_CHECKING:
    from treq.client import HTTPClient

__all__ = ["DaemonAPI"]

#: A JSON object of the API.
_Object = dict[str, Any]

Result = TypeVar("Result")

#: Seconds until one of these calls is given up. They are small; a daemon that needs longer is in trouble.
TIMEOUT = 30.0

#: The largest answer read, bytes: a list of many thousand containers.
MAX_ANSWER = 64 * 1024 * 1024

#: The largest single event, bytes.
MAX_EVENT = 1024 * 1024

#: Connections kept for later calls.
KEPT_CONNECTIONS = 2


@implementer(IAgentEndpointFactory)
class _OneEndpoint:
    """Every URI of this client leads to the same place: the daemon's socket."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return self._endpoint


class DaemonAPI:
    """The calls that rda makes for itself.

    Every method fails with :class:`~rda.errors.DaemonError` when the daemon answers with an error status, with
    :class:`~rda.errors.DaemonUnreachable` when it does not answer properly or in :data:`TIMEOUT`, and with the link's
    own errors when there is no link.

    :param endpoint: leads to the daemon's API socket.
    """

    def __init__(self, reactor: IReactorTime, endpoint: IStreamClientEndpoint) -> None:
        self._reactor = reactor
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool.maxPersistentPerHost = KEPT_CONNECTIONS
        self._agent = Agent.usingEndpointFactory(reactor, _OneEndpoint(endpoint), self._pool)

    def _client(self) -> HTTPClient:
        """treq's client; imported with the first call, so that rda listens a tenth sooner."""
        from treq.client import HTTPClient

        return HTTPClient(self._agent)

    def close(self) -> Deferred[None]:
        """Close the connections kept for later calls."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    # -- containers, execs and images

    async def inspect_container(self, reference: str) -> _Object | None:
        """Return a container's description by any spelling of its id or name; None when there is none."""
        name = reference.removeprefix("/")  # as inspect shows it, and queries may have it
        return await self._find(f"/containers/{_segment(name)}/json")

    async def list_containers(self, labels: Sequence[str]) -> list[_Object]:
        """Return all containers, running or not, that carry every one of these labels (``name`` or ``name=value``)."""
        return await self._list_containers(label=list(labels))

    async def containers_with(self, volume: str) -> list[_Object]:
        """Return all containers, running or not, that have a volume mounted."""
        return await self._list_containers(volume=[volume])

    async def _list_containers(self, **filters: list[str]) -> list[_Object]:
        parameters = {"all": "1"}
        if filters:
            parameters["filters"] = json.dumps(filters)
        return cast("list[_Object]", await self._call("/containers/json", parameters))

    async def remove_container(self, container: str) -> None:
        """Remove a container that does not run; it is no error when it is gone already."""
        await self._call(f"/containers/{_segment(container)}", method="DELETE", fine=(204, 404))

    async def inspect_exec(self, reference: str) -> _Object | None:
        """Return the description of an exec instance; None when there is none."""
        return await self._find(f"/exec/{_segment(reference)}/json")

    async def inspect_image(self, reference: str) -> _Object | None:
        """Return an image's description; None when there is none."""
        return await self._find(f"/images/{_segment(reference)}/json")

    # -- volumes and networks

    async def inspect_volume(self, name: str) -> _Object | None:
        """Return a volume's description; None when there is none."""
        return await self._find(f"/volumes/{_segment(name)}")

    async def create_volume(self, document: Mapping[str, object]) -> _Object:
        """Make a volume, unless there is one of its name; return the description of what is there now.

        :param document: as the API's ``/volumes/create`` takes it.
        """
        created = await self._call("/volumes/create", method="POST", document=document, fine=(200, 201))
        return cast("_Object", created)

    async def mounted_paths(self) -> frozenset[str]:
        """Return the paths of the daemon's host that anything has mounted or may mount: all containers, all volumes."""
        containers = await self._list_containers()
        found = {str(mount.get("Source")) for container in containers for mount in container.get("Mounts") or ()}
        volumes = cast("_Object", await self._call("/volumes"))
        for volume in volumes.get("Volumes") or ():
            found.add(str((volume.get("Options") or {}).get("device")))
        return frozenset(path for path in found if path.startswith("/"))

    async def inspect_network(self, reference: str) -> _Object | None:
        """Return a network's description by any spelling of its id or name; None when there is none."""
        return await self._find(f"/networks/{_segment(reference)}")

    async def bridge_gateway(self) -> str:
        """Return the IPv4 address that the default bridge's gateway has on the remote host; "" when there is none."""
        network = await self._find("/networks/bridge")
        pools = ((network or {}).get("IPAM") or {}).get("Config") or []
        return next((str(one["Gateway"]) for one in pools if "." in str(one.get("Gateway") or "")), "")

    # -- the daemon

    async def info(self) -> _Object:
        """Return what the daemon tells of itself and its host."""
        return cast("_Object", await self._call("/info"))

    def follow_events(
        self, filters: Mapping[str, Sequence[str]], since: float | None, seen: Callable[[_Object], None]
    ) -> Deferred[None]:
        """Call ``seen`` with each event as it happens.

        :param filters: of the API's ``/events``: name -> values.
        :param since: the daemon's own clock, seconds since the epoch, to begin at; None means now.
        :returns: fires or fails when the stream ends, which it only does when the daemon or the link goes.
            Cancelling it ends the stream.
        """
        parameters = {"filters": json.dumps({key: list(values) for key, values in filters.items()})}
        if since is not None:
            parameters["since"] = f"{since:.9f}"
        return Deferred.fromCoroutine(self._follow(parameters, seen))

    async def _follow(self, parameters: Mapping[str, str], seen: Callable[[_Object], None]) -> None:
        response = await self._in_time(self._request("GET", "/events", parameters, None), "/events")
        if response.code != 200:
            raise await self._error(response)
        reader = _EventReader(seen)
        response.deliverBody(reader)
        await reader.ended

    # -- one call

    async def _find(self, path: str) -> _Object | None:
        """Make one GET; None when the daemon says that there is no such thing."""
        if any(segment in ("", ".", "..") for segment in path[1:].split("/")):
            return None  # nothing has such a name, and the path would be another one
        try:
            return cast("_Object", await self._call(path))
        except DaemonError as e:
            if e.status == 404:
                return None
            raise

    async def _call(
        self,
        path: str,
        parameters: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        document: Mapping[str, object] | None = None,
        fine: Collection[int] = (200,),
    ) -> object:
        """Make one call in :data:`TIMEOUT`; return the document that it is answered with, None for none.

        :param parameters: of the query.
        :param document: what is sent.
        :param fine: the statuses of answers that are no error.
        """
        exchange = self._exchange(method, path, parameters or {}, document, fine)
        return await self._in_time(exchange, path if method == "GET" else f"{method} {path}")

    def _in_time(self, work: Coroutine[Any, Any, Result], what: str) -> Deferred[Result]:
        return Deferred.fromCoroutine(work).addTimeout(TIMEOUT, self._reactor, onTimeoutCancel=_timed_out(what))

    async def _exchange(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str],
        document: Mapping[str, object] | None,
        fine: Collection[int],
    ) -> object:
        response = await self._request(method, path, parameters, document)
        if response.code not in fine:
            raise await self._error(response)
        body = await self._body(response)
        try:
            return json.loads(body) if body else None
        except ValueError:
            raise DaemonUnreachable(f"the Docker daemon answered {path} with something that is not JSON") from None

    async def _request(
        self, method: str, path: str, parameters: Mapping[str, str], document: Mapping[str, object] | None
    ) -> IResponse:
        try:
            # The host part is only for the Host header: the endpoint is fixed.
            body: _Object = {} if document is None else _json_body(document)
            url = f"http://docker{path}"
            call = self._client().request(method, url, params=dict(parameters), unbuffered=True, **body)
            return cast("IResponse", await call)
        except RdaError:
            raise
        except (ConnectionClosed, ConnectError, ResponseFailed) as e:
            raise DaemonUnreachable(f"the Docker daemon did not answer {path}: {_reason(e)}") from e

    async def _error(self, response: IResponse) -> DaemonError:
        body = await self._body(response)
        try:
            message = str(json.loads(body)["message"])
        except (ValueError, KeyError, TypeError):
            message = f"status {response.code}"
        return DaemonError(response.code, message)

    async def _body(self, response: IResponse) -> bytes:
        reader = _BodyReader()
        response.deliverBody(reader)
        try:
            return await reader.ended
        except (ConnectionClosed, ResponseFailed, PartialDownloadError) as e:
            raise DaemonUnreachable(f"the Docker daemon stopped in the middle of an answer: {_reason(e)}") from e


def _segment(reference: str) -> str:
    return quote(reference, safe=":@/", errors="surrogateescape")


def _reason(error: Exception) -> str:
    """The innermost words of an error that Twisted wraps in lists of failures."""
    reasons = getattr(error, "reasons", None)
    if reasons:
        return _reason(reasons[-1].value)
    return str(error)


def _timed_out(what: str) -> Callable[[Result | Failure, float], Result | Failure]:
    def on_cancel(result: Result | Failure, timeout: float) -> Result | Failure:
        # Called only when the time is up; what failed is whatever the cancellation hit.
        if isinstance(result, Failure):
            raise DaemonUnreachable(f"the Docker daemon did not answer {what} within {timeout:.0f} s")
        return result

    return on_cancel


def _json_body(document: Mapping[str, object]) -> _Object:
    """What treq is told of a request's body."""
    return {"data": _WholeBody(json.dumps(document).encode()), "headers": {"Content-Type": "application/json"}}


@implementer(IBodyProducer)
class _WholeBody:
    """A small body, written at once. treq's own producer would go to the global reactor for its turns."""

    def __init__(self, data: bytes) -> None:
        self.length = len(data)
        self._data = data

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It is written already."""

    def resumeProducing(self) -> None:
        """See above."""

    def stopProducing(self) -> None:
        """See above."""


class _Reader(Protocol, Generic[Result]):
    """Takes one answer's body.

    :ivar ended: fires or fails when there is no more to take.
    """

    def __init__(self) -> None:
        self.ended: Deferred[Result] = Deferred(self._cancelled)

    def _cancelled(self, _: object) -> None:
        self._leave()

    def _leave(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def _refuse(self, what: str) -> None:
        """Take no more: this is not an answer."""
        if not self.ended.called:
            self.ended.errback(DaemonUnreachable(what))
        self._leave()


class _BodyReader(_Reader[bytes]):
    """Collects one answer, up to :data:`MAX_ANSWER`."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_ANSWER:
            self._refuse(f"the Docker daemon's answer is over {MAX_ANSWER} bytes")
        else:
            self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.ended.called:
            return
        if reason.check(PartialDownloadError, ResponseFailed):
            self.ended.errback(reason)
        else:
            self.ended.callback(b"".join(self._parts))


class _EventReader(_Reader[None]):
    """Splits the stream of events: the daemon ends each JSON document with a newline."""

    def __init__(self, seen: Callable[[_Object], None]) -> None:
        super().__init__()
        self._seen = seen
        self._rest = b""

    def dataReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_EVENT:
            self._refuse(f"an event of the Docker daemon is over {MAX_EVENT} bytes")
            return
        for line in lines:
            try:
                event = json.loads(line) if line.strip() else None
            except ValueError:
                self._refuse("the Docker daemon's stream of events holds something that is not JSON")
                return
            if event is not None:
                self._seen(event)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.ended.called:
            self.ended.callback(None)
