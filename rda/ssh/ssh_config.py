"""From what the user wrote after ``--remote`` to where and how to connect, as ssh(1) would.

``ssh -G`` does the work when the ssh program is there, so that Host, Match, Include and the rest mean exactly what they
mean to ssh; else :mod:`rda.ssh.ssh_config_file` does what it can. The result is a :class:`Target`, with its jump hosts.
"""

from __future__ import annotations

import getpass
import glob
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorProcess
from twisted.logger import Logger

from rda.config import Remote
from rda.errors import ConfigError
from rda.ssh.program import run_program
from rda.ssh.ssh_config_file import CUMULATIVE, Settings, read_settings

__all__ = ["Named", "Target", "parse_target", "resolve"]

_log = Logger()

#: Jump hosts in a row; more is a loop in the configuration.
MAX_JUMPS = 8

#: Seconds for TCP to connect, where ConnectTimeout is not set. ssh waits for the kernel, more than two minutes.
CONNECT_TIMEOUT = 15.0

#: Seconds between probes of an idle connection, and how many may stay unanswered, where ServerAlive* is not set: a dead
#: peer is noticed within 20 s.
ALIVE_INTERVAL = 5.0
ALIVE_COUNT = 3

#: Seconds for ``ssh -G``: it may run the commands of ``Match exec``.
RESOLVE_TIMEOUT = 30.0

_DEFAULT_IDENTITIES = tuple(f"~/.ssh/id_{kind}" for kind in ("rsa", "ecdsa", "ecdsa_sk", "ed25519", "ed25519_sk"))
_DEFAULT_KNOWN_HOSTS = "~/.ssh/known_hosts ~/.ssh/known_hosts2"
_DEFAULT_GLOBAL_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"

#: What may stand in a host or user name: these names come into shell command lines (ProxyCommand) and file names. ssh
#: refuses the same characters (valid_hostname, valid_ruser), and names that could be taken for an option.
_HOST = re.compile(r"[A-Za-z0-9_.:%\u0080-\U0010ffff][A-Za-z0-9_.:%\u0080-\U0010ffff-]*")
_USER = re.compile(r"[^\x00-\x20\x7f'\"`;&<>|(){}$\\-][^\x00-\x20\x7f'\"`;&<>|(){}$\\]*")


@dataclass(frozen=True)
class Named:
    """What the user wrote, taken apart: "" and None are what was left out."""

    host: str
    user: str = ""
    port: int | None = None


