"""Looking up host keys as sshd(8) describes."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from base64 import b64encode
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rda.ssh.keys import CERTIFICATE_SUFFIX
from rda.ssh.known_hosts import HOST_KEY_ALGORITHMS, HostName, KnownHosts, Trust, hashed_name, match_patterns
from tests.ssh_keys import NOW, blob, certificate, private, public_line

HOST = HostName("host.example")
KEY, OTHER = private(), private("ed25519", 1)
RSA = private("rsa")
AUTHORITY = private("ed25519", 2)


def line(patterns: bytes, key=KEY, marker: bytes = b"") -> bytes:
    return b" ".join(part for part in (marker, patterns, public_line(key), b"comment") if part) + b"\n"


def known(*lines: bytes) -> KnownHosts:
    return KnownHosts([("kh", b"".join(lines))])


class MatchingTests(SynchronousTestCase):
    def test_patterns(self) -> None:
        """A list matches when some pattern does and no negated one does."""
        table = [
            (b"host.example", b"host.example", True),
            (b"HOST.example", b"host.example", True),
            (b"host", b"host.example", False),
            (b"*.example", b"host.example", True),
            (b"*.example,!host.example", b"host.example", False),
            (b"!host.example,*.example", b"host.example", False),
            (b"!host.example", b"host.example", False),
            (b"!host.example", b"other.example", False),
            (b"h?st.example", b"host.example", True),
            (b"[host.example]:2222", b"[host.example]:2222", True),
            (b"[host.example]:2222", b"host.example", False),
            (b"[host.example]:*", b"[host.example]:2222", True),
            (b"10.0.0.?", b"10.0.0.1", True),
            (b"10.0.0.?", b"10.0.0.11", False),
            (b"a.b", b"axb", False),
            (b"", b"", False),
            (b",", b"x", False),
        ]
        for patterns, name, expected in table:
            self.assertEqual(match_patterns(patterns, name), expected, (patterns, name))

    @settings(max_examples=60, deadline=None)
    @given(st.text("ab*?", max_size=8), st.text("ab", max_size=8))
    def test_wildcards_mean_what_a_plain_matcher_says(self, pattern: str, name: str) -> None:
        """Wildcards agree with a matcher written in the plainest way."""

        def plain(pattern: str, name: str) -> bool:
            if not pattern:
                return not name
            if pattern[0] == "*":
                return plain(pattern[1:], name) or (bool(name) and plain(pattern, name[1:]))
            return bool(name) and pattern[0] in ("?", name[0]) and plain(pattern[1:], name[1:])

        expected = bool(pattern) and plain(pattern, name)
        self.assertEqual(match_patterns(pattern.encode(), name.encode()), expected)

    def test_many_stars_do_not_take_for_ever(self) -> None:
        """A planted pattern cannot make the look-up backtrack for hours."""
        self.assertFalse(match_patterns(b"*" * 60 + b"a", b"b" * 250))

    @settings(max_examples=30, deadline=None)
    @given(st.binary(min_size=1, max_size=40).filter(lambda b: b"\n" not in b), st.binary(min_size=20, max_size=20))
    def test_a_hashed_name_is_found(self, name: bytes, salt: bytes) -> None:
        """A hashed entry matches its own name and no other."""
        entry = known(line(hashed_name(name, salt))).entries[0]
        self.assertTrue(entry.matches(name))
        self.assertFalse(entry.matches(name + b"x"))

    def test_damaged_hash(self) -> None:
        """A damaged hash matches nothing, and harms nobody."""
        for field in (b"|1|", b"|1|x", b"|1|!!!|!!!", b"|1|a|b|c", b"|2|abc|def"):
            self.assertEqual(known(line(field)).for_host(HOST), ())

    def test_agrees_with_ssh_keygen(self) -> None:
        """What ssh-keygen hashes is found here."""
        if shutil.which("ssh-keygen") is None:
            self.skipTest("ssh-keygen is not installed")
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "kh"
            path.write_bytes(line(b"host.example,[host.example]:2222"))
            subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], check=True, capture_output=True)
            text = path.read_bytes()
        self.assertNotIn(b"host.example", text)
        hosts = KnownHosts([("kh", text)])
        self.assertEqual(len(hosts.for_host(HOST)), 1)
        self.assertEqual(len(hosts.for_host(HostName("host.example", 2222))), 1)
        self.assertEqual(hosts.for_host(HostName("other.example")), ())


class HostNameTests(SynchronousTestCase):
    def test_lookup_form(self) -> None:
        """The port stands in the name unless it is 22; an alias stands for itself; case does not count."""
        self.assertEqual(HostName("Host.Example").lookup, b"host.example")
        self.assertEqual(HostName("host", 2222).lookup, b"[host]:2222")
        self.assertEqual(HostName("::1", 2222).lookup, b"[::1]:2222")
        self.assertEqual(HostName("alias", 2222, alias=True).lookup, b"alias")
        self.assertEqual(HostName("host", 2222).bare, b"host")


class JudgeTests(SynchronousTestCase):
    def trust(self, hosts: KnownHosts, key=KEY, host: HostName = HOST) -> Trust:
        return hosts.judge(host, blob(key), NOW).trust

    def test_known_and_unknown(self) -> None:
        """A key that stands for the host is known; with no line for the host nothing is."""
        self.assertIs(self.trust(known(line(b"host.example"))), Trust.KNOWN)
        self.assertIs(self.trust(known(line(b"other.example"))), Trust.UNKNOWN)
        self.assertIs(self.trust(known()), Trust.UNKNOWN)

    def test_several_keys_of_a_type(self) -> None:
        """Each of several keys of one type is believed."""
        hosts = known(line(b"host.example", OTHER), line(b"host.example", KEY))
        self.assertIs(self.trust(hosts), Trust.KNOWN)
        self.assertIs(self.trust(hosts, OTHER), Trust.KNOWN)

    def test_changed(self) -> None:
        """Another key is a change, and the verdict says which line it contradicts."""
        verdict = known(b"# comment\n\n", line(b"host.example", OTHER)).judge(HOST, blob(KEY), NOW)
        self.assertIs(verdict.trust, Trust.CHANGED)
        self.assertEqual(verdict.entries[0].where, "kh:3")

    def test_a_key_of_another_type_is_a_change(self) -> None:
        """Who is known by an RSA key is not introduced by an ed25519 key."""
        self.assertIs(self.trust(known(line(b"host.example", RSA))), Trust.CHANGED)

    def test_revoked(self) -> None:
        """A revoked key is refused even where another line trusts it, in whichever order."""
        good, revoked = line(b"host.example"), line(b"*", KEY, b"@revoked")
        self.assertIs(self.trust(known(good, revoked)), Trust.REVOKED)
        self.assertIs(self.trust(known(revoked, good)), Trust.REVOKED)
        self.assertIs(self.trust(known(good, line(b"*", OTHER, b"@revoked"))), Trust.KNOWN)

    def test_revoked_does_not_introduce_a_host(self) -> None:
        """A revoked key says nothing about the host's other keys."""
        self.assertIs(self.trust(known(line(b"host.example", OTHER, b"@revoked"))), Trust.UNKNOWN)

    def test_port(self) -> None:
        """A line with the port counts for that port; one without stands in when there is none with it."""
        there = HostName("host.example", 2222)
        self.assertIs(self.trust(known(line(b"[host.example]:2222")), host=there), Trust.KNOWN)
        self.assertIs(self.trust(known(line(b"[host.example]:2222"))), Trust.UNKNOWN)
        self.assertIs(self.trust(known(line(b"host.example")), host=there), Trust.KNOWN)
        both = known(line(b"[host.example]:2222", OTHER), line(b"host.example", KEY))
        self.assertIs(self.trust(both, host=there), Trust.CHANGED)

    def test_damaged_lines_are_skipped(self) -> None:
        """Lines that make no sense do not hide those that do; a damaged @revoked is reported."""
        hosts = known(
            b"host.example\n",
            b"host.example ssh-rsa\n",
            b"host.example ssh-ed25519 !!!\n",
            b"host.example ssh-rsa " + public_line(KEY).split()[1] + b"\n",
            b"@unknown host.example " + public_line(KEY) + b"\n",
            b"@revoked * nonsense\n",
            b"\xff\xfe\n",
            line(b"host.example"),
        )
        self.assertEqual(len(hosts.entries), 1)
        self.assertIs(self.trust(hosts), Trust.KNOWN)
        self.assertEqual(hosts.damaged, ("kh:6",))

    def test_rubbish_as_a_key(self) -> None:
        """What is no key is unknown, never an error."""
        for rubbish in (b"", b"\0\0\0", b"\0\0\0\x04abcd", b"\xff" * 50):
            self.assertIsNot(known(line(b"host.example")).judge(HOST, rubbish, NOW).trust, Trust.KNOWN)

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=300))
    def test_no_text_breaks_the_parser(self, text: bytes) -> None:
        """Any bytes are a known_hosts file, which knows nothing in particular."""
        KnownHosts([("kh", text)]).judge(HOST, blob(KEY), NOW)


