"""The Debian package: built, installed on a machine with a real systemd, used, and removed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from rda import __version__
from tests.live.host import SSHD_PORT
from tests.live.machine import Machine
from tests.live.rootfs import Unsupported
from tests.live.support import LiveTestCase, SkipTest

BUILD = Path(__file__).parents[2] / "etc/debian/build"

#: Seconds that building may take: everything that rda needs is downloaded and compiled.
BUILD_SECONDS = 600.0

SOCKET = "/run/rda/docker.sock"


class DebianTests(LiveTestCase):
    def test_life(self) -> None:
        """It installs, runs as the service of its account, is there as a docker command, and goes without a trace."""
        if shutil.which("dpkg-deb") is None:
            raise SkipTest("there is no dpkg-deb here")
        built = self.directory()
        pip = Path(sys.executable).with_name("pip")
        done = subprocess.run([BUILD, pip, built], capture_output=True, text=True, timeout=BUILD_SECONDS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        (package,) = built.glob(f"rda_{__version__}_*.deb")
        try:
            self.machine = machine = Machine()
        except Unsupported as reason:
            raise SkipTest(str(reason)) from None
        self.addCleanup(machine.stop)
        machine.run("rm", "-rf", "/opt/rda/bin")
        machine.copy(package, "/var/cache/rda.deb")
        machine.run("dpkg", "--install", "/var/cache/rda.deb")
        self.assertEqual(machine.run("rda", "version").splitlines()[0], f"rda {__version__}")
        self.assertIn('.TH "rda"', machine.run("zcat", "/usr/share/man/man1/rda.1.gz"))
        self.use()
        self.upgrade()
        machine.run("dpkg", "--remove", "rda")
        self.assertEqual(machine.show("rda.service", "ActiveState"), "inactive")
        self.assertEqual(machine.run("find", "/opt/rda/bin", "/opt/rda/lib", "/usr/bin/rda", check=False), "")
        self.assertEqual(machine.run("cat", "/etc/rda/rda.toml").splitlines()[0][:6], "remote")

    def upgrade(self) -> None:
        """Install it once more: the service goes on, with what is new."""
        before = self.machine.show("rda", "MainPID")
        self.machine.run("dpkg", "--install", "/var/cache/rda.deb")
        self.eventually(
            lambda: (
                (self.machine.show("rda", "MainPID") not in ("0", before))
                and self.machine.show("rda", "ActiveState") == "active"
            ),
            "the service has been restarted",
            30,
        )

    def use(self) -> None:
        """Configure the service, start it, reload it, and run docker commands."""
        machine = self.machine
        machine.write("/etc/rda/id_ed25519", self.host.key.read_text(), "600", "rda")
        machine.write("/etc/rda/known_hosts", self.host.known_hosts.read_text())
        configuration = [
            f'remote = "{self.host.user}@{self.host.address}:{SSHD_PORT}"',
            'identity = ["/etc/rda/id_ed25519"]',
            'known_hosts = ["/etc/rda/known_hosts"]',
            'ssh_config = "none"',
            f'listen = ["unix:{SOCKET}:mode=660"]',
        ]
        machine.write("/etc/rda/rda.toml", "\n".join(configuration) + "\n")
        machine.systemctl("start", "rda")
        self.assertEqual(machine.show("rda", "ActiveState"), "active", machine.journal())
        docker = ["env", "DOCKER_CONFIG=/tmp", self.host.docker_cli, "-H", f"unix://{SOCKET}"]
        self.assertEqual(machine.run(*docker, "version", "--format", "{{.Server.Os}}"), "linux")
        self.assertIn("connected", machine.run(*docker, "rda", "status"))
        machine.systemctl("reload", "rda")
