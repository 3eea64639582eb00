"""Key exchange: what is agreed on, and how the shared secret comes about (RFC 4253, sections 7 and 8). Pure.

:func:`negotiate` compares the two sides' lists. A :class:`KeyExchange` is one run of one method: it makes the client's
half, takes the server's, and gives the secret. :func:`exchange_hash` is what the server's host key signs, and
:func:`derive` cuts keys from the secret.

The methods, best first: ML-KEM-768 with X25519 (draft-ietf-sshm-mlkem-hybrid-kex: safe against somebody who records
today and has a quantum computer later), X25519 (RFC 8731), ECDH over the NIST curves (RFC 5656), and the fixed groups
16 and 14 with SHA-2 (RFC 8268). SHA-1 methods, group 1 and group exchange are not offered: every server that has them
has something better, or should not be logged in to.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from twisted.conch.ssh.common import MP, NS

from rda.ssh import ciphers

try:
    from cryptography.hazmat.primitives.asymmetric import mlkem
except ImportError:  # cryptography before 48, or built over a library without ML-KEM
    mlkem = None  # type: ignore[assignment]

__all__ = [
    "EXCHANGES",
    "Agreement",
    "Disagreement",
    "Exchanged",
    "KeyExchange",
    "Proposal",
    "derive",
    "exchange_hash",
    "negotiate",
    "supported_exchanges",
]

#: Markers among the method names: extension negotiation (RFC 8308) and strict key exchange (OpenSSH's PROTOCOL, 1.10).
EXT_INFO_CLIENT = b"ext-info-c"
STRICT_CLIENT = b"kex-strict-c-v00@openssh.com"
STRICT_SERVER = b"kex-strict-s-v00@openssh.com"

#: Length in bytes of the random cookie in front of a KEXINIT.
COOKIE_SIZE = 16

#: The most bytes of one name-list that are looked at: OpenSSH's are below 1 KiB.
MAX_NAME_LIST = 16 * 1024

#: Bits of a Diffie-Hellman exponent: twice the strength of the largest key derived (RFC 4419, section 6.2).
_DH_EXPONENT_BITS = 512

#: Smallest Diffie-Hellman public value that is not a trivial one; the largest is the prime less this.
_DH_MARGIN = 2


class Disagreement(Exception):
    """The two sides have nothing in common; the message says in what, and what each side has."""


class Malformed(Exception):
    """A key exchange message that cannot be understood, or a public value that is not one."""


@dataclass(frozen=True)
class Proposal:
    """The name-lists of a KEXINIT, in the order of RFC 4253, section 7.1."""

    exchanges: tuple[bytes, ...]
    host_keys: tuple[bytes, ...]
    ciphers_out: tuple[bytes, ...]
    ciphers_in: tuple[bytes, ...]
    macs_out: tuple[bytes, ...]
    macs_in: tuple[bytes, ...]
    compressions_out: tuple[bytes, ...]
    compressions_in: tuple[bytes, ...]
    guess_follows: bool = False

    def encode(self, cookie: bytes) -> bytes:
        """The message without its number; "out" is from client to server, which is the order on the wire too."""
        lists = (
            self.exchanges,
            self.host_keys,
            self.ciphers_out,
            self.ciphers_in,
            self.macs_out,
            self.macs_in,
            self.compressions_out,
            self.compressions_in,
            (),
            (),
        )
        names = b"".join(NS(b",".join(names)) for names in lists)
        return cookie + names + bytes((self.guess_follows,)) + bytes(4)

    @classmethod
    def parse(cls, message: bytes) -> Proposal:
        """Read what :meth:`encode` wrote.

        :raise Malformed: when it is cut short or absurd.
        """
        position = COOKIE_SIZE
        lists = []
        for _ in range(10):
            if position + 4 > len(message):
                raise Malformed("a KEXINIT that is cut short")
            (size,) = struct.unpack_from(">L", message, position)
            position += 4 + size
            if size > MAX_NAME_LIST or position > len(message):
                raise Malformed(f"a list of {size} bytes in KEXINIT")
            lists.append(tuple(message[position - size : position].split(b",")) if size else ())
        if position >= len(message):
            raise Malformed("a KEXINIT that is cut short")
        return cls(*lists[:8], guess_follows=bool(message[position]))  # type: ignore[misc,arg-type]


@dataclass(frozen=True)
class Agreement:
    """What both sides will use. ``mac_*`` is empty for a cipher that brings its own authentication.

    :ivar guessed_wrong: the server sent a first message for another method along; it has to be ignored.
    """

    exchange: bytes
    host_key: bytes
    cipher_out: bytes
    cipher_in: bytes
    mac_out: bytes
    mac_in: bytes
    compression_out: bytes
    compression_in: bytes
    guessed_wrong: bool


def _choose(what: str, ours: Sequence[bytes], theirs: Sequence[bytes]) -> bytes:
    """The first of the client's names that the server has too (RFC 4253, section 7.1)."""
    for name in ours:
        if name in theirs:
            return name
    raise Disagreement(f"no {what} in common: it offers {_names(theirs)}; rda accepts {_names(ours)}")


