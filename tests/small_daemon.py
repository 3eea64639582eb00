"""A daemon in memory that makes, names, finds and removes things as dockerd does; the rest it only notes."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any
from urllib.parse import unquote

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

from tests.go_json import fold
from tests.memory_network import Network


def an_id(text: str) -> str:
    """Make an id: 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


@implementer(IStreamClientEndpoint)
class SiteEndpoint:
    """Leads to a twisted.web site in memory."""

    def __init__(self, network: Network, site: Site) -> None:
        self._network = network
        self._site = site

    def connect(self, factory: Any) -> Deferred[Any]:
        client, server = factory.buildProtocol(None), self._site.buildProtocol(None)
        self._network.connect(client, server)
        return succeed(client)


class SmallDaemon(Resource):
    """Answers as dockerd does.

    :ivar seen: every (method, path, query, body) that came, rda's own calls too.
    :ivar heads: the header fields of each of them.
    :ivar errors: method and path -> the message with which it refuses them.
    :ivar containers: id -> inspect document; likewise the others.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, dict[str, list[str]], bytes]] = []
        self.errors: dict[tuple[str, str], str] = {}
        self.heads: list[dict[str, list[str]]] = []
        self.containers: dict[str, dict[str, Any]] = {}
        self.execs: dict[str, dict[str, Any]] = {}
        self.volumes: dict[str, dict[str, Any]] = {}
        self.networks: dict[str, dict[str, Any]] = {}
        self.streams: list[Request] = []
        for name in ("bridge", "host", "none"):
            self.networks[an_id(name)] = {"Id": an_id(name), "Name": name, "Driver": name, "Labels": {}}

    # what tests ask

    def calls(self, method: str, path: str) -> list[tuple[dict[str, list[str]], bytes]]:
        """Queries and bodies of the calls of one path."""
        return [(query, body) for m, p, query, body in self.seen if (m, p) == (method, path)]

    def find(self, things: dict[str, dict[str, Any]], reference: str) -> dict[str, Any] | None:
        """Find by id, then by name, then by the beginning of an id."""
        if reference in things:
            return things[reference]
        named = [one for one in things.values() if str(one.get("Name", "")).lstrip("/") == reference.lstrip("/")]
        begins = [one for id_, one in things.items() if reference and id_.startswith(reference)]
        return (named or begins or [None])[0]

    # answers

    def render(self, request: Request) -> Any:
        path = re.sub(r"^/v[0-9.]+(?=/)", "", unquote(request.path.decode()))
        query = {name.decode(): [value.decode() for value in values] for name, values in request.args.items()}
        body = request.content.read()
        self.seen.append((request.method.decode(), path, query, body))
        fields = request.requestHeaders.getAllRawHeaders()
        self.heads.append({name.decode().lower(): [value.decode() for value in values] for name, values in fields})
        if path == "/events":
            request.setHeader(b"content-type", b"application/json")
            request.write(b"")
            self.streams.append(request)
            return NOT_DONE_YET
        status, value = self.answer(request.method.decode(), path, query, body)
        request.setResponseCode(status)
        request.setHeader(b"content-type", b"application/json")
        return b"" if status == 204 else json.dumps(value).encode() + b"\n"

    def event(self, document: dict[str, Any]) -> None:
        """Send one event on every open stream."""
        for stream in self.streams:
            stream.write(json.dumps(document).encode() + b"\n")

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        """Answer one call: (status, JSON value)."""
        if (method, path) in self.errors:
            return 409, {"message": self.errors[method, path]}
        if (method, path) == ("POST", "/containers/create"):
            return self._create(query, json.loads(body))
        if (method, path) == ("POST", "/volumes/create"):
            return 201, self._make_volume(json.loads(body))
        if (method, path) == ("POST", "/networks/create"):
            return self._make_network(json.loads(body))
        if path in ("/containers/json", "/volumes", "/networks", "/system/df"):
            return 200, self._list(path, json.loads((query.get("filters") or ["{}"])[0]))
        group, _, rest = path.lstrip("/").partition("/")
        if group == "images":
            return 200, {"Id": "sha256:1", "RepoTags": ["busybox:latest"], "Config": {"Labels": None}}
        things = {"containers": self.containers, "exec": self.execs, "volumes": self.volumes, "networks": self.networks}
        if group not in things or rest in ("prune",):
            return 200, {}
        return self._one(method, group, things[group], rest)

    def _one(self, method: str, group: str, things: dict[str, Any], rest: str) -> tuple[int, Any]:
        reference, _, what = rest.partition("/") if group in ("containers", "exec") else (*rest.partition("/"),)
        found = self.find(things, reference)
        if found is None:
            return 404, {"message": f"No such thing: {reference}"}
        if method == "DELETE" and not what:
            things.pop(found.get("Id") or found.get("Name"))
            return 204, None
        if (method, what) == ("POST", "exec"):
            id_ = an_id(f"exec{len(self.execs)}")
            self.execs[id_] = {"ID": id_, "Id": id_, "ContainerID": found["Id"]}
            return 201, {"Id": id_}
        return 200, found

    def _create(self, query: dict[str, list[str]], document: dict[str, Any]) -> tuple[int, Any]:
        name = (query.get("name") or [f"c{len(self.containers)}"])[0]
        taken = self.find(self.containers, name)
        if taken is not None and taken["Name"] == f"/{name}":
            return 409, {"message": f'Conflict. The name "/{name}" is already in use by container "{taken["Id"]}".'}
        id_ = an_id(f"container {name} {len(self.seen)}")
        folded = {fold(key): value for key, value in document.items()}
        host_config = folded.get("hostconfig") or {}
        names = [spec.partition(":")[0] for spec in host_config.get("Binds") or () if not spec.startswith("/")]
        names += [m["Source"] for m in host_config.get("Mounts") or () if m["Type"] == "volume" and m.get("Source")]
        for volume in names:
            self._make_volume({"Name": volume})
        self.containers[id_] = {
            "Id": id_,
            "Name": f"/{name}",
            "Image": "sha256:1",
            "State": {"Running": False},
            "Config": {"Labels": folded.get("labels") or {}},
            "HostConfig": host_config,
            "Mounts": [{"Type": "volume", "Name": volume} for volume in names],
            "NetworkSettings": {"Ports": {}},
        }
        return 201, {"Id": id_, "Warnings": []}

    def _make_volume(self, document: dict[str, Any]) -> dict[str, Any]:
        name = document.get("Name") or an_id(f"volume{len(self.volumes)}")
        labels = document.get("Labels")
        options = document.get("DriverOpts") or {}
        return self.volumes.setdefault(name, {"Name": name, "Labels": labels, "Driver": "local", "Options": options})

    def _make_network(self, document: dict[str, Any]) -> tuple[int, Any]:
        id_ = an_id(f"network {document['Name']} {len(self.seen)}")
        self.networks[id_] = {"Containers": {}, **document, "Id": id_}
        return 201, {"Id": id_, "Warning": ""}

    def _list(self, path: str, filters: dict[str, Any]) -> Any:
        containers = [
            {"Id": one["Id"], "Names": [one["Name"]], "Labels": one["Config"]["Labels"], "Mounts": one["Mounts"]}
            for one in self.containers.values()
            if _labelled(one["Config"]["Labels"], filters)
            and all(any(m["Name"] == volume for m in one["Mounts"]) for volume in filters.get("volume", ()))
        ]
        if path == "/containers/json":
            return containers
        volumes = [one for one in self.volumes.values() if _labelled(one["Labels"] or {}, filters)]
        if path == "/volumes":
            return {"Volumes": volumes, "Warnings": None}
        if path == "/system/df":
            return {"Containers": containers, "Volumes": volumes, "Images": [], "BuildCache": []}
        return [one for one in self.networks.values() if _labelled(one["Labels"] or {}, filters)]


def _labelled(labels: dict[str, str], filters: dict[str, Any]) -> bool:
    return all(
        name in labels and (not equals or labels[name] == value)
        for name, equals, value in (wanted.partition("=") for wanted in filters.get("label", ()))
    )
