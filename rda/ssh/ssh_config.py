"""From what the user wrote after ``--remote`` to where and how to connect, as ssh(1) would.

``ssh -G`` does the work when the ssh program is there, so that Host, Match, Include and the rest mean exactly what they
mean to ssh; else :mod:`rda.ssh.ssh_config_file` does what it can. The result is a :class:`rda.ssh.target.Target`, with
its jump hosts.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorProcess
from twisted.logger import Logger

from rda.config import Remote
from rda.errors import ConfigError
from rda.ssh.allowed import KEYWORDS
from rda.ssh.program import run_program
from rda.ssh.ssh_config_file import CUMULATIVE, Settings, read_settings
from rda.ssh.target import Named, Surroundings, Target, make_target, parse_target, tilde

__all__ = ["resolve"]

_log = Logger()

#: Jump hosts in a row; more is a loop in the configuration.
MAX_JUMPS = 8


#: Seconds for ``ssh -G``: it may run the commands of ``Match exec``.
RESOLVE_TIMEOUT = 30.0


def resolve(
    reactor: IReactorProcess,
    remote: Remote,
    surroundings: Surroundings,
    find_ssh: Callable[[], str | None] | None = None,
) -> Deferred[Target]:
    """Find out what ``remote.target`` means.

    :param find_ssh: finds the ssh program; None means on PATH.
    :returns: fails with :class:`rda.errors.ConfigError` when the configuration cannot be used.
    """
    program = (find_ssh or (lambda: shutil.which("ssh", path=surroundings.environ.get("PATH"))))()
    return Deferred.fromCoroutine(_Resolver(reactor, remote, surroundings, program).top())


class _Resolver:
    def __init__(
        self, reactor: IReactorProcess, remote: Remote, surroundings: Surroundings, program: str | None
    ) -> None:
        self._reactor = reactor
        self._remote = remote
        self._surroundings = surroundings
        self._program = program

    async def top(self) -> Target:
        target = await self._target(parse_target(self._remote.target), None, MAX_JUMPS)
        if self._remote.compression:
            target = replace(target, compression=True)
        return target

    async def _target(self, named: Named, jumps: Sequence[str] | None, depth: int) -> Target:
        """Resolve one host; ``jumps``, when not None, are those to go through, whatever its configuration says."""
        if depth < 0:
            raise ConfigError([f"remote: more than {MAX_JUMPS} jump hosts in a row; ProxyJump goes round in circles"])
        settings = await self._settings(named)
        target = make_target(settings, named, self._remote, self._surroundings, await self._defaults(settings))
        if jumps is None:
            jumps = _jumps(settings)
        elif jumps:
            target = replace(target, proxy_command="")
        if jumps and not target.proxy_command:
            *before, last = jumps
            hop = _parse_jump(last)
            if not _is_same(hop, named, target):
                target = replace(target, via=await self._target(hop, before or None, depth - 1))
        return target

    async def _settings(self, named: Named) -> Settings:
        if self._program is None:
            return self._read_files(named)
        # Only after "--" and checked by parse_target: nothing of this can be read as an option.
        arguments = ["-G"]
        if self._remote.ssh_config:
            arguments += ["-F", os.path.expanduser(self._remote.ssh_config)]
        if named.user:
            arguments += ["-l", named.user]
        if named.port is not None:
            arguments += ["-p", str(named.port)]
        return await self._ask_ssh([*arguments, "--", named.host], named.host)

    async def _defaults(self, settings: Settings) -> Settings:
        """What ssh says of algorithms where nothing is configured: the same is then no wish of anybody's."""
        if self._program is None or not any(keyword in settings for keyword in KEYWORDS):
            return {}
        key = (self._program, _modified(self._program))
        if key not in _defaults:
            _defaults.clear()
            _defaults[key] = await self._ask_ssh(["-G", "-F", os.devnull, "--", "localhost"], "localhost")
        return _defaults[key]

    async def _ask_ssh(self, arguments: list[str], host: str) -> Settings:
        assert self._program is not None
        result = await run_program(
            self._reactor, self._program, arguments, self._surroundings.environ, timeout=RESOLVE_TIMEOUT
        )
        if result.status != 0:
            detail = result.errors.decode("utf-8", "replace").strip()[-500:]
            raise ConfigError([f"remote: ssh cannot resolve {host}: {detail or 'ssh -G failed'}"])
        return _parse_g(result.output.decode("utf-8", "surrogateescape"))

    def _read_files(self, named: Named) -> Settings:
        wanted = self._remote.ssh_config
        home_config = os.path.join(self._surroundings.home, ".ssh", "config")
        paths = [os.path.expanduser(wanted)] if wanted else [home_config, "/etc/ssh/ssh_config"]
        if wanted == "none":
            return {}
        texts = [(path, text) for path in paths if (text := _read_text(path)) is not None]
        if wanted and not texts:
            raise ConfigError([f"ssh_config: {wanted} cannot be read"])
        return read_settings(texts, named.host, named.user, self._included)

    def _included(self, pattern: str) -> Iterable[tuple[str, str]]:
        path = tilde(pattern, self._surroundings)
        if not os.path.isabs(path):
            path = os.path.join(self._surroundings.home, ".ssh", path)
        for found in sorted(glob.glob(path)):
            text = _read_text(found)
            if text is not None:
                yield found, text


#: What ssh has by default, for the program that was asked last: it is the same until that is replaced.
_defaults: dict[tuple[str, int], Settings] = {}


def _modified(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _parse_g(output: str) -> Settings:
    settings: Settings = {}
    for line in output.splitlines():
        keyword, _, value = line.partition(" ")
        if keyword in CUMULATIVE:
            settings.setdefault(keyword, []).append(value)
        else:
            settings.setdefault(keyword.lower(), [value])
    return settings


def _jumps(settings: Settings) -> list[str]:
    value = settings.get("proxyjump", ["none"])[0]
    return [] if value.lower() in ("none", "") else [hop.strip() for hop in value.split(",")]


def _parse_jump(text: str) -> Named:
    try:
        return parse_target(text)
    except ConfigError as error:
        raise ConfigError([f"ssh_config: ProxyJump: {error}"]) from error


def _is_same(hop: Named, named: Named, target: Target) -> bool:
    """Whether a jump host is the host itself: one that matches its own ``Host *`` is reached directly, as ssh does."""
    return (
        hop.host.lower() in (named.host.lower(), target.host.lower())
        and hop.port in (None, target.port)
        and hop.user in ("", target.user)
    )


def _read_text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except OSError:
        return None
