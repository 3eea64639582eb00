"""Where clients connect: opening a context's endpoints, for those who may use them only, from the first moment on.

A UNIX socket is bound with a mode that lets in its owner only, in a directory where nobody else can put something in
its place, before it gets its group and mode. A socket that nobody listens on is replaced; one in use is not, and who
uses it is said.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, execute
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory

from rda.access import peers
from rda.errors import RdaError
from rda.proxy.adopted import adopt_unix_port

__all__ = [
    "BACKLOG",
    "CannotListen",
    "UnixSocket",
    "docker_host",
    "endpoint_problem",
    "is_network",
    "listen",
]

#: Longest path of a UNIX socket, bytes (sun_path, less its zero).
MAX_SOCKET_PATH = 107

#: Connections that the kernel keeps until they are accepted: a burst (of a test suite), while the reactor is busy.
#: The system of a client beyond them (Twisted's default is 50) tries again only after a second.
BACKLOG = 512

#: Where the backlog stands in ``tcp:PORT:INTERFACE:BACKLOG``.
_BACKLOG_WORD = 3

#: The kinds of Twisted endpoint strings whose clients are who the kernel says: not those that take a proxy's word.
_KINDS = ("tcp", "tcp6", "unix", "systemd")


class CannotListen(RdaError):
    """An endpoint cannot be opened; the message says why, and who has it."""


@dataclass(frozen=True)
class UnixSocket:
    """What a ``unix:`` endpoint string says.

    :ivar mode: permission bits; None: the owner's only, or the owner's and the group's where there is one.
    """

    path: str
    mode: int | None = None
    backlog: int = BACKLOG


def _words(description: str) -> tuple[str, list[str], dict[str, str]]:
    """An endpoint string's kind, its words, and its words with a name. Backslashes escape, as in Twisted."""
    parts = [re.match(r"((?:\\.|[^=\\])*)(=)?(.*)", part, re.S) for part in re.findall(r"(?:\\.|[^:\\])+", description)]
    pairs = [tuple(re.sub(r"\\(.)", r"\1", group or "") for group in part.groups()) for part in parts if part]
    plain = [before for before, equals, _ in pairs if not equals]
    return (plain or [""])[0], plain[1:], {name: value for name, equals, value in pairs if equals}


def _unix_socket(description: str) -> UnixSocket:
    """Read ``unix:/path:mode=660``.

    :raises ValueError: with the reason.
    """
    _, plain, named = _words(description)
    path = plain[0] if plain else named.get("address", "")
    mode, backlog = named.get("mode"), named.get("backlog")
    if len(plain) > 1 or set(named) - {"address", "mode", "backlog", "lockfile"} or not path.startswith("/"):
        raise ValueError("it is written unix:/absolute/path, or unix:/absolute/path:mode=660")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ValueError(f"the path of a socket has at most {MAX_SOCKET_PATH} bytes")
    return UnixSocket(path, None if mode is None else int(mode, 8), BACKLOG if backlog is None else int(backlog))


def endpoint_problem(reactor: Any, description: str, has_tls: bool) -> str | None:
    """Why a server endpoint string cannot be listened on as it stands, or None.

    Whoever reaches the Docker API is root on the remote host: plain TCP is for this machine only.

    :param has_tls: connections prove by TLS who makes them.
    """
    kind, plain, named = _words(description)
    if kind == "ssl":
        return "write tcp:… and set the key tls: it asks clients for their certificates, which this one does not"
    if kind not in _KINDS:
        return f"its kind has to be one of {', '.join(_KINDS)}"
    try:
        if kind == "unix":
            _unix_socket(description)
        endpoint = serverFromString(reactor, description)
    except Exception as e:  # the parsers of endpoint strings raise whatever they like
        if kind == "systemd" and isinstance(e, LookupError):
            return "systemd handed over no such socket: start rda through its .socket unit"
        return f"not a Twisted server endpoint string ({e or type(e).__name__})"
    if isinstance(endpoint, AdoptedStreamServerEndpoint) and not (has_tls or _private(endpoint.fileno)):
        return "plain TCP is only for a loopback address: change ListenStream= in the .socket unit, or set the key tls"
    interface = named.get("interface", plain[1] if len(plain) > 1 else "")
    if kind.startswith("tcp") and not has_tls and not _is_loopback(interface):
        return "plain TCP is only for a loopback address: add :interface=127.0.0.1, or set the key tls"
    return None


def is_network(description: str) -> bool:
    """Whether an endpoint's clients come over TCP."""
    kind, _, named = _words(description)
    return kind.startswith("tcp") or (kind == "systemd" and not named.get("domain", "").upper().startswith("UNIX"))


def _is_loopback(interface: str) -> bool:
    try:
        return interface == "localhost" or ipaddress.ip_address(interface).is_loopback
    except ValueError:
        return False


