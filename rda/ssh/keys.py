"""SSH public keys and certificates as they are on disk and on the wire: pure functions and values.

Certificates follow OpenSSH's PROTOCOL.certkeys; private keys are in :mod:`rda.ssh.private_keys`. Public keys are kept
as wire blobs (RFC 4253, section 6.6), so that a type this program cannot compute with (a security key, a certificate
of one) can still be offered, listed and compared.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from twisted.conch.ssh import keys as conch_keys

__all__ = [
    "CERTIFICATE_SUFFIX",
    "Certificate",
    "KeyUnreadable",
    "Reader",
    "fingerprint",
    "key_type",
    "load_public_line",
    "parse_certificate",
    "plain_blob",
    "public_key",
    "rsa_bits",
    "signature_algorithm",
    "string",
]

CERTIFICATE_SUFFIX = b"-cert-v01@openssh.com"

#: Principals, options and the like in one certificate; OpenSSH's SSHKEY_CERT_MAX_PRINCIPALS.
MAX_CERTIFICATE_ITEMS = 256

#: Strings of the public part of each key type, after the type's name (RFC 4253, 5656, 8709, PROTOCOL.u2f).
_PUBLIC_FIELDS = {
    b"ssh-rsa": 2,
    b"ssh-dss": 4,
    b"ssh-ed25519": 1,
    b"ecdsa-sha2-nistp256": 2,
    b"ecdsa-sha2-nistp384": 2,
    b"ecdsa-sha2-nistp521": 2,
    b"sk-ssh-ed25519@openssh.com": 2,
    b"sk-ecdsa-sha2-nistp256@openssh.com": 3,
}

#: Signature algorithms that are believed: OpenSSH's default CASignatureAlgorithms (no SHA-1, no DSA). The ``sk-``
#: ones are left out: nobody signs hosts by touching a button, and they need a verification of their own.
_TRUSTED_SIGNATURES = frozenset(
    (
        b"ssh-ed25519",
        b"ecdsa-sha2-nistp256",
        b"ecdsa-sha2-nistp384",
        b"ecdsa-sha2-nistp521",
        b"rsa-sha2-256",
        b"rsa-sha2-512",
    )
)


class KeyUnreadable(Exception):
    """The data is no key of a kind this program can use; the message says why, without the file's name."""


