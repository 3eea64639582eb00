"""Ports of containers on the host's network: nothing publishes them, so they are forwarded only on request. Pure.

Who wants one says so with the label :data:`FORWARD_LABEL` on the container, or with ``[[forward]]`` in the
configuration. A port is written as ``docker run -p`` writes it: ``8080``, ``9000/udp``, ``18080:8080``,
``127.0.0.1:18080:8080/tcp``, ``[::1]:18080:8080``. Without a local port it is the container's own, as it would be if
Docker were local.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rda.docker.ports import Published, binding, port_key
from rda.errors import BadRequest

__all__ = ["FORWARD_LABEL", "HostForwards", "read_port", "read_ports"]

#: The one label with rda's prefix that clients write, and see again.
FORWARD_LABEL = "io.rda.forward"

#: Ports that one label or rule may name.
MAX_NAMED = 256

_SPEC = re.compile(
    r"(?:(?:(?P<ip>\[[^\]]*\]|[^:\[\]]*):)?(?P<local>[0-9-]*):)?(?P<port>[0-9]+)(?P<protocol>/[A-Za-z]+)?"
)


def read_port(spec: str) -> Published:
    """Read one port to forward.

    :raises BadRequest: it is none.
    """
    found = _SPEC.fullmatch(spec.strip())
    if not found:
        raise BadRequest(f"{spec!r} is not a port to forward: write it as for docker run -p, e.g. 8080 or 9000/udp")
    port, protocol = port_key(found["port"] + (found["protocol"] or ""))
    if protocol == "sctp":
        raise BadRequest(f"port {spec} cannot be forwarded: SCTP does not pass through an SSH connection")
    return binding(port, protocol, found["ip"] or "", found["local"] or str(port))


def read_ports(specs: Iterable[str]) -> tuple[Published, ...]:
    """Read ports to forward, each once.

    :raises BadRequest: one is none, or there are more than :data:`MAX_NAMED`.
    """
    found = tuple(dict.fromkeys(read_port(spec) for spec in specs if spec.strip()))
    if len(found) > MAX_NAMED:
        raise BadRequest(f"more than {MAX_NAMED} ports to forward")
    return found


@dataclass(frozen=True)
class HostForwards:
    """The ``[[forward]]`` rules of a context.

    :ivar rules: pattern of container names (``*`` and ``?``) -> ports.
    """

    rules: Sequence[tuple[str, tuple[Published, ...]]] = ()

    def of(self, name: str) -> tuple[Published, ...]:
        """Return what is forwarded of a container on the host's network, by its name without a slash."""
        return tuple(port for pattern, ports in self.rules if fnmatchcase(name, pattern) for port in ports)
