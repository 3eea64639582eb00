"""The remote Docker socket: which way leads to it, and channels to it that are open before they are needed.

The first way is ``direct-streamlocal@openssh.com``. Servers that refuse it (AllowStreamLocalForwarding no) still run
commands, so ``docker system dial-stdio`` and ``socat`` come next. A way is chosen once for each connection, by asking
the daemon for ``/_ping`` over it.
"""

from __future__ import annotations

import enum
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.deferreds import Waiters
from rda.errors import ChannelRefused, CommandFailed, ConfigError, RdaError
from rda.ssh.channels import Connection, StreamChannel, command, direct_tcp, streamlocal
from rda.ssh.line import Line
from rda.ssh.sessions import SessionConnection, SessionPool

__all__ = ["DockerAddress", "DockerSocket", "Way", "parse_docker"]

#: Channels to the Docker socket that are kept open for the next clients: a client's first request then costs one round
#: trip. Docker's CLI opens one or two connections per command, Compose some at once.
SPARES = 6

#: The same where each of them is a process on the remote host.
SPARE_COMMANDS = 2

#: Seconds before a spare that was taken is replaced: opening one at once would stand in front of the very request that
#: took it, on both hosts. Measured on two busy processors, new connections were answered in half the time.
REFILL_SECONDS = 0.003

#: Seconds that a spare is kept: dockerd closes a connection without a request after five minutes (ReadHeaderTimeout),
#: and a request must not meet that close half-way.
SPARE_SECONDS = 120.0

#: Seconds before a spare that the daemon closed is replaced: while dockerd restarts it closes them all.
SPARE_RETRY = 5.0

#: Session channels on one connection that must be left over before commands are kept running as spares.
SPARE_SESSIONS = 6

#: Seconds for one way to show that it leads to a daemon; starting the docker program can take a few on a small host.
PROBE_SECONDS = 10.0

#: Seconds during which a vain search is not repeated.
SEARCH_AGAIN = 5.0

#: Paths that may stand in a command. socat gives a meaning to ``:``, ``,`` and ``!`` in its addresses, shells to more.
_SAFE_PATH = re.compile(r"/[A-Za-z0-9_./-]*")

_PING = b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"


class Way(enum.Enum):
    """How the Docker socket is reached, as the status shows it."""

    STREAMLOCAL = "streamlocal"
    TCP = "tcp"
    DIAL_STDIO = "dial-stdio"
    SOCAT = "socat"


@dataclass(frozen=True)
class DockerAddress:
    """Where the daemon listens on the remote host: a socket's :attr:`path`, or :attr:`host` and :attr:`port`."""

    path: str = ""
    host: str = ""
    port: int = 0


