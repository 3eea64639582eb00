"""A certificate authority for tests, with the files as Docker's tools lay them out."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_BEGINS = datetime.datetime(2020, 1, 1)
_ENDS = _BEGINS + datetime.timedelta(days=36500)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else [])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Authority:
    """Signs certificates."""

    def __init__(self, name: str = "an authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._serial = 1
        self._name = _name(name)
        self.certificate = self._sign(
            self._name, self._key.public_key(), [(x509.BasicConstraints(ca=True, path_length=None), True)]
        )

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        extensions: Sequence[tuple[x509.ExtensionType, bool]],
        ends: datetime.datetime = _ENDS,
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder(self._name, subject, key, self._serial, _BEGINS, ends)
        self._serial += 1
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())

    def write(
        self,
        directory: Path,
        common_name: str = "",
        alternatives: Sequence[x509.GeneralName] = (),
        *,
        server: bool = False,
        expired: bool = False,
    ) -> Path:
        """Make a certificate and put ``ca.pem``, ``cert.pem`` and ``key.pem`` into a directory."""
        key = ec.generate_private_key(ec.SECP256R1())
        use = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        extensions: list[tuple[x509.ExtensionType, bool]] = [(x509.ExtendedKeyUsage([use]), False)]
        if alternatives:
            extensions.append((x509.SubjectAlternativeName(list(alternatives)), not common_name))
        ends = _BEGINS + datetime.timedelta(days=1) if expired else _ENDS
        certificate = self._sign(_name(common_name), key.public_key(), extensions, ends)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "ca.pem").write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / "key.pem").write_bytes(_pem(key))
        return directory
