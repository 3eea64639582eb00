"""The rewrites of documents: outward, as they go to the daemon, and inward, as they come back. Both halves are here.

Outward, a create document gets remote paths for its bind sources, the remote host's 127.0.0.1 and a free port for each
port that it publishes, and the labels of :mod:`rda.docker.request`, which keep what the user asked for.

Inward, everything that shows the container again shows what the user asked for. The law, for what is touched:
``inward(outward(d)) == d``; all other fields pass as they are.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rda.docker.binds import (
    BindSource,
    Form,
    Rules,
    Where,
    container_binds,
    mount_binds,
    volume_source,
)
from rda.docker.document import canonical, fold, object_of, objects, text_list, text_of
from rda.docker.host_network import FORWARD_LABEL, read_ports
from rda.docker.labels import check_labels, with_labels_shown
from rda.docker.listing import ListFilter
from rda.docker.ports import Listeners, Published, normal_key, port_key, requested, shown_addresses
from rda.docker.request import (
    OWNER_LABEL,
    REQUEST_LABEL,
    Request,
    find_request,
    hidden,
    publishes,
    request_of,
)
from rda.docker.schemas import CONTAINER_CREATE, HOST_CONFIG, SERVICE, VOLUME_CREATE
from rda.errors import Refused

__all__ = [
    "HOST_NAME",
    "Mine",
    "Wanted",
    "can_reach_host",
    "canonical_create",
    "canonical_volume",
    "check_service",
    "inward_disk_usage",
    "inward_error",
    "inward_event",
    "inward_inspect",
    "inward_item",
    "inward_list",
    "inward_message",
    "inward_volume",
    "inward_volumes",
    "outward",
    "outward_volume",
    "wanted",
    "with_sources",
]

#: What the remote daemon is asked for instead of each binding: reachable from the remote host itself only, and free.
_REMOTE_BINDING = {"HostIp": "127.0.0.1", "HostPort": ""}

#: What containers call this machine, as Docker Desktop has it.
HOST_NAME = "host.docker.internal"

#: Whether a container (inspect document or list entry) is ours.
Mine = Callable[[Mapping[str, object]], bool]

#: Fields of HostConfig that old daemons (20.10) also read at the top of a create document.
_MISPLACED = frozenset(HOST_CONFIG.fields) - frozenset(CONTAINER_CREATE.fields)


@dataclass(frozen=True)
class Wanted:
    """What a create document asks of this machine.

    :ivar binds: every bind mount, in document order.
    :ivar ports: every published port; with network mode host, those that the label names; none with other modes that
        publish none.
    :ivar image: as it is named.
    :ivar network_mode: as it is named, "" for the default.
    :ivar publish_all: whether the ports that the image exposes are published too: they have to be looked up.
    :ivar volumes_from: the containers (with ``:ro`` or ``:rw``) whose mounts it inherits.
    """

    binds: tuple[BindSource, ...] = ()
    ports: tuple[Published, ...] = ()
    image: str = ""
    network_mode: str = ""
    publish_all: bool = False
    volumes_from: tuple[str, ...] = ()


def canonical_create(document: dict[str, object]) -> dict[str, object]:
    """Return a container's create document with its keys in their canonical spelling.

    :raises BadRequest: two keys are the same to the daemon.
    """
    return canonical(document, CONTAINER_CREATE)


def canonical_volume(document: dict[str, object]) -> dict[str, object]:
    """Return a volumes/create document with its keys in their canonical spelling; raises as above."""
    return canonical(document, VOLUME_CREATE)


def wanted(document: Mapping[str, object], exposed: Iterable[str] = ()) -> Wanted:
    """Find what a canonical create document asks of this machine.

    :param exposed: the keys of its image's ExposedPorts, where they are known.
    :raises BadRequest: it cannot be understood.
    """
    host_config = object_of(document.get("HostConfig"), "HostConfig")
    mode = text_of(host_config.get("NetworkMode"), "HostConfig.NetworkMode")
    publish_all = host_config.get("PublishAllPorts") is True
    keys = [*object_of(document.get("ExposedPorts"), "ExposedPorts"), *exposed]
    ports = requested(host_config.get("PortBindings"), publish_all, keys)
    if not publishes(mode):
        ports = read_ports(_forward_specs(document)) if mode == "host" else ()
    return Wanted(
        binds=container_binds(document),
        ports=ports,
        image=text_of(document.get("Image"), "Image"),
        network_mode=mode,
        publish_all=publish_all,
        volumes_from=tuple(str(name) for name in _list(host_config.get("VolumesFrom"))),
    )


def _forward_specs(document: Mapping[str, object]) -> tuple[str, ...]:
    """Return the ports that the label of a create document names, as it writes them."""
    text = text_of(object_of(document.get("Labels"), "Labels").get(FORWARD_LABEL), f"Labels[{FORWARD_LABEL!r}]")
    return tuple(spec.strip() for spec in text.split(",") if spec.strip())


# Outward.


def outward(
    document: Mapping[str, object],
    places: Mapping[str, str],
    owner: str,
    nonce: str,
    exposed: Iterable[str] = (),
    remote: Mapping[str, str] | None = None,
    inherited: Sequence[Request] = (),
    configured: Sequence[Published] = (),
    host_address: str = "",
) -> tuple[dict[str, object], tuple[str, ...]]:
    """Rewrite a container's create document for the remote daemon.

    :param places: bind path -> the remote host's path to mount, for every bind that is mirrored.
    :param owner: who we are.
    :param nonce: a text that no other request has.
    :param exposed: the keys of its image's ExposedPorts: needed when it publishes them all.
    :param remote: bind path -> the remote host's own path that it means, for every bind that is not mirrored.
    :param inherited: the requests of the containers in its VolumesFrom, whose mounts it gets too, and of the volumes
        that it names.
    :param configured: the ports that the configuration forwards of it, should it be on the host's network.
    :param host_address: where it is to find this machine, as :data:`HOST_NAME`; "" for nowhere.
    :return: the new document, and warnings for create's answer.
    :raises BadRequest: it cannot be understood, or sets rda's own labels.
    :raises Refused: something in it cannot be had over SSH, or a bind is in neither mapping.
    """
    exposed = tuple(exposed)
    result = canonical_create(dict(document))
    warnings = _drop_misplaced(result)
    asked = wanted(result, exposed)
    labels = check_labels(result.get("Labels"), "Labels")
    host_config = dict(object_of(result.get("HostConfig"), "HostConfig"))
    for mount in objects(host_config.get("Mounts"), "HostConfig.Mounts"):
        check_labels(object_of(mount.get("VolumeOptions"), "VolumeOptions").get("Labels"), "VolumeOptions.Labels")
    paths = {**(remote or {}), **places}
    moved = _moved(asked.binds, paths)
    own_sources = [bind.path for bind in asked.binds if bind.path in places]
    replaced = _add_host(host_config, host_address)
    bindings = host_config.get("PortBindings")
    keys = {*object_of(result.get("ExposedPorts"), "ExposedPorts"), *exposed} if asked.publish_all else ()
    request = Request(
        nonce=nonce,
        bindings=object_of(bindings, "HostConfig.PortBindings") if bindings is not None else None,
        publish_all=asked.publish_all,
        exposed=tuple(sorted(keys)),
        originals=_originals(moved),
        shown={path: source for one in inherited for path, source in one.shown.items()} | _shown(moved, paths),
        sources=tuple(dict.fromkeys([*own_sources, *(source for one in inherited for source in one.sources)])),
        network_mode=asked.network_mode,
        forward=_forward_specs(result) if asked.network_mode == "host" else (),
        replaced=replaced,
    )
    _move_binds(host_config, moved, paths, lambda bind: _volume_labels(bind, paths, owner, nonce))
    _move_ports(host_config, request)
    if host_config:
        result["HostConfig"] = host_config
    result["Labels"] = {**labels, OWNER_LABEL: owner, REQUEST_LABEL: request.label()}
    return result, (*warnings, *_host_warnings(asked, _forward_specs(result), configured))


def can_reach_host(network_mode: str) -> bool:
    """Return whether a container of a network mode can be given a name for this machine, and can reach it.

    The daemon refuses ``ExtraHosts`` for one that shares the network of another container.
    """
    return network_mode != "none" and not network_mode.startswith("container:")


def _add_host(host_config: dict[str, object], address: str) -> dict[str, object]:
    """Give a container the name of this machine, unless the user says what that means; return what was replaced."""
    hosts = host_config.get("ExtraHosts")
    entries = text_list(hosts, "HostConfig.ExtraHosts")
    if not address or any(re.split("[:=]", entry, maxsplit=1)[0].lower() == HOST_NAME for entry in entries):
        return {}
    host_config["ExtraHosts"] = [*entries, f"{HOST_NAME}:{address}"]
    return {"ExtraHosts": hosts}


def _host_warnings(asked: Wanted, named: Sequence[str], configured: Sequence[Published]) -> tuple[str, ...]:
    """Say what becomes of the ports of a container on the host's network."""
    if asked.network_mode != "host":
        ignored = (
            f"rda: the label {FORWARD_LABEL} is ignored: it is for network mode host. Publish the ports instead (-p)"
        )
        return (ignored,) if named else ()
    if asked.ports or configured:
        return ()
    return (
        "rda: with network mode host, the container's ports are open on the remote host, not here. To have some of "
        f"them here too, name them with --label {FORWARD_LABEL}=PORT[/udp],… or in [[forward]] of rda's configuration",
    )


