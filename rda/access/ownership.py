"""Whose a container, exec, volume or network on the remote host is: asked of the daemon, by any spelling of its name.

A container is a user's when this context made it (:mod:`rda.containers.made_here` vouches for its id) and its label
names the user. A volume or network is when its labels, which only rda sets, say so; an anonymous volume, when only
containers of the user's have it mounted. What is not the caller's is not there: the answer is the daemon's own for a
name that nothing has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rda.api import DaemonAPI
from rda.docker.owned import BUILT_IN_NETWORKS, belongs, marked
from rda.docker.request import OWNER_LABEL, USER_LABEL, find_request, labels_of
from rda.errors import NotFound, Refused

__all__ = ["Ownership"]

#: Things whose users are remembered, for events: they do not carry labels, or come when the thing is gone.
REMEMBERED = 4096

#: The label that the daemon gives a volume that nobody named.
_ANONYMOUS = "com.docker.volume.anonymous"


class Ownership:
    """Looks up whose things are.

    :param made_here: whether this context made a container, by its inspect document or its entry in a list.
    :param owner: the identity that this context writes into labels.
    """

    def __init__(self, api: DaemonAPI, made_here: Callable[[Mapping[str, object]], bool], owner: str) -> None:
        self._api = api
        self._made_here = made_here
        self.owner = owner
        self._remembered: dict[tuple[str, str], str] = {}

    def has(self, container: Mapping[str, object], user: str) -> bool:
        """Return whether a container (its inspect document, or its entry in a list) is a user's."""
        return self._made_here(container) and labels_of(container).get(USER_LABEL) == user

    def is_foreign(self, container: Mapping[str, object]) -> bool:
        """Return whether a container was not made through this context."""
        return not self._made_here(container)

    def is_mirrored(self, volume: Mapping[str, object]) -> bool:
        """Return whether a volume binds a directory that this context mirrors; only rda sets the labels that say so."""
        labels = labels_of(volume)
        return labels.get(OWNER_LABEL) == self.owner and find_request(labels) is not None

    async def container(self, reference: str, user: str) -> str:
        """Return the full id of a container of a user's.

        :raises NotFound: it has none of that name.
        """
        found = await self._api.inspect_container(reference)
        if found is None or not self.has(found, user):
            raise NotFound(f"No such container: {reference}")
        self.remember("container", str(found["Id"]), user)
        return str(found["Id"])

    async def exec(self, reference: str, user: str) -> tuple[str, str]:
        """Return the full ids of an exec instance of a user's and of its container; raises as above."""
        found = await self._api.inspect_exec(reference)
        container = await self._api.inspect_container(str(found.get("ContainerID", ""))) if found is not None else None
        if found is None or container is None or not self.has(container, user):
            raise NotFound(f"No such exec instance: {reference}")
        return str(found["ID"]), str(container["Id"])

    async def volume(self, name: str, user: str) -> None:
        """Do nothing for a volume of a user's; raises as above."""
        found = await self._api.inspect_volume(name)
        if found is None or not await self._has_volume(found, user):
            raise NotFound(f"get {name}: no such volume")

    async def _has_volume(self, volume: Mapping[str, Any], user: str) -> bool:
        name = str(volume["Name"])
        if belongs(volume, self.owner, user):
            self.remember("volume", name, user)
            return True
        if _ANONYMOUS not in labels_of(volume) or USER_LABEL in labels_of(volume):
            return False
        users = await self._api.containers_with(name)
        return bool(users) and all(self.has(container, user) for container in users)

    async def take_volume(self, name: str, document: Mapping[str, object], user: str) -> None:
        """Make a volume the user's before a container is made that names it.

        :param document: to make it by when there is none; {} when it is made with its container.
        :raises Refused: it is somebody else's.
        """
        found = await self._api.inspect_volume(name)
        if found is None and document:
            labels = {**(document.get("Labels") or {}), **marked(self.owner, user)}  # type: ignore[dict-item]
            found = await self._api.create_volume({**document, "Labels": labels})
        if found is not None and not await self._has_volume(found, user):
            raise Refused(f"the volume {name} belongs to somebody else; choose another name (rule owner_filter)")

    async def volumes_of(self, user: str, volumes: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Leave a user's in a list of volumes."""
        containers = await self._api.list_containers(
            [f"{name}={value}" for name, value in marked(self.owner, user).items()]
        )
        mounted = {
            str(mount.get("Name"))
            for container in containers
            if self.has(container, user)
            for mount in container.get("Mounts") or ()
        }
        return [
            volume
            for volume in volumes
            if belongs(volume, self.owner, user)
            or (str(volume.get("Name")) in mounted and await self._has_volume(volume, user))
        ]

    async def network(self, reference: str, user: str) -> dict[str, Any]:
        """Return the description of a network that a user may use: an own one, or one that every daemon has.

        :raises NotFound: it is neither.
        """
        found = await self._api.inspect_network(reference)
        if found is None or not self.may_use(found, user):
            raise NotFound(f"network {reference} not found")
        return found

    def may_use(self, network: Mapping[str, Any], user: str) -> bool:
        """Return whether a network is a user's, or everybody's."""
        if belongs(network, self.owner, user):
            self.remember("network", str(network.get("Id")), user)
            return True
        return network.get("Name") in BUILT_IN_NETWORKS

    async def containers_of(self, user: str) -> frozenset[str]:
        """Return the full ids of a user's containers."""
        labels = [f"{name}={value}" for name, value in marked(self.owner, user).items()]
        found = await self._api.list_containers(labels)
        return frozenset(str(one["Id"]) for one in found if self.has(one, user))

    def remember(self, kind: str, name: str, user: str) -> None:
        """Remember whose a volume or network is; the one that was remembered longest ago goes, when there are many."""
        self._remembered.pop((kind, name), None)
        self._remembered[kind, name] = user
        if len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    def may_see(self, event: object, user: str) -> bool:
        """Return whether an event is about something of a user's, or about what is everybody's."""
        if not isinstance(event, dict):
            return False
        actor = event.get("Actor")
        attributes = actor.get("Attributes") if isinstance(actor, dict) else None
        if not isinstance(actor, dict) or not isinstance(attributes, dict):
            return False
        kind, name = event.get("Type"), str(actor.get("ID", ""))
        if kind == "container" and self.has({"Id": name, "Labels": attributes}, user):
            self.remember("container", name, user)
        if kind in ("container", "volume", "network"):
            mine = self._remembered.get((kind, name)) == user
            if kind == "volume" and event.get("Action") == "destroy":  # the name is free for others; an id never is
                self._remembered.pop((kind, name), None)
            return mine or self._remembered.get(("container", str(attributes.get("container")))) == user
        return kind in ("image", "daemon")
