"""What the gate lets pass: which calls change something, what of a head may stay, how things are named for good. Pure.

Source: Go's net/http (``Request.ParseForm`` prefers the values of a form in the body), and moby's api/server/router.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rda.docker import owned, rewrite
from rda.docker.document import object_of
from rda.docker.routes import Call, Fields
from rda.docker.sources import Sorted
from rda.errors import BadRequest

__all__ = ["changes", "check_head", "named_by_id", "with_real_sources"]

#: Calls whose body is a form whatever the route says: the daemon would read the query from there.
_FORMS = (b"application/x-www-form-urlencoded", b"multipart/form-data")


#: Calls that change nothing, though they are no reads to HTTP.
_UNNOTED = ("container wait", "container resize", "exec resize")


def check_head(call: Call, fields: Fields) -> Fields:
    """Look at a request's header fields before anything is decided; return those that may stay.

    :raises BadRequest: its body is a form, whose values the daemon would prefer to those of the query.
    """
    kept = []
    for name, value in fields:
        lower = name.lower()
        if lower == b"content-type" and any(form in value.lower() for form in _FORMS):
            raise BadRequest("the body of the request is a form; send parameters in the query, and documents as JSON")
        if lower == b"upgrade" and not _may_upgrade(call, value):
            continue
        kept.append((name, value))
    return fields if len(kept) == len(fields) else tuple(kept)


def _may_upgrade(call: Call, value: bytes) -> bool:
    """Return whether a protocol is one that the endpoint is for: with another one, requests could go on unseen."""
    wanted = {"session": b"h2c", "grpc": b"h2c", "container attach websocket": b"websocket"}
    return wanted.get(call.route.name, b"tcp") == value.strip().lower()


def changes(call: Call) -> bool:
    """Return whether a call is one that an audit is kept of."""
    if call.method in (b"GET", b"HEAD"):
        return call.route.name == "container attach websocket"
    return call.route.name not in _UNNOTED


def with_real_sources(
    call: Call, document: dict[str, object], found: Sorted, reals: Mapping[str, str]
) -> dict[str, object]:
    """Name local bind sources by where they lead: what was judged is what is mirrored."""
    moved = [bind for bind, path in found.local if reals[bind.path] != bind.path]
    if not moved:
        return document
    if call.route.name == "volume create":
        options = object_of(document.get("DriverOpts"), "DriverOpts")
        return {**document, "DriverOpts": {**options, "device": reals[moved[0].path]}}
    return rewrite.with_sources(document, moved, reals)


def named_by_id(call: Call, document: dict[str, object], ids: Mapping[str, str]) -> tuple[Call, dict[str, object]]:
    """Name the other containers in a call by their full ids: those cannot come to mean something else."""
    name = call.route.name
    if not ids:
        return call, document
    if name == "container create":
        return call, owned.with_containers(document, ids)
    if name in ("network connect", "network disconnect"):
        reference = str(document.get("Container") or "")
        return call, {**document, "Container": ids.get(reference, reference)}
    return replace(call, query=tuple(_build_parameter(*pair, ids) for pair in call.query)), document


def _build_parameter(name: str, value: str, ids: Mapping[str, str]) -> tuple[str, str]:
    """Name the container whose network a build uses."""
    reference = value.removeprefix("container:")
    return (name, f"container:{ids[reference]}") if name == "networkmode" and reference in ids else (name, value)
