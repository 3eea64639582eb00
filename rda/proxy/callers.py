"""Who is at the other end of a client's connection, asked once when it comes in and again for each request."""

from __future__ import annotations

from collections.abc import Sequence

from rda.callers import UNPROVED, Caller
from rda.errors import RdaError

__all__ = ["Fields", "Visitor"]

Fields = Sequence[tuple[bytes, bytes]]


class Visitor:
    """One connection's answer to the question who it is.

    :param found: who the connection itself proves it to be, or why that is nobody who may come in.
    :ivar hopeless: no request of this connection will be let in, whatever it says.
    """

    __slots__ = ("_found", "hopeless")

    def __init__(self, found: Caller | RdaError) -> None:
        self._found = found
        self.hopeless = isinstance(found, RdaError)

    def identify(self, fields: Fields) -> tuple[Caller, Fields]:
        """Say who makes a request, and which of its fields the daemon may see.

        :param fields: of the request's head.
        :raises RdaError: nobody who may.
        """
        if isinstance(self._found, RdaError):
            raise self._found
        return self._found, fields


def anybody(transport: object) -> Visitor:
    """Let in whoever reaches the listener."""
    return Visitor(UNPROVED)
