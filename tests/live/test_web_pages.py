"""What a web page can do to rda by way of the user's own browser, which the kernel lets in: nothing.

Every page here is an attacker's. The browser is a real one, with its own protection of the local network switched off:
older ones and others have none.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.live.browser import Browser, Page, find_browser
from tests.live.process import fetch, free_port
from tests.live.support import LiveTestCase

#: A site that somebody visits; the browser resolves it to this machine, as an attacker's name server would.
EVIL = "evil.example"

BROWSER = (
    f"--host-resolver-rules=MAP {EVIL} 127.0.0.1",
    "--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets,BlockInsecurePrivateNetworkRequests",
)

#: What a container's creation looks like; the attacks differ in how they send it.
CREATE = json.dumps({"Image": "busybox", "Cmd": ["true"]})

#: What is tried; see there.
ATTACKS = (Path(__file__).parent / "attacks.js").read_text(encoding="utf-8").rstrip().rstrip(";")

#: How many of them at least are requests that rda sees and refuses, wherever they come from. A browser may put off a
#: beacon, keep the second of two equal requests, and count a redirection as none of its business.
REFUSALS = 12


class Evil(BaseHTTPRequestHandler):
    """The attacker's server: an empty page, and redirections that keep the method."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><body>prizes")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(307)
        self.send_header("Location", self.path.partition("?")[2])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class WebPages(LiveTestCase):
    def setUp(self) -> None:
        find_browser()
        super().setUp()
        self.host.docker("run", "-d", "-i", "--name", "victim", "busybox", "sh")
        self.browser = self.enterContext(Browser(BROWSER))

    def serve(self, port: int = 0) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", port), Evil)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server

    def refused(self, port: int) -> int:
        """How many requests rda has refused so far."""
        return json.loads(fetch(port, "_rda/status"))["contexts"][0]["relay"]["refused"]

    def open(self, url: str) -> Page:
        """Visit an attacker's page."""
        page = self.browser.page()
        self.assertEqual(page.go(url), "")
        page.wait("document.body && document.body.innerText == 'prizes'")
        return page

    def attack(self, page: Page, at: str) -> None:
        """Let a page try everything, and see that it has read nothing."""
        function = ATTACKS[ATTACKS.index("(at, body)") :]
        found = dict(page.evaluate(f"({function})({json.dumps(at)}, {json.dumps(CREATE)})"))
        self.assertEqual({name: text for name, text in found.items() if text}, {})

    def assert_untouched(self) -> None:
        """The daemon has the one container that was there, and it runs as before."""
        names = self.host.docker("ps", "-a", "--format", "{{.Names}} {{.State}}").stdout.decode().split("\n")
        self.assertEqual(names, ["victim running", ""])
        self.assertNotIn(b"taken", self.host.docker("exec", "victim", "ls", "/").stdout)

    def test_other_origins(self) -> None:
        """Pages of another site, and of another port of this machine, neither change nor read anything."""
        port = self.serve().server_address[1]
        for origin in (EVIL, "localhost", "127.0.0.1"):
            for name in ("localhost", "127.0.0.1"):
                before = self.refused(self.rda.port)
                page = self.open(f"http://{origin}:{port}")
                self.attack(page, f"{name}:{self.rda.port}")
                page.close()
                self.assertGreaterEqual(self.refused(self.rda.port) - before, REFUSALS)
        self.assert_untouched()

    def test_rebinding(self) -> None:
        """A page whose name comes to mean this machine is rda's own page to the browser, but not to rda."""
        port = free_port()
        server = self.serve(port)
        page = self.open(f"http://{EVIL}:{port}")
        server.shutdown()
        server.server_close()
        rda = self.own_rda(listen=f"tcp:{port}:interface=127.0.0.1")
        rda.wait_ready()
        self.attack(page, f"{EVIL}:{port}")
        self.assertGreaterEqual(self.refused(port), REFUSALS)
        self.assertEqual(page.go(f"http://{EVIL}:{port}/containers/json"), "")
        page.wait("document.body && document.body.innerText.includes('is not called')")
        self.assert_untouched()
