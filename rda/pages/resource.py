"""What rda's own resources have in common: headers, errors as Docker's, answers that come later."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource

from rda.access.caller import UNPROVED, Proof
from rda.errors import RdaError, Refused
from rda.pages.document import serialise

__all__ = ["Nothing", "OwnResource", "is_guest"]


class NoSuchPage(RdaError):
    """There is nothing at a path."""

    status = 404

    def __init__(self) -> None:
        super().__init__("there is no such page")


def is_guest(request: Any) -> bool:
    """Whether a request is another user's than the one that rda runs as, who was let in (``allow_users``, a token)."""
    caller = getattr(request, "caller", UNPROVED)
    return caller.proof is not Proof.NONE and not caller.own


class OwnResource(Resource):
    """A resource below ``/_rda/``. Its answers are never kept in a cache, and never taken for another type.

    :cvar for_guests: whether others than the user that rda runs as get it.
    """

    isLeaf = True
    for_guests = True
    _log = Logger()

    def render(self, request: IRequest) -> Any:
        """Answer; errors that are written for the user as the daemon answers its own."""
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"x-content-type-options", b"nosniff")
        try:
            if request.postpath:  # a leaf is asked for what is below it as well
                raise NoSuchPage
            if is_guest(request) and not self.for_guests:
                raise Refused("this is for the user that rda runs as")
            return super().render(request)
        except RdaError as error:
            return self.error(request, error)

    def getChild(self, path: bytes, request: IRequest) -> Resource:
        """Answer for what is not there."""
        return Nothing()

    def document(self, request: IRequest, document: Any) -> bytes:
        """Write a JSON answer."""
        request.setHeader(b"content-type", b"application/json")
        return serialise(document) + b"\n"

    def error(self, request: IRequest, error: RdaError) -> bytes:
        """Write the answer that an error becomes."""
        request.setResponseCode(error.status)
        if error.retry_after is not None:
            request.setHeader(b"retry-after", b"%d" % error.retry_after)
        return self.document(request, {"message": f"rda: {error}"})

    def later(self, request: Any, result: Deferred[Any]) -> Any:
        """Answer with the document that ``result`` fires with; a client that leaves first misses it."""
        gone: list[Any] = []
        request.notifyFinish().addErrback(gone.append)

        def answer(outcome: Any) -> None:
            if gone:
                return
            if not isinstance(outcome, Failure):
                request.write(self.document(request, outcome))
            elif outcome.check(RdaError):
                request.write(self.error(request, outcome.value))  # type: ignore[arg-type]
            else:
                self._log.failure("defect while answering {path}", outcome, path=request.path)
                request.write(self.error(request, RdaError("internal error; rda's log has the details")))
            request.finish()

        result.addBoth(answer)
        return server.NOT_DONE_YET


class Nothing(OwnResource):
    """What is not there."""

    def render_GET(self, request: IRequest) -> bytes:
        """Say so."""
        raise NoSuchPage

    render_POST = render_GET
