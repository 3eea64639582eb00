"""What goes wrong gives the docker user a sentence that says what to do, and rda goes on running."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess

from tests.live.host import call
from tests.live.process import free_port
from tests.live.support import LiveTestCase, Rda, is_open

#: Seconds within which a client must have its answer, however bad the news.
ANSWER_SECONDS = 40.0


class Login(LiveTestCase):
    """The link cannot be made."""

    def assert_told(self, rda: Rda, *words: str) -> str:
        """Check that a docker command fails with a message that has all the words, and that rda lives on."""
        rda.wait_ready()
        done = rda.docker("version", check=False, timeout=ANSWER_SECONDS)
        message = done.stderr.decode()
        self.assertNotEqual(done.returncode, 0)
        for word in words:
            self.assertIn(word, message)
        self.assertIsNone(rda.process.poll(), "rda has ended")
        self.assertNotIn("Traceback", rda.output)
        return message

    def test_unknown_host_key(self):
        """A host that known_hosts does not know is refused with its fingerprint and what to do."""
        empty = self.directory() / "known_hosts"
        empty.touch()
        rda = self.own_rda(known_hosts=str(empty))
        self.assert_told(rda, self.host.address, "SHA256:")
        empty.write_bytes(self.host.known_hosts.read_bytes())
        self.eventually(
            lambda: rda.docker("version", check=False).returncode == 0, "rda connects once the key is known", 40
        )

    def test_changed_host_key(self):
        """A host whose key is another one than known_hosts says is refused as changed."""
        directory = self.directory()
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "other")
        kind, blob, *_ = (directory / "other.pub").read_text().split()
        (directory / "known_hosts").write_text(f"{self.host.address} {kind} {blob}\n")
        rda = self.own_rda(known_hosts=str(directory / "known_hosts"))
        self.assert_told(rda, self.host.address, "SHA256:", "known_hosts")

    def test_wrong_key(self):
        """A key that the remote host does not accept is named."""
        directory = self.directory()
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "other")
        rda = self.own_rda(identity=str(directory / "other"))
        self.assert_told(rda, self.host.user, str(directory / "other"))

    def test_dead_host(self):
        """A host that nobody answers at is named, with the reason."""
        rda = self.own_rda(remote=f"{self.host.user}@{self.host.address}:1")
        self.assert_told(rda, self.host.address)

    def test_missing_socket(self):
        """A Docker socket that is not there is named, and found when it comes."""
        rda = self.own_rda(docker="unix:///run/late.sock")
        self.assert_told(rda, "/run/late.sock")
        self.host.run("ln", "-sf", "/run/docker.sock", "/run/late.sock")
        self.addCleanup(self.host.run, "rm", "-f", "/run/late.sock")
        self.eventually(lambda: rda.docker("version", check=False).returncode == 0, "the socket that came is used", 20)


class Start(LiveTestCase):
    """rda cannot start as it was told to."""

    def assert_ends(self, rda: Rda, *words: str) -> None:
        """Check that rda ends by itself, not with success, with one message that has all the words."""
        self.assertNotEqual(rda.wait_end(), 0)
        for word in words:
            self.assertIn(word, rda.output)
        self.assertNotIn("Traceback", rda.output)

    def test_listening_port_in_use(self):
        """A port that is taken is named."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            self.assert_ends(self.own_rda(listen=f"tcp:{port}:interface=127.0.0.1"), str(port))

    def test_bad_options(self):
        """Every problem of the options is named at once."""
        self.assert_ends(self.own_rda(listen="nonsense:1", docker="ftp://x"), "listen", "docker")

    def test_no_remote(self):
        """A missing remote is asked for."""
        self.assert_ends(self.own_rda(remote=None), "remote")


class Requests(LiveTestCase):
    """Requests that make no sense."""

    def post(self, path: str, body: bytes, kind: str = "application/json") -> tuple[int, str]:
        """Send one request as no docker client would; return the answer's status and message."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rda.port, timeout=20)
        self.addCleanup(connection.close)
        connection.request("POST", path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["message"]

    def test_malformed_create(self):
        """A create whose body is not a JSON object is refused with the reason, and nothing is made."""
        for body in (b"", b"{", b"[]", b'{"Image": "busybox", "HostConfig": {"Binds": 1}}', b"\xff\xfe"):
            with self.subTest(body=body):
                status, message = self.post("/v1.45/containers/create", body)
                self.assertEqual(status, 400, message)
                self.assertTrue(message)
        self.assertEqual(self.host.docker("ps", "-aq").stdout, b"")
        self.assertEqual(self.rda.docker("run", "--rm", "busybox", "echo", "alive").stdout, b"alive\n")

    def test_not_http(self):
        """Bytes that are not HTTP are answered or dropped, and others do not notice."""
        with socket.create_connection(("127.0.0.1", self.rda.port), timeout=10) as connection:
            connection.sendall(bytes(range(256)) * 10 + b"\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        self.assertTrue(answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer)
        self.assertEqual(self.rda.docker("run", "--rm", "busybox", "echo", "alive").stdout, b"alive\n")


class Endings(LiveTestCase):
    """Ends that come in the middle of things."""

    def test_client_killed(self):
        """A client that is killed in the middle of a stream leaves no channel behind."""
        self.rda.docker("run", "-d", "--name", "box", "busybox", "sleep", "1000")
        before = len(self.descriptors())
        for _ in range(5):
            with self.rda.running("exec", "box", "cat", "/dev/zero") as client:
                self.assertTrue(client.stdout.read(100_000))
                client.kill()
        self.eventually(lambda: len(self.descriptors()) <= before + 1, "rda's descriptors are closed", 10)

    def descriptors(self) -> list[str]:
        """Return the file descriptors that rda has open."""
        return subprocess.check_output(["ls", f"/proc/{self.rda.process.pid}/fd"], text=True).split()

    def test_daemon_gone(self):
        """While dockerd is down, clients are told so; when it is back, they work."""
        self.host.stop_dockerd()
        self.addCleanup(self.host.start_dockerd)
        done = self.rda.docker("ps", check=False, timeout=ANSWER_SECONDS)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("docker.sock", done.stderr.decode())
        self.host.start_dockerd()
        self.assertEqual(self.rda.docker("ps", "-q").returncode, 0)

    def test_ends_on_sigterm(self):
        """SIGTERM ends rda in good order (and twistd by that signal): ports closed, containers running."""
        rda = self.own_rda()
        rda.wait_ready()
        port = free_port()
        rda.docker("run", "-d", "--name", "web", "-p", f"{port}:80", "busybox", "httpd", "-f", "-p", "80")
        self.assertEqual(rda.stop(), -signal.SIGTERM)
        self.assertIn("Server Shut Down", rda.output)
        self.assertFalse(is_open(port))
        self.assertEqual(self.host.docker("inspect", "-f", "{{.State.Running}}", "web").stdout, b"true\n")

    def test_told_twice_to_end(self):
        """Who presses Ctrl-C again while a running call may end reads that, and no traceback."""
        rda = self.own_rda()
        rda.wait_ready()
        words = rda.docker_command("run", "--rm", "busybox", "sh", "-c", "echo ready; exec sleep 60")
        with subprocess.Popen(words, env=rda.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
            self.assertEqual(client.stdout.readline(), b"ready\n")
            rda.process.send_signal(signal.SIGINT)
            self.assertIsNotNone(rda.find_line("Received SIGINT"))
            rda.process.send_signal(signal.SIGINT)
            self.assertIsNotNone(rda.find_line("rda is stopping"))
            self.assertEqual(rda.wait_end(), -signal.SIGINT)
        self.assertNotIn("Traceback", rda.output)
