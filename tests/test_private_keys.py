"""rda.ssh.private_keys: private keys in every format OpenSSH writes."""

from __future__ import annotations

import shutil
import subprocess
from base64 import b64decode, b64encode
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rda.ssh.keys import KeyUnreadable
from rda.ssh.private_keys import KeyEncrypted, load_private_key, public_in_private_file
from tests.ssh_keys import blob, openssh_file, private, public_line

#: What ssh-keygen's -Z can name, for openssh-key-v1.
CIPHERS = (
    *(f"aes{bits}-{mode}" for bits in (128, 192, 256) for mode in ("ctr", "cbc")),
    "3des-cbc",
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
)


class PrivateKeyTests(SynchronousTestCase):
    def keygen(self, *arguments: str) -> tuple[bytes, bytes]:
        if shutil.which("ssh-keygen") is None:
            self.skipTest("ssh-keygen is not installed")
        path = Path(self.mktemp())
        subprocess.run(["ssh-keygen", "-q", "-f", path, *arguments], check=True, capture_output=True)
        return path.read_bytes(), b64decode(path.with_name(path.name + ".pub").read_bytes().split()[1])

    def test_plain_formats(self) -> None:
        """PEM, PKCS#8 and OpenSSH's own format load without a passphrase, and give the same key."""
        formats = (PrivateFormat.PKCS8, PrivateFormat.OpenSSH, PrivateFormat.TraditionalOpenSSL)
        for kind in ("rsa", "ecdsa", "ed25519"):
            for form in formats:
                if (kind, form) == ("ed25519", PrivateFormat.TraditionalOpenSSL):
                    continue  # there is no such format
                data = private(kind).private_bytes(Encoding.PEM, form, NoEncryption())
                self.assertEqual(load_private_key(data).blob(), blob(private(kind)), (kind, form))
                # A passphrase that is not needed does no harm.
                self.assertEqual(load_private_key(data, b"unneeded").blob(), blob(private(kind)))

    def test_encrypted_pem(self) -> None:
        """Encrypted PKCS#8 and PEM files need their passphrase, and say so."""
        for kind in ("rsa", "ecdsa"):
            for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
                data = private(kind).private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"secret"))
                self.assertRaises(KeyEncrypted, load_private_key, data)
                self.assertRaises(KeyEncrypted, load_private_key, data, b"wrong")
                self.assertEqual(load_private_key(data, b"secret").blob(), blob(private(kind)))

    def test_every_cipher_of_openssh(self) -> None:
        """An openssh-key-v1 file loads whichever cipher encrypts it, and shows its public key even locked."""
        for cipher in CIPHERS:
            data, public = self.keygen("-t", "ed25519", "-a", "1", "-Z", cipher, "-N", "secret")
            self.assertRaises(KeyEncrypted, load_private_key, data)
            self.assertRaises(KeyEncrypted, load_private_key, data, b"wrong")
            self.assertEqual(load_private_key(data, b"secret").blob(), public, cipher)
            self.assertEqual(public_in_private_file(data), public)

    def test_keygens_default_files(self) -> None:
        """What ssh-keygen writes for each type and -m loads."""
        for kind in ("ed25519", "ecdsa", "rsa"):
            for form in ("RFC4716", "PKCS8", "PEM"):
                if kind == "ed25519" and form != "RFC4716":
                    continue
                data, public = self.keygen("-t", kind, "-m", form, "-N", "")
                self.assertEqual(load_private_key(data).blob(), public, (kind, form))

    def test_rubbish(self) -> None:
        """What is no private key is refused with a reason."""
        good = openssh_file(private())
        inside = b64decode(b"".join(good.splitlines()[1:-1]))

        def wrapped(raw: bytes) -> bytes:
            begin, end = b"-----BEGIN OPENSSH PRIVATE KEY-----\n", b"\n-----END OPENSSH PRIVATE KEY-----\n"
            return begin + b64encode(raw) + end

        self.assertEqual(load_private_key(wrapped(inside)).blob(), blob(private()))
        for data in (
            b"",
            b"hello",
            public_line(private()),
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            wrapped(b"openssh-key-v2\0"),
            wrapped(inside[:60]),
            wrapped(inside.replace(b"none", b"gone", 1)),
            good.replace(b"b3Bl", b"!!!!", 1),
        ):
            self.assertRaises(KeyUnreadable, load_private_key, data)
            self.assertIs(public_in_private_file(b"rubbish"), None)

    def test_too_many_rounds(self) -> None:
        """A planted file cannot keep the program busy for hours."""
        data, _ = self.keygen("-t", "ed25519", "-a", "1", "-N", "secret")
        raw = b64decode(b"".join(data.splitlines()[1:-1]))
        at = raw.index(b"bcrypt") + 6 + 4 + 4 + 16
        raw = raw[:at] + b"\x7f\xff\xff\xff" + raw[at + 4 :]
        text = b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + b64encode(raw) + b"\n-----END OPENSSH PRIVATE KEY-----\n"
        error = self.assertRaises(KeyUnreadable, load_private_key, text, b"secret")
        self.assertIn("rounds", str(error))

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 398), st.integers(1, 255))
    def test_a_damaged_file_is_an_error_of_ours(self, position: int, change: int) -> None:
        """Whatever byte is damaged, the file loads or is refused in one of two ways."""
        data = bytearray(openssh_file(private()))
        data[position % len(data)] ^= change
        try:
            load_private_key(bytes(data))
        except (KeyUnreadable, KeyEncrypted):
            pass
