"""Published UDP ports: datagrams keep their boundaries over one channel to a relay program on the remote host.

SSH has no datagrams, so a program that the remote host has anyway (:data:`COMMAND`: python3, else perl; socat cannot
be made to keep boundaries) sends and receives there. Nothing is installed: its source is in the command. Over its
standard input and output go frames: kind (1 byte: 0 data, 1 end of flow), flow (4 bytes), length (2 bytes), payload;
before them, the port (2 bytes) to it and :data:`READY` from it.

As with Docker's own proxy, each client address is a flow with a socket of its own on the far side, so that answers
find their way, and a flow that is idle for :data:`IDLE_SECONDS` ends. What cannot be sent at the moment is dropped, as
datagrams are.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IListeningPort,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.docker.ports import Published
from rda.errors import ChannelRefused, CommandFailed, RdaError
from rda.interfaces import IRemoteHost
from rda.ports.programs import NO_INTERPRETER, READY, RELAY_PERL, RELAY_PYTHON, command

__all__ = ["COMMAND", "IDLE_SECONDS", "MAX_FLOWS", "MAX_QUEUED", "NO_PROGRAM", "UDPForward", "probe", "udp_listener"]

#: How long a flow without datagrams lives, seconds: Docker's proxy's UDPConnTrackTimeout.
IDLE_SECONDS = 90.0

#: Flows of one forward: each is a socket of the relay program, which waits with select(2) and its 1024 descriptors.
MAX_FLOWS = 512

#: Datagrams that wait while the channel is being opened; further ones are dropped.
MAX_QUEUED = 64

#: Seconds between two attempts to open the channel.
RETRY_SECONDS = 1.0

#: Seconds until a remote host that does not say whether it has a program for it is taken to have none.
PROBE_SECONDS = 10.0

#: Why a port is not forwarded on a remote host that has neither.
NO_PROGRAM = "UDP needs python3 or perl on the remote host, and neither is there: install one of them"

_FRAME = struct.Struct(">BIH")
_DATA, _END = 0, 1

#: What the remote user's shell is given: a constant.
COMMAND = command(RELAY_PYTHON, RELAY_PERL)

#: Opens a UDP listener: (protocol, address, port) -> the port. Raises CannotListenError.
ListenUDP = Callable[[DatagramProtocol, str, int], IListeningPort]


def udp_listener(reactor: Any) -> ListenUDP:
    """Return a function that opens UDP listeners with ``reactor``; IPv6 ones never take the IPv4 port too."""

    def listen(protocol: DatagramProtocol, address: str, port: int) -> IListeningPort:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as opened:
                opened.setblocking(False)
                if family == socket.AF_INET6:
                    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                opened.bind((address, port))
                # The largest datagram that UDP over IPv4 carries, 65,507 bytes, fits.
                adopted: IListeningPort = reactor.adoptDatagramPort(opened.fileno(), family, protocol, 65536)
                return adopted
        except OSError as error:
            raise CannotListenError(address, port, error) from error

    return listen


def probe(host: IRemoteHost, clock: IReactorTime) -> Deferred[str]:
    """Ask whether the remote host can relay datagrams; fires with "" or the reason why not.

    Fails as a connect does when there is no link.
    """
    asking = _Probe()
    connecting = host.command(COMMAND).connect(Factory.forProtocol(lambda: asking))
    answer: Deferred[str] = Deferred(lambda _: connecting.cancel())
    connecting.addCallbacks(lambda _: asking.ended, _not_started).chainDeferred(answer)
    return answer.addTimeout(PROBE_SECONDS, clock, lambda _, seconds: f"{NO_PROGRAM} (no answer in {seconds:.0f} s)")


def _not_started(failure: Failure) -> str:
    """A server that runs no commands (SFTP only) is a reason; a missing link is an error."""
    failure.trap(ChannelRefused, CommandFailed)
    return f"UDP needs a command on the remote host, and its SSH server runs none: {failure.getErrorMessage()}"


@implementer(IHalfCloseableProtocol)
class _Probe(Protocol):
    """Starts the relay program, ends its input, and sees whether it had words.

    :ivar ended: fires with "" or the reason; cancelling it ends the program.
    """

    def __init__(self) -> None:
        self.ended: Deferred[str] = Deferred(lambda _: self._abort())
        self._words = b""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.loseWriteConnection()  # type: ignore[attr-defined]

    def dataReceived(self, data: bytes) -> None:
        self._words = (self._words + data)[: len(READY)]

    def readConnectionLost(self) -> None:
        """The program has ended: how, comes with the connection's end."""

    def writeConnectionLost(self) -> None:
        """Its input has ended."""

    def _abort(self) -> None:
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.ended.called:
            return
        if self._words == READY:
            self.ended.callback("")
        elif isinstance(reason.value, CommandFailed):
            self.ended.callback(_reason(reason.value))
        elif isinstance(reason.value, RdaError):
            self.ended.errback(reason)
        else:
            self.ended.callback(NO_PROGRAM)


