"""What a person at a terminal meets: each test runs on the daemon's own socket, and then through rda."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.live.support import COMMAND_SECONDS, LiveTestCase
from tests.live.terminal import Terminal


class Interactive(LiveTestCase):
    """``docker run -it`` and its relatives."""

    def each_way(self, act: Callable[[Mapping[str, str]], object], through: Mapping[str, str] | None = None) -> None:
        """Do the same directly and through rda, each with no containers there.

        :param through: what is different in the environment of rda's client.
        """
        for way, environment in self.ways().items():
            with self.subTest(way=way):
                act({**environment, **(through or {})} if way == "through rda" else environment)
                self._remove_containers()

    def terminal(self, environment: Mapping[str, str], *words: str, rows: int = 24, columns: int = 80) -> Terminal:
        """Run a docker command in a terminal."""
        terminal = Terminal(self.rda.docker_command(*words), environment, rows, columns)
        self.addCleanup(terminal.close)
        return terminal

    def test_size(self) -> None:
        """A terminal has the same size here and there, also after a change, and its shell's exit code."""

        def act(environment: Mapping[str, str]) -> None:
            terminal = self.terminal(environment, "run", "-it", "--rm", "busybox", "sh", rows=31, columns=101)
            terminal.until(b"# ")
            # The client tells the size when the process runs already: the shell waits for it.
            terminal.send(b'until [ "$(stty size)" = "31 101" ]; do sleep 0.1; done; echo first=$((1 + 1))\r')
            terminal.until(b"first=2\r\n")
            terminal.resize(41, 121)
            terminal.send(b'until [ "$(stty size)" = "41 121" ]; do sleep 0.1; done; echo then=$((1 + 2))\r')
            # The client does not hear of a change before its first resize has been answered.
            terminal.until(b"then=3\r\n", nudge=terminal.tell_size)
            terminal.send(b"tty; exit 3\r")
            terminal.until(b"/dev/pts/0\r\n")
            self.assertEqual(terminal.wait(), 3)

        self.each_way(act)

    def test_interrupt(self) -> None:
        """Ctrl-C reaches the process in the container, and its exit code comes back."""

        def act(environment: Mapping[str, str]) -> None:
            script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done"
            terminal = self.terminal(environment, "run", "-it", "--rm", "busybox", "sh", "-c", script)
            terminal.until(b"ready\r\n")
            terminal.send(b"\x03")
            terminal.until(b"caught\r\n")
            self.assertEqual(terminal.wait(), 9)

        self.each_way(act)

    def test_detach(self) -> None:
        """The detach keys end the client and not the container, on ``run`` and, of one's own choice, on ``attach``.

        Over tcp the docker command does not recognise them, whoever serves: it wants a UNIX-domain socket.
        """
        short = Path(tempfile.mkdtemp(prefix="rda-"))  # sockets' paths have 108 bytes
        self.addCleanup(shutil.rmtree, short)
        path = short / "docker.sock"
        rda = self.own_rda(listen=f"unix:{path}")
        rda.wait_ready()

        def act(environment: Mapping[str, str]) -> None:
            script = "echo ready; while read word; do echo got $word; done"
            terminal = self.terminal(environment, "run", "-it", "--name", "box", "busybox", "sh", "-c", script)
            terminal.until(b"ready\r\n")
            self.assertEqual(terminal.type_until_ended(b"\x10\x11"), 0)
            terminal = self.terminal(environment, "attach", "--detach-keys", "ctrl-x,d", "box")
            terminal.send(b"back\r")
            terminal.until(b"got back\r\n")
            terminal.type_until_ended(b"\x18d")
            running = self.host.docker("inspect", "-f", "{{.State.Running}}", "box").stdout
            self.assertEqual(running, b"true\n")

        self.each_way(act, {"DOCKER_HOST": f"unix://{path}"})

    def test_signal(self) -> None:
        """A signal to the client reaches the process in the container, and its exit code comes back."""

        def act(environment: Mapping[str, str]) -> None:
            script = "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.1; done"
            command = self.rda.docker_command("run", "--rm", "busybox", "sh", "-c", script)
            with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as client:
                assert client.stdout is not None
                self.addCleanup(client.kill)
                self.assertEqual(client.stdout.readline(), b"ready\n")
                client.send_signal(signal.SIGTERM)
                self.assertEqual(client.stdout.read(), b"caught\n")
                self.assertEqual(client.wait(COMMAND_SECONDS), 7)

        self.each_way(act)


class ExitCodes(LiveTestCase):
    """How a command that could not do its work ends."""

    def test_same(self) -> None:
        """Commands that cannot be run, were killed or do not exist end in the same words with the same code."""
        for code, command in (
            (125, ["--no-such-option", "busybox"]),
            (126, ["busybox", "/etc"]),
            (127, ["busybox", "nosuchprogram"]),
            (137, ["busybox", "sh", "-c", "sh -c 'kill -KILL $$'; exit $?"]),
            (42, ["busybox", "sh", "-c", "exit 42"]),
        ):
            with self.subTest(code=code):
                self.assertEqual(self.assert_same("run", "--rm", *command).returncode, code)


class Watching(LiveTestCase):
    """Commands that look at what runs."""

    def test_stats(self) -> None:
        """``stats`` shows one sample, and goes on showing them, until it is ended."""
        self.host.docker("run", "-d", "--name", "seen", "busybox", "sleep", "1000")
        self.assert_same("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "seen")
        with self.rda.running("stats", "--format", "json", "seen") as shown:
            for _ in range(2):
                self.assertIn(b'"Name":"seen"', shown.stdout.readline())

    def test_top_and_processes(self) -> None:
        """``top`` shows a container's processes as the daemon does."""
        self.host.docker("run", "-d", "--name", "seen", "busybox", "sh", "-c", "sleep 1000; true")
        self.assert_same("top", "seen", "-eo", "pid,ppid,args")
