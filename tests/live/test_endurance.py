"""Memory that stays flat, and a link that comes back."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time

from tests.live.kills import kill_again_and_again
from tests.live.process import fetch, free_port
from tests.live.support import MEBIBYTE, LiveTestCase

#: How much rda's memory may grow at any moment while a slow reader is being served.
FLAT = 10 * MEBIBYTE

#: How much passes, in bytes.
AMOUNT = 1024 * MEBIBYTE

#: How long the network is away at least, in seconds.
CUT_SECONDS = 10.0

#: Seconds within which a client has its error: the loss has to be noticed, and the docker command asks twice.
ERROR_SECONDS = 20.0


class Memory(LiveTestCase):
    """1 GB to a slow reader."""

    def setUp(self):
        super().setUp()
        self.rda.docker("run", "-d", "--name", "box", "busybox", "sleep", "1000")
        # What imports and caches cost is paid before it is measured.
        self.rda.docker("exec", "box", "head", "-c", str(64 * MEBIBYTE), "/dev/zero", stdout=subprocess.DEVNULL)
        self.rda.docker("exec", "-i", "box", "wc", "-c", input=bytes(64 * MEBIBYTE))
        self.before = self.rda.memory()
        self.rda.reset_peak()

    def assert_flat(self) -> None:
        """Check the highest memory use since the start of the test."""
        growth = self.rda.memory("VmHWM") - self.before
        self.assertLess(
            growth, FLAT, f"memory grew by {growth / MEBIBYTE:.1f} MiB over {self.before / MEBIBYTE:.1f} MiB"
        )

    def test_to_the_client(self):
        """A client that stops reading every now and then does not make rda keep what it has not read."""
        with self.rda.running("exec", "box", "head", "-c", str(AMOUNT), "/dev/zero") as client:
            received = 0
            time.sleep(3)  # a client that does not read is the condition under test
            while data := client.stdout.read(MEBIBYTE):
                received += len(data)
                if received % (256 * MEBIBYTE) == 0:
                    time.sleep(1)
            self.assertEqual((received, client.wait(20)), (AMOUNT, 0))
        self.assert_flat()

    def test_to_the_container(self):
        """A container that reads in bursts does not make rda keep what it has not read."""
        burst = "dd of=/dev/null bs=1M count=256 iflag=fullblock 2>/dev/null; sleep 1; "
        script = f"sleep 3; {burst * 3} wc -c"
        with self.rda.running("exec", "-i", "box", "sh", "-c", script, stdin=subprocess.PIPE) as client:
            feeder = threading.Thread(target=self.feed, args=(client.stdin,))
            feeder.start()
            self.assertEqual(client.stdout.read(), f"{256 * MEBIBYTE}\n".encode())
            feeder.join(20)
        self.assert_flat()

    @staticmethod
    def feed(stdin) -> None:
        """Write AMOUNT zeros and close."""
        with stdin:
            for _ in range(AMOUNT // MEBIBYTE):
                stdin.write(bytes(MEBIBYTE))

    def test_through_a_published_port(self):
        """A slow reader of a published port does not make rda keep what it has not read."""
        port = free_port()
        serve = ["nc", "-l", "-p", "7", "-e", "head", "-c", str(AMOUNT), "/dev/zero"]
        self.rda.docker("run", "-d", "--name", "server", "-p", f"{port}:7", "busybox", *serve)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            time.sleep(3)  # a client that does not read is the condition under test
            received = 0
            while data := connection.recv(MEBIBYTE):
                received += len(data)
        self.assertEqual(received, AMOUNT)
        self.assert_flat()


class Reconnect(LiveTestCase):
    """The link is lost and comes back."""

    def setUp(self):
        super().setUp()
        self.site = self.directory()
        (self.site / "index.html").write_text("before\n")
        self.port = free_port()
        server = ("busybox", "httpd", "-f", "-p", "80", "-h", "/www")
        self.rda.docker("run", "-d", "--name", "web", "-p", f"{self.port}:80", "-v", f"{self.site}:/www", *server)
        self.assertEqual(fetch(self.port), "before\n")

    def assert_works_again(self, seconds: float) -> None:
        """Check commands, forwards and sync, edits made meanwhile included."""
        self.eventually(lambda: self.rda.docker("ps", check=False).returncode == 0, "docker works again", seconds)
        self.eventually(lambda: fetch(self.port) == "during\n", "what was edited meanwhile is served", 10)
        (self.site / "index.html").write_text("after\n")
        self.eventually(lambda: fetch(self.port) == "after\n", "an edit afterwards is served", 2)
        self.assertEqual(self.rda.ports(), {self.port})
        self.assertNotIn("Traceback", self.rda.output)

    def test_network_cut(self):
        """After 10 s without network everything works again by itself; a client meanwhile gets an error."""
        self.host.cut_network()
        self.addCleanup(self.host.restore_network)
        cut = time.monotonic()
        (self.site / "index.html").write_text("during\n")
        visitor = socket.create_connection(("127.0.0.1", self.port), timeout=ERROR_SECONDS)
        self.addCleanup(visitor.close)
        visitor.sendall(b"GET / HTTP/1.0\r\n\r\n")
        done = self.rda.docker("ps", check=False, timeout=ERROR_SECONDS)
        self.assertNotEqual(done.returncode, 0, "nothing was there to answer")
        self.assertIn(self.host.address, done.stderr.decode())
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(visitor.recv(100), b"", "nothing was there to answer")
        waited = time.monotonic() - cut
        time.sleep(max(0.0, CUT_SECONDS - waited))  # the length of the cut is the condition under test
        self.host.restore_network()
        self.assert_works_again(20)

    def test_connection_killed(self):
        """A connection that the server kills is made again at once."""
        self.host.drop_ssh_connections()
        (self.site / "index.html").write_text("during\n")
        self.assert_works_again(15)

    def test_killed_under_load(self):
        """Killed again and again with requests and transfers under way, the link is back each time."""
        self.rda.docker("run", "-d", "--name", "box", "busybox", "sleep", "1000")
        kill_again_and_again(self.rda, 3, "box")
        (self.site / "index.html").write_text("during\n")
        self.assert_works_again(15)

    def test_server_restart(self):
        """After a restart of sshd, with all its connections killed, everything works again."""
        self.host.stop_sshd()
        self.host.drop_ssh_connections()
        (self.site / "index.html").write_text("during\n")
        done = self.rda.docker("ps", check=False, timeout=60)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(self.host.address, done.stderr.decode())
        self.host.start_sshd()
        self.assert_works_again(30)
