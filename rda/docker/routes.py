"""What happens to each endpoint of the Engine API: one table. Everything that is not in it is relayed as it is.

A decision about a path is only worth something if the daemon sees the same path: :func:`match` brings a request's
target to the one normal form (or refuses it) before it looks into the table, and :func:`target` writes what is sent
on from that form. Where the daemon only redirects to the normal form, so does rda: :func:`moved_to`. The daemon
(gorilla/mux over Go's net/http) matches decoded paths, ``{name:.*}`` spans slashes, and methods are compared exactly.

Source: the Engine API reference, https://docs.docker.com/reference/api/engine/; RFC 3986 sections 2 and 5.2.4;
Go's net/url and path.Clean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from rda.access.caller import UNPROVED, Caller
from rda.errors import BadRequest

__all__ = [
    "RELAYED",
    "ROUTES",
    "TABLE",
    "Answer",
    "Call",
    "Fields",
    "Note",
    "Outgoing",
    "Query",
    "RequestBody",
    "Route",
    "Table",
    "match",
    "moved_to",
    "target",
]


class RequestBody(Enum):
    """What becomes of the request's body."""

    STREAM = auto()  # spliced to the daemon as it arrives
    DOCUMENT = auto()  # read whole (bounded), parsed strictly as one JSON object, and replaced


class Answer(Enum):
    """What becomes of the daemon's answer."""

    STREAM = auto()  # spliced to the client as it arrives
    HELD = auto()  # spliced, but its head waits until ICallRewriter.answered fires
    DOCUMENT = auto()  # read whole (bounded), parsed as JSON, and replaced by what answered() fires with
    DOCUMENTS = auto()  # a stream of JSON documents, each passed through ICallRewriter.streamed
    HIJACK = auto()  # may become a raw connection (101, or the old 200 without framing)


@dataclass(frozen=True)
class Route:
    """One line of the table.

    :ivar name: what the code calls it, e.g. ``container create``.
    :ivar method: the HTTP method.
    :ivar pattern: path without version; ``{ref}`` stands for one or more segments that name something.
    :ivar asks: whether ``ICallRewriter.outgoing`` is asked before anything is sent.
    """

    name: str
    method: bytes
    pattern: str
    body: RequestBody = RequestBody.STREAM
    answer: Answer = Answer.STREAM
    asks: bool = False


@dataclass
class Note:
    """What becomes known of a call while it is handled.

    :ivar allowed: whether it was sent to the daemon.
    :ivar rules: the rules that refused it.
    :ivar container: the full id of the container that it is about.
    """

    allowed: bool = False
    rules: tuple[str, ...] = ()
    container: str = ""


#: The header fields of a request: names and values, as they came.
Fields = Sequence[tuple[bytes, bytes]]

#: The parameters of a query: decoded names and values, in order.
Query = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Call:
    """One request, after its path has been brought to normal form.

    :ivar path: without version and query: decoded, one slash between segments, e.g. ``/containers/web/start``.
    :ivar version: ``1.45`` of ``/v1.45/…``, or None for an unversioned path.
    :ivar ref: the name or id in the path, or None.
    :ivar verbatim: the target as it came, where it may be sent on as it is: its path is normal already, and nothing
        was decided by its query. Else None.
    :ivar caller: who makes it.
    :ivar note: what is known of it for the audit; None where nobody keeps one.
    """

    route: Route
    method: bytes
    path: str
    version: str | None
    query: Query = ()
    ref: str | None = None
    verbatim: bytes | None = field(default=None, compare=False)
    caller: Caller = field(default=UNPROVED, compare=False)
    note: Note | None = field(default=None, compare=False)

    def first(self, name: str) -> str:
        """Return a parameter of the query as the daemon reads it: the first of those that have the name, or ""."""
        return next((value for key, value in self.query if key == name), "")


