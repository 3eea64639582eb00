"""``[policy]``, ``[user.NAME]`` and ``owner_filter`` of the configuration, as values. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rda.access.policy import FLAGS, LIMITS, LISTS, PRESETS, Policy

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


def read_access(table: dict[str, Any], path: str, context: str, problems: list[str]) -> Access:
    """Take the keys ``policy``, ``user`` and ``owner_filter`` out of a context's table.

    :param path: put before the keys in problems, e.g. ``context.gpu.``.
    :param problems: what is wrong is added here, each with its key.
    """
    owner_filter = table.pop("owner_filter", False)
    if not isinstance(owner_filter, bool):
        problems.append(f"{path}owner_filter: must be true or false")
        owner_filter = False
    own = table.pop("policy", None)
    users = table.pop("user", {})
    if own is not None and not isinstance(own, dict):
        problems.append(f"{path}policy: must be a table like [{path}policy]")
        own = {}
    if not isinstance(users, dict) or not all(isinstance(one, dict) for one in users.values()):
        problems.append(f"{path}user: must be tables like [{path}user.NAME]")
        users = {}
    if users and own is None:
        problems.append(f"{path}user: says what some may do; say what everybody else may in [{path}policy]")
    if own is None and owner_filter:
        own = {}  # whoever may have the host may have what is others': a filter alone would keep nobody out
    if own is None:
        return Access()
    policy = _policy(own, PRESETS[DEFAULT_PRESET], f"{path}policy.", f"the policy of context {context}", problems)
    found = {
        name: _policy(one, policy, f"{path}user.{name}.", f"the policy of {name} in context {context}", problems)
        for name, one in users.items()
    }
    return Access(policy, found, owner_filter)


def _policy(table: Mapping[str, Any], base: Policy, path: str, scope: str, problems: list[str]) -> Policy:
    """Read one table: what it leaves out is the base's, or the named preset's; denials add up."""
    values = dict(table)
    preset = values.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        problems.append(f"{path}preset: must be one of {', '.join(PRESETS)}")
        preset = None
    chosen = PRESETS[preset] if preset is not None else base
    allow, flags, limits = dict(chosen.allow), dict(chosen.flags), {**base.limits}
    deny = {key: (*base.deny.get(key, ()), *chosen.deny.get(key, ())) for key in (*base.deny, *chosen.deny)}
    for key, value in values.items():
        name = key.removeprefix("deny_")
        if name in LISTS:
            patterns = _patterns(name, value, path + key, problems)
            if name == key:
                allow[name] = patterns
            else:
                deny[name] = (*deny.get(name, ()), *patterns)
        elif key in FLAGS:
            flags[key] = _checked(value, isinstance(value, bool), "must be true or false", path + key, problems, False)
        elif key in LIMITS:
            fine = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            limits[key] = _checked(value, fine, "must be a whole number; 0 is without limit", path + key, problems, 0)
        else:
            problems.append(f"{path}{key}: no such key (see the sample rda.toml for those there are)")
    return replace(chosen, scope=scope, allow=allow, deny=deny, flags=flags, limits=limits)


def _checked(value: Any, fine: bool, what: str, path: str, problems: list[str], instead: Any) -> Any:
    if fine:
        return value
    problems.append(f"{path}: {what}")
    return instead


def _patterns(name: str, value: Any, path: str, problems: list[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        problems.append(f"{path}: must be a string or a list of strings")
        return ()
    check = _CHECKS.get(name)
    for one in value:
        if check is not None and (problem := check(one)):
            problems.append(f"{path}: {one!r} {problem}")
            return ()
    return tuple(value)


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
