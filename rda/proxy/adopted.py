"""Listening on UNIX sockets that the service manager made (systemd.socket(5)), and leaving them as they are.

Twisted's own adoption of them sets the mode 0666, shuts the socket down and removes its name when it stops to listen:
whoever could reach it then could use the Docker API, and the next start would have a socket that nobody can connect to.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import unix
from twisted.internet.interfaces import IListeningPort, IProtocolFactory

__all__ = ["adopt_unix_port"]

#: Stands for "a name that is not in the file system", which Twisted neither gives a mode nor removes.
_NO_FILE = b"\0"


def adopt_unix_port(reactor: Any, descriptor: int, factory: IProtocolFactory) -> IListeningPort:
    """Serve an inherited, listening UNIX socket.

    :param descriptor: the socket; it stays the caller's, to adopt again.
    """
    listening = socket.socket(fileno=os.dup(descriptor))
    listening.setblocking(False)
    port = unix.Port(_NO_FILE, factory, reactor=reactor)
    port._shouldShutdown = False
    port._preexistingSocket = listening
    port.startListening()
    return port