@dataclass(frozen=True)
class Outgoing:
    """What is sent to the daemon instead of the call as it came.

    :ivar query: replaces the call's query; None leaves it.
    :ivar path: replaces the call's path, without version; None leaves it.
    :ivar body: the new JSON document for routes with a document body; None where the route streams its body.
    :ivar memo: whatever the rewriter wants back in ``answered`` and ``aborted``; nobody else looks at it.
    """

    query: Query | None = None
    path: str | None = None
    body: dict[str, object] | None = None
    memo: object = field(default=None, compare=False)


#: The oldest API version that rda understands: before it, ``start`` took a HostConfig too (dockerd 26 ends here too).
MINIMUM_VERSION = (1, 24)

#: The route of everything that is not in the table.
RELAYED = Route("relayed", b"", "")

_STREAM, _DOCUMENT = RequestBody.STREAM, RequestBody.DOCUMENT

#: Order matters where two patterns match one path: the first does, as in the daemon's router.
ROUTES: tuple[Route, ...] = (
    # Containers. create is rewritten; start and restart wait for ports and mounts, and their errors name remote paths;
    # the others that end a container or move its ports are held until the forwards have followed.
    Route("container create", b"POST", "/containers/create", _DOCUMENT, Answer.DOCUMENT, asks=True),
    Route("container prune", b"POST", "/containers/prune", answer=Answer.HELD),
    Route("container list", b"GET", "/containers/json", answer=Answer.DOCUMENT, asks=True),
    Route("container inspect", b"GET", "/containers/{ref}/json", answer=Answer.DOCUMENT),
    Route("container start", b"POST", "/containers/{ref}/start", answer=Answer.DOCUMENT, asks=True),
    Route("container restart", b"POST", "/containers/{ref}/restart", answer=Answer.DOCUMENT, asks=True),
    Route("container stop", b"POST", "/containers/{ref}/stop", answer=Answer.HELD),
    Route("container kill", b"POST", "/containers/{ref}/kill", answer=Answer.HELD),
    Route("container rename", b"POST", "/containers/{ref}/rename", answer=Answer.HELD),
    Route("container attach", b"POST", "/containers/{ref}/attach", answer=Answer.HIJACK),
    Route("container attach websocket", b"GET", "/containers/{ref}/attach/ws", answer=Answer.HIJACK),
    # Everything below that looks into a mount asks, so that the mount is flushed first.
    Route("container archive", b"GET", "/containers/{ref}/archive", asks=True),
    Route("container archive", b"HEAD", "/containers/{ref}/archive", asks=True),
    Route("container archive", b"PUT", "/containers/{ref}/archive", asks=True),
    Route("container commit", b"POST", "/commit", asks=True),
    Route("exec create", b"POST", "/containers/{ref}/exec", asks=True),
    Route("exec start", b"POST", "/exec/{ref}/start", answer=Answer.HIJACK, asks=True),
    # remove asks: its container can only be resolved while it is there.
    Route("container remove", b"DELETE", "/containers/{ref}", answer=Answer.HELD, asks=True),
    # Lists and streams that show what create rewrote.
    Route("events", b"GET", "/events", answer=Answer.DOCUMENTS, asks=True),
    Route("system df", b"GET", "/system/df", answer=Answer.DOCUMENT),
    # Volumes: type=none,o=bind is a bind mount in disguise.
    Route("volume create", b"POST", "/volumes/create", _DOCUMENT, Answer.DOCUMENT, asks=True),
    Route("volume list", b"GET", "/volumes", answer=Answer.DOCUMENT),
    Route("volume inspect", b"GET", "/volumes/{ref}", answer=Answer.DOCUMENT),
    # Ephemeral ports move when a network is connected or disconnected.
    Route("network connect", b"POST", "/networks/{ref}/connect", answer=Answer.HELD),
    Route("network disconnect", b"POST", "/networks/{ref}/disconnect", answer=Answer.HELD),
    # Swarm services: their binds are refused.
    Route("service create", b"POST", "/services/create", _DOCUMENT, asks=True),
    Route("service update", b"POST", "/services/{ref}/update", _DOCUMENT, asks=True),
    # BuildKit.
    Route("session", b"POST", "/session", answer=Answer.HIJACK),
    Route("grpc", b"POST", "/grpc", answer=Answer.HIJACK),
    # What makes images may not set rda's labels, and what describes them does not show them.
    Route("build", b"POST", "/build", asks=True),
    Route("image create", b"POST", "/images/create", asks=True),
    Route("image list", b"GET", "/images/json", answer=Answer.DOCUMENT),
    Route("image inspect", b"GET", "/images/{ref}/json", answer=Answer.DOCUMENT),
)

