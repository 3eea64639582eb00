"""Who calls, seen by real clients: other users, TLS, tokens; and the configuration read again while rda works."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from pathlib import Path

from cryptography import x509

from tests.certificates import Authority
from tests.live.process import fetch, free_port, free_ports, throwaway_options
from tests.live.support import LiveTestCase, Rda

#: A user of this machine who is nobody in particular.
OTHER_UID = 4242

TOKEN = "rda_" + "t" * 43
HASH = "sha256:" + hashlib.sha256(TOKEN.encode()).hexdigest()

#: What another user runs: everything is imported before the user changes, who may not read where it comes from.
AS_OTHER = """
import encodings.idna, http.client, os, socket, sys
os.setgroups([])
os.setgid({uid})
os.setuid({uid})
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.host)
{code}
"""


def as_other(code: str) -> str:
    """Run Python as another user; return what it prints, errors included."""
    done = subprocess.run(
        [sys.executable, "-c", AS_OTHER.format(uid=OTHER_UID, code=code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    return done.stdout


class Configured(LiveTestCase):
    """Tests with an rda that has a configuration file."""

    def start(self, text: str = "", **options: str | None) -> Rda:
        """Start an rda with further lines in its file."""
        self.file = self.directory() / "rda.toml"
        self.file.write_text(text)
        rda = self.own_rda(config=str(self.file), **options)
        rda.wait_ready()
        return rda


class OtherUsers(Configured):
    """What another user of this machine can do."""

    def test_tcp(self) -> None:
        """Another user reads why the Docker API is not for them; a request that is left behind is not carried out."""
        request = f"c = http.client.HTTPConnection('127.0.0.1', {self.rda.port}); c.request('GET', '/info'); "
        answer = as_other(request + "a = c.getresponse(); print(a.status, a.read().decode())")
        self.assertRegex(answer, r'^403 \{"message": "rda: #4242 \(uid 4242\) may not use this context of root\'s')
        body = json.dumps({"Image": "busybox", "Cmd": ["true"]})
        post = f"POST /containers/create?name=left HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        as_other(
            f"for n in range(50):\n c = socket.create_connection(('127.0.0.1', {self.rda.port}))\n"
            f" c.sendall({post.encode()!r})\n c.close()"
        )
        self.assertEqual(self.rda.docker("ps", "-aq").stdout, b"")

    def test_unix_socket(self) -> None:
        """A UNIX socket is closed to others; one that is open to all still tells who they are."""
        directory = Path("/run/rda-live-test")
        self.addCleanup(lambda: directory.exists() and directory.rmdir())
        self.addCleanup(lambda: [path.unlink() for path in directory.glob(".*.lock")])
        private, public = directory / "private.sock", directory / "public.sock"
        rda = self.start(f'listen = ["unix:{private}", "unix:{public}:mode=666"]', listen=None)
        rda.find_line("public.sock")
        ask = "c = Connection('{}'); c.request('GET', '/info'); a = c.getresponse(); print(a.status, a.read().decode())"
        self.assertIn("PermissionError", as_other(ask.format(private)))
        directory.chmod(0o711)
        self.assertIn("PermissionError", as_other(ask.format(private)))
        self.assertRegex(as_other(ask.format(public)), r"^403 .*#4242 \(uid 4242\) may not use")
        environment = {**rda.environment, "DOCKER_HOST": f"unix://{private}"}
        self.assertEqual(rda.docker("ps", "-q", env=environment).stdout, b"")
        second = Rda(self.host, listen=f"unix:{private}")
        self.addCleanup(second.stop)
        self.assertEqual(second.wait_end(), 1)
        self.assertIn(f"{private} is in use by process {rda.process.pid} (", second.output)
        self.assertEqual(rda.docker("ps", "-q", env=environment).stdout, b"")


class Proved(Configured):
    """Callers who prove who they are."""

    def test_certificates(self) -> None:
        """The docker command's own layout of files is all there is to TLS; without a certificate nobody gets in."""
        directory, authority = self.directory(), Authority()
        server = authority.write(directory / "server", "rda", [x509.DNSName("localhost")], server=True)
        client = authority.write(directory / "client", "alice")
        rda = self.start(f'tls = "{server}"')
        url = {"DOCKER_HOST": f"tcp://localhost:{rda.port}", "DOCKER_TLS_VERIFY": "1"}
        environment = {**rda.environment, **url, "DOCKER_CERT_PATH": str(client)}
        done = rda.docker("run", "--rm", "-i", "busybox", "wc", "-c", input=b"x" * 100_000, env=environment)
        self.assertEqual(done.stdout, b"100000\n")
        self.assertIn("alice (certificate) calls", rda.output)
        refused = rda.docker("run", "--rm", "-v", f"{directory}:/x", "busybox", "ls", env=environment, check=False)
        self.assertIn(b"with the rights of the user that rda runs as, and alice (certificate)", refused.stderr)
        other = Authority().write(directory / "other", "alice")
        (other / "ca.pem").write_bytes((client / "ca.pem").read_bytes())
        refused = rda.docker("version", env={**environment, "DOCKER_CERT_PATH": str(other)}, check=False)
        self.assertNotEqual(refused.returncode, 0)
        plain = rda.docker("version", env={**rda.environment, "DOCKER_HOST": url["DOCKER_HOST"]}, check=False)
        self.assertNotEqual(plain.returncode, 0)

    def test_tokens(self) -> None:
        """A token in the docker command's configuration says who calls, for all that the command itself sends."""
        rda = self.start(f'tokens = {{ ci = "{HASH}" }}')
        configuration = self.directory()
        usual = json.loads((self.host.docker_config / "config.json").read_text())

        def environment(token: str) -> dict[str, str]:
            headers = {"HttpHeaders": {"Authorization": f"Bearer {token}"}}
            (configuration / "config.json").write_text(json.dumps({**usual, **headers}))
            return {**rda.environment, "DOCKER_CONFIG": str(configuration)}

        done = rda.docker("run", "--rm", "-i", "busybox", "cat", input=b"through", env=environment(TOKEN))
        self.assertEqual(done.stdout, b"through")
        project = self.directory()
        (project / "Dockerfile").write_text("FROM busybox\nRUN echo built\n")
        rda.docker("build", "-q", str(project), env={**environment(TOKEN), "DOCKER_BUILDKIT": "0"})  # buildx sends none
        self.assertIn("ci (token) calls", rda.output)
        self.assertNotIn("root (loopback)", rda.output)
        refused = rda.docker("ps", env=environment(TOKEN[:-1] + "u"), check=False)
        self.assertIn(b"the token is not known here", refused.stderr)
        self.assertNotIn(TOKEN, "".join(rda.lines))