def _methods(names: Sequence[bytes]) -> list[bytes]:
    """The list of key exchange methods without the markers that are in it."""
    return [name for name in names if not name.startswith((b"ext-info-", b"kex-strict-"))]


def _names(names: Sequence[bytes]) -> str:
    return ", ".join(name.decode("ascii", "backslashreplace") for name in names) or "none"


def negotiate(ours: Proposal, theirs: Proposal) -> Agreement:
    """Agree on the algorithms, ours being the client's.

    :raise Disagreement: when there is a list without a common name.
    """
    exchange = _choose("key exchange method", _methods(ours.exchanges), _methods(theirs.exchanges))
    host_key = _choose("host key algorithm", ours.host_keys, theirs.host_keys)
    cipher_out = _choose("cipher", ours.ciphers_out, theirs.ciphers_out)
    cipher_in = _choose("cipher", ours.ciphers_in, theirs.ciphers_in)
    # OpenSSH's authenticated ciphers ignore the lists of MACs, which then need not have anything in common.
    mac_out = b"" if ciphers.brings_authentication(cipher_out) else _choose("MAC", ours.macs_out, theirs.macs_out)
    mac_in = b"" if ciphers.brings_authentication(cipher_in) else _choose("MAC", ours.macs_in, theirs.macs_in)
    right = theirs.exchanges[:1] == ours.exchanges[:1] and theirs.host_keys[:1] == ours.host_keys[:1]
    return Agreement(
        exchange,
        host_key,
        cipher_out,
        cipher_in,
        mac_out,
        mac_in,
        _choose("compression method", ours.compressions_out, theirs.compressions_out),
        _choose("compression method", ours.compressions_in, theirs.compressions_in),
        guessed_wrong=theirs.guess_follows and not right,
    )


class KeyExchange(Protocol):
    """One run of a method.

    :ivar hash_name: of :mod:`hashlib`, for the exchange hash and the keys.
    :ivar public: the client's half, encoded as it is sent and hashed.
    """

    hash_name: str
    public: bytes

    def finish(self, theirs: bytes) -> tuple[bytes, bytes, bytes]:
        """Take the server's half from the front of ``theirs``.

        :returns: that half as it is hashed, the shared secret as it is hashed, and the rest of ``theirs``.
        :raise Malformed: when it is not a public value of this method.
        """


def _take_string(data: bytes) -> tuple[bytes, bytes]:
    if len(data) < 4:
        raise Malformed("a string that is cut short")
    (size,) = struct.unpack_from(">L", data)
    if 4 + size > len(data):
        raise Malformed("a string that is cut short")
    return data[4 : 4 + size], data[4 + size :]


def _mpint(secret: bytes) -> bytes:
    return MP(int.from_bytes(secret, "big"))


