"""Options and TOML, checked, as one frozen :class:`Config`. Pure: reads no file and no environment.

Most keys of the file are options of the command line too (``sync_root`` is ``--sync-root``) and the option wins. The
file's top level describes the context named ``default``; ``[context.NAME]`` tables describe further ones, and take the
keys that they leave out from the top level (all but ``remote`` and ``listen``).
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from rda.access.admission import Admission, Users, read_admission
from rda.access.policy_config import Access, read_access
from rda.access.remotes import FINGERPRINT, parse_permit
from rda.config_table import TableReader
from rda.docker.host_network import read_ports
from rda.errors import ConfigError, RdaError
from rda.limits import Limits

#: The name of the context that the top level of the file, or the command line, describes.
DEFAULT_CONTEXT = "default"

#: How a local directory is mirrored: what is made on the remote stays there untouched, is removed, or comes back.
MODES = ("one-way", "mirror", "two-way")

#: Whose path a bind source is: see :class:`Rule`.
WHERES = ("local", "remote", "refuse")

#: Where a context listens when nothing is said.
DEFAULT_LISTEN = ("tcp:23750:interface=127.0.0.1",)

#: Ports of this machine that can be exposed: each is a socket that the SSH server listens on for us.
MAX_EXPOSED = 64

_TCP_PORT = re.compile(r"tcp6?:(?:(?:.*:)?port=)?([0-9]{1,5})(?::|\Z)")

_OWNER = re.compile(r"(login|preserve|[0-9]{1,9}:[0-9]{1,9})\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")


@dataclass(frozen=True)
class Remote:
    """The remote host and how to get in, as the user said it (ssh_config has not been looked at yet).

    :ivar target: what ssh(1) accepts: an alias, ``host``, ``user@host``, ``user@host:port`` or ``ssh://…``.
    :ivar identities: private key files to use; none means ssh's own defaults.
    :ivar known_hosts: known_hosts files to use; none means ssh's own defaults.
    :ivar host_keys: pinned fingerprints, ``SHA256:…``; when given, nothing else is trusted.
    :ivar accept_new: trust and remember the key of a host that no known_hosts file knows.
    :ivar ssh_config: path of the ssh_config file to use, "" for ssh's own defaults, "none" for no file.
    :ivar compression: ask for ``zlib@openssh.com``.
    :ivar permits: entries of the list of hosts that may be connected to, jump hosts included
        (:mod:`rda.access.remotes`); None allows every host.
    """

    target: str
    identities: tuple[str, ...] = ()
    known_hosts: tuple[str, ...] = ()
    host_keys: tuple[str, ...] = ()
    accept_new: bool = False
    ssh_config: str = ""
    compression: bool = False
    permits: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Rule:
    """Whose path a bind mount's source is, and how it is mirrored; the first rule that matches decides.

    :ivar pattern: as in :class:`rda.docker.binds.Rule`.
    :ivar where: ``local`` (mirrored), ``remote`` (meant as it is, on the remote host) or ``refuse``.
    :ivar mode: how a local one is mirrored: one of :data:`MODES`.
    :ivar ignore: patterns of paths below it that are left out, in gitignore's syntax.
    :ivar owner: whose a local one is on the remote: ``login``, ``preserve`` or ``UID:GID``.
    :ivar world_writable: whether everybody may write to it there.
    """

    pattern: str
    where: str
    mode: str = "one-way"
    ignore: tuple[str, ...] = ()
    owner: str = "login"
    world_writable: bool = False


@dataclass(frozen=True)
class Forward:
    """Ports of containers on the host's network that are forwarded without their asking.

    :ivar container: pattern of their names, with ``*`` and ``?``.
    :ivar ports: as :func:`rda.docker.host_network.read_ports` reads them.
    """

    container: str
    ports: tuple[str, ...]


@dataclass(frozen=True)
class Context:
    """One remote Docker daemon and how it appears here.

    :ivar listen: Twisted server endpoint strings.
    :ivar docker: the daemon on the remote: ``unix:///path`` or ``tcp://host:port``.
    :ivar sync_root: directory on the remote for mirrored trees; relative means below the login directory.
    :ivar publish_address: local addresses that a published port without an address is opened on.
    :ivar rules: the user's rules on bind sources, before the built-in ones.
    :ivar forwards: ports of containers on the host's network.
    :ivar admission: who gets in; ``access``: and may do what.
    :ivar limits: what the proxy takes before it refuses.
    :ivar expose_host: ports of this machine that containers reach as ``host.docker.internal``.
    """

    name: str
    remote: Remote
    listen: tuple[str, ...] = DEFAULT_LISTEN
    docker: str = "unix:///var/run/docker.sock"
    sync_root: str = ".rda"
    publish_address: tuple[str, ...] = ("127.0.0.1", "::1")
    rules: tuple[Rule, ...] = ()
    forwards: tuple[Forward, ...] = ()
    admission: Admission = field(default_factory=Admission)
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    expose_host: tuple[int, ...] = ()


@dataclass(frozen=True)
class AuditSettings:
    """Where and how the audit is kept; see :class:`rda.access.audit.Audit`.

    :ivar path: of the file; "" for ``audit.jsonl`` in the state directory.
    :ivar max_bytes: of one file: some 60,000 calls.
    :ivar keep: older files that are kept.
    :ivar fail_closed: refuse changes while they cannot be noted.
    """

    path: str = ""
    max_bytes: int = 16 * 1024 * 1024
    keep: int = 8
    fail_closed: bool = False


@dataclass(frozen=True)
class Config:
    """Everything the agent needs to know.

    :ivar state_dir: local directory, owner-only, for identity and manifests.
    :ivar audit: None where none is kept.
    """

    contexts: tuple[Context, ...]
    state_dir: str
    audit: AuditSettings | None = None


@dataclass(frozen=True)
class Outside:
    """What this pure module may ask of the world.

    :ivar state_dir: the state directory when nothing is said.
    :ivar expand: makes ``~`` and relative paths absolute.
    :ivar endpoint_problem: why a Twisted server endpoint string cannot be used, or None; told whether it has TLS.
    :ivar file_problem: why a file cannot be read, or None.
    :ivar tls_problem: why a directory's TLS files cannot be used, or None; told whether clients need a certificate.
    :ivar users: this machine's users and groups.
    :ivar is_root: rda runs as root.
    :ivar tells_peers: this system is one that tells whose a connection is.
    """

    state_dir: str
    expand: Callable[[str], str]
    endpoint_problem: Callable[[str, bool], str | None]
    file_problem: Callable[[str], str | None]
    tls_problem: Callable[[str, bool], str | None]
    users: Users
    is_root: bool = False
    tells_peers: bool = True


def load(text: str | None, options: Mapping[str, Any], outside: Outside) -> Config:
    """Make the configuration of a file's text and the command line's options.

    :param text: the TOML of the configuration file, or None when there is none.
    :param options: key to value, as in the file; what is absent was not given.
    :raises ConfigError: naming every problem, each with its key.
    """
    problems: list[str] = []
    reader = TableReader("", {**_toml(text), **options}, problems)
    state_dir = outside.expand(reader.text("state_dir", outside.state_dir))
    permits = _permits(reader.table("remotes"))
    audit = _audit(reader.table("audit"), outside)
    named = reader.named_tables("context")
    top = reader.rest()
    found = []
    if "remote" in top or not named:
        found.append(_context(DEFAULT_CONTEXT, TableReader("", top, problems), outside))
    shared = {key: value for key, value in top.items() if key not in ("remote", "listen")}
    for name, own in named.items():
        if found and name == DEFAULT_CONTEXT:
            problems.append(f"context.{name}: the top level of the file describes the context of this name already")
        found.append(_named_context(name, own, shared, problems, outside))
    _check_listeners(found, problems)
    if problems:
        raise ConfigError(problems)
    own_files = (state_dir, *((audit.path,) if audit is not None and audit.path else ()))
    contexts = (
        replace(
            context,
            remote=replace(context.remote, permits=permits),
            access=context.access.without(own_files),
        )
        for context in found
    )
    return Config(contexts=tuple(contexts), state_dir=state_dir, audit=audit)


def _permits(reader: TableReader | None) -> tuple[str, ...] | None:
    """The hosts that any context may connect to; None when nothing is said."""
    if reader is None:
        return None
    permits = reader.texts("allow")
    for permit in permits:
        try:
            parse_permit(permit)
        except ValueError as e:
            reader.problem("allow", str(e))
    reader.finish("allow")
    return permits


def _audit(reader: TableReader | None, outside: Outside) -> AuditSettings | None:
    if reader is None:
        return None
    path = reader.text("path", "")
    settings = AuditSettings(
        path=outside.expand(path) if path else "",
        max_bytes=reader.whole_number("max_bytes", AuditSettings.max_bytes, 4096),
        keep=reader.whole_number("keep", AuditSettings.keep, 1),
        fail_closed=reader.flag("fail_closed", AuditSettings.fail_closed),
    )
    reader.finish("path, max_bytes, keep, fail_closed")
    return settings


def _toml(text: str | None) -> dict[str, Any]:
    try:
        return tomllib.loads(text or "")
    except tomllib.TOMLDecodeError as e:
        # All by itself: what else seems to be missing stands in the file as well.
        raise ConfigError([f"the file is not TOML: {e}"]) from e


def _named_context(
    name: str, own: Mapping[str, object], shared: Mapping[str, object], problems: list[str], outside: Outside
) -> Context:
    path = f"context.{name}."
    if not _NAME.match(name):
        problems.append(f"context.{name}: a name is letters, digits, '_', '.' and '-', at most 63")
    if "listen" not in own:
        problems.append(f"{path}listen: missing; a context of its own needs an endpoint of its own")
    # Who may do what is one thing: users' tables change the policy that they stand beside.
    inherited = {key: value for key, value in shared.items() if not (key == "user" and "policy" in own)}
    return _context(name, TableReader(path, {**inherited, **own}, problems), outside)


def _context(name: str, reader: TableReader, outside: Outside) -> Context:
    admission = _admission(reader, outside)
    context = Context(
        name=name,
        remote=_remote(reader, outside),
        listen=_listen(reader, outside, bool(admission.tls)),
        docker=_docker(reader),
        sync_root=_sync_root(reader),
        publish_address=reader.texts("publish_address", Context.publish_address),
        rules=_rules(reader),
        forwards=_forwards(reader),
        admission=admission,
        access=read_access(reader, name),
        limits=_limits(reader),
        expose_host=_expose_host(reader),
    )
    reader.finish("see the sample rda.toml for those there are")
    return context


def _admission(reader: TableReader, outside: Outside) -> Admission:
    """Who may use the context; root's rights are lent to nobody by accident."""
    admission = read_admission(reader, outside.users, outside.expand, outside.tls_problem)
    allowed = reader.flag("allow_root", False)
    lends = admission.lends_rights or ("" if outside.tells_peers else "listen")
    if outside.is_root and lends and not allowed:
        reader.problem(
            lends,
            "rda runs as root, and with this others would read files of this machine with root's rights; run one rda "
            "for each user (rda@USER.service), or set allow_root = true",
        )
    return admission


