"""What the doctor says of broken set-ups between here and a real sshd and dockerd, and when nothing is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.broken_setups import THERE
from tests.live.host import call
from tests.live.process import throwaway_options
from tests.live.support import COMMAND_SECONDS, LiveTestCase

#: Where sshd configurations other than the host's own are tried, and how many set-ups at a time.
FIRST_PORT = 2231
AT_ONCE = 4

Setups = dict[str, Callable[[], list[dict[str, Any]]]]


class Doctor(LiveTestCase):
    """The doctor runs as a process of its own, as a user runs it."""

    def examine(self, code: int | None = None, **options: str) -> list[dict[str, Any]]:
        """Run the doctor; return its findings.

        :param options: those that differ from what leads to the host.
        """
        given = {
            **throwaway_options(self.host),
            "state_dir": str(self.directory()),
            "listen": "tcp:0:interface=127.0.0.1",
            **options,
        }
        words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "SSH_"))}
        done = subprocess.run(
            [sys.executable, "-m", "rda.command", "doctor", "--json", *words],
            env={**environ, "DOCKER_HOST": f"tcp://127.0.0.1:{self.rda.port}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            start_new_session=True,  # without a terminal, on which to ask for passphrases
            check=False,
        )
        self.assertEqual(done.stderr, b"")
        if code is not None:
            self.assertEqual(done.returncode, code, done.stdout.decode())
        return json.loads(done.stdout)

    def key(self) -> str:
        path = self.directory() / "other"
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path)
        return str(path)

    def locked_key(self) -> str:
        """The right key, with a passphrase."""
        path = self.directory() / "locked"
        shutil.copy(self.host.key, path)
        call("ssh-keygen", "-q", "-p", "-N", "secret", "-f", path)
        return str(path)

    def known(self, text: str) -> str:
        path = self.directory() / "known_hosts"
        path.write_text(text)
        return str(path)

    def sshd(self, number: int, **settings: str) -> list[dict[str, Any]]:
        """Examine over an sshd with some settings of its own."""
        port = FIRST_PORT + number
        self.host.start_sshd(port, **settings)
        try:
            remote = f"{self.host.user}@{self.host.address}:{port}"
            return self.examine(remote=remote, known_hosts=self.known(self.host.scan_host_keys(port)))
        finally:
            self.host.stop_sshd(port)

    def other_key(self) -> list[dict[str, Any]]:
        kind, blob, *_ = Path(self.key() + ".pub").read_text().split()
        return self.examine(known_hosts=self.known(f"{self.host.address} {kind} {blob}\n"))

    def no_group(self) -> list[dict[str, Any]]:
        self.host.run("gpasswd", "--delete", self.host.user, "docker")
        try:
            return self.examine()
        finally:
            self.host.run("gpasswd", "--add", self.host.user, "docker")

    def no_daemon(self) -> list[dict[str, Any]]:
        self.host.stop_dockerd()
        try:
            return self.examine()
        finally:
            self.host.start_dockerd()

    def disk(self, options: str, *then: str) -> list[dict[str, Any]]:
        """Examine with the sync root on a small file system of its own."""
        self.host.run("mkdir", "-p", "/mnt/ro")
        self.host.run("mount", "-t", "tmpfs", "-o", f"size=64k,mode=1777,{options}", "tmpfs", "/mnt/ro")
        try:
            if then:
                self.host.run(*then, check=False)
            return self.examine(sync_root="/mnt/ro/mirrors")
        finally:
            self.host.run("umount", "--lazy", "/mnt/ro")  # what the doctor ran there may not have ended

    def altering(self) -> Setups:
        """Those that change the host itself."""
        return {
            "no docker group": self.no_group,
            "dockerd stopped": self.no_daemon,
            "read-only disk there": lambda: self.disk("ro"),
            "full disk there": lambda: self.disk("rw", "dd", "if=/dev/zero", "of=/mnt/ro/filler", "bs=4k"),
        }

    def setups(self) -> Setups:
        """Those that do not, which can be examined at the same time."""
        user, address = self.host.user, self.host.address
        return {
            "DNS fails": lambda: self.examine(remote=f"{user}@no-such-host.invalid"),
            "host down": lambda: self.examine(remote=f"{user}@{address.rpartition('.')[0]}.{self.nobody()}"),
            "sshd stopped": lambda: self.examine(remote=f"{user}@{address}:1"),
            "unknown host key": lambda: self.examine(known_hosts=self.known("")),
            "changed host key": self.other_key,
            "wrong key": lambda: self.examine(identity=self.key()),
            "wrong user": lambda: self.examine(remote=f"stranger@{address}"),
            "key with a passphrase, no ssh-agent": lambda: self.examine(identity=self.locked_key()),
            "socket missing": lambda: self.examine(docker="unix:///run/none.sock"),
            "no SFTP": lambda: self.sshd(0, Subsystem="sftp /bin/false"),
            "no commands": lambda: self.sshd(1, ForceCommand="internal-sftp"),
            "one session only": lambda: self.sshd(2, MaxSessions="1"),
            "no socket forwarding": lambda: self.sshd(3, AllowStreamLocalForwarding="no"),
            "no port forwarding": lambda: self.sshd(4, AllowTcpForwarding="no"),
            "sync root not writable": lambda: self.examine(sync_root="/root/mirrors"),
        }

    def nobody(self) -> int:
        """The last part of an address beside the remote host's that nobody has: the network's other one is ours."""
        return int(self.host.address.rpartition(".")[2]) + 1

    def test_broken_setups(self):
        """The cause and the cure of each are named."""
        setups, altering = self.setups(), self.altering()
        self.assertEqual({*setups, *altering}, set(THERE))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            examined = {name: pool.submit(make) for name, make in setups.items()}
        wrong = {name: THERE[name].problem(done.result()) for name, done in examined.items()}
        wrong |= {name: THERE[name].problem(make()) for name, make in altering.items()}
        self.assertEqual("\n".join(f"{name}: {problem}" for name, problem in wrong.items() if problem), "")

    def test_well(self):
        """Where everything is as it should be, every line says ok, and nothing is left on the remote host."""
        before = self.host.run("find", "/home", "-mindepth", "2").stdout
        findings = self.examine(code=0)
        bad = [one for one in findings if one["state"] == "fail"]
        self.assertEqual(bad, [])
        subjects = {one["subject"] for one in findings if one["state"] == "ok"}
        wanted = {
            "agent",
            "docker command",
            "state directory",
            "ssh",
            "docker",
            "commands",
            "sftp",
            "sync root",
            "clock",
        }
        self.assertLessEqual(wanted, subjects)
        self.assertEqual(self.host.run("find", "/home", "-mindepth", "2").stdout, before)
