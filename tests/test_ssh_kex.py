"""Key exchange: negotiation, methods and keys."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.conch.ssh.common import MP, NS, getNS
from twisted.trial.unittest import SynchronousTestCase

from rda.ssh import kex
from tests.ssh_case import proposal

COOKIE = bytes(16)


class NegotiationTests(SynchronousTestCase):
    def test_client_decides(self):
        """The first of the client's names that the server has too is taken."""
        ours = proposal(exchanges=(b"mlkem768x25519-sha256", b"curve25519-sha256", b"ext-info-c"))
        theirs = proposal(exchanges=(b"other", b"curve25519-sha256", b"mlkem768x25519-sha256"))
        self.assertEqual(kex.negotiate(ours, theirs).exchange, b"mlkem768x25519-sha256")

    def test_markers_are_no_methods(self):
        """A server that lists our own markers does not get them as a method (RFC 8308, section 2.2)."""
        ours = proposal(exchanges=(kex.EXT_INFO_CLIENT, kex.STRICT_CLIENT, b"curve25519-sha256"))
        theirs = proposal(exchanges=(kex.EXT_INFO_CLIENT, kex.STRICT_CLIENT))
        self.assertRaises(kex.Disagreement, kex.negotiate, ours, theirs)

    def test_directions(self):
        """Each direction has its own cipher, MAC and compression."""
        both = (b"aes128-ctr", b"aes256-ctr")
        ours = proposal(ciphers_out=both, ciphers_in=both)
        agreed = kex.negotiate(ours, proposal(ciphers_out=(b"aes256-ctr",)))
        self.assertEqual((agreed.cipher_out, agreed.cipher_in), (b"aes256-ctr", b"aes128-ctr"))

    def test_no_mac_needed(self):
        """A cipher with its own authentication does not need a common MAC."""
        modern = {"ciphers_out": (b"chacha20-poly1305@openssh.com",), "ciphers_in": (b"aes128-gcm@openssh.com",)}
        agreed = kex.negotiate(proposal(**modern), proposal(**modern, macs_out=(), macs_in=(b"umac-64@openssh.com",)))
        self.assertEqual((agreed.mac_out, agreed.mac_in), (b"", b""))

    def test_nothing_in_common(self):
        """What is missing, and what each side has, is said."""
        error = self.assertRaises(
            kex.Disagreement, kex.negotiate, proposal(), proposal(ciphers_out=(b"3des-cbc", b"arcfour"))
        )
        self.assertEqual(str(error), "no cipher in common: it offers 3des-cbc, arcfour; rda accepts aes128-ctr")

    def test_guess(self):
        """A guess is wrong when the first method or the first host key algorithm of the two sides differs."""
        ours = proposal(exchanges=(b"curve25519-sha256", b"ecdh-sha2-nistp256"))
        right = proposal(guess_follows=True)
        wrong = proposal(guess_follows=True, exchanges=(b"ecdh-sha2-nistp256", b"curve25519-sha256"))
        none = proposal(exchanges=(b"ecdh-sha2-nistp256",))
        guesses = [kex.negotiate(ours, theirs).guessed_wrong for theirs in (right, wrong, none)]
        self.assertEqual(guesses, [False, True, False])

    def test_round_trip(self):
        """A proposal is read as it was written."""
        for guess in (False, True):
            value = proposal(guess_follows=guess, macs_in=())
            self.assertEqual(kex.Proposal.parse(value.encode(COOKIE)), value)

    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, 400), st.binary(max_size=6), st.integers(0, 400))
    def test_noise(self, cut, noise, place):
        """A damaged proposal is one that cannot be understood, or another one: nothing else happens."""
        whole = proposal().encode(COOKIE)
        damaged = whole[: place % len(whole)] + noise + whole[place % len(whole) + len(noise) :]
        for data in (whole[: min(cut, len(whole) - 5)], damaged):
            try:
                kex.Proposal.parse(data)
            except kex.Malformed:
                pass

    def test_nothing_weak(self):
        """SHA-1, group 1 and group exchange are not offered."""
        weak = [name for name in kex.EXCHANGES if b"sha1" in name or b"group1-" in name or b"exchange-sha" in name]
        self.assertEqual(weak, [])


