"""Whose path each bind source of a request is, on this machine, by the rules of this context. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rda.docker.binds import BindSource, Rule, Rules, System, Where, local_path, mount_binds, remote_path
from rda.docker.request import Request
from rda.errors import Refused

__all__ = ["Sorted", "Sources"]


@dataclass(frozen=True)
class Sorted:
    """The bind sources of one document, sorted by whose path they are.

    :ivar local: each source that is mirrored, with its path on this machine.
    :ivar remote: document path -> the remote host's own path that it means.
    :ivar warnings: for create's answer: what was decided where it may surprise.
    """

    local: tuple[tuple[BindSource, str], ...]
    remote: dict[str, str]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """Sorts bind sources.

    :param system: what rda runs on.
    :param rules: whose path is whose.
    """

    system: System
    rules: Rules = field(default_factory=Rules)

    def sort(self, binds: Iterable[BindSource]) -> Sorted:
        """Decide about every source.

        :raises Refused: a rule refuses one; the message names the rule.
        :raises BadRequest: it is no path that this machine can have.
        """
        local: list[tuple[BindSource, str]] = []
        remote: dict[str, str] = {}
        warnings: list[str] = []
        for bind in binds:
            rule = self.rules.find(bind)
            reason = f": {rule.reason}" if rule.reason else ""
            if rule.where is Where.REFUSE:
                raise Refused(f"{bind.source} cannot be mounted, by the rule {rule.pattern!r}{reason}")
            if rule.where is Where.LOCAL:
                local.append((bind, local_path(bind, self.system)))
                continue
            remote[bind.path] = remote_path(bind, rule)
            if not rule.expected:
                warnings.append(f"rda: {bind.source} is the remote host's own, not this machine's{reason}")
        return Sorted(tuple(local), remote, tuple(warnings))

    def mirrored(self, request: Request) -> tuple[str, ...]:
        """The paths of this machine that are mirrored for a container, from what its label keeps."""
        return tuple(local_path(_bind(path), self.system) for path in request.sources)

    def rule(self, path: str) -> Rule:
        """The rule that a path of this machine falls under."""
        return self.rules.find(_bind(path))


def _bind(path: str) -> BindSource:
    """A path as if it had come in a document."""
    (bind,) = mount_binds([{"Type": "bind", "Source": path, "Target": "/"}], "a path")
    return bind
