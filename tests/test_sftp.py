"""The SFTP client, against Conch's server in memory, and byte by byte."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import tempfile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.conch.interfaces import ISFTPFile, ISFTPServer
from twisted.conch.ssh.filetransfer import FileTransferServer, SFTPError
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from rda.errors import LinkDown
from rda.interfaces import Attributes
from rda.ssh import sftp, sftp_wire
from rda.ssh.sftp import SFTPFiles, Unsupported
from rda.ssh.sftp_wire import pack


@implementer(ISFTPFile)
class _File:
    def __init__(self, path: bytes, flags: int, attributes: dict[str, Any]) -> None:
        mode = os.O_RDWR if flags & 2 else os.O_RDONLY
        mode |= (os.O_CREAT if flags & 8 else 0) | (os.O_EXCL if flags & 0x20 else 0)
        self.descriptor = os.open(path, mode, attributes.get("permissions", 0o600))

    def close(self) -> None:
        os.close(self.descriptor)

    def readChunk(self, offset: int, length: int) -> bytes:
        return os.pread(self.descriptor, length, offset)

    def writeChunk(self, offset: int, data: bytes) -> None:
        os.pwrite(self.descriptor, data, offset)

    def getAttrs(self) -> dict[str, Any]:
        return _attrs(os.fstat(self.descriptor))

    def setAttrs(self, attrs: dict[str, Any]) -> None:
        if "size" in attrs:
            os.ftruncate(self.descriptor, attrs["size"])
        if "permissions" in attrs:
            os.fchmod(self.descriptor, attrs["permissions"])
        if "mtime" in attrs:
            os.utime(self.descriptor, (attrs["atime"], attrs["mtime"]))


class _Listing:
    def __init__(self, path: bytes) -> None:
        self._names = [(b".", b"", {}), (b"..", b"", {})]
        for name in os.listdir(path):
            self._names.append((name, b"ls -l", _attrs(os.lstat(path + b"/" + name))))

    def __iter__(self) -> Any:
        return iter(self._names)

    def close(self) -> None:
        pass


def _attrs(found: os.stat_result) -> dict[str, Any]:
    return {
        "size": found.st_size,
        "uid": found.st_uid,
        "gid": found.st_gid,
        "permissions": found.st_mode,
        "atime": int(found.st_atime),
        "mtime": int(found.st_mtime),
    }


@implementer(ISFTPServer)
class _Server:
    """The operating system's files, as OpenSSH's server would tell of them."""

    extensions: dict[bytes, bytes] = {}

    def __init__(self) -> None:
        self.given: list[tuple[bytes, bytes]] = []

    def gotVersion(self, version: int, extensions: dict[bytes, bytes]) -> dict[bytes, bytes]:
        return self.extensions

    def openFile(self, path: bytes, flags: int, attrs: dict[str, Any]) -> _File:
        try:
            return _File(path, flags, attrs)
        except FileExistsError as error:
            raise SFTPError(4, "Failure") from error

    def openDirectory(self, path: bytes) -> _Listing:
        return _Listing(path)

    def getAttrs(self, path: bytes, follow: bool) -> dict[str, Any]:
        return _attrs(os.stat(path) if follow else os.lstat(path))

    def setAttrs(self, path: bytes, attrs: dict[str, Any]) -> None:
        if "permissions" in attrs:
            os.chmod(path, attrs["permissions"])
        if "mtime" in attrs:
            os.utime(path, (attrs["atime"], attrs["mtime"]))

    def readLink(self, path: bytes) -> bytes:
        return os.readlink(path)

    def makeLink(self, first: bytes, second: bytes) -> None:
        os.symlink(first, second)  # OpenSSH's order

    def makeDirectory(self, path: bytes, attrs: dict[str, Any]) -> None:
        try:
            os.mkdir(path, attrs["permissions"])
        except FileExistsError as error:
            raise SFTPError(4, "Failure") from error

    def removeDirectory(self, path: bytes) -> None:
        try:
            os.rmdir(path)
        except OSError as error:
            raise SFTPError(4, "Failure") from error

    def removeFile(self, path: bytes) -> None:
        os.unlink(path)

    def renameFile(self, old: bytes, new: bytes) -> None:
        if os.path.lexists(new):
            raise SFTPError(4, "Failure")
        os.rename(old, new)

    def realPath(self, path: bytes) -> bytes:
        return os.path.realpath(path)

    def extendedRequest(self, name: bytes, data: bytes) -> bytes:
        if name == b"posix-rename@openssh.com":
            old, rest = _string(data)
            os.rename(old, _string(rest)[0])
            return b""
        if name == b"lsetstat@openssh.com":
            path, attributes = _string(data)
            self.given.append((path, attributes))
            return b""
        raise NotImplementedError(name)


def _string(data: bytes) -> tuple[bytes, bytes]:
    length = struct.unpack_from(">L", data)[0]
    return data[4 : 4 + length], data[4 + length :]


class _Wire(StringTransport):
    """Each side's bytes go to the other side when the test says so."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Session:
    """A client and Conch's server."""

    def __init__(self, extensions: dict[bytes, bytes]) -> None:
        self.avatar = avatar = _Server()
        avatar.extensions = extensions
        self.server = FileTransferServer(avatar=avatar)
        self.client = SFTPFiles()
        self.to_server, self.to_client = _Wire(), _Wire()
        self.client.makeConnection(self.to_server)  # type: ignore[arg-type]
        self.server.makeConnection(self.to_client)

    def pump(self) -> None:
        """Deliver until nothing moves any more."""
        while self.to_server.value() or self.to_client.value():
            data = self.to_server.value()
            self.to_server.clear()
            self.server.dataReceived(data)
            data = self.to_client.value()
            self.to_client.clear()
            self.client.dataReceived(data)


