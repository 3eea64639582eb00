"""Published TCP ports: each accepted connection is spliced to a channel of the link."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTime
from twisted.internet.protocol import Factory

from rda.docker.ports import Published
from rda.interfaces import IRemoteHost
from rda.ports.splice import Splice

__all__ = ["MAX_CONNECTIONS", "MAX_HELD", "STARTING_SECONDS", "ListenTCP", "TCPForward", "tcp_listener"]

#: Open connections of one forward; a further one is reset. Each takes a descriptor here and a channel of the link.
MAX_CONNECTIONS = 4096

#: Connections of one forward that wait for the container to come up; Docker's queue for them is the kernel's.
MAX_HELD = 128

#: Seconds after a container's start in which a program that does not listen yet is waited for. Docker's own proxy would
#: close the first connections of somebody who connects as soon as start returns.
STARTING_SECONDS = 2.0

#: Connections that the kernel completes before we accept them: the most that Linux takes by default (somaxconn).
BACKLOG = 4096

#: Opens a listener: (factory, address, port) -> the port. Raises CannotListenError.
ListenTCP = Callable[[Factory, str, int], IListeningPort]


def tcp_listener(reactor: Any) -> ListenTCP:
    """Return a function that opens TCP listeners with ``reactor``.

    Unlike ``listenTCP``, an IPv6 listener never takes the IPv4 port too (RFC 3493, section 5.3): the two families are
    published one by one.
    """

    def listen(factory: Factory, address: str, port: int) -> IListeningPort:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as opened:
                opened.setblocking(False)
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                # What is accepted inherits these. A connection may be idle for days, with its peer long gone: probe it.
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if family == socket.AF_INET6:
                    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                opened.bind((address, port))
                opened.listen(BACKLOG)
                adopted: IListeningPort = reactor.adoptStreamPort(opened.fileno(), family, factory)
                return adopted
        except OSError as error:
            raise CannotListenError(address, port, error) from error

    return listen


class TCPForward:
    """One published port: its listeners, its connections, and where they lead.

    :ivar port: the local port, the same on every address.
    :ivar remote: the port on the remote host's 127.0.0.1, or None while it is not known.
    :ivar dropped: connections that were refused, being too many.
    """

    def __init__(self, host: IRemoteHost, clock: IReactorTime, listen: ListenTCP, published: Published) -> None:
        self._host = host
        self._clock = clock
        self._listen = listen
        self._factory = Factory()
        self._factory.noisy = False
        self._factory.buildProtocol = self._build  # type: ignore[assignment,method-assign]
        self.published = published
        self.listening: list[IListeningPort] = []
        self.addresses: list[str] = []
        self.port = 0
        self.remote: int | None = None
        self._starting_until = 0.0
        self.total = 0
        self._connections: set[Splice] = set()
        self.dropped = self._bytes_in = self._bytes_out = 0
        self._refusal = ""  # of the latest connection that was not let through, until one is

    def listen_on(self, address: str, port: int) -> None:
        """Open a listener.

        :param port: 0 for any free one.
        :raises CannotListenError: it cannot be opened.
        """
        opened = self._listen(self._factory, address, port)
        self.listening.append(opened)
        self.addresses.append(address)
        self.port = opened.getHost().port  # type: ignore[attr-defined]

    def _build(self, address: IAddress | None) -> Splice:
        """Make the protocol of an accepted connection."""
        return Splice(self._clock, self._accepted, self._over)

    def _accepted(self, connection: Splice) -> None:
        held = sum(not one.joined for one in self._connections) if self.remote is None else 0
        if len(self._connections) >= MAX_CONNECTIONS or held >= MAX_HELD:
            self.dropped += 1
            connection.abort()
            return
        self._connections.add(connection)
        self.total += 1
        if self.remote is not None:
            self._join(connection, self.remote)

    def _join(self, connection: Splice, remote: int) -> None:
        """Connect to the remote port; without a link nobody waits for one, as nobody waits for a cut cable."""
        if self._host.connected:
            connection.join(self._host.tcp("127.0.0.1", remote), self._starting_until)
        else:
            connection.abort()

    def _over(self, connection: Splice) -> None:
        self._connections.discard(connection)
        self._refusal = connection.refusal or ("" if connection.bytes_out else self._refusal)
        self._bytes_in += connection.bytes_in
        self._bytes_out += connection.bytes_out

    def lead_to(self, remote: int) -> None:
        """Say where connections lead, those that wait among them; open ones stay where they are."""
        if remote != self.remote:
            self._starting_until = self._clock.seconds() + STARTING_SECONDS
        self.remote = remote
        for connection in [one for one in self._connections if not one.joined]:
            self._join(connection, remote)

    def shut(self) -> Deferred[Any]:
        """Accept no more, and let go of what waits; open connections end with the container that serves them."""
        for connection in [one for one in self._connections if not one.joined]:
            connection.abort()
        listening, self.listening = self.listening, []
        closing = [port.stopListening() for port in listening]
        return DeferredList([one for one in closing if one is not None], consumeErrors=True)

    @property
    def busy(self) -> bool:
        """Whether connections are open."""
        return bool(self._connections)

    def abort(self) -> None:
        """End every connection at once."""
        for connection in list(self._connections):
            connection.abort()

    @property
    def connections(self) -> int:
        """Connections now."""
        return len(self._connections)

    @property
    def bytes_in(self) -> int:
        """Bytes from clients so far."""
        return self._bytes_in + sum(one.bytes_in for one in self._connections)

    @property
    def bytes_out(self) -> int:
        """Bytes to clients so far."""
        return self._bytes_out + sum(one.bytes_out for one in self._connections)

    @property
    def problem(self) -> str:
        """What a person should know of it, or ""."""
        if self._refusal:
            return self._refusal
        return f"{self.dropped} connections were refused: too many at once" if self.dropped else ""
