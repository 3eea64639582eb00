"""What callers may do: ``judge(facts, claims, policy) -> refusals``. Pure.

A policy is a set of lists, flags and limits, one for each thing that a request can reach for. What a list does not
allow is refused; what a ``deny_`` list names is refused whatever allows it. Each refusal names its rule: the key of the
configuration that decided.

What a request reaches for is read from the canonical document, in :mod:`rda.docker.claims`; which calls there are, from
:mod:`rda.docker.endpoints`. Facts that need a look at the world (where a symbolic link leads, whose a container is, how
much there is already) are gathered by :mod:`rda.access.gate`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache

from rda.docker.binds import path_expression
from rda.docker.claims import Claim, Kind
from rda.docker.images import Image, image_matches
from rda.docker.ports import Published
from rda.errors import Refused

__all__ = ["FLAGS", "LIMITS", "LISTS", "PRESETS", "Facts", "Policy", "Refusal", "judge", "refused"]

#: Keys that are lists of patterns.
LISTS = (
    "endpoints",
    "unknown_endpoints",
    "binds",
    "remote_paths",
    "capabilities",
    "devices",
    "device_requests",
    "device_rules",
    "host_namespaces",
    "security_opt",
    "runtimes",
    "sysctls",
    "cgroup_parents",
    "annotations",
    "log_drivers",
    "propagation",
    "volume_drivers",
    "volume_types",
    "network_drivers",
    "network_options",
    "images",
    "registries",
    "build_remotes",
    "ports",
    "addresses",
    "fields",
)

#: Keys that are true or false.
FLAGS = (
    "privileged",
    "docker_socket",
    "other_containers",
    "make_images",
    "buildkit",
    "plugins",
    "swarm",
    "checkpoints",
)

#: Keys that are numbers; 0 means without limit.
LIMITS = ("max_containers", "max_forwards", "max_sync_bytes")

#: Claims that are no rule of a policy's: whose a network or volume is, only an owner filter asks.
_OWNED = (Kind.NETWORK, Kind.VOLUME)

_ANY = ("*",)
_ANY_PATH = ("/",)
_ANY_ENDPOINT = ("* /**",)

#: Capabilities that every container has unless it drops them: adding them again gives nothing.
_DEFAULT_CAPABILITIES = (
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
)

#: Sockets that make root on the host, beside the daemon's own; below /var/run they are the same ones.
_SOCKETS = (
    "/run/docker.sock",
    "/run/docker/**.sock",
    "/run/user/*/docker.sock",
    "/run/containerd/**.sock",
    "/run/containerd/**.ttrpc",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/systemd/**",
    "/run/dbus/**",
)


@dataclass(frozen=True)
class Policy:
    """What somebody may do.

    :ivar scope: whose it is, for refusals, e.g. ``the policy of context gpu``.
    :ivar allow: key -> patterns. What has no entry is not allowed.
    :ivar deny: the same of ``deny_`` keys, without that word.
    :ivar flags: key -> whether it is allowed.
    :ivar limits: key -> the most.
    """

    scope: str = "the policy"
    allow: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    deny: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)

    def of(self, user: str) -> Policy:
        """Put a user's name in the place of ``{user}`` in the paths.

        A name that could be more than one segment of a path, or a pattern, is in none that are allowed.
        """
        safe = re.fullmatch(r"[A-Za-z0-9_@+-][A-Za-z0-9_.@+-]*", user)
        allow, deny = dict(self.allow), dict(self.deny)
        for key in ("binds", "remote_paths", "images"):
            if any("{user}" in pattern for pattern in (*allow.get(key, ()), *deny.get(key, ()))):
                allow[key] = tuple(
                    pattern.replace("{user}", user) for pattern in allow.get(key, ()) if safe or "{user}" not in pattern
                )
                deny[key] = tuple(pattern.replace("{user}", user if safe else "*") for pattern in deny.get(key, ()))
        return replace(self, allow=allow, deny=deny)


def _preset(lists: Mapping[str, tuple[str, ...]], flags: Iterable[str] = ()) -> Policy:
    return Policy(allow=lists, flags=dict.fromkeys(flags, True))


_DEVELOPER: dict[str, tuple[str, ...]] = {
    "endpoints": _ANY_ENDPOINT,
    "binds": _ANY_PATH,
    "remote_paths": ("=/etc/localtime", "=/etc/timezone"),
    "capabilities": _DEFAULT_CAPABILITIES,
    "security_opt": ("no-new-privileges", "no-new-privileges[:=]true"),
    "runtimes": ("runc", "io.containerd.runc.v2"),
    "sysctls": ("net.*", "fs.mqueue.*", "kernel.msg*", "kernel.sem", "kernel.shm*"),
    "log_drivers": ("json-file", "local", "none", "journald"),
    "volume_types": ("tmpfs",),
    "network_drivers": ("bridge",),
    "network_options": (
        "com.docker.network.driver.mtu",
        "com.docker.network.bridge.enable_icc",
        "com.docker.network.bridge.enable_ip_masquerade",
        "com.docker.network.endpoint.ifname",
    ),
    "images": _ANY,
    "registries": _ANY,
    "ports": ("1024-65535",),
    "addresses": ("127.0.0.0/8", "::1"),
}

#: Policies by name, to begin with.
PRESETS: Mapping[str, Policy] = {
    # Everything that the daemon allows; what it denies is up to deny_ keys.
    "open": _preset(
        {
            **dict.fromkeys(LISTS, _ANY),
            "endpoints": _ANY_ENDPOINT,
            "unknown_endpoints": _ANY_ENDPOINT,
            "binds": _ANY_PATH,
            "remote_paths": _ANY_PATH,
            "devices": _ANY_PATH,
            "ports": ("1-65535",),
            "addresses": ("0.0.0.0/0", "::/0"),
        },
        FLAGS,
    ),
    # Everything inside one's own containers, nothing of the host.
    "developer": _preset(_DEVELOPER, ("make_images",)),
    # Look, and change nothing.
    "read-only": replace(
        _preset({**_DEVELOPER, "endpoints": ("GET /**", "HEAD /**")}),
        deny={"endpoints": ("GET /containers/**/attach/ws", "GET /swarm/unlockkey")},
    ),
    # What a client needs to be told no.
    "nothing": _preset({"endpoints": ("GET /_ping", "HEAD /_ping", "GET /version")}),
}


@dataclass(frozen=True)
class Facts:
    """What is known of one request beside its claims.

    :ivar method: ``POST``.
    :ivar path: in normal form, without version.
    :ivar known: whether the path is one of the Engine API that rda knows.
    :ivar local: each bind source of this machine: as it was written, and where it leads after all symbolic links.
    :ivar remote: each bind source of the remote host: as it was written, and the path there.
    :ivar ports: what it publishes here.
    :ivar foreign: the containers among its claims that were not made through this context.
    :ivar images: image reference -> all names that the image has on the host, where that was looked up.
    :ivar used: key of a limit -> what there is of it already, without this request.
    :ivar wanted: key of a limit -> what this request would add.
    :ivar sockets: sockets on the remote host that make root, beside the usual ones.
    """

    method: str = "GET"
    path: str = "/"
    known: bool = True
    local: tuple[tuple[str, str], ...] = ()
    remote: tuple[tuple[str, str], ...] = ()
    ports: tuple[Published, ...] = ()
    foreign: frozenset[str] = frozenset()
    images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    used: Mapping[str, int] = field(default_factory=dict)
    wanted: Mapping[str, int] = field(default_factory=dict)
    sockets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """Why something is not allowed.

    :ivar rule: the key that decided.
    :ivar subject: what was asked for.
    :ivar where: its place in the request.
    """

    rule: str
    subject: str
    where: str = ""

    def __str__(self) -> str:
        """Say it to a person."""
        place = f" in {self.where}" if self.where else ""
        return f"{self.subject}{place} (rule {self.rule})"


def refused(refusals: Iterable[Refusal], scope: str) -> Refused:
    """Make the error of some refusals."""
    reasons = list(dict.fromkeys(str(one) for one in refusals))
    return Refused(f"not allowed by {scope}: {'; '.join(reasons)}. Leave it out, or ask who runs rda to allow it")


def judge(facts: Facts, claims: Iterable[Claim], policy: Policy) -> tuple[Refusal, ...]:
    """Say everything that is wrong with a request; nothing means that it may go on.

    :param claims: what its canonical document and its query reach for.
    """
    return (
        *_endpoint(facts, policy),
        *(refusal for claim in claims if (refusal := _claim(claim, facts, policy))),
        *_paths(facts, policy),
        *_ports(facts, policy),
        *_quotas(facts, policy),
    )


def _endpoint(facts: Facts, policy: Policy) -> Iterator[Refusal]:
    subject = f"{facts.method} {facts.path}"
    if any(_endpoint_matches(pattern, facts) for pattern in policy.deny.get("endpoints", ())):
        yield Refusal("deny_endpoints", subject)
    elif not any(_endpoint_matches(pattern, facts) for pattern in policy.allow.get("endpoints", ())):
        yield Refusal("endpoints", subject)
    elif (
        not facts.known
        and facts.method not in ("GET", "HEAD")
        and not any(_endpoint_matches(pattern, facts) for pattern in policy.allow.get("unknown_endpoints", ()))
    ):
        yield Refusal("unknown_endpoints", subject)


def _endpoint_matches(pattern: str, facts: Facts) -> bool:
    methods, _, path = pattern.partition(" ")
    return (methods == "*" or facts.method in methods.split(",")) and bool(_whole(path).fullmatch(facts.path))


@lru_cache(maxsize=1024)
def _whole(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of a whole path: ``*`` and ``?`` within one segment, ``**`` across."""
    return path_expression("=" + pattern)