class ServerCase(SynchronousTestCase):
    """A temporary directory behind Conch's server."""

    extensions: dict[bytes, bytes] = {b"posix-rename@openssh.com": b"1"}

    def setUp(self) -> None:
        top = tempfile.mkdtemp(prefix="rda-sftp-")
        self.addCleanup(shutil.rmtree, top, True)
        self.top = os.fsencode(top)
        self.session = Session(self.extensions)
        self.session.pump()
        self.files = self.successResultOf(self.session.client.ready)

    def do(self, pending: Deferred[Any]) -> Any:
        self.session.pump()
        return self.successResultOf(pending)

    def refused(self, pending: Deferred[Any], kind: type[BaseException]) -> None:
        self.session.pump()
        self.failureResultOf(pending, kind)

    def path(self, name: bytes) -> bytes:
        return self.top + b"/" + name

    def make(self, name: bytes, data: bytes = b"x") -> bytes:
        with open(self.path(name), "wb") as file:
            file.write(data)
        return self.path(name)


class OperationTests(ServerCase):
    """Every operation does what its interface says."""

    def test_names(self) -> None:
        """Directories are made, listed, examined and removed; names may hold any bytes."""
        strange = self.path(b"\xff\n name")
        self.do(self.files.make_directory(strange, 0o700))
        self.make(b"file", b"12345")
        listing = dict(self.do(self.files.list(self.top)))
        self.assertEqual(set(listing), {b"\xff\n name", b"file"})
        self.assertEqual(listing[b"file"].size, 5)
        self.assertTrue(stat.S_ISDIR(self.do(self.files.attributes(strange)).mode))
        self.assertEqual(self.do(self.files.real_path(self.top + b"/.")), os.path.realpath(self.top))
        self.do(self.files.remove_directory(strange))
        self.do(self.files.remove(self.path(b"file")))
        self.assertEqual(os.listdir(self.top), [])

    def test_names_that_are_none(self) -> None:
        """A server that lists what is no name of a directory, or more names than there can be, is not believed."""
        self.make(b"file", b"12345")
        real = sftp_wire.names_of
        for name in (b"../x", b"", b"/", b"a\0b"):
            extra = (name, Attributes(0o100644, 0, 0))
            patched = self.patch(
                sftp_wire, "names_of", lambda *answer, extra=extra: (found := real(*answer)) and [*found, extra]
            )
            self.refused(self.files.list(self.top), OSError)
            patched.restore()
        self.patch(sftp, "MAX_NAMES", 1)
        self.make(b"other", b"")
        self.refused(self.files.list(self.top), OSError)

    def test_links(self) -> None:
        """A symbolic link leads where it was told to, verbatim, and is examined itself."""
        self.do(self.files.symlink(b"../\xfe", self.path(b"link")))
        self.assertEqual(os.readlink(self.path(b"link")), b"../\xfe")
        self.assertEqual(self.do(self.files.read_link(self.path(b"link"))), b"../\xfe")
        self.assertTrue(stat.S_ISLNK(self.do(self.files.attributes(self.path(b"link"))).mode))

    def test_give(self) -> None:
        """Owner and permission bits are set of the very thing that has the name, each where it is wanted."""
        self.do(self.files.give(b"/a", 1000, 2000, None))
        self.do(self.files.give(b"/b", None, None, 0o666))
        self.do(self.files.give(b"/c", 0, 0, 0o777))
        pack = struct.Struct(">L").pack
        self.assertEqual(
            self.session.avatar.given,
            [
                (b"/a", pack(2) + pack(1000) + pack(2000)),
                (b"/b", pack(4) + pack(0o666)),
                (b"/c", pack(6) + pack(0) + pack(0) + pack(0o777)),
            ],
        )

    def test_content(self) -> None:
        """What is written at once on one handle arrives in order, with its attributes."""
        path = self.path(b"f")
        handle = self.do(self.files.open(path, write=True, create=True))
        pending = [
            self.files.write_at(handle, 0, b"a" * 1000),
            self.files.write_at(handle, 1000, b"b" * 1000),
            self.files.set_handle_attributes(handle, size=1500, mode=0o640, mtime=1_000_000_000),
            self.files.handle_attributes(handle),
            self.files.close(handle),
        ]
        self.session.pump()
        results = [self.successResultOf(each) for each in pending]
        self.assertEqual(results[3].size, 1500)
        self.assertEqual(self.do(self.files.read(path)), b"a" * 1000 + b"b" * 500)
        found = os.stat(path)
        self.assertEqual((found.st_mode & 0o777, found.st_mtime), (0o640, 1_000_000_000))
        self.do(self.files.set_attributes(path, 0o600, None))
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

    def test_rename(self) -> None:
        """A rename replaces what is there; a new rename refuses to, and changes nothing."""
        old, new = self.make(b"old", b"1"), self.make(b"new", b"2")
        self.refused(self.files.rename_new(old, new), FileExistsError)
        self.assertEqual(sorted(os.listdir(self.top)), [b"new", b"old"])
        self.do(self.files.rename(old, new))
        self.assertEqual(os.listdir(self.top), [b"new"])
        self.do(self.files.rename_new(new, self.path(b"other")))

    def test_errors(self) -> None:
        """Errors are the exceptions that a local call would have raised."""
        self.refused(self.files.attributes(self.path(b"gone")), FileNotFoundError)
        self.refused(self.files.read(self.path(b"gone")), FileNotFoundError)
        self.refused(self.files.list(self.path(b"gone")), FileNotFoundError)
        self.do(self.files.make_directory(self.path(b"d"), 0o700))
        self.refused(self.files.make_directory(self.path(b"d"), 0o700), FileExistsError)
        self.refused(self.files.open(self.path(b"d"), write=True, create=True), FileExistsError)
        self.make(b"d/f")
        self.refused(self.files.remove_directory(self.path(b"d")), OSError)

    def test_no_space_told(self) -> None:
        """A server without statvfs does not tell how much space there is."""
        self.assertIsNone(self.do(self.files.space(self.top)))


