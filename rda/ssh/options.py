"""How to run an SSH transport, and what came of it: the values around :class:`rda.ssh.transport.ClientTransport`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import Deferred

from rda.ssh import ciphers as protection
from rda.ssh import kex

__all__ = ["HANDSHAKE_SECONDS", "REKEY_BYTES", "REKEY_SECONDS", "Algorithms", "HostKeys", "Options"]

#: Bytes in one direction after which new keys are agreed on. RFC 4253 (section 9) recommends a gigabyte, which was
#: written for 64-bit blocks; RFC 4344 (section 3.2) allows 2**32 blocks of AES, 64 GiB. Between them, at one pause of a
#: round trip each.
REKEY_BYTES = 4 << 30

#: Seconds after which new keys are agreed on even if little was sent (RFC 4253, section 9: one hour).
REKEY_SECONDS = 3600.0

#: Seconds from the connection to the started connection service: OpenSSH's LoginGraceTime is 120.
HANDSHAKE_SECONDS = 60.0


class HostKeys(Protocol):
    """Who the server has to be."""

    @property
    def algorithms(self) -> Sequence[bytes]:
        """Host key algorithms to offer, best first; looked at once for each connection."""

    def verify(self, blob: bytes, fingerprint: str) -> Deferred[None]:
        """Fire when the key, which the server has proved to own, is to be trusted.

        :param blob: the public key or certificate as in RFC 4253, section 6.6.
        :param fingerprint: ``SHA256:…``.
        :raise HostKeyRefused: (the Deferred fails) when it is not.
        """


@dataclass(frozen=True)
class Options:
    """How to run the transport.

    :ivar compression: ask for ``zlib@openssh.com``, which begins after the login.
    :ivar rekey_bytes: bytes in one direction after which new keys are agreed on.
    :ivar rekey_seconds: seconds after which new keys are agreed on.
    :ivar handshake_seconds: from the connection until the connection service has started.
    :ivar ciphers: what to offer, best first; names of :data:`rda.ssh.ciphers.CIPHERS`.
    :ivar macs: what to offer, best first; names of :data:`rda.ssh.ciphers.MACS`.
    :ivar exchanges: what to offer, best first; names of :data:`rda.ssh.kex.EXCHANGES`.
    """

    compression: bool = False
    rekey_bytes: int = REKEY_BYTES
    rekey_seconds: float = REKEY_SECONDS
    handshake_seconds: float = HANDSHAKE_SECONDS
    ciphers: tuple[bytes, ...] = tuple(protection.CIPHERS)
    macs: tuple[bytes, ...] = tuple(protection.MACS)
    exchanges: tuple[bytes, ...] = kex.supported_exchanges()


@dataclass(frozen=True)
class Algorithms:
    """What was negotiated, for people. ``mac`` is empty for ciphers that bring their own authentication."""

    key_exchange: str
    host_key: str
    cipher: str
    mac: str
    compression: str
    strict: bool

    @classmethod
    def of(cls, agreed: kex.Agreement, strict: bool) -> Algorithms:
        """What an agreement comes to. The client-to-server direction stands for both."""
        return cls(
            key_exchange=agreed.exchange.decode("ascii"),
            host_key=agreed.host_key.decode("ascii"),
            cipher=agreed.cipher_out.decode("ascii"),
            mac=agreed.mac_out.decode("ascii"),
            compression=agreed.compression_out.decode("ascii"),
            strict=strict,
        )
