"""What to do about an SSH link that is not there. Pure.

The link's own messages (:mod:`rda.ssh`) say what happened, and for keys and host keys also what to do; this adds the
rest, by what they say.
"""

from __future__ import annotations

import re

__all__ = ["about_link"]

_ADVICE = (
    (
        r"name cannot be resolved",
        "Check the name for typing errors, and its HostName in ~/.ssh/config; does it need a VPN?",
    ),
    (
        r"Connection was refused|Connection refused",
        "The host is up but no sshd listens at that port: start sshd there, or say the port (user@host:port)",
    ),
    (
        r"does not answer|has not answered|No route|unreachable|timed out",
        "Is the host up, and is there a way to it (VPN, firewall)? Try: ssh -v to the same host",
    ),
    (
        r"host key|HostKey|known_hosts",
        "Compare the fingerprint with one from the host's administrator before you trust it",
    ),
    (
        r"passphrase|encrypted",
        "Add the key to ssh-agent, which rda asks when nobody is at a terminal: ssh-add PATH; SSH_AUTH_SOCK has to be "
        "set where rda runs",
    ),
    (
        r"refused|accepted no key|no key|publickey|[Ll]og ?in",
        "Put the public key into ~/.ssh/authorized_keys of that user on the host (ssh-copy-id user@host), or name "
        "another user or key (user@host, --identity)",
    ),
)


def about_link(reason: str) -> str:
    """What to do about a link that is not connected for this reason."""
    for pattern, advice in _ADVICE:
        if re.search(pattern, reason):
            return advice
    return "Try the same with ssh -v, which tells more"
