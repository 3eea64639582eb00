"""What systemd is told of this process: the sd_notify(3) protocol, one datagram per change.

Started by anything else, there is no socket to write to, and everything here does nothing.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

__all__ = ["ServiceManager"]

#: Bytes of one line of status that systemd is sent; it shows them in ``systemctl status``.
STATUS_BYTES = 400


class ServiceManager:
    """The service manager that started this process, or nobody.

    :param environment: what the process was started with: ``NOTIFY_SOCKET``, ``WATCHDOG_USEC``, ``WATCHDOG_PID``.
    :param process: the id of this process, which the watchdog variables have to name.
    :param clock: the reactor, to tell the watchdog by that it still turns.
    """

    _log = Logger()

    def __init__(self, environment: Mapping[str, str], process: int, clock: Any) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._said: dict[str, str] = {}
        self._watchdog: LoopingCall | None = None
        interval = _watchdog_seconds(environment, process)
        if self._address is not None and interval is not None:
            self._watchdog = LoopingCall(self._send, "WATCHDOG=1")
            self._watchdog.clock = clock
            # A service that is silent for the whole time is ended; sd_watchdog_enabled(3) advises half of it.
            self._watchdog.start(interval / 2, now=False)

    def ready(self, status: str) -> None:
        """Say that the service does what it is there for, and in one line how it is; only changes are said."""
        self._say({"READY": "1", "STATUS": status})

    def waiting(self, status: str) -> None:
        """Say in one line what the service waits for."""
        self._say({"STATUS": status})

    def reloading(self) -> None:
        """Say that the configuration is being read again; :meth:`reloaded` ends it (``Type=notify-reload``)."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self, status: str) -> None:
        """Say that the configuration was read again, with what result."""
        self._said.clear()
        self.ready(status)

    def stopping(self) -> None:
        """Say that the service ends."""
        if self._watchdog is not None and self._watchdog.running:
            self._watchdog.stop()
        self._send("STOPPING=1")

    def _say(self, fields: dict[str, str]) -> None:
        fields = {name: _one_line(value) for name, value in fields.items()}
        new = {name: value for name, value in fields.items() if self._said.get(name) != value}
        self._said |= new
        if new:
            self._send("\n".join(f"{name}={value}" for name, value in new.items()))

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)
                channel.sendto(message.encode("utf-8", "replace"), self._address)
        except OSError as e:
            # Whoever watches us will act on the silence; the service itself is not worse for it.
            self._log.warn("cannot tell the service manager {message}: {error}", message=message, error=e)


def _address(name: str) -> str | None:
    """The socket's address; a name with ``@`` in front is in the abstract namespace."""
    if not name.startswith(("/", "@")):
        return None
    return "\0" + name[1:] if name.startswith("@") else name


def _watchdog_seconds(environment: Mapping[str, str], process: int) -> float | None:
    """How long systemd waits for a sign of life of this process, or None when it does not."""
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", ""))
        meant = int(environment.get("WATCHDOG_PID", str(process)))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 and meant == process else None


def _one_line(text: str) -> str:
    return " ".join(text.split()).encode()[:STATUS_BYTES].decode("utf-8", "ignore")