def _drop_misplaced(document: dict[str, object]) -> tuple[str, ...]:
    """Take HostConfig's fields away from the top: daemons ignore them today, and 20.10 would obey them unread."""
    found = [key for key in document if HOST_CONFIG.spelling(fold(key)) in _MISPLACED]
    for key in found:
        del document[key]
    return tuple(f"rda: {key} outside HostConfig is ignored" for key in found)


def _moved(binds: Iterable[BindSource], places: Mapping[str, str]) -> tuple[BindSource, ...]:
    """Return the binds whose path is another one on the remote host.

    :raises Refused: one has no place: none is sent on undecided.
    """
    moved = []
    for bind in binds:
        place = places.get(bind.path)
        if place is None:
            raise Refused(f"{bind.source} cannot be mounted: it has no place on the remote host")
        if bind.form is Form.BINDS and ":" in place:
            raise Refused(f"{bind.source} cannot be mounted: its place on the remote host, {place}, has a colon")
        if place != bind.path:
            moved.append(bind)
    return tuple(moved)


def _originals(moved: Iterable[BindSource]) -> dict[str, str]:
    """Return what is replaced, as :attr:`Request.originals`."""
    return {f"{'b' if bind.form is Form.BINDS else 'm'}{bind.index}": bind.source + bind.rest for bind in moved}


