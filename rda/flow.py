"""Flow control between two transports that are joined: while one's buffer is full, the other is not read."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

__all__ = ["Flow"]


@implementer(IPushProducer)
class Flow:
    """A transport's reading side as a producer that outlives its consumer.

    A transport that is registered directly has its connection closed when its consumer's is lost, which can throw
    away what its own peer has not read yet.
    """

    __slots__ = ("_transport",)

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def pauseProducing(self) -> None:
        """Stop reading."""
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again."""
        self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: whoever ends the consumer ends this connection too, in its own time."""
