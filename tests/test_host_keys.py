"""rda.ssh.host_keys: whether the other side is who it should be."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from twisted.trial.unittest import SynchronousTestCase

from rda.errors import HostKeyRefused
from rda.ssh.host_keys import HostKeys
from rda.ssh.keys import fingerprint
from rda.ssh.known_hosts import HostName, KnownHosts
from tests.login_case import KEY, OTHER, RSA
from tests.ssh_keys import NOW, blob, public_line

HOST = HostName("host.example", 2222)


class HostKeysTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def keys(self, text: bytes = b"", host: HostName = HOST, **options) -> HostKeys:
        if text:
            self.path.write_bytes(text)
        return HostKeys(host, [str(self.path)], lambda: NOW, **options)

    def refusal(self, keys: HostKeys, key=KEY) -> str:
        failure = self.failureResultOf(keys.verify(blob(key)), HostKeyRefused)
        self.assertTrue(failure.value.permanent)
        return str(failure.value)

    def test_known(self) -> None:
        """A key that known_hosts has is trusted, and the file is read anew each time."""
        keys = self.keys()
        self.refusal(keys)
        self.path.write_bytes(b"[host.example]:2222 " + public_line(KEY))
        self.assertIs(self.successResultOf(keys.verify(blob(KEY))), None)
        self.assertEqual(keys.algorithms[0], b"ssh-ed25519")

    def test_unknown(self) -> None:
        """An unknown key is refused with its fingerprint and the command that would add it."""
        message = self.refusal(self.keys())
        self.assertIn(fingerprint(blob(KEY)), message)
        self.assertIn(f"ssh-keyscan -H -p 2222 host.example >> {self.path}", message)
        self.assertIn(f"--host-key {fingerprint(blob(KEY))}", message)

    def test_unknown_behind_a_jump_host(self) -> None:
        """Where ssh-keyscan cannot reach, it is not recommended."""
        self.assertNotIn("ssh-keyscan", self.refusal(self.keys(scannable=False)))

    def test_changed(self) -> None:
        """A changed key is refused with the line that holds the old one, even when new ones are accepted."""
        for accept in (False, True):
            message = self.refusal(self.keys(b"[host.example]:2222 " + public_line(OTHER), accept_new=accept))
            self.assertIn("HAS CHANGED", message)
            self.assertIn(f"{self.path}:1 holds ssh-ed25519 {fingerprint(blob(OTHER))}", message)
            self.assertIn("ssh-keygen -R '[host.example]:2222'", message)
        self.assertNotIn(public_line(KEY), self.path.read_bytes())

    def test_another_type(self) -> None:
        """A key of another type than the known one is not accepted as new either."""
        keys = self.keys(b"[host.example]:2222 " + public_line(RSA), accept_new=True)
        self.assertIn("another type", self.refusal(keys))

    def test_revoked(self) -> None:
        """A revoked key is refused, whatever else would trust it: its line, a pin, acceptance of new keys."""
        revoked = b"@revoked * " + public_line(KEY) + b"\n"
        self.assertIn("revoked", self.refusal(self.keys(revoked + b"* " + public_line(KEY))))
        self.assertIn("revoked", self.refusal(self.keys(revoked, accept_new=True)))
        self.assertIn("revoked", self.refusal(self.keys(revoked, pins=[fingerprint(blob(KEY))])))

    def test_revoked_host_keys_file(self) -> None:
        """RevokedHostKeys lists revoked keys; a list that cannot be read revokes every key, as in ssh."""
        good = b"* " + public_line(KEY)
        listed = Path(self.mktemp())
        for content, expected in ((public_line(KEY), "revoked"), (b"SSHKRL\n\0...", "KRL"), (None, "cannot be read")):
            if content is None:
                listed.unlink()
            else:
                listed.write_bytes(content)
            self.assertIn(expected, self.refusal(self.keys(good, revoked_files=[str(listed)])))
        listed.write_bytes(public_line(OTHER))
        self.successResultOf(self.keys(good, revoked_files=[str(listed)]).verify(blob(KEY)))

    def test_weak(self) -> None:
        """An RSA key that is too short is refused, known and pinned though it is."""
        weak = rsa.generate_private_key(65537, 1024)
        line = b"[host.example]:2222 " + public_line(weak)
        for options in ({}, {"pins": [fingerprint(blob(weak))]}):
            self.assertIn("1024 bits", self.refusal(self.keys(line, **options), weak))
        strong = b"[host.example]:2222 " + public_line(RSA)
        self.successResultOf(self.keys(strong).verify(blob(RSA)))
        self.assertIn("below 4096", self.refusal(self.keys(strong, rsa_bits=4096), RSA))

    def test_allowed_algorithms(self) -> None:
        """HostKeyAlgorithms limits what is asked for; an authority that nobody knows does not empty the list."""
        self.assertEqual(self.keys(algorithms=[b"ssh-ed25519", b"x"]).algorithms, [b"ssh-ed25519"])
        self.assertEqual(self.keys(algorithms=[b"ssh-ed25519"], pins=["SHA256:x"]).algorithms, [b"ssh-ed25519"])
        certificates = [b"ssh-ed25519-cert-v01@openssh.com"]
        self.assertEqual(self.keys(algorithms=certificates).algorithms, certificates)

    def test_pins(self) -> None:
        """With pins only they count: neither known_hosts nor acceptance of new keys does."""
        pin = fingerprint(blob(KEY))
        self.successResultOf(self.keys(pins=[pin]).verify(blob(KEY)))
        self.successResultOf(self.keys(pins=[pin + "="]).verify(blob(KEY)))
        keys = self.keys(b"[host.example]:2222 " + public_line(OTHER), pins=[pin], accept_new=True)
        self.assertIn(pin, self.refusal(keys, OTHER))
        self.successResultOf(keys.verify(blob(KEY)))

    def test_accept_new(self) -> None:
        """A new host's key is remembered, hashed, on a line of its own, and is the only one from then on."""
        self.path.write_bytes(b"# no newline at the end")
        keys = self.keys(accept_new=True)
        self.successResultOf(keys.verify(blob(KEY)))
        self.assertNotIn(b"host.example", self.path.read_bytes())
        self.assertEqual(len(KnownHosts([("kh", self.path.read_bytes())]).entries), 1)
        self.successResultOf(self.keys().verify(blob(KEY)))
        self.assertIn("HAS CHANGED", self.refusal(keys, OTHER))

    def test_accept_new_makes_the_file(self) -> None:
        """The directory and the file are made where they are missing."""
        self.path = Path(self.mktemp()) / "ssh" / "known_hosts"
        self.successResultOf(self.keys(accept_new=True).verify(blob(KEY)))
        self.assertEqual(self.path.parent.stat().st_mode & 0o777, 0o700)

    def test_accept_new_that_cannot_be_remembered(self) -> None:
        """A key that cannot be remembered is not trusted: it would be a new one every time."""
        self.path.mkdir()
        self.assertIn("cannot be remembered", self.refusal(self.keys(accept_new=True)))

    def test_alias(self) -> None:
        """HostKeyAlias is looked up without a port."""
        keys = self.keys(b"alias " + public_line(KEY), HostName("alias", 2222, alias=True))
        self.successResultOf(keys.verify(blob(KEY)))