class Reader:
    """Reads the data types of RFC 4251, section 5; running over the end is a :class:`KeyUnreadable`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    @property
    def at_end(self) -> bool:
        """Whether all is read."""
        return self.position >= len(self._data)

    def take(self, size: int) -> bytes:
        """Read so many bytes."""
        end = self.position + size
        if end > len(self._data):
            raise KeyUnreadable("it is cut short")
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def number(self, size: int) -> int:
        """Read an unsigned number of so many bytes."""
        return int.from_bytes(self.take(size), "big")

    def string(self) -> bytes:
        """Read a string."""
        return self.take(self.number(4))

    def rest(self) -> bytes:
        """Read what is left."""
        return self.take(len(self._data) - self.position)


def string(data: bytes) -> bytes:
    """Return a string as it is on the wire (RFC 4251, section 5)."""
    return len(data).to_bytes(4, "big") + data


def key_type(blob: bytes) -> bytes:
    """The name in front of a public key blob, ``b"ssh-ed25519"`` or ``b"ssh-rsa-cert-v01@openssh.com"``.

    :raises KeyUnreadable: the blob does not begin with a sensible name.
    """
    name = Reader(blob).string()
    if not re.fullmatch(rb"[!-~]{1,64}", name):
        raise KeyUnreadable("it does not begin with the name of a key type")
    return name


def plain_blob(blob: bytes) -> bytes:
    """The public key without its certificate; a blob that is no certificate is returned as it is.

    :raises KeyUnreadable: a certificate that cannot be taken apart.
    """
    if key_type(blob).endswith(CERTIFICATE_SUFFIX):
        return parse_certificate(blob).plain
    return blob


def fingerprint(blob: bytes) -> str:
    """``SHA256:…`` as ``ssh-keygen -l`` prints it: for a certificate, that of the key it is about."""
    try:
        blob = plain_blob(blob)
    except KeyUnreadable:
        pass  # the fingerprint of what is there is still the best name for it
    return "SHA256:" + b64encode(hashlib.sha256(blob).digest()).rstrip(b"=").decode("ascii")


def rsa_bits(blob: bytes) -> int | None:
    """How long an RSA key, or the one in a certificate, is in bits; None for other kinds and for what is no key."""
    try:
        plain = plain_blob(blob)
        if key_type(plain) != b"ssh-rsa":
            return None
        return int(public_key(plain).size())
    except KeyUnreadable:
        return None


def public_key(blob: bytes) -> conch_keys.Key:
    """The key to verify signatures with, for a plain public key blob or a certificate.

    :raises KeyUnreadable: not a key, or a type that cannot be computed with.
    """
    plain = plain_blob(blob)
    try:
        key: conch_keys.Key = conch_keys.Key.fromString(plain, type="blob")
    except Exception as error:
        # Conch and cryptography raise half a dozen unrelated types (struct.error, IndexError, UnsupportedAlgorithm, …)
        # for what a peer may send: they all mean the same here.
        raise KeyUnreadable(f"a {key_type(plain).decode('ascii')} key that cannot be used ({error})") from error
    return key


def signature_algorithm(
    blob: bytes, server_algorithms: frozenset[bytes] | None, accepted: frozenset[bytes] | None = None
) -> tuple[bytes, bytes]:
    """Choose how to sign with a key: RSA keys can sign in several ways (RFC 8332, section 3.2).

    :param server_algorithms: what the server said in ``server-sig-algs`` (RFC 8308, section 3.1), None if nothing.
    :param accepted: public key algorithms that may be used, None for all (ssh_config's PubkeyAcceptedAlgorithms).
    :returns: the public key algorithm's name for the request and the name of the signature, e.g.
        ``(b"rsa-sha2-512-cert-v01@openssh.com", b"rsa-sha2-512")``. SHA-1 is never chosen.
    :raises KeyUnreadable: none may be used.
    """
    kind = key_type(blob)
    suffix = CERTIFICATE_SUFFIX if kind.endswith(CERTIFICATE_SUFFIX) else b""
    plain = kind.removesuffix(CERTIFICATE_SUFFIX) if suffix else kind
    if plain == b"ssh-rsa":
        choices = [(signature + suffix, signature) for signature in (b"rsa-sha2-512", b"rsa-sha2-256")]
    else:
        # The names of security keys' types end in @openssh.com, their certificates' names do not double it.
        choices = [(kind, _plain_of_certificate_type(kind) if suffix else kind)]
    allowed = [choice for choice in choices if accepted is None or choice[0] in accepted]
    if not allowed:
        raise KeyUnreadable(f"PubkeyAcceptedAlgorithms leaves out {choices[0][0].decode('ascii')}")
    taken = [choice for choice in allowed if server_algorithms is None or choice[1] in server_algorithms]
    return (taken or allowed)[0]


def _plain_of_certificate_type(kind: bytes) -> bytes:
    plain = kind.removesuffix(CERTIFICATE_SUFFIX)
    return plain + b"@openssh.com" if plain.startswith(b"sk-") else plain


def load_public_line(line: bytes) -> tuple[bytes, str]:
    """Read ``type base64 comment``, the content of a ``.pub`` or ``-cert.pub`` file.

    :returns: the blob and the comment.
    :raises KeyUnreadable: anything else.
    """
    fields = line.strip().split(None, 2)
    if len(fields) < 2:
        raise KeyUnreadable("it is not of the form 'type base64 comment'")
    try:
        blob = b64decode(fields[1], validate=True)
    except binascii.Error as error:
        raise KeyUnreadable(f"its base64 is damaged ({error})") from error
    if key_type(blob) != fields[0]:
        raise KeyUnreadable("the type in front and the type inside differ")
    return blob, fields[2].decode("utf-8", "replace") if len(fields) > 2 else ""


# --- certificates -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """An OpenSSH certificate, taken apart (PROTOCOL.certkeys).

    :ivar plain: the public key it is about.
    :ivar is_host: for a host; else for a user.
    :ivar valid_after: seconds since the epoch; :attr:`valid_before` likewise, exclusive.
    :ivar critical_options: their names; one that is not understood makes the certificate invalid.
    :ivar authority: the public key blob of the one who signed.
    """

    plain: bytes
    serial: int
    is_host: bool
    key_id: str
    principals: tuple[bytes, ...]
    valid_after: int
    valid_before: int
    critical_options: tuple[bytes, ...]
    authority: bytes
    signed: bytes
    signature: bytes

    def signature_is_good(self) -> bool:
        """Whether :attr:`authority` signed this, in a way that is still believed."""
        try:
            reader = Reader(self.signature)
            if reader.string() not in _TRUSTED_SIGNATURES:
                return False
            reader.string()
            if not reader.at_end:
                return False
            if key_type(self.authority).endswith(CERTIFICATE_SUFFIX):
                return False  # PROTOCOL.certkeys forbids chains
            return bool(public_key(self.authority).verify(self.signature, self.signed))
        except (KeyUnreadable, InvalidSignature):
            return False
        except Exception:
            # Conch takes signatures apart without checks, and raises whatever the damage provokes.
            return False


def parse_certificate(blob: bytes) -> Certificate:
    """Take a certificate blob apart; its signature is not verified yet.

    :raises KeyUnreadable: it is damaged or of an unknown type.
    """
    kind = key_type(blob)
    if not kind.endswith(CERTIFICATE_SUFFIX):
        raise KeyUnreadable("it is not a certificate")
    plain_kind = _plain_of_certificate_type(kind)
    if plain_kind not in _PUBLIC_FIELDS:
        raise KeyUnreadable(f"a certificate of the unknown type {kind.decode('ascii')}")
    reader = Reader(blob)
    reader.string()  # the type
    reader.string()  # the nonce
    public = [reader.string() for _ in range(_PUBLIC_FIELDS[plain_kind])]
    serial, role, key_id = reader.number(8), reader.number(4), reader.string()
    principals = _strings(reader.string())
    valid_after, valid_before = reader.number(8), reader.number(8)
    critical = _strings(reader.string())[::2]
    reader.string()  # extensions: what a server may allow, nothing a client decides by
    reader.string()  # reserved
    authority = reader.string()
    signed = blob[: reader.position]
    signature = reader.string()
    if role not in (1, 2):
        raise KeyUnreadable(f"a certificate of the unknown role {role}")
    if not reader.at_end:
        raise KeyUnreadable("something follows the certificate's signature")
    return Certificate(
        plain=string(plain_kind) + b"".join(map(string, public)),
        serial=serial,
        is_host=role == 2,
        key_id=key_id.decode("utf-8", "replace"),
        principals=principals,
        valid_after=valid_after,
        valid_before=valid_before,
        critical_options=critical,
        authority=authority,
        signed=signed,
        signature=signature,
    )


def _strings(packed: bytes) -> tuple[bytes, ...]:
    reader, found = Reader(packed), []
    while not reader.at_end:
        found.append(reader.string())
        if len(found) > MAX_CERTIFICATE_ITEMS:
            raise KeyUnreadable(f"a certificate with more than {MAX_CERTIFICATE_ITEMS} items")
    return tuple(found)
