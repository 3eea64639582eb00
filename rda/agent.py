"""Assembly: wires one link, one proxy, its forwards and its mirrors per context, and starts and stops them in order."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import secrets
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, execute, gatherResults, maybeDeferred
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    serverFromString,
)
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamClientEndpoint
from twisted.logger import Logger, globalLogPublisher
from twisted.python.failure import Failure

from rda.adopted import adopt_unix_port
from rda.api import DaemonAPI
from rda.config import Config, Context
from rda.containers import Containers
from rda.docker.binds import Rules, System
from rda.docker.host_network import HostForwards, read_ports
from rda.docker.sources import Sources
from rda.exposed import Exposed
from rda.forwards import Forwards
from rda.made_here import MadeHere
from rda.pages.logs import RecentLog
from rda.pages.tree import Pages
from rda.proxy.server import DockerSite
from rda.reconciler import Reconciler
from rda.record import Record, RecordedContext, write_record
from rda.service_manager import ServiceManager
from rda.ssh.link import Link
from rda.ssh.shared import Links
from rda.status import ContextStatus, LinkStatus
from rda.sync.mirror import Settings
from rda.sync.mirrors import Mirrors

__all__ = ["Agent"]

#: Seconds that running streams get to finish when rda is told to stop.
DRAIN_SECONDS = 5.0

#: Connections that the kernel keeps until they are accepted: a burst (of a test suite), while the reactor is busy.
#: The system of a client beyond them (Twisted's default is 50) tries again only after a second.
BACKLOG = 512

_log = Logger()


class Agent(MultiService):
    """All contexts of one process.

    :param say: prints one line to the person who started it.
    :param give_up: ends the process with a failure; the reason has been said.
    :param manager: is told when the service is ready, and how it is; by default nobody is.
    """

    def __init__(
        self,
        reactor: Any,
        config: Config,
        say: Callable[[str], object],
        give_up: Callable[[], object],
        manager: ServiceManager | None = None,
    ) -> None:
        super().__init__()
        self.setName("rda")
        self._config = config
        self.log = RecentLog()
        self.links = Links(lambda remote, docker: Link(reactor, remote, docker))
        self._manager = manager or ServiceManager({}, os.getpid(), reactor)
        self._contexts = [
            ContextAgent(reactor, context, Path(config.state_dir), say, give_up, self) for context in config.contexts
        ]
        for context in self._contexts:
            context.setServiceParent(self)

    def startService(self) -> None:
        """Make the state directory, allow as many descriptors as the system does, and start every context."""
        private_directory(Path(self._config.state_dir))
        _raise_descriptor_limit()
        globalLogPublisher.addObserver(self.log)
        super().startService()

    def stopService(self) -> Deferred[Any]:
        """Stop every context; fires when they have stopped."""
        self._manager.stopping()

        def stopped(result: Any) -> Any:
            globalLogPublisher.removeObserver(self.log)
            return result

        return maybeDeferred(super().stopService).addBoth(stopped)

    def note_listeners(self) -> None:
        """Write down where the contexts listen now, for the ``rda`` command."""
        pid = os.getpid() if self.running else 0
        record = Record(pid=pid, contexts=tuple(context.record() for context in self._contexts))
        try:
            write_record(Path(self._config.state_dir), record)
        except OSError as error:
            _log.info("the rda command will need --host: {error}", error=error)

    def changed(self) -> None:
        """Tell the service manager how the contexts are, if it should know."""
        if not self.running:
            return
        listening = all(context.listening for context in self._contexts)
        links = [(str(context.name), context.link_status()) for context in self._contexts]
        line = summary(links)
        if listening and settled(link for _, link in links):
            self._manager.ready(line)
        else:
            self._manager.waiting(line)

    def status(self) -> tuple[ContextStatus, ...]:
        """What every context is doing."""
        return tuple(context.status() for context in self._contexts)


class ContextAgent(Service):
    """One context: everything between its listeners and its remote daemon."""

    def __init__(
        self,
        reactor: Any,
        context: Context,
        state_dir: Path,
        say: Callable[[str], object],
        give_up: Callable[[], object],
        agent: Agent,
    ) -> None:
        self.setName(context.name)
        self._reactor = reactor
        self._context = context
        self._state_dir = state_dir / context.name
        self._say = say
        self._give_up = give_up
        self._agent = agent
        self._ports: list[IListeningPort] = []

    def startService(self) -> None:
        """Wire the parts together, then open the listeners and the link at the same time."""
        super().startService()
        context, reactor = self._context, self._reactor
        private_directory(self._state_dir)
        owner = identity(self._state_dir)
        self._link = link = self._agent.links.share(context.remote, context.docker)
        self._api = api = DaemonAPI(reactor, link.docker())
        self._forwards = forwards = Forwards(link, reactor, publish_address=context.publish_address)
        sources = Sources(_system(), Rules.of((rule.pattern, rule.where) for rule in context.rules))
        settings = {rule.pattern: Settings(rule.mode, rule.ignore) for rule in context.rules}
        self._mirrors = mirrors = Mirrors(
            link,
            str(self._state_dir),
            owner,
            context.sync_root,
            reactor,
            settings=lambda source: settings.get(sources.rule(source).pattern, Settings()),
            mounted=lambda: Deferred.fromCoroutine(api.mounted_paths()),
        )
        self._made_here = MadeHere(self._state_dir / "containers", self._sync)
        self._made_here.open()
        host_forwards = HostForwards([(one.container, read_ports(one.ports)) for one in context.forwards])
        self._reconciler = reconciler = Reconciler(
            reactor, api, forwards, mirrors, owner, sources.mirrored, self._made_here, host_forwards
        )
        self._exposed = Exposed(link, reactor, context.expose_host, api.bridge_gateway, self._loopback)
        containers = Containers(api, forwards, mirrors, reconciler, owner, sources, host_forwards, self._exposed)
        self._pages = Pages(reactor, self._agent.status, mirrors, self._agent.log)
        self._site = DockerSite(link.docker(), containers, reactor, context.limits, own=self._pages)
        link.add_observer(self._link_changed)
        self._was_connected = False
        reconciler.startService()
        mirrors.startService()
        link.startService()
        self._listen()

    def _listen(self) -> None:
        opening = [listen(self._reactor, description, self._site) for description in self._context.listen]
        for description, listening in zip(self._context.listen, opening, strict=True):
            listening.addCallbacks(self._listening, self._cannot_listen, errbackArgs=(description,))

    @property
    def listening(self) -> bool:
        """Whether every listener is open."""
        return len(self._ports) == len(self._context.listen)

    def _listening(self, port: IListeningPort) -> None:
        self._ports.append(port)
        self._agent.changed()
        self._say(f"rda: context {self._context.name}: {self._context.remote.target} is at")
        self._say(f"    export DOCKER_HOST={docker_host(port.getHost())}")
        self._agent.note_listeners()

    def _cannot_listen(self, failure: Failure, description: str) -> None:
        """Nobody can use a context that does not listen: stop, and say why."""
        self._say(
            f"rda: cannot listen on {description}: {failure.getErrorMessage()} "
            "Stop what uses it (another rda?), or choose another endpoint with --listen."
        )
        self._give_up()

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
        self._agent.changed()

    async def _stop(self) -> None:
        """Close from the outside in: no new calls, running ones drained, then ports, mirrors and the link."""
        await gatherResults([Deferred.fromCoroutine(_close(port)) for port in self._ports], consumeErrors=True)
        self._ports.clear()
        self._agent.note_listeners()
        self._pages.close()
        await self._site.drain(DRAIN_SECONDS)
        self._reconciler.stopService()
        await self._exposed.stop()
        await self._forwards.stop()
        await self._mirrors.stopService()
        await self._api.close()
        await self._link.stopService()
        self._made_here.close()

    def _loopback(self, port: int) -> list[IStreamClientEndpoint]:
        """Where a service of this machine may listen."""
        return [TCP4ClientEndpoint(self._reactor, "127.0.0.1", port), TCP6ClientEndpoint(self._reactor, "::1", port)]

    def _sync(self, descriptor: int) -> None:
        """Have what was written to a file reach the disk, in a thread: on a busy disk that takes long."""
        self._reactor.callInThread(_sync_and_close, os.dup(descriptor))

    def stopService(self) -> Deferred[None]:
        """Close everything; fires when it is closed."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def _listeners(self) -> tuple[str, ...]:
        return tuple(docker_host(port.getHost()) for port in self._ports)

    def record(self) -> RecordedContext:
        """What can be known of this context without asking it."""
        return RecordedContext.of(self._context, self._listeners())

    def link_status(self) -> LinkStatus:
        """How its link is."""
        return self._link.status()

    def status(self) -> ContextStatus:
        """What this context is doing."""
        return ContextStatus(
            name=self._context.name,
            listeners=self._listeners(),
            link=self._link.status(),
            forwards=(*self._forwards.status(), *self._exposed.status()),
            mirrors=self._mirrors.status(),
            problems=self._reconciler.problems(),
            relay=self._site.status(),
            calls=self._site.calls.status(),
        )


