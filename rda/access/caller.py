"""Who is calling, as a value: given by the connection or the request, read by policy, audit and ownership. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["UNPROVED", "Caller", "Proof"]


class Proof(Enum):
    """How it is known who calls; the value is what the audit and the log say."""

    SOCKET = "unix socket"  # SO_PEERCRED: the kernel noted it when the connection was made
    LOOPBACK = "loopback"  # the kernel's socket table: the uid that owns the other end of a TCP connection
    CERTIFICATE = "certificate"  # a TLS client certificate that our authority signed
    TOKEN = "token"  # noqa: S105 (a bearer token of the request)
    NONE = "none"  # nothing was asked for: the listener is configured so


@dataclass(frozen=True, slots=True)
class Caller:
    """The person (or program) behind one request.

    :ivar user: the name that policy, ownership and audit use. A local user's login name, or ``#1000`` for a uid without
        one; the certificate's or the token's user; "" when nobody knows.
    :ivar proof: how that is known.
    :ivar uid: the uid on this machine, for ``SOCKET`` and ``LOOPBACK``.
    :ivar pid: the process that connected, for ``SOCKET``: for the log only, as it may have ended since.
    :ivar own: it is the user that rda runs as (or root, who can become that): what rda may read, the caller may too.
    """

    user: str
    proof: Proof
    uid: int | None = None
    pid: int | None = None
    own: bool = False

    def __str__(self) -> str:
        """Return how people call it: ``alice (unix socket)``."""
        return f"{self.user or 'somebody'} ({self.proof.value})"


#: Who calls where callers are not asked who they are.
UNPROVED = Caller("", Proof.NONE)