def _shown(moved: Iterable[BindSource], places: Mapping[str, str]) -> dict[str, str]:
    """Return for each new path, as the daemon cleans it, the one that Docker would show."""
    return {posixpath.normpath(places[bind.path]): bind.path for bind in moved}


def _move_binds(
    host_config: dict[str, object],
    moved: Iterable[BindSource],
    places: Mapping[str, str],
    volume_labels: Callable[[BindSource], dict[str, object]],
) -> None:
    """Put the new paths in the place of the sources."""
    specs = list(_list(host_config.get("Binds")))
    mounts = list(_list(host_config.get("Mounts")))
    for bind in moved:
        path = places[bind.path]
        if bind.form is Form.BINDS:
            specs[bind.index] = path + bind.rest
        elif bind.form is Form.MOUNTS:
            mounts[bind.index] = {**object_of(mounts[bind.index], "Mounts"), "Source": path}
        else:
            mounts[bind.index] = _with_device(mounts[bind.index], path, volume_labels(bind))
    if specs:
        host_config["Binds"] = specs
    if mounts:
        host_config["Mounts"] = mounts


def with_sources(
    document: Mapping[str, object], binds: Iterable[BindSource], paths: Mapping[str, str]
) -> dict[str, object]:
    """Return a canonical create document whose bind sources are written as other paths.

    :param paths: bind path -> the path to write.
    :raises Refused: a path has a colon, which Binds cannot hold.
    """
    moved = _moved(binds, paths)
    host_config = dict(object_of(document.get("HostConfig"), "HostConfig"))
    _move_binds(host_config, moved, paths, lambda _: {})
    return {**document, "HostConfig": host_config} if moved else dict(document)


