"""Building, copying, saving and loading: large bodies in both directions."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import docker

from tests.live.host import wait_until
from tests.live.support import MEBIBYTE, LiveTestCase

#: The size of the image that is saved and loaded.
LARGE = 300 * MEBIBYTE


class Build(LiveTestCase):
    """``docker build``."""

    def context(self):
        """Return a directory to build from: a Dockerfile, some files, and one that does not compress."""
        directory = self.directory()
        (directory / "Dockerfile").write_text(
            "FROM busybox\nCOPY . /context\nRUN sha256sum /context/data | tee /sum && echo built\n"
        )
        self.data = os.urandom(20 * MEBIBYTE)
        (directory / "data").write_bytes(self.data)
        for n in range(50):
            (directory / f"file-{n}").write_text(f"{n}\n")
        return directory

    def check(self, image):
        """Check that the image holds what the context held."""
        self.addCleanup(self.host.docker, "rmi", "-f", image, check=False)
        self.assertEqual(
            self.rda.docker("run", "--rm", image, "sh", "-c", "cut -c1-64 /sum; ls /context | wc -l")
            .stdout.decode()
            .split(),
            [hashlib.sha256(self.data).hexdigest(), "52"],
        )

    def test_legacy(self):
        """The daemon's classic builder works: the context goes up as one tar stream."""
        environment = {**self.rda.environment, "DOCKER_BUILDKIT": "0"}
        done = self.rda.docker("build", "--no-cache", "-t", "legacy", str(self.context()), env=environment)
        self.assertIn(b"Successfully built", done.stdout)
        self.check("legacy")

    def test_buildkit(self):
        """BuildKit works: its session is a connection of its own, with HTTP/2 inside."""
        done = self.rda.docker("buildx", "build", "--no-cache", "--progress=plain", "-t", "kit", str(self.context()))
        self.assertIn(b"built", done.stderr)
        self.check("kit")

    def test_failing_step(self):
        """A step that fails ends the client with the step's own words and code."""
        directory = self.directory()
        (directory / "Dockerfile").write_text("FROM busybox\nRUN echo this went wrong >&2; exit 3\n")
        for buildkit in ("0", "1"):
            with self.subTest(buildkit=buildkit):
                environment = {**self.rda.environment, "DOCKER_BUILDKIT": buildkit, "BUILDKIT_PROGRESS": "plain"}
                done = self.rda.docker("build", "--no-cache", str(directory), env=environment, check=False)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(b"this went wrong", done.stdout + done.stderr)

    def test_local_output_with_secrets_and_keys(self):
        """``buildx build -o local`` brings the result here, made with a secret and with keys of an ssh-agent."""
        directory, work = self.directory(), Path(tempfile.mkdtemp(prefix="rda-agent-"))
        self.addCleanup(shutil.rmtree, work)
        # What asks the agent: ssh-add with the libraries that it needs.
        program = "/usr/bin/ssh-add"
        needed = re.findall(r"(/\S+) \(0x", self.host.run("ldd", program).stdout.decode())
        (directory / "rootfs.tar").write_bytes(self.host.run("tar", "-chP", program, *needed).stdout)
        (directory / "Dockerfile").write_text(
            "FROM busybox AS maker\nADD rootfs.tar /\nCOPY tree /out/tree\n"
            "RUN --mount=type=secret,id=word sha256sum /run/secrets/word | cut -c1-64 >/out/secret\n"
            "RUN --mount=type=ssh ssh-add -L >/out/keys\nFROM scratch\nCOPY --from=maker /out /\n"
        )
        (directory / "tree").mkdir()
        (directory / "tree/data").write_bytes(os.urandom(3 * MEBIBYTE))
        secret = os.urandom(64).hex()
        (work / "word").write_text(secret)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mine", "-f", work / "key"], check=True)
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", work / "agent"], stdout=subprocess.DEVNULL)
        self.addCleanup(agent.wait)
        self.addCleanup(agent.kill)
        wait_until((work / "agent").exists, "the ssh-agent listens")
        asking = {**os.environ, "SSH_AUTH_SOCK": str(work / "agent")}
        subprocess.run(["ssh-add", "-q", work / "key"], check=True, env=asking)
        command = ["buildx", "build", "--no-cache", "-o", f"type=local,dest={directory / 'result'}"]
        command += ["--secret", f"id=word,src={work / 'word'}", "--ssh", f"default={work / 'agent'}", str(directory)]
        self.rda.docker(*command)
        self.assertEqual((directory / "result/keys").read_text(), (work / "key.pub").read_text())
        self.assertEqual((directory / "result/secret").read_text().strip(), hashlib.sha256(secret.encode()).hexdigest())
        self.assertEqual((directory / "result/tree/data").read_bytes(), (directory / "tree/data").read_bytes())