def listen(
    reactor: Any, description: str, factory: IProtocolFactory, gid: int | None = None
) -> Deferred[IListeningPort]:
    """Open a listener.

    :param description: a Twisted server endpoint string that :func:`endpoint_problem` has nothing against.
    :param gid: the group that a UNIX socket belongs to and whose members may use it.
    :returns: fails with :class:`CannotListen`.
    """
    kind, plain, named = _words(description)
    if kind == "unix":
        return execute(_listen_unix, reactor, _unix_socket(description), factory, gid)
    if kind.startswith("tcp") and "backlog" not in named and len(plain) < _BACKLOG_WORD:
        description += f":backlog={BACKLOG}"
    endpoint = serverFromString(reactor, description)
    if isinstance(endpoint, AdoptedStreamServerEndpoint) and endpoint.addressFamily == socket.AF_UNIX:
        return execute(adopt_unix_port, reactor, endpoint.fileno, factory)
    listening: Deferred[IListeningPort] = endpoint.listen(factory)
    return listening.addErrback(_say_who_listens)


def _private(descriptor: int) -> bool:
    """Whether an inherited listening socket is a UNIX one, or on a loopback address."""
    with socket.socket(fileno=os.dup(descriptor)) as listening:
        return listening.family == socket.AF_UNIX or _is_loopback(listening.getsockname()[0])


def _say_who_listens(failure: Any) -> Any:
    failure.trap(CannotListenError)
    error = failure.value
    reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
    holder = peers.who_listens(error.port) if isinstance(error.port, int) else ""
    raise CannotListen(f"{reason}: {holder}" if holder else reason)


# ------------------------------------------------------------------------------------------------------- UNIX sockets


class _Port(unix.Port):
    """A UNIX socket that is bound with the permissions it is to have, and removed only while it is the one we bound."""

    def __init__(self, path: Path, factory: IProtocolFactory, backlog: int, reactor: Any) -> None:
        super().__init__(os.fsencode(path), factory, backlog, 0o600, reactor)
        self.path = path
        self._inode: tuple[int, int] | None = None

    def createInternetSocket(self) -> socket.socket:
        """Give the socket its mode before it has a name; systems that cannot have the umask do it."""
        made: socket.socket = super().createInternetSocket()
        with contextlib.suppress(OSError):
            os.fchmod(made.fileno(), 0o600)
        return made

    def listening(self, mode: int, gid: int | None) -> None:
        """Let in whom it is for, now that it is bound."""
        status = self.path.lstat()
        self._inode = status.st_dev, status.st_ino
        if gid is not None:
            os.chown(self.path, -1, gid)
        self.path.chmod(mode)

    def connectionLost(self, reason: Any) -> None:
        """Remove the socket, unless another has taken its place."""
        try:
            status = self.path.lstat()
            ours = (status.st_dev, status.st_ino) == self._inode
        except OSError:
            ours = False
        if ours:
            super().connectionLost(reason)
        else:
            tcp.Port.connectionLost(self, reason)


def _listen_unix(reactor: Any, wanted: UnixSocket, factory: IProtocolFactory, gid: int | None) -> IListeningPort:
    mode = wanted.mode if wanted.mode is not None else 0o600 if gid is None else 0o660
    path = Path(wanted.path)
    try:
        _check_directory(path.parent, gid)
        with _alone(path):
            _remove_dead(path)
            port = _Port(path, factory, wanted.backlog, reactor)
            with _umask_where_needed():
                port.startListening()
        port.listening(mode, gid)
    except CannotListenError as e:
        raise CannotListen(str(e.socketError)) from e
    except OSError as e:
        raise CannotListen(f"{e.strerror or e}: {e.filename or path}") from e
    return port


@contextlib.contextmanager
def _umask_where_needed() -> Iterator[None]:
    """Elsewhere than on Linux a socket gets its mode from the umask alone, which all threads share."""
    if os.uname().sysname == "Linux":
        yield
        return
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _check_directory(directory: Path, gid: int | None) -> None:
    """Make the directory of a socket, its owner's only; refuse one where others could put a socket in place of ours."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700)
        if gid is not None:
            os.chown(one, -1, gid)
            one.chmod(0o710)
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise CannotListen(f"{directory} belongs to {peers.user_name(status.st_uid)}; use a directory of your own")
    others = stat.S_IWOTH if peers.is_private_group(status.st_gid) else stat.S_IWGRP | stat.S_IWOTH
    if status.st_mode & others and not status.st_mode & stat.S_ISVTX:
        raise CannotListen(f"others can write to {directory}; use a directory of your own, or: chmod go-w {directory}")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep two starting instances from removing each other's new socket. The lock file stays: removing it is a race."""
    lock = path.with_name(f".{path.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotListen(f"another process is just opening {path}") from None
        yield
    finally:
        os.close(descriptor)


def _remove_dead(path: Path) -> None:
    """Remove a socket that nobody listens on.

    :raises CannotListen: somebody does, or it is something else, or another user's.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise CannotListen(f"{path} is no socket; remove it, or choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            raise CannotListen(f"{path} is in use, by a process that does not answer") from None
        raise CannotListen(f"{path} is in use by {peers.process_name(peers.credentials(probe))}")


def docker_host(address: Any) -> str:
    """What DOCKER_HOST has to be for a client to reach a listener."""
    if hasattr(address, "port"):
        host = "localhost" if address.host in ("127.0.0.1", "::1") else address.host
        return f"tcp://[{host}]:{address.port}" if ":" in host else f"tcp://{host}:{address.port}"
    name = address.name
    return "unix://" + (name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name))