def _with_device(mount: object, device: str, labels: Mapping[str, object]) -> dict[str, object]:
    """Return a mount of type volume whose driver binds another path, with our labels set, or taken away."""
    entry = dict(object_of(mount, "Mounts"))
    options = dict(object_of(entry.get("VolumeOptions"), "VolumeOptions"))
    driver = dict(object_of(options.get("DriverConfig"), "DriverConfig"))
    driver["Options"] = {**object_of(driver.get("Options"), "Options"), "device": device}
    labels = {**hidden(object_of(options.get("Labels"), "Labels")), **labels}
    options.pop("Labels", None)  # as the daemon shows a mount without any
    if labels:
        options["Labels"] = labels
    return {**entry, "VolumeOptions": {**options, "DriverConfig": driver}}


def _move_ports(host_config: dict[str, object], request: Request) -> None:
    """Ask for one free port of the remote's 127.0.0.1 for each container port, however often it is published."""
    if request.network_mode.startswith("container:"):
        return  # the daemon refuses any publishing here, and the user is to see that
    ports = requested(request.bindings, request.publish_all, request.exposed)
    for one in ports:
        if one.protocol == "sctp":
            raise Refused(f"port {one.key} cannot be published: SCTP does not pass through an SSH connection")
    if request.bindings is not None or ports:
        # In the document's own spelling: the daemon publishes only what ExposedPorts spells in the same way.
        bound = [key for key, entries in (request.bindings or {}).items() if entries]
        keys = {port_key(key): key for key in (request.exposed if request.publish_all else ())}
        keys |= {port_key(key): key for key in bound}
        host_config["PortBindings"] = {key: [dict(_REMOTE_BINDING)] for key in dict.fromkeys((*bound, *keys.values()))}
    if request.publish_all:
        host_config["PublishAllPorts"] = False