@dataclass(frozen=True)
class Target:
    """Where and how to connect.

    :ivar original: the host as the user wrote it; :attr:`host` is what it stands for.
    :ivar known_hosts: the user's files, then the system's; new keys go to the first.
    :ivar agent_path: the agent's socket, "" for none.
    :ivar proxy_command: shell command whose stdin and stdout are the connection, "" for none.
    :ivar via: the jump host to go through, itself with all that belongs to it.
    :ivar alive_interval: seconds.
    """

    original: str
    host: str
    port: int
    user: str
    identities: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    identities_only: bool = False
    agent_path: str = ""
    known_hosts: tuple[str, ...] = ()
    revoked_host_keys: tuple[str, ...] = ()
    host_key_alias: str = ""
    accept_new: bool = False
    proxy_command: str = ""
    via: Target | None = None
    alive_interval: float = ALIVE_INTERVAL
    alive_count: int = ALIVE_COUNT
    connect_timeout: float = CONNECT_TIMEOUT
    compression: bool = False

    @property
    def label(self) -> str:
        """``user@host:port`` for people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.port}"


@dataclass(frozen=True)
class Surroundings:
    """What the local side contributes: who and where we are.

    :ivar environ: environment variables.
    """

    home: str
    user: str
    environ: Mapping[str, str] = field(default_factory=dict)
    hostname: str = ""

    @classmethod
    def here(cls, environ: Mapping[str, str] = os.environ) -> Surroundings:
        """This machine and user."""
        home = environ.get("HOME") or os.path.expanduser("~")
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = ""  # a uid without a name, as in containers: then the remote user has to be named
        return cls(home, user, dict(environ), socket.gethostname())


def parse_target(text: str) -> Named:
    """Take apart an alias, ``host``, ``user@host``, ``user@host:port``, ``[v6]:port`` or ``ssh://…``.

    :raises rda.errors.ConfigError: it is none of these, or holds characters that ssh would refuse too.
    """
    rest = text
    if text.lower().startswith("ssh://"):
        rest = text[6:].rstrip("/")
        if "/" in rest:
            raise ConfigError([f"remote: {text!r} has a path, which an ssh address cannot have"])
    user, _, host = rest.rpartition("@")
    port = ""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(\d+))?", host)
    if bracketed is not None:
        host, port = bracketed[1], bracketed[2] or ""
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
        if not port:
            raise ConfigError([f"remote: {text!r} ends without a port number"])
    if not _HOST.fullmatch(host):
        raise ConfigError([f"remote: {text!r} holds no valid host name ({host!r})"])
    if user and not _USER.fullmatch(user):
        raise ConfigError([f"remote: {text!r} holds no valid user name ({user!r})"])
    if port and not (port.isdigit() and 1 <= int(port) <= 65535):
        raise ConfigError([f"remote: {text!r} holds no valid port ({port!r}); it is a number from 1 to 65535"])
    return Named(host, user, int(port) if port else None)


def resolve(
    reactor: IReactorProcess,
    remote: Remote,
    surroundings: Surroundings,
    find_ssh: Callable[[], str | None] | None = None,
) -> Deferred[Target]:
    """Find out what ``remote.target`` means.

    :param find_ssh: finds the ssh program; None means on PATH.
    :returns: fails with :class:`rda.errors.ConfigError` when the configuration cannot be used.
    """
    program = (find_ssh or (lambda: shutil.which("ssh", path=surroundings.environ.get("PATH"))))()
    return Deferred.fromCoroutine(_Resolver(reactor, remote, surroundings, program).top())


class _Resolver:
    def __init__(
        self, reactor: IReactorProcess, remote: Remote, surroundings: Surroundings, program: str | None
    ) -> None:
        self._reactor = reactor
        self._remote = remote
        self._surroundings = surroundings
        self._program = program

    async def top(self) -> Target:
        target = await self._target(parse_target(self._remote.target), None, MAX_JUMPS)
        if self._remote.compression:
            target = replace(target, compression=True)
        return target

    async def _target(self, named: Named, jumps: Sequence[str] | None, depth: int) -> Target:
        """Resolve one host; ``jumps``, when not None, are those to go through, whatever its configuration says."""
        if depth < 0:
            raise ConfigError([f"remote: more than {MAX_JUMPS} jump hosts in a row; ProxyJump goes round in circles"])
        settings = await self._settings(named)
        target = make_target(settings, named, self._remote, self._surroundings)
        if jumps is None:
            jumps = _jumps(settings)
        elif jumps:
            target = replace(target, proxy_command="")
        if jumps and not target.proxy_command:
            *before, last = jumps
            hop = _parse_jump(last)
            if not _is_same(hop, named, target):
                target = replace(target, via=await self._target(hop, before or None, depth - 1))
        return target

    async def _settings(self, named: Named) -> Settings:
        if self._program is None:
            return self._read_files(named)
        # Only after "--" and checked by parse_target: nothing of this can be read as an option.
        arguments = ["-G"]
        if self._remote.ssh_config:
            arguments += ["-F", os.path.expanduser(self._remote.ssh_config)]
        if named.user:
            arguments += ["-l", named.user]
        if named.port is not None:
            arguments += ["-p", str(named.port)]
        arguments += ["--", named.host]
        result = await run_program(
            self._reactor, self._program, arguments, self._surroundings.environ, timeout=RESOLVE_TIMEOUT
        )
        if result.status != 0:
            detail = result.errors.decode("utf-8", "replace").strip()[-500:]
            raise ConfigError([f"remote: ssh cannot resolve {named.host}: {detail or 'ssh -G failed'}"])
        return _parse_g(result.output.decode("utf-8", "surrogateescape"))

    def _read_files(self, named: Named) -> Settings:
        wanted = self._remote.ssh_config
        home_config = os.path.join(self._surroundings.home, ".ssh", "config")
        paths = [os.path.expanduser(wanted)] if wanted else [home_config, "/etc/ssh/ssh_config"]
        if wanted == "none":
            return {}
        texts = [(path, text) for path in paths if (text := _read_text(path)) is not None]
        if wanted and not texts:
            raise ConfigError([f"ssh_config: {wanted} cannot be read"])
        return read_settings(texts, named.host, named.user, self._included)

    def _included(self, pattern: str) -> Iterable[tuple[str, str]]:
        path = _tilde(pattern, self._surroundings)
        if not os.path.isabs(path):
            path = os.path.join(self._surroundings.home, ".ssh", path)
        for found in sorted(glob.glob(path)):
            text = _read_text(found)
            if text is not None:
                yield found, text


def _parse_g(output: str) -> Settings:
    settings: Settings = {}
    for line in output.splitlines():
        keyword, _, value = line.partition(" ")
        if keyword in CUMULATIVE:
            settings.setdefault(keyword, []).append(value)
        else:
            settings.setdefault(keyword.lower(), [value])
    return settings


def make_target(settings: Settings, named: Named, remote: Remote, surroundings: Surroundings) -> Target:
    """Turn settings into a :class:`Target`, without its jump hosts (pure).

    :raises rda.errors.ConfigError: a value that cannot be used.
    """

    def get(keyword: str, default: str = "") -> str:
        value = settings.get(keyword, [default])[0]
        return "" if value.lower() == "none" and keyword != "identityagent" else value

    port = named.port or int(_number(get("port", "22"), "Port"))
    user = named.user or get("user", surroundings.user)
    # HostName knows %h and %% only; everything else may use what it resolves to.
    host = get("hostname", named.host).replace("%h", named.host).replace("%%", "%")
    if not _HOST.fullmatch(host):
        raise ConfigError([f"ssh_config: HostName {host!r} is not a valid host name"])
    if not _USER.fullmatch(user):
        raise ConfigError([f"remote: no valid remote user for {named.host} ({user!r}); write user@{named.host}"])
    alias = get("hostkeyalias")
    tokens = _tokens(named.host, host, port, user, alias, surroundings)

    def paths(values: Iterable[str]) -> tuple[str, ...]:
        return tuple(_expand(value, tokens, surroundings) for value in values if value.lower() != "none")

    known = remote.known_hosts or (
        *_several(get("userknownhostsfile", _DEFAULT_KNOWN_HOSTS)),
        *_several(get("globalknownhostsfile", _DEFAULT_GLOBAL_KNOWN_HOSTS)),
    )
    interval = _number(get("serveraliveinterval") or "0", "ServerAliveInterval")
    return Target(
        original=named.host,
        host=host,
        port=port,
        user=user,
        identities=paths(remote.identities or settings.get("identityfile", _DEFAULT_IDENTITIES)),
        certificates=paths(settings.get("certificatefile", ())),
        identities_only=get("identitiesonly").lower() in ("yes", "true"),
        agent_path=_agent_path(get("identityagent"), tokens, surroundings),
        known_hosts=paths(known),
        revoked_host_keys=paths(_several(get("revokedhostkeys"))),
        host_key_alias=alias,
        accept_new=remote.accept_new or get("stricthostkeychecking").lower() == "accept-new",
        proxy_command=_substitute(get("proxycommand"), tokens),
        alive_interval=interval or ALIVE_INTERVAL,
        alive_count=max(1, int(_number(get("serveralivecountmax", str(ALIVE_COUNT)), "ServerAliveCountMax"))),
        connect_timeout=_number(get("connecttimeout") or "0", "ConnectTimeout") or CONNECT_TIMEOUT,
        compression=get("compression").lower() in ("yes", "true"),
    )


def _jumps(settings: Settings) -> list[str]:
    value = settings.get("proxyjump", ["none"])[0]
    return [] if value.lower() in ("none", "") else [hop.strip() for hop in value.split(",")]


def _parse_jump(text: str) -> Named:
    try:
        return parse_target(text)
    except ConfigError as error:
        raise ConfigError([f"ssh_config: ProxyJump: {error}"]) from error


def _is_same(hop: Named, named: Named, target: Target) -> bool:
    """Whether a jump host is the host itself: one that matches its own ``Host *`` is reached directly, as ssh does."""
    return (
        hop.host.lower() in (named.host.lower(), target.host.lower())
        and hop.port in (None, target.port)
        and hop.user in ("", target.user)
    )


def _several(value: str) -> list[str]:
    """Paths printed side by side without quotes: a new one begins with ``/``, ``~``, ``%`` or ``$``."""
    return re.split(r"\s+(?=[/~%$])", value) if value else []


def _agent_path(value: str, tokens: Mapping[str, str], surroundings: Surroundings) -> str:
    if value.lower() == "none":
        return ""
    if value in ("", "SSH_AUTH_SOCK"):
        return surroundings.environ.get("SSH_AUTH_SOCK", "")
    if re.fullmatch(r"\$\w+", value):
        return surroundings.environ.get(value[1:], "")
    return _expand(value, tokens, surroundings)


def _tokens(
    original: str, host: str, port: int, user: str, alias: str, surroundings: Surroundings
) -> Mapping[str, str]:
    """ssh_config(5), "TOKENS"."""
    local = surroundings.hostname
    # ssh hashes the jump host too since 9.6; there it has resolved this itself before we see it.
    digest = hashlib.sha1(f"{local}{host}{port}{user}".encode(), usedforsecurity=False).hexdigest()
    return {
        "%": "%",
        "C": digest,
        "d": surroundings.home,
        "h": host,
        "i": str(os.getuid()),
        "k": alias or original,
        "L": local.partition(".")[0],
        "l": local,
        "n": original,
        "p": str(port),
        "r": user,
        "u": surroundings.user,
    }


def _substitute(text: str, tokens: Mapping[str, str]) -> str:
    return re.sub(r"%(.)", lambda match: tokens.get(match[1], match[0]), text)


def _expand(path: str, tokens: Mapping[str, str], surroundings: Surroundings) -> str:
    text = re.sub(r"\$\{(\w+)\}", lambda match: surroundings.environ.get(match[1], ""), _tilde(path, surroundings))
    return _substitute(text, tokens)


def _tilde(path: str, surroundings: Surroundings) -> str:
    if path == "~" or path.startswith("~/"):
        return surroundings.home + path[1:]
    return os.path.expanduser(path)


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _number(text: str, keyword: str) -> float:
    """A number, or a time in sshd_config(5)'s "TIME FORMATS", in seconds."""
    parts = re.findall(r"(\d+)([smhdw]?)", text.lower())
    if not parts or "".join(number + unit for number, unit in parts) != text.lower():
        raise ConfigError([f"ssh_config: {keyword} {text!r} is not a number"])
    return float(sum(int(number) * _UNITS[unit or "s"] for number, unit in parts))


def _read_text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except OSError:
        return None
