"""Finding the running agent, and asking it: HTTP over its own listeners.

Where it is looked for, in this order: ``--host``; ``$DOCKER_HOST``; where the agent that last ran with this state
directory listens; the default endpoint.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rda.agent_record import read_record, state_directory
from rda.command.base import CommandError, Exit, Unreachable
from rda.config import DEFAULT_CONTEXT
from rda.docker_cli import configuration_directory

__all__ = ["DEFAULT_HOST", "Agent", "Place", "find_agent", "no_context", "places"]

#: Where the agent listens when nothing is said.
DEFAULT_HOST = "tcp://localhost:23750"

#: Seconds to wait for an agent that answers at once, as it does for everything but the calls that wait for files.
TIMEOUT = 10.0

#: What to do where no agent answers.
START = "start one with: twistd -n rda --remote user@host"

#: The version of the status document that this command reads.
SCHEMA = 1


@dataclass(frozen=True)
class Place:
    """Where an agent may be.

    :ivar host: as in DOCKER_HOST.
    :ivar source: who says so.
    """

    host: str
    source: str


def places(host: str | None, environ: Mapping[str, str], directory: Path) -> list[Place]:
    """Where to look for the agent, in order."""
    if host:
        return [Place(host, "--host")]
    found = []
    if environ.get("DOCKER_HOST"):
        found.append(Place(environ["DOCKER_HOST"], "DOCKER_HOST"))
    found += [
        Place(listener, f"the state directory {directory}")
        for context in read_record(directory).contexts
        for listener in context.listeners
    ]
    if not found:
        found.append(Place(DEFAULT_HOST, "the default"))
    return found


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of the host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class Agent:
    """A running agent.

    :ivar host: its endpoint, as in DOCKER_HOST.
    """

    host: str
    environ: Mapping[str, str]

    def connect(self, timeout: float | None = TIMEOUT) -> http.client.HTTPConnection:
        """Make a connection object for it; nothing is connected yet.

        :raises Unreachable: ``host`` is not the address of an endpoint.
        """
        try:
            url = urlsplit(self.host)
            port = url.port
        except ValueError as e:
            raise Unreachable(f"{self.host} is not an endpoint ({e}); say the agent's with --host") from e
        if url.scheme == "unix" and url.path:
            return _UnixConnection(url.path, timeout)
        if url.scheme in ("tcp", "http", "https") and url.hostname and port:
            if url.scheme == "https" or self.environ.get("DOCKER_TLS_VERIFY"):
                return http.client.HTTPSConnection(url.hostname, port, timeout=timeout, context=self._tls())
            return http.client.HTTPConnection(url.hostname, port, timeout=timeout)
        raise Unreachable(f"{self.host} is neither unix:///path nor tcp://host:port; say the agent's with --host")

    def _tls(self) -> ssl.SSLContext:
        """Certificates as the docker command finds them."""
        directory = self.environ.get("DOCKER_CERT_PATH") or configuration_directory(self.environ)
        context = ssl.create_default_context(cafile=os.path.join(directory, "ca.pem"))
        certificate = os.path.join(directory, "cert.pem")
        if os.path.exists(certificate):
            context.load_cert_chain(certificate, os.path.join(directory, "key.pem"))
        return context

    def _headers(self) -> dict[str, str]:
        """The fields that the docker command sends with every request: a token, where the agent asks for one."""
        directory = configuration_directory(self.environ)
        try:
            found = json.loads((directory / "config.json").read_text(encoding="utf-8"))["HttpHeaders"]
            return {str(name): str(value) for name, value in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def ask(self, method: str, path: str, body: Any = None, timeout: float | None = TIMEOUT) -> Any:
        """Ask for one thing below ``/_rda/``; return the answer's document.

        :param body: sent as JSON, for POST.
        :param timeout: seconds without a byte from the agent; None waits for as long as it works.
        :raises Unreachable: nobody answers there, or it is not rda.
        :raises CommandError: it answered that it will not; with its reason.
        """
        answer = self.open(method, path, body, timeout)
        try:
            raw = answer.read()
        except (OSError, http.client.HTTPException) as e:
            raise Unreachable(f"the agent at {self.host} went away ({e or type(e).__name__}); see its log") from e
        return _document(self.host, answer.status, raw)

    def open(
        self, method: str, path: str, body: Any = None, timeout: float | None = TIMEOUT
    ) -> http.client.HTTPResponse:
        """Ask, and return the answer when its head is there.

        :raises Unreachable: nobody answers.
        """
        payload = None if body is None else json.dumps(body).encode()
        headers = self._headers()
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection = self.connect(timeout)
            connection.request(method, "/_rda/" + path, payload, headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as e:
            why = getattr(e, "strerror", None) or str(e) or type(e).__name__
            raise Unreachable(f"no agent answers at {self.host} ({why}); {START}") from e

    def status(self) -> dict[str, Any]:
        """Its status document (docs/status-schema.rst)."""
        found = self.ask("GET", "status")
        if not isinstance(found, dict) or "contexts" not in found:
            raise _not_rda(self.host)
        if found.get("schema") != SCHEMA:
            raise Unreachable(
                f"the agent at {self.host} is rda {found.get('version')}, whose status this command cannot read; "
                "install the same version of both"
            )
        return found


def _not_rda(host: str) -> Unreachable:
    return Unreachable(f"what answers at {host} is not rda; say the agent's endpoint with --host")


def _document(host: str, status: int, raw: bytes) -> Any:
    try:
        found = json.loads(raw)
    except ValueError:
        found = None
    if status == 200 and found is not None:
        return found
    message = found.get("message") if isinstance(found, dict) else None
    if not isinstance(message, str) or not message.startswith("rda: "):
        raise _not_rda(host)
    raise CommandError(message.removeprefix("rda: "))


def find_agent(host: str | None, context: str | None = None, environ: Mapping[str, str] | None = None) -> Agent:
    """The running agent.

    :param host: where the user says it is.
    :param context: the context whose listener to use; what is asked of a listener concerns its context.
    :raises Unreachable: it is nowhere, and where it was looked for.
    :raises CommandError: it has no such context.
    """
    environ = os.environ if environ is None else environ
    agent, status = _first_answer(places(host, environ, state_directory(environ)), environ)
    return agent if context is None else _of_context(agent, status, context)


def _first_answer(where: Sequence[Place], environ: Mapping[str, str]) -> tuple[Agent, dict[str, Any]]:
    failures = []
    for place in where:
        agent = Agent(place.host, environ)
        try:
            return agent, agent.status()
        except Unreachable as e:
            failures.append(e)
    if len(failures) == 1:
        raise failures[0]
    reasons = (str(failure).removesuffix(f"; {START}") for failure in failures)
    raise Unreachable("\n".join(["no agent was found:", *(f"  {reason}" for reason in reasons), START]))


def _of_context(agent: Agent, status: Mapping[str, Any], name: str) -> Agent:
    for context in status["contexts"]:
        if context["name"] == name:
            for host in _reachable(context["listeners"]):
                return Agent(host, agent.environ)
            raise CommandError(f"context {name} listens nowhere; see rda status")
    raise no_context(status, name)


def no_context(status: Mapping[str, Any], name: str) -> CommandError:
    """What to raise when an agent has no context of a name."""
    names = ", ".join(context["name"] for context in status["contexts"])
    error = CommandError(f"there is no context {name} here; there are: {names or DEFAULT_CONTEXT}")
    error.code = Exit.USAGE
    return error


def _reachable(listeners: Sequence[str]) -> Iterator[str]:
    yield from (host for host in listeners if host.startswith(("unix:", "tcp:")))
