"""Hear of changes to a remote tree: with ``inotifywait`` or ``python3`` over exec, whichever the remote host has.

As with local events, all that is heard is "look again". Where neither works the tree is looked at every few seconds.
Whatever runs on the remote host ends with its standard input, so that a lost connection leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from rda.errors import ChannelRefused, CommandFailed, RdaError
from rda.interfaces import IRemoteHost

#: Trees watched at once on one host: each holds one of the few commands that sshd lets run (MaxSessions), and with
#: these enough are left for what is sent. The others are looked at every few seconds.
WATCHED_AT_ONCE = 4

#: What it says when it begins is on its standard output too: that, as all else, means "look".
_INOTIFYWAIT = rb"""IFS= read -r top && cd "$top" && command -v inotifywait >/dev/null || exit 127
exec 3<&0
inotifywait -m -r --format . -e modify,attrib,close_write,move,create,delete . 2>&1 </dev/null &
watch=$!
{ cat <&3 >/dev/null 2>&1; kill $watch 2>/dev/null; } >/dev/null 2>&1 &
wait $watch"""

#: The same with the kernel's own calls. No quotation marks of the shell's in it.
_SCRIPT = rb"""
import ctypes, os, select, struct
libc = ctypes.CDLL(None, use_errno=True)
events = libc.inotify_init1(os.O_CLOEXEC)
where = {}
def watch(top):
    for path, _, _ in os.walk(top):
        number = libc.inotify_add_watch(events, path, 0x30003CE)
        if number >= 0:
            where[number] = path
        elif ctypes.get_errno() == 28:
            raise SystemExit(1)
if events < 0:
    raise SystemExit(1)
watch(b".")
while os.write(1, b"."):
    ready = select.select([0, events], [], [])[0]
    if 0 in ready and not os.read(0, 1):
        break
    if events not in ready:
        continue
    data, at = os.read(events, 65536), 0
    while at < len(data):
        number, mask, _, length = struct.unpack_from("iIII", data, at)
        name = data[at + 16 : at + 16 + length].rstrip(b"\0")
        at += 16 + length
        if mask & 0x4000 or mask & 0x40000080 == 0x40000080:
            watch(b".")
        elif mask & 0x40000100 == 0x40000100 and number in where:
            watch(where[number] + b"/" + name)
"""
_PYTHON = b'IFS= read -r top && cd "$top" && exec python3 -c \'' + _SCRIPT + b"'"

#: What is tried, in this order, by the name of the program that it needs.
COMMANDS = {"inotifywait": _INOTIFYWAIT, "python3": _PYTHON}

#: Exit status of a shell that cannot find a program.
_NO_PROGRAM = 127


class RemoteWatch:
    """Watches one remote tree, as long as one connection lasts.

    :param count: of all watches of this host; shared.
    :param changed: called when the tree may have changed, and when the watch has ended.

    :ivar active: whether changes are heard of.
    """

    _log = Logger()

    def __init__(self, host: IRemoteHost, count: set[RemoteWatch], changed: Callable[[], None]) -> None:
        self._host = host
        self._count = count
        self._changed = changed
        self._connection: object = None
        self._running: _Listener | None = None
        self.active = False

    def start(self, top: bytes, connection: object) -> None:
        """Watch, unless it does already; what did not work is tried again with another connection.

        :param top: the tree's absolute path on the remote host.
        :param connection: the one that it is reached by now.
        """
        if connection is self._connection or b"\n" in top or len(self._count) >= WATCHED_AT_ONCE:
            return
        self.stop()
        self._connection = connection
        self._count.add(self)
        Deferred.fromCoroutine(self._watch(top, connection)).addErrback(self._broken)

    def stop(self) -> None:
        """Do not watch any more."""
        self._connection = None
        self._ended()
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    def _ended(self) -> None:
        self.active = False
        self._count.discard(self)

    async def _watch(self, top: bytes, connection: object) -> None:
        name = os.fsdecode(top)
        for program, command in COMMANDS.items():
            listener = _Listener(top + b"\n", lambda: self._heard(connection))
            try:
                await self._host.command(command).connect(Factory.forProtocol(lambda: listener))  # noqa: B023
                if self._connection is not connection:
                    listener.stop()
                    return
                self._running = listener
                await listener.ended
            except RdaError as error:
                self._log.info("{top} is not watched with {program}: {why}", top=name, program=program, why=_why(error))
            if self._connection is not connection:
                return
            self._running = None
        self._log.info("changes to {top} on the remote host are found by looking every few seconds", top=name)
        self._ended()
        self._changed()

    def _heard(self, connection: object) -> None:
        if self._connection is connection:
            self.active = True
            self._changed()

    def _broken(self, failure: Failure) -> None:
        self._log.failure("the watch on a remote tree failed", failure=failure)
        self._ended()


def _why(error: RdaError) -> str:
    """Why a watching command has ended, without the command itself, which is a whole script."""
    if isinstance(error, ChannelRefused):
        return "the remote host runs no commands"
    if isinstance(error, CommandFailed):
        if error.exit_status == _NO_PROGRAM:
            return "the remote host has no such program"
        return f"it ended, with status {error.exit_status}"
    return str(error)


class _Listener(Protocol):
    """The watching command's output: its content does not matter."""

    def __init__(self, question: bytes, heard: Callable[[], None]) -> None:
        self._question = question
        self._heard = heard
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._question)

    def dataReceived(self, data: bytes) -> None:
        self._heard()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if isinstance(reason.value, RdaError):
            self.ended.errback(reason)
        else:
            self.ended.callback(None)

    def stop(self) -> None:
        """End the command."""
        if self.transport is not None:
            self.transport.loseConnection()
