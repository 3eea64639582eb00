"""``rda doctor``: looks at everything that rda needs, here and on the remote host, and says what to do."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rda.agent_record import RecordedContext, read_record, state_directory
from rda.command.base import Command, CommandError, Exit, Unreachable
from rda.command.endpoint import START, find_agent
from rda.command.terminal import Terminal, plain
from rda.doctor import here
from rda.doctor.finding import Finding, State, fail, ok

if TYPE_CHECKING:
    from rda.config import Config

__all__ = ["COMMAND"]

_COLOURS = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}

#: The agent's options that say how to reach the remote host: the doctor has the same.
_OPTIONS = {
    "remote": "the remote host [default: that of the agent which last ran here]",
    "config": "the agent's configuration file",
    "docker": "the daemon on the remote",
    "ssh-config": "the ssh_config file, or none",
    "sync-root": "the directory for bind mounts on the remote",
    "state-dir": "the agent's state directory",
}
_REPEATED = {"identity": "a private key file", "known-hosts": "a known_hosts file", "listen": "where rda listens"}

_Show = Callable[[Finding], object]


def _run(options: argparse.Namespace, terminal: Terminal) -> int:
    found: list[Finding] = []

    def show(finding: Finding) -> None:
        found.append(finding)
        if not options.json:
            _print(finding, terminal)

    _examine(options, show)
    if options.json:
        terminal.print(json.dumps([asdict(one) | {"state": one.state.value} for one in found], indent=2))
    return Exit.TROUBLE if any(one.state is State.FAIL for one in found) else Exit.OK


def _print(finding: Finding, terminal: Terminal) -> None:
    state = terminal.style(f"{finding.state.value:<4}", "bold", _COLOURS[finding.state])
    terminal.print(f"{state}  {finding.subject}: {plain(finding.message)}")
    if finding.cure:
        terminal.print(f"      -> {plain(finding.cure)}")


def _examine(options: argparse.Namespace, show: _Show) -> None:
    directory, contexts = _state_dir(options), list[RecordedContext]()
    try:
        directory, contexts = _contexts(options)
    except CommandError as error:
        show(fail("configuration", str(error), "Correct it; etc/rda.toml shows every key"))
    else:
        if not contexts:
            what = "which remote host is meant" if options.context is None else f"a context {options.context}"
            show(fail("configuration", f"it is not known {what}", "Say --remote user@host, or --config FILE"))
    status, host, reason = _agent(options)
    listeners = [one for context in (status or {}).get("contexts", ()) for one in context["listeners"]]
    wanted = [description for context in contexts for description in context.listen]
    checks: tuple[Iterable[Finding], ...] = (
        here.agent(status, host, reason),
        () if _words(options) else here.whose(status, host, read_record(directory).pid, directory),
        here.listeners(wanted, listeners),
        here.docker_command(os.environ, listeners),
        here.state(directory),
        here.inotify(),
        here.descriptors(),
    )
    for check in checks:
        for finding in check:
            show(finding)
    _examine_remotes(contexts, show)


def _agent(options: argparse.Namespace) -> tuple[Mapping[str, Any] | None, str, str]:
    try:
        agent = find_agent(options.host)
        return agent.status(), agent.host, ""
    except Unreachable as error:
        # What to do is the finding's own.
        first, *reasons = [line.strip() for line in str(error).removesuffix(START).splitlines()]
        return None, "", f"{first} {'; '.join(reasons)}".rstrip("; ")


def _state_dir(options: argparse.Namespace) -> Path:
    return Path(options.state_dir).expanduser() if options.state_dir else state_directory()


def _contexts(options: argparse.Namespace) -> tuple[Path, list[RecordedContext]]:
    """What to look at: as the options say, or else as the agent wrote down when it last ran.

    :raises CommandError: the options or the configuration file are wrong.
    """
    words = _words(options)
    directory = _state_dir(options)
    if words:
        config = _load(words)
        directory = Path(config.state_dir)
        contexts = [RecordedContext.of(context, ()) for context in config.contexts]
    else:
        contexts = list(read_record(directory).contexts)
    if options.context is not None:
        contexts = [context for context in contexts if context.name == options.context]
    return directory, contexts


def _words(options: argparse.Namespace) -> list[str]:
    """The options in the agent's own form; none when nothing says which remote is meant."""
    values = vars(options)
    words = [f"--{name}={values[_key(name)]}" for name in _OPTIONS if values[_key(name)] is not None]
    words += [f"--{name}={one}" for name in _REPEATED for one in values[_key(name)] or ()]
    return words if options.remote or options.config else []


def _key(name: str) -> str:
    return name.replace("-", "_")


def _load(words: Sequence[str]) -> Config:
    from rda.tap import Options

    parsed = Options()
    try:
        parsed.parseOptions(list(words))
    except SystemExit as error:
        raise CommandError(str(error.code).removeprefix("rda: ")) from error
    config: Config = parsed.settings
    return config


def _examine_remotes(contexts: Sequence[RecordedContext], show: _Show) -> None:
    if not contexts:
        return
    from twisted.internet import task
    from twisted.internet.defer import Deferred

    async def examine(reactor: Any) -> None:
        from rda.doctor.there import Examination
        from rda.ssh.link import Link

        for context in contexts:
            if len(contexts) > 1:
                show(ok("context", f"{context.name}, which is {context.remote.target}"))
            link = Link(reactor, context.remote, context.docker)
            async for finding in Examination(reactor, link, context).run():
                show(finding)

    try:
        task.react(lambda reactor: Deferred.fromCoroutine(examine(reactor)))
    except SystemExit as end:
        if end.code:
            raise CommandError("the doctor itself failed; please report what is printed above") from end


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="a list of objects")
    group = parser.add_argument_group("what to look at, as for twistd rda")
    for name, text in _OPTIONS.items():
        group.add_argument(f"--{name}", help=text)
    for name, text in _REPEATED.items():
        group.add_argument(f"--{name}", action="append", help=text + ", repeatable")


COMMAND = Command("doctor", "look at everything that rda needs, and say what is wrong and what to do", _run, _configure)
