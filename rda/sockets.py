"""Sockets without detours: writing at once when nothing waits in front of it, and receiving into one buffer.

Twisted's ``write`` puts data into a buffer, asks the reactor for the next moment at which the socket takes data, and
copies the data together there. That is right when the socket is full. When it is empty, which it is for every small
message and most large ones, sending at once saves two copies, two ``epoll_ctl`` and a turn of the reactor: measured
over SSH, uploads were 1.4 times as fast at two thirds of the processor time.

Twisted makes a new bytes object for each read, with one read for each turn of the reactor. Receiving into the same
buffer each time keeps it in the processor's cache, and saves the copy to where the data has to be anyway: uploads over
SSH take three quarters of the processor time, half of it saved in the kernel's copies.

Both need to know more of Twisted's sockets than there are public questions for: this is the one place that looks at
those attributes. Whatever it does not recognise (TLS, a test's transport, a channel of another connection, a later
Twisted with other names) simply gets ``write``, and its protocol's ``dataReceived`` bytes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Connection

__all__ = ["READ_SIZE", "TURN_SIZE", "receive_into", "send_now", "widen"]

#: Bytes of a large read, for those who process whatever is there in one go: with Twisted's own 64 KiB, there would be
#: four times as many turns of the reactor.
READ_SIZE = 256 * 1024

#: Bytes read in small pieces from one connection before it is the turn of others: what comes meanwhile is taken at once
#: and not by way of the reactor, which costs as much as reading does. All of this takes half a millisecond.
TURN_SIZE = 512 * 1024

#: A read of this many bytes makes another one at once worth trying; less is the end of something, or a small thing.
MORE_TO_COME = 8 * 1024

#: Bytes that the kernel is asked to keep for a UNIX-domain socket. With its own 208 KiB, the end of many a batch has to
#: wait for the reactor. It gives less where ``net.core.wmem_max`` is less.
SEND_BUFFER = 512 * 1024


def widen(transport: Any) -> None:
    """Let a UNIX-domain socket hold a whole batch of data; TCP sockets grow by themselves."""
    if _is_plain(transport) and transport.socket.family == getattr(socket, "AF_UNIX", None):
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def receive_into(
    transport: Any,
    room: Callable[[], memoryview],
    received: Callable[[int], object],
    turn: int = 1,
) -> None:
    """Have what arrives at one of Twisted's plain sockets put into a buffer of the caller's from now on.

    Where the transport is anything else, its protocol's ``dataReceived`` is called as before.

    :param room: gives the buffer, which is not empty; called for each read.
    :param received: called with the number of bytes that have been put into it, instead of ``dataReceived``.
    :param turn: bytes after which it is the turn of others; there is one read at least.
    """
    if not _is_plain(transport):
        return
    receive = transport.socket.recv_into
    reading = True
    start, stop = transport.startReading, transport.stopReading

    def start_reading() -> None:
        nonlocal reading
        reading = True
        start()

    def stop_reading() -> None:
        """Called for a pause, and for every kind of end."""
        nonlocal reading
        reading = False
        stop()

    def read() -> BaseException | None:
        """See IReadDescriptor.doRead; Twisted's own does the same, once, and with a buffer of its own."""
        left = turn
        ended: BaseException | None = None
        while reading and left > 0:
            try:
                size = receive(room())
            except BlockingIOError:
                break
            except OSError:
                ended = CONNECTION_LOST
                break
            if not size:
                ended = CONNECTION_DONE
                break
            received(size)
            left -= size
            if size < MORE_TO_COME:
                break
        return ended

    transport.doRead, transport.startReading, transport.stopReading = read, start_reading, stop_reading


def send_now(transport: Any, data: bytes | memoryview) -> None:
    """Write ``data`` to ``transport``, in order with everything written before; like its ``write`` in every other way.

    :param transport: an ITransport.
    :param data: may be a view of a buffer that changes afterwards.
    """
    sent = 0
    if _is_drained(transport):
        try:
            # Twisted's writeSomeData stops at 128 KiB, which wakes the reader up for half of what there is.
            sent = transport.socket.send(data)
        except OSError:
            sent = 0  # full, or broken: the reactor's own write will meet it again, and knows what to do
        if sent == len(data):
            return
    transport.write(bytes(data[sent:]) if sent or not isinstance(data, bytes) else data)


def _is_plain(transport: Any) -> bool:
    return isinstance(transport, Connection) and not getattr(transport, "TLS", False)


def _is_drained(transport: Any) -> bool:
    """Whether this is one of Twisted's plain sockets (TCP or UNIX-domain), connected, with nothing left to write."""
    try:
        return (
            isinstance(transport, Connection)
            and not transport.TLS
            and not transport._tempDataBuffer
            and len(transport.dataBuffer) == transport.offset
            and bool(transport.connected)
            and not (transport.disconnecting or transport.disconnected or transport._writeDisconnecting)
        )
    except AttributeError:
        return False
