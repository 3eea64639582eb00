"""Half-closed TLS connections: ``docker run -i`` over TLS ends its input and still wants the output.

TLS ends each direction on its own (close_notify, RFC 8446 section 6.1), and Go's clients use that. Twisted answers a
close_notify by closing the connection. Here a small object stands before pyOpenSSL's connection and keeps that one
signal to itself. The private names of twisted.protocols.tls that this takes are pinned in test_twisted_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL.SSL import Error, WantReadError, ZeroReturnError
from twisted.protocols.tls import TLSMemoryBIOProtocol

__all__ = ["end_output", "is_tls", "notice_end"]


class _Ending:
    """A pyOpenSSL connection whose peer's end of data is told to somebody, instead of being an exception."""

    def __init__(self, connection: Any, transport: TLSMemoryBIOProtocol, ended: Callable[[], None]) -> None:
        self._connection = connection
        self._transport = transport
        self._ended: Callable[[], None] | None = ended

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def recv(self, size: int) -> bytes:
        """Read decrypted data; after its end there is none, for as long as this side still wants to write."""
        try:
            data: bytes = self._connection.recv(size)
        except ZeroReturnError:
            if self._transport.disconnecting:
                raise
            ended, self._ended = self._ended, None
            if ended is not None:
                ended()
            raise WantReadError from None
        return data


def is_tls(transport: Any) -> bool:
    """Return whether this is one of Twisted's TLS transports."""
    return isinstance(transport, TLSMemoryBIOProtocol)


def notice_end(transport: Any, ended: Callable[[], None]) -> None:
    """Have ``ended`` called when the peer ends its direction, instead of closing the connection.

    :param transport: a TLS transport, at its protocol's ``connectionMade``.
    """
    transport._tlsConnection = _Ending(transport._tlsConnection, transport, ended)


def end_output(transport: Any) -> None:
    """End our direction after everything written so far; when the peer has ended its own, close the connection."""
    if transport._appSendBuffer or transport._tlsConnection is None:  # still in its handshake, or gone
        transport.loseConnection()
        return
    transport.unregisterProducer()
    transport._aggregator.flush()
    try:
        both = transport._tlsConnection.shutdown()
    except Error:
        transport.loseConnection()
        return
    transport._flushSendBIO()
    if both:
        transport.loseConnection()
