"""The gate: every call is judged, owned and noted before :class:`rda.containers.calls.Containers` hears of it.

It stands in front of a context that has a policy, an owner filter or an audit; others have none. A call that may pass
is changed so that it means to the daemon exactly what was judged: containers are named by their full ids, bind sources
by where they lead, and only canonical documents are sent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from twisted.internet.defer import Deferred
from zope.interface import implementer

from rda.access.audit import Audit, Record, timestamp
from rda.access.caller import Proof
from rda.access.ownership import Ownership
from rda.access.policy import LIMITS, Facts, Policy, judge, refused
from rda.access.policy_config import Access
from rda.access.quotas import Quotas
from rda.api import DaemonAPI
from rda.deferreds import InThread
from rda.docker import binds, owned, rewrite
from rda.docker.claims import Claim, Kind, volume_claims
from rda.docker.document import object_of
from rda.docker.endpoints import JUDGED, canonical_body, claims_of
from rda.docker.labels import check_labels
from rda.docker.passing import changes, check_head, named_by_id, with_real_sources
from rda.docker.routes import Call, Fields, Note, Outgoing, RequestBody
from rda.docker.sources import Sorted, Sources
from rda.errors import NotFound, RdaError, Refused
from rda.interfaces import ICallRewriter, IGate

__all__ = ["Gate"]

_Document = dict[str, object]

#: Users whose policies are kept made up.
REMEMBERED_USERS = 256

#: What of the answers of /volumes and /system/df is the caller's once it has been looked through, or everybody's. What
#: a later daemon adds may be others', and is left out.
_LISTED = frozenset(("LayersSize", "Images", "Containers", "Volumes", "BuildCache", "BuilderSize", "Warnings"))


@dataclass(frozen=True)
class _Passed:
    """A call that was let through.

    :ivar call: as it was changed.
    :ivar inner: what the rewriter behind the gate decided.
    :ivar reserved: what it adds to what there is, until the daemon has made it.
    :ivar volumes: those that its container is to have, by name.
    """

    call: Call
    inner: Outgoing
    reserved: Mapping[str, int]
    volumes: tuple[str, ...] = ()


@implementer(ICallRewriter, IGate)
class Gate:
    """Lets calls through to a rewriter, or refuses them.

    :param name: of the context.
    :param inner: what happens to calls that may pass.
    :param access: who may do what.
    :param sources: whose path a bind source is.
    :param in_thread: runs a blocking function in a thread.
    :param sockets: paths on the remote host that lead to its daemon.
    :param audit: where calls that change something are noted.
    """

    table = JUDGED

    def __init__(
        self,
        name: str,
        inner: ICallRewriter,
        access: Access,
        api: DaemonAPI,
        ownership: Ownership,
        sources: Sources,
        in_thread: InThread,
        sockets: tuple[str, ...] = (),
        audit: Audit | None = None,
    ) -> None:
        self._name = name
        self._audit = audit
        self._inner = inner
        self._access = access
        self._policy_of = lru_cache(REMEMBERED_USERS)(access.policy_of)
        self._api = api
        self._ownership = ownership
        self._sources = sources
        self._in_thread = in_thread
        self._sockets = sockets
        self._quotas = Quotas(api, ownership.owner, ownership.has, in_thread)

    # IGate

    def admit(self, call: Call, fields: Fields) -> tuple[Call, Fields]:
        """Look at a request's head; see :class:`rda.interfaces.IGate`."""
        call = replace(call, note=Note(), verbatim=None)
        try:
            return call, check_head(call, fields)
        except RdaError as error:  # nobody else will hear of it
            self.over(call, error.status, 0.0, 0, 0)
            raise

    def admit_own(self, call: Call) -> None:
        """Keep others from rda's own pages, which show everybody's things, where there are rules for anybody.

        A listener that asks nobody who they are knows no others; without an owner filter its callers may look.

        :raises Refused: somebody else asks.
        """
        looks = call.method in (b"GET", b"HEAD") and not self._access.owner_filter
        alike = looks and call.caller.proof is Proof.NONE
        if self._access and not call.caller.own and not alike:
            raise Refused("rda's own pages are for the user that it runs as, where owner_filter or a policy is set")

    def over(self, call: Call, status: int | None, seconds: float, sent: int, received: int) -> None:
        """Write the audit's line; see :class:`rda.interfaces.IGate`."""
        if self._audit is None or not changes(call):
            return
        note, caller = call.note or Note(), call.caller
        record = Record(
            time=timestamp(time.time() - seconds),
            context=self._name,
            user=caller.user,
            proof=caller.proof.value,
            uid=caller.uid,
            pid=caller.pid,
            method=call.method.decode("ascii", "replace"),
            path=call.path,
            endpoint=call.route.name,
            decision="allowed" if note.allowed else "refused",
            rules=note.rules,
            container=note.container,
            sent=sent,
            received=received,
            seconds=seconds,
            status=status,
        )
        self._audit.record(record)

    # ICallRewriter

    def outgoing(self, call: Call, body: _Document | None) -> Deferred[Outgoing]:
        """Judge a call; refuse it, or let it through changed."""
        return Deferred.fromCoroutine(self._outgoing(call, body))

    def answered(self, call: Call, sent: Outgoing, status: int, body: object | None) -> Deferred[object | None]:
        """Leave out of an answer what is not the caller's."""
        return Deferred.fromCoroutine(self._answered(sent, status, body))

    def streamed(self, call: Call, sent: Outgoing, document: object) -> object | None:
        """Leave out events that are not the caller's."""
        passed = cast("_Passed", sent.memo)
        if self._access.owner_filter and not self._ownership.may_see(document, call.caller.user):
            return None
        return self._inner.streamed(passed.call, passed.inner, document)

    def aborted(self, call: Call, sent: Outgoing) -> None:
        """Undo what was reserved."""
        passed = cast("_Passed", sent.memo)
        self._quotas.release(call.caller.user, passed.reserved)
        self._inner.aborted(passed.call, passed.inner)

    # Outward.

    async def _outgoing(self, call: Call, body: _Document | None) -> Outgoing:
        if self._audit is not None and changes(call):
            self._audit.check()
        try:
            return await self._let_through(call, body)
        except NotFound:  # nothing here is not found but what is not the caller's
            self._note_rules(call, ("owner_filter",))
            raise

    async def _let_through(self, call: Call, body: _Document | None) -> Outgoing:
        is_document = call.route.body is RequestBody.DOCUMENT
        if not self._access:
            return await self._unjudged(call, body)
        document = canonical_body(call, body or {}) if is_document else {}
        claims = tuple(claims_of(call, document))
        changed = await self._own(call, document)
        others = await self._containers(call, claims)
        claims = (*claims, *await self._host_networks(call, claims))
        changed, document = named_by_id(changed, document, {name: str(one["Id"]) for name, one in others.items()})
        found = self._sort(changed, document)
        reals = await self._real_paths(found)
        foreign = frozenset(name for name, one in others.items() if self._ownership.is_foreign(one))
        there = await self._volumes_there(call, document)
        claims = (*claims, *(claim for volume in there for claim in volume_claims(volume)))
        facts = await self._facts(call, document, claims, found, reals, foreign)
        facts = replace(facts, remote=(*facts.remote, *owned.bound_paths(there)))
        self._judge(call, facts, claims)
        document = with_real_sources(changed, document, found, reals)
        reserved = self._quotas.reserve(call.caller.user, facts)
        try:
            volumes = await self._take_volumes(changed, document)
            inner = await self._inner.outgoing(changed, document if is_document else None)
        except BaseException:
            self._quotas.release(call.caller.user, reserved)
            raise
        if call.note is not None:
            call.note.allowed = True
        return self._sent(call, changed, document if is_document else None, _Passed(changed, inner, reserved, volumes))

    async def _unjudged(self, call: Call, body: _Document | None) -> Outgoing:
        """Let a call through that is only noted."""
        inner = await self._inner.outgoing(call, body)
        assert call.note is not None
        call.note.allowed = True
        return replace(inner, body=inner.body if inner.body is not None else body, memo=_Passed(call, inner, {}))

    def _sent(self, call: Call, changed: Call, document: _Document | None, passed: _Passed) -> Outgoing:
        """Put together what goes to the daemon."""
        inner = passed.inner
        body = inner.body if inner.body is not None else document
        if body is not None and self._access.owner_filter:
            body = self._marked(changed, body)
        query = inner.query if inner.query is not None else changed.query
        return Outgoing(query=query, path=changed.path, body=body, memo=passed)

    def _marked(self, call: Call, body: _Document) -> _Document:
        """Write whose it is into what is made."""
        marks = owned.marked(self._ownership.owner, call.caller.user)
        if call.route.name in ("volume create", "network create"):
            return {**body, "Labels": {**object_of(body.get("Labels"), "Labels"), **marks}}
        return owned.mount_volumes(body, marks) if call.route.name == "container create" else body

    def _judge(self, call: Call, facts: Facts, claims: Iterable[Claim]) -> None:
        policy = self._policy_of(call.caller.user)
        refusals = judge(facts, claims, policy) if policy is not None else ()
        if policy is not None and refusals:
            self._note_rules(call, dict.fromkeys(refusal.rule for refusal in refusals))
            raise refused(refusals, policy.scope)

    def _note_rules(self, call: Call, rules: Iterable[str]) -> None:
        if call.note is not None:
            call.note.rules = tuple(rules)

    # What a call is about.

    async def _own(self, call: Call, document: _Document) -> Call:
        """Find whose the thing is that a call names, or leave what is not the caller's out of what it asks for."""
        if call.route.name in ("network create", "volume create"):
            check_labels(document.get("Labels"), "Labels")
        if not self._access.owner_filter:
            return call
        user, name, group = call.caller.user, call.route.name, call.route.name.partition(" ")[0]
        if not user:
            self._note_rules(call, ("owner_filter",))
            raise Refused("owner_filter needs to know who calls, and this listener does not ask: see its configuration")
        if group in ("unknown", "swarm", "node", "service", "task", "secret", "config"):
            self._note_rules(call, ("owner_filter",))
            raise Refused(f"{call.path} cannot be told apart by owner (rule owner_filter)")
        if name in ("container list", "container prune", "volume prune", "network prune"):
            return replace(call, query=owned.only_labelled(call.query, self._ownership.owner, user))
        if name == "image prune":
            return replace(call, query=owned.dangling_only(call.query))
        return await self._own_reference(call, user)

    async def _containers(self, call: Call, claims: Sequence[Claim]) -> dict[str, dict[str, Any]]:
        """Look up the other containers that a call names; of one that is not there, the daemon says so."""
        found = {}
        for reference in dict.fromkeys(claim.value for claim in claims if claim.kind is Kind.CONTAINER):
            description = await self._api.inspect_container(reference) if reference else None
            if self._access.owner_filter and not (description and self._ownership.has(description, call.caller.user)):
                raise NotFound(f"No such container: {reference}")
            if description is not None:
                found[reference] = description
        return found

    async def _host_networks(self, call: Call, claims: Sequence[Claim]) -> list[Claim]:
        """Look up the networks that a call names: what is the host's own is claimed as that, whatever it is called."""
        found = []
        for claim in claims:
            if claim.kind is Kind.NETWORK:
                if self._access.owner_filter:
                    network: dict[str, Any] | None = await self._ownership.network(claim.value, call.caller.user)
                else:
                    network = await self._api.inspect_network(claim.value)
                if network is not None and network.get("Driver") == "host":
                    found.append(Claim(Kind.HOST_NAMESPACE, "network", claim.where))
        return found

    async def _volumes_there(self, call: Call, document: _Document) -> list[_Document]:
        """Look up the volumes that a new container names: what those lead to that are there already is judged too.

        :return: for each that rda has not made of a source that was judged then, the document that makes the like.
        """
        found: list[_Document] = []
        if call.route.name != "container create" or self._policy_of(call.caller.user) is None:
            return found
        for name in owned.named_volumes(document):
            volume = await self._api.inspect_volume(name)
            if volume is not None and not self._ownership.is_mirrored(volume):
                found.append({"Name": name, "Driver": volume.get("Driver"), "DriverOpts": volume.get("Options")})
        return found

    async def _own_reference(self, call: Call, user: str) -> Call:
        """Look up what the path names."""
        group = call.route.name.partition(" ")[0]
        reference = call.ref
        if call.route.name == "container commit":
            id_ = self._noted(call, await self._ownership.container(call.first("container"), user))
            rest = [pair for pair in call.query if pair[0] != "container"]
            return replace(call, query=(*rest, ("container", id_)))
        if reference is None:
            return call
        if group in ("container", "checkpoint") or call.route.name == "exec create":
            id_ = self._noted(call, await self._ownership.container(reference, user))
            return owned.with_reference(call, id_)
        if group == "exec":
            id_, container = await self._ownership.exec(reference, user)
            self._noted(call, container)
            return owned.with_reference(call, id_)
        if group == "volume":
            await self._ownership.volume(reference, user)
        elif group == "network":
            found = await self._ownership.network(reference, user)
            return owned.with_reference(call, str(found["Id"]))
        return call

    def _noted(self, call: Call, container: str) -> str:
        if call.note is not None:
            call.note.container = container
        return container

    async def _take_volumes(self, call: Call, document: _Document) -> tuple[str, ...]:
        """Make the volumes that a new container names the caller's, before somebody else does."""
        if not self._access.owner_filter:
            return ()
        if call.route.name == "volume create" and document.get("Name"):
            await self._ownership.take_volume(str(document["Name"]), {}, call.caller.user)
        if call.route.name != "container create":
            return ()
        volumes = owned.named_volumes(document)
        for name, by in volumes.items():
            await self._ownership.take_volume(name, by, call.caller.user)
        return tuple(volumes)

    def _sort(self, call: Call, document: _Document) -> Sorted:
        """Find the bind sources of a document."""
        found: Iterable[binds.BindSource | None] = ()
        if call.route.name == "container create":
            found = binds.container_binds(document)
        elif call.route.name == "volume create":
            found = (binds.volume_source(document),)
        elif call.route.name in ("service create", "service update"):
            spec = object_of(object_of(document.get("TaskTemplate"), "").get("ContainerSpec"), "ContainerSpec")
            found = binds.mount_binds(spec.get("Mounts"), "TaskTemplate.ContainerSpec.Mounts")
        return self._sources.sort([bind for bind in found if bind is not None])

    async def _real_paths(self, found: Sorted) -> dict[str, str]:
        """Follow all links of the local sources: document path -> where it leads."""
        if not found.local:
            return {}
        paths = [path for _, path in found.local]
        reals = await self._in_thread(lambda: [os.path.realpath(path) for path in paths])
        return {bind.path: real for (bind, _), real in zip(found.local, reals, strict=True)}

    async def _facts(
        self,
        call: Call,
        document: _Document,
        claims: Sequence[Claim],
        found: Sorted,
        reals: Mapping[str, str],
        foreign: frozenset[str],
    ) -> Facts:
        """Gather what a policy asks about beside what stands in the request."""
        policy = self._policy_of(call.caller.user)
        ports = rewrite.wanted(document).ports if call.route.name == "container create" else ()
        facts = Facts(
            method=call.method.decode("ascii", "replace"),
            path=call.path,
            known=call.route.name != "unknown",
            local=tuple((bind.source, reals[bind.path]) for bind, _ in found.local),
            remote=tuple((path, place) for path, place in found.remote.items()),
            ports=ports,
            foreign=foreign,
            sockets=self._sockets,
        )
        if policy is None:
            return facts
        facts = replace(facts, images=await self._image_names(claims, policy))
        if call.route.name != "container create" or not any(policy.limits.get(key) for key in LIMITS):
            return facts
        return await self._quotas.count(call.caller.user, facts, policy)

    async def _image_names(self, claims: Sequence[Claim], policy: Policy) -> dict[str, tuple[str, ...]]:
        """Find all names of the images that a new container is made from, where names matter."""
        names: dict[str, tuple[str, ...]] = {}
        if policy.allow.get("images") == ("*",) and not policy.deny.get("images"):
            return names
        for claim in claims:
            if claim.kind is Kind.IMAGE and claim.where == "Image":
                image = await self._api.inspect_image(claim.value)
                if image is not None:
                    names[claim.value] = (*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ()))
        return names

    # Inward.

    async def _answered(self, sent: Outgoing, status: int, body: Any) -> Any:
        passed = cast("_Passed", sent.memo)
        call = passed.call
        self._quotas.release(call.caller.user, passed.reserved)
        if call.route.name == "container create" and status == 201 and isinstance(body, dict):
            self._noted(call, str(body.get("Id", "")))
        if not self._access.owner_filter:
            shown = await self._inner.answered(call, passed.inner, status, body)
            return _network_labels_hidden(call, status, shown)
        if status < 400:
            body = await self._mine(call, body)
        shown = await self._inner.answered(call, passed.inner, status, body)
        if status >= 400:
            return owned.without_ids(shown)
        if call.route.name == "container create" and isinstance(shown, dict):
            await self._check_volumes(call, str(shown.get("Id", "")), passed.volumes)
        if call.route.name == "container inspect" and isinstance(shown, dict):
            return owned.inward_mounts(shown)
        return shown

    async def _mine(self, call: Call, body: Any) -> Any:
        """Leave in an answer what is the caller's."""
        user, name, ownership = call.caller.user, call.route.name, self._ownership
        if name == "container list" and isinstance(body, list):
            return [one for one in body if isinstance(one, dict) and ownership.has(one, user)]
        if name in ("volume list", "system df") and isinstance(body, dict):
            body = {key: value for key, value in body.items() if key in _LISTED}
            body["Volumes"] = await ownership.volumes_of(user, body.get("Volumes") or ())
            if "Containers" in body:
                body["Containers"] = [one for one in body["Containers"] or () if ownership.has(one, user)]
            return body
        if name == "network list" and isinstance(body, list):
            return [owned.inward_network(one, lambda _: False) for one in body if ownership.may_use(one, user)]
        if name == "network inspect" and isinstance(body, dict):
            mine = await ownership.containers_of(user)
            return owned.inward_network(body, mine.__contains__)
        if name == "network create" and isinstance(body, dict):
            ownership.remember("network", str(body.get("Id", "")), user)
        return body

    async def _check_volumes(self, call: Call, container: str, volumes: tuple[str, ...]) -> None:
        """See that a new container's volumes are the caller's: they could have been replaced at the last moment."""
        try:
            for name in volumes:
                await self._ownership.volume(name, call.caller.user)
        except BaseException:
            await self._api.remove_container(container)
            raise


def _network_labels_hidden(call: Call, status: int, body: Any) -> Any:
    if status == 200 and call.route.name == "network inspect" and isinstance(body, dict):
        return owned.inward_network(body)
    if status == 200 and call.route.name == "network list" and isinstance(body, list):
        return [owned.inward_network(one) for one in body]
    return body