def _remote(reader: TableReader, outside: Outside) -> Remote:
    target = reader.text("remote", "")
    if not target:
        reader.problem("remote", 'missing; say --remote user@host, or remote = "user@host" in the file')
    elif target.startswith("-") or any(c.isspace() for c in target):
        reader.problem("remote", f"{target!r} is not a host, user@host, user@host:port or ssh:// address")
    host_keys = reader.texts("host_key")
    for pin in host_keys:
        if not FINGERPRINT.match(pin):
            reader.problem("host_key", f"{pin!r} is not a fingerprint like SHA256:… (ssh-keygen -l prints them)")
    return Remote(
        target=target,
        identities=_files(reader, "identity", outside, must_exist=True),
        known_hosts=_files(reader, "known_hosts", outside, must_exist=False),
        host_keys=host_keys,
        accept_new=reader.flag("accept_new", False),
        ssh_config=reader.text("ssh_config", ""),
        compression=reader.flag("compression", False),
    )


def _files(reader: TableReader, key: str, outside: Outside, *, must_exist: bool) -> tuple[str, ...]:
    paths = tuple(outside.expand(path) for path in reader.texts(key))
    for path in paths:
        why = outside.file_problem(path) if must_exist else None
        if why is not None:
            reader.problem(key, f"{path}: {why}")
    return paths


