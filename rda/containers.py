"""What the clients' calls about containers mean for ports and mounts: asked by the proxy, call by call.

``create`` is rewritten so that the daemon mounts mirrored directories and publishes on ports of its own; ``start``
waits until the mounts are complete and the local ports are open; answers show what the user asked for. What the
daemon does by itself between calls is :mod:`rda.reconciler`'s.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.logger import Logger
from zope.interface import implementer

from rda.api import DaemonAPI
from rda.docker import binds, rewrite
from rda.docker.binds import BindSource, Rules, Where
from rda.docker.routes import Call, Outgoing
from rda.errors import BadRequest
from rda.forwards import Forwards
from rda.interfaces import ICallRewriter
from rda.reconciler import Owned, Reconciler
from rda.sync.mirrors import Mirrors

__all__ = ["Containers"]

#: A body that has to be an object, as the proxy hands it over.
_Document = dict[str, object]


@dataclass(frozen=True)
class _Creating:
    """What a create has reserved, until the daemon answers it."""

    sources: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Starting:
    """A start or restart that is under way."""

    container: Owned


@dataclass(frozen=True)
class _Touching:
    """A call that changes a container of ours, which is looked at again before the client sees the answer."""

    container: str


@implementer(ICallRewriter)
class Containers:
    """Rewrites the calls of one context.

    :param owner: the identity that this context writes into the labels of its containers.
    :param rules: whose path a bind mount's source is.
    """

    _log = Logger()

    def __init__(
        self,
        api: DaemonAPI,
        forwards: Forwards,
        mirrors: Mirrors,
        reconciler: Reconciler,
        owner: str,
        rules: Rules,
    ) -> None:
        self._api = api
        self._forwards = forwards
        self._mirrors = mirrors
        self._reconciler = reconciler
        self._owner = owner
        self._rules = rules
        self._outgoing: dict[str, Callable[[Call, _Document], Awaitable[Outgoing]]] = {
            "container create": self._create,
            "container start": self._start,
            "container restart": self._start,
            "container remove": self._resolve_first,
            "container list": self._list,
            "container archive": self._flush_first,
            "container commit": self._flush_commit,
            "exec create": self._flush_first,
            "exec start": self._flush_exec,
            "events": self._events,
            "volume create": self._create_volume,
            "service create": self._check_service,
            "service update": self._check_service,
        }
        self._answered: dict[str, Callable[[Call, Outgoing, int, Any], Awaitable[Any]]] = {
            "container create": self._created,
            "container start": self._started,
            "container restart": self._started,
            "container remove": self._removed,
            "container stop": self._touched,
            "container kill": self._touched,
            "container rename": self._touched,
            "container prune": self._all_touched,
            "network connect": self._all_touched,
            "network disconnect": self._all_touched,
            "container list": self._listed,
            "container inspect": self._inspected,
            "system df": self._disk_usage,
            "volume create": self._volume_created,
            "volume list": self._volumes,
            "volume inspect": self._volume,
        }

    # ICallRewriter

    def outgoing(self, call: Call, body: _Document | None) -> Deferred[Outgoing]:
        """Decide what is sent, by the route's name; what has no entry is sent as it came."""
        decide = self._outgoing.get(call.route.name)
        if decide is None:
            return succeed(Outgoing(body=body))
        return Deferred.fromCoroutine(cast("Any", decide(call, body or {})))

    def answered(self, call: Call, sent: Outgoing, status: int, body: object | None) -> Deferred[object | None]:
        """See an answer, by the route's name. Error answers only undo what was reserved."""
        see = self._answered.get(call.route.name)
        if see is None:
            return succeed(body)
        return Deferred.fromCoroutine(cast("Any", see(call, sent, status, body)))

    def streamed(self, call: Call, sent: Outgoing, document: object) -> object | None:
        """Hide rda's labels from events."""
        return rewrite.inward_event(document) if isinstance(document, dict) else document

    def aborted(self, call: Call, sent: Outgoing) -> None:
        """The answer never came: what the daemon made of the call is found out by looking."""
        memo = sent.memo
        if isinstance(memo, _Creating):
            self._mirrors.unplace(memo.sources)
        elif isinstance(memo, _Starting):
            self._in_background(self._reconciler.start_ends(memo.container.id))

    def _in_background(self, work: Deferred[Any]) -> None:
        work.addErrback(lambda f: self._log.info("After a call broke off: {reason}", reason=f.getErrorMessage()))

    # create

    async def _create(self, call: Call, body: _Document) -> Outgoing:
        document = rewrite.canonical_create(body)
        wanted = rewrite.wanted(document)
        local, warnings = self._sort(wanted.binds)
        places = await self._place(local)
        document, more = rewrite.outward(document, places, self._owner, secrets.token_hex(8))
        memo = _Creating(tuple(source.path for source in local), (*warnings, *more))
        return Outgoing(body=document, memo=memo)

    def _sort(self, sources: Sequence[BindSource]) -> tuple[list[BindSource], list[str]]:
        """Decide whose path each bind source is; returns those that are mirrored, and warnings."""
        local, warnings = [], []
        for source in sources:
            where = self._rules.decide(source)
            if where is Where.REFUSE:
                raise BadRequest(f"rda does not mount {source.path}: a rule in its configuration refuses it")
            if where is Where.LOCAL:
                local.append(source)
            else:
                warnings.append(f"rda: {source.path} is the remote host's own, not this machine's")
        return local, warnings

    async def _place(self, sources: Sequence[BindSource]) -> dict[str, str]:
        """Give every local source its remote path, all at once; returns source -> remote path."""
        for source in sources:
            self._check_source(source)
        placing = [self._mirrors.place(source.path, create_missing=source.may_create) for source in sources]
        places = await gatherResults(placing, consumeErrors=True)
        return {source.path: place.remote for source, place in zip(sources, places, strict=True)}

    @staticmethod
    def _check_source(source: BindSource) -> None:
        """Refuse, in the daemon's words, what the daemon would refuse if it were local."""
        if not source.may_create and not os.path.lexists(source.path):
            raise BadRequest(f'invalid mount config for type "bind": bind source path does not exist: {source.path}')

    async def _created(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        memo = cast("_Creating", sent.memo)
        if status != 201 or not isinstance(body, dict):
            self._mirrors.unplace(memo.sources)
            return rewrite.inward_error(body, self._mirrors.sources())
        await self._mirrors.hold(str(body["Id"]), memo.sources)
        if memo.warnings:
            body = {**body, "Warnings": [*(body.get("Warnings") or []), *memo.warnings]}
        return body

    # start

    async def _start(self, call: Call, body: _Document) -> Outgoing:
        """Hold the start until the mounts are complete and the local ports are open."""
        owned, _ = await self._resolve(call)
        if owned is None:
            return Outgoing()
        self._reconciler.start_begins(owned.id)
        try:
            await self._mirrors.flush(owned.request.sources)
            await self._forwards.reserve(owned.id, owned.name, owned.request.ports)
        except BaseException:
            self._in_background(self._reconciler.start_ends(owned.id))
            raise
        return Outgoing(memo=_Starting(owned))

    async def _started(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        if isinstance(sent.memo, _Starting):
            await self._reconciler.start_ends(sent.memo.container.id)
        return body

    async def _resolve(self, call: Call) -> tuple[Owned | None, dict[str, Any] | None]:
        """Find the container that a call names, by whichever spelling; None when it is not ours."""
        description = await self._api.inspect_container(call.ref or "")
        return (await self._reconciler.owned(description) if description is not None else None), description

    # calls after which the container is different

    async def _resolve_first(self, call: Call, body: _Document) -> Outgoing:
        owned, _ = await self._resolve(call)
        return Outgoing(memo=_Touching(owned.id) if owned is not None else None)

    async def _removed(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        if isinstance(sent.memo, _Touching):
            await self._reconciler.look(sent.memo.container)
        return body

    async def _touched(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        if status < 400:
            description = await self._api.inspect_container(call.ref or "")
            if description is not None and self._reconciler.known(str(description["Id"])) is not None:
                await self._reconciler.look(str(description["Id"]))
        return body

    async def _all_touched(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        if status < 400:
            await self._reconciler.look_at_all()
        return body

    # calls that look into a mount

    async def _flush_first(self, call: Call, body: _Document) -> Outgoing:
        owned, _ = await self._resolve(call)
        await self._flush(owned)
        return Outgoing()

    async def _flush_commit(self, call: Call, body: _Document) -> Outgoing:
        reference = dict(call.query).get("container", "")
        return await self._flush_first(replace(call, ref=reference), body)

    async def _flush_exec(self, call: Call, body: _Document) -> Outgoing:
        description = await self._api.inspect_exec(call.ref or "")
        if description is not None:
            await self._flush(self._reconciler.known(str(description.get("ContainerID", ""))))
        return Outgoing()

    async def _flush(self, owned: Owned | None) -> None:
        if owned is not None and owned.request.sources:
            await self._mirrors.flush(owned.request.sources)

    # lists and descriptions

    async def _list(self, call: Call, body: _Document) -> Outgoing:
        query, memo = rewrite.outward_filters(call.query)
        return Outgoing(query=query, memo=memo)

    async def _listed(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        if status != 200 or not isinstance(body, list):
            return body
        return rewrite.inward_list(body, self._owner, self._forwards.local, sent.memo)

    async def _inspected(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        if status != 200 or not isinstance(body, dict):
            return body
        return rewrite.inward_inspect(body, self._owner, self._forwards.local(str(body.get("Id", ""))))

    async def _disk_usage(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        if status != 200 or not isinstance(body, dict):
            return body
        return rewrite.inward_disk_usage(body, self._owner, self._forwards.local)

    async def _events(self, call: Call, body: _Document) -> Outgoing:
        return Outgoing()

    # volumes and services

    async def _create_volume(self, call: Call, body: _Document) -> Outgoing:
        document = rewrite.canonical_volume(body)
        source = binds.volume_source(document)
        if source is None:
            return Outgoing(body=document)
        local, _ = self._sort([source])
        places = await self._place(local)
        return Outgoing(body=rewrite.outward_volume(document, places))

    async def _volume_created(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        return rewrite.inward_volume(body, self._mirrors.sources()) if status == 201 else body

    async def _volume(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        return rewrite.inward_volume(body, self._mirrors.sources()) if status == 200 else body

    async def _volumes(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        return rewrite.inward_volumes(body, self._mirrors.sources()) if status == 200 else body

    async def _check_service(self, call: Call, body: _Document) -> Outgoing:
        rewrite.check_service(body)
        return Outgoing(body=body)
