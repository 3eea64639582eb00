"""What the live tests share: the remote host, an rda in a process of its own, and the docker client."""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.host import RemoteHost, wait_until
from tests.live.process import RdaProcess, free_port, throwaway_options
from tests.live.rootfs import Unsupported

#: Seconds that a docker command may take before the test gives it up as hung.
COMMAND_SECONDS = 120.0

MEBIBYTE = 1 << 20


_MAKING_DIRECTORIES = threading.Lock()


@functools.cache
def _host_or_reason() -> RemoteHost | str:
    host = RemoteHost()
    try:
        host.up()
    except Unsupported as reason:
        return str(reason)
    return host


def remote_host() -> RemoteHost:
    """Return the throwaway remote host, made live; skip the calling test where there can be none."""
    host = _host_or_reason()
    if isinstance(host, str):
        raise SkipTest(host)
    return host


@functools.cache
def shared_rda() -> Rda:
    """Return one rda for all tests of this process that need nothing special of it."""
    rda = Rda(remote_host())
    atexit.register(shutil.rmtree, rda.state, ignore_errors=True)
    atexit.register(rda.stop)
    rda.wait_ready()
    return rda


def is_open(port: int, address: str = "127.0.0.1") -> bool:
    """Tell whether something accepts connections at a local port."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


class Rda(RdaProcess):
    """An rda for tests, whose state directory stays when it is stopped.

    :param host: where the daemon is.
    :param options: command line options by name, replacing the usual ones; None leaves one out.
    """

    def __init__(self, host: RemoteHost, **options: str | None) -> None:
        self.host = host
        self.port = free_port()
        self.state = Path(options.get("state_dir") or tempfile.mkdtemp(prefix="rda-live-"))
        usual = {
            **throwaway_options(host),
            "listen": f"tcp:{self.port}:interface=127.0.0.1",
            "state_dir": str(self.state),
        }
        super().__init__({**usual, **options})

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a docker client that uses this rda."""
        ours = {"DOCKER_HOST": f"tcp://127.0.0.1:{self.port}", "DOCKER_CONFIG": str(self.host.docker_config)}
        return {k: v for k, v in os.environ.items() if k != "DOCKER_CONTEXT"} | ours

    def docker_command(self, *words: str) -> list[str]:
        """Return the command line of a docker client; run it with :attr:`environment`."""
        return [self.host.docker_cli, *words]

    def docker(self, *words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess:
        """Run a docker command through rda; a failed one raises AssertionError with what it said."""
        usual = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "timeout": COMMAND_SECONDS,
            "env": self.environment,
        }
        options = {**usual, **options}
        done = subprocess.run(self.docker_command(*words), **options)
        if check and done.returncode != 0:
            raise AssertionError(
                f"docker {' '.join(words)} ended with {done.returncode}: {done.stderr!r}\n{self.output}"
            )
        return done

    def status(self) -> dict[str, Any]:
        """Return what rda says of its context."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_rda/status", timeout=10) as answer:
            context: dict[str, Any] = json.load(answer)["contexts"][0]
        return context

    @contextmanager
    def running(self, *words: str, **options: Any) -> Iterator[subprocess.Popen]:
        """Keep a docker command running through rda for the length of a block."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environment, **options}
        with subprocess.Popen(self.docker_command(*words), **options) as process:
            try:
                yield process
            finally:
                process.kill()

    def _sockets(self, state: str) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
        """The (address, port) of both ends of the process's TCP sockets in a state, in the kernel's numbers for it."""
        mine = set()
        for descriptor in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(OSError):
                mine.add(os.readlink(descriptor))
        for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
            for line in Path(f"/proc/{self.process.pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == state and f"socket:[{fields[9]}]" in mine:
                    yield _end(family, fields[1]), _end(family, fields[2])

    def listening(self) -> set[tuple[str, int]]:
        """Return the (address, port) pairs that rda's process listens on, its Docker endpoint left out."""
        return {here for here, _ in self._sockets("0A") if here[1] != self.port}

    def ssh_connections(self) -> int:
        """Return how many TCP connections rda's process has to the remote host."""
        return sum(there[0] == self.host.address for _, there in self._sockets("01"))

    def ports(self) -> set[int]:
        """Return the ports that rda's process listens on, whatever the address, its Docker endpoint left out."""
        return {port for _, port in self.listening()}

    def reset_peak(self) -> None:
        """Forget the highest memory use so far."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def memory(self, key: str = "VmRSS") -> int:
        """Return bytes of memory: ``VmRSS`` as it is now, ``VmHWM`` the highest since :meth:`reset_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        matched = re.search(rf"^{key}:\s+(\d+) kB$", status, re.MULTILINE)
        assert matched is not None
        return int(matched.group(1)) * 1024


def _end(family: socket.AddressFamily, text: str) -> tuple[str, int]:
    """An address and port of /proc/net/tcp: 32-bit words in the machine's byte order."""
    address, _, port = text.partition(":")
    words = [int(address[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(address), 8)]
    return socket.inet_ntop(family, b"".join(words)), int(port, 16)


class LiveTestCase(SynchronousTestCase):
    """A test against the remote host, with an rda that the tests share. Containers that are left there are removed."""

    def setUp(self) -> None:
        self.host = remote_host()
        self.rda = self.choose_rda()
        self._remove_containers()  # a person who tried something out may have left some
        self.addCleanup(self._remove_containers)

    def choose_rda(self) -> Rda:
        """Return the rda that the test uses: for most, the shared one."""
        return shared_rda()

    def _remove_containers(self) -> None:
        left = self.host.docker("ps", "-aq").stdout.decode().split()
        if left:
            self.host.docker("rm", "-f", *left)
        wait_until(lambda: not self.rda.ports(), "rda closes the ports of removed containers", 10)

    def own_rda(self, **options: str | None) -> Rda:
        """Start an rda for this test alone."""
        rda = Rda(self.host, **options)
        self.addCleanup(shutil.rmtree, rda.state, ignore_errors=True)
        self.addCleanup(rda.stop)
        return rda

    def directory(self) -> Path:
        """Return an empty local directory. Threads of a test may ask for theirs at the same time."""
        with _MAKING_DIRECTORIES:  # trial fails when it is asked for two first ones at once
            path = Path(self.mktemp()).absolute()
        path.mkdir(parents=True)
        return path

    def both(self, *words: str, **options: Any) -> tuple[subprocess.CompletedProcess, subprocess.CompletedProcess]:
        """Run a docker command on the daemon's own socket, then through rda."""
        direct = self.host.docker(*words, check=False, timeout=COMMAND_SECONDS, **options)
        return direct, self.rda.docker(*words, check=False, **options)

    def ways(self) -> dict[str, dict[str, str]]:
        """Return the environments of docker clients that use the daemon's own socket, and rda."""
        return {"directly": self.host.docker_environment, "through rda": self.rda.environment}

    def assert_same(self, *words: str, ordered: bool = True, **options: Any) -> subprocess.CompletedProcess:
        """Check that a docker command does the same through rda; return what it did.

        ``ordered=False`` compares the lines of its output in any order, where the daemon itself leaves it to chance.
        """
        direct, through = self.both(*words, **options)
        outputs = [done.stdout if ordered else sorted(done.stdout.splitlines()) for done in (direct, through)]
        self.assertEqual(
            (direct.returncode, outputs[0], direct.stderr), (through.returncode, outputs[1], through.stderr)
        )
        return through

    def wait_served(self, container: str, port: int) -> None:
        """Return when a server in a container listens at its own TCP ``port``.

        ``docker start`` returns when the process runs, not when it listens; connections before that are closed, by a
        local daemon too.
        """

        def listens() -> bool:
            table = self.host.docker("exec", container, "netstat", "-ltn", check=False).stdout.decode()
            return re.search(rf":{port}\s", table) is not None

        wait_until(listens, f"{container} listens at {port}", 10)

    def eventually(self, holds: Callable[[], object], what: str, seconds: float) -> None:
        """Fail unless ``holds()`` becomes true within ``seconds``; whatever it raises counts as not yet."""

        def quietly() -> object:
            try:
                return holds()
            except (OSError, AssertionError):
                return False

        try:
            wait_until(quietly, what, seconds)
        except TimeoutError as e:
            self.fail(f"{e}\n{self.rda.output}")
