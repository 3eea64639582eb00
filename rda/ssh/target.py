"""Where and how to connect: the settings of ssh_config(5) as one value, :class:`Target`. Pure but for ``~user``.

What becomes of each keyword that matters to a connection:

* meant as ssh means it: HostName, User, Port, HostKeyAlias, IdentityFile, CertificateFile, IdentityAgent,
  IdentitiesOnly, UserKnownHostsFile and GlobalKnownHostsFile (several files), RevokedHostKeys, ProxyCommand, ProxyJump,
  ConnectTimeout, ServerAliveInterval, ServerAliveCountMax, Compression, AddressFamily, BindAddress, RekeyLimit (rda
  asks for new keys of its own accord too), RequiredRSASize (never below rda's own limit);
* a limit to what rda offers, in rda's order: Ciphers, MACs, KexAlgorithms, HostKeyAlgorithms, PubkeyAcceptedAlgorithms;
* StrictHostKeyChecking: ``accept-new`` is; every other value means ``yes``, as nobody can be asked;
* refused, because somebody relies on it: KnownHostsCommand, ProxyUseFdpass, BindInterface, PubkeyAuthentication no;
* not needed: ConnectionAttempts (rda never gives up), TCPKeepAlive (rda asks the server itself), CheckHostIP,
  VerifyHostKeyDNS and NoHostAuthenticationForLocalhost (known_hosts decides, always), HashKnownHosts (what is
  remembered is always hashed), UpdateHostKeys, ControlMaster, and all that is about terminals, forwardings and
  passwords.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rda.config import Remote
from rda.errors import ConfigError
from rda.ssh.address_family import FAMILIES
from rda.ssh.allowed import Allowed
from rda.ssh.ssh_config_file import Settings

__all__ = ["Named", "Surroundings", "Target", "make_target", "parse_target", "tilde"]

#: Seconds for TCP to connect, where ConnectTimeout is not set. ssh waits for the kernel, more than two minutes.
CONNECT_TIMEOUT = 15.0

#: Seconds between probes of an idle connection, and how many may stay unanswered, where ServerAlive* is not set: a dead
#: peer is noticed within 20 s.
ALIVE_INTERVAL = 5.0
ALIVE_COUNT = 3

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
    :ivar address_family: ``any``, ``inet`` or ``inet6``.
    :ivar bind_address: the local address to connect from, "" for any.
    :ivar allowed: the algorithms that may be used.
    :ivar rsa_bits: the shortest RSA host key that is taken; rda has a limit of its own.
    :ivar rekey_bytes: bytes after which new keys are agreed on, 0 for rda's own limit; :ivar rekey_seconds: likewise.
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
    address_family: str = "any"
    bind_address: str = ""
    allowed: Allowed = field(default_factory=Allowed)
    rsa_bits: int = 1024
    rekey_bytes: int = 0
    rekey_seconds: float = 0.0

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


def make_target(
    settings: Settings,
    named: Named,
    remote: Remote,
    surroundings: Surroundings,
    defaults: Settings | None = None,
) -> Target:
    """Turn settings into a :class:`Target`, without its jump hosts (pure).

    :param defaults: what ssh has without any configuration.
    :raises rda.errors.ConfigError: a value that cannot be used.
    """

    def get(keyword: str, default: str = "") -> str:
        value = settings.get(keyword, [default])[0]
        return "" if value.lower() == "none" and keyword != "identityagent" else value

    host, port, user = _where(get, named, surroundings)
    alias = get("hostkeyalias")
    tokens = _tokens(named.host, host, port, user, alias, surroundings)

    def paths(values: Iterable[str]) -> tuple[str, ...]:
        return tuple(_expand(value, tokens, surroundings) for value in values if value.lower() != "none")

    known = remote.known_hosts or (
        *_several(get("userknownhostsfile", _DEFAULT_KNOWN_HOSTS)),
        *_several(get("globalknownhostsfile", _DEFAULT_GLOBAL_KNOWN_HOSTS)),
    )
    _refuse_what_cannot_be_done(get, remote)
    return Target(
        original=named.host,
        host=host,
        port=port,
        user=user,
        identities=paths(remote.identities or settings.get("identityfile", _DEFAULT_IDENTITIES)),
        certificates=paths(settings.get("certificatefile", ())),
        identities_only=_is_yes(get("identitiesonly")),
        agent_path=_agent_path(get("identityagent"), tokens, surroundings),
        known_hosts=paths(known),
        revoked_host_keys=paths(_several(get("revokedhostkeys"))),
        host_key_alias=alias,
        accept_new=remote.accept_new or get("stricthostkeychecking").lower() == "accept-new",
        proxy_command=_substitute(get("proxycommand"), tokens),
        compression=_is_yes(get("compression")),
        address_family=_family(get("addressfamily") or "any"),
        bind_address=get("bindaddress"),
        allowed=Allowed.by(settings, defaults or {}),
        rsa_bits=int(_number(get("requiredrsasize", "1024"), "RequiredRSASize")),
        **_times(get),
    )


def _where(get: Callable[[str, str], str], named: Named, surroundings: Surroundings) -> tuple[str, int, str]:
    """Host, port and user to connect to."""
    # HostName knows %h and %% only; everything else may use what it resolves to.
    host = get("hostname", named.host).replace("%h", named.host).replace("%%", "%")
    user = named.user or get("user", surroundings.user)
    if not _HOST.fullmatch(host):
        raise ConfigError([f"ssh_config: HostName {host!r} is not a valid host name"])
    if not _USER.fullmatch(user):
        raise ConfigError([f"remote: no valid remote user for {named.host} ({user!r}); write user@{named.host}"])
    return host, named.port or int(_number(get("port", "22"), "Port")), user


def _times(get: Callable[[str, str], str]) -> dict[str, Any]:
    """How long to wait for what, and when new keys are due: the values of those attributes."""

    def number(keyword: str, spelled: str) -> float:
        return _number(get(keyword, "0") or "0", spelled)

    rekey_bytes, rekey_seconds = _rekey_limit(get("rekeylimit", ""))
    return {
        "alive_interval": number("serveraliveinterval", "ServerAliveInterval") or ALIVE_INTERVAL,
        "alive_count": int(number("serveralivecountmax", "ServerAliveCountMax")) or ALIVE_COUNT,
        "connect_timeout": number("connecttimeout", "ConnectTimeout") or CONNECT_TIMEOUT,
        "rekey_bytes": rekey_bytes,
        "rekey_seconds": rekey_seconds,
    }


def _is_yes(value: str) -> bool:
    return value.lower() in ("yes", "true")


def _refuse_what_cannot_be_done(get: Callable[[str], str], remote: Remote) -> None:
    """Refuse settings that somebody relies on and that rda would ignore."""
    problems = []
    if get("knownhostscommand") and not remote.host_keys:
        problems.append(
            "ssh_config: KnownHostsCommand is set, and rda does not run it: the keys it revokes would be trusted. Put "
            "its output into a file and name that with --known-hosts, or pin the host's key with --host-key."
        )
    if _is_yes(get("proxyusefdpass")) and get("proxycommand"):
        problems.append("ssh_config: ProxyUseFdpass is set, and rda cannot take a descriptor from a ProxyCommand.")
    if get("bindinterface"):
        problems.append("ssh_config: BindInterface is set, and rda cannot bind to an interface; use BindAddress.")
    if get("pubkeyauthentication").lower() in ("no", "false"):
        problems.append("ssh_config: PubkeyAuthentication is off, and rda logs in with keys only.")
    if problems:
        raise ConfigError(problems)


def _family(value: str) -> str:
    if value.lower() not in FAMILIES:
        raise ConfigError([f"ssh_config: AddressFamily {value!r} is none of {', '.join(FAMILIES)}"])
    return value.lower()


def _rekey_limit(text: str) -> tuple[int, float]:
    """RekeyLimit: bytes, with K, M or G, and a time; 0 for what is not said, ``default`` or ``none``."""
    size, _, time = text.lower().partition(" ")
    match = re.fullmatch(r"(\d*)([kmg]?)|default|none", size)
    if match is None:
        raise ConfigError([f"ssh_config: RekeyLimit {text!r} is not a size and a time"])
    number = int(match[1] or 0) << {"k": 10, "m": 20, "g": 30}.get(match[2] or "", 0)
    return number, 0.0 if time in ("", "none") else _number(time, "RekeyLimit")


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
    text = re.sub(r"\$\{(\w+)\}", lambda match: surroundings.environ.get(match[1], ""), tilde(path, surroundings))
    return _substitute(text, tokens)


def tilde(path: str, surroundings: Surroundings) -> str:
    """A path whose ``~`` is replaced."""
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
