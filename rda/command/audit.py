"""``rda audit``: what was done, by whom, and what was refused. It reads the files; the agent need not run."""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rda.access.audit import files_of, read
from rda.agent_record import state_directory
from rda.command.base import Command, CommandError, Exit
from rda.command.terminal import Terminal, plain

__all__ = ["COMMAND"]


def _wanted(record: Mapping[str, Any], options: argparse.Namespace) -> bool:
    """Return whether a record is one that was asked for."""
    container = str(record.get("container", ""))
    return (
        (options.user is None or record.get("user") == options.user)
        and (options.context is None or record.get("context") == options.context)
        and (not options.refused or record.get("decision") == "refused")
        and (options.container is None or container.startswith(options.container))
        and (options.since is None or str(record.get("time", "")) >= options.since)
    )


def _describe(record: Mapping[str, Any], terminal: Terminal) -> str:
    """Write a record for a person."""
    who = plain(str(record.get("user") or "somebody"))
    decision = str(record.get("decision"))
    rules = f" ({', '.join(map(str, record.get('rules') or ()))})" if record.get("rules") else ""
    outcome = "no answer" if record.get("status") is None else str(record.get("status"))
    container = f" container {str(record['container'])[:12]}" if record.get("container") else ""
    sizes = f"{record.get('sent')} B out, {record.get('received')} B in, {record.get('seconds')} s"
    colours = ["red"] if decision == "refused" else []
    return (
        f"{terminal.style(str(record.get('time')), 'dim')} {plain(str(record.get('context')))} {who}: "
        f"{record.get('method')} {plain(str(record.get('path')))} "
        f"{terminal.style(decision + rules, *colours)}, {outcome}{container}, {sizes}"
    )


def _run(options: argparse.Namespace, terminal: Terminal) -> int:
    path = Path(options.file) if options.file else state_directory() / "audit.jsonl"
    try:
        files = files_of(path)
        records = (record for record in read(files) if _wanted(record, options))
        last = deque(records, maxlen=options.lines) if options.lines else list(records)
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}; the audit is its owner's only") from error
    if not files:
        raise CommandError(f"there is no audit at {path}; is there an [audit] table in the configuration? See --file")
    for record in last:
        terminal.print(json.dumps(record) if options.json else _describe(record, terminal))
    return Exit.OK


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", metavar="PATH", help="the audit [default: audit.jsonl in the state directory]")
    parser.add_argument("--user", metavar="NAME", help="what one user did")
    parser.add_argument("--container", metavar="ID", help="what concerns one container; the beginning of its full id")
    parser.add_argument("--since", metavar="TIME", help="from a time on, in UTC, as in 2025-01-31T12:00")
    parser.add_argument("--refused", action="store_true", help="only what was refused")
    parser.add_argument("-n", "--lines", type=int, default=0, help="how many of the last lines [default: all]")
    parser.add_argument("--json", action="store_true", help="an object for each line")


COMMAND = Command("audit", "what was changed, by whom, and what was refused", _run, _configure)
