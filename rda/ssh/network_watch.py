"""Noticing that the machine's network has changed: a reason to look at every connection at once.

Linux tells over a netlink socket (rtnetlink(7)) when addresses, links or routes come and go. Where there is none,
nothing is noticed, and the links rely on their keepalives, which also notice that the machine slept.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["NetworkWatch"]

#: Groups of rtnetlink(7) that are listened to: links, IPv4 and IPv6 addresses, IPv4 and IPv6 routes (the bits of
#: RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE in linux/rtnetlink.h).
GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400

#: Seconds of silence after which a burst of changes counts as over: joining a network is dozens of messages.
SETTLE_SECONDS = 1.0

#: Messages are thrown away in pieces of so many bytes: that there was one is all that counts.
_PIECE = 64 * 1024


def _netlink() -> socket.socket | None:
    """A socket that becomes readable with every change, None where there is no such thing."""
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        return None
    try:
        changes = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    except OSError:
        return None  # not allowed here (a seccomp filter, RestrictAddressFamilies)
    try:
        changes.bind((0, GROUPS))
    except OSError:
        changes.close()
        return None
    return changes


@implementer(IReadDescriptor)
class NetworkWatch(Service):
    """Calls back once after each change of the network.

    :param reactor: the clock, and what watches the socket.
    :param changed: what to call.
    :param open_socket: makes the netlink socket.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        changed: Callable[[], None],
        open_socket: Callable[[], socket.socket | None] = _netlink,
    ) -> None:
        self._reactor = reactor
        self._changed = changed
        self._open_socket = open_socket
        self._socket: socket.socket | None = None
        self._settle: IDelayedCall | None = None

    def startService(self) -> None:
        """Begin to listen."""
        super().startService()
        if IReactorFDSet.providedBy(self._reactor):
            self._socket = self._open_socket()
        if self._socket is not None:
            self._reactor.addReader(self)  # type: ignore[attr-defined]

    def stopService(self) -> None:
        """Stop listening."""
        super().stopService()
        if self._settle is not None:
            self._settle.cancel()
            self._settle = None
        self._close()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno() if self._socket is not None else -1

    def logPrefix(self) -> str:
        """For the reactor's log."""
        return "network watch"

    def doRead(self) -> None:
        """Something has changed: wait until it has stopped changing."""
        assert self._socket is not None
        try:
            while self._socket.recv(_PIECE):
                pass
        except BlockingIOError:
            pass
        except OSError as error:
            # ENOBUFS: more changes than the socket holds, so there was one. Anything else would come again for ever.
            if error.errno != errno.ENOBUFS:
                self._log.warn("changes of the network are not noticed any more: {error}", error=error)
                self._close()
        self._note()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives the socket up."""
        self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._reactor.removeReader(self)  # type: ignore[attr-defined]
            self._socket.close()
            self._socket = None

    def _note(self) -> None:
        if self._settle is not None:
            self._settle.reset(SETTLE_SECONDS)
        else:
            self._settle = self._reactor.callLater(SETTLE_SECONDS, self._tell)

    def _tell(self) -> None:
        self._settle = None
        self._log.info("the network has changed: looking at every connection")
        self._changed()
