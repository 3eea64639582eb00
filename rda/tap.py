"""``twistd rda``: its options, and the service they describe. The only importer of the global reactor."""

from __future__ import annotations

import atexit
import grp
import os
import pwd
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from rda import __version__
from rda.access.admission import Users
from rda.agent_record import state_directory
from rda.config import Config, Outside, load
from rda.errors import ConfigError, RdaError
from rda.proxy.certificates import ServerTLS
from rda.proxy.listeners import endpoint_problem

#: What a second Ctrl-C is told.
STOPPING = "rda is stopping: running calls and the last edits have a few seconds to end"


class Options(usage.Options):
    """The command line; every option is a key of the configuration file too."""

    synopsis = "[options]"
    longdesc = (
        "A local, Docker-compatible endpoint for a Docker daemon on another machine, reached over SSH: published "
        "ports open here, bind mounts come from here."
    )

    optParameters = [
        ["remote", None, None, "where the daemon is: what ssh accepts (alias, user@host[:port], ssh://…)"],
        ["docker", None, None, "the daemon on the remote [default: unix:///var/run/docker.sock]"],
        ["config", None, None, "a TOML file with the same keys; options win"],
        ["sync-root", None, None, "directory on the remote for bind mounts [default: .rda in the login directory]"],
        ["state-dir", None, None, "local directory for rda's state [default: $RDA_STATE_DIR or ~/.local/state/rda]"],
        ["ssh-config", None, None, "ssh_config file to use; 'none' for none [default: ssh's own]"],
        ["tls", None, None, "directory with cert.pem, key.pem and ca.pem: TCP with client certificates"],
    ]
    optFlags = [
        ["accept-new", None, "trust and remember the key of a host that is not in known_hosts yet"],
        ["compression", None, "compress the SSH link (zlib@openssh.com)"],
    ]

    compData = usage.Completions(
        optActions={"config": usage.CompleteFiles("*.toml"), "state-dir": usage.CompleteDirs()},
    )

    def __init__(self) -> None:
        usage.Options.__init__(self)
        self._lists: dict[str, list[str]] = {}

    def _append(self, key: str, value: str) -> None:
        self._lists.setdefault(key, []).append(value)

    def opt_listen(self, endpoint: str) -> None:
        """A Twisted endpoint string to listen on, repeatable [default: tcp:23750:interface=127.0.0.1]."""
        self._append("listen", endpoint)

    def opt_identity(self, path: str) -> None:
        """A private key file, repeatable [default: ssh's own, and ssh-agent]."""
        self._append("identity", path)

    def opt_known_hosts(self, path: str) -> None:
        """A known_hosts file, repeatable [default: ssh's own]."""
        self._append("known_hosts", path)

    def opt_host_key(self, fingerprint: str) -> None:
        """The only host key to trust, as SHA256:…, repeatable."""
        self._append("host_key", fingerprint)

    def opt_publish_address(self, address: str) -> None:
        """Local address for ports published without one, repeatable [default: 127.0.0.1 and ::1]."""
        self._append("publish_address", address)

    def opt_expose_host(self, ports: str) -> None:
        """Ports of this machine for containers, as host.docker.internal; with commas, repeatable [default: none]."""
        self._append("expose_host", ports)

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"rda {__version__}")
        raise SystemExit(0)

    def parseOptions(self, options: Any = None) -> None:
        """Parse; whatever is wrong ends the process with one message that names it, and no traceback."""
        try:
            usage.Options.parseOptions(self, options)
        except usage.UsageError as e:
            raise SystemExit(f"rda: {e}; see 'twistd rda --help'") from None

    def parseArgs(self, *extra: str) -> None:
        """There are none: everything has a name."""
        if extra:
            raise usage.UsageError(f"unexpected argument: {extra[0]}")

    def postOptions(self) -> None:
        """Check everything, the file included; :attr:`settings` is the result."""
        try:
            self.settings = self.load()
        except ConfigError as e:
            raise SystemExit(complaint(e)) from None

    def load(self) -> Config:
        """Read the file, with the options that were given once.

        :raises ConfigError: it cannot be used.
        """
        return load(self._file(), self._given(), _outside())

    def _given(self) -> dict[str, Any]:
        """What was said on the command line, under the file's keys."""
        simple = {k.replace("-", "_"): v for k, v in self.items() if k not in ("config", "version", "help")}
        flags = {"accept_new", "compression"}
        given: dict[str, Any] = {k: v for k, v in simple.items() if v is not None and k not in flags}
        given |= {k: True for k in flags if simple.get(k)}
        return given | self._lists

    def _file(self) -> str | None:
        path = self["config"]
        if path is None:
            return None
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError([f"config: {path}: {getattr(e, 'strerror', None) or 'not UTF-8 text'}"]) from None


