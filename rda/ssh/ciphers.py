"""How one packet is protected on the wire, for each cipher that rda offers. Pure.

Every SSH packet is a length (four bytes) and a body: ``padding length | payload | padding`` (RFC 4253, section 6). A
:class:`Sealer` turns bodies into wire bytes for one direction and an :class:`Opener` turns wire bytes into bodies. They
differ in what they do to the length, where the authentication tag is, and which counter they use:

=============================  ==================  =========================================================
cipher                         length on the wire  tag over
=============================  ==================  =========================================================
aes*-gcm@openssh.com           plain               length (as associated data) and body; own invocation counter
chacha20-poly1305@openssh.com  own key             encrypted length and encrypted body; the sequence number
aes*-ctr with an EtM MAC       plain               sequence number, length, encrypted body
aes*-ctr with a plain MAC      encrypted           sequence number, length, body (all in the clear)
=============================  ==================  =========================================================

The order of :data:`CIPHERS` is the order of preference. GCM comes first: the processor has instructions for it, and it
is the one whose counter an attacker cannot shift by removing packets from a server that has no strict key exchange
(CVE-2023-48795). CBC, RC4, 3DES, MD5 and SHA-1 are not there at all.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.poly1305 import Poly1305

__all__ = ["CIPHERS", "MACS", "BadTag", "Opener", "PlainOpener", "PlainSealer", "Sealer", "opener", "sealer"]

_UINT32 = struct.Struct(">L")
_UINT32_X2 = struct.Struct(">2L")
_NONCE = struct.Struct(">4sQ")

#: GCM's invocation counter (RFC 5647, section 7.1) wraps; a rekey comes long before.
_COUNTER_MASK = 0xFFFF_FFFF_FFFF_FFFF


class BadTag(Exception):
    """A packet is not what the peer sent: its authentication tag does not fit."""


class Sealer(Protocol):
    """Protects the packets of the outgoing direction.

    :ivar align: the unit, in bytes, that a packet is padded to.
    :ivar counted: how many of the four length bytes count towards that unit (0 or 4).
    :ivar tail: bytes of authentication tag after the body.
    """

    align: int
    counted: int
    tail: int

    def seal(self, sequence: int, body: bytes | memoryview, out: memoryview) -> None:
        """Write length, protected body and tag into ``out``, which is exactly as long as they are."""


class Opener(Protocol):
    """Undoes what the peer's :class:`Sealer` did.

    :ivar prefix: how many bytes have to be there before the length can be known.
    :ivar clear_length: a body's length is on the wire as it is, and a multiple of :attr:`align`.
    """

    align: int
    counted: int
    tail: int
    prefix: int
    clear_length: bool

    def length(self, sequence: int, data: memoryview) -> int:
        """Read the length of the body at the start of ``data``; called once for each packet."""

    def open(self, sequence: int, packet: memoryview, out: memoryview) -> None:
        """Check a whole packet (length, body, tag) and write its body into ``out``, exactly as long as the body.

        :raise BadTag: when the packet was tampered with.
        """


class PlainSealer:
    """No protection: only until the first keys are agreed on."""

    align = 8
    counted = 4
    tail = 0

    def seal(self, sequence: int, body: bytes | memoryview, out: memoryview) -> None:
        """See :class:`Sealer`."""
        out[:4] = _UINT32.pack(len(body))
        out[4:] = body


class PlainOpener:
    """The other side of :class:`PlainSealer`."""

    align = 8
    counted = 4
    tail = 0
    prefix = 4
    clear_length = False  # it counts itself

    def length(self, sequence: int, data: memoryview) -> int:
        """See :class:`Opener`."""
        return int.from_bytes(data[:4], "big")

    def open(self, sequence: int, packet: memoryview, out: memoryview) -> None:
        """See :class:`Opener`."""
        out[:] = packet[4:]


class _Gcm:
    """AES-GCM as in RFC 5647 with OpenSSH's names (PROTOCOL, section 1.6): one key, one counter per direction."""

    align = 16
    counted = 0
    tail = 16
    prefix = 4
    clear_length = True

    def __init__(self, key: bytes, iv: bytes, mac_key: bytes) -> None:
        cipher = AESGCM(key)
        self._encrypt_into = cipher.encrypt_into
        self._decrypt_into = cipher.decrypt_into
        self._fixed = iv[:4]
        self._counter = int.from_bytes(iv[4:12], "big")

    def seal(self, sequence: int, body: bytes | memoryview, out: memoryview) -> None:
        counter = self._counter
        self._counter = (counter + 1) & _COUNTER_MASK
        out[:4] = length = _UINT32.pack(len(body))
        # The _into forms are five times as fast as the ones that return bytes: 5 us against 25 for 32 KiB.
        self._encrypt_into(_NONCE.pack(self._fixed, counter), body, length, out[4:])

    def length(self, sequence: int, data: memoryview) -> int:
        return int.from_bytes(data[:4], "big")

    def open(self, sequence: int, packet: memoryview, out: memoryview) -> None:
        counter = self._counter
        self._counter = (counter + 1) & _COUNTER_MASK
        try:
            self._decrypt_into(_NONCE.pack(self._fixed, counter), packet[4:], packet[:4], out)
        except InvalidTag:
            raise BadTag from None


