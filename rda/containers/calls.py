"""What the clients' calls about containers mean for ports and mounts: asked by the proxy, call by call.

``create`` is rewritten so that the daemon mounts mirrored directories and publishes on ports of its own; ``start``
waits until the mounts are complete and the local ports are open; answers show what the user asked for. What the
daemon does by itself between calls is :mod:`rda.containers.reconciler`'s.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from twisted.internet.defer import Deferred, DeferredList, DeferredLock, succeed
from twisted.logger import Logger
from zope.interface import implementer

from rda.access.caller import Caller
from rda.api import DaemonAPI
from rda.containers.made_here import volume_id
from rda.containers.reconciler import Owned, Reconciler
from rda.containers.waiting import Waiting
from rda.deferreds import gather
from rda.docker import labels, rewrite
from rda.docker.binds import Form, volume_source
from rda.docker.host_network import HostForwards
from rda.docker.listing import ListFilter, outward_filters
from rda.docker.owned import named_volumes
from rda.docker.ports import Published
from rda.docker.request import REQUEST_LABEL, USER_LABEL, Request, find_request, labels_of
from rda.docker.routes import Call, Outgoing
from rda.docker.sources import Sorted, Sources
from rda.errors import BadDocument, PortUnavailable, RdaError, Refused
from rda.interfaces import ICallRewriter
from rda.ports.exposed import Exposed
from rda.ports.forwards import Forwards
from rda.sync.mirrors import Mirrors
from rda.sync.placing import Place
from rda.words import size

__all__ = ["Containers"]

#: From so much on that is still to be transferred, the answer to a create says so: seconds on most ways.
MANY_FILES = 5000
MANY_BYTES = 50_000_000

#: A body that has to be an object, as the proxy hands it over.
_Document = dict[str, object]


@dataclass(frozen=True)
class _Creating:
    """What a create decided, until the daemon answers it.

    :ivar nonce: of its request.
    :ivar sources: the paths of this machine that are mirrored for it.
    :ivar shown: remote path -> local path, to name the local one in errors.
    """

    nonce: str
    sources: tuple[str, ...]
    shown: dict[str, str]
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
    :param sources: decides whose path a bind mount's source is.
    :param host_forwards: what is forwarded of containers on the host's network without their asking.
    :param exposed: the ports of this machine that containers reach.
    :param waiting: is told which calls wait for bind mounts.
    :param lend_files: let callers who are not the user that rda runs as mount directories of this machine.
    """

    _log = Logger()

    def __init__(
        self,
        api: DaemonAPI,
        forwards: Forwards,
        mirrors: Mirrors,
        reconciler: Reconciler,
        owner: str,
        sources: Sources,
        host_forwards: HostForwards | None = None,
        exposed: Exposed | None = None,
        *,
        lend_files: bool = False,
        waiting: Waiting | None = None,
    ) -> None:
        self._api = api
        self._forwards = forwards
        self._mirrors = mirrors
        self._reconciler = reconciler
        self._owner = owner
        self._sources = sources
        self._host_forwards = host_forwards or HostForwards()
        self._this_machine = exposed
        self._lend_files = lend_files
        self._waiting = waiting
        self._starting = DeferredLock()
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
            "volume create": self._create_volume,
            "build": self._check_image_labels,
            "image create": self._check_image_labels,
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
            "image inspect": self._image_shown,
            "image list": self._images_shown,
            "volume create": self._volume_created,
            "volume list": self._volumes_shown,
            "volume inspect": self._volume_shown,
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
        return rewrite.inward_event(document)

    def aborted(self, call: Call, sent: Outgoing) -> None:
        """The answer never came: what the daemon made of the call is found out by looking."""
        memo = sent.memo
        if isinstance(memo, _Starting):
            self._in_background(self._reconciler.start_ends(memo.container.id))

    def _in_background(self, work: Deferred[Any]) -> None:
        work.addErrback(lambda f: self._log.info("After a call broke off: {reason}", reason=f.getErrorMessage()))

    # create

    async def _create(self, call: Call, body: _Document) -> Outgoing:
        asked = rewrite.canonical_create(body)
        if not asked.keys() - {"HostConfig", "NetworkingConfig"}:  # with rda's labels it would not be empty
            raise BadDocument("config cannot be empty in order to create a container")
        wanted = rewrite.wanted(asked)
        found = self._sources.sort(wanted.binds)
        exposed = await self._exposed(wanted.image) if wanted.publish_all else ()
        self._check_lending(call.caller, [path for _, path in found.local])
        places, apart = await self._place(found)
        apart |= await self._join([path for _, path in found.local])
        inherited = await self._inherited(wanted.volumes_from)
        self._check_lending(call.caller, [path for one in inherited for path in one.sources])
        volumes = await self._volume_requests(named_volumes(asked))
        self._check_lending(call.caller, [path for one in volumes for path in one.sources])
        requests = [*(one.request for one in inherited), *volumes]
        configured = self._host_forwards.of(_asked_name(call)) if wanted.network_mode == "host" else ()
        host_address, host_warnings = await self._host_seen(wanted.network_mode)
        nonce = secrets.token_hex(8)
        changed, warnings = rewrite.outward(
            asked,
            places,
            self._owner,
            nonce,
            exposed,
            found.remote,
            requests,
            configured,
            host_address,
        )
        ports = (*rewrite.wanted(asked, exposed).ports, *configured)
        copies = [_two_copies(source, why) for source, why in apart.items() if why]
        memo = _Creating(
            nonce=nonce,
            sources=(
                *(path for _, path in found.local),
                *(path for one in inherited for path in one.sources),
                *(path for one in volumes for path in one.sources),
            ),
            shown={path: source for one in requests for path, source in one.shown.items()}
            | {places[bind.path]: bind.path for bind, _ in found.local},
            warnings=(
                *found.warnings,
                *copies,
                *warnings,
                *await self._udp_warnings(ports),
                *host_warnings,
            ),
        )
        changed["Labels"] = {**labels_of(changed), USER_LABEL: call.caller.user}
        self._reconciler.made_here.intend(nonce)
        return Outgoing(body=changed, memo=memo)

    async def _host_seen(self, network_mode: str) -> tuple[str, tuple[str, ...]]:
        """Return the address at which a new container finds this machine, "" for none, and what to warn of."""
        if not self._this_machine or not rewrite.can_reach_host(network_mode):
            return "", ()
        await self._this_machine.settled()
        return self._this_machine.address, self._this_machine.warnings()

    async def _udp_warnings(self, ports: Sequence[Published]) -> tuple[str, ...]:
        """Say at once when the remote host cannot relay the datagrams that a container publishes a port for."""
        keys = dict.fromkeys(port.key for port in ports if port.protocol == "udp")
        problem = await self._forwards.udp_problem() if keys else ""
        return (f"rda: {', '.join(keys)} is not forwarded: {problem}",) if problem else ()

    async def _inherited(self, volumes_from: Sequence[str]) -> list[Owned]:
        """The containers of ours whose mounts a new one gets too; the daemon complains about those that are not there.

        :param volumes_from: names or ids, each perhaps followed by ``:ro`` or ``:rw``.
        """
        found = []
        for entry in volumes_from:
            description = await self._api.inspect_container(entry.partition(":")[0])
            owned = self._reconciler.owned(description) if description is not None else None
            if owned is not None:
                found.append(owned)
        return found

    async def _volume_requests(self, names: Iterable[str]) -> list[Request]:
        """What was asked for with those volumes among these that we made of directories of this machine.

        Their containers use these directories too. Labels alone do not count: whoever has the daemon may set them.
        """
        found = []
        for name in names:
            volume = await self._api.inspect_volume(name)
            label = labels_of(volume or {}).get(REQUEST_LABEL)
            request = find_request(labels_of(volume or {}))
            if request is None or not isinstance(label, str) or not request.sources:
                continue
            if self._reconciler.made_here.holds(volume_id(name, label), request.nonce):
                found.append(request)
        return found

    async def _exposed(self, image: str) -> tuple[str, ...]:
        """The ports that an image exposes; none when it is not there, which the daemon will say itself."""
        description = await self._api.inspect_image(image) if image else None
        ports = ((description or {}).get("Config") or {}).get("ExposedPorts")
        return tuple(ports) if isinstance(ports, dict) else ()

    def _check_lending(self, caller: Caller, sources: Sequence[str]) -> None:
        """Refuse callers the use of directories that are read with the rights of the user rda runs as, not with theirs.

        :param sources: paths of this machine.
        """
        if sources and not (caller.own or self._lend_files):
            raise Refused(
                f"{sources[0]} would be read with the rights of the user that rda runs as, and {caller} is not that "
                "user: run an rda of your own, use a volume, or have lend_files = true set"
            )

    async def _place(self, found: Sorted) -> tuple[dict[str, str], dict[str, str]]:
        """Give every mirrored source its remote path, outer ones before those inside them, else all at once.

        :return: document path -> remote path; and source -> why it has a copy of its own nevertheless, "" if not.
        """
        alone = {path for bind, path in found.local if bind.form is Form.VOLUME}
        creatable = {path for bind, path in found.local if bind.may_create}
        local = {path for _, path in found.local}
        placed: dict[str, Place] = {}
        while waiting := local - placed.keys():
            outermost = [path for path in sorted(waiting) if not any(_is_inside(path, other) for other in waiting)]
            placing = [
                self._mirrors.place(path, create_missing=path in creatable, alone=path in alone) for path in outermost
            ]
            placed |= zip(outermost, await gather(*placing), strict=True)
        places = {bind.path: placed[path].remote for bind, path in found.local}
        return places, {path: place.apart for path, place in placed.items()}

    async def _join(self, outers: Sequence[str]) -> dict[str, str]:
        """Let what is inside these, and was mounted first, be mounted from their copies.

        That works for containers that have never been started: none is while this looks.

        :return: source -> why it has a copy of its own nevertheless, "" if not.
        """
        apart = {}
        async with self._starting:
            for outer in outers:
                for source, containers in self._mirrors.inner_copies(outer).items():
                    started = await self._has_any_run(containers)
                    apart[source] = await self._mirrors.join(source, outer, started)
        return apart

    async def _has_any_run(self, containers: Iterable[str]) -> bool:
        """Whether any of these has been started, or is about to be."""
        for container in containers:
            description = await self._api.inspect_container(container)
            state = ((description or {}).get("State") or {}).get("Status", "created")
            if state != "created" or self._reconciler.is_starting(container):
                return True
        return False

    async def _created(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        memo = cast("_Creating", sent.memo)
        if status != 201 or not isinstance(body, dict):
            self._reconciler.made_here.failed(memo.nonce)
            return rewrite.inward_error(body, memo.shown)
        self._reconciler.made_here.made(memo.nonce, str(body["Id"]))
        await self._mirrors.hold(str(body["Id"]), memo.sources, memo.shown, created=True)
        warnings = [*memo.warnings, *await self._slow(memo.sources)]
        if warnings:
            body = {**body, "Warnings": [*(body.get("Warnings") or []), *warnings]}
        return body

    async def _slow(self, sources: Iterable[str]) -> list[str]:
        """Say of which sources so much is to be transferred that a start will wait for them noticeably."""
        said = []
        for source in sources:
            found = await self._mirrors.measure(source)
            if found is None or found.state not in ("scanning", "applying"):
                continue
            files, count = found.files_total - found.files_done, found.bytes_total - found.bytes_done
            if files >= MANY_FILES or count >= MANY_BYTES:
                said.append(
                    f"rda: {source} is on its way to the remote host: {files:,} files, {size(count)}. The start waits "
                    "until it is there; rda status --watch shows how far it is"
                )
        return said

    # start

    async def _start(self, call: Call, body: _Document) -> Outgoing:
        """Hold the start until the mounts are complete and the local ports are open."""
        owned, description = await self._resolve(call)
        if owned is None or description is None:
            return Outgoing()
        async with self._starting:
            self._reconciler.start_begins(owned.id)
        try:
            await self._flush(owned, "start")
            await self._reserve(owned)
        except BaseException:
            await self._not_started(owned, description)
            raise
        return Outgoing(memo=_Starting(owned))

    async def _reserve(self, owned: Owned) -> None:
        """Open the local ports; one that another container holds may be held by one that has ended a moment ago.

        The daemon has given up its ports by then, and would let the start pass.

        :raises PortUnavailable: one cannot be opened.
        """
        try:
            await self._forwards.reserve(owned.id, owned.name, owned.ports)
        except PortUnavailable:
            rivals = self._forwards.rivals(owned.id, owned.ports)
            if not rivals:
                raise
            await DeferredList([self._reconciler.look(rival) for rival in rivals], consumeErrors=True)
            await self._forwards.reserve(owned.id, owned.name, owned.ports)

    async def _not_started(self, owned: Owned, description: Mapping[str, Any]) -> None:
        """Do what the daemon does after a start that fails: a container made with ``--rm`` is removed.

        ``docker run --rm`` waits for that.
        """
        try:
            if (description.get("HostConfig") or {}).get("AutoRemove") and not owned.running:
                await self._api.remove_container(owned.id)
        except RdaError as e:
            self._log.info("Could not remove {name}: {reason}", name=owned.name, reason=str(e))
        self._in_background(self._reconciler.start_ends(owned.id))

    async def _started(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        if not isinstance(sent.memo, _Starting):
            return body
        await self._reconciler.start_ends(sent.memo.container.id)
        return rewrite.inward_error(body, sent.memo.container.request.shown)

    async def _resolve(self, call: Call) -> tuple[Owned | None, dict[str, Any] | None]:
        """Find the container that a call names, by whichever spelling; None when it is not ours."""
        description = await self._api.inspect_container(call.ref or "")
        return (self._reconciler.owned(description) if description is not None else None), description

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
        """Let the image have the mounts as they are, and not the labels that are the container's alone."""
        labels.check_label_changes(call.query)
        owned, description = await self._resolve(replace(call, ref=call.first("container")))
        await self._flush(owned)
        return Outgoing(query=(*call.query, *labels.unlabelled(description or {})))

    async def _check_image_labels(self, call: Call, body: _Document) -> Outgoing:
        labels.check_label_changes(call.query)
        return Outgoing()

    async def _flush_exec(self, call: Call, body: _Document) -> Outgoing:
        description = await self._api.inspect_exec(call.ref or "")
        if description is not None:
            await self._flush(self._reconciler.known(str(description.get("ContainerID", ""))))
        return Outgoing()

    async def _flush(self, owned: Owned | None, what: str = "call") -> None:
        for source in owned.request.sources if owned is not None else ():
            assert owned is not None
            complete = self._mirrors.complete(source, owned.request.shown, starting=what == "start")
            if self._waiting is not None:
                complete = self._waiting.watch(f"{what} of {owned.name}", source, complete)
            await complete

    # lists and descriptions

    async def _list(self, call: Call, body: _Document) -> Outgoing:
        query, filters = outward_filters(call.query)
        return Outgoing(query=query, memo=filters)

    async def _listed(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        if status != 200 or not isinstance(body, list):
            return body
        return rewrite.inward_list(
            body, self._reconciler.is_ours, self._forwards.local, cast("ListFilter | None", sent.memo)
        )

    async def _inspected(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        if status != 200 or not isinstance(body, dict):
            return body
        return rewrite.inward_inspect(body, self._reconciler.is_ours, self._forwards.local(str(body.get("Id", ""))))

    async def _disk_usage(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        if status != 200 or not isinstance(body, dict):
            return body
        return rewrite.inward_disk_usage(body, self._reconciler.is_ours, self._forwards.local)

    async def _image_shown(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        return labels.inward_image(body) if status == 200 and isinstance(body, dict) else body

    async def _images_shown(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        return labels.inward_images(body) if status == 200 and isinstance(body, list) else body

    # volumes and services

    async def _create_volume(self, call: Call, body: _Document) -> Outgoing:
        asked = rewrite.canonical_volume(body)
        bind = volume_source(asked)
        found = self._sources.sort([] if bind is None else [bind])
        self._check_lending(call.caller, [path for _, path in found.local])
        places, _ = await self._place(found)
        nonce = secrets.token_hex(8)
        changed = rewrite.outward_volume(asked, places, self._owner, nonce, found.remote)
        if not places:
            return Outgoing(body=changed)
        self._reconciler.made_here.intend(nonce)
        return Outgoing(body=changed, memo=nonce)

    async def _volume_created(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        """Note a volume of ours; the daemon answers with the one that is there, should there be one of its name."""
        if isinstance(sent.memo, str):
            found = labels_of(body) if status == 201 and isinstance(body, dict) else {}
            label, request = found.get(REQUEST_LABEL), find_request(found)
            if isinstance(label, str) and request is not None and request.nonce == sent.memo:
                self._reconciler.made_here.made(sent.memo, volume_id(str(body["Name"]), label))
            else:
                self._reconciler.made_here.failed(sent.memo)
        return await self._volume_shown(call, sent, status, body)

    async def _volume_shown(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        return rewrite.inward_volume(body) if status < 400 and isinstance(body, dict) else body

    async def _volumes_shown(self, call: Call, sent: Outgoing, status: int, body: Any) -> Any:
        return rewrite.inward_volumes(body) if status < 400 and isinstance(body, dict) else body

    async def _check_service(self, call: Call, body: _Document) -> Outgoing:
        return Outgoing(body=rewrite.check_service(body, self._sources.rules))


def _asked_name(call: Call) -> str:
    """The name that a create gives its container, "" when the daemon is to choose one."""
    return call.first("name").lstrip("/")


def _two_copies(source: str, why: str) -> str:
    return (
        f"rda: {source} has a copy of its own on the remote host, and {why}. What a container writes in one of them is "
        "not in the other"
    )


def _is_inside(path: str, other: str) -> bool:
    return path.startswith(other.rstrip("/") + "/") and path != other
