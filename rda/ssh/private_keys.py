"""SSH private keys as they are in files, in every format OpenSSH writes: pure functions.

PKCS#8 and the older PEM forms are read through ``cryptography``; ``openssh-key-v1`` (OpenSSH's PROTOCOL.key) with each
of its ciphers here.
"""

from __future__ import annotations

import binascii
import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bcrypt
from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from twisted.conch.ssh import keys as conch_keys

from rda.ssh.keys import KeyUnreadable, Reader, key_type, string

__all__ = ["KeyEncrypted", "load_private_key", "public_in_private_file"]

#: bcrypt rounds above this are refused: OpenSSH writes 16 or 24, ``-a 1000`` already takes half a minute, and a
#: planted file must not be able to stop the program for hours.
MAX_BCRYPT_ROUNDS = 10_000

_OPENSSH_MAGIC = b"openssh-key-v1\0"
_OPENSSH_PEM = re.compile(
    rb"-----BEGIN OPENSSH PRIVATE KEY-----\s*(.*?)\s*-----END OPENSSH PRIVATE KEY-----", re.DOTALL
)


class KeyEncrypted(Exception):
    """The private key needs a passphrase, or another one than was given."""


def load_private_key(data: bytes, passphrase: bytes | None = None) -> conch_keys.Key:
    """Read a private key file's content.

    :param passphrase: None to try without; ignored for a key that is not encrypted.
    :raises KeyEncrypted: a passphrase is needed, or this is the wrong one.
    :raises KeyUnreadable: not a private key of a kind that can be used.
    """
    if _OPENSSH_PEM.search(data):
        data = _decrypt_openssh(data, passphrase)
        return _through_cryptography(lambda: load_ssh_private_key(data, None))
    encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data or b"Proc-Type: 4,ENCRYPTED" in data
    if encrypted and not passphrase:
        raise KeyEncrypted("it needs a passphrase")
    try:
        return _through_cryptography(lambda: load_pem_private_key(data, passphrase if encrypted else None))
    except KeyUnreadable as error:
        if encrypted:
            # A wrong passphrase decrypts to rubbish, which fails in as many ways as there are parsers.
            raise KeyEncrypted("the passphrase is wrong") from error
        raise


def _through_cryptography(load: Callable[[], object]) -> conch_keys.Key:
    try:
        key = conch_keys.Key(load())
        kind = key.sshType()
    except (ValueError, TypeError, KeyError, UnsupportedAlgorithm, conch_keys.BadKeyError) as error:
        raise KeyUnreadable(f"it is not a private key that can be read here ({error})") from error
    if kind == b"ssh-dss":
        raise KeyUnreadable("it is a DSA key, which no current server accepts; make an ed25519 key with ssh-keygen")
    return key


@dataclass(frozen=True)
class _Sealed:
    """The outer form of an openssh-key-v1 file (PROTOCOL.key, section 1)."""

    cipher: bytes
    kdf: bytes
    kdf_options: bytes
    public: bytes
    private: bytes
    tag: bytes


def _open_container(data: bytes) -> _Sealed:
    match = _OPENSSH_PEM.search(data)
    if match is None:
        raise KeyUnreadable("it is not an OpenSSH private key")
    try:
        raw = b64decode(b"".join(match.group(1).split()), validate=True)
    except binascii.Error as error:
        raise KeyUnreadable(f"its base64 is damaged ({error})") from error
    if not raw.startswith(_OPENSSH_MAGIC):
        raise KeyUnreadable("it is not in the openssh-key-v1 format")
    reader = Reader(raw[len(_OPENSSH_MAGIC) :])
    cipher, kdf, options, count = reader.string(), reader.string(), reader.string(), reader.number(4)
    if count != 1:
        raise KeyUnreadable(f"it holds {count} keys instead of one")
    return _Sealed(cipher, kdf, options, reader.string(), reader.string(), reader.rest())


def public_in_private_file(data: bytes) -> bytes | None:
    """The public key blob that stands in the clear in an OpenSSH private key file, even an encrypted one.

    :returns: None for the other formats, and for damaged files.
    """
    try:
        public = _open_container(data).public
        key_type(public)
    except KeyUnreadable:
        return None
    return public


