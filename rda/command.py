"""``rda``: the command that asks a running agent what it is doing.

Exit codes: 0 all is well, 1 something does not work (it is printed), 2 the agent cannot be reached, 64 wrong usage.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from rda import __version__

__all__ = ["main"]

#: Where the agent listens when nothing is said.
DEFAULT_HOST = "tcp://localhost:23750"

#: Seconds to wait for the agent, which is on this machine.
TIMEOUT = 10.0

OK, TROUBLE, UNREACHABLE, USAGE = 0, 1, 2, 64


class Unreachable(Exception):
    """No agent answers; the message says where it was looked for and what to do."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.exit(USAGE, f"rda: {message}; see 'rda --help'\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    :param arguments: without the program's name; None for the process's own.
    """
    options = _parser().parse_args(arguments)
    if options.command == "version":
        print(f"rda {__version__}")
        return OK
    try:
        status = fetch_status(options.host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST)
    except Unreachable as e:
        print(f"rda: {e}", file=sys.stderr)
        return UNREACHABLE
    if options.json:
        print(json.dumps(status, indent=2, ensure_ascii=False))
    else:
        print("\n".join(describe(status)))
    return OK if is_well(status) else TROUBLE


def _parser() -> _Parser:
    parser = _Parser(prog="rda", description="Ask the Remote Docker Agent what it is doing.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="the link, what is forwarded and synced, and why something is not")
    status.add_argument("--host", help=f"the agent's endpoint [default: $DOCKER_HOST, or {DEFAULT_HOST}]")
    status.add_argument("--json", action="store_true", help="the whole status document")
    commands.add_parser("version", help="print the version")
    return parser


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of the host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def fetch_status(host: str) -> dict[str, Any]:
    """Ask the agent behind a DOCKER_HOST value for its status document.

    :raises Unreachable: nobody answers there, or it is not rda.
    """
    url = urlsplit(host)
    try:
        if url.scheme == "unix":
            connection: http.client.HTTPConnection = _UnixConnection(url.path)
        elif url.scheme == "tcp" and url.hostname and url.port:
            connection = http.client.HTTPConnection(url.hostname, url.port, timeout=TIMEOUT)
        else:
            raise Unreachable(f"{host} is neither unix:///path nor tcp://host:port; say the agent's with --host")
        connection.request("GET", "/_rda/status")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise Unreachable(f"no agent answers at {host} ({e}); start one with: twistd -n rda --remote user@host") from e
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if answer.status != 200 or not isinstance(document, dict) or "contexts" not in document:
        raise Unreachable(f"what answers at {host} is not rda; say the agent's endpoint with --host")
    return document


def is_well(status: dict[str, Any]) -> bool:
    """Whether everything works that should."""
    for context in status["contexts"]:
        if context["link"]["state"] != "connected" or context["problems"]:
            return False
        if any(forward["reason"] for forward in context["forwards"]):
            return False
        if any(mirror["state"] == "halted" or mirror["problems"] for mirror in context["mirrors"]):
            return False
    return True


def describe(status: dict[str, Any]) -> Iterator[str]:
    """The status for a person, a line each."""
    for context in status["contexts"]:
        link = context["link"]
        delay = f", {link['round_trip'] * 1000:.1f} ms" if link["round_trip"] is not None else ""
        via = f", socket via {link['socket_via']}" if link["socket_via"] else ""
        yield f"{context['name']}: {link['remote']} {link['state']}{delay}{via}"
        if link["reason"]:
            yield f"  {link['reason']}"
        for listener in context["listeners"]:
            yield f"  DOCKER_HOST={listener}"
        for forward in context["forwards"]:
            yield "  " + _describe_forward(forward)
        for mirror in context["mirrors"]:
            yield from ("  " + line for line in _describe_mirror(mirror))
        for problem in context["problems"]:
            yield f"  ! {problem['subject']}: {problem['message']}"


def _describe_forward(forward: dict[str, Any]) -> str:
    where = f"{forward['local']} -> {forward['name']} {forward['port']}"
    reason = f": {forward['reason']}" if forward["reason"] else ""
    return f"port   {where} {forward['state']}, {forward['connections']} open{reason}"


def _describe_mirror(mirror: dict[str, Any]) -> Iterator[str]:
    progress = ""
    if mirror["state"] == "applying" and mirror["files_total"]:
        progress = f", {mirror['files_done']}/{mirror['files_total']} files"
    yield f"mount  {mirror['source']} {mirror['state']}{progress}, {mirror['files']} files, {mirror['bytes']} bytes"
    for problem in mirror["problems"]:
        yield f"  ! {problem['subject']}: {problem['message']}"


if __name__ == "__main__":
    sys.exit(main())
