"""Other clients than the docker command: Docker Compose, and the docker package for Python."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import docker

from tests.live.process import fetch, free_port
from tests.live.support import COMMAND_SECONDS, MEBIBYTE, LiveTestCase, is_open

COMPOSE = """
name: shop
services:
  web:
    image: busybox
    command: httpd -f -p 80 -h /www
    ports: ["{port}:80"]
    volumes: ["./site:/www:ro", "state:/state"]
  worker:
    build: .
    command: sh -c 'wget -q -O - http://web/ && sleep 1000'
    depends_on: [web]
    volumes:
      - type: bind
        source: ./job
        target: /job
  inspector:
    image: busybox
    command: httpd -f -p 80 -h /www
    ports: ["{inspector}:80"]
    volumes: ["./site:/www:ro"]
    profiles: [inspect]
volumes:
  state:
"""


class Compose(LiveTestCase):
    """``docker compose``."""

    def setUp(self):
        super().setUp()
        self.project = self.directory()
        self.port, self.inspector = free_port(), free_port()
        for name, text in (
            ("compose.yaml", COMPOSE.format(port=self.port, inspector=self.inspector)),
            ("Dockerfile", "FROM busybox\nRUN echo built\n"),
            ("site/index.html", "first\n"),
            ("job/input", "todo\n"),
        ):
            (self.project / name).parent.mkdir(exist_ok=True)
            (self.project / name).write_text(text)
        self.addCleanup(self.compose, "--profile", "*", "down", "-v", "-t", "0", "--rmi", "local", check=False)

    def compose(self, *words, **options):
        """Run a compose command in the project."""
        return self.rda.docker("compose", *words, cwd=self.project, **options)

    def test_project(self):
        """A project with a build, ports, bind mounts, a volume and a profile comes up, follows edits and goes down."""
        self.compose("up", "-d", "--build")
        self.assertEqual(fetch(self.port), "first\n")
        self.assertEqual(self.compose("exec", "-T", "worker", "cat", "/job/input").stdout, b"todo\n")
        (self.project / "site/index.html").write_text("second\n")
        self.eventually(lambda: fetch(self.port) == "second\n", "the edit is served", 1)
        self.assertIn(f":{self.port}->80/tcp", self.compose("ps", "web").stdout.decode())
        self.assertEqual(self.compose("port", "web", "80").stdout.decode().strip(), f"0.0.0.0:{self.port}")
        again = self.compose("up", "-d").stderr.decode()
        self.assertNotIn("Recreate", again)
        self.eventually(lambda: b"first" in self.compose("logs", "worker").stdout, "the worker's request is logged", 5)
        self.assertFalse(is_open(self.inspector))
        self.compose("--profile", "inspect", "up", "-d")
        self.assertEqual(fetch(self.inspector), "second\n")
        self.compose("--profile", "inspect", "stop", "-t", "0")
        self.eventually(lambda: not is_open(self.port) and not is_open(self.inspector), "the ports close", 3)
        self.compose("start")
        self.assertEqual(fetch(self.port), "second\n")
        self.compose("--profile", "*", "down", "-v", "-t", "0")
        self.assertEqual(self.rda.ports(), set())
        self.assertEqual(self.host.docker("ps", "-aq").stdout, b"")


SECRETS = """
name: secrets
services:
  app:
    image: busybox
    command: sh -c 'cat /run/secrets/key /etc/app.conf > /seen; sleep 1000'
    init: true
    secrets: [key]
    configs:
      - {source: conf, target: /etc/app.conf}
secrets:
  key: {file: ./key}
configs:
  conf: {file: ./conf}
"""


class Secrets(LiveTestCase):
    """``docker compose`` with secrets and configs that are files."""

    def test_files(self):
        """A service finds the files of this machine in their places, and their edits too."""
        project = self.directory()
        for name, text in (("compose.yaml", SECRETS), ("key", "secret\n"), ("conf", "setting\n")):
            (project / name).write_text(text)
        compose = functools.partial(self.rda.docker, "compose", cwd=project)
        self.addCleanup(compose, "down", "-t", "0", check=False)
        compose("up", "-d")
        inside = functools.partial(compose, "exec", "-T", "app", "cat")
        self.eventually(lambda: inside("/seen").stdout == b"secret\nsetting\n", "both were there at the start", 5)
        (project / "key").write_text("another\n")
        self.assertEqual(inside("/run/secrets/key").stdout, b"another\n")


WATCHED = """
name: watched
services:
  app:
    build: .
    init: true
    command: sleep 1000
    develop:
      watch:
        - {action: sync, path: ./source, target: /source}
        - {action: rebuild, path: ./recipe}