def _decrypt_openssh(data: bytes, passphrase: bytes | None) -> bytes:
    """Return the same key file without encryption."""
    sealed = _open_container(data)
    if sealed.cipher == b"none":
        return data
    if sealed.cipher not in _CIPHERS:
        raise KeyUnreadable(f"it is encrypted with {sealed.cipher!r}, which is not known here")
    if sealed.kdf != b"bcrypt":
        raise KeyUnreadable(f"its passphrase is stretched with {sealed.kdf!r}, which is not known here")
    if not passphrase:
        raise KeyEncrypted("it needs a passphrase")
    reader = Reader(sealed.kdf_options)
    salt, rounds = reader.string(), reader.number(4)
    if not salt or not 1 <= rounds <= MAX_BCRYPT_ROUNDS:
        raise KeyUnreadable(f"its bcrypt parameters are out of bounds ({rounds} rounds)")
    key_size, iv_size, decrypt = _CIPHERS[sealed.cipher]
    secret = bcrypt.kdf(passphrase, salt, key_size + iv_size, rounds, ignore_few_rounds=True)
    try:
        plain = decrypt(secret[:key_size], secret[key_size:], sealed.private, sealed.tag)
    except (InvalidTag, InvalidSignature) as error:
        raise KeyEncrypted("the passphrase is wrong") from error
    except ValueError as error:
        raise KeyUnreadable(f"its encrypted part is damaged ({error})") from error
    if plain[:4] != plain[4:8]:
        # The two check integers: PROTOCOL.key's way of telling a wrong passphrase.
        raise KeyEncrypted("the passphrase is wrong")
    head = _OPENSSH_MAGIC + string(b"none") + string(b"none") + string(b"") + (1).to_bytes(4, "big")
    opened = head + string(sealed.public) + string(plain)
    body = b64encode(opened)
    lines = b"\n".join(body[at : at + 70] for at in range(0, len(body), 70))
    return b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + lines + b"\n-----END OPENSSH PRIVATE KEY-----\n"


_Decrypt = Callable[[bytes, bytes, bytes, bytes], bytes]


def _finish(cipher: Cipher[Any], data: bytes) -> bytes:
    decryptor = cipher.decryptor()
    return bytes(decryptor.update(data) + decryptor.finalize())


def _ctr(key: bytes, iv: bytes, data: bytes, tag: bytes) -> bytes:
    return _finish(Cipher(algorithms.AES(key), modes.CTR(iv)), data)


def _cbc(key: bytes, iv: bytes, data: bytes, tag: bytes) -> bytes:
    return _finish(Cipher(algorithms.AES(key), modes.CBC(iv)), data)


def _triple_des(key: bytes, iv: bytes, data: bytes, tag: bytes) -> bytes:
    return _finish(Cipher(TripleDES(key), modes.CBC(iv)), data)


def _gcm(key: bytes, iv: bytes, data: bytes, tag: bytes) -> bytes:
    return _finish(Cipher(algorithms.AES(key), modes.GCM(iv, tag)), data)


def _chacha20_poly1305(key: bytes, iv: bytes, data: bytes, tag: bytes) -> bytes:
    """PROTOCOL.chacha20poly1305 with packet number 0 and no length: the second half of the key is not used."""
    main = key[:32]
    poly_key = _finish(Cipher(algorithms.ChaCha20(main, bytes(16)), None), bytes(32))
    if not hmac.compare_digest(Poly1305.generate_tag(poly_key, data), tag):
        raise InvalidTag
    return _finish(Cipher(algorithms.ChaCha20(main, b"\x01" + bytes(15)), None), data)


#: What ``ssh-keygen -Z`` can name: sizes of key and IV in bytes, and the decryption.
_CIPHERS: dict[bytes, tuple[int, int, _Decrypt]] = {
    b"aes128-ctr": (16, 16, _ctr),
    b"aes192-ctr": (24, 16, _ctr),
    b"aes256-ctr": (32, 16, _ctr),
    b"aes128-cbc": (16, 16, _cbc),
    b"aes192-cbc": (24, 16, _cbc),
    b"aes256-cbc": (32, 16, _cbc),
    b"rijndael-cbc@lysator.liu.se": (32, 16, _cbc),
    b"3des-cbc": (24, 8, _triple_des),
    b"aes128-gcm@openssh.com": (16, 12, _gcm),
    b"aes256-gcm@openssh.com": (32, 12, _gcm),
    b"chacha20-poly1305@openssh.com": (64, 0, _chacha20_poly1305),
}