#: What the first segment of a versioned path looks like to the daemon's router.
_VERSION = re.compile(r"v([0-9.]+)")

#: Bytes that may stand unencoded in the path of a target that we write: RFC 3986's pchar, and the slash.
_PATH_SAFE = "/:@!$&'()*+,;=~"

#: Paths that are read once: clients ask for the same ones again and again. Those up to so many bytes, so many of them.
REMEMBERED_PATH = 256
REMEMBERED_PATHS = 512

#: What a path that is not in its normal form has: two slashes, or a slash and a dot, encoded or not.
_MAY_MOVE = re.compile(rb"(?:/|%2[fF])(?:/|\.|%2[eEfF])")

_NOT_PRINTABLE = re.compile(rb"[^!-~]")
_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")

#: Control characters have no place in any name of the API, and some of them end a line for somebody.
_CONTROL = re.compile("[\x00-\x1f\x7f]")


def _compiled(route: Route) -> re.Pattern[str]:
    """Make the expression of a route's pattern; a reference spans slashes, greedily, as the daemon's does."""
    pieces = {"{ref}": "(?P<ref>.+)", "{any}": ".+"}
    parts = re.split(r"(\{(?:ref|any)\})", route.pattern)
    return re.compile("".join(pieces.get(part) or re.escape(part) for part in parts))


class Table:
    """Routes, ready to be looked up.

    :param routes: the first that matches counts.
    :param otherwise: the route of what none matches.
    """

    def __init__(self, routes: Iterable[Route], otherwise: Route) -> None:
        self._routes = tuple((route, _compiled(route)) for route in routes)
        self._otherwise = otherwise
        self._read_again = lru_cache(REMEMBERED_PATHS)(self._read)

    def read(self, method: bytes, raw: bytes) -> tuple[Route, str | None, str, str | None, bool]:
        """Read the path of a target.

        :returns: its route, the reference in it, the path in its normal form without version, the version, and whether
            its target may be sent on as it came.
        """
        return (self._read_again if len(raw) <= REMEMBERED_PATH else self._read)(method, raw)

    def _read(self, method: bytes, raw: bytes) -> tuple[Route, str | None, str, str | None, bool]:
        whole = _clean(_decoded(raw, "path"))
        version, path = _split_version(whole)
        route, ref = self._look_up(method, path)
        return route, ref, path, version, _may_be_verbatim(route) and _quoted(whole) == raw

    def _look_up(self, method: bytes, path: str) -> tuple[Route, str | None]:
        for route, expression in self._routes:
            if route.method == method and (found := expression.fullmatch(path)):
                return route, found.groupdict().get("ref")
        return self._otherwise, None


#: What :func:`match` looks into when nothing else is said.
TABLE = Table(ROUTES, RELAYED)


def match(method: bytes, target: bytes, caller: Caller = UNPROVED, table: Table = TABLE) -> Call:
    """Say what a request is.

    :param method: as it came; methods are case-sensitive.
    :param target: the request target as it came, in origin form (RFC 9112, section 3.2.1).
    :param caller: who makes it.
    :param table: which routes there are; another one where more than :data:`ROUTES` are told apart.
    :raises BadRequest: the target has no normal form, or its API version is not one.
    """
    if not target.startswith(b"/"):
        raise BadRequest("the request target has to be a path that begins with /")
    if _NOT_PRINTABLE.search(target):  # Twisted's parser lets 0x7f to 0xb0 pass
        raise BadRequest("the request target holds something that is not printable ASCII; encode it as %XX")
    raw_path, _, raw_query = target.partition(b"?")
    route, ref, path, version, normal = table.read(method, raw_path)
    query = _parse_query(raw_query) if raw_query else ()
    return Call(route, method, path, version, query, ref, target if normal else None, caller)


