"""Services of this machine that containers reach as ``host.docker.internal``: named ports, through the link, backwards.

A container reaches the address of its bridge's gateway, which is the remote host's own. An ordinary SSH server listens
for us on its loopback addresses only (``GatewayPorts no``), where no container gets. So it is asked to listen on
UNIX-domain sockets that only the login's own user can open, and a small program (:mod:`rda.ports.programs`) listens at
the gateway's address and passes what it accepts on to them. Nothing is opened on any network of the remote host but
that bridge; whoever is on the bridge, or on the host itself, can connect, and gets no further than the named ports.

Per port::

    container ─▶ 172.17.0.1:5432 (the program) ─▶ socket (sshd) ══SSH══▶ here ─▶ 127.0.0.1:5432, else [::1]:5432
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.application.internet import backoffPolicy
from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.deferreds import Waiters
from rda.docker.rewrite import HOST_NAME
from rda.errors import ChannelRefused, CommandFailed, RdaError
from rda.interfaces import IRemoteHost, IRemoteListener
from rda.ports.programs import EXPOSE_PERL, EXPOSE_PYTHON, NO_INTERPRETER, READY, command
from rda.ports.splice import Splice
from rda.status import ForwardStatus

__all__ = ["COMMAND", "MAX_CONNECTIONS", "Exposed"]

#: Open connections of one port; a further one is refused. Each takes two descriptors of the program there.
MAX_CONNECTIONS = 256

#: Seconds in which the program has to say that it listens.
ANSWER_SECONDS = 10.0

#: What the remote user's shell is given: a constant. The addresses go over its standard input.
COMMAND = command(EXPOSE_PYTHON, EXPOSE_PERL)

NO_PROGRAM = "it needs python3 or perl on the remote host, and neither is there: install one of them"
NO_BRIDGE = "the remote daemon has no bridge network whose gateway could stand for this machine"


@implementer(IHalfCloseableProtocol)
class _Program(Protocol):
    """The program at the gateway's address.

    :param lines: what it is told: an address, a port and a socket in each.
    :ivar answered: fires with port -> "" or why it does not listen there, when it has said so for all.
    :ivar ended: fires when it is over; :attr:`reason` says why.
    """

    def __init__(self, lines: Sequence[tuple[str, int, str]]) -> None:
        self._lines = lines
        self._words = b""
        self._ready = False
        self._answers: dict[int, str] = {}
        self.answered: Deferred[dict[int, str]] = Deferred(lambda _: self.abort())
        self.ended: Deferred[None] = Deferred()
        self.reason: Failure = connectionDone

    def connectionMade(self) -> None:
        assert self.transport is not None
        text = "".join(f"{address} {port} {path}\n" for address, port, path in self._lines)
        self.transport.write(text.encode("ascii") + b"\n")

    def dataReceived(self, data: bytes) -> None:
        *lines, self._words = (self._words + data)[: 64 * 1024].split(b"\n")
        for line in lines:
            if not self._ready:
                if line + b"\n" != READY:
                    self.abort()  # a login script that prints; nothing that follows can be told from it
                    return
                self._ready = True
                continue
            port, _, word = line.decode("utf-8", "replace").partition(" ")
            if port.isdecimal():
                self._answers[int(port)] = "" if word == "ok" else word
        if len(self._answers) == len(self._lines) and not self.answered.called:
            self.answered.callback(self._answers)

    def abort(self) -> None:
        """End it at once."""
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def readConnectionLost(self) -> None:
        """It has ended: how, comes with the connection's end."""

    def writeConnectionLost(self) -> None:
        """Its input has ended."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.answered.called:
            self.answered.errback(RdaError(_reason(reason)))
        self.reason = reason
        self.ended.callback(None)


def _reason(failure: Failure) -> str:
    error = failure.value
    if isinstance(error, CommandFailed) and error.exit_status == NO_INTERPRETER:
        return NO_PROGRAM
    return f"the program for it on the remote host ended: {failure.getErrorMessage()}"


@implementer(IStreamClientEndpoint)
class _Service:
    """A service of this machine, on whichever loopback address it listens."""

    def __init__(self, port: int, endpoints: Sequence[IStreamClientEndpoint]) -> None:
        self._port = port
        self._endpoints = endpoints

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        for endpoint in self._endpoints:
            try:
                connected: IProtocol = await endpoint.connect(factory)
            except ConnectError:
                continue
            return connected
        raise ChannelRefused(f"nothing listens on port {self._port} of this machine", 2)


class _Port(Factory):
    """One exposed port: makes the near end of each connection that the SSH server brings.

    :ivar reason: why it is not reached from there, "" when it is.
    """

    noisy = False

    def __init__(self, clock: IReactorTime, number: int, service: IStreamClientEndpoint) -> None:
        self._clock = clock
        self._service = service
        self.number = number
        self.reason = ""
        self.listener: IRemoteListener | None = None
        self.connections: set[Splice] = set()
        self.total = self.dropped = self.bytes_in = self.bytes_out = 0

    def buildProtocol(self, addr: IAddress | None) -> Splice | None:
        """Make the protocol of a connection from there, unless there are too many."""
        if len(self.connections) >= MAX_CONNECTIONS:
            self.dropped += 1
            return None
        return Splice(self._clock, self._accepted, self._over)

    def _accepted(self, connection: Splice) -> None:
        self.connections.add(connection)
        self.total += 1
        connection.join(self._service)

    def _over(self, connection: Splice) -> None:
        self.connections.discard(connection)
        self.bytes_in += connection.bytes_in
        self.bytes_out += connection.bytes_out

    def status(self, address: str) -> ForwardStatus:
        """Describe it."""
        return ForwardStatus(
            container="",
            name=HOST_NAME,
            port=f"{self.number}/tcp",
            local=f"127.0.0.1:{self.number}",
            remote=f"{address}:{self.number}" if address and self.listener is not None else "",
            state="exposed" if self.listener is not None else "not exposed",
            reason=self.reason,
            connections=len(self.connections),
            connections_total=self.total,
            bytes_in=self.bytes_in + sum(one.bytes_in for one in self.connections),
            bytes_out=self.bytes_out + sum(one.bytes_out for one in self.connections),
            dropped=self.dropped,
        )


class Exposed:
    """The exposed ports of one context. Without any, nothing is ever asked of the remote host.

    :param ports: the only ports that are reached.
    :param gateway: asks the daemon for the address of its bridge's gateway, "" when it has none.
    :param local: makes the endpoints of a port of this machine, one for each address to try.
    :ivar address: what :data:`~rda.docker.rewrite.HOST_NAME` means on the remote host, "" while that is not known.
    """

    _log = Logger()

    def __init__(
        self,
        host: IRemoteHost,
        clock: IReactorTime,
        ports: Sequence[int],
        gateway: Callable[[], Awaitable[str]],
        local: Callable[[int], Sequence[IStreamClientEndpoint]],
    ) -> None:
        self._host = host
        self._clock = clock
        self._gateway = gateway
        self._ports = [_Port(clock, port, _Service(port, local(port))) for port in ports]
        self.address = ""
        self._opening: Deferred[None] | None = None
        self._waiters: Waiters[None] = Waiters()
        self._program: _Program | None = None
        self._retry: IDelayedCall | None = None
        self._failures = 0
        self._linked = self._known = False
        self._delay = backoffPolicy(initialDelay=1.0, maxDelay=30.0)

    def __bool__(self) -> bool:
        return bool(self._ports)

    # Life.

    def link_up(self) -> None:
        """Open everything over the link that has just come up."""
        self._failures = 0
        self._linked = True
        if self._ports and self._opening is None and self._program is None:
            self._open()

    def link_down(self) -> None:
        """Nothing is open any more; connections end with the link that carried them."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._linked = False
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
        program, self._program = self._program, None
        if program is not None:
            program.abort()
        for port in self._ports:
            port.listener = None
            port.reason = "there is no connection to the remote host"

    def stop(self) -> Deferred[Any]:
        """Close everything; fires when the program has ended: it removes the sockets."""
        listeners = [port.listener for port in self._ports if port.listener is not None]
        program, self._program = self._program, None
        for port in self._ports:
            for connection in list(port.connections):
                connection.abort()
        closing: list[Deferred[Any]] = [listener.stopListening() for listener in listeners]
        if program is not None:
            assert program.transport is not None
            program.transport.loseWriteConnection()  # type: ignore[attr-defined]
            closing.append(program.ended.addTimeout(ANSWER_SECONDS, self._clock))
        self.link_down()
        return DeferredList(closing, consumeErrors=True)

    def _open(self) -> None:
        self._retry = None
        opening = Deferred.fromCoroutine(self._open_all())
        self._opening = opening
        opening.addBoth(self._opened, opening)

    async def _open_all(self) -> None:
        self.address = await self._gateway()
        if not self.address:
            raise RdaError(NO_BRIDGE)
        token = secrets.token_hex(16)
        paths = {port.number: f"/tmp/rda-{token}-{port.number}" for port in self._ports}  # noqa: S108 - nobody else can guess it
        lines = [(self.address, number, path) for number, path in paths.items()]
        connecting = self._host.command(COMMAND).connect(Factory.forProtocol(lambda: _Program(lines)))
        program: Any = await connecting
        self._program = program
        program.ended.addBoth(self._ended, program)
        answers = await program.answered.addTimeout(ANSWER_SECONDS, self._clock, _silent)
        for port in self._ports:
            await self._listen(port, paths[port.number], answers.get(port.number, "it does not say whether it listens"))
        if program.ended.called:
            raise RdaError(_reason(program.reason))

    async def _listen(self, port: _Port, path: str, answer: str) -> None:
        """Have the SSH server listen for one port, where the program could."""
        if answer:
            port.reason = f"{self.address}:{port.number} cannot be listened on there: {answer}"
            return
        try:
            port.listener = await self._host.listen(path, port)
            port.reason = ""
        except ChannelRefused as error:
            port.reason = str(error)

    def _opened(self, result: object, opening: Deferred[None]) -> None:
        """All is open, or it is known why not."""
        if isinstance(result, Failure) and not result.check(RdaError, CancelledError):
            self._log.failure("The exposed ports could not be opened", result)
        if self._opening is opening:
            self._opening = None
            self._known = True
            if isinstance(result, Failure):
                self._failed(result.getErrorMessage())
        self._waiters.fire(None)

    def _failed(self, reason: str) -> None:
        """Try again later: somebody may install the program, or free the port."""
        program, self._program = self._program, None
        if program is not None:
            program.abort()
        for port in self._ports:
            if port.listener is not None:
                port.listener.stopListening()
                port.listener = None
            port.reason = reason
        self._failures += 1
        if self._linked and self._retry is None:
            self._retry = self._clock.callLater(self._delay(self._failures), self._open)

    def _ended(self, result: object, program: _Program) -> None:
        """The program is gone, and not by our doing."""
        if program is self._program and self._opening is None:
            self._failed(_reason(program.reason))

    # What create asks.

    def settled(self) -> Deferred[None]:
        """Fire when it is known what is reached from there, and what is not; or when that takes too long."""
        if not self._ports or (self._known and self._opening is None):
            return succeed(None)
        return self._waiters.wait().addTimeout(ANSWER_SECONDS, self._clock, _go_on)

    def warnings(self) -> tuple[str, ...]:
        """What to tell whoever makes a container: the ports that it will not reach, and why."""
        return tuple(
            f"rda: port {port.number} of {HOST_NAME} cannot be reached: {port.reason}"
            for port in self._ports
            if port.reason
        )

    def status(self) -> tuple[ForwardStatus, ...]:
        """Describe every exposed port."""
        return tuple(port.status(self.address) for port in self._ports)


def _go_on(result: object, seconds: float) -> None:
    """Called when it takes too long to know more: what is known has to do."""


def _silent(result: object, seconds: float) -> object:
    """Called when the program has said nothing in time."""
    raise RdaError(f"the program for it on the remote host said nothing in {seconds:.0f} s")
