"""TLS with client certificates: a directory with the files that Docker's tools use, and whose a certificate is.

``cert.pem`` and ``key.pem`` are ours; ``ca.pem`` signs the clients' certificates, as with ``dockerd --tlsverify``.

Source: https://docs.docker.com/engine/security/protect-access/; RFC 5280, sections 4.1.2.6 and 4.2.1.6.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.interfaces import IAddress, IOpenSSLContextFactory
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from rda.errors import RdaError

__all__ = ["CertificateProblem", "ServerTLS", "TLSFactory", "user_of"]

#: Longest name that a certificate may give its user, characters: as for tokens.
MAX_USER = 64


class CertificateProblem(RdaError):
    """The files of a TLS directory cannot be used."""


@implementer(IOpenSSLContextFactory)
class ServerTLS:
    """What the TLS listeners of a context present and ask for; the files can be read again while they are open.

    :param directory: with the files.
    :param need_certificate: refuse clients without a certificate in the handshake; else a request may still say by a
        token who makes it.
    :ivar names: what the certificate says we are called, in lower case.
    :raises CertificateProblem: the files cannot be used.
    """

    def __init__(self, directory: str, need_certificate: bool) -> None:
        self._directory = Path(directory)
        self._need_certificate = need_certificate
        self.read()

    def read(self) -> None:
        """Read the files, for connections from now on. A certificate that is no good leaves the one before in use."""
        try:
            self._context, self.names = self._make()
        except (OSError, ValueError, TypeError, SSL.Error) as e:  # TypeError: the key needs a password
            raise CertificateProblem(f"the TLS files in {self._directory} cannot be used: {_reason(e)}") from e

    def _make(self) -> tuple[SSL.Context, frozenset[str]]:
        certificate, key, authority = (self._directory / name for name in ("cert.pem", "key.pem", "ca.pem"))
        context = CertificateOptions(raiseMinimumTo=TLSVersion.TLSv1_2).getContext()
        context.use_certificate_chain_file(str(certificate))
        private: Any = load_pem_private_key(key.read_bytes(), password=None)
        context.use_privatekey(private)
        context.check_privatekey()
        if authority.exists() or self._need_certificate:
            context.load_verify_locations(str(authority))
            context.load_client_ca(os.fsencode(authority))
            context.set_verify(SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if self._need_certificate else 0))
        return context, _host_names(x509.load_pem_x509_certificate(certificate.read_bytes()))

    def getContext(self) -> SSL.Context:
        """See IOpenSSLContextFactory."""
        return self._context


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, SSL.Error):
        return "the key does not belong to the certificate, or a file is no PEM file"
    return str(error) or "a file is no PEM file"


def _host_names(certificate: x509.Certificate) -> frozenset[str]:
    """What a server certificate says the server is called, in lower case."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return frozenset()
    return frozenset(name.lower() for name in names.get_values_for_type(x509.DNSName))


class TLSFactory(TLSMemoryBIOFactory):
    """Serves another factory over TLS; a connection that it does not take is closed."""

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Make the two protocols of a connection."""
        inner = self.wrappedFactory.buildProtocol(addr)
        return None if inner is None else self.protocol(self, inner)


def user_of(transport: Any) -> str | None:
    """The user that the certificate of a TLS connection names; None when there is no certificate, or no name in it.

    The common name is taken or, where there is none, the first alternative name (an e-mail address, else a DNS name).
    OpenSSL has checked that our authority signed the certificate, and that it is made for clients.
    """
    certificate = transport.getPeerCertificate()
    if certificate is None:
        return None
    found = certificate.to_cryptography()
    names = [str(one.value) for one in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if not any(names):
        try:
            alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (x509.ExtensionNotFound, ValueError):
            return None
        for kind in (x509.RFC822Name, x509.DNSName):
            names += alternative.get_values_for_type(kind)
    fit = [name for name in names if name and len(name) <= MAX_USER and name.isprintable()]
    return fit[0] if fit else None
