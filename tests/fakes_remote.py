"""Remote hosts for the tests of sync: a directory that plays one, with faults, and local processes that play one."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, execute, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.errors import ChannelRefused, CommandFailed, LinkDown
from rda.interfaces import Attributes, IRemoteFiles, IRemoteHost
from rda.ssh.sftp import SFTPFiles
from rda.sync import bulk, remote_look, remote_watch
from rda.sync.tree import folded


def _attributes(found: os.stat_result) -> Attributes:
    return Attributes(found.st_mode, found.st_size, int(found.st_mtime), found.st_uid, found.st_gid)


@implementer(IRemoteFiles)
class DirectoryFiles:
    """A local directory as a remote host's file system: absolute paths are below ``root``.

    Behaves as OpenSSH's server does: a plain rename never replaces a file, most errors are told as a plain failure.

    :ivar operations: what was asked for, as (name, path).
    :ivar fail_at: the operation (counted from 1) at which the connection is lost.
    :ivar fail_after: whether that operation is still carried out (and only its answer is lost).
    :ivar folds: whether names that differ by case only are one.
    :ivar owners: who things were given to, by path.
    :ivar refuse: called with (name, path) before each operation; may raise what the server would answer.
    """

    def __init__(self, root: str) -> None:
        self.root = os.fsencode(root)
        self.lost = False
        self.features = frozenset({"posix-rename", "copy-data", "statvfs", "lsetstat"})
        self.write_size = 1000
        self.operations: list[tuple[str, bytes]] = []
        self.fail_at: int | None = None
        self.fail_after = False
        self.on_lost: Callable[[], None] = lambda: None
        self.refuse: Callable[[str, bytes], None] = lambda name, path: None
        self._handles: dict[bytes, int] = {}
        self.free: int | None = 1 << 40
        self.folds = False
        self.owners: dict[bytes, tuple[int | None, int | None]] = {}

    def close_everything(self) -> None:
        for descriptor in self._handles.values():
            os.close(descriptor)
        self._handles.clear()

    def _below(self, path: bytes) -> bytes:
        assert path.startswith(b"/"), path
        return self._spelled(path) if self.folds else self.root + path

    def _spelled(self, path: bytes) -> bytes:
        """The path as it is spelled on a file system without regard to case."""
        full = self.root
        for name in path.split(b"/")[1:]:
            names = os.listdir(full) if os.path.isdir(full) else []
            full += b"/" + next((other for other in names if folded(other) == folded(name)), name)
        return full

    def _do(self, name: str, path: bytes, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        if self.lost:
            return fail(LinkDown("the connection was lost"))
        self.operations.append((name, path))
        lose = self.fail_at is not None and len(self.operations) >= self.fail_at
        if lose and not self.fail_after:
            return self._lose()
        try:
            self.refuse(name, path)
            result = function(*arguments)
        except OSError as error:
            result = Failure(self._as_told(error))
        if lose:
            return self._lose()
        return fail(result) if isinstance(result, Failure) else succeed(result)

    def count(self, name: str) -> bool:
        """Count something that is no file operation among them; True when it is the one that fails."""
        self.operations.append((name, b""))
        lose = self.lost or (self.fail_at is not None and len(self.operations) >= self.fail_at)
        if lose and not self.lost:
            self._lose().addErrback(lambda _: None)
        return lose

    def _lose(self) -> Deferred[Any]:
        self.lost = True
        self.on_lost()
        self.close_everything()
        return fail(LinkDown("the connection was lost"))

    @staticmethod
    def _as_told(error: OSError) -> OSError:
        if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
            return error
        if isinstance(error, NotADirectoryError) or error.errno == errno.ELOOP:
            return FileNotFoundError(errno.ENOENT, "No such file", error.filename)
        return OSError(errno.EIO, "the remote host answered: Failure", error.filename)

    def real_path(self, path: bytes) -> Deferred[bytes]:
        if path == b".":
            return succeed(b"/home")
        return self._do("real_path", path, lambda: os.path.realpath(self._below(path))[len(self.root) :])

    def attributes(self, path: bytes) -> Deferred[Attributes]:
        return self._do("attributes", path, lambda: _attributes(os.lstat(self._below(path))))

    def list(self, path: bytes) -> Deferred[Any]:
        def entries() -> Any:
            with os.scandir(self._below(path)) as found:
                return [(item.name, _attributes(item.stat(follow_symlinks=False))) for item in found]

        return self._do("list", path, entries)

    def read_link(self, path: bytes) -> Deferred[bytes]:
        return self._do("read_link", path, lambda: os.readlink(self._below(path)))

    def read(self, path: bytes) -> Deferred[bytes]:
        def content() -> bytes:
            with open(self._below(path), "rb") as file:
                return file.read()

        return self._do("read", path, content)

    def make_directory(self, path: bytes, mode: int) -> Deferred[None]:
        return self._do("make_directory", path, os.mkdir, self._below(path), mode)

    def remove_directory(self, path: bytes) -> Deferred[None]:
        return self._do("remove_directory", path, os.rmdir, self._below(path))

    def remove(self, path: bytes) -> Deferred[None]:
        return self._do("remove", path, os.unlink, self._below(path))

    def rename(self, old: bytes, new: bytes) -> Deferred[None]:
        return self._do("rename", new, os.rename, self._below(old), self._below(new))

    def rename_new(self, old: bytes, new: bytes) -> Deferred[None]:
        def rename() -> None:
            if os.path.lexists(self._below(new)):
                raise FileExistsError(errno.EEXIST, "File exists", new)
            os.rename(self._below(old), self._below(new))

        return self._do("rename_new", new, rename)

    def symlink(self, target: bytes, path: bytes) -> Deferred[None]:
        return self._do("symlink", path, os.symlink, target, self._below(path))

    def set_attributes(self, path: bytes, mode: int | None, mtime: int | None) -> Deferred[None]:
        def change() -> None:
            if mode is not None:
                os.chmod(self._below(path), mode)
            if mtime is not None:
                os.utime(self._below(path), (mtime, mtime))

        return self._do("set_attributes", path, change)

    def give(self, path: bytes, uid: int | None, gid: int | None, mode: int | None) -> Deferred[None]:
        def change() -> None:
            os.lstat(self._below(path))
            if mode is not None:
                os.chmod(self._below(path), mode)
            if uid is not None:
                self.owners[path] = uid, gid

        return self._do("give", path, change)

    def space(self, path: bytes) -> Deferred[int | None]:
        return self._do("space", path, lambda: self.free)

    def open(self, path: bytes, *, write: bool, create: bool = False, mode: int = 0o600) -> Deferred[bytes]:
        flags = (os.O_WRONLY if write else os.O_RDONLY) | ((os.O_CREAT | os.O_EXCL) if create else 0)

        def opened() -> bytes:
            handle = b"%d" % len(self.operations)
            self._handles[handle] = os.open(self._below(path), flags, mode)
            return handle

        return self._do("open", path, opened)

    def write_at(self, handle: bytes, offset: int, data: bytes | memoryview) -> Deferred[None]:
        assert len(data) <= self.write_size
        return self._do("write_at", b"", lambda: os.pwrite(self._handles[handle], data, offset) and None)

    def read_at(self, handle: bytes, offset: int, length: int) -> Deferred[bytes]:
        return self._do("read_at", b"", lambda: os.pread(self._handles[handle], length, offset))

    def handle_attributes(self, handle: bytes) -> Deferred[Attributes]:
        return self._do("handle_attributes", b"", lambda: _attributes(os.fstat(self._handles[handle])))

    def set_handle_attributes(
        self, handle: bytes, *, size: int | None, mode: int | None, mtime: int | None
    ) -> Deferred[None]:
        def change() -> None:
            descriptor = self._handles[handle]
            if size is not None:
                os.ftruncate(descriptor, size)
            if mode is not None:
                os.fchmod(descriptor, mode)
            if mtime is not None:
                os.utime(descriptor, (mtime, mtime))

        return self._do("set_handle_attributes", b"", change)

    def copy_data(self, source: bytes, target: bytes) -> Deferred[None]:
        def copy() -> None:
            size = os.fstat(self._handles[source]).st_size
            os.pwrite(self._handles[target], os.pread(self._handles[source], size, 0), 0)

        return self._do("copy_data", b"", copy)

    def close(self, handle: bytes) -> Deferred[None]:
        return self._do("close", b"", lambda: os.close(self._handles.pop(handle)))


@implementer(IRemoteHost)
class DirectoryHost:
    """A host whose only service is its file system; the next connection is made as soon as one is lost.

    :ivar down: when set, there is no connection to be had.
    :ivar prepare: called with each new :class:`DirectoryFiles`, to give it faults.
    :ivar commands: whether it runs commands: tar and cp, as :mod:`rda.sync.bulk` asks for them.
    """

    commands = False

    def __init__(self, root: str) -> None:
        self.root = root
        os.makedirs(os.path.join(root, "home"), exist_ok=True)
        self.down = False
        self.connections: list[DirectoryFiles] = []
        self.prepare: Callable[[DirectoryFiles], None] = lambda files: None

    def files(self) -> Deferred[Any]:
        if self.down:
            return fail(LinkDown("the remote host cannot be reached"))
        if not self.connections or self.connections[-1].lost:
            self.connections.append(DirectoryFiles(self.root))
            self.prepare(self.connections[-1])
        return succeed(self.connections[-1])

    def lose(self) -> None:
        """Cut the connection."""
        for files in self.connections:
            if not files.lost:
                files.lost = True
                files.close_everything()

    def command(self, command: bytes) -> IStreamClientEndpoint:
        return _PretendedCommand(self, command) if self.commands else _NoCommands()

    def docker(self) -> IStreamClientEndpoint:
        raise NotImplementedError

    socket = tcp = docker


def at_once(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
    """Instead of a thread: now."""
    return execute(function, *arguments)


class _Pipes(ProcessProtocol):
    """A child process as a stream connection."""

    def __init__(self, protocol: Any, connected: Deferred[Any], name: str) -> None:
        self._protocol = protocol
        self._connected = connected
        self._name = name
        self._errors = b""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.loseWriteConnection = transport.closeStdin
        transport.abortConnection = lambda: transport.signalProcess("KILL")
        self._protocol.makeConnection(transport)
        self._connected.callback(self._protocol)

    def outReceived(self, data: bytes) -> None:
        self._protocol.dataReceived(data)

    def errReceived(self, data: bytes) -> None:
        self._errors = (self._errors + data)[-2000:]

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        if value.exitCode == 0:
            reason = Failure(ConnectionDone())
        else:
            message = f"{self._name}: {self._errors.decode(errors='replace')}"
            reason = Failure(CommandFailed(message, value.exitCode))
        self._protocol.connectionLost(reason)


@implementer(IStreamClientEndpoint)
class _NoCommands:
    """A host for file transfers only."""

    def connect(self, factory: Any) -> Deferred[Any]:
        return fail(ChannelRefused("this host runs no commands", 1))


class _CommandInput:
    """The transport of a pretended command: takes all its input, then does what it would have done."""

    def __init__(self, host: DirectoryHost, command: bytes, protocol: Any) -> None:
        self._host = host
        self._command = command
        self._protocol = protocol
        self._input = b""

    def write(self, data: bytes) -> None:
        self._input += data

    def registerProducer(self, producer: object, streaming: bool) -> None:
        pass

    def unregisterProducer(self) -> None:
        pass

    def abortConnection(self) -> None:
        self._protocol.connectionLost(Failure(LinkDown("aborted")))

    def loseWriteConnection(self) -> None:
        reason: Exception = ConnectionDone()
        root = os.fsencode(self._host.root)
        lost = [files for files in self._host.connections[-1:] if files.count("command")]
        if lost:
            reason = LinkDown("the connection was lost")
        elif self._command == bulk.COMMAND:
            directory, _, archive = self._input.partition(b"\n")
            with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape", encoding="utf-8") as members:
                # Not the argument filter=: Debian 12's Python, 3.11.2, does not have it yet.
                members.extraction_filter = lambda member, path: member
                members.extractall(os.fsdecode(root + directory))
        elif self._command == bulk.COPY:
            source, target = self._input.splitlines()
            shutil.copyfile(root + source, root + target)
        elif self._command == remote_look.COMMAND:
            self._protocol.dataReceived(_found_below(root + self._input.rstrip(b"\n")))
        else:
            reason = CommandFailed("not found", 127)
        self._protocol.connectionLost(Failure(reason))


def _found_below(top: bytes) -> bytes:
    """What ``find`` prints as :data:`rda.sync.remote_look.COMMAND` asks for it."""
    lines = []
    for directory, directories, files in os.walk(top):
        for path in (os.path.join(directory, name) for name in (*directories, *files)):
            found = os.lstat(path)
            kind = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}.get(stat.S_IFMT(found.st_mode), "?")
            times = (f"{time // 10**9}.{time % 10**9:09}0" for time in (found.st_mtime_ns, found.st_ctime_ns))
            numbers = (kind, f"{found.st_mode & 0o7777:o}", str(found.st_size), *times, str(found.st_ino))
            target = os.readlink(path) if kind == "l" else b""
            lines.append(b"\0".join([b"", *map(str.encode, numbers), path[len(top) + 1 :], target, b""]))
    return b"".join(lines)


@implementer(IStreamClientEndpoint)
class _PretendedCommand:
    def __init__(self, host: DirectoryHost, command: bytes) -> None:
        self._host = host
        self._command = command

    def connect(self, factory: Any) -> Deferred[Any]:
        protocol = factory.buildProtocol(None)
        protocol.makeConnection(_CommandInput(self._host, self._command, protocol))
        if self._command in remote_watch.COMMANDS.values():
            protocol.connectionLost(Failure(CommandFailed("not found", 127)))
        return succeed(protocol)


@implementer(IStreamClientEndpoint)
class _Command:
    def __init__(self, reactor: Any, arguments: list[str]) -> None:
        self._reactor = reactor
        self._arguments = arguments

    def connect(self, factory: Any) -> Deferred[Any]:
        connected: Deferred[Any] = Deferred()
        protocol = factory.buildProtocol(None)
        pipes = _Pipes(protocol, connected, " ".join(self._arguments))
        self._reactor.spawnProcess(pipes, self._arguments[0], self._arguments, env=dict(os.environ))
        return connected


def find_sftp_server() -> list[str] | None:
    """The command that runs an OpenSSH sftp-server on this machine, if there is one."""
    for path in ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server"):
        if os.path.exists(path):
            return [path]
    configured = os.environ.get("RDA_TEST_SFTP_SERVER", "")
    return configured.split() or None


@implementer(IRemoteHost)
class LocalHost:
    """This machine as a remote host: commands and an sftp-server run as child processes."""

    def __init__(self, reactor: Any, sftp_server: list[str]) -> None:
        self._reactor = reactor
        self._sftp_server = sftp_server
        self._files: SFTPFiles | None = None

    async def _connect(self) -> SFTPFiles:
        files = SFTPFiles()
        endpoint = _Command(self._reactor, self._sftp_server)

        class Factory:
            def buildProtocol(self, address: object) -> SFTPFiles:
                return files

        await endpoint.connect(Factory())
        self._files = await files.ready
        return self._files

    def files(self) -> Deferred[Any]:
        if self._files is not None and not self._files.lost:
            return succeed(self._files)
        return Deferred.fromCoroutine(self._connect())

    def command(self, command: bytes) -> IStreamClientEndpoint:
        return _Command(self._reactor, ["/bin/sh", "-c", os.fsdecode(command)])

    def docker(self) -> IStreamClientEndpoint:
        raise NotImplementedError

    socket = tcp = docker

    def stop(self) -> None:
        if self._files is not None:
            self._files.transport.loseConnection()


def contents(root: str | bytes) -> dict[bytes, tuple[Any, ...]]:
    """A directory as values to compare: by path, the kind and what matters of it."""
    top = os.fsencode(root)
    found: dict[bytes, tuple[Any, ...]] = {}
    for directory, directories, files in os.walk(top):
        for name in [*directories, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            key = path[len(top) + 1 :]
            if stat.S_ISLNK(status.st_mode):
                found[key] = ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                found[key] = ("directory", status.st_mode & 0o7777 | 0o700)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    found[key] = ("file", status.st_mode & 0o7777, int(status.st_mtime), file.read())
            else:
                found[key] = ("special",)
    return found
