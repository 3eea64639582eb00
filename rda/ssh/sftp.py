"""An SFTP client: version 3 (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions (its file PROTOCOL, section 4).

Why not Conch's: its client decodes names, copies its buffers over and over, logs every reply, sends SETSTAT as FSTAT,
and puts no bound on what is in flight. This one keeps paths as bytes and has one bounded queue.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.errors import LinkDown, RdaError
from rda.interfaces import Attributes, IRemoteFiles

#: Requests that have been sent and not answered. OpenSSH reads them one after the other from its pipe, so more of them
#: only cover the round trip: 1,024 small ones are 100 kB.
REQUESTS_IN_FLIGHT = 1024

#: Bytes of requests and of asked-for data that are in flight: enough for 400 Mbit/s at 80 ms, and what a stalled
#: server costs in memory.
BYTES_IN_FLIGHT = 4 * 1024 * 1024

#: OpenSSH's SFTP_MAX_MSG_LENGTH; a longer packet means that this is not SFTP (a shell's greeting, say).
PACKET_LIMIT = 256 * 1024

#: What every server takes in one read or write (the draft's section 3 asks for packets of 34,000 bytes).
SAFE_CHUNK = 32768

#: A file read whole is small by definition; a longer one is refused.
WHOLE_FILE_LIMIT = 16 * 1024 * 1024

_INIT, _VERSION, _OPEN, _CLOSE, _READ, _WRITE, _LSTAT, _FSTAT, _SETSTAT, _FSETSTAT = range(1, 11)
_OPENDIR, _READDIR, _REMOVE, _MKDIR, _RMDIR, _REALPATH, _STAT, _RENAME, _READLINK, _SYMLINK = range(11, 21)
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS = range(101, 106)
_EXTENDED, _EXTENDED_REPLY = 200, 201

_OK, _EOF, _NO_SUCH_FILE, _PERMISSION_DENIED, _FAILURE, _BAD_MESSAGE = range(6)
_OP_UNSUPPORTED = 8

_FLAG_READ, _FLAG_WRITE, _FLAG_CREATE, _FLAG_EXCLUSIVE = 0x01, 0x02, 0x08, 0x20
_ATTR_SIZE, _ATTR_OWNER, _ATTR_MODE, _ATTR_TIMES, _ATTR_EXTENDED = 0x01, 0x02, 0x04, 0x08, 0x80000000

_U32, _U64 = struct.Struct(">L"), struct.Struct(">Q")
_HEAD = struct.Struct(">LBL")

#: OpenSSH's extensions that are used when the server names them, and what they are called here.
_EXTENSIONS = {
    b"posix-rename@openssh.com": "posix-rename",
    b"statvfs@openssh.com": "statvfs",
    b"fsync@openssh.com": "fsync",
    b"limits@openssh.com": "limits",
    b"copy-data": "copy-data",
    b"lsetstat@openssh.com": "lsetstat",
}

_Answer = Callable[[int, bytes], Any]

Buffer = bytes | memoryview


class ServerError(OSError):
    """A failure that SFTP has no better word for (disk full, not empty, exists, …: OpenSSH says ``Failure``)."""


class Unsupported(RdaError):
    """The server does not know an operation."""

    status = 502


class _Request:
    """One request: what is sent, what its answer becomes, and what it counts for while it is in flight."""

    __slots__ = ("answer", "data", "deferred", "subject", "weight")

    def __init__(self, data: bytes, weight: int, answer: _Answer, subject: bytes) -> None:
        self.data = data
        self.weight = weight
        self.answer = answer
        self.subject = subject
        self.deferred: Deferred[Any] = Deferred()


@implementer(IRemoteFiles, IPushProducer)
class SFTPFiles(Protocol):
    """The remote file system over one ``sftp`` channel.

    Connect it over the channel's endpoint and wait for :attr:`ready`. Requests beyond the named bounds wait in a queue:
    a caller that reads data to send has to bound how many writes it has outstanding.

    :ivar ready: fires with this object when the server has said its version, or fails.
    """

    transport: ITCPTransport

    def __init__(self) -> None:
        self.ready: Deferred[SFTPFiles] = Deferred()
        self.lost = False
        self.features: frozenset[str] = frozenset()
        self.write_size = SAFE_CHUNK
        self._read_size = SAFE_CHUNK
        self._buffer = bytearray()
        self._waiting: deque[_Request] = deque()
        self._sent: dict[int, _Request] = {}
        self._weight = 0
        self._next_id = 0
        self._paused = False
        self._greeted = False

    # -- the connection

    def connectionMade(self) -> None:
        """Say our version."""
        consumer: Any = self.transport
        consumer.registerProducer(self, True)
        self.transport.write(_U32.pack(5) + bytes((_INIT,)) + _U32.pack(3))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail everything that is waiting."""
        self._fail(LinkDown("the SFTP channel to the remote host was closed"), reason)

    def _fail(self, error: RdaError, reason: Failure | None = None) -> None:
        self.lost = True
        if reason is not None:
            error.__cause__ = reason.value
        requests = [*self._sent.values(), *self._waiting]
        self._sent.clear()
        self._waiting.clear()
        if not self._greeted:
            self._greeted = True
            self.ready.errback(reason if reason is not None and isinstance(reason.value, RdaError) else Failure(error))
        for request in requests:
            request.deferred.errback(error)

    def _break(self, message: str) -> None:
        """The server does not speak SFTP."""
        self._fail(Unsupported(f"{message}. Does the remote user's shell print something for non-interactive logins?"))
        self.transport.abortConnection()

    def pauseProducing(self) -> None:
        """The channel is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The channel has room."""
        self._paused = False
        self._pump()

    def stopProducing(self) -> None:
        """The channel is gone; connectionLost follows."""
        self._paused = True

    # -- packets

    def dataReceived(self, data: bytes) -> None:
        """Cut packets out of the stream."""
        buffer = self._buffer
        buffer += data
        offset, end = 0, len(buffer)
        while end - offset >= 9:
            length, kind, number = _HEAD.unpack_from(buffer, offset)
            if not 5 <= length <= PACKET_LIMIT:
                self._break(f"the SFTP server sent a packet of {length} bytes")
                return
            if end - offset < 4 + length:
                break
            payload = bytes(memoryview(buffer)[offset + 9 : offset + 4 + length])
            offset += 4 + length
            if kind == _VERSION and not self._greeted:
                self._version(number, payload)
            else:
                self._answered(kind, number, payload)
            if self.lost:
                return
        del buffer[:offset]
        self._pump()

    def _version(self, version: int, payload: bytes) -> None:
        names, offset = {}, 0
        while offset < len(payload):
            name, offset = _string(payload, offset)
            names[name], offset = _string(payload, offset)
        self.features = frozenset(short for name, short in _EXTENSIONS.items() if name in names)
        if version != 3:
            self._break(f"the SFTP server speaks version {version}, not 3")
        elif "limits" in self.features:
            self._greeted = True
            self._ask_limits()
        else:
            self._greeted = True
            self.ready.callback(self)

    def _ask_limits(self) -> None:
        def limits(payload: bytes) -> SFTPFiles:
            _, most_read, most_write, _ = struct.unpack_from(">4Q", payload)
            overhead = 1024  # ids, the handle, the offset
            self.write_size = max(SAFE_CHUNK, min(most_write or SAFE_CHUNK, PACKET_LIMIT - overhead))
            self._read_size = max(SAFE_CHUNK, min(most_read or SAFE_CHUNK, PACKET_LIMIT - overhead))
            return self

        asked = self._request(_EXTENDED, _pack(b"limits@openssh.com"), _extended, b"")
        asked.addCallback(limits)
        asked.addErrback(lambda failure: self if not self.lost else failure)
        asked.chainDeferred(self.ready)

    def _request(
        self, kind: int, payload: bytes, answer: _Answer, subject: bytes, expected: int = 0, content: Buffer = b""
    ) -> Deferred[Any]:
        """Send a request, or let it wait for its turn.

        :param expected: bytes that the answer may hold, when they are many.
        :param content: what follows the payload: of a file, so that it is copied once only.
        """
        self._next_id = number = (self._next_id + 1) & 0xFFFFFFFF
        size = len(payload) + len(content)
        data = b"".join((_HEAD.pack(size + 5, kind, number), payload, content))
        request = _Request(data, size + expected + 9, answer, subject)
        if self.lost:
            request.deferred.errback(LinkDown("the SFTP channel to the remote host is closed"))
            return request.deferred
        if not self._waiting and self._has_room(request.weight):
            self._send(request, number)
        else:
            self._waiting.append(request)
        return request.deferred

    def _has_room(self, weight: int) -> bool:
        if self._paused or len(self._sent) >= REQUESTS_IN_FLIGHT:
            return False
        return not self._sent or self._weight + weight <= BYTES_IN_FLIGHT

    def _send(self, request: _Request, number: int) -> None:
        self._sent[number] = request
        self._weight += request.weight
        data, request.data = request.data, b""
        self.transport.write(data)

    def _pump(self) -> None:
        waiting = self._waiting
        while waiting and self._has_room(waiting[0].weight):
            request = waiting.popleft()
            self._send(request, _U32.unpack_from(request.data, 5)[0])

    def _answered(self, kind: int, number: int, payload: bytes) -> None:
        request = self._sent.pop(number, None)
        if request is None:
            self._break(f"the SFTP server answered a request that was never made ({number})")
            return
        self._weight -= request.weight
        try:
            if kind == _STATUS:
                code = _U32.unpack_from(payload)[0]
                if code != _OK and not (code == _EOF and request.answer in (_data, _names)):
                    raise _error(code, payload, request.subject)
            result = request.answer(kind, payload)
        except (OSError, RdaError) as error:
            request.deferred.errback(error)
        except (struct.error, IndexError, ValueError) as error:
            request.deferred.errback(Unsupported(f"the SFTP server's answer cannot be understood: {error}"))
        else:
            request.deferred.callback(result)

    # -- IRemoteFiles: names

    def real_path(self, path: bytes) -> Deferred[bytes]:
        """See :class:`IRemoteFiles`."""
        return self._request(_REALPATH, _pack(path), _one_name, path)

    def attributes(self, path: bytes) -> Deferred[Attributes]:
        """See :class:`IRemoteFiles`."""
        return self._request(_LSTAT, _pack(path), _attributes, path)

    async def _list(self, path: bytes) -> list[tuple[bytes, Attributes]]:
        handle = await self._request(_OPENDIR, _pack(path), _handle, path)
        found: list[tuple[bytes, Attributes]] = []
        asked = deque(self._read_directory(handle, path) for _ in range(2))  # the second one mostly says: no more
        try:
            while names := await asked.popleft():
                found += [(name, attributes) for name, attributes in names if name not in (b".", b"..")]
                asked.append(self._read_directory(handle, path))
        finally:
            for rest in asked:
                rest.addErrback(lambda _: None)
            self.close(handle).addErrback(lambda _: None)
        return found

    def _read_directory(self, handle: bytes, path: bytes) -> Deferred[Any]:
        return self._request(_READDIR, _pack(handle), _names, path, SAFE_CHUNK)

    def list(self, path: bytes) -> Deferred[list[tuple[bytes, Attributes]]]:
        """See :class:`IRemoteFiles`."""
        return Deferred.fromCoroutine(self._list(path))

    def read_link(self, path: bytes) -> Deferred[bytes]:
        """See :class:`IRemoteFiles`."""
        return self._request(_READLINK, _pack(path), _one_name, path)

    def make_directory(self, path: bytes, mode: int) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        made = self._request(_MKDIR, _pack(path) + _U32.pack(_ATTR_MODE) + _U32.pack(mode), _nothing, path)
        return made.addErrback(self._exists_instead, path)

    def remove_directory(self, path: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        return self._request(_RMDIR, _pack(path), _nothing, path)

    def remove(self, path: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        return self._request(_REMOVE, _pack(path), _nothing, path)

    def rename(self, old: bytes, new: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`. Without ``posix-rename`` what is there is removed first: not atomic."""
        if "posix-rename" in self.features:
            return self._request(_EXTENDED, _pack(b"posix-rename@openssh.com") + _pack(old) + _pack(new), _nothing, new)

        def removed(result: object) -> Deferred[None]:
            if isinstance(result, Failure):
                result.trap(OSError)
            return self._request(_RENAME, _pack(old) + _pack(new), _nothing, new)

        return self.remove(new).addBoth(removed)

    def rename_new(self, old: bytes, new: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`.

        OpenSSH's plain rename links and unlinks, so it never replaces a file. Other servers may: they are asked first.
        """
        if "posix-rename" in self.features:
            renamed = self._request(_RENAME, _pack(old) + _pack(new), _nothing, new)
            return renamed.addErrback(self._exists_instead, new)

        def looked(result: Attributes | Failure) -> Deferred[None]:
            if not isinstance(result, Failure):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
            result.trap(FileNotFoundError)
            return self._request(_RENAME, _pack(old) + _pack(new), _nothing, new)

        return self.attributes(new).addBoth(looked)

    def symlink(self, target: bytes, path: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`. The order of the arguments is OpenSSH's, which is not the draft's."""
        made = self._request(_SYMLINK, _pack(target) + _pack(path), _nothing, path)
        return made.addErrback(self._exists_instead, path)

    def set_attributes(self, path: bytes, mode: int | None, mtime: int | None) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        return self._request(_SETSTAT, _pack(path) + _pack_attributes(None, mode, mtime), _nothing, path)

    def give(self, path: bytes, uid: int | None, gid: int | None, mode: int | None) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        attributes = _pack_attributes(None, mode, None, (uid, gid) if uid is not None and gid is not None else None)
        return self._request(_EXTENDED, _pack(b"lsetstat@openssh.com") + _pack(path) + attributes, _nothing, path)

    def space(self, path: bytes) -> Deferred[int | None]:
        """See :class:`IRemoteFiles`."""
        if "statvfs" not in self.features:
            unknown: Deferred[int | None] = Deferred()
            unknown.callback(None)
            return unknown

        def free(payload: bytes) -> int:
            _, fragment, _, _, available = struct.unpack_from(">5Q", payload)
            return int(fragment * available)

        asked = self._request(_EXTENDED, _pack(b"statvfs@openssh.com") + _pack(path), _extended, path)
        return asked.addCallback(free)

    def _exists_instead(self, failure: Failure, path: bytes) -> Deferred[Any]:
        """Find out whether a plain ``Failure`` means that the name is taken."""
        failure.trap(ServerError)

        def looked(result: Attributes | Failure) -> NoReturn:
            if isinstance(result, Failure):
                failure.raiseException()
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)

        return self.attributes(path).addBoth(looked)

    # -- IRemoteFiles: content

    async def _read(self, path: bytes) -> bytes:
        handle = await self.open(path, write=False)
        pieces, offset = [], 0
        try:
            while data := await self.read_at(handle, offset, self._read_size):
                pieces.append(data)
                offset += len(data)
                if offset > WHOLE_FILE_LIMIT:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        finally:
            self.close(handle).addErrback(lambda _: None)
        return b"".join(pieces)

    def read(self, path: bytes) -> Deferred[bytes]:
        """See :class:`IRemoteFiles`."""
        return Deferred.fromCoroutine(self._read(path))

    def open(self, path: bytes, *, write: bool, create: bool = False, mode: int = 0o600) -> Deferred[bytes]:
        """See :class:`IRemoteFiles`."""
        flags = (_FLAG_WRITE if write else _FLAG_READ) | ((_FLAG_CREATE | _FLAG_EXCLUSIVE) if create else 0)
        payload = _pack(path) + _U32.pack(flags)
        payload += _U32.pack(_ATTR_MODE) + _U32.pack(mode) if create else _U32.pack(0)
        opened = self._request(_OPEN, payload, _handle, path)
        return opened.addErrback(self._exists_instead, path) if create else opened

    def write_at(self, handle: bytes, offset: int, data: Buffer) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        payload = _pack(handle) + _U64.pack(offset) + _U32.pack(len(data))
        return self._request(_WRITE, payload, _nothing, b"", content=data)

    def read_at(self, handle: bytes, offset: int, length: int) -> Deferred[bytes]:
        """See :class:`IRemoteFiles`."""
        length = min(length, self._read_size)
        return self._request(_READ, _pack(handle) + _U64.pack(offset) + _U32.pack(length), _data, b"", length)

    def handle_attributes(self, handle: bytes) -> Deferred[Attributes]:
        """See :class:`IRemoteFiles`."""
        return self._request(_FSTAT, _pack(handle), _attributes, b"")

    def set_handle_attributes(
        self, handle: bytes, *, size: int | None, mode: int | None, mtime: int | None
    ) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        return self._request(_FSETSTAT, _pack(handle) + _pack_attributes(size, mode, mtime), _nothing, b"")

    def copy_data(self, source: bytes, target: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`. A length of 0 means: up to the end (OpenSSH PROTOCOL, section 4.11)."""
        payload = _pack(b"copy-data") + _pack(source) + struct.pack(">2Q", 0, 0) + _pack(target) + _U64.pack(0)
        return self._request(_EXTENDED, payload, _nothing, b"")

    def close(self, handle: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        return self._request(_CLOSE, _pack(handle), _nothing, b"")


def _pack(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def _string(payload: bytes, offset: int) -> tuple[bytes, int]:
    length = _U32.unpack_from(payload, offset)[0]
    end = offset + 4 + length
    if end > len(payload):
        raise ValueError("a string is longer than its packet")
    return payload[offset + 4 : end], end


def _pack_attributes(
    size: int | None, mode: int | None, mtime: int | None, owner: tuple[int, int] | None = None
) -> bytes:
    flags, fields = 0, b""
    if size is not None:
        flags |= _ATTR_SIZE
        fields += _U64.pack(size)
    if owner is not None:
        flags |= _ATTR_OWNER
        fields += struct.pack(">2L", *owner)
    if mode is not None:
        flags |= _ATTR_MODE
        fields += _U32.pack(mode)
    if mtime is not None:
        flags |= _ATTR_TIMES
        stamp = min(mtime, 0xFFFFFFFF)  # the field ends in 2106
        fields += struct.pack(">2L", stamp, stamp)
    return _U32.pack(flags) + fields


def _unpack_attributes(payload: bytes, offset: int) -> tuple[Attributes, int]:
    flags = _U32.unpack_from(payload, offset)[0]
    offset += 4
    size = mode = mtime = 0
    uid = gid = -1
    if flags & _ATTR_SIZE:
        size = _U64.unpack_from(payload, offset)[0]
        offset += 8
    if flags & _ATTR_OWNER:
        uid, gid = struct.unpack_from(">2L", payload, offset)
        offset += 8
    if flags & _ATTR_MODE:
        mode = _U32.unpack_from(payload, offset)[0]
        offset += 4
    if flags & _ATTR_TIMES:
        mtime = _U32.unpack_from(payload, offset + 4)[0]
        offset += 8
    if flags & _ATTR_EXTENDED:
        count = _U32.unpack_from(payload, offset)[0]
        offset += 4
        for _ in range(2 * count):
            _, offset = _string(payload, offset)
    return Attributes(mode, size, mtime, uid, gid), offset


# What an answer becomes. A STATUS other than OK never gets here, save for EOF where it is an answer.


def _expect(kind: int, wanted: int) -> None:
    if kind != wanted:
        raise ValueError(f"type {kind} instead of {wanted}")


def _nothing(kind: int, payload: bytes) -> None:
    if kind != _EXTENDED_REPLY:  # Conch's server says "done" to an extension like this
        _expect(kind, _STATUS)


def _handle(kind: int, payload: bytes) -> bytes:
    _expect(kind, _HANDLE)
    return _string(payload, 0)[0]


def _data(kind: int, payload: bytes) -> bytes:
    if kind == _STATUS:
        return b""
    _expect(kind, _DATA)
    return _string(payload, 0)[0]


def _attributes(kind: int, payload: bytes) -> Attributes:
    _expect(kind, _ATTRS)
    return _unpack_attributes(payload, 0)[0]


def _names(kind: int, payload: bytes) -> list[tuple[bytes, Attributes]]:
    if kind == _STATUS:
        return []
    _expect(kind, _NAME)
    found, offset = [], 4
    for _ in range(_U32.unpack_from(payload)[0]):
        name, offset = _string(payload, offset)
        _, offset = _string(payload, offset)  # the line that ls -l would print
        attributes, offset = _unpack_attributes(payload, offset)
        found.append((name, attributes))
    return found


def _one_name(kind: int, payload: bytes) -> bytes:
    _expect(kind, _NAME)
    return _string(payload, 4)[0]


def _extended(kind: int, payload: bytes) -> bytes:
    _expect(kind, _EXTENDED_REPLY)
    return payload


def _error(code: int, payload: bytes, subject: bytes) -> OSError | RdaError:
    """An SFTP status as the exception that a local call would have raised."""
    try:
        message = _string(payload, 4)[0].decode("utf-8", "replace")
    except (struct.error, ValueError):  # version 2 servers send the code alone
        message = ""
    if code == _NO_SUCH_FILE:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), subject)
    if code == _PERMISSION_DENIED:
        return PermissionError(errno.EACCES, os.strerror(errno.EACCES), subject)
    if code == _OP_UNSUPPORTED:
        return Unsupported("the SFTP server does not support an operation that is needed")
    return ServerError(errno.EIO, f"the remote host answered: {message or f'error {code}'}", subject)
