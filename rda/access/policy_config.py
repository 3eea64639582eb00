"""``[policy]``, ``[user.NAME]`` and ``owner_filter`` of the configuration, as values. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from rda.access.policy import FLAGS, LIMITS, LISTS, PRESETS, Policy
from rda.config_table import TableReader

__all__ = ["Access", "read_access"]

#: The preset of a policy that names none.
DEFAULT_PRESET = "developer"

_PATHS = ("binds", "remote_paths", "devices")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_ENDPOINT = re.compile(r"(?:\*|[A-Z]+(?:,[A-Z]+)*) /\S*")


@dataclass(frozen=True)
class Access:
    """Who may do what in one context.

    :ivar policy: of everybody that has none of their own; None: everything is allowed.
    :ivar users: name -> their own.
    :ivar owner_filter: whether everybody sees and touches only what is theirs.
    """

    policy: Policy | None = None
    users: Mapping[str, Policy] = field(default_factory=dict)
    owner_filter: bool = False

    def __bool__(self) -> bool:
        return self.policy is not None or self.owner_filter

    def without(self, paths: Iterable[str]) -> Access:
        """Deny rda's own files to everybody: whoever is judged may neither read nor write them."""
        if self.policy is None:
            return self
        users = {name: _denying(policy, paths) for name, policy in self.users.items()}
        return replace(self, policy=_denying(self.policy, paths), users=users)

    def policy_of(self, user: str) -> Policy | None:
        """Return the policy that holds for a user."""
        policy = self.users.get(user, self.policy)
        return policy.of(user) if policy is not None else None


def _denying(policy: Policy, paths: Iterable[str]) -> Policy:
    return replace(policy, deny={**policy.deny, "binds": (*policy.deny.get("binds", ()), *paths)})


def read_access(reader: TableReader, context: str) -> Access:
    """Take the keys ``policy``, ``user`` and ``owner_filter`` out of a context's table.

    :param context: the context's name.
    """
    owner_filter = reader.flag("owner_filter", False)
    own = reader.table("policy")
    users = reader.named_tables("user")
    if own is None and users:
        what = f"says what some may do; say what everybody else may in [{reader.path}policy]"
        reader.problem("user", what)
    if own is None and not owner_filter:
        return Access()
    # Whoever may have the host may have what is others': a filter alone would keep nobody out.
    table = own or TableReader(f"{reader.path}policy.", {}, reader.problems)
    policy = _policy(table, PRESETS[DEFAULT_PRESET], f"the policy of context {context}")
    found = {
        name: _policy(
            TableReader(f"{reader.path}user.{name}.", one, reader.problems),
            policy,
            f"the policy of {name} in context {context}",
        )
        for name, one in users.items()
    }
    return Access(policy, found, owner_filter)


def _policy(reader: TableReader, base: Policy, scope: str) -> Policy:
    """Read one table: what it leaves out is the base's, or the named preset's; denials add up."""
    preset = reader.choice("preset", "", PRESETS)
    chosen = PRESETS[preset] if preset else base
    allow, flags, limits = dict(chosen.allow), dict(chosen.flags), {**base.limits}
    deny = {key: (*base.deny.get(key, ()), *chosen.deny.get(key, ())) for key in (*base.deny, *chosen.deny)}
    for key in reader:
        name = key.removeprefix("deny_")
        if name in LISTS and name == key:
            allow[name] = _patterns(reader, key, name)
        elif name in LISTS:
            deny[name] = (*deny.get(name, ()), *_patterns(reader, key, name))
        elif key in FLAGS:
            flags[key] = reader.flag(key, False)
        elif key in LIMITS:
            limits[key] = reader.whole_number(key, 0, 0, ", which is without limit")
    reader.finish("see the sample rda.toml for those there are")
    return replace(chosen, scope=scope, allow=allow, deny=deny, flags=flags, limits=limits)


def _patterns(reader: TableReader, key: str, name: str) -> tuple[str, ...]:
    patterns = reader.texts(key)
    check = _CHECKS.get(name)
    for one in patterns:
        if check is not None and (problem := check(one)):
            reader.problem(key, f"{one!r} {problem}")
    return patterns


def _path_problem(text: str) -> str:
    return "" if text.removeprefix("=").startswith("/") else "is no absolute path"


def _port_problem(text: str) -> str:
    found = _PORTS.fullmatch(text)
    fine = found and 0 < int(found[1]) <= int(found[2] or found[1]) < 65536
    return "" if fine else "is no port or range of ports like 8000-8999"


def _address_problem(text: str) -> str:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return "is no address or network like 127.0.0.0/8"
    return ""


def _endpoint_problem(text: str) -> str:
    return "" if _ENDPOINT.fullmatch(text) else 'is no method and path, as in "POST /containers/*/start" or "* /**"'


def _namespace_problem(text: str) -> str:
    names = ("pid", "ipc", "uts", "network", "user", "cgroup", "*")
    return "" if text in names else f"is none of {', '.join(names)}"


def _capability_problem(text: str) -> str:
    return "" if text == text.upper() and not text.startswith("CAP_") else "is no name like NET_ADMIN"


_CHECKS: Mapping[str, Callable[[str], str]] = {
    **dict.fromkeys(_PATHS, _path_problem),
    "ports": _port_problem,
    "addresses": _address_problem,
    "endpoints": _endpoint_problem,
    "unknown_endpoints": _endpoint_problem,
    "host_namespaces": _namespace_problem,
    "capabilities": _capability_problem,
}
