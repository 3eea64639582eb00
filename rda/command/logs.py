"""``rda logs``: the end of the agent's log, wherever the log itself goes to."""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from rda.command.base import Command, Exit
from rda.command.endpoint import find_agent
from rda.command.events import events
from rda.command.terminal import Terminal, plain

__all__ = ["COMMAND"]

_COLOURS = {"warn": "yellow", "error": "red", "critical": "red"}


def _show(line: Mapping[str, Any], options: argparse.Namespace, terminal: Terminal) -> None:
    if options.json:
        terminal.print(json.dumps(line))
        return
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["time"]))
    colour = _COLOURS.get(line["level"])
    first, *more = line["text"].splitlines() or [""]
    level = "" if line["level"] == "info" else f"{line['level']}: "
    terminal.print(f"{terminal.style(at, 'dim')} {terminal.style(level + plain(first), *filter(None, [colour]))}")
    terminal.print(*("    " + plain(rest) for rest in more))


def _run(options: argparse.Namespace, terminal: Terminal) -> int:
    agent = find_agent(options.host)
    lines = agent.ask("GET", "logs")["lines"]
    for line in deque(lines, maxlen=options.lines):
        _show(line, options, terminal)
    if options.follow:
        seen = lines[-1]["number"] if lines else -1
        for line in events(agent, "logs/events"):
            if line["number"] > seen:
                _show(line, options, terminal)
    return Exit.OK


def _lines(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="stay, and print lines as they come")
    parser.add_argument("-n", "--lines", type=_lines, default=100, help="how many of the last lines [default: 100]")
    parser.add_argument("--json", action="store_true", help="an object for each line")


COMMAND = Command("logs", "the end of the agent's log", _run, _configure)
