"""Published ports as values: what a client asked for, where the daemon put it, and where it is open here.

Sources: the Engine API's ``PortMap``; docker/go-connections' ``nat`` package for how its keys and numbers are read.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rda.docker.document import objects
from rda.errors import BadDocument, BadRequest

__all__ = [
    "PROTOCOLS",
    "Listener",
    "Listeners",
    "Published",
    "binding",
    "normal_key",
    "port_key",
    "port_range",
    "published",
    "requested",
    "shown_addresses",
]

#: What can be published; the daemon refuses others.
PROTOCOLS = ("tcp", "udp", "sctp")

#: The most entries one document may publish: with ranges expanded by the client, two full ranges of all ports.
MAX_PUBLISHED = 131_072


@dataclass(frozen=True, order=True)
class Published:
    """One binding of one container port, as the user asked for it.

    :ivar port: the container's.
    :ivar protocol: ``tcp``, ``udp`` or ``sctp``.
    :ivar host_ip: the local address, normalised, without brackets; "" for the default addresses.
    :ivar first: the local port, or the first of a range to choose from; 0 for any free one.
    :ivar last: the last of the range; equal to ``first`` for a single port.
    """

    port: int
    protocol: str
    host_ip: str = ""
    first: int = 0
    last: int = 0

    @property
    def key(self) -> str:
        """The container port as the API's maps name it, e.g. ``80/tcp``."""
        return f"{self.port}/{self.protocol}"


@dataclass(frozen=True, order=True)
class Listener:
    """A local address that a container port is open on.

    :ivar host_ip: as in :class:`Published`: "" where the user named none.
    :ivar port: the actual local port.
    """

    host_ip: str
    port: int


#: Container port (``80/tcp``) -> where it is open here, in the order of the user's bindings.
Listeners = Mapping[str, tuple[Listener, ...]]


def requested(bindings: object, publish_all: bool, exposed: Iterable[str]) -> tuple[Published, ...]:
    """Read what a create document publishes.

    :param bindings: its ``HostConfig.PortBindings``.
    :param publish_all: its ``HostConfig.PublishAllPorts``.
    :param exposed: the keys of its ``ExposedPorts``, and those of its image; only read with ``publish_all``.
    :raises BadRequest: a port, range, address or protocol is none.
    """
    if bindings is not None and not isinstance(bindings, dict):
        raise BadRequest("HostConfig.PortBindings in the request document has to be an object")
    found: list[Published] = []
    for key, entries in (bindings or {}).items():
        port, protocol = port_key(key)
        found += [_binding(port, protocol, entry) for entry in objects(entries, f"HostConfig.PortBindings[{key!r}]")]
        if len(found) > MAX_PUBLISHED:
            raise BadRequest(f"the request document publishes more than {MAX_PUBLISHED} ports")
    if publish_all:
        bound = {(one.port, one.protocol) for one in found}
        keys = {port_key(key) for key in exposed}
        found += [Published(port, protocol) for port, protocol in sorted(keys - bound)]
    return tuple(found)


def _binding(port: int, protocol: str, entry: Mapping[str, object]) -> Published:
    """Read one entry of a PortMap's list."""
    address, host_port = entry.get("HostIp") or "", entry.get("HostPort") or ""
    if not isinstance(address, str) or not isinstance(host_port, str):
        raise BadRequest(f"HostIp and HostPort of port {port}/{protocol} in the request document have to be texts")
    return binding(port, protocol, address, host_port)


def binding(port: int, protocol: str, host_ip: str, host_port: str) -> Published:
    """Make a binding of its texts.

    :param host_ip: with or without brackets; "" for the default addresses.
    :param host_port: a port or a range; "" or "0" for any free one.
    :raises BadRequest: the address or the port is none.
    """
    first, last = port_range(host_port) if host_port else (0, 0)
    return Published(port, protocol, _address(host_ip), *((first, last) if first else (0, 0)))


def _address(text: str) -> str:
    """Normalise a HostIp; the daemon would take one that it cannot read for all addresses."""
    if not text:
        return ""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise BadRequest(f"invalid IP address: {text}: a port is published on an address of this machine") from None
    if "%" in bare:
        raise BadRequest(f"invalid IP address: {text}: an address with a zone cannot be published on")
    return str(address)


def port_key(key: str) -> tuple[int, str]:
    """Read a container port as the API's maps name it: ``80/tcp``, or ``80``, which is TCP.

    :raises BadRequest: it is none, in the daemon's words. A range is none: clients expand it.
    """
    number, slash, protocol = key.partition("/")
    protocol = protocol.lower() if slash and protocol else "tcp"
    if not re.fullmatch("[0-9]{1,5}", number) or not 0 < int(number) < 65536:
        raise BadDocument(f'invalid port specification: "{number}"')
    if protocol not in PROTOCOLS:
        raise BadDocument(f"invalid proto: {protocol}")
    return int(number), protocol


def port_range(text: str) -> tuple[int, int]:
    """Read a port or a range of ports: ``8080``, ``8000-8010``.

    :raises BadRequest: it is none, in the daemon's words.
    """
    found = re.fullmatch("([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not first <= last < 65536:
        raise BadDocument(f'invalid port specification: "{text}"')
    return first, last


def published(inspect: Mapping[str, object]) -> dict[str, int]:
    """Read from a container's inspect document where the daemon published its ports: ``80/tcp`` -> remote port.

    A container that does not run has none.
    """
    settings = inspect.get("NetworkSettings")
    ports = settings.get("Ports") if isinstance(settings, dict) else None
    found: dict[str, int] = {}
    for key, entries in ports.items() if isinstance(ports, dict) else ():
        for entry in entries if isinstance(entries, list) else ():
            number = str(entry.get("HostPort", "")) if isinstance(entry, dict) else ""
            if number.isdecimal() and int(number):
                found.setdefault(normal_key(key), int(number))
    return found


def normal_key(key: str) -> str:
    """Spell a container port of the daemon's as ours are; it shows some as they were asked for."""
    try:
        port, protocol = port_key(key)
    except BadRequest:
        return key
    return f"{port}/{protocol}"


def shown_addresses(host_ip: str) -> tuple[str, ...]:
    """Return the addresses under which the daemon shows a binding: without one, it is all of both families."""
    return (host_ip,) if host_ip else ("0.0.0.0", "::")  # noqa: S104 - shown, never listened on