def _listen(reader: TableReader, outside: Outside, has_tls: bool) -> tuple[str, ...]:
    listen = reader.texts("listen", DEFAULT_LISTEN)
    if not listen:
        reader.problem("listen", "must name at least one endpoint")
    for description in listen:
        why = outside.endpoint_problem(description, has_tls)
        if why is not None:
            reader.problem("listen", f"{description!r}: {why}")
    return listen


def _docker(reader: TableReader) -> str:
    docker = reader.text("docker", Context.docker)
    try:
        url = urlsplit(docker)
        fine = (url.scheme == "unix" and not url.netloc and url.path.startswith("/")) or (
            url.scheme == "tcp" and bool(url.hostname) and url.port is not None
        )
    except ValueError:
        fine = False
    if not fine:
        reader.problem("docker", f"{docker!r} is neither unix:///path nor tcp://host:port")
    return docker


def _sync_root(reader: TableReader) -> str:
    root = reader.text("sync_root", Context.sync_root)
    if not root or root.strip("/") == "" or ".." in root.split("/"):
        reader.problem("sync_root", f"{root!r} is not a directory of its own on the remote host")
    return root


def _rules(reader: TableReader) -> tuple[Rule, ...]:
    return tuple(_rule(one) for one in reader.tables("bind"))


