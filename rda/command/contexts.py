"""``rda context``: Docker contexts that lead to the agent, so that ``docker context use NAME`` does."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from rda.agent_record import RecordedContext, read_record, state_directory
from rda.command.base import Command, CommandError, Exit
from rda.command.docker_contexts import DockerContexts
from rda.command.terminal import Terminal, columns, plain
from rda.config import DEFAULT_CONTEXT

__all__ = ["COMMAND"]


def _run(options: argparse.Namespace, terminal: Terminal) -> int:
    deed = {"install": _install, "list": _list, "remove": _remove}[options.deed]
    return deed(options, DockerContexts(os.environ), terminal)


def _install(options: argparse.Namespace, contexts: DockerContexts, terminal: Terminal) -> int:
    host, what = _endpoint(options)
    certificates = options.tls or (os.environ.get("DOCKER_CERT_PATH") if os.environ.get("DOCKER_TLS_VERIFY") else None)
    contexts.install(options.name, host, what, Path(certificates).absolute() if certificates else None)
    terminal.print(f"The Docker context {options.name} leads to {host}. To use it: docker context use {options.name}")
    if os.environ.get("DOCKER_HOST"):
        terminal.warn("DOCKER_HOST is set, and wins over any context: unset DOCKER_HOST")
    return Exit.OK


def _endpoint(options: argparse.Namespace) -> tuple[str, str]:
    """Where the agent's context listens, and what is behind it."""
    if options.host:
        return options.host, options.host
    directory = state_directory()
    recorded = {context.name: context for context in read_record(directory).contexts}
    found = _choose(recorded, options)
    if not found.listeners:
        raise CommandError(f"the context {found.name} is not running; start rda first, or say its endpoint with --host")
    # A UNIX socket is the safer one, and free of port numbers.
    listeners = sorted(found.listeners, key=lambda listener: not listener.startswith("unix:"))
    return listeners[0], f"{found.name} on {found.remote.target}"


def _choose(recorded: dict[str, RecordedContext], options: argparse.Namespace) -> RecordedContext:
    """The agent's context that is meant: the one that was said, the one of the same name, or the only one."""
    if not recorded:
        raise CommandError(
            f"no agent has listened yet (by {state_directory()}); start one, or say its endpoint with --host"
        )
    for name in (options.context, options.name, DEFAULT_CONTEXT if len(recorded) == 1 else None):
        if name is not None and name in recorded:
            return recorded[name]
        if name is not None and name == options.context:
            break
    if options.context is None and len(recorded) == 1:
        return next(iter(recorded.values()))
    raise CommandError(f"which of rda's contexts? Say it with --context: {', '.join(sorted(recorded))}")


def _list(options: argparse.Namespace, contexts: DockerContexts, terminal: Terminal) -> int:
    current = contexts.current()
    ours = [context for context in contexts.all() if context.ours]
    if options.json:
        shown = [{"name": one.name, "host": one.host, "current": one.name == current} for one in ours]
        terminal.print(json.dumps(shown, indent=2))
    elif not ours:
        terminal.print("No Docker context leads to rda. To make one: rda context install NAME")
    else:
        rows = [(one.name + (" *" if one.name == current else ""), one.host, plain(one.description)) for one in ours]
        terminal.print(*columns(rows, ""))
    return Exit.OK


def _remove(options: argparse.Namespace, contexts: DockerContexts, terminal: Terminal) -> int:
    contexts.remove(options.name)
    terminal.print(f"The Docker context {options.name} is removed")
    return Exit.OK


def _configure(parser: argparse.ArgumentParser) -> None:
    deeds = parser.add_subparsers(dest="deed", required=True, metavar="COMMAND")
    install = deeds.add_parser("install", help="make a Docker context that leads to the agent, or bring it up to date")
    install.add_argument("name", metavar="NAME", help="its name, and the agent's context of that name if there is one")
    # Those of every command, which these may come after as well.
    install.add_argument("-H", "--host", metavar="ENDPOINT", default=argparse.SUPPRESS, help="the agent's endpoint")
    install.add_argument("--context", metavar="NAME", default=argparse.SUPPRESS, help="the agent's context")
    install.add_argument(
        "--tls", metavar="DIRECTORY", help="with ca.pem, cert.pem and key.pem [default: $DOCKER_CERT_PATH]"
    )
    listing = deeds.add_parser("list", help="the Docker contexts that lead to an agent")
    listing.add_argument("--json", action="store_true", help="as JSON")
    remove = deeds.add_parser("remove", help="remove one of them")
    remove.add_argument("name", metavar="NAME")


COMMAND = Command("context", "Docker contexts for the agent: docker context use NAME", _run, _configure)
