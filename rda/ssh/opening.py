"""A channel of an SSH connection until it can be used: asked for, opened, refused, or not wanted any more.

What it is for then is :class:`rda.ssh.stream.StreamChannel`'s.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from twisted.conch.ssh import connection as conch
from twisted.conch.ssh.address import SSHTransportAddress
from twisted.conch.ssh.channel import SSHChannel
from twisted.conch.ssh.common import NS
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IAddress, IReactorTime

from rda.errors import ChannelRefused

if TYPE_CHECKING:
    from rda.ssh.channels import Connection

__all__ = ["LOCAL_PACKET", "MIN_WINDOW", "OpeningChannel"]

#: Bytes that the peer may send on one channel before we have taken any: what a channel starts with. OpenSSH's own
#: window is as large. It carries 100 MB/s at 20 ms, and costs nothing while the reader keeps up.
MIN_WINDOW = 2 << 20

#: The largest packet asked for, in bytes, OpenSSH's own. The peer may not send more at once.
LOCAL_PACKET = 32 * 1024

_UINT32 = struct.Struct(">L")

_REFUSALS = {
    conch.OPEN_ADMINISTRATIVELY_PROHIBITED: "the SSH server does not allow it",
    conch.OPEN_CONNECT_FAILED: "the SSH server could not connect to it",
    conch.OPEN_UNKNOWN_CHANNEL_TYPE: "the SSH server does not know this kind of channel",
    conch.OPEN_RESOURCE_SHORTAGE: "the SSH server has no room for another channel",
}


class OpeningChannel(SSHChannel):
    """One channel, and how it begins.

    :param kind: the channel type of RFC 4254.
    :param what: what is at the other end, for messages: "the socket /var/run/docker.sock".
    :param address: what :meth:`getPeer` says.
    :param request: for session channels, the request that starts the command: its name and its data.
    :param hint: what may be wrong when the server refuses, and what to do.
    :ivar opened: fires with this channel when it is ready to be used.
    :ivar open: the server has confirmed the channel.
    :ivar local_id: our number of it.
    :ivar remote_id: the server's number of it.
    """

    conn: Connection

    def __init__(
        self,
        kind: bytes,
        what: str,
        address: IAddress | None,
        request: tuple[bytes, bytes] | None,
        hint: str,
    ) -> None:
        super().__init__(localWindow=MIN_WINDOW, localMaxPacket=LOCAL_PACKET)
        self.name = kind
        self.what = what
        self.opened: Deferred[Any] = Deferred(self._cancelled)
        self.open = False
        self.local_id = -1
        self.remote_id = -1
        self._address = address
        self._request = request
        self._hint = hint
        self._asked = 0.0
        self._opened_at = 0.0
        self._lost = False  # connectionLost was called, or there is nobody to call
        self._abandoned = False

    def confirmed(self, remote: int, window: int, size: int) -> None:
        """The server opened the channel: use it, or ask for the command first."""
        self._opened_as(remote, window, size)
        self.conn.note_round_trip(self._opened_at - self._asked)
        if self._abandoned:
            self._send_close()
            return
        self._take_data()
        if self._request is None:
            self.opened.callback(self)
            return
        name, data = self._request
        message = _UINT32.pack(remote) + NS(name) + b"\1" + data
        self.conn.transport.sendPacket(conch.MSG_CHANNEL_REQUEST, message)

    def accepted(self, remote: int, window: int, size: int) -> None:
        """We accept a channel that the server opens; parameters as in :meth:`confirmed`."""
        self._opened_as(remote, window, size)
        self._take_data()
        self.opened.callback(self)

    def _take_data(self) -> None:
        """From now on the peer may send data."""
        raise NotImplementedError

    def _opened_as(self, remote: int, window: int, size: int) -> None:
        self.open = True
        self.remote_id = remote
        self.remoteWindowLeft = window
        self.remoteMaxPacket = size
        self._opened_at = self._clock.seconds()

    def request_answered(self, done: bool) -> None:
        """The server has started the command, or refuses it."""
        if self._request is None:
            raise ValueError("an answer to a request that was not made")
        self._request = None
        if self._abandoned:
            return
        if done:
            self.opened.callback(self)
            return
        self._abandon()
        self.opened.errback(ChannelRefused(self._refusal("the SSH server refuses to start it", ""), 0))

    def refused(self, code: int, text: str) -> None:
        """The server did not open the channel."""
        self._lost = True
        if not self._abandoned:
            reason = _REFUSALS.get(code, f"the SSH server refuses it with code {code}")
            self.opened.errback(ChannelRefused(self._refusal(reason, text), code))

    def _refusal(self, reason: str, text: str) -> str:
        said = f' (it says "{text}")' if text else ""
        return f"Cannot open {self.what}: {reason}{said}.{self._hint and ' ' + self._hint}"

    def _cancelled(self, opened: Deferred[Any]) -> None:
        self._abandon()
        opened.errback(ConnectingCancelledError(self.getPeer()))

    def _abandon(self) -> None:
        """Nobody wants the channel any more, and no protocol was told of it: close it as soon as that is possible."""
        self._abandoned = True
        self._lost = True
        if self.open:
            self._send_close()

    @property
    def given_up(self) -> bool:
        """Nobody here needs the channel any more; the server has yet to say that it is closed."""
        return self._abandoned or bool(self.localClosed)

    def _send_close(self) -> None:
        self.localClosed = True
        self.conn.transport.send_soon(conch.MSG_CHANNEL_CLOSE, _UINT32.pack(self.remote_id))

    # -- what it is between

    @property
    def _clock(self) -> IReactorTime:
        return self.conn.transport.clock

    def getHost(self) -> IAddress:
        """This end of the SSH connection."""
        return SSHTransportAddress(self.conn.transport.transport.getHost())

    def getPeer(self) -> IAddress:
        """What the channel leads to."""
        if self._address is not None:
            return self._address
        return SSHTransportAddress(self.conn.transport.transport.getPeer())

    def logPrefix(self) -> str:
        """For log lines about what happens on this channel."""
        return self.what
