"""Where rda may connect: the list of remote hosts, and of their keys, that a configuration allows. Pure.

An entry is written ``[user@]host[:port] [SHA256:… …]``: ``*`` and ``?`` in user and host match any characters and any
one; an IPv6 address with a port is in brackets. The first entry that matches a host decides which keys it may have;
without any, known_hosts does. Hosts are compared as ssh_config resolves them: what is connected to counts, not what it
is called.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rda.errors import LoginFailed

__all__ = ["FINGERPRINT", "Permit", "parse_permit", "pins_for"]

#: A host key's fingerprint as ``ssh-keygen -l`` prints it.
FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?\Z")

_PLACE = re.compile(
    r"(?:(?P<user>[^@\s\[\]]+)@)?(?:\[(?P<v6>[0-9A-Fa-f:.%*?]+)\]|(?P<host>[^@:\s\[\]]+)|(?P<bare>[0-9A-Fa-f]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*))"
    r"(?::(?P<port>[0-9]{1,5}))?\Z"
)


@dataclass(frozen=True)
class Permit:
    """One entry.

    :ivar user: a pattern; ``*`` for anybody.
    :ivar host: a pattern, in lower case.
    :ivar port: None for any.
    :ivar keys: fingerprints of the keys that the host may have; none: what known_hosts says.
    """

    user: str
    host: str
    port: int | None
    keys: tuple[str, ...]

    def matches(self, user: str, host: str, port: int) -> bool:
        """Whether it allows to connect there."""
        return (
            fnmatchcase(user, self.user)
            and fnmatchcase(host.lower().rstrip("."), self.host)
            and self.port in (None, port)
        )


def parse_permit(text: str) -> Permit:
    """Read an entry.

    :raises ValueError: with the reason.
    """
    place, *keys = text.split() or [""]
    found = _PLACE.match(place)
    if found is None or (found["port"] and not 0 < int(found["port"]) < 65536):
        raise ValueError(f"{place!r} is not written [user@]host[:port]")
    for key in keys:
        if not FINGERPRINT.match(key):
            raise ValueError(f"{key!r} is not a fingerprint like SHA256:… (ssh-keygen -l prints them)")
    host = found["v6"] or found["host"] or found["bare"]
    return Permit(found["user"] or "*", host.lower(), int(found["port"]) if found["port"] else None, tuple(keys))


def pins_for(
    permits: Sequence[str] | None, user: str, host: str, port: int, pins: Sequence[str] = ()
) -> tuple[str, ...]:
    """The fingerprints that a host's key has to be among; none: what known_hosts says.

    :param permits: the entries; None allows everything.
    :param pins: those that were asked for besides.
    :raises LoginFailed: the host is not on the list, or may not have the key that is asked for.
    """
    if permits is None:
        return tuple(pins)
    where = f"{user}@{host} (port {port})"
    permit = next((one for one in map(parse_permit, permits) if one.matches(user, host, port)), None)
    if permit is None:
        raise LoginFailed(f"{where} is not among the remote hosts that the configuration allows ([remotes] allow)")
    if not permit.keys or not pins:
        return permit.keys or tuple(pins)
    wanted = {pin.rstrip("=") for pin in pins}
    both = tuple(key for key in permit.keys if key.rstrip("=") in wanted)
    if not both:
        raise LoginFailed(f"{where} may not have the key of host_key: [remotes] allow names others for it")
    return both
