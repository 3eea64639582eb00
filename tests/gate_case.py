"""What the tests of the gate share: clients who are somebody, a site with a gate, and a daemon, all in memory."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Site

from rda.access.audit import Audit
from rda.access.caller import Caller, Proof
from rda.access.gate import Gate
from rda.access.ownership import Ownership
from rda.access.policy_config import read_access
from rda.api import DaemonAPI
from rda.config_table import TableReader
from rda.containers.calls import Containers
from rda.containers.reconciler import Reconciler
from rda.docker.binds import Rules, System
from rda.docker.sources import Sources
from rda.proxy.authentication import Visitor
from rda.proxy.server import DockerSite
from tests.fake_parts import FakeForwards, FakeMirrors
from tests.memory_network import Network, Peer
from tests.small_daemon import SiteEndpoint, SmallDaemon

OWNER = "0123456789abcdef0123456789abcdef"


class GateCase(SynchronousTestCase):
    """A site with a gate.

    :cvar access: keys of the configuration: ``policy``, ``user`` and ``owner_filter``.
    :ivar user: who the next client is, and ``proof`` how that is known.
    """

    access: dict[str, Any] = {"policy": {}}
    rules: tuple[tuple[str, str], ...] = (("/srv", "remote"),)

    def setUp(self) -> None:
        self.clock = Clock()
        self.network = Network(self.clock)
        self.daemon = SmallDaemon()
        self.user, self.proof = "ann", Proof.SOCKET
        self.journal: list[str] = []
        self.mirrors = FakeMirrors(self.journal)
        self.audit: Audit | None = None
        self.build(**self.access)

    def build(self, **table: Any) -> None:
        """Make the site."""
        problems: list[str] = []
        access = read_access(TableReader("", table, problems), "default")
        self.assertEqual(problems, [])
        endpoint = SiteEndpoint(self.network, Site(self.daemon, timeout=None))
        api = DaemonAPI(self.clock, endpoint)
        sources = Sources(System.LINUX, Rules.of(self.rules))
        parts: Any = (FakeForwards(self.journal), self.mirrors)
        self.reconciler = Reconciler(self.clock, api, *parts, OWNER, sources.mirrored)
        containers = Containers(api, *parts, self.reconciler, OWNER, sources, lend_files=True)
        self.ownership = Ownership(api, self.reconciler.is_ours, OWNER)
        in_thread: Any = lambda function, *arguments: succeed(function(*arguments))  # noqa: E731
        gate = Gate(
            "default", containers, access, api, self.ownership, sources, in_thread, ("/run/x.sock",), self.audit
        )
        self.site = DockerSite(
            endpoint, gate, self.clock, gate=gate, identify=lambda _: Visitor(Caller(self.user, self.proof, 1000))
        )

    def send(self, data: bytes, user: str | None = None) -> Peer:
        """Connect a client that sends something; return its end."""
        self.user = self.user if user is None else user
        peer = Peer()
        self.network.connect(peer, self.site.buildProtocol(None))
        peer.send(data)
        self.network.pump()
        return peer

    def ask(
        self, method: str, target: str, document: Any = None, user: str | None = None, more: str = ""
    ) -> tuple[int, Any]:
        """Make one call; return the status and the JSON value of the answer."""
        body = document if isinstance(document, bytes) else b"" if document is None else json.dumps(document).encode()
        kind = "Content-Type: application/json\r\n" if body and "Content-Type" not in more else ""
        head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{kind}{more}Content-Length: {len(body)}\r\n\r\n"
        peer = self.send(head.encode() + body, user)
        peer.transport.abortConnection()
        self.network.pump()
        self.network.transports = [one for one in self.network.transports if one.connected]
        head_bytes, _, rest = peer.received.partition(b"\r\n\r\n")
        status = int(head_bytes.split(b" ")[1]) if head_bytes else 0
        if b"transfer-encoding: chunked" in head_bytes.lower():
            return status, rest
        try:
            return status, json.loads(rest) if rest.strip() else None
        except ValueError:
            return status, rest

    def create(self, user: str, name: str, **document: Any) -> str:
        """Make a container; return its id."""
        status, body = self.ask("POST", f"/containers/create?name={name}", {"Image": "busybox", **document}, user)
        self.assertEqual(status, 201, body)
        return str(body["Id"])

    def refusal(self, *words: Any, **more: Any) -> str:
        """Make a call that is refused; return why."""
        status, body = self.ask(*words, **more)
        self.assertIn(status, (400, 403), body)
        return str(body["message"])
