"""Every endpoint of the Engine API, for those who have to judge, own or note calls: what it names, and what it claims.

:data:`rda.docker.routes.ROUTES` lists what rda changes for everybody; here is the whole API, so that under a policy,
an owner filter or an audit each call is looked at, and an endpoint that nobody has looked at is told from a known one.

Source: moby's ``api/server/router/*`` of API version 1.45.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from rda.docker import claims
from rda.docker.claims import Claim, Kind
from rda.docker.document import Schema, canonical, object_of, parse_any, text_list, text_of
from rda.docker.images import Image, registry_of
from rda.docker.routes import RELAYED, ROUTES, Answer, Call, RequestBody, Route, Table
from rda.docker.schemas import (
    CONTAINER_CREATE,
    EXEC_CREATE,
    HOST_CONFIG,
    LOGIN,
    NETWORK_CONNECT,
    NETWORK_CREATE,
    SERVICE,
    VOLUME_CREATE,
)
from rda.errors import BadRequest

__all__ = ["ENDPOINTS", "JUDGED", "UNKNOWN", "canonical_body", "claims_of"]

#: The route of what is no endpoint that rda knows.
UNKNOWN = replace(RELAYED, name="unknown", asks=True)


def _route(line: str) -> Route:
    """Read ``NAME | METHOD PATTERN | modes``; body and answer modes by their first letters."""
    name, method_pattern, modes = (part.strip() for part in line.split("|"))
    method, pattern = method_pattern.split()
    words = modes.split()
    return Route(
        name,
        method.encode(),
        pattern,
        RequestBody.DOCUMENT if "document" in words else RequestBody.STREAM,
        Answer.DOCUMENT if "shown" in words else Answer.HIJACK if "hijack" in words else Answer.STREAM,
        asks=True,
    )


#: Endpoints that need another treatment than ROUTES gives them, and all that it does not list. "document": the body is
#: read; "shown": the answer is. Order matters as in ROUTES.
_MORE = """
ping                  | GET /_ping |
ping                  | HEAD /_ping |
version               | GET /version |
info                  | GET /info |
login                 | POST /auth | document
container top         | GET /containers/{ref}/top |
container logs        | GET /containers/{ref}/logs |
container changes     | GET /containers/{ref}/changes |
container export      | GET /containers/{ref}/export |
container stats       | GET /containers/{ref}/stats |
container resize      | POST /containers/{ref}/resize |
container update      | POST /containers/{ref}/update | document
container rename      | POST /containers/{ref}/rename | shown
container pause       | POST /containers/{ref}/pause |
container unpause     | POST /containers/{ref}/unpause |
container wait        | POST /containers/{ref}/wait |
container copy        | POST /containers/{ref}/copy |
checkpoint list       | GET /containers/{ref}/checkpoints |
checkpoint create     | POST /containers/{ref}/checkpoints |
checkpoint remove     | DELETE /containers/{ref}/checkpoints/{any} |
exec create           | POST /containers/{ref}/exec | document
exec inspect          | GET /exec/{ref}/json |
exec resize           | POST /exec/{ref}/resize |
image list            | GET /images/json |
image create          | POST /images/create |
image load            | POST /images/load |
image prune           | POST /images/prune |
image search          | GET /images/search |
image save            | GET /images/get |
image inspect         | GET /images/{ref}/json |
image history         | GET /images/{ref}/history |
image save            | GET /images/{ref}/get |
image push            | POST /images/{ref}/push |
image tag             | POST /images/{ref}/tag |
image remove          | DELETE /images/{ref} | shown
distribution inspect  | GET /distribution/{ref}/json |
build prune           | POST /build/prune |
build cancel          | POST /build/cancel |
volume prune          | POST /volumes/prune |
volume update         | PUT /volumes/{ref} |
volume remove         | DELETE /volumes/{ref} |
network list          | GET /networks | shown
network list          | GET /networks/ | shown
network create        | POST /networks/create | document
network prune         | POST /networks/prune |
network connect       | POST /networks/{ref}/connect | document
network disconnect    | POST /networks/{ref}/disconnect | document
network inspect       | GET /networks/{ref} | shown
network remove        | DELETE /networks/{ref} |
plugin list           | GET /plugins |
plugin privileges     | GET /plugins/privileges |
plugin inspect        | GET /plugins/{ref}/json |
plugin pull           | POST /plugins/pull |
plugin create         | POST /plugins/create |
plugin enable         | POST /plugins/{ref}/enable |
plugin disable        | POST /plugins/{ref}/disable |
plugin upgrade        | POST /plugins/{ref}/upgrade |
plugin push           | POST /plugins/{ref}/push |
plugin set            | POST /plugins/{ref}/set |
plugin remove         | DELETE /plugins/{ref} |
swarm inspect         | GET /swarm |
swarm unlock key      | GET /swarm/unlockkey |
swarm init            | POST /swarm/init |
swarm join            | POST /swarm/join |
swarm leave           | POST /swarm/leave |
swarm update          | POST /swarm/update |
swarm unlock          | POST /swarm/unlock |
node list             | GET /nodes |
node inspect          | GET /nodes/{ref} |
node remove           | DELETE /nodes/{ref} |
node update           | POST /nodes/{ref}/update |
service list          | GET /services |
service logs          | GET /services/{ref}/logs |
service inspect       | GET /services/{ref} |
service remove        | DELETE /services/{ref} |
task list             | GET /tasks |
task logs             | GET /tasks/{ref}/logs |
task inspect          | GET /tasks/{ref} |
secret list           | GET /secrets |
secret create         | POST /secrets/create |
secret inspect        | GET /secrets/{ref} |
secret remove         | DELETE /secrets/{ref} |
secret update         | POST /secrets/{ref}/update |
config list           | GET /configs |
config create         | POST /configs/create |
config inspect        | GET /configs/{ref} |
config remove         | DELETE /configs/{ref} |
config update         | POST /configs/{ref}/update |
"""

_DESCRIBED = {(route.method, route.pattern): route for route in map(_route, _MORE.strip().splitlines())}
_LISTED = {(route.method, route.pattern): route for route in ROUTES}


def _merged(route: Route) -> Route:
    """Put what is said here of an endpoint together with what ROUTES says of it."""
    listed = _LISTED.get((route.method, route.pattern), route)
    body = route.body if listed.body is RequestBody.STREAM else listed.body
    answer = route.answer if Answer.DOCUMENT is route.answer or listed.answer is Answer.STREAM else listed.answer
    return replace(listed, body=body, answer=answer, asks=True)


#: The whole API. Every route asks. (checkpoint remove comes before container remove, whose reference spans slashes.)
ENDPOINTS: tuple[Route, ...] = (
    *map(_merged, _DESCRIBED.values()),
    *(replace(route, asks=True) for place, route in _LISTED.items() if place not in _DESCRIBED),
)

#: For :func:`rda.docker.routes.match`.
JUDGED = Table(ENDPOINTS, UNKNOWN)

_SCHEMAS: Mapping[str, Schema] = {
    "container create": CONTAINER_CREATE,
    "container update": HOST_CONFIG,
    "exec create": EXEC_CREATE,
    "login": LOGIN,
    "network create": NETWORK_CREATE,
    "network connect": NETWORK_CONNECT,
    "network disconnect": NETWORK_CONNECT,
    "service create": SERVICE,
    "service update": SERVICE,
    "volume create": VOLUME_CREATE,
}


def canonical_body(call: Call, body: Mapping[str, object]) -> dict[str, object]:
    """Return a call's document with its keys in their canonical spelling.

    :raises BadRequest: two keys are the same to the daemon.
    """
    schema = _SCHEMAS.get(call.route.name)
    return canonical(dict(body), schema) if schema is not None else dict(body)


def claims_of(call: Call, document: Mapping[str, object]) -> Iterator[Claim]:
    """Find what a call reaches for, in its query and in its canonical document.

    :raises BadRequest: it cannot be understood.
    """
    if (read := _DOCUMENTS.get(call.route.name)) is not None:
        yield from read(document)
    if (ask := _QUERIES.get(call.route.name)) is not None:
        yield from ask(call)
    yield from _whole_groups(call)


#: Reads are no better than changes: ``GET /swarm`` has the tokens with which a host becomes a manager.
_SWARM = ("swarm", "node", "secret", "config", "task", "service")


def _whole_groups(call: Call) -> Iterator[Claim]:
    """Claim what is allowed or not as a whole."""
    group, _, what = call.route.name.partition(" ")
    changes = call.method not in (b"GET", b"HEAD")
    if group == "plugin" and (changes or what == "privileges"):
        yield Claim(Kind.PLUGINS, "plugins", call.path)
    elif group in _SWARM or call.route.name == "volume update":
        yield Claim(Kind.SWARM, "swarm", call.path)
    elif group == "grpc":
        yield Claim(Kind.BUILDKIT, "BuildKit's own API", call.path)
    elif group == "checkpoint" or call.first("checkpoint") or call.first("checkpoint-dir"):
        yield Claim(Kind.CHECKPOINTS, "checkpoints", call.path)


def _image(name: str, tag: str = "") -> str:
    """Put a name and a tag or digest together, as the daemon does."""
    return f"{name}{'@' if ':' in tag else ':'}{tag}" if tag else name


def _pull(call: Call) -> Iterator[Claim]:
    if name := call.first("fromImage"):
        yield Claim(Kind.IMAGE, _image(name, call.first("tag")), "fromImage")
        yield Claim(Kind.REGISTRY, Image.parse(name).registry, "fromImage")
    if source := call.first("fromSrc"):
        yield Claim(Kind.MADE_IMAGE, "an imported image", "fromSrc")
        if source != "-":
            yield Claim(Kind.BUILD_REMOTE, _host(source), "fromSrc")
    if repository := call.first("repo"):
        yield Claim(Kind.IMAGE, _image(repository, call.first("tag")), "repo")


def _host(address: str) -> str:
    """The host of a URL or of git's short form, and nothing of what may be secret in it."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address.replace(':', '/', 1)}")
        return parts.hostname or "unknown"
    except ValueError:
        return "unknown"


