"""Published ports: open here exactly while the container has them."""

from __future__ import annotations

import socket

from tests.live.process import fetch, free_port
from tests.live.support import LiveTestCase, is_open

#: Seconds from the end of a container, however it ended, until its port must be closed here.
CLOSED_SECONDS = 3.0

#: How often a container is run and fetched from; the soak test does it 200 times.
RUNS = 20

SERVE = ("busybox", "httpd", "-f", "-p", "80", "-h", "/etc")


class Publish(LiveTestCase):
    """``docker run -p``."""

    def serve(self, *options: str, port: int = 0) -> int:
        """Run a web server container, detached, named ``web``; return its local port."""
        port = port or free_port()
        self.rda.docker("run", "-d", "--name", "web", "-p", f"{port}:80", *options, *SERVE)
        return port

    def assert_closes(self, port: int) -> None:
        """Check that the port closes here soon, and that rda then listens on nothing for containers."""
        self.eventually(lambda: not is_open(port), f"port {port} closes", CLOSED_SECONDS)
        self.assertEqual(self.rda.ports(), set())

    def test_serves_at_once(self):
        """The page is there the moment ``docker run -d`` returns."""
        port = self.serve()
        self.assertIn("root:x:0:0", fetch(port, "passwd"))
        self.assertEqual(self.rda.ports(), {port})

    def test_served_each_time(self):
        """Run, fetch and remove, again and again on the same port: the first attempt is served each time."""
        port = free_port()
        for _ in range(RUNS):
            self.serve(port=port)
            self.assertIn("root:x:0:0", fetch(port, "passwd"))
            self.rda.docker("rm", "-f", "web")

    def test_life(self):
        """The port stays through a crash that the daemon mends, a new name, other networks and a pause."""
        port = self.serve("--restart", "always")
        pid = self.host.docker("inspect", "-f", "{{.State.Pid}}", "web").stdout.decode().strip()
        self.host.run("kill", "-9", pid)
        self.eventually(lambda: fetch(port, "passwd"), "the container that the daemon started again serves", 10)
        self.rda.docker("rename", "web", "site")
        self.assertEqual([one["name"] for one in self.rda.status()["forwards"]], ["site"])
        self.rda.docker("network", "create", "other")
        self.addCleanup(self.host.docker, "network", "rm", "other")
        self.rda.docker("network", "connect", "other", "site")
        self.rda.docker("network", "disconnect", "bridge", "site")
        self.eventually(lambda: fetch(port, "passwd"), "it serves in the other network", 10)
        self.rda.docker("pause", "site")
        with socket.create_connection(("127.0.0.1", port), timeout=20) as waiting:
            waiting.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
            self.rda.docker("unpause", "site")
            self.assertIn(b"root:x:0:0", waiting.makefile("rb").read())
        self.rda.docker("rm", "-f", "site")
        self.assert_closes(port)

    def test_half_close(self):
        """A client that closes its sending side still gets the whole answer."""
        port = free_port()
        self.rda.docker(
            "run",
            "-d",
            "--name",
            "echo",
            "-p",
            f"{port}:7",
            "busybox",
            "nc",
            "-l",
            "-p",
            "7",
            "-e",
            "sh",
            "-c",
            "cat; echo end",
        )
        self.wait_served("echo", 7)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"x" * 100_000)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while data := connection.recv(65536):
                received += data
        self.assertEqual(received, b"x" * 100_000 + b"end\n")

    def test_stop_and_start(self):
        """Stopping closes the port, starting opens the same one again."""
        port = self.serve()
        self.rda.docker("stop", "-t", "1", "web")
        self.assert_closes(port)
        self.rda.docker("start", "web")
        self.assertIn("root:x:0:0", fetch(port, "passwd"))
        self.rda.docker("restart", "-t", "1", "web")
        self.eventually(lambda: fetch(port, "passwd"), "the restarted container serves", CLOSED_SECONDS)
        self.assertEqual(self.rda.ports(), {port})

    def test_remove(self):
        """``rm -f`` closes the port, and it can be used again at once."""
        port = self.serve()
        self.rda.docker("rm", "-f", "web")
        self.assert_closes(port)
        self.serve(port=port)
        self.assertIn("root:x:0:0", fetch(port, "passwd"))

    def test_behind_our_back(self):
        """A container that somebody stops on the remote host itself closes its port here too."""
        port = self.serve()
        self.host.docker("stop", "-t", "1", "web")
        self.assert_closes(port)
        self.host.docker("start", "web")
        self.eventually(lambda: fetch(port, "passwd"), "the container started there serves here", CLOSED_SECONDS)

    def test_daemon_restart(self):
        """The daemon's restart closes the ports of what it stopped, and opens again those of what it started again."""
        gone = free_port()
        self.rda.docker("run", "-d", "--name", "once", "-p", f"{gone}:80", *SERVE)
        port = self.serve("--restart", "always")
        self.host.restart_dockerd()
        self.eventually(lambda: fetch(port, "passwd"), "the container that came back serves", 15)
        self.eventually(lambda: self.rda.ports() == {port}, "only the port of what came back is open", CLOSED_SECONDS)
        self.assertFalse(is_open(gone))

    def test_two_containers(self):
        """Two containers that publish the same container port have one local port each; ending one leaves the other."""
        one, two = free_port(), free_port()
        self.rda.docker("run", "-d", "--name", "one", "-p", f"{one}:80", *SERVE)
        self.rda.docker("run", "-d", "--name", "two", "-p", f"127.0.0.1:{two}:80", *SERVE)
        self.assertEqual(self.rda.ports(), {one, two})
        self.rda.docker("rm", "-f", "one")
        self.eventually(lambda: not is_open(one), "the removed container's port closes", CLOSED_SECONDS)
        self.assertIn("root:x:0:0", fetch(two, "passwd"))

    def test_restart_of_rda(self):
        """The ports of running containers close when rda ends, and are open when it is ready again."""
        port = free_port()
        first = self.own_rda()
        first.wait_ready()
        first.docker("run", "-d", "--name", "web", "-p", f"{port}:80", *SERVE)
        self.assertIn("root:x:0:0", fetch(port, "passwd"))
        first.stop()
        second = self.own_rda(state_dir=str(first.state))
        second.wait_ready()
        self.eventually(lambda: second.ports() == {port}, "the new rda opens the port", CLOSED_SECONDS)
        self.assertIn("root:x:0:0", fetch(port, "passwd"))
