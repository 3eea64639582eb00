"""Ports of this machine that containers reach as ``host.docker.internal``."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading

from tests.live.support import LiveTestCase, Rda


class Echo(socketserver.ThreadingTCPServer):
    """A service of this machine: answers with what it got, once it has all of it, and its own name behind it."""

    daemon_threads = True

    class Talk(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                received = b""
                while data := self.request.recv(65536):
                    received += data
                self.request.sendall(received + b"from here\n")

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo.Talk)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def port(self) -> int:
        return self.server_address[1]


class Expose(LiveTestCase):
    """``--expose-host``."""

    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo()
        self.addCleanup(self.echo.server_close)
        self.addCleanup(self.echo.shutdown)

    def exposing(self, *ports: int) -> Rda:
        rda = self.own_rda(expose_host=",".join(str(port) for port in ports))
        rda.wait_ready()
        return rda

    def talk(self, rda: Rda, *options: str, text: str = "hello ") -> str:
        """Let a container talk to the service; return what it got."""
        command = f"echo -n '{text}' | nc -w 5 host.docker.internal {self.echo.port}"
        done = rda.docker("run", "--rm", *options, "busybox", "sh", "-c", command, check=False)
        return done.stdout.decode() + done.stderr.decode()

    def gateway(self) -> str:
        found = self.host.docker("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge")
        return found.stdout.decode().strip()

    def sockets(self) -> list[str]:
        return self.host.run("find", "/tmp", "-name", "rda-*").stdout.decode().split()

    def test_reached(self):
        """A container reaches a named port in any network that can, and no other; nothing is left afterwards."""
        rda = self.exposing(self.echo.port)
        self.assertEqual(self.talk(rda), "hello from here\n")
        self.assertIn("hello from here\n", self.talk(rda, "--network", "host"))
        self.host.docker("network", "create", "other")
        self.addCleanup(self.host.docker, "network", "rm", "other")
        self.assertEqual(self.talk(rda, "--network", "other"), "hello from here\n")
        self.assertEqual(self.talk(rda, "--add-host", "host.docker.internal:host-gateway"), "hello from here\n")
        bound = {pair for pair in self.host.listeners() if pair[1] == self.echo.port}
        self.assertEqual(bound, {(self.gateway(), self.echo.port)})
        with socket.create_server(("127.0.0.1", 0)) as private:
            port = private.getsockname()[1]
            command = f"nc -w 2 host.docker.internal {port} </dev/null"
            self.assertNotEqual(rda.docker("run", "--rm", "busybox", "sh", "-c", command, check=False).returncode, 0)
        rda.stop()
        self.eventually(lambda: not self.sockets(), "the sockets on the remote host are removed", 5)
        self.assertEqual({pair for pair in self.host.listeners() if pair[1] == self.echo.port}, set())

    def test_shown(self):
        """Inspect shows the hosts that the user asked for, and status shows the port."""
        rda = self.exposing(self.echo.port)
        rda.docker("create", "--name", "one", "busybox")
        rda.docker("create", "--name", "two", "--add-host", "a:1.2.3.4", "busybox")
        self.host.docker("create", "--name", "plain", "busybox")
        there = self.host.docker("inspect", "one", "two").stdout
        self.assertEqual(there.count(b"host.docker.internal"), 2)
        shown = json.loads(rda.docker("inspect", "one", "plain", "two").stdout)
        one, plain, two = (container["HostConfig"]["ExtraHosts"] for container in shown)
        self.assertEqual((one, two), (plain, ["a:1.2.3.4"]))
        (port,) = [one for one in rda.status()["forwards"] if one["state"] == "exposed"]
        self.assertEqual(
            (port["port"], port["remote"]), (f"{self.echo.port}/tcp", f"{self.gateway()}:{self.echo.port}")
        )

    def test_not_without_being_asked(self):
        """Without the option a container gets no such name, and nothing is asked of the remote host."""
        hosts = self.rda.docker("run", "--rm", "busybox", "cat", "/etc/hosts").stdout.decode()
        self.assertNotIn("host.docker.internal", hosts)

    def test_link_loss(self):
        """After the link was lost, the port is reached again."""
        rda = self.exposing(self.echo.port)
        self.assertEqual(self.talk(rda), "hello from here\n")
        self.host.drop_ssh_connections()
        self.eventually(lambda: self.talk(rda) == "hello from here\n", "the port is reached again", 15)

    def test_port_in_use(self):
        """A port that is taken on the remote host is a warning of create, and a reason in the status."""
        self.host.run(
            "sh", "-c", f"setsid socat TCP4-LISTEN:{self.echo.port},bind={self.gateway()} - >/dev/null 2>&1 &"
        )
        self.addCleanup(self.host.run, "pkill", "-f", f"TCP4-LISTEN:{self.echo.port}", check=False)
        self.eventually(
            lambda: (self.gateway(), self.echo.port) in self.host.listeners(), "something else has the port", 5
        )
        rda = self.exposing(self.echo.port)
        done = rda.docker("create", "busybox")
        self.assertIn(b"cannot be reached", done.stderr)
        self.assertIn(b"in use", done.stderr)
        self.assertIn("in use", rda.status()["forwards"][0]["reason"])
