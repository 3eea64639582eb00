"""All mirrors of one context: which local source is where on the remote, and who uses it.

The place of a source follows from the owner and the source alone, so that a restarted rda finds the same one again;
that it is in use follows from the containers, of which the remote daemon keeps the list.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from rda.deferreds import InThread, Waiters, gather
from rda.errors import BadRequest, RdaError, SyncFailed
from rda.interfaces import IRemoteFiles, IRemoteHost
from rda.status import MirrorStatus, Problem, RemoteCopy
from rda.sync.bulk import Bulk
from rda.sync.copies import Collected, Copies, Mounted
from rda.sync.manifest import peek
from rda.sync.mirror import Mirror, Settings, Tools
from rda.sync.remote_look import RemoteLook
from rda.sync.tree import Kind
from rda.sync.watch import Watcher

#: Seconds for which a place that no container uses yet stays live: a create that is still on its way.
GRACE = 120.0

#: Seconds that somebody who only wants to know how much is to be transferred waits for it.
MEASURE_SECONDS = 2.0


@dataclass(frozen=True)
class Place:
    """Where a local source is on the remote host.

    :ivar source: the absolute local path.
    :ivar remote: the absolute path to mount there: of a directory or a file, like the source.
    """

    source: str
    remote: str


class Mirrors(Service):
    """The mirrors of one context.

    :param state_dir: local directory, owner-only, for manifests.
    :param owner: this client's identity, unguessable: it names the directories on the remote.
    :param sync_root: directory on the remote; relative means below the login directory.
    :param reactor: clock, threads.
    :param in_thread: runs a blocking function in a thread; the reactor's own pool unless a test says otherwise.
    :param settings: tells how a source is mirrored.
    :param mounted: tells which paths of the remote host anything there has mounted, for :meth:`unused`.
    """

    _log = Logger()

    def __init__(
        self,
        host: IRemoteHost,
        state_dir: str,
        owner: str,
        sync_root: str,
        reactor: Any,
        in_thread: InThread | None = None,
        watcher: Watcher | None = None,
        settings: Callable[[str], Settings] = lambda source: Settings(),
        mounted: Mounted = lambda: succeed(frozenset()),
    ) -> None:
        def pooled(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            return deferToThreadPool(reactor, reactor.getThreadPool(), function, *arguments)

        self._host = host
        self._manifests = os.path.join(state_dir, "mirrors")
        self._owner = owner
        self._sync_root = os.fsencode(sync_root)
        self._clock = reactor
        in_thread = in_thread or pooled
        self._bulk = Bulk(host, in_thread)
        self._tools = Tools(
            host, reactor, in_thread, watcher or Watcher(reactor), self._bulk, RemoteLook(host, in_thread)
        )
        self._settings = settings
        self._mirrors: dict[str, Mirror] = {}
        self._placed: dict[str, float] = {}
        self._reviewing: IDelayedCall | None = None
        self._holders: dict[str, frozenset[str]] = {}
        self._absent: dict[str, Problem] = {}
        self._removing: dict[str, Waiters[None]] = {}
        self._mounted = mounted
        self._root_on: tuple[IRemoteFiles, bytes] | None = None

    # -- the service

    def startService(self) -> None:
        """Make the directory for manifests."""
        super().startService()
        os.makedirs(self._manifests, mode=0o700, exist_ok=True)

    def stopService(self) -> Deferred[None]:
        """Stop all mirrors; fires when nothing is under way any more."""
        super().stopService()
        if self._reviewing is not None:
            self._reviewing.cancel()
            self._reviewing = None
        stopping = [mirror.stop() for mirror in self._mirrors.values()]
        self._mirrors.clear()
        return DeferredList(stopping).addCallback(lambda _: None)

    # -- what containers need

    def place(self, source: str, kind_hint: str | None = None, create_missing: bool = False) -> Deferred[Place]:
        """Decide where ``source`` is on the remote, make that path there, and begin to mirror.

        :param source: a local path; relative to the current directory if need be.
        :param kind_hint: ``directory`` or ``file``: what a missing source is made as.
        :param create_missing: make a directory where nothing is, as the daemon does for ``-v``.
        :raises BadRequest: through the Deferred: nothing there, or nothing that can be mirrored.
        :raises RdaError: when the remote path cannot be made, or the link is down.
        """
        return Deferred.fromCoroutine(self._place(os.path.abspath(source), kind_hint, create_missing))

    async def _place(self, source: str, kind_hint: str | None, create_missing: bool) -> Place:
        mirror = await self._mirror(source, kind_hint, create_missing)
        self._placed[source] = self._clock.seconds()
        if self._reviewing is None:
            self._reviewing = self._clock.callLater(GRACE, self._review_later)
        mirror.live(True)
        await mirror.prepare()
        return Place(source, mirror.remote_path)

    def complete(self, source: str) -> Deferred[None]:
        """Fire when everything that is at a source now is on the remote; begin to mirror it, if need be.

        :raises SyncFailed: see :meth:`Mirror.flush`; SyncHalted, LinkDown likewise.
        """
        return Deferred.fromCoroutine(self._complete(os.path.abspath(source)))

    async def _complete(self, source: str) -> None:
        await (await self._mirror(source, None, False)).flush()

    def hold(self, container: str, sources: Iterable[str]) -> Deferred[None]:
        """A container uses these sources: they are mirrored for as long as it exists.

        Never fails: a source that is not there, or a link that is down, shows in the status and is tried again.
        """
        self._holders[container] = frozenset(map(os.path.abspath, sources))
        return Deferred.fromCoroutine(self._hold(container))

    async def _hold(self, container: str) -> None:
        for source in self._holders.get(container, ()):
            try:
                await self._mirror(source, None, False)
            except RdaError as error:
                self._absent[source] = Problem(source, str(error))
        self._review()

    def release(self, container: str) -> Deferred[None]:
        """A container is gone."""
        self._holders.pop(container, None)
        self._review()
        return succeed(None)

    def reconnected(self) -> None:
        """The link is up again: whatever was under way is looked at anew."""
        self._bulk.available = self._tools.look.available = True
        for source, mirror in self._mirrors.items():
            if self._users(source):
                mirror.retry()

    # -- what people ask for

    def flush(self, path: str | None = None) -> Deferred[None]:
        """Fire when everything that is at a mirrored source now is on the remote (and back, where it is two-way).

        :param path: a mirrored source, or something in one; None for all of them.
        :raises BadRequest: through the Deferred: it is not mirrored.
        :raises SyncFailed: see :meth:`Mirror.flush`; SyncHalted, LinkDown likewise.
        """
        return Deferred.fromCoroutine(self._flush(path))

    async def _flush(self, path: str | None) -> None:
        await gather(*(mirror.flush() for mirror in self._named(path)))

    def pause(self, path: str | None = None) -> None:
        """Let nothing travel until :meth:`resume`, or the end of this process. What a container needs meanwhile fails.

        :param path: as for :meth:`flush`.
        :raises BadRequest: it is not mirrored.
        """
        for mirror in self._named(path):
            mirror.pause()

    def resume(self, path: str | None = None) -> None:
        """Go on after :meth:`pause`.

        :param path: as for :meth:`flush`.
        :raises BadRequest: it is not mirrored.
        """
        for mirror in list(self._mirrors.values()) if path is None else self._named(path):
            mirror.resume()

    def confirm(self, path: str) -> None:
        """A person says that what holds a mirror back is meant.

        :raises BadRequest: it is not mirrored.
        """
        for mirror in self._named(path):
            mirror.confirm()

    def _named(self, path: str | None) -> list[Mirror]:
        """The mirrors that a person means: of that source, or the innermost one that it is in; or all that are used."""
        if path is None:
            return [mirror for source, mirror in sorted(self._mirrors.items()) if self._is_used(source)]
        whole = os.path.abspath(path)
        above = whole
        while above not in self._mirrors:
            above, before = os.path.dirname(above), above
            if above == before:
                raise BadRequest(f"{path} is not mirrored: no container of this context has it mounted")
        return [self._mirrors[above]]

    def unused(self, unused_for: float = 0.0) -> Deferred[list[RemoteCopy]]:
        """Find remote copies that no container uses, be it running or not.

        :param unused_for: seconds since the last use; younger ones are left out.
        :raises RdaError: through the Deferred, when the link is down or the daemon cannot be asked.
        """
        return Deferred.fromCoroutine(self._unused(unused_for))

    async def _unused(self, unused_for: float) -> list[RemoteCopy]:
        found = await (await self._copies()).unused(self._is_known_used(), await self._mounted())
        return [copy for copy in found if copy.age >= unused_for]

    def collect(self, copies: Iterable[RemoteCopy]) -> Deferred[Collected]:
        """Remove copies that :meth:`unused` has found, unless they have come into use since.

        :raises RdaError: through the Deferred, when the link is down or the daemon cannot be asked.
        """
        return Deferred.fromCoroutine(self._collect(list(copies)))

    async def _collect(self, copies: list[RemoteCopy]) -> Collected:
        remote, mounted = await self._copies(), await self._mounted()
        removed, kept = [], []
        for copy in copies:
            used = self._is_known_used()
            if not used(copy.name):
                self._removing[copy.name] = Waiters()
                await self._drop(copy.name)
            try:
                problem = await remote.remove(copy, used, mounted)
            finally:
                if (waiters := self._removing.pop(copy.name, None)) is not None:
                    waiters.fire(None)
            if problem is None:
                removed.append(copy.name)
            else:
                kept.append(problem)
        return Collected(tuple(removed), tuple(kept))

    async def _copies(self) -> Copies:
        files: IRemoteFiles = await self._host.files()
        root = os.path.dirname(await self._base("x"))
        return Copies(files, root, self._prefix(), self._manifests, self._tools.in_thread)

    def _is_known_used(self) -> Callable[[str], bool]:
        used = {self._name(source) for source in self._mirrors if self._is_used(source)}
        return lambda name: name in used

    async def _drop(self, name: str) -> None:
        """Forget a mirror that nobody uses."""
        for source in [source for source in self._mirrors if self._name(source) == name]:
            await self._mirrors.pop(source).stop()

    # -- what it looks like

    def measure(self, source: str) -> Deferred[MirrorStatus | None]:
        """Fire with a source's status as soon as it tells how much is to be transferred.

        None when that takes longer than :data:`MEASURE_SECONDS`, or it is not mirrored. Never fails.
        """
        mirror = self._mirrors.get(os.path.abspath(source))
        if mirror is None:
            return succeed(None)
        late: Deferred[MirrorStatus | None] = Deferred()

        def measured(_: None) -> None:
            if timer.active():
                timer.cancel()
                late.callback(mirror.status())

        timer = self._clock.callLater(MEASURE_SECONDS, late.callback, None)
        mirror.measured().addCallback(measured)
        return late

    def status(self) -> tuple[MirrorStatus, ...]:
        """What every mirror is doing."""
        known = [mirror.status(self._users(source)) for source, mirror in sorted(self._mirrors.items())]
        absent = [
            MirrorStatus(source, "", "halted", containers=self._users(source), problems=(problem,))
            for source, problem in sorted(self._absent.items())
            if source not in self._mirrors and self._users(source)
        ]
        return (*known, *absent)

    def _is_used(self, source: str) -> bool:
        return source in self._placed or bool(self._users(source))

    def _users(self, source: str) -> tuple[str, ...]:
        return tuple(container for container, sources in self._holders.items() if source in sources)

    def _review_later(self) -> None:
        self._reviewing = None
        self._review()
        if self._placed:
            self._reviewing = self._clock.callLater(GRACE, self._review_later)

    def _review(self) -> None:
        """Watch what is used, or was placed a moment ago; leave the rest alone."""
        now = self._clock.seconds()
        self._placed = {source: at for source, at in self._placed.items() if at + GRACE > now}
        for source, mirror in self._mirrors.items():
            mirror.live(self._is_used(source))

    # -- making mirrors

    async def _mirror(self, source: str, kind_hint: str | None, create_missing: bool) -> Mirror:
        if source not in self._mirrors:
            name = self._name(source)
            while name in self._removing:
                await self._removing[name].wait()
            path = os.path.join(self._manifests, name + ".sqlite")
            kind = await self._tools.in_thread(_kind_of, source, kind_hint, create_missing, path)
            if source not in self._mirrors:
                self._absent.pop(source, None)
                self._mirrors[source] = Mirror(
                    source,
                    kind,
                    lambda: Deferred.fromCoroutine(self._base(name)),
                    path,
                    self._tools,
                    self._settings(source),
                )
        return self._mirrors[source]

    def _name(self, source: str) -> str:
        """One for every owner and source; nobody can guess it who does not know the owner's identity."""
        whole = hashlib.sha256(os.fsencode(self._owner) + b"\0" + os.fsencode(source)).hexdigest()
        return self._prefix() + whole[:32]

    def _prefix(self) -> str:
        return hashlib.sha256(os.fsencode(self._owner)).hexdigest()[:8] + "-"

    async def _base(self, name: str) -> bytes:
        files: IRemoteFiles = await self._host.files()
        if self._root_on is None or self._root_on[0] is not files:
            self._root_on = (files, await _sync_root(files, self._sync_root))
        return self._root_on[1] + b"/" + name.encode()