def _reason(error: CommandFailed) -> str:
    return NO_PROGRAM if error.exit_status == NO_INTERPRETER else f"the UDP relay on the remote host failed: {error}"


@implementer(IPushProducer)
class _Relay(Protocol):
    """The channel to the relay program.

    :param ready: called once it may be written to.
    :param got: called with each datagram: flow, payload.
    :param ended: called once with the reason.
    """

    def __init__(
        self,
        port: int,
        ready: Callable[[], object],
        got: Callable[[int, bytes], object],
        ended: Callable[[Failure], object],
    ) -> None:
        self._port = port
        self._ready = ready
        self._got = got
        self._ended = ended
        self._held = b""
        self._greeted = False
        self._full = False

    @property
    def greeted(self) -> bool:
        """Whether the relay program has said that it is there."""
        return self._greeted

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.registerProducer(self, True)
        transport.write(struct.pack(">H", self._port))

    def send(self, kind: int, flow: int, data: bytes) -> bool:
        """Send a frame, or drop it when the channel is full; return whether it was sent."""
        if self._full and kind == _DATA:
            return False
        assert self.transport is not None
        self.transport.write(_FRAME.pack(kind, flow, len(data)) + data)
        return True

    def pauseProducing(self) -> None:
        """The channel is full."""
        self._full = True

    def resumeProducing(self) -> None:
        """The channel has room again."""
        self._full = False

    def stopProducing(self) -> None:
        """The channel ends: connectionLost says why."""

    def dataReceived(self, data: bytes) -> None:
        self._held += data
        if not self._greeted:
            if len(self._held) < len(READY):
                return
            if not self._held.startswith(READY):
                self._abort()  # a login script that prints; nothing that follows can be told from it
                return
            self._held, self._greeted = self._held[len(READY) :], True
            self._ready()
        for flow, payload in self._frames():
            self._got(flow, payload)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """Take the complete frames off what is held."""
        at = 0
        while len(self._held) - at >= _FRAME.size:
            _, flow, length = _FRAME.unpack_from(self._held, at)
            end = at + _FRAME.size + length
            if len(self._held) < end:
                break
            yield flow, self._held[at + _FRAME.size : end]
            at = end
        self._held = self._held[at:]

    def _abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    def close(self) -> None:
        """End the relay program."""
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ended(reason)


class _Near(DatagramProtocol):
    """One local UDP listener."""

    noisy = False

    def __init__(self, got: Callable[[_Near, bytes, Any], object]) -> None:
        self._got = got

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self._got(self, datagram, addr)

    def answer(self, data: bytes, addr: Any) -> None:
        """Send to a client; what the system cannot take at the moment is dropped."""
        try:
            if self.transport is not None:
                self.transport.write(data, addr)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.EPERM, errno.EMSGSIZE, errno.EHOSTUNREACH):
                raise


class _Flow:
    """One client address."""

    __slots__ = ("addr", "near", "number", "used")

    def __init__(self, number: int, near: _Near, addr: Any, used: float) -> None:
        self.number, self.near, self.addr, self.used = number, near, addr, used


