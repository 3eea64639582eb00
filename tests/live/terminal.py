"""A terminal to run a docker client in."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence

#: Seconds that something expected may take.
PATIENCE_SECONDS = 30.0


class Terminal:
    """A client in a pseudo-terminal.

    :param rows, columns: its first size.
    :ivar seen: everything shown that :meth:`until` has not passed yet.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], rows: int = 24, columns: int = 80
    ) -> None:
        self._ours, theirs = pty.openpty()
        self.seen = b""
        self._set_size(rows, columns)
        self.client = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)

    def close(self) -> None:
        """End the client, if it has not ended."""
        self.client.kill()
        self.client.wait()
        os.close(self._ours)

    def _set_size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, rows: int, columns: int) -> None:
        """Change the size, as a person does who pulls at the window's corner."""
        self._set_size(rows, columns)
        self.tell_size()

    def tell_size(self) -> None:
        """Tell the client that the size has changed."""
        self.client.send_signal(signal.SIGWINCH)

    def send(self, text: bytes) -> None:
        """Type."""
        os.write(self._ours, text)

    def type_until_ended(self, keys: bytes) -> int:
        """Type one key after the other, as slowly as a person, until the client ends; return its exit code.

        The daemon does not see detach keys that reach it together, as they may on a busy machine: then once more.
        """
        for key in itertools.islice(itertools.cycle(keys), 20 * len(keys)):
            self.send(bytes([key]))
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.client.wait(0.3)
        raise AssertionError(f"{keys!r} did not end the client")

    def until(self, text: bytes, nudge: Callable[[], None] | None = None) -> None:
        """Return when ``text`` has been shown; AssertionError when it is not.

        :param nudge: called in each second without anything new.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.seen:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise AssertionError(f"no {text!r} in {self.seen!r}")
            ready, _, _ = select.select([self._ours], [], [], min(remaining, 1.0) if nudge else remaining)
            if not ready:
                if nudge:
                    nudge()
                continue
            try:
                self.seen += os.read(self._ours, 4096)
            except OSError:  # the client has ended, and with it the terminal
                raise AssertionError(f"no {text!r} in {self.seen!r}, and the client has ended") from None
        self.seen = self.seen.partition(text)[2]

    def wait(self) -> int:
        """Return the client's exit code."""
        return self.client.wait(PATIENCE_SECONDS)