def parse_docker(text: str) -> DockerAddress:
    """Take ``unix:///path`` or ``tcp://host:port`` apart.

    :raises rda.errors.ConfigError: it is neither.
    """
    if text.startswith("unix:///"):
        return DockerAddress(path=text[len("unix://") :])
    match = re.fullmatch(r"tcp://(?:\[([0-9A-Fa-f:.%]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})/?", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise ConfigError([f"docker: {text!r} is neither unix:///path nor tcp://host:port"])
    return DockerAddress(host=match[1] or match[2], port=int(match[3]))


@implementer(IHalfCloseableProtocol)
class _Spare(Protocol):
    """Holds an open channel until somebody needs it. The daemon has nothing to say before it is asked."""

    def __init__(self, on_dead: Callable[[_Spare], None]) -> None:
        self._on_dead = on_dead
        self.timer: IDelayedCall | None = None

    def dataReceived(self, data: bytes) -> None:
        self._spoiled()

    def readConnectionLost(self) -> None:
        self._spoiled()

    def writeConnectionLost(self) -> None:
        self._spoiled()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._on_dead(self)

    def _spoiled(self) -> None:
        self._on_dead(self)
        self.channel.abortConnection()

    @property
    def channel(self) -> StreamChannel:
        assert isinstance(self.transport, StreamChannel)
        return self.transport


class _Ping(Protocol):
    """Asks for /_ping and looks whether HTTP comes back."""

    def __init__(self, done: Deferred[None]) -> None:
        self._done = done
        self._answer = b""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(_PING)

    def dataReceived(self, data: bytes) -> None:
        self._answer += data[:16]
        if self._answer.startswith(b"HTTP/1."):
            self._settle(None)
        elif len(self._answer) >= 7:
            shown = self._answer[:16].decode("utf-8", "replace")
            self._settle(
                CommandFailed(f"no daemon answered, but {shown!r} (does the login shell print something?)", None)
            )

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        failed = isinstance(reason.value, RdaError)
        self._settle(reason.value if failed else CommandFailed("it ended without an answer", None))  # type: ignore[arg-type]

    def _settle(self, error: Exception | None) -> None:
        if self._done.called:
            return
        if error is None:
            self._done.callback(None)
        else:
            self._done.errback(error)


class DockerSocket:
    """Opens channels to the Docker socket over a line.

    :param line: the connection for the small and the urgent.
    :param pool: opens commands, when commands it has to be.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, line: Line, pool: SessionPool, address: DockerAddress) -> None:
        self._clock = clock
        self._line = line
        self._pool = pool
        self._address = address
        self._first = Way.STREAMLOCAL if address.path else Way.TCP
        self._chosen: tuple[Connection, Way] | None = None
        self._search: Deferred[Way] | None = None
        self._seekers: Waiters[Way] = Waiters()
        self._vain: tuple[float, RdaError] | None = None
        self._spares: deque[_Spare] = deque()
        self._opening = 0
        self._refill: IDelayedCall | None = None
        self._closed = False

    @property
    def via(self) -> str:
        """The way that was chosen for the present connection, "" before."""
        transport = self._line.transport
        if transport is not None and self._chosen is not None and self._chosen[0] is transport.connection:
            return self._chosen[1].value
        return ""

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect a protocol to the daemon: over a spare channel at once, or over a new one."""
        while self._spares:
            spare = self._spares.popleft()
            self._stop_timer(spare)
            channel = spare.channel
            if channel.remoteClosed or channel.localClosed or channel.conn.closed:
                continue
            self._fill_soon(REFILL_SECONDS)
            return Deferred.fromCoroutine(_hand_over(channel, factory))
        return Deferred.fromCoroutine(self._line.attempt(lambda connection: self._connect(connection, factory)))

    async def _connect(self, connection: Connection, factory: IProtocolFactory) -> IProtocol:
        way = self._way_of(connection)
        try:
            protocol = await self._open(way or self._first, connection, factory)
        except ChannelRefused as error:
            if way is not None or self._first is Way.TCP or not error.code:
                raise
            way = await self._find_way(connection, error)
            protocol = await self._open(way, connection, factory)
        self._choose(connection, way or self._first)
        self._fill_soon(REFILL_SECONDS)
        return protocol

    def _way_of(self, connection: Connection) -> Way | None:
        if self._chosen is not None and self._chosen[0] is connection:
            return self._chosen[1]
        return None

    def _open(
        self, way: Way, connection: Connection, factory: IProtocolFactory, *, patient: bool = True
    ) -> Deferred[IProtocol]:
        if way is Way.STREAMLOCAL:
            return streamlocal(connection, self._address.path).connect(factory)
        if way is Way.TCP:
            return direct_tcp(connection, self._address.host, self._address.port).connect(factory)
        line = self._command(way)
        return self._pool.connect(lambda any_connection: command(any_connection, line), factory, patient=patient)

    def _command(self, way: Way) -> bytes:
        # Only a path of harmless characters gets here (_find_way): nothing is left for a shell to interpret.
        path = self._address.path
        if way is Way.DIAL_STDIO:
            return f"docker -H unix://{path} system dial-stdio".encode("ascii")
        return f"socat - UNIX-CONNECT:{path}".encode("ascii")

    # -- the ladder

    def _find_way(self, connection: Connection, refusal: ChannelRefused) -> Deferred[Way]:
        """Find another way; all that need one wait for the same search."""
        if self._vain is not None and self._clock.seconds() - self._vain[0] < SEARCH_AGAIN:
            return fail(self._vain[1])
        way = self._seekers.wait()
        if self._search is None:
            self._search = Deferred.fromCoroutine(self._try_ways(connection, refusal))
            self._search.addBoth(self._found)
        return way

    def _found(self, result: Way | Failure) -> None:
        self._search = None
        if isinstance(result, Failure) and isinstance(result.value, RdaError):
            self._vain = (self._clock.seconds(), result.value)
        self._seekers.fire(result)

    async def _try_ways(self, connection: Connection, refusal: ChannelRefused) -> Way:
        path = self._address.path
        if not _SAFE_PATH.fullmatch(path):
            raise ChannelRefused(f"{refusal} Its name has characters that cannot be passed to a command.", refusal.code)
        tried = []
        for way in (Way.DIAL_STDIO, Way.SOCAT):
            try:
                await self._probe(way, connection)
            except RdaError as error:
                tried.append(f"{way.value}: {str(error).rstrip('.')}")
                continue
            if await self._works(Way.STREAMLOCAL, connection):
                way = Way.STREAMLOCAL  # the daemon was only late
            self._log.info("the Docker socket is reached by {way}", way=way.value)
            self._chosen = (connection, way)
            self._vain = None
            return way
        raise ChannelRefused(f"{refusal} Commands do not reach it either: {'; '.join(tried)}.", refusal.code)

    async def _works(self, way: Way, connection: Connection) -> bool:
        try:
            await self._probe(way, connection)
        except RdaError:
            return False
        return True

    async def _probe(self, way: Way, connection: Connection) -> None:
        answered: Deferred[None] = Deferred()
        protocol = await self._open(way, connection, Factory.forProtocol(lambda: _Ping(answered)))
        late = CommandFailed(f"it did not answer within {PROBE_SECONDS:.0f} s", None)
        timer = self._clock.callLater(PROBE_SECONDS, lambda: None if answered.called else answered.errback(late))
        try:
            await answered
        finally:
            if timer.active():
                timer.cancel()
            protocol.transport.abortConnection()  # type: ignore[attr-defined]

    # -- spares

    def _fill_soon(self, delay: float) -> None:
        if self._refill is None and not self._closed:
            self._refill = self._clock.callLater(delay, self._fill)

    def _fill(self) -> None:
        self._refill = None
        transport = self._line.transport
        if transport is None or self._way_of(transport.connection) is None:
            return
        connection = transport.connection
        way = self._way_of(connection)
        assert way is not None
        wanted = SPARES if way in (Way.STREAMLOCAL, Way.TCP) else SPARE_COMMANDS
        while len(self._spares) + self._opening < wanted and self._may_keep(way, connection):
            self._opening += 1
            opening = self._open(way, connection, Factory.forProtocol(lambda: _Spare(self._dead)), patient=False)
            opening.addCallbacks(self._opened, self._not_opened)

    def _may_keep(self, way: Way, connection: Connection) -> bool:
        if way in (Way.STREAMLOCAL, Way.TCP):
            return True
        assert isinstance(connection, SessionConnection)
        return connection.session_limit - connection.sessions >= SPARE_SESSIONS

    def _opened(self, spare: IProtocol) -> None:
        assert isinstance(spare, _Spare)
        self._opening -= 1
        if self._closed:
            spare.channel.abortConnection()
            return
        spare.timer = self._clock.callLater(SPARE_SECONDS, self._too_old, spare)
        self._spares.append(spare)

    def _not_opened(self, failure: Failure) -> None:
        # No reason to do anything: the next client that finds no spare opens its own channel, and says what is wrong.
        self._opening -= 1
        if not failure.check(RdaError):
            self._log.failure("a spare channel could not be opened", failure)

    def _too_old(self, spare: _Spare) -> None:
        spare.timer = None
        self._drop(spare)
        spare.channel.abortConnection()
        self._fill_soon(0.0)

    def _dead(self, spare: _Spare) -> None:
        if spare in self._spares:
            self._drop(spare)
            self._fill_soon(SPARE_RETRY)

    def _drop(self, spare: _Spare) -> None:
        self._stop_timer(spare)
        if spare in self._spares:
            self._spares.remove(spare)

    def _stop_timer(self, spare: _Spare) -> None:
        if spare.timer is not None:
            spare.timer.cancel()
            spare.timer = None

    def open_again(self) -> None:
        """The link was started (again)."""
        self._closed = False

    def link_up(self) -> None:
        """There is a new connection: find the way, and have spares ready, without waiting for a client."""
        self._vain = None
        transport = self._line.transport
        if transport is not None and not self._closed:
            preparing = Deferred.fromCoroutine(self._prepare(transport.connection))
            preparing.addErrback(lambda failure: self._log.failure("the Docker socket could not be prepared", failure))

    async def _prepare(self, connection: Connection) -> None:
        factory = Factory.forProtocol(lambda: _Spare(self._dead))
        self._opening += 1
        try:
            spare = await self._open(self._first, connection, factory)
        except RdaError as error:
            self._opening -= 1
            if isinstance(error, ChannelRefused) and error.code and self._first is Way.STREAMLOCAL:
                await self._search_ahead(connection, error)
            return
        self._choose(connection, self._first)
        self._opened(spare)
        self._fill_soon(0.0)

    async def _search_ahead(self, connection: Connection, refusal: ChannelRefused) -> None:
        try:
            await self._find_way(connection, refusal)
        except RdaError as error:
            # Nobody has asked yet: the next client searches again, and is told.
            self._log.info("the Docker socket is not reached: {reason}", reason=str(error))
        else:
            self._fill_soon(0.0)

    def _choose(self, connection: Connection, way: Way) -> None:
        if self._way_of(connection) is None:
            self._chosen = (connection, way)

    def close(self) -> None:
        """Close the spares; new ones are not opened."""
        self._closed = True
        if self._refill is not None:
            self._refill.cancel()
            self._refill = None
        for spare in list(self._spares):
            self._drop(spare)
            spare.channel.abortConnection()


async def _hand_over(channel: StreamChannel, factory: IProtocolFactory) -> IProtocol:
    protocol = factory.buildProtocol(channel.getPeer())
    if protocol is None:
        channel.abortConnection()
        raise ChannelRefused("The channel is not wanted any more.", 0)
    channel.attach(protocol)
    return protocol