def _build(call: Call) -> Iterator[Claim]:
    yield Claim(Kind.MADE_IMAGE, "a built image", "build")
    for name, value in call.query:
        if name == "t":
            yield Claim(Kind.IMAGE, value, "t")
        elif name == "remote" and value not in ("", "client-session"):
            yield Claim(Kind.BUILD_REMOTE, _host(value), "remote")
        elif name == "networkmode" and value.startswith("container:"):
            yield Claim(Kind.CONTAINER, value.partition(":")[2], name)
        elif name == "networkmode":
            yield from claims.network_claim(value, name)
        elif name == "cgroupparent" and value:
            yield Claim(Kind.CGROUP_PARENT, value, name)
        elif name == "cachefrom" and value:
            for image in text_list(_json(value, name), name):
                yield Claim(Kind.IMAGE, image, name)
                yield Claim(Kind.REGISTRY, Image.parse(image).registry, name)
        elif name == "securityopt" and value:
            for option in text_list(_json(value, name), name):
                yield Claim(Kind.SECURITY_OPT, option, name)
        elif name == "entitlements" and value:
            yield Claim(Kind.BUILDKIT, value, name)


def _json(value: str, name: str) -> object:
    try:
        return parse_any(value.encode("utf-8", "replace"))
    except BadRequest as error:
        raise BadRequest(f"the parameter {name} cannot be read: {error}") from None