class AlgorithmTests(SynchronousTestCase):
    def test_known_types_come_first(self) -> None:
        """The types that known_hosts has are asked for first, RSA by both of its signatures."""
        self.assertEqual(known(line(b"host.example")).algorithms(HOST)[0], b"ssh-ed25519")
        algorithms = known(line(b"host.example", RSA)).algorithms(HOST)
        self.assertEqual(algorithms[:2], (b"rsa-sha2-512", b"rsa-sha2-256"))
        self.assertEqual(sorted(algorithms), sorted(HOST_KEY_ALGORITHMS))

    def test_unknown_host(self) -> None:
        """For a host that nobody knows the order is the usual one, without certificates."""
        self.assertEqual(known().algorithms(HOST), HOST_KEY_ALGORITHMS)

    def test_revoked_keys_are_not_asked_for(self) -> None:
        """A key that is not to be believed brings its type no nearer to the front."""
        hosts = known(line(b"host.example", RSA, b"@revoked"))
        self.assertEqual(hosts.algorithms(HOST), HOST_KEY_ALGORITHMS)

    def test_certificates_only_with_an_authority(self) -> None:
        """Certificates are asked for, first, where an authority may vouch for the host."""
        hosts = known(line(b"*.example", AUTHORITY, b"@cert-authority"))
        self.assertTrue(hosts.algorithms(HOST)[0].endswith(CERTIFICATE_SUFFIX))
        self.assertEqual(hosts.algorithms(HostName("elsewhere")), HOST_KEY_ALGORITHMS)


