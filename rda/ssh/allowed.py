"""Which algorithms ssh_config lets rda use: Ciphers, MACs, KexAlgorithms, HostKeyAlgorithms, PubkeyAcceptedAlgorithms.

Pure. A person, or the policy of a whole site, may want fewer than rda knows. What ssh has by default is no such wish:
its list may be older than rda's, or in an order that suits ssh.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rda.errors import ConfigError
from rda.ssh import ciphers as protection
from rda.ssh import kex
from rda.ssh.keys import CERTIFICATE_SUFFIX
from rda.ssh.known_hosts import HOST_KEY_ALGORITHMS, match_patterns

__all__ = ["KEYWORDS", "SIGNATURE_ALGORITHMS", "Allowed"]

#: Keyword, as ``ssh -G`` prints it, and how people write it.
KEYWORDS = {
    "ciphers": "Ciphers",
    "macs": "MACs",
    "kexalgorithms": "KexAlgorithms",
    "hostkeyalgorithms": "HostKeyAlgorithms",
    "pubkeyacceptedalgorithms": "PubkeyAcceptedAlgorithms",
}

_HOST_KEYS = tuple(name + suffix for suffix in (CERTIFICATE_SUFFIX, b"") for name in HOST_KEY_ALGORITHMS)

#: What rda can log in with: what it takes from a host, and security keys through the agent.
SIGNATURE_ALGORITHMS = (
    *_HOST_KEYS,
    b"sk-ssh-ed25519@openssh.com",
    b"sk-ecdsa-sha2-nistp256@openssh.com",
    b"sk-ssh-ed25519-cert-v01@openssh.com",
    b"sk-ecdsa-sha2-nistp256-cert-v01@openssh.com",
)


@dataclass(frozen=True)
class Allowed:
    """What may be used, in rda's own order of preference.

    :ivar host_keys: None when nothing is said: then what is known of the host decides.
    :ivar signatures: public key algorithms to log in with; None when nothing is said.
    """

    ciphers: tuple[bytes, ...] = tuple(protection.CIPHERS)
    macs: tuple[bytes, ...] = tuple(protection.MACS)
    exchanges: tuple[bytes, ...] = kex.supported_exchanges()
    host_keys: tuple[bytes, ...] | None = None
    signatures: frozenset[bytes] | None = None

    @classmethod
    def by(cls, settings: Mapping[str, Sequence[str]], defaults: Mapping[str, Sequence[str]]) -> Allowed:
        """Read the settings of one host.

        :param settings: lower-case keyword to values.
        :param defaults: the same for a host without configuration; what is equal there was not asked for.
        :raises rda.errors.ConfigError: a setting leaves none that rda knows.
        """

        def pick(keyword: str, known: Iterable[bytes]) -> tuple[bytes, ...] | None:
            wanted = settings.get(keyword)
            if not wanted or wanted == defaults.get(keyword):
                return None
            return _pick(keyword, wanted[0], tuple(known))

        signatures = pick("pubkeyacceptedalgorithms", SIGNATURE_ALGORITHMS)
        return cls(
            pick("ciphers", cls.ciphers) or cls.ciphers,
            pick("macs", cls.macs) or cls.macs,
            pick("kexalgorithms", cls.exchanges) or cls.exchanges,
            pick("hostkeyalgorithms", _HOST_KEYS),
            None if signatures is None else frozenset(signatures),
        )


def _pick(keyword: str, wanted: str, known: tuple[bytes, ...]) -> tuple[bytes, ...]:
    patterns = wanted.lstrip("+-^").encode("utf-8", "replace")
    if wanted[:1] in ("+", "^"):
        return known  # more of them, or another order: neither takes any of ours away
    taken_away = wanted.startswith("-")
    found = tuple(name for name in known if match_patterns(patterns, name) != taken_away)
    if not found:
        ours = b", ".join(known).decode("ascii")
        raise ConfigError([f"ssh_config: {KEYWORDS[keyword]} {wanted!r} leaves none that rda has: {ours}"])
    return found
