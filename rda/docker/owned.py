"""Whose things are, in the documents and queries of the Engine API. Pure.

A container, volume or network that is made under an owner filter carries the name of its user in a label that clients
can neither set nor see. Lists are asked for by that label, and what comes back is looked through again, because a label
may have come from an image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from rda.docker.binds import volume_source
from rda.docker.document import object_of, objects, parse_any, serialise, text_list, text_of
from rda.docker.request import OWNER_LABEL, USER_LABEL, hidden, labels_of
from rda.docker.routes import Call, Query
from rda.errors import BadRequest, RdaError

__all__ = [
    "BUILT_IN_NETWORKS",
    "belongs",
    "bound_paths",
    "dangling_only",
    "inward_mounts",
    "inward_network",
    "marked",
    "mount_volumes",
    "named_volumes",
    "only_labelled",
    "with_containers",
    "with_reference",
    "without_ids",
]

#: Networks that every daemon has, and everybody uses.
BUILT_IN_NETWORKS = ("bridge", "host", "none")

#: Full and short ids in a message of the daemon's.
_IDS = re.compile(r"\b[0-9a-f]{64}\b|(?<=container )[0-9a-f]{12}\b")

#: Where a create document names other containers by their whole text.
_MODES = ("NetworkMode", "PidMode", "IpcMode", "Cgroup")


def marked(owner: str, user: str) -> dict[str, object]:
    """Return the labels of what a user makes."""
    return {OWNER_LABEL: owner, USER_LABEL: user}


def belongs(document: Mapping[str, object], owner: str, user: str) -> bool:
    """Return whether a volume's or network's labels say that it is a user's: only rda sets them."""
    labels = labels_of(document)
    return labels.get(OWNER_LABEL) == owner and labels.get(USER_LABEL) == user


def with_reference(call: Call, reference: str) -> Call:
    """Return a call of something named another way: by its full id, which cannot come to mean something else."""
    before = call.route.pattern.partition("{ref}")[0]
    after = call.path[len(before) + len(call.ref or "") :]
    return replace(call, ref=reference, path=before + reference + after, verbatim=None)


def _filters(query: Query) -> dict[str, dict[str, bool]]:
    """Read the filters of a list or prune; of a parameter that comes twice the daemon takes the first.

    Values come as lists or as the keys of objects; the daemon takes either form, but not both in one document.
    """
    text = next((value for name, value in query if name == "filters"), "")
    if not text.strip():
        return {}
    try:
        found = object_of(parse_any(text.encode("utf-8", "replace")), "filters")
        return {name: _values(value) for name, value in found.items()}
    except RdaError as error:
        raise BadRequest(f"the filters of the query cannot be read: {error}") from None


def _values(value: object) -> dict[str, bool]:
    if isinstance(value, dict) and all(isinstance(on, bool) for on in value.values()):
        return dict(value)
    return dict.fromkeys(text_list(value, "filters"), True)


def _with_filters(query: Query, filters: Mapping[str, object]) -> Query:
    kept = tuple(pair for pair in query if pair[0] != "filters")
    return (*kept, ("filters", serialise(dict(filters)).decode("utf-8")))


def only_labelled(query: Query, owner: str, user: str) -> Query:
    """Ask for what carries a user's labels alone.

    :raises BadRequest: the filters cannot be read.
    """
    filters = _filters(query)
    marks = dict.fromkeys((f"{name}={value}" for name, value in marked(owner, user).items()), True)
    return _with_filters(query, {**filters, "label": {**filters.get("label", {}), **marks}})


def dangling_only(query: Query) -> Query:
    """Ask for images without a name alone: the others are everybody's; raises as above."""
    return _with_filters(query, {**_filters(query), "dangling": {"true": True}})