class _ChaCha20Poly1305:
    """OpenSSH's construction (PROTOCOL.chacha20poly1305): one key for the length, one for everything else.

    The nonce is the sequence number. Block 0 of the main stream makes the Poly1305 key, the body starts at block 1.
    """

    align = 8
    counted = 0
    tail = 16
    prefix = 4
    clear_length = False

    def __init__(self, key: bytes, iv: bytes, mac_key: bytes) -> None:
        self._main = Cipher(algorithms.ChaCha20(key[:32], bytes(16)), None).encryptor()
        self._lengths = Cipher(algorithms.ChaCha20(key[32:64], bytes(16)), None).encryptor()

    def _tag_key(self, nonce: bytes) -> bytes:
        self._main.reset_nonce(nonce)
        return self._main.update(bytes(64))[:32]

    def _crypt_length(self, nonce: bytes, data: bytes | memoryview) -> bytes:
        self._lengths.reset_nonce(nonce)
        return self._lengths.update(data)

    def seal(self, sequence: int, body: bytes | memoryview, out: memoryview) -> None:
        nonce = bytes(12) + _UINT32.pack(sequence)
        size = len(body) + 4
        tag_key = self._tag_key(nonce)
        out[:4] = self._crypt_length(nonce, _UINT32.pack(len(body)))
        self._main.update_into(body, out[4:size])
        out[size:] = Poly1305.generate_tag(tag_key, out[:size])

    def length(self, sequence: int, data: memoryview) -> int:
        nonce = bytes(12) + _UINT32.pack(sequence)
        return int.from_bytes(self._crypt_length(nonce, data[:4]), "big")

    def open(self, sequence: int, packet: memoryview, out: memoryview) -> None:
        tag_key = self._tag_key(bytes(12) + _UINT32.pack(sequence))
        try:
            Poly1305.verify_tag(tag_key, packet[:-16], bytes(packet[-16:]))
        except InvalidSignature:
            raise BadTag from None
        self._main.update_into(packet[4:-16], out)


class _CtrEtm:
    """AES-CTR, then a MAC over what was encrypted (OpenSSH's PROTOCOL, section 1.5)."""

    align = 16
    counted = 0
    prefix = 4
    clear_length = True

    def __init__(self, key: bytes, iv: bytes, mac_key: bytes, digest: str) -> None:
        self._stream = Cipher(algorithms.AES(key), modes.CTR(iv[:16])).encryptor()
        self._mac = hmac.new(mac_key, digestmod=digest)
        self.tail = self._mac.digest_size

    def _tag(self, sequence: int, data: memoryview) -> bytes:
        # Copying a keyed context saves hashing the key's two blocks for each packet.
        mac = self._mac.copy()
        mac.update(_UINT32.pack(sequence))
        mac.update(data)
        return mac.digest()

    def seal(self, sequence: int, body: bytes | memoryview, out: memoryview) -> None:
        size = len(body) + 4
        out[:4] = _UINT32.pack(len(body))
        self._stream.update_into(body, out[4:size])
        out[size:] = self._tag(sequence, out[:size])

    def length(self, sequence: int, data: memoryview) -> int:
        return int.from_bytes(data[:4], "big")

    def open(self, sequence: int, packet: memoryview, out: memoryview) -> None:
        size = len(packet) - self.tail
        if not hmac.compare_digest(self._tag(sequence, packet[:size]), packet[size:]):
            raise BadTag
        self._stream.update_into(packet[4:size], out)


