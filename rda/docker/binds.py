"""Bind mounts in the documents that clients send: where they are written, whose path they mean, what to do with them.

Pure: nothing here looks at a file. A source is written in the client's own terms, and the client may run on another
system than rda (a Windows docker.exe, rda in WSL): so a path is first read in its own :class:`Flavour`, then judged
by :class:`Rules` in order, and only then turned into a path of this machine by :func:`local_path`.

Sources: ``docker run -v`` and ``--mount`` references; dockerd's ``volume/mounts/linux_parser.go`` for how a spec
is split; the local volume driver's ``type``, ``o`` and ``device`` options, which are mount(8)'s.
"""

from __future__ import annotations

import ntpath
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache

from rda.docker.document import object_of, objects, text_list, text_of
from rda.errors import BadDocument, BadRequest, Refused

__all__ = [
    "DEFAULT_RULES",
    "BindSource",
    "Flavour",
    "Form",
    "Rule",
    "Rules",
    "System",
    "Where",
    "container_binds",
    "local_path",
    "mount_binds",
    "path_expression",
    "remote_path",
    "volume_source",
]


class Flavour(Enum):
    """How a path is written."""

    POSIX = auto()  # /home/me/src
    DRIVE = auto()  # C:\src, C:/src
    UNC = auto()  # \\server\share\src, \\wsl$\Ubuntu\home\me, //wsl.localhost/Ubuntu/home/me, \\.\pipe\docker_engine


class System(Enum):
    """What rda runs on."""

    LINUX = auto()
    MACOS = auto()
    WSL = auto()
    WINDOWS = auto()


class Form(Enum):
    """In which form a document writes a bind."""

    BINDS = auto()  # HostConfig.Binds[index]
    MOUNTS = auto()  # Mounts[index], Type bind
    VOLUME = auto()  # Mounts[index].VolumeOptions.DriverConfig, or a volumes/create document: o=bind


@dataclass(frozen=True)
class BindSource:
    """One bind mount, as its document says it.

    :ivar path: the source in normal form: lexically cleaned, ``C:\\src`` for a drive, ``\\\\server\\share`` for UNC.
    :ivar target: the path in the container; "" in a volumes/create document.
    :ivar may_create: whether the daemon would create a directory where the source is missing.
    :ivar index: its position in the list that ``form`` names; 0 for a volumes/create document.
    :ivar source: as it is written.
    :ivar rest: in Binds, what follows the source, verbatim: ``:/app:ro,z``. Else "".
    """

    path: str
    flavour: Flavour
    target: str
    read_only: bool
    may_create: bool
    form: Form
    index: int = 0
    source: str = ""
    rest: str = ""


class Where(Enum):
    """Whose path a source is; the values are those of the configuration."""

    LOCAL = "local"  # a path of this machine: mirrored to the remote host
    REMOTE = "remote"  # a path of the remote host: passed on as it is
    REFUSE = "refuse"  # neither: the create is refused


@dataclass(frozen=True)
class Rule:
    """One line of the ordered list that decides; the first whose pattern matches does.

    :ivar pattern: an absolute path with ``/``: it matches that path and everything below it. ``*`` and ``?`` match
        within one name, ``**`` across names; a ``=`` in front matches that path alone. Windows paths are compared
        with ``/`` for ``\\``, whatever their case.
    :ivar reason: for people: in create's Warnings, or in the refusal.
    :ivar instead: for ``remote``: the remote host's path for what is named so here (its Docker socket).
    :ivar expected: for ``remote``: nobody would mean anything else, so that create gives no warning.
    """

    pattern: str
    where: Where
    reason: str = ""
    instead: str = ""
    expected: bool = False


_DOCKER = "the Docker socket means the remote daemon's own"
_KERNEL = "it belongs to the kernel that runs the container"
_SOCKET = "a socket below /run is the remote host's"