class DockerContexts(Configured):
    """``rda context``."""

    def test_docker_context(self) -> None:
        """The docker command uses a context of rda's, whether it wrote it itself or rda did."""
        rda = self.start()
        configuration = self.directory()
        (configuration / "config.json").write_text((self.host.docker_config / "config.json").read_text())
        programs = str(Path(self.host.docker_cli).parent)
        environment = {name: value for name, value in rda.environment.items() if name != "DOCKER_HOST"}
        environment |= {"DOCKER_CONFIG": str(configuration), "RDA_STATE_DIR": str(rda.state)}
        for path in (f"{programs}:{os.environ['PATH']}", "/nowhere"):
            environment["PATH"] = path

            def command(*words: str) -> str:
                done = subprocess.run(
                    [sys.executable, "-m", "rda.command", "context", *words],
                    env=environment,
                    cwd=self.directory(),
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
                self.assertEqual(done.stderr, "")
                return done.stdout

            self.assertIn(f"leads to tcp://localhost:{rda.port}", command("install", "over-there"))
            rda.docker("context", "use", "over-there", env=environment)
            done = rda.docker("run", "--rm", "busybox", "echo", "there", env=environment)
            self.assertEqual(done.stdout, b"there\n")
            self.assertEqual(json.loads(command("list", "--json"))[0]["name"], "over-there")
            command("install", "over-there", "--host", "tcp://localhost:1")
            shown = rda.docker("context", "inspect", "over-there", env=environment).stdout
            self.assertEqual(json.loads(shown)[0]["Endpoints"]["docker"]["Host"], "tcp://localhost:1")
            rda.docker("context", "use", "default", env=environment)
            command("remove", "over-there")
            self.assertNotIn(b"over-there", rda.docker("context", "ls", env=environment).stdout)


class Stream:
    """A request that goes on for as long as nobody ends it: ``docker events``, by hand."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.head = self.socket.recv(65536)
        self.socket.setblocking(False)

    def alive(self) -> bool:
        """Whether it still goes on."""
        try:
            return self.socket.recv(65536) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


class Reload(Configured):
    """SIGHUP."""

    TIMES = 20

    def table(self, name: str, port: int, own_link: bool = True) -> str:
        """A context to the same host, by a login of its own or by the first context's."""
        options = f'remote = "{self.target}"\nlisten = "tcp:{port}:interface=127.0.0.1"\nsync_root = ".rda-{name}"\n'
        return f"[context.{name}]\n{options}compression = {str(own_link).lower()}\n"

    def reload(self, rda: Rda, text: str) -> None:
        """Have a configuration read."""
        self.file.write_text(text)
        rda.process.send_signal(signal.SIGHUP)
        self.assertIsNotNone(rda.find_line("The configuration (has been|is not) applied"), rda.output)

    def descriptors(self, rda: Rda) -> Counter[str]:
        """What rda's process has open, by kind."""
        found: Counter[str] = Counter()
        for entry in Path(f"/proc/{rda.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found[os.readlink(entry).partition("[")[0]] += 1
        return found

    def threads(self, rda: Rda) -> int:
        """How many threads rda's process has."""
        return len(os.listdir(f"/proc/{rda.process.pid}/task"))

    def test_shared_link(self) -> None:
        """Contexts to one host with one login share a link; one that gets in differently has its own."""
        self.target = throwaway_options(self.host)["remote"]
        *ports, other = free_ports(5)
        rda = self.start("".join(self.table(f"same{port}", port, own_link=False) for port in ports))

        def answers(port: int) -> None:
            self.eventually(lambda: fetch(port, "_ping") == "OK", "the context works", 20)

        for port in (rda.port, *ports):
            answers(port)
        # One connection, and at most another for files: not one for each of the five.
        self.assertLessEqual(rda.ssh_connections(), 2)
        shared = rda.ssh_connections()
        self.reload(rda, self.table("same", ports[0], own_link=False) + self.table("other", other))
        for port in (rda.port, ports[0], other):
            answers(port)
        self.assertGreater(rda.ssh_connections(), shared)

    def test_under_load(self) -> None:
        """Contexts come and go twenty times; the one that stays drops nothing, and nothing is left of the others."""
        rda = self.start()
        self.target = throwaway_options(self.host)["remote"]
        self.addCleanup(self.host.docker, "rm", "-f", "stays", check=False)
        port, other = free_port(), free_port()
        mounted = self.directory()
        (mounted / "index.html").write_text("stays")
        published = ("-p", f"{port}:80", "-v", f"{mounted}:/www")
        rda.docker("run", "-d", "--name", "stays", *published, "busybox", "httpd", "-f", "-h", "/www")
        self.eventually(lambda: fetch(port, "index.html") == "stays", "the container serves", 10)
        self.reload(rda, self.table("other", other))
        self.eventually(lambda: fetch(other, "_ping") == "OK", "the other context works", 20)
        self.reload(rda, "")
        stream, download = Stream(rda.port), socket.create_connection(("127.0.0.1", port))
        descriptors, threads_before = self.descriptors(rda), self.threads(rda)
        failures: list[object] = []
        asked = [0]
        done = threading.Event()

        def load() -> None:
            while not done.is_set():
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{rda.port}/containers/json", timeout=30) as answer:
                        answer.read()
                    fetch(port, "index.html", timeout=30)
                    asked[0] += 1
                except OSError as e:
                    failures.append(e)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        self.addCleanup(done.set)
        for n in range(self.TIMES):
            seen = asked[0]
            self.reload(rda, self.table(f"other{n}", other, own_link=n % 8 < 4) if n % 2 == 0 else "")
            if n % 4 == 0:  # another time it is gone before its link is there
                self.eventually(lambda: fetch(other, "_ping") == "OK", "the other context works", 20)
            self.eventually(lambda: asked[0] > seen, "the load goes on", 30)  # noqa: B023 (called at once)
        self.reload(rda, "colour = 1")
        self.assertIn("colour", fetch(rda.port, "_rda/status"))
        self.reload(rda, "")
        done.set()
        for thread in threads:
            thread.join(60)
        self.assertEqual(failures, [], rda.output)
        self.assertTrue(stream.alive())
        download.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
        self.assertIn(b"200 OK", download.recv(100))
        # A few may be the load's or the reactor's own; one for each context that came would be too many.
        few = self.TIMES // 2 - 1
        self.eventually(lambda: (self.descriptors(rda) - descriptors).total() < few, "the descriptors are closed", 20)
        self.assertLess(self.threads(rda), threads_before + few)
        self.assertRaises(OSError, fetch, other)
        for one in (stream.socket, download):
            one.close()