class UDPForward:
    """One published UDP port. Its channel is open only while there are flows.

    :ivar port: the local port, the same on every address.
    :ivar remote: the port on the remote host's 127.0.0.1, or None while it is not known.
    :ivar problem: why nothing is relayed, or "".
    """

    _log = Logger()

    def __init__(self, host: IRemoteHost, clock: IReactorTime, listen: ListenUDP, published: Published) -> None:
        self._host = host
        self._clock = clock
        self._listen = listen
        self.published = published
        self.listening: list[IListeningPort] = []
        self.addresses: list[str] = []
        self.port = 0
        self.remote: int | None = None
        self.problem = ""
        self.total = self.bytes_in = self.bytes_out = self.dropped = 0
        self._flows: dict[tuple[int, Any], _Flow] = {}
        self._numbers: dict[int, _Flow] = {}
        self._next = 0
        self._queue: list[tuple[_Flow, bytes]] = []
        self._relay: _Relay | None = None
        self._connecting: Deferred[Any] | None = None
        self._tried: float | None = None
        self._sweep: IDelayedCall | None = None

    def listen_on(self, address: str, port: int) -> None:
        """Open a listener.

        :param port: 0 for any free one.
        :raises CannotListenError: it cannot be opened.
        """
        opened = self._listen(_Near(self._from_client), address, port)
        self.listening.append(opened)
        self.addresses.append(address)
        self.port = opened.getHost().port  # type: ignore[attr-defined]

    def lead_to(self, remote: int) -> None:
        """Say where datagrams lead. When that is another port than before, flows begin anew."""
        if self.remote not in (None, remote):
            self._hang_up()
            self._drop_queue()
        self.remote = remote
        self.problem = ""
        self._tried = None
        if self._queue:
            self._open()

    def shut(self) -> Deferred[Any]:
        """Close everything; fires when the listeners are closed."""
        self._hang_up()
        self._queue.clear()
        listening, self.listening = self.listening, []
        closing = [port.stopListening() for port in listening]
        return DeferredList([one for one in closing if one is not None], consumeErrors=True)

    def abort(self) -> None:
        """End every flow at once."""
        self._hang_up()

    @property
    def connections(self) -> int:
        """Flows now."""
        return len(self._flows)

    @property
    def busy(self) -> bool:
        """Nothing of a closed forward is left."""
        return False

    # From here to there.

    def _from_client(self, near: _Near, data: bytes, addr: Any) -> None:
        flow = self._flows.get((id(near), addr)) or self._new_flow(near, addr)
        if flow is None:
            self.dropped += 1
            return
        flow.used = self._clock.seconds()
        if self._relay is not None and self._relay.greeted:
            self._send(flow, data)
        elif len(self._queue) < MAX_QUEUED:
            self._queue.append((flow, data))
            self._open()
        else:
            self.dropped += 1

    def _new_flow(self, near: _Near, addr: Any) -> _Flow | None:
        if len(self._flows) >= MAX_FLOWS:
            return None
        self._next = (self._next + 1) & 0xFFFFFFFF
        flow = _Flow(self._next, near, addr, self._clock.seconds())
        self._flows[id(near), addr] = self._numbers[flow.number] = flow
        self.total += 1
        if self._sweep is None:
            self._sweep = self._clock.callLater(IDLE_SECONDS / 2, self._expire)
        return flow

    def _send(self, flow: _Flow, data: bytes) -> None:
        assert self._relay is not None
        if self._relay.send(_DATA, flow.number, data):
            self.bytes_in += len(data)
        else:
            self.dropped += 1

    # From there to here.

    def _from_container(self, number: int, data: bytes) -> None:
        flow = self._numbers.get(number)
        if flow is None:
            return  # expired here, and not yet there
        flow.used = self._clock.seconds()
        self.bytes_out += len(data)
        flow.near.answer(data, flow.addr)

    # The channel.

    def _open(self) -> None:
        """Open the channel, unless it is known that this would be in vain; what waits is dropped then."""
        if self.remote is None or self._connecting is not None or self._relay is not None:
            return
        now = self._clock.seconds()
        if self.problem or not self._host.connected or (self._tried is not None and now - self._tried < RETRY_SECONDS):
            self._drop_queue()
            return
        self._tried = now
        remote = self.remote
        factory = Factory.forProtocol(lambda: _Relay(remote, self._ready, self._from_container, self._lost))
        connecting = self._host.command(COMMAND).connect(factory)
        self._connecting = connecting
        connecting.addCallbacks(self._opened, self._not_opened, (connecting,), {}, (connecting,))

    def _opened(self, relay: _Relay, connecting: Deferred[Any]) -> None:
        if self._connecting is not connecting:
            relay.close()
            return
        self._connecting, self._relay = None, relay
        if relay.greeted:
            self._ready()

    def _not_opened(self, failure: Failure, connecting: Deferred[Any]) -> None:
        if self._connecting is connecting:
            self._connecting = None
            self._drop_queue()
        if not failure.check(RdaError, CancelledError):
            self._log.failure("A UDP relay could not be started", failure)

    def _ready(self) -> None:
        if self._relay is None:
            return
        waiting, self._queue = self._queue, []
        for flow, data in waiting:
            self._send(flow, data)

    def _lost(self, reason: Failure) -> None:
        """The relay program ended: flows begin anew with the next datagram."""
        self._relay = None
        if isinstance(reason.value, CommandFailed):
            self.problem = _reason(reason.value)
        self._forget_flows()

    def _drop_queue(self) -> None:
        self.dropped += len(self._queue)
        self._queue.clear()

    def _hang_up(self) -> None:
        """Close the channel, or stop opening it."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.close()
        self._forget_flows()

    def _forget_flows(self) -> None:
        self._flows.clear()
        self._numbers.clear()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _expire(self) -> None:
        """End the flows that are idle, and with the last one the channel."""
        self._sweep = None
        before = self._clock.seconds() - IDLE_SECONDS
        for key, flow in [(key, flow) for key, flow in self._flows.items() if flow.used <= before]:
            del self._flows[key], self._numbers[flow.number]
            if self._relay is not None:
                self._relay.send(_END, flow.number, b"")
        if self._flows:
            self._sweep = self._clock.callLater(IDLE_SECONDS / 2, self._expire)
        else:
            self._hang_up()
