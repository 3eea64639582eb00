"""A throwaway remote host on this machine: own file system, network, sshd and dockerd. ``python -m tests.live.host``.

It is a Debian root file system (:mod:`tests.live.rootfs`) in namespaces of its own: a local path does not exist there,
its 127.0.0.1 is not ours, and its ports are reached only over its address, which makes tests of forwards and bind
mounts honest. It is created once, reused while it lives and removed by ``clean``. Needs root on Linux with apt.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.live import rootfs
from tests.live.rootfs import Unsupported

#: The exit code for "not on this machine", as automake's and others' test runners use it.
EXIT_UNSUPPORTED = 77

USER = "dev"
SSHD_PORT = 22
REGISTRY_PORT = 5000

#: Seconds that a daemon may take from its start until it answers.
START_SECONDS = 60.0

#: Runs outside: gives the remote its file system, then becomes its PID 1. Arguments: the root directory, the host name.
#: /dev is the machine's; the cgroup controllers are mounted as the machine has them (version 1 ones one by one).
ENTER_ROOT = r"""
set -eu
root=$1
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
groups=$root/sys/fs/cgroup
if grep -q '^[1-9][0-9]*:[^n]' /proc/self/cgroup; then
    mount -t tmpfs -o mode=755 tmpfs "$groups"
    while IFS=: read -r number controllers path; do
        [ "$number" != 0 ] || continue
        mkdir "$groups/${controllers#name=}"
        mount -t cgroup -o "$controllers" cgroup "$groups/${controllers#name=}"
    done </proc/self/cgroup
else
    mount -t cgroup2 cgroup2 "$groups"
fi
mkdir -p "$root/run/sshd" "$root/run/lock" "$root/.machine"
hostname "$2"
cd "$root"
pivot_root . .machine
umount -l /.machine
exec /bin/bash -c 'touch /run/booted; sleep infinity & while :; do wait; done'
"""


def default_directory() -> Path:
    """Return where remote hosts are kept: ``$RDA_REMOTE_HOST_DIR``, else in the user's cache directory."""
    chosen = os.environ.get("RDA_REMOTE_HOST_DIR")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "rda-remote-host"