class Copy(LiveTestCase):
    """``docker cp``."""

    def test_both_ways(self):
        """A tree copied in and out again is the same tree."""
        self.rda.docker("create", "--name", "box", "busybox")
        source = self.directory()
        (source / "deep/er").mkdir(parents=True)
        (source / "deep/er/data").write_bytes(os.urandom(5 * MEBIBYTE))
        (source / "tool").write_text("#!/bin/sh\n")
        (source / "tool").chmod(0o755)
        (source / "link").symlink_to("deep/er/data")
        self.rda.docker("cp", f"{source}/.", "box:/tree")
        back = self.directory()
        self.rda.docker("cp", "box:/tree/.", str(back))
        self.assertEqual(subprocess.run(["diff", "-r", source, back], capture_output=True).stdout, b"")
        self.assertEqual((back / "tool").stat().st_mode, (source / "tool").stat().st_mode)
        self.assertEqual(os.readlink(back / "link"), "deep/er/data")

    def test_missing(self):
        """What is not there is reported in the daemon's words."""
        self.rda.docker("create", "--name", "box", "busybox")
        self.assert_same("cp", "box:/nosuchfile", "-")

    def test_streams(self):
        """``cp -`` takes a tar stream from its input and gives one to its output, the daemon's own."""
        sent = archive(5 * MEBIBYTE)
        for way, environment in self.ways().items():
            with self.subTest(way=way):
                self.rda.docker("create", "--name", "box", "busybox")
                self.rda.docker("cp", "-", "box:/tmp", input=sent, env=environment)
                self.assertEqual(members(self.assert_same("cp", "box:/tmp/data", "-").stdout), members(sent))
                self.rda.docker("rm", "box")


class Carry(LiveTestCase):
    """``docker save`` and ``docker load``, ``docker export`` and ``docker import``."""

    def test_file_systems(self):
        """A container's file system that is exported and imported is the same file system."""
        self.addCleanup(self.host.docker, "rmi", "-f", "imported", check=False)
        self.host.docker("run", "--name", "made", "busybox", "sh", "-c", "head -c 3000000 /dev/urandom >/data")
        exported = self.assert_same("export", "made").stdout
        self.rda.docker("import", "-c", "CMD sh", "-", "imported", input=exported)
        self.host.docker("create", "--name", "again", "imported")
        self.assertEqual(members(self.host.docker("export", "again").stdout), members(exported))

    def test_large_image(self):
        """An image of 300 MB that is saved, removed and loaded again is the same image."""
        self.addCleanup(self.host.docker, "rmi", "-f", "large", check=False)
        self.host.docker("import", "-", "large", input=archive(LARGE))
        identity = self.host.docker("image", "inspect", "-f", "{{.Id}}", "large").stdout
        file = self.directory() / "large.tar"
        self.rda.docker("save", "-o", str(file), "large")
        self.assertGreater(file.stat().st_size, LARGE)
        direct = self.host.docker("save", "large").stdout
        self.assertEqual(members(file.read_bytes()), members(direct))
        self.rda.docker("rmi", "large")
        done = self.rda.docker("load", "-i", str(file))
        self.assertEqual(done.stdout, b"Loaded image: large:latest\n")
        self.assertEqual(self.host.docker("image", "inspect", "-f", "{{.Id}}", "large").stdout, identity)


class Registry(LiveTestCase):
    """``docker push`` and ``docker pull``, with a registry that the remote host has."""

    def setUp(self):
        super().setUp()
        self.registry = self.host.start_registry()

    def image(self):
        """Return the name of a new image, with a layer that no registry knows."""
        name = f"{self.registry}/carried-{os.urandom(4).hex()}"
        self.host.docker("import", "-", name, input=archive(20 * MEBIBYTE))
        self.addCleanup(self.host.docker, "rmi", "-f", name, check=False)
        return name

    @staticmethod
    def essence(said, name):
        """Return what a client said, without digests and without the steps that a daemon skips when it is fast."""
        said = said.replace(name.partition("/")[2].encode(), b"NAME")
        lines = {re.sub(rb"[0-9a-f]{12,}", b"#", line) for line in said.splitlines()}
        return {line for line in lines if not line.startswith(b"#: ") or line in (b"#: Pushed", b"#: Pull complete")}

    def test_push_and_pull(self):
        """An image is pushed and pulled with the same words, but for its digests."""
        told = {}
        for way, environment in self.ways().items():
            name = self.image()
            pushed = self.rda.docker("push", name, env=environment).stdout
            self.rda.docker("rmi", name, env=environment)
            pulled = self.rda.docker("pull", name, env=environment).stdout
            told[way] = [self.essence(said, name) for said in (pushed, pulled)]
        self.assertEqual(*told.values())
        self.assertIn(b"#: Pushed", told["through rda"][0])
        self.assertIn(b"#: Pull complete", told["through rda"][1])

    def test_progress(self):
        """The progress of a push arrives while it is made, document by document."""
        client = docker.APIClient(base_url=f"tcp://127.0.0.1:{self.rda.port}", timeout=60)
        self.addCleanup(client.close)
        told = list(client.push(self.image(), stream=True, decode=True))
        amounts = [step["progressDetail"]["current"] for step in told if step.get("progressDetail", {}).get("current")]
        self.assertEqual(amounts, sorted(amounts))
        self.assertGreater(len(amounts), 1)
        self.assertGreater(amounts[-1], 20 * MEBIBYTE)

    def test_missing(self):
        """An image that the registry does not have is reported in the daemon's words."""
        self.assert_same("pull", f"{self.registry}/nosuchimage")


def archive(size: int) -> bytes:
    """Return a tar archive with one file of ``size`` bytes that do not compress well."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        entry = tarfile.TarInfo("data")
        entry.size = size
        tar.addfile(entry, io.BytesIO(b"".join(os.urandom(MEBIBYTE) for _ in range(size // MEBIBYTE))))
    return made.getvalue()


def members(tar: bytes) -> dict[str, str]:
    """Return what a tar archive holds: the digest of each file by name."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        files = [entry for entry in opened if entry.isfile()]
        return {entry.name: hashlib.sha256(opened.extractfile(entry).read()).hexdigest() for entry in files}
