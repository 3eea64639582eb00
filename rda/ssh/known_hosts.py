"""Looking up host keys in known_hosts files as sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT", describes them.

Pure and read-only: text in, a :class:`Verdict` out. A host may have several keys of a type; ``@revoked`` keys are never
believed, whichever names stand before them; ``@cert-authority`` keys vouch for host certificates.
"""

from __future__ import annotations

import binascii
import enum
import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rda.ssh.keys import (
    CERTIFICATE_SUFFIX,
    Certificate,
    KeyUnreadable,
    fingerprint,
    key_type,
    parse_certificate,
    plain_blob,
)

__all__ = [
    "HOST_KEY_ALGORITHMS",
    "Entry",
    "HostName",
    "KnownHosts",
    "Trust",
    "Verdict",
    "hashed_name",
    "match_patterns",
]

#: Plain host key algorithms, best first; OpenSSH's order, without SHA-1 and DSA.
HOST_KEY_ALGORITHMS = (
    b"ssh-ed25519",
    b"ecdsa-sha2-nistp256",
    b"ecdsa-sha2-nistp384",
    b"ecdsa-sha2-nistp521",
    b"rsa-sha2-512",
    b"rsa-sha2-256",
)

_MARKERS = {b"@revoked": "revoked", b"@cert-authority": "cert-authority"}
_HASH_MAGIC = b"|1|"


class Trust(enum.Enum):
    """What the known_hosts files say about a key."""

    KNOWN = "known"
    UNKNOWN = "unknown"  # nothing is known of this host
    CHANGED = "changed"  # the host is known, by another key
    REVOKED = "revoked"


@dataclass(frozen=True)
class HostName:
    """How a host is looked up.

    :ivar name: as the user asked for it after ssh_config, or its HostKeyAlias.
    :ivar port: TCP port; ignored for an alias.
    """

    name: str
    port: int = 22
    alias: bool = False

    @property
    def lookup(self) -> bytes:
        """The form that stands in known_hosts: lower case, ``[host]:port`` when the port is not 22."""
        name = self.name.lower()
        if not self.alias and self.port != 22:
            name = f"[{name}]:{self.port}"
        return name.encode("utf-8", "surrogateescape")

    @property
    def bare(self) -> bytes:
        """The name without its port, which is what a certificate's principals are."""
        return self.name.lower().encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Entry:
    """One line of a known_hosts file.

    :ivar marker: ``""``, ``"revoked"`` or ``"cert-authority"``.
    :ivar patterns: the host field as it stands.
    """

    marker: str
    patterns: bytes
    blob: bytes
    path: str
    line: int

    def matches(self, name: bytes) -> bool:
        """Whether the host field is about ``name`` (in the form of :attr:`HostName.lookup`)."""
        if self.patterns.startswith(_HASH_MAGIC):
            return _matches_hash(self.patterns, name)
        return match_patterns(self.patterns, name)

    @property
    def where(self) -> str:
        """``path:line``, for people."""
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Verdict:
    """The answer to a look-up.

    :ivar entries: the lines it rests on: those that agree, or those that contradict.
    :ivar reason: for people: why a certificate was not believed; else "".
    """

    trust: Trust
    entries: tuple[Entry, ...] = ()
    reason: str = ""


def hashed_name(name: bytes, salt: bytes) -> bytes:
    """The hashed form of a host name, as ``ssh-keygen -H`` writes it (20 bytes of salt)."""
    digest = hmac.new(salt, name, hashlib.sha1).digest()
    return _HASH_MAGIC + b64encode(salt) + b"|" + b64encode(digest)


def _matches_hash(field: bytes, name: bytes) -> bool:
    parts = field[len(_HASH_MAGIC) :].split(b"|")
    if len(parts) != 2:
        return False
    try:
        salt, digest = b64decode(parts[0], validate=True), b64decode(parts[1], validate=True)
    except binascii.Error:
        return False
    return hmac.compare_digest(hmac.new(salt, name, hashlib.sha1).digest(), digest)


@lru_cache(maxsize=1024)
def _expression(pattern: bytes) -> re.Pattern[bytes]:
    """A pattern of ssh_config(5), "PATTERNS": ``*`` and ``?`` only; brackets mean themselves."""
    # Runs of * mean one *: "a*****b" must not become an expression that backtracks for hours.
    parts = re.split(rb"(\*+|\?)", pattern)
    text = b"".join(b".*" if p.startswith(b"*") else b"." if p == b"?" else re.escape(p) for p in parts)
    return re.compile(text, re.DOTALL | re.IGNORECASE)


def match_patterns(patterns: bytes, name: bytes) -> bool:
    """Whether a comma-separated pattern list matches: some pattern does, and no negated one does."""
    found = False
    for pattern in patterns.split(b","):
        negated = pattern.startswith(b"!")
        body = pattern[1:] if negated else pattern
        if body and _expression(body).fullmatch(name):
            if negated:
                return False
            found = True
    return found


