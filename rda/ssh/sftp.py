"""An SFTP client: version 3 (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions (its file PROTOCOL, section 4).

Why not Conch's: its client decodes names, copies its buffers over and over, logs every reply, sends SETSTAT as FSTAT,
and puts no bound on what is in flight. This one keeps paths as bytes and has one bounded queue.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.errors import LinkDown, RdaError
from rda.interfaces import Attributes, IRemoteFiles
from rda.ssh import sftp_wire as wire
from rda.ssh.sftp_wire import U32, U64, ServerError, Unsupported, pack, pack_attributes, string

__all__ = ["SFTPFiles", "Unsupported"]

#: Requests that have been sent and not answered. OpenSSH reads them one after the other from its pipe, so more of them
#: only cover the round trip: 1,024 small ones are 100 kB.
REQUESTS_IN_FLIGHT = 1024

#: Bytes of requests and of asked-for data that are in flight: enough for 400 Mbit/s at 80 ms, and what a stalled
#: server costs in memory.
BYTES_IN_FLIGHT = 4 * 1024 * 1024

#: OpenSSH's SFTP_MAX_MSG_LENGTH; a longer packet means that this is not SFTP (a shell's greeting, say).
PACKET_LIMIT = 256 * 1024

_SHELL = "Does the remote user's shell print, read or end something for non-interactive logins (.bashrc)?"

#: The most names of one directory: what a hostile server lists has no end.
MAX_NAMES = 1_000_000

#: What every server takes in one read or write (the draft's section 3 asks for packets of 34,000 bytes).
SAFE_CHUNK = 32768

#: A file read whole is small by definition; a longer one is refused.
WHOLE_FILE_LIMIT = 16 * 1024 * 1024

#: OpenSSH's extensions that are used when the server names them, and what they are called here.
_EXTENSIONS = {
    b"posix-rename@openssh.com": "posix-rename",
    b"statvfs@openssh.com": "statvfs",
    b"fsync@openssh.com": "fsync",
    b"limits@openssh.com": "limits",
    b"copy-data": "copy-data",
    b"lsetstat@openssh.com": "lsetstat",
}

Buffer = bytes | memoryview


class _Request:
    """One request: what is sent, what its answer becomes, and what it counts for while it is in flight."""

    __slots__ = ("answer", "data", "deferred", "subject", "weight")

    def __init__(self, data: bytes, weight: int, answer: wire.Answer, subject: bytes) -> None:
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
        self.transport.write(U32.pack(5) + bytes((wire.INIT,)) + U32.pack(3))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail everything that is waiting."""
        message = "the SFTP channel to the remote host was closed"
        if not self._greeted and reason.check(ConnectionDone):
            message += f" before its server said anything. {_SHELL}"
        self._fail(LinkDown(message), reason)

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
        self._fail(Unsupported(f"{message}. {_SHELL}"))
        self.transport.abortConnection()

    def give_up(self, seconds: float) -> None:
        """Whoever opened the channel has waited long enough for :attr:`ready`.

        :param seconds: how long.
        """
        if not self.lost:
            self._break(f"the SFTP server has not answered within {seconds:g} s")

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
            length, kind, number = wire.HEAD.unpack_from(buffer, offset)
            if not 5 <= length <= PACKET_LIMIT:
                self._break(f"the SFTP server sent a packet of {length} bytes")
                return
            if end - offset < 4 + length:
                break
            payload = bytes(memoryview(buffer)[offset + 9 : offset + 4 + length])
            offset += 4 + length
            if kind == wire.VERSION and not self._greeted:
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
            name, offset = string(payload, offset)
            names[name], offset = string(payload, offset)
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

        asked = self._request(wire.EXTENDED, pack(b"limits@openssh.com"), wire.reply_of, b"")
        asked.addCallback(limits)
        asked.addErrback(lambda failure: self if not self.lost else failure)
        asked.chainDeferred(self.ready)

    def _request(
        self, kind: int, payload: bytes, answer: wire.Answer, subject: bytes, expected: int = 0, content: Buffer = b""
    ) -> Deferred[Any]:
        """Send a request, or let it wait for its turn.

        :param expected: bytes that the answer may hold, when they are many.
        :param content: what follows the payload: of a file, so that it is copied once only.
        """
        self._next_id = number = (self._next_id + 1) & 0xFFFFFFFF
        size = len(payload) + len(content)
        data = b"".join((wire.HEAD.pack(size + 5, kind, number), payload, content))
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
            self._send(request, U32.unpack_from(request.data, 5)[0])

    def _answered(self, kind: int, number: int, payload: bytes) -> None:
        request = self._sent.pop(number, None)
        if request is None:
            self._break(f"the SFTP server answered a request that was never made ({number})")
            return
        self._weight -= request.weight
        try:
            if kind == wire.STATUS:
                code = U32.unpack_from(payload)[0]
                if code != wire.OK and not (code == wire.EOF and request.answer in (wire.data_of, wire.names_of)):
                    raise wire.failure_of(code, payload, request.subject)
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
        return self._request(wire.REALPATH, pack(path), wire.name_of, path)

    def attributes(self, path: bytes) -> Deferred[Attributes]:
        """See :class:`IRemoteFiles`."""
        return self._request(wire.LSTAT, pack(path), wire.attributes_of, path)

    async def _list(self, path: bytes) -> list[tuple[bytes, Attributes]]:
        handle = await self._request(wire.OPENDIR, pack(path), wire.handle_of, path)
        found: list[tuple[bytes, Attributes]] = []
        asked = deque(self._read_directory(handle, path) for _ in range(2))  # the second one mostly says: no more
        try:
            while names := await asked.popleft():
                found += [(name, attributes) for name, attributes in names if name not in (b".", b"..")]
                if len(found) > MAX_NAMES:
                    raise OSError(errno.EOVERFLOW, f"it holds more than {MAX_NAMES:,} names", path)
                if any(not name or b"/" in name or b"\0" in name for name, _ in names):
                    raise OSError(errno.EPROTO, "the server lists something in it that is no name", path)
                asked.append(self._read_directory(handle, path))
        finally:
            for rest in asked:
                rest.addErrback(lambda _: None)
            self.close(handle).addErrback(lambda _: None)
        return found

    def _read_directory(self, handle: bytes, path: bytes) -> Deferred[Any]:
        return self._request(wire.READDIR, pack(handle), wire.names_of, path, SAFE_CHUNK)

    def list(self, path: bytes) -> Deferred[list[tuple[bytes, Attributes]]]:
        """See :class:`IRemoteFiles`."""
        return Deferred.fromCoroutine(self._list(path))

    def read_link(self, path: bytes) -> Deferred[bytes]:
        """See :class:`IRemoteFiles`."""
        return self._request(wire.READLINK, pack(path), wire.name_of, path)

    def make_directory(self, path: bytes, mode: int) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        made = self._request(wire.MKDIR, pack(path) + U32.pack(wire.ATTR_MODE) + U32.pack(mode), wire.nothing, path)
        return made.addErrback(self._exists_instead, path)

    def remove_directory(self, path: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        return self._request(wire.RMDIR, pack(path), wire.nothing, path)

    def remove(self, path: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        return self._request(wire.REMOVE, pack(path), wire.nothing, path)

    def rename(self, old: bytes, new: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`. Without ``posix-rename`` what is there is removed first: not atomic."""
        if "posix-rename" in self.features:
            return self._request(
                wire.EXTENDED, pack(b"posix-rename@openssh.com") + pack(old) + pack(new), wire.nothing, new
            )

        def removed(result: object) -> Deferred[None]:
            if isinstance(result, Failure):
                result.trap(OSError)
            return self._request(wire.RENAME, pack(old) + pack(new), wire.nothing, new)

        return self.remove(new).addBoth(removed)

    def rename_new(self, old: bytes, new: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`.

        OpenSSH's plain rename links and unlinks, so it never replaces a file. Other servers may: they are asked first.
        """
        if "posix-rename" in self.features:
            renamed = self._request(wire.RENAME, pack(old) + pack(new), wire.nothing, new)
            return renamed.addErrback(self._exists_instead, new)

        def looked(result: Attributes | Failure) -> Deferred[None]:
            if not isinstance(result, Failure):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
            result.trap(FileNotFoundError)
            return self._request(wire.RENAME, pack(old) + pack(new), wire.nothing, new)

        return self.attributes(new).addBoth(looked)

    def symlink(self, target: bytes, path: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`. The order of the arguments is OpenSSH's, which is not the draft's."""
        made = self._request(wire.SYMLINK, pack(target) + pack(path), wire.nothing, path)
        return made.addErrback(self._exists_instead, path)

    def set_attributes(self, path: bytes, mode: int | None, mtime: int | None) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        return self._request(wire.SETSTAT, pack(path) + pack_attributes(None, mode, mtime), wire.nothing, path)

    def give(self, path: bytes, uid: int | None, gid: int | None, mode: int | None) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        attributes = pack_attributes(None, mode, None, (uid, gid) if uid is not None and gid is not None else None)
        return self._request(wire.EXTENDED, pack(b"lsetstat@openssh.com") + pack(path) + attributes, wire.nothing, path)

    def space(self, path: bytes) -> Deferred[int | None]:
        """See :class:`IRemoteFiles`."""
        if "statvfs" not in self.features:
            unknown: Deferred[int | None] = Deferred()
            unknown.callback(None)
            return unknown

        def free(payload: bytes) -> int:
            _, fragment, _, _, available = struct.unpack_from(">5Q", payload)
            return int(fragment * available)

        asked = self._request(wire.EXTENDED, pack(b"statvfs@openssh.com") + pack(path), wire.reply_of, path)
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
        flags = (wire.FLAG_WRITE if write else wire.FLAG_READ) | (
            (wire.FLAG_CREATE | wire.FLAG_EXCLUSIVE) if create else 0
        )
        payload = pack(path) + U32.pack(flags)
        payload += U32.pack(wire.ATTR_MODE) + U32.pack(mode) if create else U32.pack(0)
        opened = self._request(wire.OPEN, payload, wire.handle_of, path)
        return opened.addErrback(self._exists_instead, path) if create else opened

    def write_at(self, handle: bytes, offset: int, data: Buffer) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        payload = pack(handle) + U64.pack(offset) + U32.pack(len(data))
        return self._request(wire.WRITE, payload, wire.nothing, b"", content=data)

    def read_at(self, handle: bytes, offset: int, length: int) -> Deferred[bytes]:
        """See :class:`IRemoteFiles`."""
        length = min(length, self._read_size)
        return self._request(wire.READ, pack(handle) + U64.pack(offset) + U32.pack(length), wire.data_of, b"", length)

    def handle_attributes(self, handle: bytes) -> Deferred[Attributes]:
        """See :class:`IRemoteFiles`."""
        return self._request(wire.FSTAT, pack(handle), wire.attributes_of, b"")

    def set_handle_attributes(
        self, handle: bytes, *, size: int | None, mode: int | None, mtime: int | None
    ) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        return self._request(wire.FSETSTAT, pack(handle) + pack_attributes(size, mode, mtime), wire.nothing, b"")

    def copy_data(self, source: bytes, target: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`. A length of 0 means: up to the end (OpenSSH PROTOCOL, section 4.11)."""
        payload = pack(b"copy-data") + pack(source) + struct.pack(">2Q", 0, 0) + pack(target) + U64.pack(0)
        return self._request(wire.EXTENDED, payload, wire.nothing, b"")

    def close(self, handle: bytes) -> Deferred[None]:
        """See :class:`IRemoteFiles`."""
        return self._request(wire.CLOSE, pack(handle), wire.nothing, b"")