class _X25519:
    """RFC 8731."""

    hash_name = "sha256"

    def __init__(self) -> None:
        self._private = x25519.X25519PrivateKey.generate()
        self.public = NS(self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def finish(self, theirs: bytes) -> tuple[bytes, bytes, bytes]:
        value, rest = _take_string(theirs)
        try:
            # Raises for the all-zero result too, which section 3 demands.
            secret = self._private.exchange(x25519.X25519PublicKey.from_public_bytes(value))
        except ValueError:
            raise Malformed("a Curve25519 public value that is not one") from None
        return NS(value), _mpint(secret), rest


class _MlKem768X25519:
    """draft-ietf-sshm-mlkem-hybrid-kex: two halves each, ML-KEM first; the secret is a hash of both secrets."""

    hash_name = "sha256"
    _CIPHERTEXT = 1088
    _POINT = 32

    def __init__(self) -> None:
        self._kem = mlkem.MLKEM768PrivateKey.generate()
        self._curve = x25519.X25519PrivateKey.generate()
        point = self._curve.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.public = NS(self._kem.public_key().public_bytes_raw() + point)

    def finish(self, theirs: bytes) -> tuple[bytes, bytes, bytes]:
        value, rest = _take_string(theirs)
        if len(value) != self._CIPHERTEXT + self._POINT:
            raise Malformed("an ML-KEM reply of a wrong length")
        try:
            kem_secret = self._kem.decapsulate(value[: self._CIPHERTEXT])
            point = x25519.X25519PublicKey.from_public_bytes(value[self._CIPHERTEXT :])
            curve_secret = self._curve.exchange(point)
        except ValueError:
            raise Malformed("an ML-KEM reply that is not one") from None
        # A string, not an integer: leading zeros count (section 2.4).
        return NS(value), NS(hashlib.sha256(kem_secret + curve_secret).digest()), rest


class _NistEcdh:
    """RFC 5656, section 4."""

    def __init__(self, curve: ec.EllipticCurve, hash_name: str) -> None:
        self.hash_name = hash_name
        self._curve = curve
        self._private = ec.generate_private_key(curve)
        self.public = NS(self._private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))

    def finish(self, theirs: bytes) -> tuple[bytes, bytes, bytes]:
        value, rest = _take_string(theirs)
        try:
            point = ec.EllipticCurvePublicKey.from_encoded_point(self._curve, value)
        except ValueError:
            raise Malformed("a point that is not on the curve") from None
        return NS(value), _mpint(self._private.exchange(ec.ECDH(), point)), rest


class _FixedGroup:
    """RFC 4253, section 8, with the groups and hashes of RFC 8268.

    The arithmetic is Python's, because cryptography is about to drop Diffie-Hellman over finite fields. The exponent is
    used for this one exchange only, so that its timing tells nobody anything of use.
    """

    _GENERATOR = 2

    def __init__(self, prime: int, hash_name: str) -> None:
        self.hash_name = hash_name
        self._prime = prime
        self._exponent = secrets.randbits(_DH_EXPONENT_BITS) | (1 << (_DH_EXPONENT_BITS - 1))
        self.public = MP(pow(self._GENERATOR, self._exponent, prime))

    def finish(self, theirs: bytes) -> tuple[bytes, bytes, bytes]:
        digits, rest = _take_string(theirs)
        value = int.from_bytes(digits, "big", signed=True)
        if not _DH_MARGIN <= value <= self._prime - _DH_MARGIN:
            raise Malformed("a Diffie-Hellman public value out of range")
        return MP(value), MP(pow(value, self._exponent, self._prime)), rest