class _CtrPlainMac:
    """AES-CTR and a MAC over the clear packet (RFC 4253, section 6.4): for servers that know no better."""

    align = 16
    counted = 4
    prefix = 16
    clear_length = False

    def __init__(self, key: bytes, iv: bytes, mac_key: bytes, digest: str) -> None:
        self._stream = Cipher(algorithms.AES(key), modes.CTR(iv[:16])).encryptor()
        self._mac = hmac.new(mac_key, digestmod=digest)
        self.tail = self._mac.digest_size
        self._first = b""

    def _tag(self, sequence: int, body: bytes | memoryview) -> bytes:
        mac = self._mac.copy()
        mac.update(_UINT32_X2.pack(sequence, len(body)))
        mac.update(body)
        return mac.digest()

    def seal(self, sequence: int, body: bytes | memoryview, out: memoryview) -> None:
        size = len(body) + 4
        self._stream.update_into(_UINT32.pack(len(body)) + body, out[:size])
        out[size:] = self._tag(sequence, body)

    def length(self, sequence: int, data: memoryview) -> int:
        # The length is inside the first encrypted block, and a stream can be decrypted only once: keep the rest of it.
        self._first = self._stream.update(data[:16])
        return int.from_bytes(self._first[:4], "big")

    def open(self, sequence: int, packet: memoryview, out: memoryview) -> None:
        out[:12] = self._first[4:]
        if len(out) > 12:
            self._stream.update_into(packet[16 : len(packet) - self.tail], out[12:])
        if not hmac.compare_digest(self._tag(sequence, out), packet[-self.tail :]):
            raise BadTag


@dataclass(frozen=True)
class _CipherSpec:
    """:ivar key_size: bytes of key. :ivar make: the class, for those that bring their own authentication."""

    key_size: int
    make: Callable[[bytes, bytes, bytes], _Gcm | _ChaCha20Poly1305] | None = None


@dataclass(frozen=True)
class _MacSpec:
    """:ivar key_size: bytes of key, which is also the digest's size (RFC 6668). :ivar etm: encrypt, then MAC."""

    digest: str
    key_size: int
    etm: bool


#: The ciphers offered, best first.
CIPHERS: dict[bytes, _CipherSpec] = {
    b"aes128-gcm@openssh.com": _CipherSpec(16, _Gcm),
    b"aes256-gcm@openssh.com": _CipherSpec(32, _Gcm),
    b"chacha20-poly1305@openssh.com": _CipherSpec(64, _ChaCha20Poly1305),
    b"aes128-ctr": _CipherSpec(16),
    b"aes256-ctr": _CipherSpec(32),
    b"aes192-ctr": _CipherSpec(24),
}

#: The MACs offered with the CTR ciphers, best first: SHA-256 has processor instructions, SHA-512 usually has not.
MACS: dict[bytes, _MacSpec] = {
    b"hmac-sha2-256-etm@openssh.com": _MacSpec("sha256", 32, True),
    b"hmac-sha2-512-etm@openssh.com": _MacSpec("sha512", 64, True),
    b"hmac-sha2-256": _MacSpec("sha256", 32, False),
    b"hmac-sha2-512": _MacSpec("sha512", 64, False),
}


def brings_authentication(cipher: bytes) -> bool:
    """Whether a cipher authenticates by itself, so that no MAC is negotiated for it."""
    return CIPHERS[cipher].make is not None


def _make(
    cipher: bytes, mac: bytes, derive: Callable[[bytes, int], bytes], letters: bytes
) -> _Gcm | _ChaCha20Poly1305 | _CtrEtm | _CtrPlainMac:
    spec = CIPHERS[cipher]
    iv = derive(letters[0:1], 16)
    key = derive(letters[1:2], spec.key_size)
    if spec.make is not None:
        return spec.make(key, iv, b"")
    mac_spec = MACS[mac]
    mac_key = derive(letters[2:3], mac_spec.key_size)
    kind = _CtrEtm if mac_spec.etm else _CtrPlainMac
    return kind(key, iv, mac_key, mac_spec.digest)


def sealer(cipher: bytes, mac: bytes, derive: Callable[[bytes, int], bytes], letters: bytes = b"ACE") -> Sealer:
    """Make the outgoing direction's protection.

    :param cipher: a name from :data:`CIPHERS`.
    :param mac: a name from :data:`MACS`; not looked at for a cipher that brings its own authentication.
    :param derive: gives the key material for a letter and a size in bytes (RFC 4253, section 7.2).
    :param letters: which letters are IV, encryption key and integrity key: ``ACE`` from client to server.
    """
    return _make(cipher, mac, derive, letters)


def opener(cipher: bytes, mac: bytes, derive: Callable[[bytes, int], bytes], letters: bytes = b"BDF") -> Opener:
    """Make the incoming direction's protection; see :func:`sealer`. ``BDF`` is from server to client."""
    return _make(cipher, mac, derive, letters)