def _rule(reader: TableReader) -> Rule:
    pattern, where = reader.text("path", ""), reader.choice("where", "local", WHERES)
    mode, ignore = reader.choice("mode", Rule.mode, MODES), reader.texts("ignore")
    owner, world_writable = reader.text("owner", Rule.owner), reader.flag("world_writable", Rule.world_writable)
    if not pattern:
        reader.problem("path", "missing; it is an absolute path")
    if not _OWNER.match(owner):
        reader.problem(
            "owner",
            'must be "login", "preserve" or two numbers, "UID:GID". A name would mean another number on this machine, '
            "on the remote host and in each image; docker run --rm IMAGE id prints the image's",
        )
    if world_writable and mode != "one-way":
        reader.problem("world_writable", "is for one-way mirrors: in the others permission bits are compared")
    rule = Rule(pattern, where, mode, ignore, owner, world_writable)
    if where != "local" and rule != Rule(pattern, where):
        reader.problem("mode", 'mode, ignore and owner are for what is mirrored: where = "local"')
    reader.finish("path, where, mode, ignore, owner, world_writable")
    return rule


def _expose_host(reader: TableReader) -> tuple[int, ...]:
    value = reader.anything("expose_host", ())
    entries = value if isinstance(value, (list, tuple)) else [value]
    texts = [text.strip() for entry in entries for text in str(entry).split(",")]
    ports = tuple(dict.fromkeys(int(text) for text in texts if re.fullmatch("[0-9]{1,5}", text)))
    if len(ports) < len(set(texts)) or not all(0 < port < 65536 for port in ports):
        reader.problem("expose_host", "must be ports of this machine, e.g. [5432, 8080]")
    if len(ports) > MAX_EXPOSED:
        reader.problem("expose_host", f"names {len(ports)} ports; {MAX_EXPOSED} are possible")
    return ports


def _forwards(reader: TableReader) -> tuple[Forward, ...]:
    return tuple(_forward(one) for one in reader.tables("forward"))


def _forward(reader: TableReader) -> Forward:
    container, ports = reader.text("container", ""), reader.texts("ports")
    if not container:
        reader.problem("container", "missing; it is a container's name, or a pattern of names such as web-*")
    if not ports:
        reader.problem("ports", 'missing; they are written as for docker run -p, e.g. ["8080", "9000/udp"]')
    try:
        read_ports(ports)
    except RdaError as error:
        reader.problem("ports", str(error))
    reader.finish("container, ports")
    return Forward(container, ports)


def _limits(reader: TableReader) -> Limits:
    """Take the limits that are given; what counts bytes or things is a whole number, what is a time may have parts."""
    limits = reader.table("limits")
    if limits is None:
        return Limits()
    known = {name: type(default) for name, default in asdict(Limits()).items()}
    given = {}
    for name, value in limits.rest().items():
        kinds = (int,) if known.get(name) is int else (int, float)
        if name not in known:
            limits.problem(name, "no such limit (see the sample rda.toml for those there are)")
        elif isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
            limits.problem(name, f"must be a {'whole ' if kinds == (int,) else ''}number above 0")
        else:
            given[name] = known[name](value)
    return Limits(**given)


def _check_listeners(contexts: list[Context], problems: list[str]) -> None:
    """Two contexts cannot share an endpoint, and none may be reached from a container, as if it were this machine's."""
    owners: dict[str, str] = {}
    exposed = {port for context in contexts for port in context.expose_host}
    for context in contexts:
        path = f"context.{context.name}.listen"
        for description in context.listen:
            other = owners.setdefault(description, context.name)
            if other != context.name:
                problems.append(f"{path}: {description!r} is context {other}'s already")
            port = _TCP_PORT.match(description)
            if port is not None and int(port[1]) in exposed:
                problems.append(f"{path}: expose_host has port {port[1]} too: containers would control their own host")
