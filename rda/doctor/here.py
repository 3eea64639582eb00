"""Checks of this machine. Blocking; each returns findings and changes nothing.

Where a check reads the system, the place it reads from is a parameter, for tests.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rda import __version__
from rda.access import peers
from rda.agent_record import RECORD_NAME, read_record
from rda.docker_cli import configuration_directory
from rda.doctor.finding import Finding, fail, ok, warn

__all__ = ["LOW_SPACE", "NO_SPACE", "agent", "descriptors", "docker_command", "inotify", "listeners", "space", "state"]

#: Bytes free below which a disk is soon full, and below which it is.
LOW_SPACE = 1_000_000_000
NO_SPACE = 50_000_000

#: One directory of a mirrored tree is one watch; a large project has tens of thousands.
ENOUGH_WATCHES = 65_536
ENOUGH_INSTANCES = 128

#: Two descriptors for each stream that is relayed.
ENOUGH_DESCRIPTORS = 4096

_PROC = Path("/proc")


def state(directory: Path) -> Iterator[Finding]:
    """Whether rda can keep its state, and that of before can be read."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        yield _not_writable(directory, existing, error)
        return
    yield from space("disk space here", existing)
    yield from _saved(directory)
    if existing is directory:
        yield ok("state directory", f"{directory} can be written to")
    else:
        yield ok("state directory", f"{directory} can be made")


def _not_writable(directory: Path, existing: Path, error: OSError) -> Finding:
    subject = "state directory"
    if error.errno == errno.ENOSPC:
        return fail(
            "disk space here", f"the disk of {existing} is full", "Free some space, or choose another --state-dir"
        )
    if error.errno == errno.EROFS:
        return fail(subject, f"{existing} is on a read-only file system", "Choose another one with --state-dir")
    cure = f"Make it writable (chown -R $USER {directory}), or choose another one with --state-dir"
    return fail(subject, f"{existing} cannot be written to: {error.strerror}", cure)


def space(subject: str, path: Path) -> Iterator[Finding]:
    """Whether there is room left on a disk."""
    found = os.statvfs(path)
    free = found.f_bavail * found.f_frsize
    yield judge_space(subject, str(path), free)


def judge_space(subject: str, where: str, free: int) -> Finding:
    """Say whether so many free bytes are enough."""
    shown = f"{free / 1e9:.1f} GB free at {where}" if free >= 1e8 else f"{free / 1e6:.0f} MB free at {where}"
    if free < NO_SPACE:
        return fail(
            subject, f"only {shown}", "Free some space there (docker system prune, rda gc), or use another disk"
        )
    if free < LOW_SPACE:
        return warn(subject, f"only {shown}", "Free some space there soon (docker system prune, rda gc)")
    return ok(subject, shown)


def _saved(directory: Path) -> Iterator[Finding]:
    """State that another version left, or that is damaged."""
    for path in sorted(directory.glob("*/owner")):
        try:
            owner = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            owner = ""
            reason = getattr(error, "strerror", None) or "it is not text"
        else:
            reason = "it is not an identity"
        if not re.fullmatch("[0-9a-f]{32}", owner):
            yield fail(
                "saved state",
                f"{path} cannot be used: {reason}",
                "Restore it from a backup; or remove it, and rda begins anew: containers and copies that it made "
                "before are then not its own any more",
            )
    found = read_record(directory).version
    if (directory / RECORD_NAME).exists() and _newer(found, __version__):
        yield fail(
            "saved state",
            f"it was last used by rda {found}, and this is {__version__}",
            "Upgrade rda, or use another --state-dir: an older rda may not understand what a newer one left",
        )


def _newer(one: str, other: str) -> bool:
    def numbers(version: str) -> list[int]:
        return [int(n) for n in re.findall(r"\d+", version)]

    return numbers(one) > numbers(other)


def inotify(proc: Path = _PROC) -> Iterator[Finding]:
    """Whether large trees can be watched; only Linux has these limits."""
    limits = proc / "sys/fs/inotify"
    if not limits.exists():
        return
    watches = int((limits / "max_user_watches").read_text())
    instances = int((limits / "max_user_instances").read_text())
    found = f"{watches} watches and {instances} instances for each user"
    wanted = []
    if watches < ENOUGH_WATCHES:
        wanted.append("fs.inotify.max_user_watches=524288")
    if instances < ENOUGH_INSTANCES:
        wanted.append("fs.inotify.max_user_instances=512")
    if wanted:
        yield warn(
            "inotify limits",
            f"only {found}: larger trees are looked at every few seconds instead of watched",
            f"sudo sysctl {' '.join(wanted)}, and the same in /etc/sysctl.d/ to keep it",
        )
    else:
        yield ok("inotify limits", found)


def descriptors(limit: int | None = None) -> Iterator[Finding]:
    """Whether enough files and connections can be open at a time."""
    if limit is None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= limit < ENOUGH_DESCRIPTORS:
        yield warn(
            "open files",
            f"a process may open only {limit}",
            "Raise the hard limit: nofile in /etc/security/limits.conf, LimitNOFILE= in a systemd unit",
        )


