"""One key exchange of a client, from its proposal to the keys (RFC 4253, sections 7 and 8). Pure.

:class:`rda.ssh.transport.ClientTransport` makes a :class:`ClientExchange` for the first exchange and for every later
one, carries its messages, and decides whether the host key is to be trusted; what is calculated, is calculated here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum, auto

from twisted.conch.ssh.common import getNS

from rda.ssh import ciphers, kex
from rda.ssh.keys import CERTIFICATE_SUFFIX, key_type, public_key

__all__ = ["ClientExchange", "OutOfOrder", "Stage", "WrongSignature"]

_MSG_KEXINIT = 20

#: The key types that sign with an algorithm of another name (RFC 8332).
_RSA_SIGNATURES = frozenset((b"rsa-sha2-256", b"rsa-sha2-512"))


class WrongSignature(Exception):
    """The server did not prove that it owns the host key it shows."""


class OutOfOrder(Exception):
    """A message of the exchange that cannot come now."""


class Stage(Enum):
    """How far an exchange is."""

    PROPOSED = auto()  # our KEXINIT is on its way
    ANSWERED = auto()  # the server's has come, and our half of the secret is on its way
    PROVED = auto()  # the server has proved who it is; whether that is who it should be is being looked up
    KEYED = auto()  # our NEWKEYS is on its way


@dataclass
class ClientExchange:
    """One exchange.

    :param proposal: what we offer.
    :param our_version: our identification line, without its end.
    :param their_version: the server's.
    :ivar stage: how far it is.
    :ivar message: our KEXINIT, message number first.
    :ivar agreed: what both sides will use, from ANSWERED on.
    :ivar host_key: the server's key or certificate, from PROVED on.
    :ivar digest: the exchange hash, from PROVED on: the first one is the session's name.
    """

    proposal: kex.Proposal
    our_version: bytes
    their_version: bytes = b""
    stage: Stage = Stage.PROPOSED
    message: bytes = field(init=False)
    agreed: kex.Agreement = field(init=False)
    theirs: kex.Proposal = field(init=False)
    host_key: bytes = field(init=False, default=b"")
    digest: bytes = field(init=False, default=b"")
    _their_message: bytes = field(init=False, repr=False, default=b"")
    _method: kex.KeyExchange = field(init=False, repr=False)
    _ignore_next: bool = field(init=False, repr=False, default=False)
    _secret: bytes = field(init=False, repr=False, default=b"")

    def __post_init__(self) -> None:
        self.message = bytes((_MSG_KEXINIT,)) + self.proposal.encode(os.urandom(kex.COOKIE_SIZE))

    def receive_proposal(self, payload: bytes) -> bytes:
        """Take the server's KEXINIT.

        :returns: the payload of our first message of the agreed method (message 30).
        :raise kex.Disagreement: nothing in common.
        :raise kex.Malformed: not a KEXINIT.
        :raise OutOfOrder: it is the second one.
        """
        if self.stage is not Stage.PROPOSED:
            raise OutOfOrder("a second KEXINIT in one key exchange")
        self._their_message = bytes((_MSG_KEXINIT,)) + payload
        self.theirs = kex.Proposal.parse(payload)
        self.stage = Stage.ANSWERED
        self.agreed = kex.negotiate(self.proposal, self.theirs)
        self._ignore_next = self.agreed.guessed_wrong
        self._method = kex.EXCHANGES[self.agreed.exchange]()
        return self._method.public

    def receive_reply(self, payload: bytes) -> bool:
        """Take the server's half (message 31), and check that it owns the host key in it.

        :returns: False when it was a wrong guess, to be ignored.
        :raise WrongSignature: it does not, or the key is not of the agreed kind.
        :raise kex.Malformed: it cannot be understood.
        :raise OutOfOrder: nobody waits for it.
        """
        if self.stage is not Stage.ANSWERED:
            raise OutOfOrder("a key exchange reply that nobody waits for")
        if self._ignore_next:
            self._ignore_next = False
            return False
        blob, rest = getNS(payload)
        public, self._secret, rest = self._method.finish(rest)
        signature, _ = getNS(rest)
        exchanged = kex.Exchanged(
            self.our_version,
            self.their_version,
            self.message,
            self._their_message,
            blob,
            self._method.public,
            public,
            self._secret,
        )
        self.digest = kex.exchange_hash(self._method.hash_name, exchanged)
        _check_signature(blob, self.agreed.host_key, signature, self.digest)
        self.host_key = blob
        self.stage = Stage.PROVED
        return True

    def protections(self, session: bytes) -> tuple[ciphers.Sealer, ciphers.Opener]:
        """The new protection of both directions; our NEWKEYS is to be sent now.

        :param session: the digest of the connection's first exchange.
        """
        self.stage = Stage.KEYED
        derive = kex.derive(self._method.hash_name, self._secret, self.digest, session)
        agreed = self.agreed
        return (
            ciphers.sealer(agreed.cipher_out, agreed.mac_out, derive),
            ciphers.opener(agreed.cipher_in, agreed.mac_in, derive),
        )


def _check_signature(blob: bytes, algorithm: bytes, signature: bytes, digest: bytes) -> None:
    """See that key and signature are of the kind that was agreed on (and not, say, SHA-1), and fit together."""
    expected = algorithm.removesuffix(CERTIFICATE_SUFFIX)
    kind = b"ssh-rsa" if expected in _RSA_SIGNATURES else expected
    if algorithm.endswith(CERTIFICATE_SUFFIX):
        kind += CERTIFICATE_SUFFIX
    try:
        good = key_type(blob) == kind and getNS(signature)[0] == expected and public_key(blob).verify(signature, digest)
    except Exception:
        # The signature is the server's: Conch and cryptography fail in many ways on one that is none.
        good = False
    if not good:
        raise WrongSignature("the signature of its host key is wrong (is somebody between rda and the server?)")