class PlainServerTests(OperationTests):
    """The same, with a server that knows no extensions."""

    extensions: dict[bytes, bytes] = {}


class WireTests(SynchronousTestCase):
    """What goes over the wire, and when."""

    def setUp(self) -> None:
        self.client = SFTPFiles()
        self.wire = _Wire()
        self.client.makeConnection(self.wire)  # type: ignore[arg-type]

    def greet(self) -> None:
        self.client.dataReceived(struct.pack(">LBL", 5, 2, 3))
        self.successResultOf(self.client.ready)
        self.wire.clear()

    def requests(self) -> list[bytes]:
        data, found = self.wire.value(), []
        while data:
            length = struct.unpack_from(">L", data)[0]
            found.append(data[4 : 4 + length])
            data = data[4 + length :]
        return found

    def answer(self, request: bytes) -> None:
        self.client.dataReceived(struct.pack(">LB", 9, 101) + request[1:5] + struct.pack(">L", 0))

    def test_bound_on_requests(self) -> None:
        """No more than the named number of requests is sent; each answer lets another one go."""
        self.greet()
        done = [self.client.remove(b"/x") for _ in range(sftp.REQUESTS_IN_FLIGHT + 10)]
        sent = self.requests()
        self.assertEqual(len(sent), sftp.REQUESTS_IN_FLIGHT)
        self.answer(sent[0])
        self.assertEqual(len(self.requests()), sftp.REQUESTS_IN_FLIGHT + 1)
        self.successResultOf(done[0])
        self.assertNoResult(done[1])
        self.client.connectionLost(Failure(ConnectionDone()))
        for each in done[1:]:
            self.failureResultOf(each, LinkDown)

    def test_bound_on_bytes(self) -> None:
        """No more than the named number of bytes is in flight."""
        self.greet()
        chunk = b"x" * sftp.SAFE_CHUNK
        done = [self.client.write_at(b"h", 0, chunk) for _ in range(2 * sftp.BYTES_IN_FLIGHT // len(chunk))]
        self.assertLessEqual(len(self.wire.value()), sftp.BYTES_IN_FLIGHT + 1000)
        self.assertGreater(len(self.wire.value()), sftp.BYTES_IN_FLIGHT // 2)
        self.client.connectionLost(Failure(ConnectionDone()))
        for each in done:
            self.failureResultOf(each, LinkDown)

    def test_back_pressure(self) -> None:
        """While the channel is full nothing is sent."""
        self.greet()
        self.client.pauseProducing()
        done = self.client.remove(b"/x")
        self.assertEqual(self.wire.value(), b"")
        self.client.resumeProducing()
        (request,) = self.requests()
        self.answer(request)
        self.successResultOf(done)

    def test_not_sftp(self) -> None:
        """A shell's greeting is called by its name."""
        self.client.dataReceived(b"Welcome to this machine!\n")
        failure = self.failureResultOf(self.client.ready, Unsupported)
        self.assertIn("non-interactive", str(failure.value))
        self.assertTrue(self.wire.aborted)

    def test_lost_before_the_greeting(self) -> None:
        """A channel that closes before the server has spoken fails ``ready`` with its reason."""
        self.client.connectionLost(Failure(LinkDown("gone")))
        self.failureResultOf(self.client.ready, LinkDown)
        self.failureResultOf(self.client.remove(b"/x"), LinkDown)

    def test_ended_before_the_greeting(self) -> None:
        """A channel that ends so without a reason: a shell has ended."""
        self.client.connectionLost(Failure(ConnectionDone()))
        self.assertIn("non-interactive", str(self.failureResultOf(self.client.ready, LinkDown).value))

    def test_limits(self) -> None:
        """The server's limits are asked for, and kept within what SFTP allows."""
        names = pack(b"limits@openssh.com") + pack(b"1")
        self.client.dataReceived(struct.pack(">LBL", 5 + len(names), 2, 3) + names)
        self.assertNoResult(self.client.ready)
        request = self.requests()[-1]
        body = struct.pack(">4Q", 262144, 261120, 261120, 1019)
        self.client.dataReceived(struct.pack(">LB", 5 + len(body), 201) + request[1:5] + body)
        self.successResultOf(self.client.ready)
        self.assertEqual(self.client.write_size, 261120)

    @given(st.data())
    @settings(max_examples=40, deadline=None)
    def test_any_split(self, data: st.DataObject) -> None:
        """Answers mean the same however they are cut up."""
        self.setUp()
        self.greet()
        done = [self.client.handle_attributes(b"h") for _ in range(5)]
        stream = b""
        for number, request in enumerate(self.requests()):
            body = struct.pack(">LQL", 5, number, 0o100644)
            stream += struct.pack(">LB", 5 + len(body), 105) + request[1:5] + body
        while stream:
            cut = data.draw(st.integers(1, len(stream)))
            self.client.dataReceived(stream[:cut])
            stream = stream[cut:]
        self.assertEqual([self.successResultOf(each).size for each in done], [0, 1, 2, 3, 4])
