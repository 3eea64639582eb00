"""Checks of the remote host, over an SSH connection of the doctor's own.

What is made there is a directory for a moment, below the sync root. Nothing else is changed.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from rda.agent_record import RecordedContext
from rda.api import DaemonAPI
from rda.doctor.advice import about_link
from rda.doctor.finding import Finding, fail, ok, warn
from rda.doctor.here import judge_space
from rda.errors import ChannelRefused, CommandFailed, RdaError
from rda.interfaces import IRemoteFiles
from rda.ssh.docker_socket import parse_docker
from rda.ssh.link import Link
from rda.status import LinkStatus

__all__ = ["Examination"]

#: Seconds for one step; a connection attempt has limits of its own.
STEP_SECONDS = 30.0
CONNECT_SECONDS = 60.0

#: Bytes of a command's output that are read.
MOST_OUTPUT = 64 << 10

#: Seconds that the clocks may differ: file times decide what has changed.
CLOCK_SECONDS = 60.0

#: Sessions on one connection that rda uses at a time: files, bulk transfers and commands.
ENOUGH_SESSIONS = 4

#: RFC 4254, section 5.1: the reason for a refusal that is the server's policy.
ADMINISTRATIVELY_PROHIBITED = 1

#: Tells what a user's shell can tell, a line each; the paths come over standard input, never into the command.
PROBE = (
    b"exec sh -c '"
    b'read -r socket; read -r root; echo "user $(id -un)"; echo "groups $(id -Gn)"; '
    b'if [ -S "$socket" ]; then echo "socket $(ls -ldL "$socket")"; [ -w "$socket" ] && echo "writable yes"; fi; '
    b'for p in docker python3 perl; do command -v $p >/dev/null 2>&1 && echo "program $p"; done; '
    b'[ -n "$root" ] && df -Pk "$root" 2>/dev/null | while read -r _ _ _ free _; do echo "free $free"; done; '
    b"exit 0'"
)


class _Output(Protocol):
    """Gives a command its input and collects its output."""

    def __init__(self, text: bytes, done: Deferred[bytes]) -> None:
        self._input = text
        self._done = done
        self._output = b""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._input)
        self.transport.loseWriteConnection()  # type: ignore[attr-defined]

    def dataReceived(self, data: bytes) -> None:
        self._output += data
        if len(self._output) > MOST_OUTPUT:
            self.transport.abortConnection()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._done.called:
            self._done.callback(self._output if not isinstance(reason.value, RdaError) else reason)


class Examination:
    """Examines the remote of one context.

    :param link: made for it, not started yet.
    :param wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        link: Link,
        context: RecordedContext,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = reactor
        self._link = link
        self._context = context
        self._wall_clock = wall_clock
        self._api = DaemonAPI(reactor, link.docker())
        self._root = ""

    async def run(self) -> AsyncIterator[Finding]:
        """Start the link, look at everything, and stop it again."""
        try:
            status = await self._within(self._connected(), CONNECT_SECONDS)
            if status.state != "connected":
                yield fail("ssh", status.reason or "no connection", about_link(status.reason))
                return
            yield ok("ssh", f"{status.remote} answers and lets us in ({status.server.removeprefix('SSH-2.0-')})")
            async for finding in self._examine():
                yield finding
        except RdaError as error:
            yield fail("ssh", str(error), about_link(str(error)))
        finally:
            await self._api.close()
            await self._link.stopService()

    def _within(self, work: Deferred[Any], seconds: float = STEP_SECONDS) -> Deferred[Any]:
        def too_late(result: object, timeout: float) -> None:
            raise RdaError(f"there was no answer within {timeout:.0f} s")

        return work.addTimeout(seconds, self._clock, onTimeoutCancel=too_late)

    def _connected(self) -> Deferred[LinkStatus]:
        """Fire when the first attempt has succeeded or failed."""
        done: Deferred[LinkStatus] = Deferred()

        def changed(status: LinkStatus) -> None:
            if status.state in ("connected", "waiting", "failed") and not done.called:
                done.callback(status)

        self._link.add_observer(changed)
        self._link.startService()
        return done

    async def _examine(self) -> AsyncIterator[Finding]:
        failure = await self._docker()
        files = await self._open_files()
        probed, refused = await self._probe()
        yield self._judge_docker(failure, probed)
        if refused is None:
            yield ok("commands", "can be run there")
            for finding in self._judge_probe(probed):
                yield finding
        else:
            yield warn(
                "commands",
                f"cannot be run there: {_why_not_run(refused)}",
                "Allow them (no ForceCommand, no command= in authorized_keys): UDP ports and fast syncs need them",
            )
        async for finding in self._judge_files(files):
            yield finding
        yield await self._forwarding()
        for finding in self._server():
            yield finding

    # -- Docker

    async def _docker(self) -> RdaError | None:
        """Why the daemon cannot be asked; None when it can, and :attr:`_daemon` is what it said."""
        self._daemon: dict[str, Any] = {}
        try:
            self._daemon = await self._within(Deferred.fromCoroutine(self._api.info()))
        except RdaError as error:
            return error
        self._root = str(self._daemon.get("DockerRootDir") or "")
        return None

    def _judge_docker(self, failure: RdaError | None, probed: dict[str, list[str]]) -> Finding:
        where = self._context.docker
        if failure is None:
            via = self._link.status().socket_via
            return ok("docker", f"dockerd {self._daemon.get('ServerVersion')} answers at {where} (via {via})")
        if not parse_docker(where).path or not probed:
            return fail("docker", str(failure), "Is dockerd running there, and may this user use it? See also --docker")
        user = " ".join(probed.get("user", ["the user"]))
        if "socket" not in probed:
            return fail(
                "docker",
                f"there is no socket {where} on the remote host",
                "Start Docker there (sudo systemctl start docker), install it, or say where it listens: --docker",
            )
        if "writable" not in probed:
            owner = probed["socket"][0].split()
            group = owner[3] if len(owner) > 3 else "docker"
            return fail(
                "docker group",
                f"{user} may not use {where}, which is for the group {group}; "
                f"the groups of {user}: {' '.join(probed['groups'])}",
                f"sudo usermod -aG {group} {user} on the remote host (whoever is in that group is root there); then "
                "restart rda",
            )
        return fail(
            "docker",
            f"nothing answers at {where}: {failure}",
            "dockerd is not running, or is stuck: sudo systemctl restart docker on the remote host, and see "
            "journalctl -u docker there",
        )

    # -- commands

    async def _probe(self) -> tuple[dict[str, list[str]], RdaError | None]:
        """What the user's shell tells, by key; and why it tells nothing."""
        try:
            output = await self._within(self._run(PROBE, f"{parse_docker(self._context.docker).path}\n{self._root}\n"))
        except RdaError as error:
            return {}, error
        found: dict[str, list[str]] = {}
        for line in output.decode("utf-8", "replace").splitlines():
            key, _, value = line.partition(" ")
            found.setdefault(key, []).append(value)
        if "user" not in found:
            return {}, RdaError("something else was run than what was asked for")
        return found, None

    def _run(self, line: bytes, text: str) -> Deferred[bytes]:
        done: Deferred[bytes] = Deferred()
        factory = Factory.forProtocol(lambda: _Output(text.encode("utf-8", "surrogateescape"), done))

        def failed(failure: Failure) -> None:
            if not done.called:
                done.errback(failure)

        self._link.command(line).connect(factory).addErrback(failed)
        return done

    def _judge_probe(self, probed: dict[str, list[str]]) -> list[Finding]:
        found = []
        if not {"python3", "perl"} & set(probed.get("program", ())):
            found.append(
                warn(
                    "udp",
                    "there is neither python3 nor perl on the remote host",
                    "Install one of them to have published UDP ports forwarded",
                )
            )
        for free in probed.get("free", ())[-1:]:
            if free.isdecimal():
                found.append(judge_space("docker's disk there", self._root, int(free) * 1024))
        return found

    # -- files

    async def _open_files(self) -> tuple[IRemoteFiles, bytes] | Exception:
        """The remote host's files and the login directory; or why there are none.

        It stays open while commands are run, which shows whether the server allows more than one session at a time.
        """
        try:
            files: IRemoteFiles = await self._within(self._link.files())
            return files, await self._within(files.real_path(b"."))
        except (RdaError, OSError) as error:
            return error

    async def _judge_files(self, found: tuple[IRemoteFiles, bytes] | Exception) -> AsyncIterator[Finding]:
        if isinstance(found, Exception):
            yield fail(
                "sftp",
                f"files cannot be transferred: {found}",
                "Have sshd_config say 'Subsystem sftp internal-sftp', and the account not be restricted: bind mounts "
                "need it",
            )
            return
        yield ok("sftp", "files can be transferred")
        files, home = found
        root = os.fsencode(self._context.sync_root)
        path = root if root.startswith(b"/") else home.rstrip(b"/") + b"/" + root
        async for finding in self._sync_root(files, path):
            yield finding

    async def _sync_root(self, files: IRemoteFiles, path: bytes) -> AsyncIterator[Finding]:
        shown = os.fsdecode(path)
        tried = path + b"/.doctor-" + secrets.token_hex(8).encode()
        made: list[bytes] = []
        try:
            for directory in (path, tried):
                try:
                    await self._within(files.make_directory(directory, 0o700))
                    made.append(directory)
                except FileExistsError:
                    pass
            there = await self._within(files.attributes(tried))
            free = await self._within(files.space(path))
        except (RdaError, OSError) as error:
            yield self._not_made(shown, error)
            return
        finally:
            for directory in reversed(made):
                try:
                    await self._within(files.remove_directory(directory))
                except (RdaError, OSError):
                    pass  # it is empty, and a later attempt leaves no more
        yield ok("sync root", f"{shown} can be written to")
        yield self._judge_clock(there.mtime)
        if free is not None:
            yield judge_space("disk space there", shown, free)

    def _not_made(self, shown: str, error: Exception) -> Finding:
        reason = getattr(error, "strerror", None) or str(error)
        if "space" in reason.lower() or "quota" in reason.lower():
            return fail("disk space there", f"{shown} cannot be written to: {reason}", "Free some space there (rda gc)")
        return fail(
            "sync root",
            f"{shown} cannot be written to: {reason}",
            "Let the remote user write there, or choose another directory with --sync-root: bind mounts are kept "
            "there. Is its disk full (df), or mounted read-only?",
        )

    def _judge_clock(self, there: int) -> Finding:
        difference = there - self._wall_clock()
        if abs(difference) <= CLOCK_SECONDS:
            return ok("clock", "the remote host's agrees with this machine's")
        ahead = "ahead of" if difference > 0 else "behind"
        return warn(
            "clock",
            f"the remote host's clock is {abs(difference):.0f} s {ahead} this machine's",
            "Have both set by NTP (timedatectl set-ntp true): builds and certificates go by file times and the clock",
        )

    # -- what the server allows

    async def _forwarding(self) -> Finding:
        """Whether published ports can be reached; nothing listens at the port that is tried, as a rule."""
        allowed = ok("port forwarding", "is allowed")
        try:
            protocol = await self._within(self._link.tcp("127.0.0.1", 9).connect(Factory.forProtocol(Protocol)))
        except ChannelRefused as error:
            if error.code != ADMINISTRATIVELY_PROHIBITED:
                return allowed
            return fail(
                "port forwarding",
                "the SSH server does not allow it",
                "Have sshd_config say 'AllowTcpForwarding yes' (or local), without PermitOpen or 'restrict' in "
                "authorized_keys: published ports need it",
            )
        except RdaError as error:
            return warn("port forwarding", str(error), "Try again")
        protocol.transport.abortConnection()
        return allowed

    def _server(self) -> list[Finding]:
        found = []
        via = self._link.status().socket_via
        if via in ("dial-stdio", "socat"):
            found.append(
                warn(
                    "socket forwarding",
                    f"the SSH server does not allow it; the Docker socket is reached by {via}, which is slower",
                    "Have sshd_config say 'AllowStreamLocalForwarding yes'",
                )
            )
        if self._link.session_limit < ENOUGH_SESSIONS:
            found.append(
                warn(
                    "sessions",
                    f"the SSH server allows {self._link.session_limit} at a time on one connection (MaxSessions): rda "
                    "opens more connections, and syncs are slower",
                    "Have sshd_config say 'MaxSessions 10', the default, or more",
                )
            )
        return found


def _why_not_run(error: RdaError) -> str:
    """Without the command itself, which nobody has typed."""
    if isinstance(error, CommandFailed) and error.exit_status is not None:
        return f"one that rda sent ended with status {error.exit_status}"
    return str(error)