def agent(status: Mapping[str, Any] | None, host: str, reason: str) -> Iterator[Finding]:
    """Whether an agent runs, and what it complains of.

    :param status: its status document, None when none answers.
    :param host: where it was found; ``reason``: why none was.
    """
    if status is None:
        yield warn("agent", reason, "Start it: twistd -n rda --remote user@host, or its service")
        return
    if status["version"] != __version__:
        yield warn(
            "agent", f"rda {status['version']} runs at {host}, and this command is {__version__}", "Restart the agent"
        )
    else:
        yield ok("agent", f"runs at {host}")
    for context in status["contexts"]:
        complaints = [*context["problems"]]
        for mirror in context["mirrors"]:
            complaints += mirror["problems"]
        for one in complaints:
            yield warn(f"agent, context {context['name']}", f"{one['subject']}: {one['message']}", "See rda status")


def whose(status: Mapping[str, Any] | None, host: str, recorded: int, directory: Path) -> Iterator[Finding]:
    """Whether what is known of the remote hosts was written down by the agent that answers.

    :param status: its status document, None when none answers; ``host``: where it was found.
    :param recorded: the process that wrote the record in a state directory, 0 for none.
    """
    if status is not None and status["process"]["pid"] != recorded:
        yield warn(
            "agent's state",
            f"the agent at {host} has its own elsewhere: what is said of remote hosts below is what another agent was "
            f"told, which used {directory}",
            "Say --state-dir, or set RDA_STATE_DIR, as for the agent that is meant",
        )


_TCP = re.compile(r"tcp6?:(?:port=)?(\d+)(?=:|$)")


def listeners(descriptions: Sequence[str], ours: Collection[str]) -> Iterator[Finding]:
    """Whether the endpoints can be listened on, where no agent does.

    :param descriptions: Twisted server endpoint strings.
    :param ours: what answers as an agent, as in DOCKER_HOST.
    """
    for description in descriptions:
        port = _TCP.match(description)
        if port is not None and int(port[1]):
            yield _tcp_listener(int(port[1]), description, ours)
        elif description.startswith("unix:"):
            yield _unix_listener(description.split(":")[1].removeprefix("address="), ours)


def _tcp_listener(port: int, description: str, ours: Collection[str]) -> Finding:
    subject = "listening"
    if any(re.search(rf":{port}/?$", one) for one in ours):
        return ok(subject, f"the agent does at port {port}")
    interface = re.search(r":interface=([^:\\]+|\\:\\:1)", description)
    address = interface[1].replace("\\", "") if interface else ""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(1)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return fail(subject, f"port {port}: {error.strerror}", "Choose another endpoint with --listen")
        who = peers.who_listens(port) or "another program"
        return fail(
            subject,
            f"port {port} is taken by {who}",
            f"Stop it, or choose another port: --listen tcp:{port + 1}:interface=127.0.0.1",
        )
    return ok(subject, f"port {port} is free")


def _unix_listener(path: str, ours: Collection[str]) -> Finding:
    if f"unix://{path}" in ours:
        return ok("listening", f"the agent does at {path}")
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        return fail("listening", f"{directory} for the socket {path} is not there", f"mkdir -p {directory}")
    if not os.access(directory, os.W_OK):
        return fail("listening", f"{directory} cannot be written to", "Choose another endpoint with --listen")
    return ok("listening", f"{path} can be made")


def docker_command(environ: Mapping[str, str], ours: Collection[str]) -> Iterator[Finding]:
    """Whether the docker command is there, and talks to rda.

    :param ours: what rda listens on, as in DOCKER_HOST.
    """
    subject = "docker command"
    if shutil.which("docker", path=environ.get("PATH")) is None:
        yield warn(
            subject, "there is none on PATH", "Install docker's client (docker-cli); its daemon is not needed here"
        )
        return
    host, source = _docker_host(environ)
    shown = sorted(ours)[0] if ours else "tcp://localhost:23750"
    if _same(host) in {_same(one) for one in ours}:
        yield ok(subject, f"talks to rda ({source})")
    elif not ours:
        yield ok(subject, f"talks to {host} ({source}); rda does not run")
    else:
        cure = f"export DOCKER_HOST={shown}"
        if source == "DOCKER_HOST" and environ.get("DOCKER_CONTEXT"):
            cure += ", and unset DOCKER_CONTEXT"
        yield fail(subject, f"talks to {host} ({source}), not to rda", cure)


def _same(host: str) -> str:
    return re.sub(r"//(127\.0\.0\.1|\[::1\]):", "//localhost:", host.rstrip("/"))


def _docker_host(environ: Mapping[str, str]) -> tuple[str, str]:
    """Where the docker command would connect to, and what says so."""
    if environ.get("DOCKER_HOST"):
        return environ["DOCKER_HOST"], "DOCKER_HOST"
    directory = configuration_directory(environ)
    name, source = environ.get("DOCKER_CONTEXT", ""), "DOCKER_CONTEXT"
    if not name:
        name, source = str(_json(directory / "config.json").get("currentContext") or ""), "docker context"
    if name in ("", "default"):
        return "unix:///var/run/docker.sock", "its default"
    known = _json(directory / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json")
    endpoint = (known.get("Endpoints") or {}).get("docker") or {}
    return str(endpoint.get("Host") or "an unknown endpoint"), f"{source} {name}"


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
