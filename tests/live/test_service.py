"""The units of ``etc/systemd`` under a real systemd: start, ready, reload, crash, watchdog, stop, socket activation."""

from __future__ import annotations

import atexit
import functools
import json
import signal

from tests.live.host import SSHD_PORT, wait_until
from tests.live.machine import Machine
from tests.live.process import fetch, free_port
from tests.live.rootfs import Unsupported
from tests.live.support import LiveTestCase, SkipTest, is_open

#: Seconds in which systemd and rda do what they are told.
SECONDS = 30.0

USER = "alice"
UNIT = f"rda@{USER}"
SOCKET = f"/run/rda-{USER}/docker.sock"
CONFIG = f"/etc/rda/{USER}.toml"


@functools.cache
def _machine_or_reason() -> Machine | str:
    try:
        machine = Machine()
    except Unsupported as reason:
        return str(reason)
    atexit.register(machine.stop)
    return machine


class ServiceTests(LiveTestCase):
    """One instance of the template for each user, as on a jump host."""

    def setUp(self) -> None:
        super().setUp()
        machine = _machine_or_reason()
        if isinstance(machine, str):
            raise SkipTest(machine)
        self.machine = machine
        if USER not in machine.run("cut", "-d:", "-f1", "/etc/passwd").split():
            machine.run("useradd", "--create-home", USER)
            self.furnish("/home/alice/.ssh/id_ed25519", self.host.key.read_text(), "600")
            self.furnish("/home/alice/.ssh/known_hosts", self.host.known_hosts.read_text(), "644")
        self.configure(f'listen = ["unix:{SOCKET}"]')
        self.addCleanup(machine.systemctl, "reset-failed", UNIT, check=False)
        self.addCleanup(machine.systemctl, "stop", f"{UNIT}.service", f"{UNIT}.socket", check=False)

    def furnish(self, path: str, text: str, mode: str) -> None:
        self.machine.write(path, text, mode, USER)
        self.machine.run("chown", USER, path.rpartition("/")[0])

    def configure(self, listen: str, unit: str = "") -> None:
        remote = f'remote = "{self.host.user}@{self.host.address}:{SSHD_PORT}"'
        self.machine.write(CONFIG, f'{remote}\nssh_config = "none"\n{listen}\n')
        drop_in = f"/etc/systemd/system/{UNIT}.service.d/test.conf"
        self.machine.write(drop_in, f"[Service]\n{unit}\n")
        self.machine.systemctl("daemon-reload")

    def docker(self, *words: str) -> str:
        cli, config = self.host.docker_cli, "DOCKER_CONFIG=/tmp"
        return self.machine.run("/usr/bin/env", config, "setpriv", f"--reuid={USER}", "--clear-groups", cli, "-H",
                                f"unix://{SOCKET}", *words)  # fmt: skip

    def start(self) -> None:
        """Start the unit; systemd returns when rda says that it is ready."""
        self.machine.systemctl("start", UNIT)
        self.assertEqual(self.machine.show(UNIT, "ActiveState"), "active", self.machine.journal())

    def test_life(self) -> None:
        """Ready means connected; a crash and a restart bring the ports of running containers back; a stop is clean."""
        port = free_port()
        self.start()
        self.assertIn(f"{self.host.address}:{SSHD_PORT} connected", self.machine.show(UNIT, "StatusText"))
        self.docker(
            "run", "-d", "--name", "web", "-p", f"{port}:80", "busybox", "httpd", "-f", "-p", "80", "-h", "/etc"
        )
        self.eventually(lambda: "root" in fetch(port, "passwd"), "the container answers", SECONDS)
        for change, words in (
            ("crash", ("kill", "--signal=SIGKILL", "--kill-whom=main", UNIT)),
            ("restart", ("restart", UNIT)),
        ):
            with self.subTest(change=change):
                before = self.machine.show(UNIT, "MainPID")
                self.machine.systemctl(*words)
                wait_until(lambda old=before: self.machine.show(UNIT, "MainPID") not in ("0", old), "restart", SECONDS)
                self.eventually(lambda: "root" in fetch(port, "passwd"), "the container answers again", SECONDS)
        self.machine.systemctl("stop", UNIT)
        self.assertEqual(self.machine.show(UNIT, "Result"), "success")
        self.assertFalse(is_open(port))

    def test_socket_is_the_users(self) -> None:
        """The socket is the user's alone, in a directory that only they can enter, and the process is theirs."""
        self.start()
        self.assertEqual(self.machine.run("stat", "-c", "%a %U", SOCKET), f"600 {USER}")
        self.assertEqual(self.machine.run("stat", "-c", "%a %U", SOCKET.rpartition("/")[0]), f"700 {USER}")
        pid = self.machine.show(UNIT, "MainPID")
        self.assertEqual(self.machine.run("stat", "-c", "%U", f"/proc/{pid}"), USER)

    def test_not_ready_before_connected(self) -> None:
        """While the remote host is away the service starts, says why it waits, and is ready once it is connected."""
        self.host.stop_sshd()
        self.addCleanup(self.host.start_sshd)
        self.machine.systemctl("start", "--no-block", UNIT)
        self.eventually(lambda: "refused" in self.machine.show(UNIT, "StatusText"), "the reason is said", SECONDS)
        self.assertEqual(self.machine.show(UNIT, "ActiveState"), "activating")
        self.host.start_sshd()
        self.eventually(lambda: self.machine.show(UNIT, "ActiveState") == "active", "it becomes ready", SECONDS)

    def test_watchdog(self) -> None:
        """A process that does not turn any more is ended and started again."""
        self.configure(f'listen = ["unix:{SOCKET}"]', "WatchdogSec=2\nWatchdogSignal=SIGKILL")
        self.start()
        before = self.machine.show(UNIT, "MainPID")
        self.machine.run("kill", f"-{signal.SIGSTOP.value}", before)
        wait_until(
            lambda: (
                self.machine.show(UNIT, "MainPID") not in ("0", before)
                and self.machine.show(UNIT, "ActiveState") == "active"
            ),
            "the watchdog starts it again",
            SECONDS,
        )

    def test_socket_activation(self) -> None:
        """systemd holds the socket, starts rda for its first client, and keeps it as it is over restarts and stops."""
        self.machine.write(
            f"/etc/systemd/system/{UNIT}.socket",
            f"[Socket]\nListenStream={SOCKET}\nSocketUser={USER}\nSocketMode=0600\nDirectoryMode=0755\nRemoveOnStop=yes\n",
        )
        self.configure(f'listen = ["systemd:domain=UNIX:name={UNIT}.socket"]', "RuntimeDirectoryPreserve=yes")
        self.machine.systemctl("start", f"{UNIT}.socket")
        self.assertEqual(self.machine.show(UNIT, "ActiveState"), "inactive")
        self.assertEqual(json.loads(self.docker("version", "--format", "{{json .Server.Os}}")), "linux")
        self.machine.systemctl("restart", UNIT)
        self.assertEqual(json.loads(self.docker("version", "--format", "{{json .Server.Os}}")), "linux")
        self.machine.systemctl("stop", UNIT)
        self.assertEqual(self.machine.show(f"{UNIT}.socket", "ActiveState"), "active")
        self.assertEqual(self.machine.run("stat", "-c", "%a %U", SOCKET), f"600 {USER}")

    def test_reload(self) -> None:
        """A reload opens what was added, what did not change goes on; a mistake fails, says why, changes nothing."""
        self.start()
        pid, added = self.machine.show(UNIT, "MainPID"), SOCKET.replace("docker", "added")
        self.assertNotEqual(self.machine.run("ls", SOCKET.rpartition("/")[0]).split(), [])
        again = (
            f'[context.added]\nremote = "{self.host.user}@{self.host.address}:{SSHD_PORT}"\nlisten = ["unix:{added}"]'
        )
        for listen, reason, expected in (
            (f'listen = ["unix:{SOCKET}", "tcp:1"]', "listen", ["docker.sock"]),
            (f'listen = ["unix:{SOCKET}"\n', "not TOML", ["docker.sock"]),
            (f'listen = ["unix:{SOCKET}"]\n{again}', "", ["added.sock", "docker.sock"]),
        ):
            self.configure(listen)
            if reason:
                self.assertRaises(AssertionError, self.machine.systemctl, "reload", UNIT)
                self.assertRegex(self.machine.journal(), f"rda: configuration: .*{reason}.*the configuration before it")
            else:
                self.machine.systemctl("reload", UNIT)
            self.assertEqual(self.machine.run("ls", "/run/rda-alice").split(), expected)
        self.assertEqual(self.machine.show(UNIT, "MainPID"), pid)
        self.assertEqual(self.machine.show(UNIT, "ActiveState"), "active")

    def test_users_own(self) -> None:
        """The units for one person work under that person's own systemd, which starts rda for the first client."""
        runtime = "/run/user/" + self.machine.run("id", "-u", USER)
        self.machine.run("install", "-d", "-o", USER, "-m", "700", runtime)
        remote = f'remote = "{self.host.user}@{self.host.address}:{SSHD_PORT}"\nssh_config = "none"'
        listen = 'listen = ["systemd:domain=UNIX:name=rda.socket"]'
        self.furnish("/home/alice/.config/rda/rda.toml", f"{remote}\n{listen}\n", "600")
        for program in ("twistd", "rda"):
            self.machine.run("install", "-D", f"/opt/rda/bin/{program}", f"/home/alice/.local/bin/{program}")
        self.machine.run("chown", "-R", USER, "/home/alice")
        environment = [f"XDG_RUNTIME_DIR={runtime}", "HOME=/home/alice", "DOCKER_CONFIG=/tmp"]
        manager = ["--property=Delegate=yes", "--property=Type=notify", "/lib/systemd/systemd", "--user"]
        self.machine.run(
            "systemd-run", f"--uid={USER}", "--unit=manager", *(f"--setenv={v}" for v in environment), *manager
        )
        self.addCleanup(self.machine.systemctl, "stop", "manager", check=False)
        alice = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "env", *environment]
        self.machine.run(*alice, "systemctl", "--user", "start", "rda.socket")
        socket = f"{runtime}/rda/docker.sock"
        self.assertEqual(self.machine.run("stat", "-c", "%a", socket), "600")
        version = [self.host.docker_cli, "-H", f"unix://{socket}", "version", "--format", "{{.Server.Os}}"]
        self.assertEqual(self.machine.run(*alice, *version), "linux")
        self.assertEqual(self.machine.run(*alice, "systemctl", "--user", "is-active", "rda"), "active")
        self.machine.run(*alice, "systemctl", "--user", "reload", "rda")

    def test_units_are_sound(self) -> None:
        """systemd finds nothing wrong with the units, and what they may do is little."""
        units = ["/etc/systemd/system/rda.service", "/etc/systemd/system/rda@.service"]
        self.assertEqual(self.machine.run("systemd-analyze", "verify", "--man=no", *units), "")
        for unit in units:
            self.machine.run("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=25", unit)
