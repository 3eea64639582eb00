"""Reading the agent's streams of server-sent events."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

from rda.command.base import Unreachable
from rda.command.endpoint import Agent

__all__ = ["events"]

#: Seconds without anything on a stream, on which the agent says something every 15, after which it is given up.
QUIET_SECONDS = 60.0


def events(agent: Agent, path: str) -> Iterator[Any]:
    """The documents of a stream's events, as they come, until the agent ends.

    :raises Unreachable: nobody answers, or the stream broke.
    """
    answer = agent.open("GET", path, timeout=QUIET_SECONDS)
    if answer.status != 200:
        answer.close()
        raise Unreachable(f"the agent at {agent.host} does not stream its {path} (HTTP status {answer.status})")
    try:
        for line in answer:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    except (OSError, http.client.HTTPException) as e:
        raise Unreachable(f"the agent at {agent.host} has gone away ({e or type(e).__name__})") from e
    raise Unreachable(f"the agent at {agent.host} has stopped")