def _claim(claim: Claim, facts: Facts, policy: Policy) -> Refusal | None:
    """Judge one claim by the rule of its kind."""
    rule = claim.kind.value
    if claim.kind in _OWNED:
        return None
    if rule in FLAGS:
        unjudged = claim.kind is Kind.CONTAINER and claim.value not in facts.foreign
        return None if unjudged or policy.flags.get(rule) else Refusal(rule, claim.value, claim.where)
    if claim.kind is Kind.IMAGE:
        names = facts.images.get(claim.value, (claim.value,))
        denied = any(_image_in(name, policy.deny.get(rule, ())) for name in names)
        allowed = any(_image_in(name, policy.allow.get(rule, ())) for name in names)
    else:
        match = _path_in if claim.kind is Kind.DEVICE else _text_in
        denied, allowed = match(claim.value, policy.deny.get(rule, ())), match(claim.value, policy.allow.get(rule, ()))
    if denied:
        return Refusal(f"deny_{rule}", claim.value, claim.where)
    return None if allowed else Refusal(rule, claim.value, claim.where)


def _text_in(text: str, patterns: Iterable[str]) -> bool:
    return any(pattern == text or fnmatchcase(text, pattern) for pattern in patterns)


def _path_in(path: str, patterns: Iterable[str]) -> bool:
    return any(path_expression(pattern).fullmatch(path) for pattern in patterns)


