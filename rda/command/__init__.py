"""``rda``: the command that asks a running agent what it is doing, and tells it what to do.

Each module here declares its subcommands (:class:`rda.command.base.Command`); :data:`COMMANDS` lists them. To add one,
write its module and name it there. What a command asks goes to the agent's own endpoint, below ``/_rda/``
(:mod:`rda.command.endpoint`). Exit codes are in :class:`rda.command.base.Exit`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from rda.command import (
    audit,
    collect,
    completion,
    contexts,
    control,
    doctor,
    lists,
    logs,
    plugin,
    reload,
    status,
    token,
    version,
)
from rda.command.base import Command, CommandError, Exit
from rda.command.terminal import Terminal

__all__ = ["COMMANDS", "main", "make_parser"]

#: In the order in which ``rda --help`` lists them.
COMMANDS: tuple[Command, ...] = (
    status.COMMAND,
    lists.FORWARDS,
    lists.MIRRORS,
    control.FLUSH,
    control.PAUSE,
    control.RESUME,
    control.CONFIRM,
    collect.COMMAND,
    logs.COMMAND,
    reload.COMMAND,
    contexts.COMMAND,
    token.COMMAND,
    doctor.COMMAND,
    audit.COMMAND,
    completion.COMMAND,
    plugin.COMMAND,
    version.COMMAND,
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.exit(Exit.USAGE, f"rda: {message}; see '{self.prog} --help'\n")


def make_parser(prog: str = "rda") -> argparse.ArgumentParser:
    """The parser of the whole command line.

    :param prog: what the user typed: ``rda``, or ``docker rda``.
    """
    parser = _Parser(prog=prog, description="Ask the Remote Docker Agent what it is doing, and tell it what to do.")
    _add_common(parser, None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        own = commands.add_parser(command.name, help=command.help, description=_sentence(command.help))
        command.configure(own)
        _add_common(own, argparse.SUPPRESS)
        own.set_defaults(run=command.run)
    return parser


def _add_common(parser: argparse.ArgumentParser, default: Any) -> None:
    """Which agent, and which of its contexts: said before the subcommand or after it."""
    group = parser.add_argument_group("which agent")
    group.add_argument(
        "-H",
        "--host",
        metavar="ENDPOINT",
        default=default,
        help="its endpoint, as in DOCKER_HOST [default: $DOCKER_HOST, else where it last listened]",
    )
    group.add_argument("--context", metavar="NAME", default=default, help="the context of it that is meant")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def main(arguments: Sequence[str] | None = None, prog: str = "rda") -> int:
    """Run one command; return the exit code.

    :param arguments: without the program's name; None for the process's own.
    """
    terminal = Terminal.here()
    try:
        options = make_parser(prog).parse_args(arguments)
        return int(options.run(options, terminal))
    except CommandError as error:
        terminal.warn(str(error))
        return error.code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough. Python would complain once more when it closes it.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