def moved_to(target: bytes) -> bytes | None:
    """Say where the daemon's router sends a request whose path has a ``.``, a ``..`` or an empty segment; else None.

    :param target: as it came, and as :func:`match` took it.
    """
    if not _MAY_MOVE.search(target):
        return None
    raw_path, mark, query = target.partition(b"?")
    path = _decoded(raw_path, "path")
    clean = _clean(path)
    return None if clean == path else _quoted(clean) + mark + query


def target(call: Call, outgoing: Outgoing | None = None) -> bytes:
    """Write the request target to send on: it means to the daemon exactly what :func:`match` read.

    :param outgoing: may replace the query and the path.
    """
    query = call.query if outgoing is None or outgoing.query is None else outgoing.query
    plain = call.path if outgoing is None or outgoing.path is None else outgoing.path
    if call.verbatim is not None and query == call.query and plain == call.path:
        return call.verbatim
    path = _quoted(plain if call.version is None else f"/v{call.version}{plain}")
    pairs = [f"{_quoted_value(name)}={_quoted_value(value)}" for name, value in query]
    return path + b"?" + "&".join(pairs).encode("ascii") if pairs else path


def _may_be_verbatim(route: Route) -> bool:
    """Return whether nobody decides anything by the query of this route's calls."""
    return not route.asks and route.body is RequestBody.STREAM and route.answer in (Answer.STREAM, Answer.HIJACK)


def _decoded(text: bytes, what: str) -> str:
    """Undo percent-encoding. Bytes that are not UTF-8 survive as surrogates, so that they can be written again."""
    if _PERCENT.search(text):
        raise BadRequest(f"the {what} of the request target holds a % that does not begin an encoded byte")
    return unquote_to_bytes(text).decode("utf-8", "surrogateescape")


def _clean(path: str) -> str:
    """Bring a decoded path to the form that the daemon's router redirects to: Go's path.Clean, keeping a last slash."""
    if _CONTROL.search(path):
        raise BadRequest("the path of the request target holds a control character")
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    last = "/" if segments and path.endswith("/") else ""
    return "/" + "/".join(segments) + last


def _split_version(path: str) -> tuple[str | None, str]:
    """Take the API version off a path, in its plain decimal form."""
    first, slash, rest = path[1:].partition("/")
    found = _VERSION.fullmatch(first)
    if not found or not slash:
        return None, path
    numbers = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", found[1])
    if not numbers:
        raise BadRequest(f"{found[1]} is not an API version")
    version = int(numbers[1]), int(numbers[2])
    if version < MINIMUM_VERSION:
        raise BadRequest(
            f"client version {version[0]}.{version[1]} is too old. Minimum supported API version is "
            f"{MINIMUM_VERSION[0]}.{MINIMUM_VERSION[1]}, please upgrade your client to a newer version"
        )
    return f"{version[0]}.{version[1]}", "/" + rest


def _parse_query(raw: bytes) -> Query:
    """Read a query as Go's url.ParseQuery does, and refuse what it would drop."""
    if b";" in raw:
        raise BadRequest("the query of the request target holds a semicolon; encode it as %3B")
    pairs = [piece.partition(b"=") for piece in raw.split(b"&") if piece]
    return tuple((_form_decoded(name), _form_decoded(value)) for name, _, value in pairs)


def _form_decoded(text: bytes) -> str:
    return _decoded(text.replace(b"+", b" "), "query")


def _quoted(path: str) -> bytes:
    return quote(path, safe=_PATH_SAFE, errors="surrogateescape").encode("ascii")


def _quoted_value(text: str) -> str:
    """Encode a query name or value: everything but RFC 3986's unreserved characters."""
    return quote(text, safe="", errors="surrogateescape")