#: What holds when the configuration says nothing else. etc/rda.toml shows the same list.
DEFAULT_RULES: tuple[Rule, ...] = (
    Rule("=/var/run/docker.sock", Where.REMOTE, _DOCKER, expected=True),
    Rule("=/run/docker.sock", Where.REMOTE, _DOCKER, expected=True),
    Rule("=/run/user/*/docker.sock", Where.REMOTE, _DOCKER, expected=True),
    Rule("=//./pipe/docker_engine", Where.REMOTE, _DOCKER, instead="/var/run/docker.sock", expected=True),
    Rule("//./pipe", Where.REFUSE, "a Windows named pipe cannot be reached from a Linux container"),
    Rule("/run/**.sock", Where.REMOTE, _SOCKET),
    Rule("/var/run/**.sock", Where.REMOTE, _SOCKET),
    Rule("=/run", Where.REMOTE, _SOCKET),
    Rule("=/var/run", Where.REMOTE, _SOCKET),
    Rule("/proc", Where.REMOTE, _KERNEL, expected=True),
    Rule("/sys", Where.REMOTE, _KERNEL, expected=True),
    Rule("/dev", Where.REMOTE, _KERNEL, expected=True),
    Rule("/lib/modules", Where.REMOTE, _KERNEL, expected=True),
    Rule("/usr/lib/modules", Where.REMOTE, _KERNEL, expected=True),
    Rule("/boot", Where.REMOTE, _KERNEL, expected=True),
    Rule("/var/lib/docker", Where.REMOTE, "it is the remote daemon's own directory", expected=True),
    Rule("/var/lib/containerd", Where.REMOTE, "it is the remote daemon's own directory", expected=True),
    Rule("/etc/localtime", Where.REMOTE, "the remote host's clock is meant", expected=True),
    Rule("/etc/timezone", Where.REMOTE, "the remote host's clock is meant", expected=True),
    Rule("=/", Where.REFUSE, "a whole file system is not mirrored; add a rule that says remote if its own is meant"),
)

#: What holds when no rule matches.
_LOCAL = Rule("/", Where.LOCAL)

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")

#: A drive or UNC path at the head of a Binds entry, and what follows it from the colon before an absolute target.
_WINDOWS_SPEC = re.compile(r"(?P<source>(?:\\\\\?\\)?(?:[A-Za-z]:)?[\\/][^:]*)(?P<rest>:/[^:]*(?::[^:]*)?)", re.DOTALL)

#: Prefixes that are UNC also with forward slashes. Any other ``//x`` is POSIX, as MSYS shells write ``/x``.
_UNC_SLASHES = ("//wsl$/", "//wsl.localhost/", "//./pipe/")


def container_binds(document: Mapping[str, object]) -> tuple[BindSource, ...]:
    """Find the binds of a canonical create document: those of Binds first, then those of Mounts, in their order.

    :raises BadRequest: an entry cannot be understood.
    """
    host_config = object_of(document.get("HostConfig"), "HostConfig")
    specs = text_list(host_config.get("Binds"), "HostConfig.Binds")
    binds = [bind for index, spec in enumerate(specs) if (bind := _from_spec(index, spec))]
    return (*binds, *mount_binds(host_config.get("Mounts"), "HostConfig.Mounts"))


def mount_binds(mounts: object, what: str) -> tuple[BindSource, ...]:
    """Find the binds in a ``Mounts`` list, of a container or of a service.

    :param what: the place, for errors.
    """
    found = (_from_mount(index, mount, f"{what}[{index}]") for index, mount in enumerate(objects(mounts, what)))
    return tuple(bind for bind in found if bind)


def volume_source(document: Mapping[str, object]) -> BindSource | None:
    """Find the bind that a canonical volumes/create document is in disguise, or None."""
    return _from_driver(document.get("Driver"), document.get("DriverOpts"), 0, "", False, "DriverOpts")


#: The words of a Binds entry's last part: where they stand second, the daemon finds no target (moby's linux_parser.go).
_MODES = frozenset(
    (
        *("", "ro", "rw", "z", "Z", "nocopy", "cached", "delegated", "consistent", "default"),
        *("shared", "rshared", "slave", "rslave", "private", "rprivate"),
    )
)


