"""``rda flush``, ``pause``, ``resume`` and ``confirm``: what people tell the mirrors to do."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from rda.command.base import Command, Exit
from rda.command.endpoint import find_agent
from rda.command.terminal import Terminal

__all__ = ["CONFIRM", "FLUSH", "PAUSE", "RESUME"]


def _tell(action: str) -> Callable[[argparse.Namespace, Terminal], int]:
    """A command that posts one action and returns when it is done."""

    def run(options: argparse.Namespace, terminal: Terminal) -> int:
        path = None if options.path is None else os.path.abspath(options.path)
        # Nobody knows how long a flush takes; the agent, or Ctrl-C, ends it.
        find_agent(options.host, options.context).ask("POST", action, {"path": path}, timeout=None)
        return Exit.OK

    return run


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", help="a mirrored directory or file, or something in one [default: all]")


def _configure_one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="a mirrored directory or file, or something in one")


FLUSH = Command("flush", "return when both sides are equal", _tell("flush"), _configure)
PAUSE = Command("pause", "let no file travel until rda resume", _tell("pause"), _configure)
RESUME = Command("resume", "let files travel again after rda pause", _tell("resume"), _configure)
CONFIRM = Command(
    "confirm",
    "carry out what a halted mirror holds back, such as removing everything",
    _tell("confirm"),
    _configure_one,
)
