"""``rda reload``: have the agent read its configuration again, and say what came of it.

The agent is asked with SIGHUP and answers with its record (:mod:`rda.agent_record`), not over its listeners: those may
be what changes, and may want a certificate or a token.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path

from rda.agent_record import AgentRecord, read_record, state_directory
from rda.command.base import Command, CommandError, Exit, Unreachable
from rda.command.endpoint import find_agent
from rda.command.terminal import Terminal

__all__ = ["COMMAND"]

#: Seconds between two looks at the record: another process's files tell nobody that they have changed.
LOOK_SECONDS = 0.05

#: Seconds that a reload may take: contexts that change finish their streams and bring back what two-way mounts hold.
TIMEOUT = 90.0


def _run(options: argparse.Namespace, terminal: Terminal) -> int:
    directory = Path(options.state_dir) if options.state_dir else state_directory()
    pid = options.pid or _process(options.host, directory)
    record = read_record(directory)
    before = record.reloads if record.pid == pid else 0
    _signal(pid, signal.SIGHUP)
    problems = _wait(pid, before, directory, options.timeout).reload_problems
    for problem in problems:
        terminal.warn(problem)
    if not problems:
        terminal.print("the configuration has been applied")
    return Exit.TROUBLE if problems else Exit.OK


def _process(host: str | None, directory: Path) -> int:
    """The agent's process, which it names itself: a number that was written down may be another's by now."""
    agent = find_agent(host, environ={**os.environ, "RDA_STATE_DIR": str(directory)})
    pid = int(agent.status()["process"]["pid"])
    if read_record(directory).pid != pid:
        raise CommandError(f"the agent at {agent.host} has its state elsewhere than in {directory}; see --state-dir")
    return pid


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError as error:
        raise Unreachable(f"the agent (process {pid}) has ended; see its log") from error
    except PermissionError as error:
        raise CommandError(f"process {pid} is another user's; do this as that user") from error


def _wait(pid: int, before: int, directory: Path, seconds: float) -> AgentRecord:
    """The record when one more reload has ended."""
    deadline = time.monotonic() + seconds
    while True:
        record = read_record(directory)
        if record.pid == pid and record.reloads > before:
            return record
        if time.monotonic() > deadline:
            where = "" if record.pid == pid else f", or say --state-dir if its state is not in {directory}"
            raise CommandError(f"the agent has not said within {seconds:.0f} s what came of it; see rda status{where}")
        _signal(pid, 0)
        time.sleep(LOOK_SECONDS)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pid", type=int, help="the agent's process, for units [default: it is asked]")
    parser.add_argument("--state-dir", metavar="PATH", help="the agent's state_dir [default: as for the agent]")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=TIMEOUT, help=f"how long to wait [default: {TIMEOUT:.0f}]"
    )


COMMAND = Command("reload", "have the agent read its configuration again, and wait for the result", _run, _configure)
