"""Assembly: wires one link, one proxy, its forwards and its mirrors, and starts and stops them in order."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, gatherResults, maybeDeferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IListeningPort, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from rda.access.audit import Audit
from rda.access.gate import Gate
from rda.access.ownership import Ownership
from rda.agent_record import RecordedContext
from rda.api import DaemonAPI
from rda.config import Context
from rda.containers.calls import Containers
from rda.containers.made_here import MadeHere
from rda.containers.reconciler import Reconciler
from rda.containers.waiting import Waiting
from rda.deferreds import follow, threads_of
from rda.docker.binds import Rules, System
from rda.docker.host_network import HostForwards, read_ports
from rda.docker.sources import Sources
from rda.errors import RdaError
from rda.pages.document import Process
from rda.pages.logs import RecentLog
from rda.pages.tree import Pages
from rda.ports.exposed import Exposed
from rda.ports.forwards import Forwards
from rda.proxy.authentication import Callers, Machine
from rda.proxy.certificates import ServerTLS, TLSFactory
from rda.proxy.listeners import docker_host, is_network, listen
from rda.proxy.server import DockerSite
from rda.ssh.shared import Links
from rda.state import StateLock, identity, private_directory
from rda.status import ContextStatus, LinkStatus, Problem
from rda.sync.mirrors import Mirrors
from rda.sync.owner import OwnerChoice
from rda.sync.settings import Settings
from rda.words import progress

__all__ = ["ContextAgent"]

#: Seconds that running streams get to finish when rda is told to stop.
DRAIN_SECONDS = 5.0


class Surroundings(Protocol):
    """What the contexts of one process share, and whom they tell.

    :ivar audit: what was called, if anybody wants to know.
    """

    links: Links
    machine: Machine
    log: RecentLog
    process: Process
    audit: Audit | None

    def status(self) -> tuple[ContextStatus, ...]:
        """What every context is doing."""

    def changed(self) -> None:
        """Note that a listener or a link is not as it was."""

    def note_listeners(self) -> None:
        """Write down where the contexts listen now."""


class ContextAgent(Service):
    """One context: everything between its listeners and its remote daemon.

    :ivar opened: fires when its listeners are open, with what went wrong.
    :ivar wired: its parts are there.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        context: Context,
        state_dir: Path,
        say: Callable[[str], object],
        surroundings: Surroundings,
    ) -> None:
        self.setName(context.name)
        self._reactor = reactor
        self.context = context
        self._own_files = state_dir
        self._state_dir = state_dir / context.name
        self._lock = StateLock(self._state_dir)
        self._say = say
        self._surroundings = surroundings
        self._ports: list[IListeningPort] = []
        self._tls: ServerTLS | None = None
        self._problems: list[Problem] = []
        self._was_connected = False
        self.wired = False
        self.opened: Deferred[list[Problem]] = Deferred()

    @property
    def works(self) -> bool:
        """Whether it has been started and can be reached."""
        return self.wired and not self._problems

    def startService(self) -> None:
        """Wire the parts together, then open the listeners and the link at the same time.

        :raises RdaError, OSError: it cannot be; nothing has been started.
        """
        super().startService()
        private_directory(self._state_dir)
        self._lock.take()
        try:
            self._wire_and_start()
        except BaseException:
            self._lock.release()
            raise

    def _wire_and_start(self) -> None:
        """Do so, now that the state directory is ours alone."""
        context = self.context
        owner = identity(self._state_dir)
        if context.admission.tls:
            self._tls = ServerTLS(context.admission.tls, need_certificate=not context.admission.tokens)
        callers = Callers(context.admission, self._surroundings.machine, context.name)
        callers.check(context.listen)
        self._made_here = MadeHere(self._state_dir / "containers", self._sync)
        self._made_here.open()
        self._wire(owner, callers)
        self.wired = True
        self._link.add_observer(self._link_changed)
        self._reconciler.startService()
        self._mirrors.startService()
        self._link.startService()
        self._listen()

    def _wire(self, owner: str, callers: Callers) -> None:
        """Make the parts; nothing of them works yet.

        :param owner: this installation's identity.
        :param callers: says who calls.
        """
        context, reactor = self.context, self._reactor
        self._link = link = self._surroundings.links.share(context.remote, context.docker)
        self._api = api = DaemonAPI(reactor, link.docker())
        self._forwards = forwards = Forwards(link, reactor, publish_address=context.publish_address)
        sources = Sources(_system(), Rules.of((rule.pattern, rule.where) for rule in context.rules))
        self._mirrors = mirrors = self._make_mirrors(owner, sources)
        host_forwards = HostForwards([(one.container, read_ports(one.ports)) for one in context.forwards])
        self._reconciler = reconciler = Reconciler(
            reactor, api, forwards, mirrors, owner, sources.mirrored, self._made_here, host_forwards
        )
        self._exposed = Exposed(link, reactor, context.expose_host, api.bridge_gateway, self._loopback)
        self._waiting = Waiting(reactor, time.time, self._explain)
        containers = Containers(
            api,
            forwards,
            mirrors,
            reconciler,
            owner,
            sources,
            host_forwards,
            self._exposed,
            lend_files=context.admission.lend_files,
            waiting=self._waiting,
        )
        gate = self._gate(containers, owner, sources)
        self._pages = Pages(
            reactor,
            self._surroundings.status,
            lambda: (self.status(),),
            mirrors,
            self._surroundings.log,
            self._surroundings.process,
        )
        self._site = DockerSite(
            link.docker(),
            gate or containers,
            reactor,
            context.limits,
            hosts=self._host_names(),
            identify=callers,
            own=self._pages,
            gate=gate,
        )

    def _make_mirrors(self, owner: str, sources: Sources) -> Mirrors:
        context, api = self.context, self._api
        plain = bool(context.access)  # a policy has judged where sources really lead
        settings = {
            rule.pattern: Settings(rule.mode, rule.ignore, plain, OwnerChoice(rule.owner, rule.world_writable))
            for rule in context.rules
        }
        return Mirrors(
            self._link,
            str(self._state_dir),
            owner,
            context.sync_root,
            self._reactor,
            settings=lambda source: settings.get(sources.rule(source).pattern, Settings(plain=plain)),
            mounted=lambda: Deferred.fromCoroutine(api.mounted_paths()),
            own=str(self._own_files),
        )

    def _gate(self, containers: Containers, owner: str, sources: Sources) -> Gate | None:
        """Who looks at every call; nobody, where there is nothing to look for."""
        context, audit = self.context, self._surroundings.audit
        if not context.access and audit is None:
            return None
        ownership = Ownership(self._api, self._reconciler.is_ours, owner)
        sockets = tuple(filter(None, (urlsplit(context.docker).path,)))
        in_thread = threads_of(self._reactor)
        return Gate(context.name, containers, context.access, self._api, ownership, sources, in_thread, sockets, audit)

    def _host_names(self) -> frozenset[str]:
        """What clients may call the TCP listeners: what is configured, and what our certificate says."""
        return frozenset(self.context.admission.host_names) | (
            self._tls.names if self._tls is not None else frozenset()
        )

    def read_files(self) -> list[Problem]:
        """Read again what the configuration only names: a renewed certificate holds for connections from now on."""
        if self._tls is None:
            return []
        try:
            self._tls.read()
        except RdaError as e:
            return [Problem(f"context {self.name}", f"{e}; those before stay in use", time.time())]
        self._site.hosts = self._host_names()
        return []

    def _listen(self) -> None:
        opening = [self._open(description) for description in self.context.listen]
        DeferredList(opening).addCallback(lambda _: self.opened.callback(list(self._problems)))

    def _open(self, description: str) -> Deferred[None]:
        group = self.context.admission.group
        secure = self._tls if is_network(description) else None
        factory = self._site if secure is None else TLSFactory(secure, False, self._site, self._reactor)
        opening = maybeDeferred(listen, self._reactor, description, factory, group[1] if group else None)
        return opening.addCallbacks(self._listening, self._cannot_listen, errbackArgs=(description,))

    @property
    def listening(self) -> bool:
        """Whether every listener is open."""
        return len(self._ports) == len(self.context.listen)

    def _listening(self, port: IListeningPort) -> None:
        self._ports.append(port)
        self._surroundings.changed()
        self._say(f"rda: context {self.name}: {self.context.remote.target} is at")
        self._say(f"    export DOCKER_HOST={docker_host(port.getHost())}")
        if self._tls is not None and hasattr(port.getHost(), "port"):
            self._say("    export DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH=…  # with your ca.pem, cert.pem and key.pem")
        self._surroundings.note_listeners()

    def _cannot_listen(self, failure: Failure, description: str) -> None:
        """Nobody can use a context that does not listen: say why."""
        if not failure.check(RdaError):
            self._log.failure("defect while opening {endpoint}", failure, endpoint=description)
        message = (
            f"cannot listen on {description}: {failure.getErrorMessage()}. "
            "Stop what uses it (another rda?), or choose another endpoint with --listen."
        )
        self._problems.append(Problem(f"context {self.name}", message, time.time()))

    def _link_changed(self, status: LinkStatus) -> None:
        connected = status.state == "connected"
        if connected and not self._was_connected:
            self._reconciler.link_up()
            self._exposed.link_up()
            self._mirrors.reconnected()
        elif not connected and self._was_connected:
            self._reconciler.link_down()
            self._exposed.link_down()
        self._was_connected = connected
        self._surroundings.changed()

    async def _stop(self) -> None:
        """Close from the outside in: no new calls, running ones drained, then ports, mirrors and the link."""
        await gatherResults([Deferred.fromCoroutine(_close(port)) for port in self._ports], consumeErrors=True)
        self._ports.clear()
        self._surroundings.note_listeners()
        self._pages.close()
        await self._site.drain(DRAIN_SECONDS)
        self._reconciler.stopService()
        await self._exposed.stop()
        await self._forwards.stop()
        mirrors = self._mirrors.stopService()
        await self._wait_for(mirrors)  # one that waits for a remote host that says nothing has no end of its own
        await self._api.close()
        await self._link.stopService()
        await self._wait_for(mirrors)
        self._made_here.close()

    async def _wait_for(self, mirrors: Deferred[None]) -> None:
        """Wait until mirrors have stopped, but not for ever."""
        if not mirrors.called:
            late: Deferred[None] = Deferred()
            timer = self._reactor.callLater(DRAIN_SECONDS, late.callback, None)
            await DeferredList([follow(mirrors), late], fireOnOneCallback=True)
            if timer.active():
                timer.cancel()

    def _loopback(self, port: int) -> list[IStreamClientEndpoint]:
        """Where a service of this machine may listen."""
        return [TCP4ClientEndpoint(self._reactor, "127.0.0.1", port), TCP6ClientEndpoint(self._reactor, "::1", port)]

    def _sync(self, descriptor: int) -> None:
        """Have what was written to a file reach the disk, in a thread: on a busy disk that takes long."""
        self._reactor.callInThread(_sync_and_close, os.dup(descriptor))

    def stopService(self) -> Deferred[None]:
        """Close everything; fires when it is closed."""
        super().stopService()
        stopping = Deferred.fromCoroutine(self._stop()) if self.wired else succeed(None)
        return stopping.addBoth(self._stopped)

    def _stopped(self, result: Any) -> Any:
        self._lock.release()
        return result

    def _listeners(self) -> tuple[str, ...]:
        return tuple(docker_host(port.getHost()) for port in self._ports)

    def record(self) -> RecordedContext:
        """What can be known of this context without asking it."""
        return RecordedContext.of(self.context, self._listeners())

    def link_status(self) -> LinkStatus:
        """How its link is."""
        return self._link.status()

    def _explain(self, source: str) -> str:
        """How far a bind mount is, for the log."""
        known = (one for one in self._mirrors.status() if source in (one.source, *one.nested))
        return next(map(progress, known), "not mirrored yet")

    def status(self) -> ContextStatus:
        """What this context is doing."""
        return ContextStatus(
            name=self.context.name,
            listeners=self._listeners(),
            link=self._link.status(),
            forwards=(*self._forwards.status(), *self._exposed.status()),
            mirrors=self._mirrors.status(),
            problems=(*self._reconciler.problems(), *self._problems),
            relay=self._site.status(),
            calls=self._site.calls.status(),
            waiting=self._waiting.status(),
        )


def _sync_and_close(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a file system that cannot: the system writes in its own time
        os.fsync(descriptor)
    os.close(descriptor)


async def _close(port: IListeningPort) -> None:
    await maybeDeferred(port.stopListening)


def _system() -> System:
    """What this machine is, for the paths that its users write."""
    if sys.platform == "darwin":
        return System.MACOS
    if sys.platform == "win32":
        return System.WINDOWS
    return System.WSL if "microsoft" in os.uname().release.lower() else System.LINUX