def _commit(call: Call) -> Iterator[Claim]:
    yield Claim(Kind.MADE_IMAGE, "a committed image", "commit")
    if repository := call.first("repo"):
        yield Claim(Kind.IMAGE, _image(repository, call.first("tag")), "repo")


def _tag(call: Call) -> Iterator[Claim]:
    yield Claim(Kind.MADE_IMAGE, "a tag", "tag")
    yield Claim(Kind.IMAGE, _image(call.first("repo"), call.first("tag")), "repo")


def _push(call: Call) -> Iterator[Claim]:
    yield Claim(Kind.IMAGE, _image(call.ref or "", call.first("tag")), "push")
    yield Claim(Kind.REGISTRY, Image.parse(call.ref or "").registry, "push")


def _distribution(call: Call) -> Iterator[Claim]:
    yield Claim(Kind.REGISTRY, Image.parse(call.ref or "").registry, "distribution")


def _search(call: Call) -> Iterator[Claim]:
    term = call.first("term")
    yield Claim(Kind.REGISTRY, Image.parse(term).registry, "term")


def _of_network(call: Call) -> Iterator[Claim]:
    yield from claims.network_claim(call.ref or "", call.path)


#: What is in the query or the path.
_QUERIES: dict[str, Callable[[Call], Iterator[Claim]]] = {
    "build": _build,
    "container commit": _commit,
    "distribution inspect": _distribution,
    "image load": lambda call: iter((Claim(Kind.MADE_IMAGE, "a loaded image", "load"),)),
    "image create": _pull,
    "image push": _push,
    "image search": _search,
    "image tag": _tag,
    "network connect": _of_network,
    "network disconnect": _of_network,
}


def _connect(document: Mapping[str, object]) -> Iterator[Claim]:
    yield Claim(Kind.CONTAINER, text_of(document.get("Container"), "Container"), "Container")
    yield from claims.endpoint_claims(object_of(document.get("EndpointConfig"), "EndpointConfig"), "EndpointConfig.")


def _login(document: Mapping[str, object]) -> Iterator[Claim]:
    yield Claim(Kind.REGISTRY, registry_of(text_of(document.get("serveraddress"), "serveraddress")), "serveraddress")


#: What is in the document.
_DOCUMENTS: dict[str, Callable[[Mapping[str, object]], Iterator[Claim]]] = {
    "container create": claims.create_claims,
    "container update": lambda document: claims.host_config_claims(document, ""),
    "exec create": claims.exec_claims,
    "login": _login,
    "network connect": _connect,
    "network create": claims.network_claims,
    "network disconnect": _connect,
    "service create": claims.service_claims,
    "service update": claims.service_claims,
    "volume create": claims.volume_claims,
}
