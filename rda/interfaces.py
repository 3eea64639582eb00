"""The seams between rda's parts.

``proxy``, ``ports``, ``containers`` and ``sync`` never import ``rda.ssh``: they are given an :class:`IRemoteHost`
(in tests, one made of local endpoints) and a clock. The proxy never knows what a container is: it asks an
:class:`ICallRewriter`.
"""

# zope.interface methods have no self.
# mypy: disable-error-code="misc,empty-body"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocolFactory, IStreamClientEndpoint
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from rda.docker.routes import Call, Fields, Outgoing, Table

__all__ = [
    "Attributes",
    "ICallRewriter",
    "IGate",
    "IRemoteFiles",
    "IRemoteHost",
    "IRemoteListener",
    "IRoomy",
    "ITakesViews",
]


@dataclass(frozen=True, slots=True)
class Attributes:
    """What SFTP tells of a file.

    :ivar mode: as ``st_mode``: type and permission bits.
    :ivar size: bytes.
    :ivar mtime: whole seconds since the epoch, by the remote host's clock.
    """

    mode: int
    size: int
    mtime: int
    uid: int = -1
    gid: int = -1


class ITakesViews(Interface):
    """A protocol whose ``dataReceived`` may be given a memoryview instead of bytes, to save a copy of all data.

    The view is valid only during the call: its buffer is used again.
    """


class IRoomy(Interface):
    """A transport into which data to be sent can be received, instead of written to it afterwards: a copy less."""

    def room() -> memoryview:
        """Where to receive into, never empty; asked for before each receive."""

    def filled(size: int) -> None:
        """Send the first ``size`` bytes of :meth:`room`, as ``write`` would."""


class IRemoteHost(Interface):
    """The machine at the other end of the link.

    Every method that returns an endpoint returns at once and opens nothing; ``endpoint.connect(factory)`` opens one
    SSH channel. When the link is down, ``connect`` waits for it up to a named time and then fails with
    :class:`rda.errors.LinkDown` (or a :class:`rda.errors.LoginFailed` at once). A channel that the server refuses
    fails with :class:`rda.errors.ChannelRefused`.

    The transports are ``ITCPTransport``-like: ``write``, ``writeSequence``, ``loseConnection``, ``abortConnection``,
    ``loseWriteConnection``, ``registerProducer`` / ``unregisterProducer`` (streaming producers), ``pauseProducing`` /
    ``resumeProducing``, ``getHost``, ``getPeer``. Both directions have real back-pressure. A protocol that provides
    ``IHalfCloseableProtocol`` is told of the peer's end of file with ``readConnectionLost``; any other has its
    connection closed. All data comes before the close.
    """

    def docker() -> IStreamClientEndpoint:
        """The Docker daemon's API socket, reached in whichever way this server allows."""

    def socket(path: str) -> IStreamClientEndpoint:
        """A UNIX-domain socket of the remote host (``direct-streamlocal@openssh.com``)."""

    def tcp(host: str, port: int) -> IStreamClientEndpoint:
        """A TCP port as seen from the remote host (``direct-tcpip``, RFC 4254 section 7.2)."""

    def command(command: bytes) -> IStreamClientEndpoint:
        """A command run by the remote user's shell; the transport is its stdin and stdout.

        :param command: a constant of ours. Values that come from users never go into it: they are sent over stdin.

        ``connectionLost`` gets ``ConnectionDone`` when it ended with status 0, else a
        :class:`rda.errors.CommandFailed` whose message holds the end of its standard error.
        """

    def listen(path: str, factory: IProtocolFactory) -> Deferred[IRemoteListener]:
        """Listen on a UNIX-domain socket of the remote host (``streamlocal-forward@openssh.com``).

        :param path: absolute, and nothing is there yet; only the login's own user can connect to it.
        :param factory: makes the protocol of each connection; one that it makes no protocol for is refused.
        :returns: fires when the server listens; fails as ``connect`` does. The listening ends with the link: ask again
            on the next one.
        """

    def files() -> Deferred[IRemoteFiles]:
        """The remote host's file system, over a shared SFTP channel; fails as ``connect`` does."""

    connected = Attribute("Whether the link is up at the moment.")


class IRemoteListener(Interface):
    """A socket of the remote host that is listened on."""

    over = Attribute("True when it has ended, by stopListening or with the link.")

    def getHost() -> IAddress:
        """Where it is, on the remote host."""

    def stopListening() -> Deferred[None]:
        """Accept no more connections; those that there are live on."""


