"""``rda status``: one screen that says what works, what does not, and what to do about it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from rda.command.base import Command, Exit, Unreachable
from rda.command.endpoint import Agent, find_agent, no_context
from rda.command.events import events
from rda.command.lists import complaint, forward_lines, mirror_lines
from rda.command.terminal import Terminal, plain, sparkline
from rda.words import duration

__all__ = ["COMMAND", "describe", "is_well"]

#: Problems that are printed for each context; ``rda status --json`` has them all.
PROBLEMS_SHOWN = 10

#: Seconds between two looks for an agent that has gone while its status was watched.
AGAIN_SECONDS = 2.0

_LINK_COLOURS = {"connected": "green", "failed": "red"}


def is_well(status: Mapping[str, Any]) -> bool:
    """Whether everything works that should."""
    return all(
        context["link"]["state"] == "connected" and not any(_problems(context)) for context in status["contexts"]
    )


def _problems(context: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What does not work in a context, and what to do about it."""
    link = context["link"]
    if link["reason"]:
        yield link["remote"], link["reason"]
    for problem in context["problems"]:
        yield problem["subject"], problem["message"]
    for forward in context["forwards"]:
        if forward["reason"]:
            yield f"{forward['name']} {forward['port']}", forward["reason"]
    for mirror in context["mirrors"]:
        for problem in (*mirror["problems"], *mirror["conflicts"]):
            yield os.path.join(mirror["source"], problem["subject"]), problem["message"]


def describe(status: Mapping[str, Any], terminal: Terminal, now: float) -> Iterator[str]:
    """The status for a person, a line each.

    :param now: seconds since the epoch.
    """
    for n, context in enumerate(status["contexts"]):
        if n:
            yield ""
        yield from _context(context, terminal, now)


def _context(context: Mapping[str, Any], terminal: Terminal, now: float) -> Iterator[str]:
    yield _link(context, terminal, now)
    for listener in context["listeners"]:
        yield terminal.style(f"  DOCKER_HOST={listener}", "dim")
    if context["forwards"]:
        yield terminal.style("  ports", "bold")
        yield from forward_lines(context["forwards"], "    ")
    if context["mirrors"]:
        yield terminal.style("  mounts", "bold")
        yield from mirror_lines(context["mirrors"], now, "    ")
    for wait in context["waiting"]:
        waited = duration(max(0.0, now - wait["since"]))
        yield terminal.style(f"  {plain(wait['call'])} waits for {plain(wait['source'])}, for {waited} now", "yellow")
    problems = [complaint(subject, message) for subject, message in _problems(context)]
    if problems:
        yield terminal.style("  problems", "bold", "red")
        yield from (f"    {terminal.style('!', 'red')} {problem}" for problem in problems[:PROBLEMS_SHOWN])
        if len(problems) > PROBLEMS_SHOWN:
            yield f"    and {len(problems) - PROBLEMS_SHOWN} more: rda status --json"


def _link(context: Mapping[str, Any], terminal: Terminal, now: float) -> str:
    link = context["link"]
    parts = [f"{plain(context['name'])}: {plain(link['remote'])} {_state(link, terminal, now)}"]
    if link["round_trip"] is not None:
        chart = sparkline([seconds for _, seconds in link["round_trips"]])
        parts.append(f"{link['round_trip'] * 1000:.1f} ms{' ' if chart else ''}{chart}")
    if link["socket_via"]:
        parts.append(f"socket via {link['socket_via']}")
    return ", ".join(parts)


def _state(link: Mapping[str, Any], terminal: Terminal, now: float) -> str:
    state = terminal.style(link["state"], "bold", _LINK_COLOURS.get(link["state"], "yellow"))
    if link["next_try"] is not None and link["next_try"] > now:
        return f"{state}, next attempt in {duration(link['next_try'] - now)}"
    return f"{state} for {duration(max(0.0, now - link['since']))}" if link["since"] else state


def _configure(parser: argparse.ArgumentParser) -> None:
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="the whole status document (docs/status-schema.rst)")
    shape.add_argument("-w", "--watch", action="store_true", help="stay, and show it as it changes")


def _run(options: argparse.Namespace, terminal: Terminal) -> int:
    agent = find_agent(options.host)
    if options.watch:
        _watch(agent, options, terminal)
    status = _only(agent.status(), options.context)
    if options.json:
        terminal.print(json.dumps(status, indent=2, ensure_ascii=False))
    else:
        terminal.print(*describe(status, terminal, time.time()))
    return Exit.OK if is_well(status) else Exit.TROUBLE


def _only(status: dict[str, Any], name: str | None) -> dict[str, Any]:
    """The status of one context, if one is asked for.

    :raises CommandError: there is none of that name.
    """
    if name is None:
        return status
    found = [context for context in status["contexts"] if context["name"] == name]
    if not found:
        raise no_context(status, name)
    return {**status, "contexts": found}


def _watch(agent: Agent, options: argparse.Namespace, terminal: Terminal) -> NoReturn:
    """Show the status whenever it changes, also after the agent was restarted, until Ctrl-C."""
    while True:
        try:
            for status in events(agent, "events"):
                terminal.screen(describe(_only(status, options.context), terminal, time.time()))
        except Unreachable as error:
            terminal.screen([str(error), "", f"looking again every {AGAIN_SECONDS:.0f} s; Ctrl-C ends this"])
        time.sleep(AGAIN_SECONDS)
        with contextlib.suppress(Unreachable):
            agent = find_agent(options.host)


COMMAND = Command("status", "the link, what is forwarded and synced, and why something is not", _run, _configure)