async def _sync_root(files: IRemoteFiles, configured: bytes) -> bytes:
    """Make the sync root, owner-only, and return its absolute path."""
    path = configured if configured.startswith(b"/") else await files.real_path(b".") + b"/" + configured
    path = b"/" + b"/".join(part for part in path.split(b"/") if part)
    if b"\n" in path:
        raise SyncFailed("the sync root must not have a line break in its name")
    try:
        found, real = await gather(files.attributes(path), files.real_path(path))
    except FileNotFoundError:
        await _make_directories(files, path)
        found, real = await gather(files.attributes(path), files.real_path(path))
    if stat.S_ISLNK(found.mode):
        found = await files.attributes(real)
    path = real
    if not stat.S_ISDIR(found.mode):
        raise SyncFailed(f"the sync root {os.fsdecode(path)} on the remote host is not a directory")
    if found.mode & 0o077:
        try:
            await files.set_attributes(path, 0o700, None)
        except OSError as error:
            raise SyncFailed(
                f"the sync root {os.fsdecode(path)} on the remote host belongs to somebody else. Choose another one"
            ) from error
    return path


async def _make_directories(files: IRemoteFiles, path: bytes) -> None:
    """Make a directory, and first those above it that are missing."""
    try:
        await files.make_directory(path, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        await _make_directories(files, path.rpartition(b"/")[0])
        await files.make_directory(path, 0o700)
    except OSError as error:
        raise SyncFailed(
            f"the sync root needs {os.fsdecode(path)} on the remote host, which cannot be made: {error.strerror}. "
            "Choose another one (sync_root) that the remote user may write to"
        ) from error


#: What a manifest notes as the kind of its source.
_KINDS: dict[str | None, Kind] = {str(int(kind)): kind for kind in (Kind.FILE, Kind.DIRECTORY)}


def _kind_of(source: str, kind_hint: str | None, create_missing: bool, manifest: str) -> Kind:
    """What the source is. Blocking: runs in a thread."""
    try:
        mode = os.stat(source).st_mode
    except FileNotFoundError as error:
        known = peek(manifest, "kind")
        if known in _KINDS and not create_missing:  # its remote copy still is what it was
            return _KINDS[known]
        if not create_missing or os.path.islink(source):
            raise BadRequest(f"bind source path does not exist: {source}") from error
        try:
            _create(source, kind_hint)
        except OSError as reason:
            raise BadRequest(f"bind source path {source} cannot be created: {reason.strerror}") from reason
        return Kind.FILE if kind_hint == "file" else Kind.DIRECTORY
    except OSError as error:
        raise BadRequest(f"bind source path {source} cannot be used: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        return Kind.DIRECTORY
    if stat.S_ISREG(mode):
        return Kind.FILE
    raise BadRequest(f"bind source path {source} is neither a file nor a directory, and cannot be mirrored")


def _create(source: str, kind_hint: str | None) -> None:
    if kind_hint == "file":
        os.makedirs(os.path.dirname(source), exist_ok=True)
        os.close(os.open(source, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    else:
        os.makedirs(source, exist_ok=True)
