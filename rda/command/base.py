"""What every subcommand of ``rda`` is made of: how it is declared, how it fails, and the exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from rda.command.terminal import Terminal

__all__ = ["Command", "CommandError", "Exit", "Unreachable"]


class Exit(IntEnum):
    """What the process's exit code says; documented in docs/command.rst.

    :cvar TROUBLE: something does not work; it is printed.
    :cvar UNREACHABLE: no agent answers.
    :cvar REFUSED: the agent answered that it will not, or cannot, do what was asked for.
    :cvar USAGE: the command line is wrong (``EX_USAGE`` of sysexits.h).
    :cvar INTERRUPTED: by Ctrl-C, as shells number it.
    """

    OK = 0
    TROUBLE = 1
    UNREACHABLE = 2
    REFUSED = 3
    USAGE = 64
    INTERRUPTED = 130


class CommandError(Exception):
    """Ends the command with a message for the user: what happened, to what, and what to do next.

    :ivar code: the exit code.
    """

    code: Exit = Exit.REFUSED


class Unreachable(CommandError):
    """No agent answers; the message says where it was looked for and what to do."""

    code = Exit.UNREACHABLE


def _nothing(parser: argparse.ArgumentParser) -> None:
    """Take no arguments."""


@dataclass(frozen=True)
class Command:
    """One subcommand.

    :ivar name: as typed.
    :ivar help: one line for ``rda --help``.
    :ivar run: does it, given the parsed options and where to print; returns the exit code. Modules that are slow to
        import (twisted) are imported in here.
    :ivar configure: declares its arguments.
    """

    name: str
    help: str
    run: Callable[[argparse.Namespace, Terminal], int]
    configure: Callable[[argparse.ArgumentParser], None] = _nothing
