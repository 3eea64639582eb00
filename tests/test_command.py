"""The ``rda`` command, against a real HTTP server on a socket of its own."""

from __future__ import annotations

import contextlib
import io
import json
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rda.command import OK, TROUBLE, UNREACHABLE, USAGE, main

LINK = {"remote": "me@host:22", "state": "connected", "reason": "", "round_trip": 0.0123, "socket_via": "streamlocal"}


def status(**changes: Any) -> dict[str, Any]:
    context = {"name": "default", "listeners": ["tcp://localhost:1"], "link": LINK}
    context |= {"forwards": [], "mirrors": [], "problems": []}
    return {"schema": 1, "version": "0", "contexts": [context | changes]}


class StatusTests(SynchronousTestCase):
    def serve(self, code: int, body: bytes) -> str:
        """Answer one path on a UNIX socket; returns the DOCKER_HOST value."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(code if self.path == "/_rda/status" else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self) -> str:
                return "unix"

            log_message: Callable[..., None] = lambda *_: None

        path = Path(self.mktemp()).absolute()
        short = f"/proc/self/cwd/{path.relative_to(Path.cwd())}" if len(str(path)) > 100 else str(path)
        server = socketserver.UnixStreamServer(short, Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return f"unix://{short}"

    def run_command(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(arguments)
            except SystemExit as e:
                code = int(str(e.code))
        return code, out.getvalue(), err.getvalue()

    def test_well(self) -> None:
        """A connected agent without problems is described, and the exit code says that all is well."""
        host = self.serve(200, json.dumps(status()).encode())
        code, out, _ = self.run_command("status", "--host", host)
        self.assertEqual(code, OK)
        self.assertIn("default: me@host:22 connected, 12.3 ms, socket via streamlocal", out)
        self.assertIn("DOCKER_HOST=tcp://localhost:1", out)

    def test_trouble(self) -> None:
        """What does not work is printed with its reason, and the exit code says so."""
        forward = {"local": "127.0.0.1:80", "name": "web", "port": "80/tcp", "state": "not forwarded"}
        forward |= {"reason": "in use", "connections": 0}
        problem = {"subject": "/src/secret", "message": "cannot be read"}
        mirror = {"source": "/src", "state": "idle", "files": 3, "bytes": 10, "files_total": 0, "problems": [problem]}
        host = self.serve(200, json.dumps(status(forwards=[forward], mirrors=[mirror])).encode())
        code, out, _ = self.run_command("status", "--host", host)
        self.assertEqual(code, TROUBLE)
        self.assertIn("port   127.0.0.1:80 -> web 80/tcp not forwarded, 0 open: in use", out)
        self.assertIn("! /src/secret: cannot be read", out)

    def test_json(self) -> None:
        """``--json`` prints the whole document."""
        host = self.serve(200, json.dumps(status()).encode())
        _, out, _ = self.run_command("status", "--json", "--host", host)
        self.assertEqual(json.loads(out), status())

    def test_nobody_there(self) -> None:
        """Without an agent the message says where it was looked for and how to start one."""
        code, _, err = self.run_command("status", "--host", "unix:///nowhere.sock")
        self.assertEqual(code, UNREACHABLE)
        self.assertIn("no agent answers at unix:///nowhere.sock", err)
        self.assertIn("twistd -n rda --remote", err)

    def test_something_else_there(self) -> None:
        """A plain Docker daemon is not mistaken for an agent."""
        host = self.serve(404, b'{"message":"page not found"}')
        code, _, err = self.run_command("status", "--host", host)
        self.assertEqual(code, UNREACHABLE)
        self.assertIn("is not rda", err)

    def test_usage(self) -> None:
        """Wrong usage has an exit code of its own."""
        self.assertEqual(self.run_command("stats")[0], USAGE)
        self.assertEqual(self.run_command("status", "--host", "ssh://x")[0], UNREACHABLE)

    def test_version(self) -> None:
        """``rda version`` needs no agent."""
        code, out, _ = self.run_command("version")
        self.assertEqual(code, OK)
        self.assertRegex(out, r"^rda \d")
