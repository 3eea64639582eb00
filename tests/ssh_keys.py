"""Keys, key files and certificates for tests, made by ``cryptography`` alone: nothing of what is tested here."""

from __future__ import annotations

import functools
from base64 import b64decode

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    SSHCertificateBuilder,
    SSHCertificateType,
)

NOW = 1_700_000_000


@functools.cache
def private(kind: str = "ed25519", number: int = 0):
    """A private key, the same one for the same arguments."""
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    if kind == "ecdsa":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def public_line(key) -> bytes:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def blob(key) -> bytes:
    return b64decode(public_line(key).split()[1])


def openssh_file(key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def certificate_line(
    key, authority, *, host=True, names=(b"host.example",), after=NOW - 60, before=NOW + 60, critical=None
):
    builder = (
        SSHCertificateBuilder()
        .public_key(key.public_key())
        .serial(7)
        .type(SSHCertificateType.HOST if host else SSHCertificateType.USER)
        .key_id(b"the id")
        .valid_after(after)
        .valid_before(before)
    )
    builder = builder.valid_principals(list(names)) if names else builder.valid_for_all_principals()
    if critical:
        builder = builder.add_critical_option(critical, b"x")
    return builder.sign(authority).public_bytes()


def certificate(key, authority, **options) -> bytes:
    return b64decode(certificate_line(key, authority, **options).split()[1])
