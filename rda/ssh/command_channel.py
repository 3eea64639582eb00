"""A command of the remote user's shell as a transport: its stdin and stdout, and how it ended."""

from __future__ import annotations

import struct

from twisted.conch.ssh.common import NS, getNS
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from rda.errors import CommandFailed
from rda.ssh.peer_text import peer_text
from rda.ssh.stream import StreamChannel

__all__ = ["CommandChannel"]

#: Bytes kept of the end of a command's standard error, for the message of its failure.
STDERR_TAIL = 4 * 1024

#: Characters of a command that messages show.
SHOWN = 60

_UINT32 = struct.Struct(">L")


class CommandChannel(StreamChannel):
    """The channel of a command. The end of its output does not end it, but its exit status does.

    :param command: the command line.
    :param hint: see :class:`StreamChannel`.
    :ivar exit_status: once it has come; None for a command that a signal ended.
    """

    awaits_exit = True

    def __init__(self, command: bytes, hint: str) -> None:
        first = command.partition(b"\n")[0].decode("utf-8", "replace")  # of a script, enough to tell it by
        what = f"the command {first if len(first) <= SHOWN else first[:SHOWN] + '…'!r}"
        super().__init__(b"session", what, None, (b"exec", NS(command)), hint)
        self.exit_status: int | None = None
        self._signal = ""
        self._stderr = b""

    def extReceived(self, dataType: int, data: bytes) -> None:
        """Keep the end of standard error."""
        self._stderr = (self._stderr + data)[-STDERR_TAIL:]
        super().extReceived(dataType, data)

    def requestReceived(self, requestType: bytes, data: bytes) -> bool:
        """Take the exit status or signal (RFC 4254, section 6.10)."""
        if requestType == b"exit-status":
            (self.exit_status,) = _UINT32.unpack_from(data)
            return True
        if requestType == b"exit-signal":
            self._signal = peer_text(getNS(data)[0])
            return True
        return False

    def _why_closed(self) -> Failure:
        if self.disconnecting:
            return super()._why_closed()
        if self.exit_status == 0:
            return connectionDone
        if self._signal:
            how = f"was ended by signal {self._signal}"
        elif self.exit_status is None:
            how = "ended without an exit status"
        else:
            how = f"ended with status {self.exit_status}"
        stderr = peer_text(self._stderr, STDERR_TAIL)
        message = f"On the remote host, {self.what} {how}" + (f": {stderr}" if stderr else ".")
        return Failure(CommandFailed(message, self.exit_status))