class MethodTests(SynchronousTestCase):
    def test_two_sides(self):
        """Two runs of a method that see each other's halves have the same secret, but for the two roles of ML-KEM."""
        for name, make in kex.EXCHANGES.items():
            if name.startswith(b"mlkem"):
                continue
            with self.subTest(name=name):
                here, there = make(), make()
                half, secret, rest = here.finish(there.public + b"rest")
                self.assertEqual((half, rest), (there.public, b"rest"))
                self.assertEqual(secret, there.finish(here.public)[1])

    def test_ml_kem(self):
        """The hybrid secret is the hash of both secrets, as a string and not as a number."""
        from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

        method = kex.EXCHANGES[b"mlkem768x25519-sha256"]()
        public, _ = getNS(method.public)
        kem_secret, ciphertext = mlkem.MLKEM768PublicKey.from_public_bytes(public[:1184]).encapsulate()
        private = x25519.X25519PrivateKey.generate()
        curve_secret = private.exchange(x25519.X25519PublicKey.from_public_bytes(public[1184:]))
        reply = NS(ciphertext + private.public_key().public_bytes_raw())
        self.assertEqual(
            method.finish(reply + b"rest"), (reply, NS(hashlib.sha256(kem_secret + curve_secret).digest()), b"rest")
        )

    def test_bad_halves(self):
        """Halves that are none are refused: empty, cut short, too long, trivial, not on the curve."""
        for name, make in kex.EXCHANGES.items():
            halves = [b"", NS(b""), b"\0\0\0\x20" + bytes(5), NS(bytes(32)), NS(bytes(1120)), NS(b"\xff" * 600)]
            if not name.startswith(b"diffie"):
                halves += [NS(b"\4" + bytes(64)), NS(bytes(31)), NS(bytes(33))]
            for half in halves:
                with self.subTest(name=name, half=half[:8]):
                    self.assertRaises(kex.Malformed, make().finish, half)

    def test_trivial_group_elements(self):
        """0, 1, p - 1, p and negative numbers are refused: they would make the secret known."""
        for prime, name in (
            (kex._GROUP_14, b"diffie-hellman-group14-sha256"),
            (kex._GROUP_16, b"diffie-hellman-group16-sha512"),
        ):
            for value in (0, 1, prime - 1, prime):
                self.assertRaises(kex.Malformed, kex.EXCHANGES[name]().finish, MP(value))
            self.assertRaises(kex.Malformed, kex.EXCHANGES[name]().finish, NS(b"\xff" * 256))

    def test_groups(self):
        """The primes are those of RFC 3526: by their hash, and by what every one of them begins and ends with."""
        for prime, bits in ((kex._GROUP_14, 2048), (kex._GROUP_16, 4096)):
            self.assertEqual(prime.bit_length(), bits)
            text = f"{prime:X}"
            self.assertTrue(text.startswith("FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD1"))
            self.assertTrue(text.endswith("FFFFFFFFFFFFFFFF"))
            # A safe prime: (p - 1) / 2 is prime too. Fermat's test with two bases is enough against a typing error.
            for number in (prime, prime // 2):
                self.assertEqual([pow(base, number - 1, number) for base in (2, 3)], [1, 1])

    def test_keys(self):
        """Key material is as long as asked for, and longer material begins with the shorter one (RFC 4253, 7.2)."""
        material = kex.derive("sha256", b"secret", b"digest", b"session")
        self.assertEqual(material(b"C", 64)[:20], material(b"C", 20))
        first = hashlib.sha256(b"secretdigestCsession").digest()
        self.assertEqual(material(b"C", 64), first + hashlib.sha256(b"secretdigest" + first).digest())