def wait_until(holds: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
    """Return when ``holds()`` is true; raise TimeoutError naming ``what`` when it is not after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


def call(*command: str | Path, **options: Any) -> str:
    """Run a command of the machine and return its output; its errors go where ours go."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


class RemoteHost:
    """One throwaway remote host.

    :param name: tells hosts apart that live at the same time (each has its own file system and network).
    :param directory: where all of them are kept.
    """

    user = USER

    def __init__(self, name: str = "", directory: Path | None = None) -> None:
        self.name = name or os.environ.get("RDA_REMOTE_HOST_NAME") or "default"
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", self.name):
            raise ValueError(f"not a name for a remote host: {self.name!r} (lower-case letters, digits, hyphens)")
        self.cache = (directory or default_directory()).absolute()
        self.base = self.cache / "base"
        self.directory = self.cache / "hosts" / self.name
        self.key = self.directory / "id_ed25519"
        self.known_hosts = self.directory / "known_hosts"
        self.docker_config = self.directory / "docker"
        self._tree = self.directory / "root"
        self._state_file = self.directory / "state.json"
        # Network names are the machine's: made of the directory, so that hosts of two caches never meet.
        identity = hashlib.sha256(str(self.directory).encode()).hexdigest()[:8]
        self._namespace = f"rda-{identity}"
        self._interface = f"rda{identity}"

    # What it is

    @property
    def state(self) -> dict[str, Any] | None:
        """The running host's ``pid`` (of its PID 1, as seen here), ``started`` and ``network``; None when not alive."""
        # Without its interface the address would lead out of this machine.
        network = Path("/run/netns", self._namespace), Path("/sys/class/net", self._interface)
        return self._running() if all(path.exists() for path in network) else None

    def _running(self) -> dict[str, Any] | None:
        """The state of a host whose PID 1 lives, with or without a network."""
        try:
            state: dict[str, Any] = json.loads(self._state_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return state if _start_time(state["pid"]) == state["started"] else None

    @property
    def pid(self) -> int:
        """The host's PID 1 as this machine sees it. Raises RuntimeError when the host is not alive."""
        state = self.state
        if state is None:
            raise RuntimeError("the throwaway remote host is not up: python -m tests.live.host up")
        pid: int = state["pid"]
        return pid

    @property
    def address(self) -> str:
        """The host's IPv4 address, only ever told while the host is there to answer at it."""
        assert self.pid
        network = ipaddress.ip_network(self.state["network"])  # type: ignore[index]
        return str(network[2])

    @property
    def root(self) -> Path:
        """The host's root directory, as it sees it itself."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def docker_url(self) -> str:
        """The daemon's own socket, with nothing between: what rda is compared with."""
        return f"unix://{self.root}/run/docker.sock"

    @property
    def docker_cli(self) -> str:
        """A docker client that runs here: the machine's own, else the remote file system's."""
        return shutil.which("docker") or str(self.base / "usr/bin/docker")

    # Its life

    def up(self) -> None:
        """Make the host live and serve, whatever is there already. Raises :class:`Unsupported`."""
        rootfs.require_supported()
        with self._locked():
            if self.state is None:
                rootfs.install_programs()
                rootfs.build(self.base)
                self._kill_leftovers()
                self._furnish()
                self._boot()
            self.start_sshd()
            self.start_dockerd()
            self._import_images()
            self._write_known_hosts()

    def down(self) -> None:
        """End the host and all its processes; its file system stays."""
        with self._locked():
            self._kill_leftovers()

    def clean(self) -> None:
        """End every host of this cache directory and remove everything."""
        rootfs.require_supported()
        if not self.cache.exists():
            return
        for directory in sorted((self.cache / "hosts").glob("*")):
            RemoteHost(directory.name, self.cache).down()
        rootfs.remove_tree(self.cache)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.cache.mkdir(parents=True, exist_ok=True)
        with (self.cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _furnish(self) -> None:
        """Give the host its own copy of the file system, its user and the user's key."""
        if not self._tree.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            copy = self.directory / "root.unfinished"
            rootfs.remove_tree(copy)
            call("cp", "-a", "--reflink=auto", self.base, copy)
            call("chroot", copy, "useradd", "--create-home", "--shell", "/bin/bash", "--groups", "docker", USER)
            copy.rename(self._tree)
        if not self.key.exists():
            call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "throwaway remote host", "-f", self.key)
        plugins = self.base / "usr/libexec/docker/cli-plugins"
        self.docker_config.mkdir(exist_ok=True)
        (self.docker_config / "config.json").write_text(json.dumps({"cliPluginsExtraDirs": [str(plugins)]}))
        authorized = self._tree / "home" / USER / ".ssh"
        call("chroot", self._tree, "install", "-d", "-m", "700", "-o", USER, "-g", USER, f"/home/{USER}/.ssh")
        shutil.copy(self.key.with_suffix(".pub"), authorized / "authorized_keys")

    def _boot(self) -> None:
        """Make the network and start PID 1."""
        network = _free_network()
        here, there = ("ip",), ("ip", "-n", self._namespace)
        call(*here, "netns", "add", self._namespace)
        call(*here, "link", "add", self._interface, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
        call(*here, "address", "add", f"{network[1]}/{network.prefixlen}", "dev", self._interface)
        call(*here, "link", "set", self._interface, "up")
        call(*there, "address", "add", f"{network[2]}/{network.prefixlen}", "dev", "eth0")
        call(*there, "link", "set", "lo", "up")
        call(*there, "link", "set", "eth0", "up")
        command = ["nsenter", f"--net=/run/netns/{self._namespace}", "unshare", "--mount", "--pid", "--uts", "--ipc"]
        command += ["--fork", "--kill-child", "--propagation", "private", "bash", "-c", ENTER_ROOT, "enter-root"]
        command += [str(self._tree), f"remote-{self.name}"]
        with (self.directory / "boot.log").open("wb") as log:
            outer = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            )
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")

        def booted() -> bool:
            if outer.poll() is not None:
                raise RuntimeError(f"the remote host did not boot: {(self.directory / 'boot.log').read_text()}")
            inner = children.read_text().split()
            return bool(inner) and Path("/proc", inner[0], "root", "run/booted").exists()

        wait_until(booted, "the remote host boots")
        pid = int(children.read_text().split()[0])
        state = {"pid": pid, "started": _start_time(pid), "network": str(network)}
        self._state_file.write_text(json.dumps(state))

    def _kill_leftovers(self) -> None:
        """End what is left of a host that was here: its processes and its network."""
        state = self._running()
        if state is not None:
            os.kill(state["pid"], signal.SIGKILL)  # PID 1: the kernel ends the others with it
            wait_until(lambda: self._running() is None, "the remote host's processes end")
        self._state_file.unlink(missing_ok=True)
        if Path("/sys/class/net", self._interface).exists():
            call("ip", "link", "delete", self._interface)  # both ends go at once; with the namespace, some time later
        if Path("/run/netns", self._namespace).exists():
            call("ip", "netns", "delete", self._namespace)

    def _import_images(self) -> None:
        """Give the daemon the image that the tests run, made of busybox-static."""
        if self.docker("image", "inspect", "busybox:latest", check=False).returncode != 0:
            archive = rootfs.busybox_archive(self.base)
            self.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", input=archive)

    def _write_known_hosts(self) -> None:
        self.known_hosts.write_text(self.scan_host_keys(SSHD_PORT))

    def scan_host_keys(self, port: int) -> str:
        """Return the known_hosts lines of the sshd at ``port``, as ssh-keyscan(1) finds them."""
        return call("ssh-keyscan", "-p", str(port), self.address, stderr=subprocess.DEVNULL)

    # Working on it

    def inside(self, *command: str, user: str = "root") -> list[str]:
        """Return the command line that runs ``command`` on the host, in all its namespaces."""
        entered = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--uts", "--ipc", "--net", "--wd"]
        if user != "root":
            return [*entered, "runuser", "--login", user, "--command", shlex.join(command)]
        return [*entered, *command]

    def run(self, *command: str, user: str = "root", check: bool = True, **options: Any) -> subprocess.CompletedProcess:
        """Run a command on the host; its output is captured, as bytes."""
        return subprocess.run(self.inside(*command, user=user), check=check, capture_output=True, **options)

    @property
    def docker_environment(self) -> dict[str, str]:
        """The environment of a docker client of this machine that uses the host's own socket."""
        ours = {"DOCKER_HOST": self.docker_url, "DOCKER_CONFIG": str(self.docker_config)}
        return {k: v for k, v in os.environ.items() if k != "DOCKER_CONTEXT"} | ours

    def docker(self, *words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess:
        """Run the docker client of this machine on the host's own socket."""
        options = {"env": self.docker_environment, **options}
        return subprocess.run([self.docker_cli, *words], check=check, capture_output=True, **options)

    def listeners(self) -> set[tuple[str, int]]:
        """Return the (address, port) pairs that are listened on over TCP on the host."""
        lines = self.run("ss", "-Hltn").stdout.decode().splitlines()
        pairs = (line.split()[3].rpartition(":") for line in lines)
        return {(address.strip("[]"), int(port)) for address, _, port in pairs}

    def _daemon(self, *command: str) -> None:
        """Start a long-running program as a child of the host's PID 1."""
        log = f"/var/log/{os.path.basename(command[0])}.log"
        script = f"exec setsid --fork {shlex.join(command)} </dev/null >>{log} 2>&1"
        self.run("bash", "-c", script)

    def _pid_of(self, pid_file: str) -> int | None:
        """The process (numbered as the host numbers it) that a PID file names, if it is alive."""
        script = f'pid=$(cat {shlex.quote(pid_file)}) && [ -d "/proc/$pid" ] && echo "$pid"'
        found = self.run("bash", "-c", script, check=False).stdout
        return int(found) if found else None

    def _end(self, pid_file: str, name: str) -> None:
        pid = self._pid_of(pid_file)
        if pid is not None:
            self.run("kill", str(pid))
            wait_until(lambda: self._pid_of(pid_file) is None, f"{name} ends")

    def start_dockerd(self) -> None:
        """Start dockerd, unless it is running, and return when it answers."""
        if self._pid_of("/run/docker.pid") is None:
            # A daemon that was killed leaves its PID file; the next one refuses to start if the number lives again.
            self.run("rm", "-f", "/run/docker.pid")
            self._daemon("/usr/sbin/dockerd", "--storage-driver=overlay2", "--host=unix:///run/docker.sock")
        wait_until(lambda: self.docker("version", check=False).returncode == 0, "dockerd answers")

    def stop_dockerd(self) -> None:
        """Stop dockerd (it stops its containers) and return when it is gone."""
        self._end("/run/docker.pid", "dockerd")

    def restart_dockerd(self) -> None:
        """Stop dockerd and start it again, as ``systemctl restart docker`` does."""
        self.stop_dockerd()
        self.start_dockerd()

    def start_registry(self) -> str:
        """Start Debian's docker-registry, unless it is running; return its address as the host's daemon knows it.

        It wants no passwords: only the host itself reaches it.
        """
        address = f"127.0.0.1:{REGISTRY_PORT}"
        if not self._is_bound(REGISTRY_PORT):
            storage = {"filesystem": {"rootdirectory": "/var/lib/docker-registry"}}
            settings = {"version": "0.1", "storage": storage, "http": {"addr": address}}  # JSON is YAML
            self.run("tee", "/etc/docker/registry/open.yml", input=json.dumps(settings).encode())
            self._daemon("/usr/bin/docker-registry", "serve", "/etc/docker/registry/open.yml")
        wait_until(lambda: self._is_bound(REGISTRY_PORT), "the registry listens")
        return address

    def _is_bound(self, port: int) -> bool:
        return any(bound == port for _, bound in self.listeners())

    def start_sshd(self, port: int = SSHD_PORT, **options: str) -> None:
        """Start an sshd at ``port``, unless one is running there.

        :param options: sshd_config(5) keywords that differ from Debian's own configuration, e.g. ``MaxSessions="1"``.
        """
        pid_file = f"/run/sshd-{port}.pid"
        if self._pid_of(pid_file) is None:
            settings = {"Port": str(port), "PidFile": pid_file, **options}
            # The first value given for a keyword wins, so ours come before the distribution's.
            lines = [f"{keyword} {value}" for keyword, value in settings.items()]
            text = "\n".join([*lines, "Include /etc/ssh/sshd_config", ""])
            self.run("tee", f"/etc/ssh/sshd_config_{port}", input=text.encode())
            self._daemon("/usr/sbin/sshd", "-D", "-e", "-f", f"/etc/ssh/sshd_config_{port}")
        wait_until(lambda: self._is_bound(port), f"sshd listens at {port}")

    def stop_sshd(self, port: int = SSHD_PORT) -> None:
        """Stop the listening sshd at ``port``; the connections it has accepted live on."""
        self._end(f"/run/sshd-{port}.pid", "sshd")

    def drop_ssh_connections(self) -> None:
        """Kill the server processes of all accepted SSH connections; the listening sshd stays."""
        self.run("pkill", "-KILL", "-f", "sshd-session:", check=False)

    def cut_network(self) -> None:
        """Take the host off the network: packets to it vanish, and nobody is told."""
        # The host's own end: taking ours down would remove the route, and packets would leave by the default one.
        call("ip", "-n", self._namespace, "link", "set", "eth0", "down")

    def restore_network(self) -> None:
        """Put the host back on the network."""
        call("ip", "-n", self._namespace, "link", "set", "eth0", "up")
        wait_until(lambda: "LOWER_UP" in call("ip", "link", "show", self._interface), "the network is back")


def _start_time(pid: int) -> int | None:
    """When a process started, in clock ticks after the machine: with its number, that names it for good."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _free_network() -> ipaddress.IPv4Network:
    """A private /24 that no address or route of this machine touches."""
    taken = []
    for line in call("ip", "-4", "-oneline", "route", "show", "table", "all").splitlines():
        for word in line.split()[:2]:
            with contextlib.suppress(ValueError):
                taken.append(ipaddress.IPv4Network(word, strict=False))
    for network in ipaddress.IPv4Network("10.213.0.0/16").subnets(new_prefix=24):
        if not any(network.overlaps(other) for other in taken if other.prefixlen > 8):
            return network
    raise Unsupported("every network of 10.213.0.0/16 is in use on this machine")


def describe(host: RemoteHost) -> str:
    """Return what a person needs to use the host."""
    return "\n".join(
        [
            f"remote host   {host.user}@{host.address}  (its PID 1 is {host.pid} here)",
            f"identity      {host.key}",
            f"known hosts   {host.known_hosts}",
            f"log in        ssh -i {host.key} -o UserKnownHostsFile={host.known_hosts} {host.user}@{host.address}",
            f"its dockerd   DOCKER_CONFIG={host.docker_config} {host.docker_cli} -H {host.docker_url} ps",
        ]
    )


def main(arguments: Sequence[str]) -> int:
    """Carry out one command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.live.host", description=__doc__)
    parser.add_argument("--name", default="", help="which host (default: $RDA_REMOTE_HOST_NAME or 'default')")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="make it live, and print how to use it")
    commands.add_parser("down", help="end it; its file system stays")
    commands.add_parser("clean", help="end and remove all hosts")
    commands.add_parser("status", help="print how to use it; exit code 3 when it is not up")
    commands.add_parser("shell", help="a root shell on it")
    runner = commands.add_parser("exec", help="run a command on it, as root")
    runner.add_argument("words", nargs=argparse.REMAINDER)
    chosen = parser.parse_args(arguments)
    host = RemoteHost(chosen.name)
    try:
        return _carry_out(host, chosen.command, getattr(chosen, "words", []))
    except Unsupported as reason:
        print(f"not on this machine: {reason}", file=sys.stderr)
        return EXIT_UNSUPPORTED


def _carry_out(host: RemoteHost, command: str, words: list[str]) -> int:
    if command in ("down", "clean"):
        getattr(host, command)()
        return 0
    if command == "up":
        host.up()
    elif host.state is None:
        print("the throwaway remote host is not up: python -m tests.live.host up", file=sys.stderr)
        return 3
    if command in ("up", "status"):
        print(describe(host))
        return 0
    return subprocess.run(host.inside(*(words or ["bash", "-l"]))).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