class KnownHosts:
    """The entries of one or more known_hosts files.

    :param files: pairs of a file's name (for messages) and its content. Lines that cannot be understood are skipped,
        as ssh does, except that a line with ``@revoked`` which cannot be understood is kept in :attr:`damaged`.
    """

    def __init__(self, files: Iterable[tuple[str, bytes]] = ()) -> None:
        self.damaged: tuple[str, ...] = ()
        entries = []
        for path, text in files:
            for number, line in enumerate(text.split(b"\n"), 1):
                entry = self._parse(path, number, line.strip())
                if entry is not None:
                    entries.append(entry)
        self.entries: tuple[Entry, ...] = tuple(entries)

    def _parse(self, path: str, number: int, line: bytes) -> Entry | None:
        if not line or line.startswith(b"#"):
            return None
        fields = line.split()
        marker = ""
        if fields[0].startswith(b"@"):
            marker = _MARKERS.get(fields.pop(0), "?")
        try:
            if marker == "?" or len(fields) < 3:
                raise KeyUnreadable("not a known_hosts line")
            blob = b64decode(fields[2], validate=True)
            if key_type(blob) != fields[1]:
                raise KeyUnreadable("the type in front and the type inside differ")
        except (KeyUnreadable, binascii.Error):
            if marker == "revoked":
                self.damaged += (f"{path}:{number}",)
            return None
        return Entry(marker, fields[0], blob, path, number)

    def for_host(self, host: HostName) -> tuple[Entry, ...]:
        """The entries, of every marker, that are about this host.

        Like ssh, entries without the port stand in when there is none with it.
        """
        found = tuple(entry for entry in self.entries if entry.matches(host.lookup))
        if not any(entry.marker != "revoked" for entry in found) and host.lookup != host.bare and not host.alias:
            found += tuple(entry for entry in self.entries if entry.matches(host.bare))
        return found

    def algorithms(self, host: HostName) -> tuple[bytes, ...]:
        """Host key algorithms to ask the server for, in order: those that can be verified come first.

        :returns: certificates when an authority vouches for this host, then the types of its known keys, then the rest:
            a server that has nothing else must be told apart from one whose key changed.
        """
        entries = self.for_host(host)
        known = {key_type(entry.blob) for entry in entries if not entry.marker}
        first = tuple(name for name in HOST_KEY_ALGORITHMS if _type_of(name) in known)
        rest = tuple(name for name in HOST_KEY_ALGORITHMS if name not in first)
        certificates: tuple[bytes, ...] = ()
        if any(entry.marker == "cert-authority" for entry in entries):
            certificates = tuple(name + CERTIFICATE_SUFFIX for name in HOST_KEY_ALGORITHMS)
        return certificates + first + rest

    def judge(self, host: HostName, blob: bytes, now: float) -> Verdict:
        """Say whether a host may be believed to be itself.

        :param blob: the public key or host certificate that it presented (and proved to own).
        :param now: seconds since the epoch, for a certificate's validity.
        """
        try:
            certificate = parse_certificate(blob) if key_type(blob).endswith(CERTIFICATE_SUFFIX) else None
            plain = plain_blob(blob)
        except KeyUnreadable as error:
            return Verdict(Trust.UNKNOWN, (), f"the server's key cannot be read: {error}")
        suspects = {plain} if certificate is None else {plain, certificate.authority, blob}
        revoked = tuple(entry for entry in self.entries if entry.marker == "revoked" and entry.blob in suspects)
        if revoked:
            # Whatever host they name: a key that is revoked anywhere has no business here. ssh looks at the names,
            # but a revoked key presented under another name is at best a mistake.
            return Verdict(Trust.REVOKED, revoked)
        entries = self.for_host(host)
        reason = ""
        if certificate is not None:
            authorities = tuple(
                entry for entry in entries if entry.marker == "cert-authority" and entry.blob == certificate.authority
            )
            reason = _certificate_fault(certificate, host, now, bool(authorities))
            if not reason:
                return Verdict(Trust.KNOWN, authorities)
        plain_entries = tuple(entry for entry in entries if not entry.marker)
        agreeing = tuple(entry for entry in plain_entries if entry.blob == plain)
        if agreeing:
            return Verdict(Trust.KNOWN, agreeing)
        if plain_entries:
            # Of the same type, or of another: who is known by some key cannot introduce himself with a new one.
            return Verdict(Trust.CHANGED, plain_entries, reason)
        return Verdict(Trust.UNKNOWN, (), reason)


def _type_of(algorithm: bytes) -> bytes:
    return b"ssh-rsa" if algorithm.startswith(b"rsa-sha2-") else algorithm


def _certificate_fault(certificate: Certificate, host: HostName, now: float, trusted: bool) -> str:
    """Why a host certificate is not to be believed, or "" (PROTOCOL.certkeys; sshkey_cert_check_host)."""
    checks: Sequence[tuple[bool, str]] = (
        (trusted, f"no @cert-authority line for this host has its signer's key {fingerprint(certificate.authority)}"),
        (certificate.is_host, "it is a user's certificate, not a host's"),
        (not certificate.critical_options, f"it has critical options: {_names(certificate.critical_options)}"),
        (now >= certificate.valid_after, "it is not valid yet (or this machine's clock is behind)"),
        (now < certificate.valid_before, "it has expired (or this machine's clock is ahead)"),
        (
            any(_expression(name).fullmatch(host.bare) for name in certificate.principals if name),
            f"it is for {_names(certificate.principals) or 'no host'}, not for {host.name}",
        ),
        (trusted and certificate.signature_is_good(), "its signature is wrong"),
    )
    faults = [message for fine, message in checks if not fine]
    return f"the host certificate {certificate.key_id!r} is not believed: {faults[0]}" if faults else ""


def _names(values: Iterable[bytes]) -> str:
    return ", ".join(value.decode("utf-8", "replace") for value in values)