class CertificateTests(SynchronousTestCase):
    hosts = known(line(b"*.example", AUTHORITY, b"@cert-authority"))

    def judge(self, cert: bytes, hosts: KnownHosts | None = None, host: HostName = HOST, now: float = NOW):
        return (hosts or self.hosts).judge(host, cert, now)

    def test_good(self) -> None:
        """A host certificate of a trusted authority is believed, whatever the type of either key, on any port."""
        for kind in ("ed25519", "rsa", "ecdsa"):
            for authority_kind in ("ed25519", "rsa", "ecdsa"):
                authority = private(authority_kind, 9)
                hosts = known(line(b"*.example,[*.example]:*", authority, b"@cert-authority"))
                cert = certificate(private(kind, 5), authority)
                self.assertIs(self.judge(cert, hosts).trust, Trust.KNOWN, (kind, authority_kind))
                self.assertIs(self.judge(cert, hosts, HostName("host.example", 2222)).trust, Trust.KNOWN)

    def test_wildcard_principal(self) -> None:
        """A principal may be a pattern."""
        self.assertIs(self.judge(certificate(KEY, AUTHORITY, names=[b"*.example"])).trust, Trust.KNOWN)

    def test_faults(self) -> None:
        """Every fault of a certificate makes it worthless, and is named."""
        table = [
            (certificate(KEY, OTHER), "signer's key"),
            (certificate(KEY, AUTHORITY, host=False), "user's certificate"),
            (certificate(KEY, AUTHORITY, critical=b"force-command"), "critical options: force-command"),
            (certificate(KEY, AUTHORITY, after=NOW + 1, before=NOW + 9), "not valid yet"),
            (certificate(KEY, AUTHORITY, after=NOW - 9, before=NOW), "expired"),
            (certificate(KEY, AUTHORITY, names=[b"other.example"]), "for other.example, not for host.example"),
            (certificate(KEY, AUTHORITY, names=()), "for no host"),
        ]
        for cert, fault in table:
            verdict = self.judge(cert)
            self.assertIs(verdict.trust, Trust.UNKNOWN, fault)
            self.assertIn(fault, verdict.reason)

    def test_every_flipped_bit_is_noticed(self) -> None:
        """No bit of a certificate can be changed: it is not believed any more."""
        cert = certificate(KEY, AUTHORITY)
        for position in range(0, len(cert), 7):
            damaged = bytearray(cert)
            damaged[position] ^= 1 << position % 8
            self.assertIsNot(self.judge(bytes(damaged)).trust, Trust.KNOWN, position)

    def test_cut_short(self) -> None:
        """A certificate that is cut anywhere is not believed, and breaks nothing."""
        cert = certificate(KEY, AUTHORITY)
        for size in range(0, len(cert), 5):
            self.assertIsNot(self.judge(cert[:size]).trust, Trust.KNOWN)

    def test_revoked_key_or_authority(self) -> None:
        """Revoking the key, its certificate or its authority each ends the trust."""
        vouch = line(b"*.example", AUTHORITY, b"@cert-authority")
        cert = certificate(KEY, AUTHORITY)
        for key in (KEY, AUTHORITY):
            hosts = known(vouch, line(b"*", key, b"@revoked"))
            self.assertIs(self.judge(cert, hosts).trust, Trust.REVOKED)
        kind = b"ssh-ed25519-cert-v01@openssh.com"
        hosts = known(vouch, b"@revoked * " + kind + b" " + b64encode(cert) + b"\n")
        self.assertIs(self.judge(cert, hosts).trust, Trust.REVOKED)

    def test_falls_back_to_the_plain_key(self) -> None:
        """A certificate that is not believed still leaves the key itself, which may be known or changed."""
        cert = certificate(KEY, OTHER)
        self.assertIs(self.judge(cert, known(line(b"host.example"))).trust, Trust.KNOWN)
        verdict = self.judge(cert, known(line(b"host.example", OTHER)))
        self.assertIs(verdict.trust, Trust.CHANGED)
        self.assertTrue(re.search("no @cert-authority line", verdict.reason))

    def test_a_plain_authority_line_is_no_host_key(self) -> None:
        """The authority's key does not make a host known, nor a host's key an authority."""
        self.assertIs(self.judge(blob(AUTHORITY)).trust, Trust.UNKNOWN)
        self.assertIsNot(self.judge(certificate(KEY, OTHER), known(line(b"host.example", OTHER))).trust, Trust.KNOWN)
