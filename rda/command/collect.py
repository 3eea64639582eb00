"""``rda gc``: copies on the remote host that no container uses; a list first, and their removal when asked for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rda.command.base import Command, Exit
from rda.command.endpoint import Agent, find_agent
from rda.command.terminal import Terminal, columns, plain
from rda.words import duration, size

__all__ = ["COMMAND"]

#: Copies that are removed with one request: its body is bounded.
AT_ONCE = 500

_Copy = Mapping[str, Any]


def _run(options: argparse.Namespace, terminal: Terminal) -> int:
    agent = find_agent(options.host, options.context)
    # The agent measures every copy over the link first.
    copies: list[_Copy] = agent.ask("GET", "unused", timeout=None)["copies"]
    copies = [copy for copy in copies if copy["age"] >= options.older * 86400]
    if options.json:
        terminal.print(json.dumps(copies, indent=2))
    elif not copies:
        terminal.print("nothing to remove: no copy on the remote host is without a container")
    else:
        terminal.print(*_table(copies))
    if not options.yes:
        if copies and not options.json:
            terminal.print("Nothing has been removed. To remove these: rda gc --yes")
        return Exit.OK
    return _collect(agent, copies, terminal, quiet=options.json)


def _table(copies: Sequence[_Copy]) -> list[str]:
    rows = [(size(c["bytes"]), f"unused for {duration(c['age'])}", plain(c["source"] or c["name"])) for c in copies]
    total = size(sum(c["bytes"] for c in copies))
    return [*columns(rows, ""), f"{total} in {len(copies)} {'copy' if len(copies) == 1 else 'copies'}"]


def _collect(agent: Agent, copies: Sequence[_Copy], terminal: Terminal, quiet: bool) -> int:
    removed: set[str] = set()
    kept: list[Mapping[str, str]] = []
    for start in range(0, len(copies), AT_ONCE):
        names = [copy["name"] for copy in copies[start : start + AT_ONCE]]
        done = agent.ask("POST", "collect", {"names": names}, timeout=None)
        removed.update(done["removed"])
        kept += done["kept"]
    if copies and not quiet:
        terminal.print(f"removed {size(sum(copy['bytes'] for copy in copies if copy['name'] in removed))}")
    for problem in kept:
        terminal.warn(f"{plain(problem['subject'])}: {plain(problem['message'])}")
    return Exit.TROUBLE if kept else Exit.OK


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="remove them; without it they are only listed")
    parser.add_argument(
        "--older", metavar="DAYS", type=float, default=0.0, help="only those unused for so many days [default: 0]"
    )
    parser.add_argument("--json", action="store_true", help="the list as JSON")


COMMAND = Command("gc", "remote copies of bind mounts that no container uses any more", _run, _configure)
