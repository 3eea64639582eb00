"""Many small files at once: one tar stream into the stage, unpacked by the remote's own ``tar``.

A file costs five SFTP requests and their answers; in a tar stream it costs a header. Everything lands in the stage
first. A directory that is new as a whole is built there and gets its name with a single rename; other files are renamed
one by one, as if they had come over SFTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.deferreds import InThread, gather
from rda.errors import ChannelRefused, CommandFailed, LinkDown
from rda.interfaces import IRemoteHost
from rda.sync import content, tar
from rda.sync.tree import OWNER_KEEPS_ACCESS, Entry, Kind, batches

#: The directory comes on the first line. ``-o``: members belong to who unpacks them, root too; ``-p``: no umask. GNU
#: tar reads 10 KiB at a time unless told otherwise, by a variable because other kinds of tar know no ``-b``.
COMMAND = b'IFS= read -r stage && cd "$stage" && exec env TAR_OPTIONS=--blocking-factor=128 tar -x -p -o -f -'

#: Two paths, a line each. cp(1) clones where the file system can, and else copies within the kernel.
COPY = b'IFS= read -r from && IFS= read -r to && exec cp "$from" "$to"'

#: Fewer files than this are sent sooner over SFTP than a command is started.
WORTHWHILE = 100

#: Files up to this size travel in the stream; larger ones over SFTP, piece by piece.
SMALL = 1024 * 1024

#: From so many bytes and seconds of round trip on there are two streams: sshd gives each channel a window of 2 MiB,
#: which is what limits it on a long way. On a short way one is faster.
SPLIT_FROM = 4 * 1024 * 1024
SPLIT_ROUND_TRIP = 0.010
STREAMS = 2

#: What one visit to the thread pool reads and packs: at most this many members, or bytes (by their planned size).
BATCH_MEMBERS = 256
BATCH_BYTES = 1024 * 1024

#: Exit statuses of a shell that cannot find or run a program.
_NO_PROGRAM = (126, 127)


class Member(NamedTuple):
    """One member of the archive.

    :ivar name: in the stage.
    :ivar path: in the tree.
    """

    name: bytes
    path: bytes
    entry: Entry


class Sent(NamedTuple):
    """The version of a file that was sent; see :class:`rda.sync.content.Loaded`."""

    entry: Entry
    steady: bool
    digest: bytes | None


#: What became of a file that was not sent exactly as planned: what was sent, or why it was not (None: it is not there
#: any more).
Result = Sent | content.Unreadable | None


class Bulk:
    """Sends tar streams to one host, if it has ``sh`` and ``tar``.

    :ivar available: False once it is known that it has not; a new connection asks again.
    """

    _log = Logger()

    def __init__(self, host: IRemoteHost, in_thread: InThread) -> None:
        self._host = host
        self._in_thread = in_thread
        self.available = True

    async def send(
        self,
        root: bytes,
        stage: bytes,
        members: Sequence[Member],
        check: Callable[[int], None],
        round_trip: float = 0.0,
    ) -> dict[bytes, Result] | None:
        """Unpack ``members`` in the stage.

        :param root: of the local tree.
        :param check: called with the bytes of content after every batch; may raise to stop.
        :param round_trip: seconds, to the host and back.
        :return: by path, what became of the files that were not sent exactly as planned; None when it did not work, and
            has to be done in another way.
        :raises LinkDown: the connection is lost.
        """
        directories = [member for member in members if member.entry.kind == Kind.DIRECTORY]
        others = [member for member in members if member.entry.kind != Kind.DIRECTORY]
        size = sum(member.entry.size for member in others)
        streams = STREAMS if size >= SPLIT_FROM and round_trip >= SPLIT_ROUND_TRIP else 1
        sending = [
            self._send_stream(root, stage, [*directories, *others[first::streams]], check) for first in range(streams)
        ]
        results: dict[bytes, Result] = {}
        for sent in await gather(*map(Deferred.fromCoroutine, sending)):
            if sent is None:
                return None
            results.update(sent)
        return results

    async def _send_stream(
        self, root: bytes, stage: bytes, members: Sequence[Member], check: Callable[[int], None]
    ) -> dict[bytes, Result] | None:
        stream = _Stream()
        results: dict[bytes, Result] = {}
        try:
            await self._host.command(COMMAND).connect(Factory.forProtocol(lambda: stream))
            await stream.send(stage + b"\n")
            packing = self._in_thread(_pack, root, [])
            for batch in batches(members, BATCH_MEMBERS, BATCH_BYTES):
                ahead = self._in_thread(_pack, root, batch)  # read this while the one before travels
                await self._pass_on(packing, stream, results, check)
                packing = ahead
            await self._pass_on(packing, stream, results, check)
            await stream.send(tar.END)
            await stream.finish()
        except ChannelRefused as error:
            self._log.info("no command for bulk transfers: {error}", error=error)
            self.available = False
            return None
        except CommandFailed as error:
            self._log.info("a bulk transfer failed: {error}", error=error)
            self.available = error.exit_status not in _NO_PROGRAM
            return None
        finally:
            stream.abort()
        return results

    async def copy(self, source: bytes, target: bytes) -> bool:
        """Have the remote's own ``cp`` write a copy of ``source`` into the file ``target``; whether that worked.

        :raises LinkDown: the connection is lost.
        """
        if not self.available or b"\n" in source + target:
            return False
        stream = _Stream()
        try:
            await self._host.command(COPY).connect(Factory.forProtocol(lambda: stream))
            await stream.send(source + b"\n" + target + b"\n")
            await stream.finish()
        except (ChannelRefused, CommandFailed) as error:
            self._log.info("a copy on the remote host failed: {error}", error=error)
            return False
        finally:
            stream.abort()
        return True

    async def _pass_on(
        self,
        packing: Deferred[tuple[bytes, dict[bytes, Result]]],
        stream: _Stream,
        results: dict[bytes, Result],
        check: Callable[[int], None],
    ) -> None:
        data, packed = await packing
        results.update(packed)
        check(len(data))
        await stream.send(data)


@implementer(IPushProducer)
class _Stream(Protocol):
    """The command's standard input, as something that can be waited for."""

    def __init__(self) -> None:
        self._paused = False
        self._waiting: Deferred[None] | None = None
        self._ended: Deferred[None] = Deferred()
        self._over: Failure | None = None

    def connectionMade(self) -> None:
        consumer: Any = self.transport
        consumer.registerProducer(self, True)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def stopProducing(self) -> None:
        self._paused = True

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._over = reason
        self.resumeProducing()
        self._ended.callback(None)

    async def send(self, data: bytes) -> None:
        """Write, when there is room."""
        if self._paused and self._over is None:
            self._waiting = Deferred()
            await self._waiting
        if self._over is not None:
            self._raise(self._over)
        assert self.transport is not None
        self.transport.write(data)

    async def finish(self) -> None:
        """End the input and wait for the command to end well."""
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseWriteConnection()
        await self._ended
        assert self._over is not None
        if not self._over.check(ConnectionDone):
            self._raise(self._over)

    def abort(self) -> None:
        """Do not leave a command behind that still waits for input."""
        transport: Any = self.transport
        if transport is not None and self._over is None:
            self._waiting = None
            transport.abortConnection()

    @staticmethod
    def _raise(over: Failure) -> None:
        if over.check(ConnectionDone):
            raise CommandFailed("the remote command ended before it had read everything", None)
        if isinstance(over.value, CommandFailed | ChannelRefused):
            raise over.value
        raise LinkDown(f"the connection was lost during a bulk transfer: {over.getErrorMessage()}")


def _pack(root: bytes, members: Sequence[Member]) -> tuple[bytes, dict[bytes, Result]]:
    """Read files and make a piece of an archive of them. Blocking: runs in a thread.

    A file is read whole before its header is written, so the header is right even if the file changes meanwhile.
    """
    pieces: list[bytes] = []
    results: dict[bytes, Result] = {}
    for name, path, entry in members:
        if entry.kind == Kind.DIRECTORY:
            pieces.append(tar.member(name + b"/", tar.DIRECTORY, entry.mode | OWNER_KEEPS_ACCESS, 0, 0))
        elif entry.kind == Kind.SYMLINK:
            pieces.append(tar.member(name, tar.SYMLINK, 0o777, 0, 0, entry.target))
        else:
            loaded = content.load(root, path, SMALL, entry)
            if not isinstance(loaded, content.Loaded):
                results[path] = loaded
                continue
            data, now, steady, digest = loaded
            if now is not entry or digest is not None:
                results[path] = Sent(now, steady, digest)
            pieces += tar.member(name, tar.FILE, now.mode, len(data), now.mtime), data, tar.padding(len(data))
    return b"".join(pieces), results
