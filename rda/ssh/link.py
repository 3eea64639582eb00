"""The link to one remote host: what the rest of rda knows of SSH (:class:`rda.interfaces.IRemoteHost`).

Two lines (:class:`rda.ssh.line.Line`) lead to the host. The *main* line carries the Docker socket and the published
ports, and is always up. The *bulk* line carries files and commands, so that a large sync does not stand in front of a
small request; it is connected when it is needed. A few more are there for session channels beyond what the server
allows on one connection::

    docker() ─▶ DockerSocket ─▶ main ─(dial-stdio)─▶ extra …
    tcp(), socket() ──────────▶ main
    files(), command() ───────▶ bulk ───────────────▶ extra …
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.config import Remote
from rda.deferreds import Waiters
from rda.errors import ConfigError, LinkDown, LoginFailed
from rda.interfaces import IRemoteFiles, IRemoteHost, IRemoteListener
from rda.ssh.askpass import passphrase_asker
from rda.ssh.channels import Connection, command, direct_tcp, streamlocal, subsystem
from rda.ssh.connect import Connector
from rda.ssh.docker_socket import DockerAddress, DockerSocket, parse_docker
from rda.ssh.identities import AskPassphrase, KeyStore
from rda.ssh.keepalive import Opened
from rda.ssh.line import WAIT_FOR_LINK, Backoff, Line
from rda.ssh.network_watch import NetworkWatch
from rda.ssh.observers import LinkObserver, LinkObservers
from rda.ssh.sessions import MAX_SESSIONS, SessionConnection, SessionPool
from rda.ssh.sftp import SFTPFiles
from rda.ssh.ssh_config import resolve
from rda.ssh.target import Surroundings, Target
from rda.status import LinkStatus

__all__ = ["Link"]

#: Connections beyond main and bulk for session channels that the server's MaxSessions leaves no room for.
EXTRA_LINES = 2

#: Seconds that another connection waits for the main one: a little less than a request waits, so that it gets the
#: reason.
MAIN_FIRST_SECONDS = 0.9 * WAIT_FOR_LINK


#: Seconds until an SFTP server that says nothing is given up: a shell in front of it may have swallowed our greeting.
GREETING_SECONDS = 30.0


@implementer(IStreamClientEndpoint)
@dataclass(frozen=True)
class _Endpoint:
    """An endpoint made of a function."""

    open: Callable[[IProtocolFactory], Deferred[IProtocol]]

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        return self.open(protocolFactory)


@implementer(IRemoteHost)
class Link(Service):
    """One remote host, over SSH connections that always come back.

    :param reactor: the real one; in tests a clock.
    :param remote: the host and how to get in, as configured.
    :param docker: the daemon on it: ``unix:///path`` or ``tcp://host:port``.
    :param environ: environment variables, for the agent, ssh and askpass.
    :param ask: asks a person for a passphrase, only until the first connection is there or has failed for good; None
        means by SSH_ASKPASS or the terminal, as ssh does.
    :param find_target: resolves the remote to a :class:`Target`; None means by ssh_config.
    :param direct: makes the endpoint for TCP to a target; None means by name, both address families.
    :param wall_clock: seconds since the epoch.
    :raises rda.errors.ConfigError: ``docker`` is not an address.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        remote: Remote,
        docker: str = "unix:///var/run/docker.sock",
        *,
        environ: Mapping[str, str] | None = None,
        ask: AskPassphrase | None = None,
        find_target: Callable[[], Deferred[Target]] | None = None,
        direct: Callable[[Target], IStreamClientEndpoint] | None = None,
        wall_clock: Callable[[], float] = time.time,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self._reactor = reactor
        self._remote = remote
        self._environ = dict(os.environ) if environ is None else dict(environ)
        self._ask = ask
        self._find_target = find_target or self._resolve
        self._store = KeyStore()
        self._connector = Connector(
            reactor, self._store, self._environ, wall_clock, tuple(remote.host_keys), remote.permits, direct
        )
        self._label = remote.target
        self._observers = LinkObservers()
        self._main = Line(reactor, self._open, wall_clock, self._changed, backoff=backoff())
        self._bulk, *extra = (
            Line(reactor, self._open_another, wall_clock, self._wake, on_demand=True, backoff=backoff())
            for _ in range(1 + EXTRA_LINES)
        )
        self._lines = (self._main, self._bulk, *extra)
        self._docker_pool = SessionPool(reactor, (self._main, *extra))
        self._pool = SessionPool(reactor, (self._bulk, *extra))
        self._own_docker = parse_docker(docker)
        self._dockers: dict[DockerAddress, DockerSocket] = {}
        self._docker_at()
        self._watch = NetworkWatch(reactor, self.network_changed)
        self._files: SFTPFiles | None = None
        self._files_opening: Waiters[IRemoteFiles] | None = None

    # -- IRemoteHost

    def docker(self, address: str = "") -> IStreamClientEndpoint:
        """A Docker daemon's API socket, reached in whichever way this server allows.

        :param address: of another daemon on the host than the one that the link was made for.
        :raises rda.errors.ConfigError: it is no address.
        """
        return _Endpoint(self._docker_at(address).connect)

    def forget_docker(self, address: str) -> None:
        """Nobody needs this daemon any more: keep no channels open to it."""
        socket = self._dockers.pop(parse_docker(address), None)
        if socket is not None:
            socket.close()

    def _docker_at(self, address: str = "") -> DockerSocket:
        parsed = parse_docker(address) if address else self._own_docker
        if parsed not in self._dockers:
            socket = self._dockers[parsed] = DockerSocket(self._reactor, self._main, self._docker_pool, parsed)
            if not self.running and self._main.ended:
                socket.close()
            elif self._main.state == "connected":
                socket.link_up()
        return self._dockers[parsed]

    def socket(self, path: str) -> IStreamClientEndpoint:
        """A UNIX-domain socket of the remote host.

        :param path: absolute.
        """
        return _Endpoint(lambda factory: self._on_main(lambda connection: streamlocal(connection, path), factory))

    def tcp(self, host: str, port: int) -> IStreamClientEndpoint:
        """A TCP port as seen from the remote host."""
        return _Endpoint(lambda factory: self._on_main(lambda connection: direct_tcp(connection, host, port), factory))

    def command(self, line: bytes) -> IStreamClientEndpoint:
        """A command run by the remote user's shell; a constant of ours, see :class:`rda.interfaces.IRemoteHost`."""
        return _Endpoint(lambda factory: self._pool.connect(lambda connection: command(connection, line), factory))

    def listen(self, path: str, factory: IProtocolFactory) -> Deferred[IRemoteListener]:
        """Listen on a UNIX-domain socket of the remote host; see :class:`rda.interfaces.IRemoteHost`."""

        async def listen(connection: Connection) -> IRemoteListener:
            return await connection.listen(path, factory)

        return Deferred.fromCoroutine(self._main.attempt(listen))

    def files(self) -> Deferred[IRemoteFiles]:
        """The remote host's file system, over one SFTP channel that all share; a lost one is replaced."""
        if self._files is not None and not self._files.lost:
            return succeed(self._files)
        if self._files_opening is not None:
            return self._files_opening.wait()
        self._files_opening = Waiters()
        files = self._files_opening.wait()
        Deferred.fromCoroutine(self._open_files()).addBoth(self._files_opened)
        return files

    @property
    def connected(self) -> bool:
        """Whether the main line is up."""
        return self._main.transport is not None

    async def _open_files(self) -> SFTPFiles:
        factory = Factory.forProtocol(SFTPFiles)
        protocol = await self._pool.connect(lambda connection: subsystem(connection, b"sftp"), factory)
        assert isinstance(protocol, SFTPFiles)
        late = self._reactor.callLater(GREETING_SECONDS, protocol.give_up, GREETING_SECONDS)
        try:
            return await protocol.ready
        finally:
            if late.active():
                late.cancel()

    def _files_opened(self, result: SFTPFiles | Failure) -> None:
        if isinstance(result, SFTPFiles):
            self._files = result
        waiters, self._files_opening = self._files_opening, None
        assert waiters is not None
        waiters.fire(result)

    def _on_main(
        self, make: Callable[[Connection], IStreamClientEndpoint], factory: IProtocolFactory
    ) -> Deferred[IProtocol]:
        transport = self._main.transport
        if transport is None:
            return self._on_next(make, factory)
        # The short way, without a coroutine: a published port may get thousands of connections in a second.
        connecting = make(transport.connection).connect(factory)
        return connecting.addErrback(self._not_opened, transport.connection, make, factory)

    def _on_next(
        self, make: Callable[[Connection], IStreamClientEndpoint], factory: IProtocolFactory
    ) -> Deferred[IProtocol]:
        return Deferred.fromCoroutine(self._main.attempt(lambda connection: make(connection).connect(factory)))

    def _not_opened(
        self,
        failure: Failure,
        connection: Connection,
        make: Callable[[Connection], IStreamClientEndpoint],
        factory: IProtocolFactory,
    ) -> Deferred[IProtocol]:
        """Try once more on the next connection when this one was lost before the channel was open."""
        return self._on_next(make, factory) if failure.check(LinkDown) and connection.closed else fail(failure)

    # -- life

    def startService(self) -> None:
        """Begin to connect; a person may be asked for passphrases now, and not later."""
        if self.running:
            return
        super().startService()
        self._store.ask = self._ask or passphrase_asker(self._reactor, self._environ)
        for socket in self._dockers.values():
            socket.open_again()
        self._watch.startService()
        for line in self._lines:
            line.startService()

    def stopService(self) -> Deferred[None]:
        """Close every connection; fires when they are closed. Whoever waits for one is told."""
        super().stopService()
        self._watch.stopService()
        for socket in self._dockers.values():
            socket.close()
        closing = DeferredList([line.stopService() for line in self._lines])
        self._wake()
        return closing.addCallback(lambda _: self._connector.closed())

    def retry(self) -> None:
        """Try again now, also after a failure that only a person could repair."""
        for line in self._lines:
            line.retry()

    def network_changed(self) -> None:
        """The machine's network has changed, or it slept: find out at once whether the connections still live."""
        for line in self._lines:
            line.probe()

    def _resolve(self) -> Deferred[Target]:
        return resolve(self._reactor, self._remote, Surroundings.here(self._environ))

    def _open(self) -> Deferred[Opened]:
        return Deferred.fromCoroutine(self._open_one())

    def _open_another(self) -> Deferred[Opened]:
        # One line alone tries whether the host is there and lets us in: the others would only double the attempts.
        reached = self._main.session(limit=MAIN_FIRST_SECONDS)
        return reached.addCallback(lambda _: self._open())

    async def _open_one(self) -> Opened:
        # Anew each time: what ssh_config says may depend on the network (Match exec), and files change.
        try:
            target = await self._find_target()
        except ConfigError as error:
            raise LoginFailed(f"{self._remote.target} cannot be used: {error}") from error
        self._label = target.label
        transport = await self._connector.open(target)
        return Opened(transport, target.label, target.alive_interval, target.alive_count)

    # -- telling

    @property
    def session_limit(self) -> int:
        """Session channels on one connection that the server allows, as far as it has shown by refusing more."""
        connections = [one.transport.connection for one in self._lines if one.transport is not None]
        return min(
            (one.session_limit for one in connections if isinstance(one, SessionConnection)), default=MAX_SESSIONS
        )

    def add_observer(self, observer: LinkObserver) -> None:
        """Have ``observer`` called with the status whenever the main line's state changes."""
        self._observers.add(observer)

    def remove_observer(self, observer: LinkObserver) -> None:
        """Undo :meth:`add_observer`."""
        self._observers.remove(observer)

    def _changed(self) -> None:
        state = self._main.state
        if state in ("connected", "failed"):
            # Nobody sits at the terminal any more: from now on a key with a passphrase has to be in the agent.
            self._store.ask = None
        if state == "connected":
            for socket in list(self._dockers.values()):
                socket.link_up()
        self._wake()
        self._observers.tell(self.status())

    def _wake(self) -> None:
        self._docker_pool.wake_all()
        self._pool.wake_all()

    def status(self, docker: str = "") -> LinkStatus:
        """What the link is doing.

        :param docker: the daemon whose way is shown, as for :meth:`docker`.
        """
        line = self._main
        socket = self._dockers.get(parse_docker(docker) if docker else self._own_docker)
        transport = line.transport
        algorithms = transport.algorithms if transport is not None else None
        return LinkStatus(
            remote=self._label,
            state=line.state,
            reason=line.reason,
            since=line.since,
            round_trip=line.round_trip,
            connects=line.connects,
            channels=sum(len(one.transport.connection.channels) for one in self._lines if one.transport is not None),
            cipher=algorithms.cipher if algorithms is not None else "",
            key_exchange=algorithms.key_exchange if algorithms is not None else "",
            server=transport.server_version if transport is not None else "",
            socket_via=socket.via if socket is not None else "",
            next_try=line.next_try,
            round_trips=tuple(line.round_trips),
        )