def _from_spec(index: int, spec: str) -> BindSource | None:
    """Read one entry of Binds; None for a named or anonymous volume."""
    if _DRIVE.match(spec) or spec.startswith(("\\\\", *_UNC_SLASHES)):
        found = _WINDOWS_SPEC.fullmatch(spec)
        if not found and spec.startswith("/"):
            raise _invalid(spec)
        if not found:
            # "c:/app" and "c:/app:ro" are a volume called c: only a second absolute path makes a drive of it.
            if "\\" in spec:
                raise _invalid(spec)
            return None
        source, rest = found["source"], found["rest"]
    elif spec.startswith("/") and ":" in spec:
        source, colon, after = spec.partition(":")
        rest = colon + after
    else:
        return None
    parts = rest[1:].split(":")
    if len(parts) > 2 or (len(parts) == 1 and _MODES.issuperset(parts[0].split(","))):
        raise _invalid(spec)
    if not parts[0].startswith("/"):
        problem = f"invalid mount path: '{parts[0]}' mount path must be absolute"
        raise _invalid(spec, f': invalid mount config for type "bind": {problem}')
    options = parts[1].split(",") if len(parts) == 2 else []
    path, flavour = _read(source)
    return BindSource(path, flavour, parts[0], "ro" in options, True, Form.BINDS, index, source, rest)


def _from_mount(index: int, mount: Mapping[str, object], what: str) -> BindSource | None:
    """Read one entry of Mounts; None for what is no bind."""
    target = text_of(mount.get("Target"), f"{what}.Target")
    read_only = mount.get("ReadOnly") is True
    if mount.get("Type") == "volume":
        driver = object_of(object_of(mount.get("VolumeOptions"), f"{what}.VolumeOptions").get("DriverConfig"), what)
        return _from_driver(driver.get("Name"), driver.get("Options"), index, target, read_only, what)
    if mount.get("Type") != "bind":
        return None
    source = text_of(mount.get("Source"), f"{what}.Source")
    may_create = object_of(mount.get("BindOptions"), f"{what}.BindOptions").get("CreateMountpoint") is True
    if not _is_path(source):
        return None  # empty or relative: the daemon says what is wrong with it
    path, flavour = _read(source)
    return BindSource(path, flavour, target, read_only, may_create, Form.MOUNTS, index, source)


def _from_driver(
    name: object, options: object, index: int, target: str, read_only: bool, what: str
) -> BindSource | None:
    """Read the local volume driver's options; None when they are not a bind of a path."""
    values = object_of(options, f"{what} options")
    words = text_of(values.get("o"), f"{what} option o").split(",")
    device = text_of(values.get("device"), f"{what} option device")
    if name not in (None, "", "local") or not {"bind", "rbind"} & set(words) or not _is_path(device):
        return None
    path, flavour = _read(device)
    return BindSource(path, flavour, target, read_only or "ro" in words, False, Form.VOLUME, index, device)


def _is_path(source: str) -> bool:
    return bool(source.startswith(("/", "\\\\")) or _DRIVE.match(source))


def _read(source: str) -> tuple[str, Flavour]:
    """Bring an absolute source to its normal form."""
    if "\0" in source:
        raise BadRequest(f"the bind source {source!r} holds a NUL character")
    if source.startswith(("\\\\?\\", "//?/")):  # Windows' long-path prefix
        source = "\\\\" + source[8:] if source[4:8].upper() in ("UNC\\", "UNC/") else source[4:]
    if _DRIVE.match(source):
        path = ntpath.normpath(source)
        return path[0].upper() + path[1:], Flavour.DRIVE
    if source.startswith(("\\\\", *_UNC_SLASHES)):
        return ntpath.normpath(source), Flavour.UNC
    path = posixpath.normpath(source)
    return "/" + path.lstrip("/"), Flavour.POSIX  # POSIX lets a leading // stand; Linux and macOS give it no meaning