#: RFC 3526, sections 3 and 5.
_GROUP_14 = int(
    "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404dd"
    "ef9519b3cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed"
    "ee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf0598da48361c55d39a69163fa8fd24cf5f"
    "83655d23dca3ad961c62f356208552bb9ed529077096966d670c354e4abc9804f1746c08ca18217c32905e462e36ce3b"
    "e39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf6955817183995497cea956ae515d2261898fa0510"
    "15728e5a8aacaa68ffffffffffffffff",
    16,
)
_GROUP_16 = int(
    "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404dd"
    "ef9519b3cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed"
    "ee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf0598da48361c55d39a69163fa8fd24cf5f"
    "83655d23dca3ad961c62f356208552bb9ed529077096966d670c354e4abc9804f1746c08ca18217c32905e462e36ce3b"
    "e39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf6955817183995497cea956ae515d2261898fa0510"
    "15728e5a8aaac42dad33170d04507a33a85521abdf1cba64ecfb850458dbef0a8aea71575d060c7db3970f85a6e1e4c7"
    "abf5ae8cdb0933d71e8c94e04a25619dcee3d2261ad2ee6bf12ffa06d98a0864d87602733ec86a64521f2b18177b200c"
    "bbe117577a615d6c770988c0bad946e208e24fa074e5ab3143db5bfce0fd108e4b82d120a92108011a723c12a787e6d7"
    "88719a10bdba5b2699c327186af4e23c1a946834b6150bda2583e9ca2ad44ce8dbbbc2db04de8ef92e8efc141fbecaa6"
    "287c59474e6bc05d99b2964fa090c3a2233ba186515be7ed1f612970cee2d7afb81bdd762170481cd0069127d5b05aa9"
    "93b4ea988d8fddc186ffb7dc90a6c08f4df435c934063199ffffffffffffffff",
    16,
)

#: How each method is made, best first.
EXCHANGES: dict[bytes, Callable[[], KeyExchange]] = {
    b"mlkem768x25519-sha256": _MlKem768X25519,
    b"curve25519-sha256": _X25519,
    b"curve25519-sha256@libssh.org": _X25519,
    b"ecdh-sha2-nistp256": lambda: _NistEcdh(ec.SECP256R1(), "sha256"),
    b"ecdh-sha2-nistp384": lambda: _NistEcdh(ec.SECP384R1(), "sha384"),
    b"ecdh-sha2-nistp521": lambda: _NistEcdh(ec.SECP521R1(), "sha512"),
    b"diffie-hellman-group16-sha512": lambda: _FixedGroup(_GROUP_16, "sha512"),
    b"diffie-hellman-group14-sha256": lambda: _FixedGroup(_GROUP_14, "sha256"),
}


def supported_exchanges() -> tuple[bytes, ...]:
    """The methods that this installation can compute, best first."""
    if mlkem is None:
        return tuple(name for name in EXCHANGES if not name.startswith(b"mlkem"))
    return tuple(EXCHANGES)


@dataclass
class Exchanged:
    """What the exchange hash is made of (RFC 4253, section 8): everything that both sides saw.

    All but the secret is as it was on the wire.
    """

    client_version: bytes
    server_version: bytes
    client_kexinit: bytes
    server_kexinit: bytes
    host_key: bytes
    client_public: bytes
    server_public: bytes
    secret: bytes = field(repr=False)


def exchange_hash(hash_name: str, exchanged: Exchanged) -> bytes:
    """The value that the server signs, and that names the session when it is the first."""
    parts = (
        NS(exchanged.client_version),
        NS(exchanged.server_version),
        NS(exchanged.client_kexinit),
        NS(exchanged.server_kexinit),
        NS(exchanged.host_key),
        exchanged.client_public,
        exchanged.server_public,
        exchanged.secret,
    )
    return hashlib.new(hash_name, b"".join(parts)).digest()


def derive(hash_name: str, secret: bytes, digest: bytes, session: bytes) -> Callable[[bytes, int], bytes]:
    """The function that gives key material for a letter and a size in bytes (RFC 4253, section 7.2)."""

    def material(letter: bytes, size: int) -> bytes:
        key = hashlib.new(hash_name, secret + digest + letter + session).digest()
        while len(key) < size:
            key += hashlib.new(hash_name, secret + digest + key).digest()
        return key[:size]

    return material