"""


class Watch(LiveTestCase):
    """``docker compose watch``."""

    def test_sync_and_rebuild(self):
        """An edit of a synced file arrives in the container that runs, one of a recipe makes a new one."""
        project = self.directory()
        for name, text in (
            ("compose.yaml", WATCHED),
            ("Dockerfile", "FROM busybox\nCOPY source /source\nCOPY recipe /recipe\n"),
            ("source/page", "first\n"),
            ("recipe/step", "first\n"),
        ):
            (project / name).parent.mkdir(exist_ok=True)
            (project / name).write_text(text)
        compose = functools.partial(self.rda.docker, "compose", cwd=project, check=False)
        self.addCleanup(compose, "down", "-v", "-t", "0", "--rmi", "local")

        def shows(file, text):
            return compose("exec", "-T", "app", "cat", file).stdout == text

        with self.rda.running("compose", "watch", cwd=project, stderr=subprocess.STDOUT) as watching:
            heard = b""
            while b"watch enabled" not in heard.lower():
                line = watching.stdout.readline()
                self.assertTrue(line, heard)
                heard += line
            (project / "source/page").write_text("second\n")
            self.eventually(lambda: shows("/source/page", b"second\n"), "the edit is synced", 30)
            (project / "recipe/step").write_text("second\n")
            self.eventually(lambda: shows("/recipe/step", b"second\n"), "the image is rebuilt", 60)


class Testcontainers(LiveTestCase):
    """The testcontainers package: made for daemons at home, it asks DOCKER_HOST where published ports are."""

    SCRIPT = """
import urllib.request
from testcontainers.core.container import DockerContainer
from testcontainers.core.waiting_utils import wait_for_logs

server = DockerContainer("busybox").with_command("sh -c 'echo up; exec httpd -f -p 80 -h /etc'").with_exposed_ports(80)
with server as container:
    wait_for_logs(container, "up", timeout=20)
    address = f"http://{container.get_container_host_ip()}:{container.get_exposed_port(80)}/group"
    print(urllib.request.urlopen(address, timeout=20).read().decode(), end="")
    print(container.exec(["echo", "hello"]).output.decode(), end="")
"""

    def run_script(self, **more):
        """Run it with its own settings; return what it prints."""
        # Where these tests run in a container themselves, the package would look for ports at its gateway.
        settings = {"HOME": str(self.directory()), "TESTCONTAINERS_CONNECTION_MODE": "docker_host"}
        environment = {**self.rda.environment, **settings, **more}
        done = subprocess.run(
            [sys.executable, "-c", self.SCRIPT],
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_without_ryuk(self):
        """A container is started, found at its published port, and removed at the end."""
        self.assertEqual(self.run_script(TESTCONTAINERS_RYUK_DISABLED="true"), "root:x:0:\nnogroup:x:65534:\nhello\n")
        self.assertEqual(self.host.docker("ps", "-aq").stdout, b"")

    def test_with_ryuk(self):
        """Ryuk, which removes what a killed test leaves, gets the daemon's socket, and is reached at its port.

        Its image comes from a registry; here one takes its place that does as much of it as the package sees.
        """
        self.addCleanup(self.host.docker, "rmi", "-f", "ryuk", check=False)
        script = (
            "test -S /var/run/docker.sock && echo 0/0/0 Started! && exec nc -ll -p 8080 -e sh -c 'read f; echo ACK'"
        )
        self.host.docker("run", "--name", "made", "busybox", "true")
        self.host.docker("commit", "-c", f"CMD {json.dumps(['sh', '-c', script])}", "made", "ryuk")
        self.assertIn("hello", self.run_script(RYUK_CONTAINER_IMAGE="ryuk"))


class Python(LiveTestCase):
    """The docker package."""

    def setUp(self):
        super().setUp()
        self.client = docker.DockerClient(base_url=f"tcp://127.0.0.1:{self.rda.port}", timeout=60)
        self.addCleanup(self.client.close)

    def test_run(self):
        """Running a container gives its output."""
        self.assertEqual(self.client.containers.run("busybox", "echo hello", remove=True), b"hello\n")

    def test_ports_and_files(self):
        """Ports and bind mounts given as the package takes them work."""
        site = self.directory()
        (site / "index.html").write_text("from python\n")
        port = free_port()
        container = self.client.containers.run(
            "busybox", "httpd -f -p 80 -h /www", detach=True, ports={"80/tcp": port}, volumes=[f"{site}:/www:ro"]
        )
        self.assertEqual(fetch(port), "from python\n")
        container.reload()
        self.assertEqual(container.ports["80/tcp"][0]["HostPort"], str(port))
        self.assertEqual(container.attrs["Mounts"][0]["Source"], str(site))
        container.remove(force=True)
        self.eventually(lambda: not is_open(port), "the port closes", 3)

    def test_socket(self):
        """A raw exec socket carries bytes both ways, and its half-close."""
        container = self.client.containers.run("busybox", "sleep 1000", detach=True)
        started = self.client.api.exec_create(container.id, "sort", stdin=True, tty=False)
        raw = self.client.api.exec_start(started["Id"], socket=True)
        self.addCleanup(raw.close)
        connection = raw._sock  # the package gives a file around it, which cannot half-close
        connection.sendall(b"b\na\n")
        connection.shutdown(1)
        received = b""
        while data := connection.recv(4096):
            received += data
        # Each frame has 8 bytes of header: stream 1 is stdout.
        self.assertEqual((received[:1], received[8:]), (b"\1", b"a\nb\n"))

    def test_archive(self):
        """An archive put into a container comes out again."""
        container = self.client.containers.create("busybox")
        source = self.directory()
        data = os.urandom(3 * MEBIBYTE)
        (source / "data").write_bytes(data)
        self.rda.docker("cp", str(source / "data"), f"{container.id}:/data")
        stream, described = container.get_archive("/data")
        self.assertEqual(described["size"], len(data))
        self.assertIn(data, b"".join(stream))