class IRemoteFiles(Interface):
    """File operations on the remote host: SFTP version 3 as OpenSSH serves it.

    Paths are bytes and absolute. Calls may be issued without waiting for earlier ones (they are pipelined within a
    named bound); the server is free to carry them out in any order, so wait where order matters. Failures are
    :class:`rda.errors.RdaError` or OSError subclasses (FileNotFoundError, PermissionError, FileExistsError, OSError).
    """

    lost = Attribute("True when the channel is gone: ask IRemoteHost.files() for another.")

    def real_path(path: bytes) -> Deferred[bytes]:
        """Canonical absolute form; of ``b"."``, the login directory."""

    def attributes(path: bytes) -> Deferred[Attributes]:
        """What is at ``path``, not following a final symlink."""

    def list(path: bytes) -> Deferred[list[tuple[bytes, Attributes]]]:
        """The directory's entries, without ``.`` and ``..``, in any order."""

    def read_link(path: bytes) -> Deferred[bytes]:
        """The target of a symbolic link, verbatim."""

    def read(path: bytes) -> Deferred[bytes]:
        """The whole of a small file."""

    def make_directory(path: bytes, mode: int) -> Deferred[None]:
        """Make one directory."""

    def remove_directory(path: bytes) -> Deferred[None]:
        """Remove an empty directory."""

    def remove(path: bytes) -> Deferred[None]:
        """Remove anything but a directory."""

    def rename(old: bytes, new: bytes) -> Deferred[None]:
        """Rename, atomically replacing what is there (``posix-rename@openssh.com``)."""

    def symlink(target: bytes, path: bytes) -> Deferred[None]:
        """Make a symbolic link at ``path``."""

    def set_attributes(path: bytes, mode: int | None, mtime: int | None) -> Deferred[None]:
        """Set permission bits and whole-second modification time, where given. Follows symbolic links."""

    def give(path: bytes, uid: int | None, gid: int | None, mode: int | None) -> Deferred[None]:
        """Set owner and group (both or none) and permission bits, where given, of exactly what is at ``path``.

        Follows no symbolic link. Only with the feature ``lsetstat``.
        """

    features = Attribute("What the server can do beyond SFTP version 3: names such as ``posix-rename``, ``copy-data``.")

    write_size = Attribute("The most bytes that one write_at may carry.")

    def rename_new(old: bytes, new: bytes) -> Deferred[None]:
        """Rename, failing with FileExistsError (and changing nothing) when something has the new name."""

    def space(path: bytes) -> Deferred[int | None]:
        """Bytes that an ordinary user can still write where ``path`` is; None when the server does not tell."""

    def open(path: bytes, *, write: bool, create: bool = False, mode: int = 0o600) -> Deferred[bytes]:
        """Open a file and fire with its handle; with ``create`` it must not exist yet.

        Operations on one handle are carried out in the order in which they were asked for, so they may be issued
        without waiting. Every handle has to be closed.
        """

    def write_at(handle: bytes, offset: int, data: bytes | memoryview) -> Deferred[None]:
        """Write at most ``write_size`` bytes, which are copied at once."""

    def read_at(handle: bytes, offset: int, length: int) -> Deferred[bytes]:
        """Read at most ``length`` bytes; b"" at the end of the file."""

    def handle_attributes(handle: bytes) -> Deferred[Attributes]:
        """What an open file is."""

    def set_handle_attributes(
        handle: bytes, *, size: int | None, mode: int | None, mtime: int | None
    ) -> Deferred[None]:
        """Truncate or extend, set permission bits, set the modification time: where given."""

    def copy_data(source: bytes, target: bytes) -> Deferred[None]:
        """Copy all of one open file to the start of another on the remote host (only with ``copy-data``)."""

    def close(handle: bytes) -> Deferred[None]:
        """Close a handle."""


class ICallRewriter(Interface):
    """Who knows what a Docker API call means: asked by the proxy, for the routes that say so.

    The proxy calls these in the order of the methods below, for one exchange. Failing with an
    :class:`rda.errors.RdaError` answers the client with its status and message and relays nothing (further).
    """

    def outgoing(call: Call, body: dict[str, object] | None) -> Deferred[Outgoing]:
        """Decide what is sent to the daemon. Fires when it may be sent: this is where ``start`` waits.

        Called once the head, and for routes with a document body the whole body, is there.
        """

    def answered(call: Call, sent: Outgoing, status: int, body: object | None) -> Deferred[object | None]:
        """See the answer before the client does, and change it. Fires when the client may see it.

        :param body: the parsed JSON of the answer for routes whose answer is a document; None for the others.
        """

    def streamed(call: Call, sent: Outgoing, document: object) -> object | None:
        """Change one document of a stream of JSON documents (events); None leaves it out."""

    def aborted(call: Call, sent: Outgoing) -> None:
        """The exchange ended without an answer (client gone, link lost): undo what ``outgoing`` reserved."""


class IGate(Interface):
    """Who looks at every call of a site before anything is decided about it, and notes how it went."""

    table: Table = Attribute("Which routes are told apart; all of them ask their ICallRewriter.")

    def admit(call: Call, fields: Fields) -> tuple[Call, Fields]:
        """Look at a request's head; return the call and the header fields to go on with.

        :raises RdaError: it is refused.
        """

    def admit_own(call: Call) -> None:
        """Look at a request for rda's own pages; raises as above."""

    def over(call: Call, status: int | None, seconds: float, sent: int, received: int) -> None:
        """Note how a call went.

        :param status: of the answer, or None where there was none.
        :param sent: bytes to the daemon; ``received``: bytes to the client.
        """
