"""Who gets in: the keys of the configuration that say so, as one frozen :class:`Admission`. Pure.

A caller is known by the user that owns the connection on this machine, by a TLS client certificate, or by a bearer
token; see :mod:`rda.access.caller` for what becomes of that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from rda.config_table import TableReader

__all__ = ["TOKEN_PREFIX", "Admission", "Users", "is_user_name", "read_admission"]

#: What every token begins with: it can be told from other programs' tokens, and found where it leaked.
TOKEN_PREFIX = "rda_"  # noqa: S105 (not a secret)

#: A user's name: what may stand in a policy, in a log line and in a label without quoting.
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}\Z")

#: How a token is kept: the SHA-256 of 256 random bits, which nobody can try out, so that no slow hash is needed.
_HASH = re.compile(r"sha256:([0-9a-f]{64})\Z")

#: A name that clients may call a listener in Host.
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})\Z")


@dataclass(frozen=True)
class Admission:
    """Who may use a context.

    :ivar users: name and uid of users of this machine, besides the one rda runs as and root.
    :ivar group: name and gid of a group of this machine whose members may, or None. UNIX sockets belong to it.
    :ivar check_peer: ask the kernel whose a TCP connection is; else whoever connects counts as the user rda runs as.
    :ivar unknown_peer: let in TCP connections that come from no process of this machine's network (a container, a
        forwarded port); they count as the user rda runs as.
    :ivar tls: directory with ``cert.pem``, ``key.pem`` and ``ca.pem``, or "" for plain TCP.
    :ivar tokens: user and SHA-256 of a bearer token, each.
    :ivar host_names: what clients may call a TCP listener, besides its address and localhost.
    :ivar lend_files: bind mounts of this machine's directories for callers other than the user rda runs as: they read
        with that user's rights.
    """

    users: tuple[tuple[str, int], ...] = ()
    group: tuple[str, int] | None = None
    check_peer: bool = True
    unknown_peer: bool = False
    tls: str = ""
    tokens: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)
    host_names: tuple[str, ...] = ()
    lend_files: bool = False

    @property
    def lends_rights(self) -> str:
        """The key by which somebody else gets to read with the rights of the user rda runs as; "" when none does."""
        others = self.users or self.group or self.tls or self.tokens
        keys = {
            "check_peer": not self.check_peer,
            "unknown_peer": self.unknown_peer,
            "lend_files": bool(self.lend_files and others),
        }
        return next((key for key, lends in keys.items() if lends), "")


@dataclass(frozen=True)
class Users:
    """This machine's users and groups.

    :ivar uid: a user's number by name; None when there is no such user. Likewise ``gid`` for groups.
    """

    uid: Callable[[str], int | None]
    gid: Callable[[str], int | None]


def read_admission(
    reader: TableReader, users: Users, expand: Callable[[str], str], tls_problem: Callable[[str, bool], str | None]
) -> Admission:
    """Take the keys about callers out of a context's table.

    :param expand: makes ``~`` and relative paths absolute.
    :param tls_problem: why the files of a directory cannot be used, or None; told whether clients need a certificate.
    """
    tls = reader.text("tls", "")
    directory = expand(tls) if tls else ""
    tokens = _tokens(reader)
    why = tls_problem(directory, not tokens) if directory else None
    if why is not None:
        reader.problem("tls", why)
    return Admission(
        users=_users(reader, users),
        group=_group(reader, users),
        check_peer=reader.flag("check_peer", True),
        unknown_peer=reader.flag("unknown_peer", False),
        tls=directory,
        tokens=tokens,
        host_names=_host_names(reader),
        lend_files=reader.flag("lend_files", False),
    )


def is_user_name(text: str) -> bool:
    """Whether a text can name a user."""
    return _USER.match(text) is not None


def _users(reader: TableReader, users: Users) -> tuple[tuple[str, int], ...]:
    found = []
    for name in reader.texts("allow_users"):
        uid = users.uid(name)
        if uid is None:
            reader.problem("allow_users", f"there is no user {name!r} on this machine")
        else:
            found.append((name, uid))
    return tuple(found)


def _group(reader: TableReader, users: Users) -> tuple[str, int] | None:
    name = reader.text("allow_group", "")
    if not name:
        return None
    gid = users.gid(name)
    if gid is None:
        reader.problem("allow_group", f"there is no group {name!r} on this machine")
        return None
    return name, gid


def _tokens(reader: TableReader) -> tuple[tuple[str, bytes], ...]:
    found = []
    table = reader.table("tokens")
    for user, hashes in table.rest().items() if table is not None else ():
        if not is_user_name(user):
            reader.problem(
                "tokens", f"{user!r} is not a user's name: letters, digits, '_', '.', '@', '+', '-', at most 64"
            )
        for text in [hashes] if isinstance(hashes, str) else hashes if isinstance(hashes, list) else [None]:
            matched = _HASH.match(text) if isinstance(text, str) else None
            if matched is None:
                reader.problem("tokens", f"{user}: not a hash like sha256:… ('rda token {user}' makes one)")
            else:
                found.append((user, bytes.fromhex(matched[1])))
    return tuple(found)


def _host_names(reader: TableReader) -> tuple[str, ...]:
    names = reader.texts("host_names")
    for name in names:
        if not _HOST_NAME.match(name):
            reader.problem("host_names", f"{name!r} is not a host name")
    return tuple(name.lower() for name in names)
