"""All mirrors of one context: which local source is where on the remote, and who uses it.

The place of a source follows from the owner and the source alone, so that a restarted rda finds the same one again;
that it is in use follows from the containers, of which the remote daemon keeps the list.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from rda.deferreds import InThread, Waiters, gather, threads_of
from rda.errors import BadRequest, RdaError, SyncFailed
from rda.interfaces import IRemoteFiles, IRemoteHost
from rda.status import MirrorStatus, Problem, RemoteCopy
from rda.sync.bulk import Bulk
from rda.sync.copies import Collected, Copies, Mounted
from rda.sync.manifest import peek
from rda.sync.mirror import Mirror, Settings, Tools
from rda.sync.nested import LEFT_OUT, NotServed
from rda.sync.remote_look import RemoteLook
from rda.sync.tree import Kind
from rda.sync.uses import GRACE, Uses, above, below
from rda.sync.watch import Watcher

#: Seconds that somebody who only wants to know how much is to be transferred waits for it.
MEASURE_SECONDS = 2.0


@dataclass(frozen=True)
class Place:
    """Where a local source is on the remote host.

    :ivar source: the absolute local path.
    :ivar remote: the absolute path to mount there: of a directory or a file, like the source.
    :ivar apart: a directory above the source is mirrored too, and why this is not a place in its copy; "" otherwise.
    """

    source: str
    remote: str
    apart: str = ""


#: Why some sources that lie within others have a copy of their own. Nobody is warned of the first.
_A_FILE = "a single file is written in place, and has a copy of its own"
_OTHER_RULE = "the [[bind]] rules for the two differ, or leave paths out"
_A_LINK = "it is reached through a symbolic link"
_WAS_FIRST = "it was mounted from a copy of its own first, by something that still has it"
_EXPECTED = (_A_FILE, LEFT_OUT)


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
        self._host = host
        self._manifests = os.path.join(state_dir, "mirrors")
        self._owner = owner
        self._sync_root = os.fsencode(sync_root)
        self._clock = reactor
        in_thread = in_thread or threads_of(reactor)
        self._bulk = Bulk(host, in_thread)
        self._tools = Tools(
            host, reactor, in_thread, watcher or Watcher(reactor), self._bulk, RemoteLook(host, in_thread)
        )
        self._settings = settings
        self._mirrors: dict[str, Mirror] = {}
        self._uses = Uses()
        self._apart: dict[str, str] = {}
        self._reviewing: IDelayedCall | None = None
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

    def place(
        self, source: str, kind_hint: str | None = None, create_missing: bool = False, alone: bool = False
    ) -> Deferred[Place]:
        """Decide where ``source`` is on the remote, make that path there, and begin to mirror.

        A directory inside a mirrored one is a place in that one's copy, where that makes no other difference than that
        both show the same (see :mod:`rda.sync.nested`). Of several sources, ask for the outer ones first.

        :param source: a local path; relative to the current directory if need be.
        :param kind_hint: ``directory`` or ``file``: what a missing source is made as.
        :param create_missing: make a directory where nothing is, as the daemon does for ``-v``.
        :param alone: it has to have a copy of its own: a volume, which outlives the containers that use it.
        :raises BadRequest: through the Deferred: nothing there, or nothing that can be mirrored.
        :raises RdaError: when the remote path cannot be made, or the link is down.
        """
        return Deferred.fromCoroutine(self._place(os.path.abspath(source), kind_hint, create_missing, alone))

    async def _place(self, source: str, kind_hint: str | None, create_missing: bool, alone: bool) -> Place:
        apart = ""
        servers = self._uses.servers(source)
        if not alone:
            remote, apart = await self._inside_another(source, servers, kind_hint, create_missing)
            if remote:
                self._review_soon()
                return Place(source, remote)
        mirror = await self._mirror(source, kind_hint, create_missing)
        self._uses.give(source, source, self._clock.seconds())
        self._apart[source] = apart
        self._review_soon()
        mirror.live(True)
        await mirror.prepare()
        return Place(source, mirror.remote_path, "" if apart.endswith(_EXPECTED) else apart)

    async def _inside_another(
        self, source: str, servers: tuple[str, ...], kind_hint: str | None, create_missing: bool
    ) -> tuple[str, str]:
        """Find a source's place in the copy of a directory above it; else "" and why not.

        :param servers: whose copies it is mounted from already.
        """
        apart = ""
        for outer in [outer for outer in above(source) if outer in self._mirrors]:
            if not self._uses.is_mounted_itself(outer) and outer not in servers:
                continue
            if servers and outer not in servers:
                reason = _WAS_FIRST
            else:
                reason = await self._why_not(source, outer, kind_hint, create_missing)
            if not reason:
                try:
                    return await self._serve(source, outer), ""
                except NotServed as refusal:
                    reason = str(refusal)
            apart = apart or f"{outer} has another: {reason}"
        return "", apart

    async def _why_not(self, source: str, outer: str, kind_hint: str | None, create_missing: bool) -> str:
        """Why a source cannot be in the copy of a mirrored directory above it, as far as can be told without a look."""
        manifest = self._manifest(self._name(source))
        kind = await self._tools.in_thread(_kind_of, source, kind_hint, create_missing, manifest)
        if kind != Kind.DIRECTORY or self._mirrors[outer].kind != Kind.DIRECTORY:
            return _A_FILE
        settings = self._settings(source)
        if settings != self._settings(outer) or settings.ignore:
            return _OTHER_RULE
        return "" if await self._tools.in_thread(_is_really_inside, outer, source) else _A_LINK

    async def _serve(self, source: str, outer: str) -> str:
        """Have a source's place made in the copy of a directory above it; returns the remote path."""
        self._uses.give(source, outer, self._clock.seconds())
        mirror = self._mirrors[outer]
        mirror.live(True)
        remote: str = await mirror.serve(below(outer, source))
        return remote

    def complete(self, source: str, mounted: Iterable[str] = (), starting: bool = False) -> Deferred[None]:
        """Fire when everything that is at a source now is on the remote; begin to mirror it, if need be.

        :param mounted: as for :meth:`hold`, of the container that needs it.
        :param starting: for a container that is about to start, and so mounts what is there then.
        :raises SyncFailed: see :meth:`Mirror.flush`; SyncHalted, LinkDown likewise.
        """
        source = os.path.abspath(source)
        return Deferred.fromCoroutine(self._complete(source, self._server_of(source, tuple(mounted)), starting))

    async def _complete(self, source: str, server: str, starting: bool) -> None:
        mirror = await self._mirror(server, None, False)
        await mirror.flush(below(server, source))
        if starting:
            mirror.mounted_anew()

    def hold(
        self, container: str, sources: Iterable[str], mounted: Iterable[str] = (), created: bool = False
    ) -> Deferred[None]:
        """A container uses these sources: they are mirrored for as long as it exists.

        Never fails: a source that is not there, or a link that is down, shows in the status and is tried again.

        :param mounted: the remote paths that it has mounted, which tell what is mounted from another one's copy.
        :param created: it was created just now, with the places that these sources were given.
        """
        absolute, mounted = [os.path.abspath(source) for source in sources], tuple(mounted)
        self._uses.hold(container, {source: self._server_of(source, mounted) for source in absolute})
        if created:
            self._uses.taken(absolute)
        return Deferred.fromCoroutine(self._hold(container))

    def _server_of(self, source: str, mounted: Iterable[str]) -> str:
        """Whose copy a source is mounted from, as the remote paths tell: they name the copy."""
        for outer in above(source):
            end = f"/{self._name(outer)}/tree/{os.path.relpath(source, outer)}"
            if any(path.endswith(end) for path in mounted):
                return outer
        return source

    async def _hold(self, container: str) -> None:
        for server in set(self._uses.held(container).values()):
            try:
                await self._mirror(server, None, False)
            except RdaError as error:
                self._absent[server] = Problem(server, str(error))
        self._review()

    def release(self, container: str) -> Deferred[None]:
        """A container is gone."""
        self._uses.release(container)
        self._review()
        return succeed(None)

    def reconnected(self) -> None:
        """The link is up again: whatever was under way is looked at anew."""
        self._bulk.available = self._tools.look.available = True
        for source, mirror in self._mirrors.items():
            if self._uses.containers(source):
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

    def pause(self, path: str | None = None) -> Deferred[None]:
        """Let nothing travel until :meth:`resume`, also after a restart. What a container needs meanwhile fails.

        :param path: as for :meth:`flush`.
        :raises BadRequest: it is not mirrored.
        :raises SyncFailed: through the Deferred: it is paused, and a restart will not know.
        """
        mirrors = self._named(path)
        for mirror in mirrors:
            mirror.pause()
        return self._note_paused(mirrors, True)

    def resume(self, path: str | None = None) -> Deferred[None]:
        """Go on after :meth:`pause`; parameters and errors are the same."""
        mirrors = list(self._mirrors.values()) if path is None else self._named(path)
        noted = self._note_paused([mirror for mirror in mirrors if mirror.paused], False)
        for mirror in mirrors:
            mirror.resume()
        return noted

    def _note_paused(self, mirrors: Iterable[Mirror], paused: bool) -> Deferred[None]:
        """Write down for the next start which are paused."""
        marks = [self._paused(self._name(mirror.source)) for mirror in mirrors]

        def failed(failure: Failure) -> None:
            failure.trap(OSError)
            raise SyncFailed(f"done, but it cannot be written down for the next start: {failure.getErrorMessage()}")

        written: Deferred[None] = self._tools.in_thread(_mark if paused else _unmark, marks)
        return written.addErrback(failed)

    def confirm(self, path: str) -> None:
        """A person says that what holds a mirror back is meant.

        :raises BadRequest: it is not mirrored.
        """
        for mirror in self._named(path):
            mirror.confirm()

    def _named(self, path: str | None) -> list[Mirror]:
        """The mirrors that a person means: of that source, or the innermost one that it is in; or all that are used."""
        if path is None:
            return [mirror for source, mirror in sorted(self._mirrors.items()) if self._uses.is_used(source)]
        whole = os.path.abspath(path)
        known = [source for source in (whole, *above(whole)) if source in self._mirrors]
        if not known:
            raise BadRequest(f"{path} is not mirrored: no container of this context has it mounted")
        return [self._mirrors[next(filter(self._uses.is_used, known), known[0])]]

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
                await self._tools.in_thread(_unmark, [self._paused(copy.name)])
            else:
                kept.append(problem)
        return Collected(tuple(removed), tuple(kept))

    async def _copies(self) -> Copies:
        files: IRemoteFiles = await self._host.files()
        root = os.path.dirname(await self._base("x"))
        return Copies(files, root, self._prefix(), self._manifests, self._tools.in_thread)

    def _is_known_used(self) -> Callable[[str], bool]:
        used = {self._name(source) for source in self._mirrors if self._uses.is_used(source)}
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
        source = os.path.abspath(source)
        mirror = self._mirrors.get(next(iter(self._uses.servers(source)), source))
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
        uses = self._uses
        known = [
            mirror.status(uses.containers(source), uses.nested(source), self._apart.get(source, ""))
            for source, mirror in sorted(self._mirrors.items())
        ]
        absent = [
            MirrorStatus(source, "", "halted", containers=uses.containers(source), problems=(problem,))
            for source, problem in sorted(self._absent.items())
            if source not in self._mirrors and uses.containers(source)
        ]
        return (*known, *absent)

    def _review_soon(self) -> None:
        if self._reviewing is None:
            self._reviewing = self._clock.callLater(GRACE, self._review_later)

    def _review_later(self) -> None:
        self._reviewing = None
        if self._review():
            self._review_soon()

    def _review(self) -> bool:
        """Watch what is used, or was placed a moment ago; leave the rest alone. Returns whether to do so again soon."""
        on_its_way = self._uses.expire(self._clock.seconds())
        for source, mirror in self._mirrors.items():
            mirror.keep_mounted(below(source, nested) for nested in self._uses.nested(source))
            mirror.live(self._uses.is_used(source))
        return on_its_way

    # -- making mirrors

    async def _mirror(self, source: str, kind_hint: str | None, create_missing: bool) -> Mirror:
        if source not in self._mirrors:
            name = self._name(source)
            while name in self._removing:
                await self._removing[name].wait()
            path = self._manifest(name)
            kind = await self._tools.in_thread(_kind_of, source, kind_hint, create_missing, path)
            paused = await self._tools.in_thread(os.path.exists, self._paused(name))
            if source not in self._mirrors:
                self._absent.pop(source, None)
                self._mirrors[source] = Mirror(
                    source,
                    kind,
                    lambda: Deferred.fromCoroutine(self._base(name)),
                    path,
                    self._tools,
                    self._settings(source),
                    paused=paused,
                )
        return self._mirrors[source]

    def _name(self, source: str) -> str:
        """One for every owner and source; nobody can guess it who does not know the owner's identity."""
        whole = hashlib.sha256(os.fsencode(self._owner) + b"\0" + os.fsencode(source)).hexdigest()
        return self._prefix() + whole[:32]

    def _manifest(self, name: str) -> str:
        return os.path.join(self._manifests, name + ".sqlite")

    def _paused(self, name: str) -> str:
        """The file that is there while a mirror is paused."""
        return os.path.join(self._manifests, name + ".paused")

    def _prefix(self) -> str:
        return hashlib.sha256(os.fsencode(self._owner)).hexdigest()[:8] + "-"

    async def _base(self, name: str) -> bytes:
        files: IRemoteFiles = await self._host.files()
        if self._root_on is None or self._root_on[0] is not files or not await _is_there(files, self._root_on[1]):
            self._root_on = (files, await _sync_root(files, self._sync_root))
        return self._root_on[1] + b"/" + name.encode()