def complaint(error: ConfigError) -> str:
    """All problems of a configuration as one message for a terminal."""
    if len(error.problems) == 1:
        return f"rda: {error.problems[0]}"
    lines = [f"rda: {len(error.problems)} problems in the configuration:"]
    return "\n".join(lines + [f"  {problem}" for problem in error.problems])


def _outside() -> Outside:
    return Outside(
        state_dir=str(state_directory()),
        expand=lambda path: str(Path(path).expanduser().absolute()),
        endpoint_problem=_endpoint_problem,
        file_problem=_file_problem,
        tls_problem=_tls_problem,
        users=Users(_uid, _gid),
        is_root=os.geteuid() == 0,
        tells_peers=sys.platform == "linux",
    )


def _file_problem(path: str) -> str | None:
    try:
        with open(path, "rb"):
            return None
    except OSError as e:
        return e.strerror or str(e)


def _tls_problem(directory: str, need_certificate: bool) -> str | None:
    try:
        ServerTLS(directory, need_certificate)
    except RdaError as e:
        return str(e)
    return None


def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _endpoint_problem(description: str, has_tls: bool) -> str | None:
    from twisted.internet import reactor

    return endpoint_problem(reactor, description, has_tls)


def makeService(options: Options) -> IService:
    """The agent for parsed options; called by twistd."""
    from twisted.internet import reactor

    from rda.agent import Agent
    from rda.service_manager import ServiceManager

    keep_time(reactor)
    say: Callable[[str], object] = lambda line: print(line, file=sys.stdout, flush=True)  # noqa: E731
    manager = ServiceManager(os.environ, os.getpid(), reactor)
    agent = Agent(reactor, options.settings, options.load, say, _give_up, manager)
    _reload_on_hangup(agent.reload)
    reactor.callWhenRunning(_stop_once, reactor, say)
    return agent


def _reload_on_hangup(reload: Callable[[], None]) -> None:
    """SIGHUP, which is what ``systemctl reload`` sends, reads the configuration again; until then it kills."""
    from twisted.internet import reactor as installed

    reactor: Any = installed
    signal.signal(signal.SIGHUP, lambda number, frame: reactor.callFromThread(reload))


def _stop_once(reactor: Any, say: Callable[[str], object]) -> None:
    """Have the first signal stop the reactor, and answer those that follow: a second stop would fail, with a traceback.

    :param reactor: running, with its own handlers of signals.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    stop: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}

    def again(number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(say, STOPPING)

    def first(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, again)
        stop[number](number, frame)

    for number in numbers:
        signal.signal(number, first)


def keep_time(reactor: Any) -> None:
    """Have timers go by a clock that nobody sets; it goes on while the machine sleeps, where there is such a one.

    Twisted's go by the time of day. Set back by an hour, by NTP or a virtual machine's host, nothing that waits for
    something would go on for an hour: no edit would be sent, and no lost connection be noticed.

    :param reactor: with no timer yet.
    """
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    reactor.seconds = time.monotonic if boottime is None else partial(time.clock_gettime, boottime)


def _give_up() -> None:
    """Stop the reactor, and have the process end with status 1, for which twistd has no way of its own."""
    from twisted.internet import reactor

    def fail() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    atexit.register(fail)
    reactor.callWhenRunning(reactor.stop)