def outward_volume(
    document: Mapping[str, object],
    places: Mapping[str, str],
    owner: str,
    nonce: str,
    remote: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """Rewrite a volumes/create document; parameters and errors as in :func:`outward`.

    A volume that is no bind in disguise, or whose path is the same on the remote host, passes as it is.
    """
    paths = {**(remote or {}), **places}
    result = canonical_volume(dict(document))
    labels = check_labels(result.get("Labels"), "Labels")
    bind = volume_source(result)
    if bind is None or not _moved([bind], paths):
        return result
    result["DriverOpts"] = {**object_of(result.get("DriverOpts"), "DriverOpts"), "device": paths[bind.path]}
    sources = (bind.path,) if bind.path in places else ()
    result["Labels"] = {**labels, **_volume_labels(bind, paths, owner, nonce, sources)}
    return result


def _volume_labels(
    bind: BindSource, places: Mapping[str, str], owner: str, nonce: str, sources: tuple[str, ...] = ()
) -> dict[str, object]:
    """Return the labels of a volume that is a bind in disguise.

    :param sources: what is mirrored for the containers that use it by its name.
    """
    request = Request(nonce, originals={"v": bind.source}, shown=_shown([bind], places), sources=sources)
    return {OWNER_LABEL: owner, REQUEST_LABEL: request.label()}


def check_service(document: Mapping[str, object], rules: Rules | None = None) -> dict[str, object]:
    """Return a swarm service's document as it may be sent on, in canonical spelling.

    :raises BadRequest: it cannot be understood, or sets rda's own labels.
    :raises Refused: it binds a path of this machine: its tasks may run on any node, where no mirror is.
    """
    result = canonical(dict(document), SERVICE)
    task = object_of(result.get("TaskTemplate"), "TaskTemplate")
    spec = object_of(task.get("ContainerSpec"), "TaskTemplate.ContainerSpec")
    check_labels(result.get("Labels"), "Labels")
    check_labels(spec.get("Labels"), "TaskTemplate.ContainerSpec.Labels")
    rules = rules or Rules()
    for bind in mount_binds(spec.get("Mounts"), "TaskTemplate.ContainerSpec.Mounts"):
        rule = rules.find(bind)
        if rule.where is not Where.REMOTE or rule.instead not in ("", bind.path):
            raise Refused(
                f"{bind.source} cannot be mounted into a swarm service: its tasks may run on any node, and rda mirrors "
                "to one host only. Use a volume, or a swarm config, or a rule that says the path is the remote's"
            )
    return result


# Inward.


def inward_inspect(document: Mapping[str, object], mine: Mine, local: Listeners | None) -> dict[str, object]:
    """Show a container's inspect document as the user asked for it.

    :param mine: of a container that is not ours only rda's labels are hidden.
    :param local: where its ports are open here; None when nothing is known of them, which is shown as not published.
    """
    result = dict(document)
    config = result.get("Config")
    if isinstance(config, dict):
        result["Config"] = _with_hidden(config)
    if not mine(document):
        return result
    request = request_of(document)
    if isinstance(host_config := result.get("HostConfig"), dict):
        result["HostConfig"] = restore_host_config(host_config, request)
    if isinstance(result.get("Mounts"), list):
        result["Mounts"] = [_with_shown_source(mount, request) for mount in _list(result["Mounts"])]
    if isinstance(state := result.get("State"), dict) and isinstance(error := state.get("Error"), str):
        result["State"] = {**state, "Error": inward_message(error, request.shown)}
    settings = result.get("NetworkSettings")
    if isinstance(settings, dict) and isinstance(settings.get("Ports"), dict):
        ports = {key: _bindings_shown(key, entries, local or {}) for key, entries in settings["Ports"].items()}
        if request.on_host_network:  # of its own the daemon shows none
            ports |= {key: _bindings_shown(key, True, local or {}) for key in local or ()}
        result["NetworkSettings"] = {**settings, "Ports": ports}
    return result


def restore_host_config(host_config: Mapping[str, object], request: Request) -> dict[str, object]:
    """Put back what :func:`outward` took out of a HostConfig."""
    result = dict(host_config)
    if isinstance(binds := result.get("Binds"), list):
        result["Binds"] = [request.originals.get(f"b{index}", spec) for index, spec in enumerate(binds)]
    if isinstance(mounts := result.get("Mounts"), list):
        result["Mounts"] = [_mount_restored(mount, request.originals.get(f"m{i}")) for i, mount in enumerate(mounts)]
    result |= request.replaced
    if request.network_mode.startswith("container:"):
        return result
    if request.bindings is not None:
        result["PortBindings"] = dict(request.bindings)
    elif request.publish_all and "PortBindings" in result:
        result["PortBindings"] = {}
    if request.publish_all:
        result["PublishAllPorts"] = True
    return result


def _mount_restored(mount: object, source: str | None) -> object:
    if source is None or not isinstance(mount, dict):
        return mount
    return _with_device(mount, source, {}) if mount.get("Type") == "volume" else {**mount, "Source": source}


def _with_hidden(holder: Mapping[str, object]) -> dict[str, object]:
    """Return an object without rda's labels in its Labels."""
    labels = holder.get("Labels")
    return {**holder, "Labels": hidden(labels)} if isinstance(labels, dict) else dict(holder)


def _with_shown_source(mount: object, request: Request) -> object:
    """Show the local path in an entry of the Mounts that a container has."""
    source = mount.get("Source") if isinstance(mount, dict) else None
    if not isinstance(mount, dict) or not isinstance(source, str) or source not in request.shown:
        return mount
    return {**mount, "Source": request.shown[source]}


def _bindings_shown(key: str, entries: object, local: Listeners) -> object:
    """Show where one container port is open here, as the daemon would have: null when it is not."""
    if not entries:
        return entries
    return [
        {"HostIp": address, "HostPort": str(listener.port)}
        for listener in local.get(normal_key(key), ())
        for address in shown_addresses(listener.host_ip)
    ] or None


def inward_list(
    items: Sequence[object],
    mine: Mine,
    local: Callable[[str], Listeners | None],
    filters: ListFilter | None = None,
) -> list[object]:
    """Show the answer of ``/containers/json``.

    :param local: container id -> where its ports are open here.
    :param filters: what :func:`~rda.docker.listing.outward_filters` left to filter.
    """
    shown = [_item_by_id(item, mine, local) for item in items if isinstance(item, dict)]
    return [*(filters.apply(shown) if filters else shown)]


def _item_by_id(item: Mapping[str, object], mine: Mine, local: Callable[[str], Listeners | None]) -> dict[str, object]:
    return inward_item(item, mine, local(str(item.get("Id", ""))))


def inward_item(item: Mapping[str, object], mine: Mine, local: Listeners | None) -> dict[str, object]:
    """Show an entry of a list of containers; parameters as in :func:`inward_inspect`."""
    result = _with_hidden(item)
    if not mine(item):
        return result
    request = request_of(item)
    if isinstance(result.get("Mounts"), list):
        result["Mounts"] = [_with_shown_source(mount, request) for mount in _list(result["Mounts"])]
    if isinstance(result.get("Ports"), list):
        ports = _list(result["Ports"])
        result["Ports"] = _ports_shown(_host_ports(local or {}) if request.on_host_network else ports, local or {})
    return result


def _host_ports(local: Listeners) -> list[object]:
    """Make the Ports of a list entry for a container on the host's network, of which the daemon shows none."""
    keys = (key.partition("/") for key in local)
    return [{"PrivatePort": int(port), "PublicPort": int(port), "Type": protocol} for port, _, protocol in keys]


def _ports_shown(entries: list[object], local: Listeners) -> list[object]:
    """Show the Ports of a list entry: each published one once for every local address, or as only exposed."""
    result: list[object] = []
    done: set[str] = set()
    for entry in entries:
        if not isinstance(entry, dict) or not entry.get("PublicPort"):
            result.append(entry)
            continue
        key = f"{entry.get('PrivatePort')}/{entry.get('Type')}"
        if key in done:
            continue
        done.add(key)
        bare = {name: value for name, value in entry.items() if name not in ("IP", "PublicPort")}
        shown = [
            {**entry, "IP": address, "PublicPort": listener.port}
            for listener in local.get(key, ())
            for address in shown_addresses(listener.host_ip)
        ]
        result += shown or [bare]
    return result


def inward_event(event: object) -> object:
    """Show an event: the daemon puts a container's labels among its actor's attributes."""
    actor = event.get("Actor") if isinstance(event, dict) else None
    attributes = actor.get("Attributes") if isinstance(actor, dict) else None
    if not isinstance(event, dict) or not isinstance(actor, dict) or not isinstance(attributes, dict):
        return event
    return {**event, "Actor": {**actor, "Attributes": hidden(attributes)}}


def inward_volume(volume: Mapping[str, object]) -> dict[str, object]:
    """Show a volume: the answer of create or inspect, or an entry of a list."""
    request = find_request(volume.get("Labels"))
    result = _with_hidden(volume)
    if request is None:
        return result
    result["Labels"] = result["Labels"] or None  # as the daemon shows a volume that was made without labels
    if isinstance(options := volume.get("Options"), dict) and "v" in request.originals:
        result["Options"] = {**options, "device": request.originals["v"]}
    return result


def inward_volumes(document: Mapping[str, object]) -> dict[str, object]:
    """Show the answer of ``/volumes``."""
    return _with_each(document, "Volumes", inward_volume)


def inward_disk_usage(
    document: Mapping[str, object], mine: Mine, local: Callable[[str], Listeners | None]
) -> dict[str, object]:
    """Show the answer of ``/system/df``; parameters as in :func:`inward_list`."""
    result = _with_each(document, "Containers", lambda item: _item_by_id(item, mine, local))
    return _with_each(_with_each(result, "Volumes", inward_volume), "Images", with_labels_shown)


def _with_each(
    document: Mapping[str, object], name: str, change: Callable[[Mapping[str, object]], dict[str, object]]
) -> dict[str, object]:
    """Return an object with every object of one of its lists changed."""
    items = document.get(name)
    if not isinstance(items, list):
        return dict(document)
    return {**document, name: [change(item) if isinstance(item, dict) else item for item in items]}


def inward_error(body: object, shown: Mapping[str, str]) -> object:
    """Show an error answer of the daemon, ``{"message": …}``; parameters as in :func:`inward_message`."""
    if not isinstance(body, dict) or not isinstance(message := body.get("message"), str):
        return body
    return {**body, "message": inward_message(message, shown)}


def inward_message(text: str, shown: Mapping[str, str]) -> str:
    """Name local paths in a text of the daemon that quotes remote ones.

    :param shown: remote path -> local path. Longer ones are replaced first, so that nested ones come out right.
    """
    for remote in sorted(shown, key=len, reverse=True):
        text = text.replace(remote, shown[remote])
    return text


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
