"""Running containers: what goes in and comes out is what it is without rda."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import subprocess
import time

from tests.live.support import MEBIBYTE, LiveTestCase


class Run(LiveTestCase):
    """``docker run``."""

    def test_stdin_comes_back_whole(self):
        """100 MB through the standard input of ``cat`` come back byte for byte."""
        sent = os.urandom(MEBIBYTE) * 100
        done = self.rda.docker("run", "--rm", "-i", "--log-driver", "none", "busybox", "cat", input=sent)
        self.assertEqual(hashlib.sha256(done.stdout).hexdigest(), hashlib.sha256(sent).hexdigest())

    def test_streams_and_exit_code(self):
        """Output, errors and the exit code arrive, each where it belongs."""
        done = self.assert_same("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
        self.assertEqual((done.stdout, done.stderr, done.returncode), (b"out\n", b"err\n", 7))

    def test_closed_stdin_ends_only_stdin(self):
        """The end of the input reaches the container while its output goes on."""
        done = self.assert_same(
            "run", "--rm", "-i", "busybox", "sh", "-c", "cat; sleep 1; echo later", input=b"sooner\n"
        )
        self.assertEqual(done.stdout, b"sooner\nlater\n")

    def test_container_that_does_not_read(self):
        """A container that ends without reading its large input ends the client with its own exit code."""
        done = self.rda.docker(
            "run", "--rm", "-i", "busybox", "sh", "-c", "exit 3", input=bytes(20 * MEBIBYTE), check=False
        )
        self.assertEqual(done.returncode, 3)

    def test_unknown_image(self):
        """The daemon's own errors arrive as it words them."""
        self.assert_same("run", "--pull", "never", "nosuchimage", "true")

    def test_many_at_once(self):
        """Eight clients run containers at the same time without mixing their output."""
        command = self.rda.docker_command("run", "--rm", "-e", "N", "busybox", "sh", "-c", "seq 1000 | sed s/^/$N-/")
        clients = [
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**self.rda.environment, "N": str(n)}
            )
            for n in range(8)
        ]
        for n, client in enumerate(clients):
            output, errors = client.communicate(timeout=60)
            self.assertEqual(errors, b"")
            self.assertEqual(output.decode().split(), [f"{n}-{i}" for i in range(1, 1001)])