def named_volumes(document: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Find the volumes that a canonical create document names.

    :return: name -> the volumes/create document that the daemon would make it by. A volume that binds a path is made
        by the daemon itself, and is {} here.
    """
    host_config = object_of(document.get("HostConfig"), "HostConfig")
    driver = text_of(host_config.get("VolumeDriver"), "VolumeDriver")
    found: dict[str, dict[str, object]] = {}
    for spec in text_list(host_config.get("Binds"), "HostConfig.Binds"):
        name, colon, _ = spec.partition(":")
        if colon and not spec.startswith(("/", "\\")) and not re.match(r"[A-Za-z]:[\\/].*:/", spec):
            found[name] = {"Name": name, "Driver": driver or "local"}
    for mount in objects(host_config.get("Mounts"), "HostConfig.Mounts"):
        name = text_of(mount.get("Source"), "Source")
        if mount.get("Type") == "volume" and name:
            found[name] = _volume_document(name, object_of(mount.get("VolumeOptions"), "VolumeOptions"))
    return found


def _volume_document(name: str, options: Mapping[str, object]) -> dict[str, object]:
    config = object_of(options.get("DriverConfig"), "DriverConfig")
    values = object_of(config.get("Options"), "Options")
    if {"bind", "rbind"} & set(text_of(values.get("o"), "o").split(",")):
        return {}
    labels = hidden(object_of(options.get("Labels"), "Labels"))
    driver = text_of(config.get("Name"), "DriverConfig.Name") or "local"
    return {"Name": name, "Driver": driver, "DriverOpts": dict(values), "Labels": labels}


def bound_paths(volumes: Iterable[Mapping[str, object]]) -> list[tuple[str, str]]:
    """Return for each volume that binds a path of the remote host how it is called, and that path.

    :param volumes: canonical volumes/create documents.
    """
    found = []
    for volume in volumes:
        bind = volume_source(volume)
        if bind is not None:
            found.append((f"volume {volume.get('Name')}", bind.path))
    return found


def mount_volumes(document: dict[str, object], labels: Mapping[str, object]) -> dict[str, object]:
    """Put labels on the volumes that the daemon makes for the Mounts of a create document."""
    host_config = dict(object_of(document.get("HostConfig"), "HostConfig"))
    mounts = objects(host_config.get("Mounts"), "HostConfig.Mounts")
    if not any(mount.get("Type") == "volume" for mount in mounts):
        return document
    host_config["Mounts"] = [_labelled(mount, labels) if mount.get("Type") == "volume" else mount for mount in mounts]
    return {**document, "HostConfig": host_config}


def _labelled(mount: dict[str, object], labels: Mapping[str, object]) -> dict[str, object]:
    options = dict(object_of(mount.get("VolumeOptions"), "VolumeOptions"))
    options["Labels"] = {**object_of(options.get("Labels"), "Labels"), **labels}
    return {**mount, "VolumeOptions": options}


def with_containers(document: dict[str, object], ids: Mapping[str, str]) -> dict[str, object]:
    """Name other containers by their full ids in a create document.

    :param ids: reference, as it is written -> full id.
    """
    host_config = dict(object_of(document.get("HostConfig"), "HostConfig"))
    for name in _MODES:
        mode = host_config.get(name)
        if isinstance(mode, str) and mode.startswith("container:"):
            reference = mode.removeprefix("container:")
            host_config[name] = f"container:{ids.get(reference, reference)}"
    for name in ("VolumesFrom", "Links"):
        if host_config.get(name):
            entries = text_list(host_config[name], name)
            host_config[name] = [_renamed(entry, ids, keep_alias=name == "Links") for entry in entries]
    return {**document, "HostConfig": host_config}


def _renamed(entry: str, ids: Mapping[str, str], keep_alias: bool) -> str:
    reference, colon, rest = entry.partition(":")
    if keep_alias and not colon:
        colon, rest = ":", reference
    return ids.get(reference, reference) + colon + rest


def inward_mounts(container: Mapping[str, Any]) -> dict[str, Any]:
    """Show a container's inspect document without the labels that its volumes were made with."""
    host_config = container.get("HostConfig")
    mounts = host_config.get("Mounts") if isinstance(host_config, dict) else None
    if not isinstance(mounts, list):
        return dict(container)
    return {**container, "HostConfig": {**(host_config or {}), "Mounts": [_unlabelled(mount) for mount in mounts]}}


def _unlabelled(mount: Any) -> Any:
    options = mount.get("VolumeOptions") if isinstance(mount, dict) else None
    if not isinstance(options, dict) or not isinstance(labels := options.get("Labels"), dict):
        return mount
    kept = hidden(labels)
    options = {name: value for name, value in options.items() if name != "Labels"} | ({"Labels": kept} if kept else {})
    rest = {name: value for name, value in mount.items() if name != "VolumeOptions"}
    return {**rest, "VolumeOptions": options} if options else rest


def inward_network(document: Mapping[str, Any], mine: Callable[[str], bool] | None = None) -> dict[str, Any]:
    """Show a network without rda's labels.

    :param mine: given the full id of a container, says whether it is the caller's: others in it are left out.
    """
    result = dict(document)
    if isinstance(labels := result.get("Labels"), dict):
        result["Labels"] = hidden(labels)
    if mine is not None and isinstance(containers := result.get("Containers"), dict):
        result["Containers"] = {id_: value for id_, value in containers.items() if mine(id_)}
    return result


def without_ids(body: object) -> object:
    """Take ids out of an error answer: they may be those of somebody else's containers."""
    if not isinstance(body, dict) or not isinstance(message := body.get("message"), str):
        return body
    return {**body, "message": _IDS.sub("(hidden)", message)}
