"""A TCP relay that adds a round-trip time: ``python -m tests.live.delay PORT SECONDS HOST:PORT``.

For measuring what distance costs, on kernels without netem. Half of the round trip is added in each direction; what is
under way is bounded, like a long link's window.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from twisted.internet import endpoints, interfaces, reactor
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from zope.interface import implementer

#: Bytes under way in one direction before reading pauses: 1 Gbit/s times half a second.
WINDOW = 64 << 20


@implementer(interfaces.IHalfCloseableProtocol, interfaces.IPushProducer)
class Side(Protocol):
    """One end of a relayed connection; what it receives comes out of the other end later.

    :param delay: seconds.
    """

    other: Side | None = None

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._under_way = 0
        self._other_full = False
        self._closed = False

    def join(self, other: Side) -> None:
        """Begin relaying to ``other``."""
        self.other = other
        other.transport.registerProducer(self, True)
        self.transport.resumeProducing()

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        self._under_way += len(data)
        self._balance()
        reactor.callLater(self._delay, self._arrive, data)

    def _arrive(self, data: bytes) -> None:
        self._under_way -= len(data)
        if not self.other._closed:  # what is still under way to somebody who has gone is lost, as on the real way
            self.other.transport.write(data)
        self._balance()

    def _balance(self) -> None:
        if self._closed:
            return
        if self._other_full or self._under_way > WINDOW:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()

    def readConnectionLost(self) -> None:
        reactor.callLater(self._delay, self._end)

    def _end(self) -> None:
        if not self.other._closed:
            self.other.transport.loseWriteConnection()

    def writeConnectionLost(self) -> None:
        """The other direction goes on."""

    def connectionLost(self, reason: object = None) -> None:
        self._closed = True
        if self.other is not None and not self.other._closed:
            self.other.transport.unregisterProducer()
            reactor.callLater(self._delay, self.other.transport.loseConnection)

    # IPushProducer, for the other side's transport.

    def pauseProducing(self) -> None:
        self._other_full = True
        self._balance()

    def resumeProducing(self) -> None:
        self._other_full = False
        self._balance()

    def stopProducing(self) -> None:
        self.transport.loseConnection()


class Near(Side):
    """The accepted end: connects onwards, then relays."""

    def __init__(self, delay: float, target: interfaces.IStreamClientEndpoint) -> None:
        super().__init__(delay)
        self._target = target

    def connectionMade(self) -> None:
        super().connectionMade()
        onwards = ClientFactory.forProtocol(lambda: Side(self._delay))
        self._target.connect(onwards).addCallbacks(self._connected, lambda _: self.transport.abortConnection())

    def _connected(self, far: Side) -> None:
        self.join(far)
        far.join(self)


def main(arguments: Sequence[str]) -> None:
    """Relay until ended."""
    port, round_trip, target = int(arguments[0]), float(arguments[1]), arguments[2]
    host, _, target_port = target.rpartition(":")
    onwards = endpoints.TCP4ClientEndpoint(reactor, host, int(target_port))
    listener = endpoints.TCP4ServerEndpoint(reactor, port, interface="127.0.0.1")
    listener.listen(Factory.forProtocol(lambda: Near(round_trip / 2, onwards)))
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