def _image_in(name: str, patterns: Iterable[str]) -> bool:
    return any(image_matches(pattern, Image.parse(name)) for pattern in patterns)


def _paths(facts: Facts, policy: Policy) -> Iterator[Refusal]:
    """Judge bind sources: what they are, and what lies below them."""
    for source, real in facts.local:
        yield from _path("binds", source, real, policy)
    sockets = [spelling for socket in (*_SOCKETS, *facts.sockets) for spelling in _run_spellings(socket)]
    for source, path in facts.remote:
        is_socket = any(_whole(socket).fullmatch(path) for socket in sockets)
        if is_socket or any(_covers(path, socket) for socket in sockets):
            if not policy.flags.get("docker_socket"):
                yield Refusal("docker_socket", source)
                continue
            if is_socket:
                continue
        yield from _path("remote_paths", source, path, policy)


def _run_spellings(socket: str) -> tuple[str, ...]:
    """Return the two names of what is below /run."""
    plain = socket.removeprefix("/var") if socket.startswith("/var/run/") else socket
    return (plain, f"/var{plain}") if plain.startswith("/run/") else (plain,)


def _path(rule: str, source: str, path: str, policy: Policy) -> Iterator[Refusal]:
    subject = source if path == source else f"{source} (which is {path})"
    if _path_in(path, policy.deny.get(rule, ())) or any(_covers(path, one) for one in policy.deny.get(rule, ())):
        yield Refusal(f"deny_{rule}", subject)
    elif not _path_in(path, policy.allow.get(rule, ())):
        yield Refusal(rule, subject)


def _covers(path: str, pattern: str) -> bool:
    """Return whether a path is above something that a pattern matches: whoever mounts it gets that too."""
    return path == "/" or any(above.fullmatch(path) for above in _above(pattern))


@lru_cache(maxsize=1024)
def _above(pattern: str) -> tuple[re.Pattern[str], ...]:
    """Compile the patterns of all paths above those that a pattern matches, and of what it matches itself."""
    segments = pattern.removeprefix("=").rstrip("/").split("/")
    found = []
    for count in range(2, len(segments) + 1):
        if "**" in segments[count - 1]:  # it may be anywhere below
            found.append(_whole("/".join([*segments[: count - 1], "**"])))
            break
        found.append(_whole("/".join(segments[:count])))
    return tuple(found)


def _ports(facts: Facts, policy: Policy) -> Iterator[Refusal]:
    """Judge local ports and addresses; those that rda chooses itself are always fine."""
    for port in facts.ports:
        if port.first:
            span = f"{port.first}-{port.last}" if port.last != port.first else str(port.first)
            if _spans_meet(port, policy.deny.get("ports", ())):
                yield Refusal("deny_ports", span, f"PortBindings {port.key}")
            elif not _span_within(port, policy.allow.get("ports", ())):
                yield Refusal("ports", span, f"PortBindings {port.key}")
        if port.host_ip:
            if _address_in(port.host_ip, policy.deny.get("addresses", ())):
                yield Refusal("deny_addresses", port.host_ip, f"PortBindings {port.key}")
            elif not _address_in(port.host_ip, policy.allow.get("addresses", ())):
                yield Refusal("addresses", port.host_ip, f"PortBindings {port.key}")


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def _spans_meet(port: Published, spans: Iterable[str]) -> bool:
    return any(first <= port.last and port.first <= last for first, last in map(_span, spans))


def _span_within(port: Published, spans: Iterable[str]) -> bool:
    return any(first <= port.first and port.last <= last for first, last in map(_span, spans))


def _address_in(address: str, networks: Iterable[str]) -> bool:
    found = ipaddress.ip_address(address)
    return any(found in ipaddress.ip_network(network, strict=False) for network in networks)


def _quotas(facts: Facts, policy: Policy) -> Iterator[Refusal]:
    for rule, most in policy.limits.items():
        wanted = facts.wanted.get(rule, 0)
        if most and wanted and facts.used.get(rule, 0) + wanted > most:
            yield Refusal(rule, f"{facts.used.get(rule, 0)} and {wanted} more, of at most {most}")
