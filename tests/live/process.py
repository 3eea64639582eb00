"""An rda in a process of its own, started as a user starts it."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.live.host import SSHD_PORT, RemoteHost

#: Seconds from the start of rda until it says how to reach it.
READY_SECONDS = 20.0

#: Characters of its output that are shown with a failure: the end of it.
SHOWN_OUTPUT = 6000

#: Seconds from the signal to end until it has ended.
STOP_SECONDS = 20.0


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def free_ports(count: int, in_a_row: int = 1) -> list[int]:
    """Return so many different ports of 127.0.0.1 that nothing listens on.

    :param in_a_row: each is followed by so many less one that nothing listens on either, and that are no others' here.
    """
    held: list[socket.socket] = []
    found: list[int] = []
    try:
        while len(found) < count:
            first = socket.create_server(("127.0.0.1", 0))
            held.append(first)
            port: int = first.getsockname()[1]
            try:
                held += [socket.create_server(("127.0.0.1", port + more)) for more in range(1, in_a_row)]
            except OSError:
                continue
            found.append(port)
    finally:
        for one in held:
            one.close()
    return found


def fetch(port: int, path: str = "", timeout: float = 10) -> str:
    """Fetch a page from 127.0.0.1; one attempt."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=timeout) as answer:
        return answer.read().decode()


def throwaway_options(host: RemoteHost) -> dict[str, str | None]:
    """Return the options that lead to a throwaway remote host, whatever the machine's own ssh configuration says."""
    return {
        "remote": f"{host.user}@{host.address}:{SSHD_PORT}",
        "identity": str(host.key),
        "known_hosts": str(host.known_hosts),
        "ssh_config": "none",
    }


def rda_command(options: Mapping[str, str | None], more: Sequence[str] = ()) -> list[str]:
    """Return the command line of an rda in the foreground.

    :param options: values by name, as attributes are spelled (``state_dir``); None leaves one out.
    :param more: words that follow them as they are.
    """
    twistd = str(Path(sys.executable).with_name("twistd"))
    given = {name.replace("_", "-"): value for name, value in options.items()}
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
    # What started it being killed ends it too, where that can be had.
    guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    return [*guard, twistd, "-n", "--pidfile=", "rda", *words, *more]


class RdaProcess:
    """A running rda, and what it prints.

    :param options, more: as for :func:`rda_command`.
    :param echo: print what it prints.
    """

    def __init__(self, options: Mapping[str, str | None], more: Sequence[str] = (), echo: bool = False) -> None:
        self._echo = echo
        self.process = subprocess.Popen(
            rda_command(options, more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")},
            cwd="/",  # not the project's directory: the installed plugin is what is started
        )
        self.lines: list[str] = []
        self._news: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if self._echo:
                print(line, end="", flush=True)
            self._news.put(line)
        self._news.put(None)

    def wait_end(self, seconds: float | None = READY_SECONDS) -> int:
        """Return the exit code of an rda that ends by itself, when all its output is there too."""
        code = self.process.wait(seconds)
        self._reader.join(STOP_SECONDS)
        return code

    @property
    def output(self) -> str:
        """The end of what rda has printed."""
        return "".join(self.lines)[-SHOWN_OUTPUT:]

    def find_line(self, pattern: str, seconds: float = READY_SECONDS) -> str | None:
        """Return the next line of rda's output that matches; None when the output ends or time is up first."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            if line is None or re.search(pattern, line):
                return line

    def wait_ready(self) -> None:
        """Return when rda has said how to reach it."""
        if self.find_line("DOCKER_HOST=") is None:
            raise AssertionError(f"rda did not say how to reach it:\n{self.output}")

    def stop(self) -> int:
        """End rda as its supervisor would; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise AssertionError(f"rda did not end within {STOP_SECONDS:g} s of SIGTERM:\n{self.output}") from None
        return self.wait_end()
