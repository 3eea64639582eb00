"""``rda version``: of this command, and of the agent if one runs."""

from __future__ import annotations

import argparse

from rda import __version__
from rda.command.base import Command, Exit, Unreachable
from rda.command.endpoint import find_agent
from rda.command.terminal import Terminal, plain

__all__ = ["COMMAND"]


def _run(options: argparse.Namespace, terminal: Terminal) -> int:
    terminal.print(f"rda {__version__}")
    try:
        agent = find_agent(options.host)
        terminal.print(f"agent {plain(str(agent.status().get('version')))} at {agent.host}")
    except Unreachable:
        terminal.print("no agent answers")
    return Exit.OK


COMMAND = Command("version", "the versions of this command and of the running agent", _run)
