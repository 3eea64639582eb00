"""``rda forwards`` and ``rda mirrors``: the two tables, on their own; and their lines in ``rda status``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import time
from typing import Any

from rda.command.base import Command, Exit
from rda.command.endpoint import find_agent
from rda.command.terminal import Terminal, bar, columns, plain
from rda.words import count, duration, size

__all__ = ["FORWARDS", "MIRRORS", "complaint", "forward_lines", "mirror_lines"]

_Described = Mapping[str, Any]


def forward_lines(forwards: Sequence[_Described], indent: str = "") -> list[str]:
    """Published ports, a line each."""
    return columns((_forward(forward) for forward in forwards), indent)


def _forward(forward: _Described) -> list[str]:
    where = f"{forward['local']} -> {plain(forward['name'])} {forward['port']}"
    if forward["reason"]:
        return [where, forward["state"]]
    carried = f"{size(forward['bytes_in'])} in, {size(forward['bytes_out'])} out"
    if forward["dropped"]:
        carried += f", {forward['dropped']:,} dropped"
    connections = forward["connections"]
    return [where, forward["state"], f"{count(connections, 'connection', 'connections')}, {carried}"]


def mirror_lines(mirrors: Sequence[_Described], now: float, indent: str = "") -> list[str]:
    """Bind mounts, a line each."""
    return columns((_mirror(mirror, now) for mirror in mirrors), indent)


def _mirror(mirror: _Described, now: float) -> list[str]:
    mode = "" if mirror["mode"] == "one-way" else f" ({mirror['mode']})"
    return [plain(mirror["source"]) + mode, mirror["state"], _progress(mirror) or _summary(mirror, now)]


def _summary(mirror: _Described, now: float) -> str:
    summary = f"{count(mirror['files'], 'entry', 'entries')}, {size(mirror['bytes'])}"
    if mirror["last_change"] is not None and mirror["latency"] is not None:
        ago = duration(max(0.0, now - mirror["last_change"]))
        summary += f"; last change {ago} ago, there after {duration(mirror['latency'])}"
    return summary


def _progress(mirror: _Described) -> str:
    """How far a transfer is, by bytes where there are any; "" when none is under way."""
    if mirror["state"] != "applying" or not mirror["files_total"]:
        return ""
    done, total = mirror["bytes_done"], mirror["bytes_total"]
    part = done / total if total else mirror["files_done"] / mirror["files_total"]
    said = f"{mirror['files_done']:,} of {mirror['files_total']:,} files, {size(done)} of {size(total)}"
    if mirror["time_left"] is not None:
        said += f", about {duration(max(1.0, mirror['time_left']))} left at {size(mirror['rate'])}/s"
    return f"{bar(part)} {part:4.0%}  {said}"


def _table(
    key: str, lines: Callable[[Sequence[_Described], float], list[str]], nothing: str
) -> Callable[[argparse.Namespace, Terminal], int]:
    """A command that prints one table of the status."""

    def run(options: argparse.Namespace, terminal: Terminal) -> int:
        status = find_agent(options.host).status()
        contexts = [c for c in status["contexts"] if options.context in (None, c["name"])]
        if options.json:
            rows = [{"context": c["name"], **row} for c in contexts for row in c[key]]
            terminal.print(json.dumps(rows, indent=2, ensure_ascii=False))
            return Exit.OK
        for context in contexts:
            if len(contexts) > 1:
                terminal.print(terminal.style(plain(context["name"]), "bold"))
            terminal.print(*(lines(context[key], time()) or [nothing]), *_reasons(context[key]))
        return Exit.OK

    return run


def _reasons(rows: Sequence[_Described]) -> Iterator[str]:
    for row in rows:
        if row.get("reason"):
            yield f"! {row['local']}: {plain(row['reason'])}"
        for nested in row.get("nested", ()):
            yield f"  {plain(nested)} is mounted from the copy of {plain(row['source'])}"
        if row.get("apart"):
            yield f"  {plain(row['source'])} has a copy of its own, and {plain(row['apart'])}"
        for problem in (*row.get("problems", ()), *row.get("conflicts", ())):
            yield "! " + complaint(os.path.join(row["source"], problem["subject"]), problem["message"])


def complaint(subject: str, message: str) -> str:
    """What is wrong with what; many a message names its subject itself."""
    return plain(message if message.startswith(subject) else f"{subject}: {message}")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON, a list (docs/status-schema.rst)")


FORWARDS = Command(
    "forwards",
    "published ports: where they are open here, and why one is not",
    _table("forwards", lambda rows, now: forward_lines(rows), "no ports are published"),
    _configure,
)
MIRRORS = Command(
    "mirrors",
    "bind mounts: what is mirrored, how far it is, and what is wrong with it",
    _table("mirrors", mirror_lines, "nothing is mirrored"),
    _configure,
)