def settled(links: Iterable[LinkStatus]) -> bool:
    """Whether a service with these links is ready: none is still on its way, and at least one is there.

    A link that failed waits for a person; the other contexts of the process do not wait for it.
    """
    states = {link.state for link in links}
    return "connected" in states and states <= {"connected", "failed"}


def summary(links: Iterable[tuple[str, LinkStatus]]) -> str:
    """How the links of the contexts are, in one line."""
    return "; ".join(
        f"{name}: {link.remote} {link.state}" + (f" ({link.reason})" if link.reason else "") for name, link in links
    )


def listen(reactor: Any, description: str, factory: IProtocolFactory) -> Deferred[IListeningPort]:
    """Open a listener; a UNIX socket is its owner's only, from its first moment on, unless its mode says otherwise.

    :param description: a Twisted server endpoint string.
    """
    if description.startswith(("tcp:", "tcp6:", "ssl:", "unix:")) and ":backlog=" not in description:
        description += f":backlog={BACKLOG}"
    if not description.startswith("unix:"):
        endpoint = serverFromString(reactor, description)
        if isinstance(endpoint, AdoptedStreamServerEndpoint) and endpoint.addressFamily == socket.AF_UNIX:
            return execute(adopt_unix_port, reactor, endpoint.fileno, factory)
        return endpoint.listen(factory)
    if ":mode=" not in description:
        description += ":mode=600"
    before = os.umask(0o177)  # Twisted sets the mode after it has bound
    try:
        return serverFromString(reactor, description).listen(factory)
    finally:
        os.umask(before)


