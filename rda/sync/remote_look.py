"""Look at all of a remote tree: with one ``find`` over exec where the remote has GNU's, else directory by directory.

``find`` answers in one round trip, and with nanoseconds, change times and inodes, where SFTP has whole seconds only.
What cannot be listed is *unknown*, which is not the same as missing.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from rda.deferreds import InThread, each, gather
from rda.errors import ChannelRefused, CommandFailed, LinkDown, SyncFailed
from rda.interfaces import IRemoteHost
from rda.sync.manifest import Manifest
from rda.sync.racy import Racy
from rda.sync.remote import KINDS, OPERATIONS_AT_ONCE, RemoteTree
from rda.sync.tree import Entry, Kind, RemoteSnapshot, join, printable

#: The directory comes on the first line. Nine fields for each path, each ended by NUL: whether it is a directory that
#: is closed to the remote user, type, mode, size, mtime, ctime, inode, path, and a link's target.
#: -ignore_readdir_race: what goes away meanwhile is no error.
COMMAND = (
    b'IFS= read -r top && cd "$top" && exec find . -ignore_readdir_race -mindepth 1 '
    b"\\( -type d ! \\( -readable -executable \\) -printf 'x\\0' -prune -o -printf '\\0' \\) "
    b"-printf '%y\\0%m\\0%s\\0%T@\\0%C@\\0%i\\0%P\\0%l\\0'"
)
FIELDS = 9

#: The longest answer that is read, bytes: of about a million paths. A larger tree is listed over SFTP.
MAX_ANSWER = 256 * 1024 * 1024

#: The most paths that are listed over SFTP, and the longest, bytes (Linux' PATH_MAX: a longer one cannot be asked for):
#: a listing of a hostile server has no end.
MAX_PATHS = 4_000_000
MAX_PATH = 4096

#: Bytes of such a path that are shown.
SHOWN_PATH = 100

#: What cannot be the last part of a path. (A slash and NUL cannot be in one.)
_NO_NAMES = (b"", b".", b"..")

_UNLISTED = "cannot be listed by the remote user: a container made it, for its own user only"


class RemoteLook:
    """Looks at trees on one host.

    :ivar available: False once it is known that the host has no such ``find``; a new connection asks again.
    """

    _log = Logger()

    def __init__(self, host: IRemoteHost, in_thread: InThread) -> None:
        self._host = host
        self._in_thread = in_thread
        self.available = True

    async def look(self, remote: RemoteTree) -> RemoteSnapshot:
        """Look at everything in a tree, following no link.

        :raises SyncFailed: what the remote host lists is no tree, see :func:`check`.
        :raises LinkDown: the connection is lost.
        """
        if self.available and b"\n" not in remote.tree:
            answer = await self._ask(remote.tree)
            if answer is not None:
                return await self._in_thread(_parsed, answer)
        found = await _listed(remote)
        check(found.entries)
        return found

    async def _ask(self, top: bytes) -> bytes | None:
        answer = _Answer(top + b"\n")
        try:
            await self._host.command(COMMAND).connect(Factory.forProtocol(lambda: answer))
            return await answer.ended
        except ChannelRefused as error:
            self._log.info("no command for looking at remote trees: {error}", error=error)
            self.available = False
        except CommandFailed as error:
            # One that says nothing at all is another kind of find.
            self.available = bool(answer.received)
            self._log.info("find on the remote host: {error}", error=error)
        return None


class Seen(NamedTuple):
    """What one look has shown of a remote tree.

    :ivar tree: everything.
    :ivar touched: files that were touched since the last look, though they seem unchanged: edited, or given another
        owner.
    :ivar edited: files whose content has changed since, though they seem unchanged.
    """

    tree: RemoteSnapshot
    touched: AbstractSet[bytes] = frozenset()
    edited: AbstractSet[bytes] = frozenset()


class RemoteView:
    """What looks at one remote tree have shown so far.

    :param precise: whether the local file system keeps times as precisely as those that are found.
    :param racy: the files whose times, in seconds, do not show every change.
    """

    def __init__(self, look: RemoteLook, precise: bool, racy: Racy) -> None:
        self._look = look
        self._precise = precise
        self._racy = racy
        self._before: dict[bytes, Entry] = {}
        self._now: int | None = None
        self._coarse = True  # until a look has shown that the host tells more than seconds

    async def look(self, remote: RemoteTree) -> Seen:
        """Look at everything.

        :raises LinkDown: the connection is lost.
        """
        # Asked before the look: what is older by then cannot change unseen.
        asked = Deferred.fromCoroutine(remote.now()) if self._coarse else succeed(None)
        self._now, found = await gather(asked, Deferred.fromCoroutine(self._look.look(remote)))
        if not self._precise:
            found = found.in_seconds()
        self._coarse = not found.precise
        if found.precise or self._now is None:
            self._now = None
            return Seen(found, found.touched_since(self._before))
        return Seen(found, edited=await self._racy.edited(remote, found, self._now))

    def forget(self, paths: Iterable[bytes]) -> None:
        """These are about to be changed by us."""
        for path in paths:
            self._before.pop(path, None)

    async def keep(
        self, found: RemoteSnapshot, ours: Iterable[bytes], pending: Iterable[bytes], manifest: Manifest
    ) -> None:
        """Everything that a look showed has been dealt with.

        :param ours: but these were changed by us since.
        :param pending: and these were not dealt with after all.
        """
        if self._now is not None:
            await self._racy.keep(found, ours, pending, manifest, self._now)
        before, self._before = self._before, dict(found.entries)
        self.forget(ours)
        for path in pending:
            if path in before:
                self._before[path] = before[path]
            else:
                self._before.pop(path, None)


class _Answer(Protocol):
    """All that a command prints."""

    def __init__(self, question: bytes) -> None:
        self._question = question
        self._parts: list[bytes] = []
        self.received = 0
        self.ended: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        transport = self.transport
        assert transport is not None
        transport.write(self._question)
        transport.loseWriteConnection()  # type: ignore[attr-defined]

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        if self.received <= MAX_ANSWER:
            self._parts.append(data)
        else:
            self._parts.clear()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.received > MAX_ANSWER:
            self.ended.errback(CommandFailed("the tree is too large for one answer", None))
        elif reason.check(ConnectionDone):
            self.ended.callback(b"".join(self._parts))
        elif isinstance(reason.value, CommandFailed | ChannelRefused):
            self.ended.errback(reason)
        else:
            self.ended.errback(LinkDown(f"the connection was lost during a look: {reason.getErrorMessage()}"))


def check(entries: Mapping[bytes, Entry]) -> None:
    """Make sure that every path is a name in a directory of the tree.

    In two-way mirrors these paths become local ones. ``../x``, or something "in" a symbolic link, would be written
    wherever that leads on this machine: no remote host lists that by mistake.

    :raises SyncFailed: naming the path. Nothing is concluded from the others: they would seem to be removed.
    """
    for path in entries:
        directory, slash, name = path.rpartition(b"/")
        above = entries.get(directory) if slash else None
        if name in _NO_NAMES or (slash and (above is None or above.kind != Kind.DIRECTORY)):
            raise _not_believed(path)


def _not_believed(path: bytes) -> SyncFailed:
    shown = printable(path if len(path) <= SHOWN_PATH else path[:SHOWN_PATH] + b"...")
    return SyncFailed(
        f"the remote host lists {shown}, which is in no directory of the mount. Nothing that it lists is believed: "
        "look at that host before you use it again"
    )


def _parsed(answer: bytes) -> RemoteSnapshot:
    found = parse(answer)
    check(found.entries)
    return found


def parse(answer: bytes) -> RemoteSnapshot:
    """Read what :data:`COMMAND` prints.

    :raises CommandFailed: it is something else.
    """
    fields = answer.split(b"\0")
    if fields.pop() or len(fields) % FIELDS:
        raise CommandFailed("find on the remote host printed something else than it was asked for", None)
    entries: dict[bytes, Entry] = {}
    unknown: dict[bytes, str] = {}
    try:
        for at in range(0, len(fields), FIELDS):
            closed, kind, mode, size, mtime, ctime, inode, path, target = fields[at : at + FIELDS]
            if kind == b"f":
                times = _nanoseconds(mtime), _nanoseconds(ctime)
                entries[path] = Entry(Kind.FILE, int(mode, 8) & 0o7777, int(size), *times, int(inode))
            elif kind == b"d":
                entries[path] = Entry(Kind.DIRECTORY, int(mode, 8) & 0o7777)
                if closed:
                    unknown[path] = _UNLISTED
            elif kind == b"l":
                entries[path] = Entry(Kind.SYMLINK, target=target)
    except ValueError as error:
        raise CommandFailed(f"find on the remote host printed something that is no number: {error}", None) from error
    return RemoteSnapshot(entries, unknown, precise=True)


def _nanoseconds(text: bytes) -> int:
    """``1700000000.1234567890``, with as many digits as that find knows, and perhaps a sign."""
    seconds, _, fraction = text.partition(b".")
    part = int(fraction[:9].ljust(9, b"0"))
    whole = int(seconds) * 1_000_000_000
    return whole - part if text.startswith(b"-") else whole + part


async def _listed(remote: RemoteTree) -> RemoteSnapshot:
    """The same over SFTP, directory by directory, one level after the other."""
    entries: dict[bytes, Entry] = {}
    unknown: dict[bytes, str] = {}
    links: list[bytes] = []

    async def look(directory: bytes) -> None:
        try:
            names = await remote.files.list(remote.full(directory))
        except FileNotFoundError:
            return
        except PermissionError:
            unknown[directory] = _UNLISTED
            return
        except OSError as error:
            unknown[directory] = f"cannot be listed: {error.strerror}"
            return
        for name, found in names:
            path = join(directory, name) if directory else name
            if name in _NO_NAMES or b"/" in name or len(path) > MAX_PATH:
                raise _not_believed(path)
            kind = KINDS.get(stat.S_IFMT(found.mode))
            if kind == Kind.DIRECTORY:
                entries[path] = Entry(kind, found.mode & 0o7777)
                below.append(path)
            elif kind == Kind.FILE:
                entries[path] = Entry(kind, found.mode & 0o7777, found.size, found.mtime * 1_000_000_000)
            elif kind == Kind.SYMLINK:
                links.append(path)

    async def read(path: bytes) -> None:
        try:
            entries[path] = Entry(Kind.SYMLINK, target=await remote.files.read_link(remote.full(path)))
        except FileNotFoundError:
            pass
        except OSError as error:
            unknown[path] = f"cannot be read: {error.strerror}"

    below = [b""]
    while below:
        now, below = below, []
        await each(now, OPERATIONS_AT_ONCE, look)
        if len(entries) + len(links) > MAX_PATHS:
            raise SyncFailed(f"the mount has more than {MAX_PATHS:,} paths on the remote host; rda reads no more")
    await each(links, OPERATIONS_AT_ONCE, read)
    return RemoteSnapshot(entries, unknown)