@dataclass(frozen=True)
class Rules:
    """The ordered rules of one context."""

    rules: tuple[Rule, ...] = DEFAULT_RULES

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str | Where]]) -> Rules:
        """Put the user's rules, as pattern and ``local``, ``remote`` or ``refuse``, before the default ones."""
        return cls((*(Rule(pattern, Where(where)) for pattern, where in pairs), *DEFAULT_RULES))

    def find(self, bind: BindSource) -> Rule:
        """Return the first rule that matches a bind's source; without any it is local."""
        windows = bind.flavour is not Flavour.POSIX
        path = bind.path.replace("\\", "/") if windows else bind.path
        for rule in self.rules:
            if path_expression(rule.pattern, any_case=windows).fullmatch(path):
                return rule
        return _LOCAL

    def decide(self, bind: BindSource) -> Where:
        """Say whose path a bind's source is."""
        return self.find(bind).where


@lru_cache(maxsize=1024)
def path_expression(pattern: str, *, any_case: bool = False) -> re.Pattern[str]:
    """Compile a pattern as in :class:`Rule`."""
    body = pattern.removeprefix("=")
    words = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    text = "".join(words.get(piece) or re.escape(piece) for piece in re.split(r"(\*\*|\*|\?)", body.rstrip("/")))
    if pattern.startswith("="):
        text = text or "/"
    else:
        text += "(?:/.*)?"
    return re.compile(text, re.DOTALL | (re.IGNORECASE if any_case else 0))


def remote_path(bind: BindSource, rule: Rule) -> str:
    """Return the remote host's path that a bind means by a rule that says remote.

    :raises Refused: it is a Windows path, and the rule names nothing instead.
    """
    if rule.instead:
        return rule.instead
    if bind.flavour is not Flavour.POSIX:
        raise Refused(f"{bind.source} is a Windows path, and cannot be one of the remote host: {rule.pattern}")
    return bind.path


def local_path(bind: BindSource, system: System) -> str:
    """Return the path of this machine that a bind means.

    :param system: what rda runs on.
    :raises BadRequest: there is no such path on this kind of system; the message says where rda would have to run.
    """
    if system is System.WINDOWS:
        return _on_windows(bind)
    if bind.flavour is Flavour.POSIX:
        if system is System.WSL and (found := re.fullmatch(r"/run/desktop/mnt/host/([a-z])(/.*)?", bind.path)):
            return f"/mnt/{found[1]}{found[2] or ''}"
        if system is not System.LINUX and bind.path.startswith("/host_mnt/"):  # Docker Desktop's name for it
            return bind.path.removeprefix("/host_mnt")
        return bind.path
    if system is System.WSL:
        return _on_wsl(bind)
    raise BadRequest(
        f"{bind.source} is a Windows path, and rda runs on {'macOS' if system is System.MACOS else 'Linux'}: "
        "run rda on the machine that has the files (in WSL, for example)"
    )


def _on_wsl(bind: BindSource) -> str:
    """Turn a Windows path into WSL's name for it."""
    names = bind.path.replace("\\", "/")
    if bind.flavour is Flavour.DRIVE:
        return f"/mnt/{names[0].lower()}{names[2:].rstrip('/')}"
    if found := re.fullmatch(r"//(?:wsl\$|wsl\.localhost)/[^/]+(/.*)?", names, re.IGNORECASE):
        return found[1] or "/"
    raise BadRequest(f"{bind.source} is a network share, which WSL does not see: mount it, and name it by that path")


def _on_windows(bind: BindSource) -> str:
    """Turn a path that a WSL or MSYS shell wrote into Windows' name for it."""
    if bind.flavour is not Flavour.POSIX:
        return bind.path
    prefixes = "(?:/mnt|/host_mnt|/run/desktop/mnt/host)?"
    if found := re.fullmatch(rf"{prefixes}/([A-Za-z])(/.*)?", bind.path):
        return f"{found[1].upper()}:" + (found[2] or "/").replace("/", "\\")
    raise BadRequest(f"{bind.source} is no path of this Windows machine: name it with its drive, as in C:\\src")


def _invalid(spec: str, why: str = "") -> BadDocument:
    """Say what dockerd says of a Binds entry that it cannot read."""
    return BadDocument(f"invalid volume specification: '{spec}'{why}")