def _sync_and_close(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a file system that cannot: the system writes in its own time
        os.fsync(descriptor)
    os.close(descriptor)


async def _close(port: IListeningPort) -> None:
    await maybeDeferred(port.stopListening)


def docker_host(address: Any) -> str:
    """What DOCKER_HOST has to be for a client to reach a listener."""
    if hasattr(address, "port"):
        host = "localhost" if address.host in ("127.0.0.1", "::1") else address.host
        return f"tcp://[{host}]:{address.port}" if ":" in host else f"tcp://{host}:{address.port}"
    name = address.name
    return "unix://" + (name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name))


def _system() -> System:
    """What this machine is, for the paths that its users write."""
    if sys.platform == "darwin":
        return System.MACOS
    if sys.platform == "win32":
        return System.WINDOWS
    return System.WSL if "microsoft" in os.uname().release.lower() else System.LINUX


def private_directory(path: Path) -> None:
    """Make a directory that only its owner can enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def identity(state_dir: Path) -> str:
    """The identity of this installation's context: made once, then read."""
    path = state_dir / "owner"
    try:
        owner = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        owner = secrets.token_hex(16)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(owner + "\n")
    if not re.fullmatch("[0-9a-f]{32}", owner):
        raise SystemExit(f"rda: {path} is damaged; restore it, or remove it to begin with a new identity")
    return owner


def _raise_descriptor_limit() -> None:
    """Two descriptors per stream: take what the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
