"""rda.ssh.keys: public keys, their lines and signatures."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rda.ssh import keys
from rda.ssh.keys import KeyUnreadable
from tests.ssh_keys import blob, certificate, private, public_line


class PublicKeyTests(SynchronousTestCase):
    def test_lines(self) -> None:
        """A .pub line gives its blob and comment; a wrong type or damaged base64 is refused."""
        self.assertEqual(keys.load_public_line(public_line(private()) + b" me@here\n"), (blob(private()), "me@here"))
        encoded = public_line(private()).split()[1]
        for line in (b"", b"ssh-ed25519", b"ssh-rsa " + encoded, b"ssh-ed25519 ???"):
            self.assertRaises(KeyUnreadable, keys.load_public_line, line)

    def test_fingerprint(self) -> None:
        """The fingerprint is what ssh-keygen -l prints; a certificate has its key's."""
        if shutil.which("ssh-keygen") is not None:
            path = Path(self.mktemp())
            path.write_bytes(public_line(private()))
            printed = subprocess.run(["ssh-keygen", "-lf", path], check=True, capture_output=True).stdout
            self.assertEqual(keys.fingerprint(blob(private())), printed.split()[1].decode())
        cert = certificate(private(), private("rsa"))
        self.assertEqual(keys.fingerprint(cert), keys.fingerprint(blob(private())))

    def test_rsa_bits(self) -> None:
        """An RSA key is measured, in a certificate too; other kinds and rubbish are not RSA keys."""
        rsa = private("rsa")
        for key in (blob(rsa), certificate(rsa, private())):
            self.assertEqual(keys.rsa_bits(key), rsa.key_size)
        for other in (blob(private()), b"", b"\0\0\0\7ssh-rsa", b"\0\0\0\7ssh-rsa" + b"\0\0\0\1\3" * 3):
            self.assertIn(keys.rsa_bits(other), (None, 2))

    def test_public_key_of_a_certificate(self) -> None:
        """The key to verify with is the one inside the certificate, for every type."""
        for kind in ("ed25519", "rsa", "ecdsa"):
            key = keys.public_key(certificate(private(kind), private("ed25519", 8)))
            self.assertEqual(key.blob(), blob(private(kind)))

    def test_unusable_public_keys(self) -> None:
        """A type that cannot be computed with is an error with its name."""
        strange = b"\0\0\0\x0bssh-unknown\0\0\0\x01x"
        self.assertIn("ssh-unknown", str(self.assertRaises(KeyUnreadable, keys.public_key, strange)))
        self.assertRaises(KeyUnreadable, keys.public_key, b"\0\0\0\x0bssh-ed25519")


class SignatureAlgorithmTests(SynchronousTestCase):
    def test_choice(self) -> None:
        """RSA signs with SHA-2 as the server says it likes; the others have one way each."""
        rsa, rsa_cert = blob(private("rsa")), certificate(private("rsa"), private())
        both, only_256 = frozenset((b"rsa-sha2-256", b"rsa-sha2-512")), frozenset((b"rsa-sha2-256",))
        cert = b"-cert-v01@openssh.com"
        table = [
            (rsa, both, (b"rsa-sha2-512", b"rsa-sha2-512")),
            (rsa, only_256, (b"rsa-sha2-256", b"rsa-sha2-256")),
            (rsa, None, (b"rsa-sha2-512", b"rsa-sha2-512")),
            (rsa, frozenset((b"ssh-rsa",)), (b"rsa-sha2-512", b"rsa-sha2-512")),
            (rsa_cert, only_256, (b"rsa-sha2-256" + cert, b"rsa-sha2-256")),
            (blob(private()), both, (b"ssh-ed25519", b"ssh-ed25519")),
            (certificate(private(), private("rsa")), both, (b"ssh-ed25519" + cert, b"ssh-ed25519")),
        ]
        for key, server, expected in table:
            self.assertEqual(keys.signature_algorithm(key, server), expected)

    def test_accepted(self) -> None:
        """Only what PubkeyAcceptedAlgorithms has is chosen; a key that it leaves out cannot be used."""
        rsa, only_256 = blob(private("rsa")), frozenset((b"rsa-sha2-256",))
        both = frozenset((b"rsa-sha2-256", b"rsa-sha2-512"))
        self.assertEqual(keys.signature_algorithm(rsa, both, only_256)[0], b"rsa-sha2-256")
        self.assertEqual(keys.signature_algorithm(rsa, None, only_256)[0], b"rsa-sha2-256")
        error = self.assertRaises(keys.KeyUnreadable, keys.signature_algorithm, blob(private()), both, only_256)
        self.assertIn("leaves out ssh-ed25519", str(error))

    def test_security_keys(self) -> None:
        """Security keys keep the odd spelling of their types."""
        name = b"sk-ssh-ed25519@openssh.com"
        cert = b"sk-ssh-ed25519-cert-v01@openssh.com"
        for kind, signature in ((name, name), (cert, name)):
            key = len(kind).to_bytes(4, "big") + kind
            self.assertEqual(keys.signature_algorithm(key, None), (kind, signature))
