"""What people tell rda to do: POSTs of JSON objects, answered when it is done.

Every answer is ``{"schema": 1, …}``; an error is Docker's ``{"message": "rda: …"}``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.web.iweb import IRequest

from rda.errors import BadRequest
from rda.pages.document import SCHEMA_VERSION
from rda.pages.resource import OwnResource
from rda.status import RemoteCopy

__all__ = ["ACTIONS", "Action", "Copies", "IControl"]

_Asked = dict[str, Any]


class IControl(Protocol):
    """What can be controlled: the mirrors of one context (:class:`rda.sync.mirrors.Mirrors`)."""

    def flush(self, path: str | None) -> Deferred[None]:
        """Fire when both sides are equal."""

    def pause(self, path: str | None) -> Deferred[None]:
        """Let nothing travel."""

    def resume(self, path: str | None) -> Deferred[None]:
        """Go on."""

    def confirm(self, path: str) -> None:
        """What holds a mirror back is meant."""

    def unused(self) -> Deferred[list[RemoteCopy]]:
        """Copies on the remote host that nobody uses."""

    def collect(self, copies: Iterable[RemoteCopy]) -> Deferred[Any]:
        """Remove such copies; fires with :class:`rda.sync.copies.Collected`."""


class UnsupportedType(BadRequest):
    """The body is not said to be JSON."""

    status = 415


def _path(asked: _Asked) -> str | None:
    path = asked.get("path")
    if path is None or (isinstance(path, str) and path.startswith("/") and "\0" not in path):
        return path
    raise BadRequest('"path" has to be an absolute path of this machine')


def _confirm(control: IControl, asked: _Asked) -> Any:
    path = _path(asked)
    if path is None:
        raise BadRequest('"path" is missing: say which mirror is meant')
    return control.confirm(path)


def _collect(control: IControl, asked: _Asked) -> Any:
    names = asked.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadRequest('"names" has to be the list of the copies to remove')

    async def collect() -> _Asked:
        # Looked for again: only what nobody uses now can be named.
        unused = {copy.name: copy for copy in await control.unused()}
        done = await control.collect([unused[name] for name in names if name in unused])
        return {"removed": list(done.removed), "kept": [asdict(problem) for problem in done.kept]}

    return Deferred.fromCoroutine(collect())


@dataclass(frozen=True)
class Deed:
    """One thing that can be done.

    :ivar key: the only one that the posted object may have.
    :ivar for_guests: see :class:`OwnResource`. Waiting harms nobody; the rest acts on what is another user's.
    """

    key: str
    do: Callable[[IControl, _Asked], Any]
    for_guests: bool = False


#: By name below ``/_rda/``.
ACTIONS: dict[str, Deed] = {
    "flush": Deed("path", lambda control, asked: control.flush(_path(asked)), for_guests=True),
    "pause": Deed("path", lambda control, asked: control.pause(_path(asked))),
    "resume": Deed("path", lambda control, asked: control.resume(_path(asked))),
    "confirm": Deed("path", _confirm),
    "collect": Deed("names", _collect),
}


class Action(OwnResource):
    """One of :data:`ACTIONS`."""

    def __init__(self, control: IControl, deed: Deed) -> None:
        super().__init__()
        self._control = control
        self._deed = deed
        self.for_guests = deed.for_guests

    def render_POST(self, request: IRequest) -> Any:
        """Do it; answer when it is done."""
        asked = _object(request)
        unknown = asked.keys() - {self._deed.key}
        if unknown:
            raise BadRequest(f"the only key there is here is {self._deed.key!r}, not {', '.join(sorted(unknown))!r}")
        done = maybeDeferred(self._deed.do, self._control, asked)
        return self.later(request, done.addCallback(lambda result: {"schema": SCHEMA_VERSION, **(result or {})}))


def _object(request: Any) -> _Asked:
    """The JSON object that was posted. Its type has to be said: no web page can say it without asking first."""
    kind = request.getHeader(b"content-type") or b""
    if kind.partition(b";")[0].strip().lower() != b"application/json":
        raise UnsupportedType("the request needs Content-Type: application/json")
    try:
        asked = json.loads(request.content.read())
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request's body is not JSON: {error}") from error
    if not isinstance(asked, dict):
        raise BadRequest("the request's body has to be a JSON object")
    return asked


class Copies(OwnResource):
    """``/_rda/unused``: the copies on the remote host that no container uses, largest first."""

    for_guests = False

    def __init__(self, control: IControl) -> None:
        super().__init__()
        self._control = control

    def render_GET(self, request: IRequest) -> Any:
        """Answer when they have been measured."""

        def found(copies: list[RemoteCopy]) -> _Asked:
            ordered = sorted(copies, key=lambda copy: (-copy.bytes, copy.name))
            return {"schema": SCHEMA_VERSION, "copies": [asdict(copy) for copy in ordered]}

        return self.later(request, self._control.unused().addCallback(found))