class Exec(LiveTestCase):
    """``docker exec``."""

    def setUp(self):
        super().setUp()
        self.rda.docker("run", "-d", "--name", "box", "busybox", "sleep", "1000")

    def test_streams_and_exit_code(self):
        """Output, errors and the exit code of a second process arrive."""
        done = self.assert_same("exec", "-i", "box", "sh", "-c", "cat; echo err >&2; exit 9", input=b"in")
        self.assertEqual((done.stdout, done.stderr, done.returncode), (b"in", b"err\n", 9))

    def test_terminal(self):
        """``exec -it`` has a terminal there: it echoes, has a size, and ends on Ctrl-D with the shell's exit code."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        command = self.rda.docker_command("exec", "-it", "box", "sh")
        client = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=self.rda.environment, start_new_session=True
        )
        os.close(theirs)
        self.addCleanup(client.kill)
        seen = b""

        def until(text: bytes) -> None:
            nonlocal seen
            deadline = time.monotonic() + 20
            while text not in seen:
                ready, _, _ = select.select([ours], [], [], max(0, deadline - time.monotonic()))
                self.assertTrue(ready, f"no {text!r} in {seen!r}")
                seen += os.read(ours, 4096)

        until(b"# ")
        os.write(ours, b"tty; echo $((40 + 2))\r")
        until(b"/dev/pts/")
        until(b"42\r\n")
        os.write(ours, b"exit 3\r")  # not an end of input: the shell loses one that comes while a command runs
        self.assertEqual(client.wait(20), 3)


class Follow(LiveTestCase):
    """Answers that never end by themselves arrive as they are written."""

    def test_logs_line_by_line(self):
        """``logs -f`` shows each line when it is written, and ends when the container does."""
        self.rda.docker(
            "run", "-d", "--name", "talker", "busybox", "sh", "-c", "for n in 1 2 3; do echo $n; sleep 1; done"
        )
        with self.rda.running("logs", "-f", "talker") as logs:
            moments = []
            for n in (1, 2, 3):
                self.assertEqual(logs.stdout.readline(), f"{n}\n".encode())
                moments.append(time.monotonic())
            self.assertEqual(logs.stdout.read(), b"")
            self.assertEqual(logs.wait(10), 0)
        self.assertGreater(moments[2] - moments[1], 0.5)
        self.assertGreater(moments[1] - moments[0], 0.5)
        self.assert_same("logs", "talker")

    def test_events(self):
        """``events`` tells of a container's life while it happens, in the daemon's own words."""
        # From before the container on: a client that starts slowly must not miss its beginning.
        now = self.host.run("date", "+%s").stdout.decode().strip()
        words = ("events", "--since", now, "--format", "json", "--filter", "container=told")
        with (
            self.rda.running(*words) as events,
            self.rda.running(*words, "--filter", "event=die") as deaths,
        ):
            self.rda.docker("run", "--rm", "--name", "told", "busybox", "true")
            actions = [json.loads(events.stdout.readline())["Action"] for _ in range(5)]
            self.assertEqual(json.loads(deaths.stdout.readline())["Action"], "die")
        self.assertEqual(actions[0], "create")
        self.assertEqual(actions[-2:], ["die", "destroy"] if len(actions) > 2 else [])
        self.assertIn("start", actions)

    def test_past_events_end(self):
        """A bounded listing of events ends, and is the daemon's own."""
        self.host.docker("run", "--rm", "--name", "past", "busybox", "true")
        now = int(self.host.run("date", "+%s").stdout)
        period = ("--since", str(now - 60), "--until", str(now))
        self.assert_same("events", *period, "--filter", "container=past", "--format", "json")

    def test_attach(self):
        """``attach`` shows output from then on, passes input, and ends with the container."""
        self.rda.docker(
            "run", "-d", "-i", "--name", "echo", "busybox", "sh", "-c", "read word; echo got $word; sleep 1; exit 5"
        )
        # The input stays open: at its end the daemon itself may detach before the output is there.
        with self.rda.running("attach", "echo", stdin=subprocess.PIPE) as attached:
            attached.stdin.write(b"this\n")
            attached.stdin.flush()
            self.assertEqual(attached.stdout.readline(), b"got this\n")
            self.assertEqual(attached.wait(10), 5)

    def test_wait(self):
        """``wait`` ends when the container does, with its exit code."""
        self.rda.docker("run", "-d", "--name", "short", "busybox", "sh", "-c", "sleep 1; exit 4")
        self.assertEqual(self.rda.docker("wait", "short").stdout, b"4\n")


class Look(LiveTestCase):
    """Commands that only look."""

    def test_same_as_directly(self):
        """Listings and descriptions of what rda has nothing to do with are the daemon's own, byte for byte."""
        self.host.docker("run", "-d", "--name", "seen", "busybox", "sleep", "1000")
        for command in (
            [
                "ps",
                "-a",
                "--no-trunc",
                "--format",
                "{{.ID}} {{.Command}} {{.CreatedAt}} {{.Labels}} {{.Mounts}} {{.Ports}}",
            ],
            ["inspect", "seen"],
            ["image", "inspect", "busybox"],
            ["network", "ls", "--no-trunc"],
            ["volume", "ls"],
            ["top", "seen", "-o", "pid,args"],
            ["port", "seen"],
            ["inspect", "nosuchthing"],
            ["stop", "nosuchthing"],
        ):
            with self.subTest(command=command):
                self.assert_same(*command)
        # A daemon puts images that were made in the same second in a new order at each call.
        columns = "{{.ID}} {{.Repository}} {{.Tag}} {{.CreatedAt}} {{.Size}}"
        self.assert_same("images", "--no-trunc", "--format", columns, ordered=False)
