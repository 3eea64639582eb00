"""rda's own pages under ``/_rda/``: what it is doing, for ``rda status`` and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from twisted.web.iweb import IRequest
from twisted.web.resource import Resource

from rda import __version__
from rda.status import ContextStatus

__all__ = ["SCHEMA_VERSION", "Pages"]

#: Raised when a field of the status document changes its meaning or goes away; new fields do not raise it.
SCHEMA_VERSION = 1


class Pages(Resource):
    """The tree below ``/_rda/``.

    :param status: gives the contexts' status at the time of the call.
    """

    def __init__(self, status: Callable[[], tuple[ContextStatus, ...]]) -> None:
        super().__init__()
        self.putChild(b"status", _Status(status))


class _Status(Resource):
    """``/_rda/status``: the whole status as JSON."""

    isLeaf = True

    def __init__(self, status: Callable[[], tuple[ContextStatus, ...]]) -> None:
        super().__init__()
        self._status = status

    def render_GET(self, request: IRequest) -> bytes:
        """Answer with the document that the documentation calls the status schema."""
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"cache-control", b"no-store")
        contexts = [asdict(context) for context in self._status()]
        document = {"schema": SCHEMA_VERSION, "version": __version__, "contexts": contexts}
        return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
