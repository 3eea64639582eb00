"""Building, copying, saving and loading: large bodies in both directions."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile

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


class Carry(LiveTestCase):
    """``docker save`` and ``docker load``."""

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
