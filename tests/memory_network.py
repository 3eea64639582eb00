"""Stream connections in memory that behave as sockets do: half-close, back-pressure, resets and vanishing peers.

``iosim`` has none of these. Bytes move only in :meth:`Network.pump`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

#: Bytes in a transport's buffer from which on its producer is paused, as in Twisted's.
HIGH_WATER = 1 << 16

CLIENT_ADDRESS = IPv4Address("TCP", "127.0.0.1", 50000)
SERVER_ADDRESS = IPv4Address("TCP", "127.0.0.1", 23750)


@implementer(ITCPTransport, IPushProducer)
class MemoryTransport:
    """One end of a connection."""

    def __init__(self, network: Network, protocol: Any, host: object, peer: object) -> None:
        self.network = network
        self.protocol = protocol
        self.other: MemoryTransport
        self.paused = False
        self.connected = True
        self.disconnecting = False
        self.aborted = False
        self.producer: Any = None
        self._host, self._peer = host, peer
        self._buffer: list[bytes] = []
        self._producer_paused = False
        self._write_closing = self._write_closed = False
        self._read_closed = False
        self._gone: int | None = None

    # what protocols call

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        if data and self.connected and not (self.disconnecting or self._write_closing):
            self._buffer.append(data)
            if self.producer is not None and self.buffered > HIGH_WATER:
                self._producer_paused = True
                self.producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.aborted = True
        self._buffer = []

    def loseWriteConnection(self) -> None:
        if not self.connected:
            raise RuntimeError("closed already")
        self._write_closing = True

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError("two producers")
        if self.connected:
            self.producer, self._producer_paused = producer, False
        else:
            producer.stopProducing()

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        if self.connected and not self.disconnecting:
            self.paused = False

    def stopProducing(self) -> None:
        self.loseConnection()

    def getHost(self) -> Any:
        return self._host

    def getPeer(self) -> Any:
        return self._peer

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass

    def getTcpKeepAlive(self) -> bool:
        return True

    def fileno(self) -> int:
        """Return a descriptor that polls as hung up, once the peer vanished."""
        return -1 if self._gone is None else self._gone

    # what tests and the network call

    @property
    def buffered(self) -> int:
        return sum(map(len, self._buffer))

    def vanish(self) -> None:
        """Go altogether: the other end sees an end of file now, and a hang-up when it polls."""
        read_end, self.other._gone = os.pipe()
        os.close(read_end)
        self.loseConnection()

    def step(self) -> bool:
        """Move what can be moved; return whether anything was."""
        if not self.connected:
            return False
        if self.aborted:
            self.lost(ConnectionAborted())
            if self.other.connected:
                self.other.lost(ConnectionLost("reset"))
            return True
        if self._buffer and not self.other.connected:
            self.lost(ConnectionLost("broken pipe"))
            return True
        if self._buffer and not self.other.paused:
            data, self._buffer = b"".join(self._buffer), []
            piece, rest = data[:HIGH_WATER], data[HIGH_WATER:]
            if rest:
                self._buffer.insert(0, rest)
            self.network.bytes_moved += len(piece)
            self.other.protocol.dataReceived(piece)
            self._refill()
            return True
        return not self._buffer and self._close()

    def _refill(self) -> None:
        if not self._buffer and self._producer_paused and self.producer is not None:
            self._producer_paused = False
            self.producer.resumeProducing()

    def _close(self) -> bool:
        if self.disconnecting and (self.producer is None or not self._producer_paused):
            self.lost(ConnectionDone())
            self.other.read_end()
            return True
        if self._write_closing and not self._write_closed:
            self._write_closed = True
            IHalfCloseableProtocol(self.protocol).writeConnectionLost()
            self.other.read_end()
            return True
        return False

    def read_end(self) -> None:
        """Deliver the end of file, once."""
        if self.connected and not self._read_closed:
            self._read_closed = True
            if IHalfCloseableProtocol.providedBy(self.protocol):
                self.protocol.readConnectionLost()
            else:
                self.lost(ConnectionDone())

    def lost(self, reason: Exception) -> None:
        self.connected = False
        self.disconnecting = True
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        if self._gone is not None:
            os.close(self._gone)
            self._gone = None
        self.protocol.connectionLost(Failure(reason))


class Network:
    """All connections of one test."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.bytes_moved = 0
        self.transports: list[MemoryTransport] = []

    def connect(self, client: Any, server: Any, host: object = SERVER_ADDRESS, peer: object = CLIENT_ADDRESS) -> None:
        """Join two protocols."""
        near = MemoryTransport(self, client, peer, host)
        far = MemoryTransport(self, server, host, peer)
        near.other, far.other = far, near
        self.transports += [near, far]
        server.makeConnection(far)
        client.makeConnection(near)

    def pump(self) -> None:
        """Move everything until nothing moves."""
        for _ in range(10_000):
            self.clock.advance(0)
            moved = [transport.step() for transport in self.transports if transport.connected]
            if True not in moved:
                return
        raise AssertionError("the network does not come to rest")


@implementer(IHalfCloseableProtocol)
class Peer(Protocol):
    """The test's end of a connection: remembers what happens to it."""

    def __init__(self) -> None:
        self.received = b""
        self.ended = False
        self.lost: Failure | None = None

    @property
    def closed_cleanly(self) -> bool:
        return self.ended or (self.lost is not None and self.lost.check(ConnectionDone) is not None)

    def take(self) -> bytes:
        """Return what came since the last call."""
        data, self.received = self.received, b""
        return data

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def readConnectionLost(self) -> None:
        self.ended = True

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.lost = reason


@implementer(IStreamClientEndpoint)
class MemoryEndpoint:
    """Connects to protocols that tests drive.

    :ivar peers: the far ends, in the order of their connections.
    :ivar failure: when set, why connecting fails.
    :ivar waiting: when a list, connecting waits for :meth:`let_in`.
    """

    def __init__(self, network: Network, make: Callable[[], Peer] = Peer) -> None:
        self.network = network
        self.make = make
        self.peers: list[Peer] = []
        self.failure: Exception | None = None
        self.waiting: list[Callable[[], None]] | None = None

    def connect(self, protocolFactory: Any) -> Deferred[IProtocol]:
        if self.failure is not None:
            return fail(self.failure)
        if self.waiting is None:
            return succeed(self._join(protocolFactory))
        connected: Deferred[IProtocol] = Deferred()
        self.waiting.append(lambda: connected.callback(self._join(protocolFactory)))
        return connected

    def let_in(self) -> None:
        waiting, self.waiting = self.waiting or [], None
        for join in waiting:
            join()

    def _join(self, factory: Any) -> Any:
        protocol, peer = factory.buildProtocol(SERVER_ADDRESS), self.make()
        self.peers.append(peer)
        self.network.connect(protocol, peer)
        return protocol