async def _is_there(files: IRemoteFiles, path: bytes) -> bool:
    """Whether nobody has removed a directory."""
    try:
        return stat.S_ISDIR((await files.attributes(path)).mode)
    except FileNotFoundError:
        return False


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
    if not stat.S_ISDIR(found.mode):
        raise SyncFailed(f"the sync root {os.fsdecode(real)} on the remote host is not a directory")
    if found.mode & 0o077:
        try:
            await files.set_attributes(real, 0o700, None)
        except OSError as error:
            raise SyncFailed(
                f"the sync root {os.fsdecode(real)} on the remote host belongs to somebody else. Choose another one"
            ) from error
    return bytes(real)


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


def _is_really_inside(outer: str, source: str) -> bool:
    """Whether nothing between a directory and one below it is a symbolic link. Blocking: runs in a thread."""
    real = os.path.join(os.path.realpath(outer), os.path.relpath(source, outer))
    return os.path.realpath(source) == real


def _mark(paths: Iterable[str]) -> None:
    for path in paths:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _unmark(paths: Iterable[str]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _create(source: str, kind_hint: str | None) -> None:
    if kind_hint == "file":
        os.makedirs(os.path.dirname(source), exist_ok=True)
        os.close(os.open(source, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    else:
        os.makedirs(source, exist_ok=True)
