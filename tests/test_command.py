"""The ``rda`` command, against a real HTTP server on a socket of its own."""

from __future__ import annotations

import contextlib
import io
import json
import socketserver
import threading
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rda.command import COMMANDS, main
from rda.command.base import Exit
from rda.command.terminal import Terminal, bar, columns, duration, plain, size, sparkline
from rda.status import ContextStatus, ForwardStatus, LinkStatus, MirrorStatus, Problem

OK, TROUBLE, UNREACHABLE, USAGE = Exit.OK, Exit.TROUBLE, Exit.UNREACHABLE, Exit.USAGE

LINK = LinkStatus("me@host:22", "connected", round_trip=0.0123, socket_via="streamlocal")


def status(**changes: Any) -> dict[str, Any]:
    """The document of an agent with one context."""
    context = asdict(ContextStatus("default", ("tcp://localhost:1",), LINK))
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
        forward = ForwardStatus("c", "web", "80/tcp", "127.0.0.1:80", "", "not forwarded", "in use")
        problem = Problem("/src/secret", "cannot be read")
        mirror = MirrorStatus("/src", "", "idle", files=3, bytes=10, problems=(problem,))
        document = status(forwards=[asdict(forward)], mirrors=[asdict(mirror)])
        code, out, _ = self.run_command("status", "--host", self.serve(200, json.dumps(document).encode()))
        self.assertEqual(code, TROUBLE)
        self.assertIn("127.0.0.1:80 -> web 80/tcp  not forwarded\n", out)
        self.assertIn("! web 80/tcp: in use", out)
        self.assertIn("! /src/secret: cannot be read", out)

    def test_progress(self) -> None:
        """A transfer under way shows a bar, files and bytes."""
        mirror = MirrorStatus(
            "/src", "", "applying", files_done=5, files_total=10, bytes_done=25 * 10**6, bytes_total=10**8
        )
        document = status(mirrors=[asdict(mirror)])
        _, out, _ = self.run_command("status", "--host", self.serve(200, json.dumps(document).encode()))
        self.assertIn("█████░░░░░░░░░░░░░░░  25%  5 of 10 files, 25.0 MB of 100 MB", out)

    def test_json(self) -> None:
        """``--json`` prints the whole document."""
        host = self.serve(200, json.dumps(status()).encode())
        _, out, _ = self.run_command("status", "--json", "--host", host)
        self.assertEqual(json.loads(out), json.loads(json.dumps(status())))

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
        """``rda version`` needs no agent, and names the version of one that runs."""
        code, out, _ = self.run_command("version", "--host", "unix:///nowhere.sock")
        self.assertEqual(code, OK)
        self.assertRegex(out, r"^rda \d")
        self.assertIn("no agent answers", out)
        code, out, _ = self.run_command("version", "--host", self.serve(200, json.dumps(status()).encode()))
        self.assertIn("agent 0 at unix://", out)

    def test_tables(self) -> None:
        """``forwards`` and ``mirrors`` print their table alone, for people or as JSON."""
        forward = asdict(ForwardStatus("c", "web", "80/tcp", "127.0.0.1:80", "127.0.0.1:1", "open", bytes_in=1500))
        mirror = asdict(MirrorStatus("/src", "/there", "idle", "two-way", files=1200, bytes=10))
        host = self.serve(200, json.dumps(status(forwards=[forward], mirrors=[mirror])).encode())
        _, out, _ = self.run_command("forwards", "--host", host)
        self.assertEqual(out, "127.0.0.1:80 -> web 80/tcp  open  0 connections, 1.5 kB in, 0 B out\n")
        _, out, _ = self.run_command("mirrors", "--host", host)
        self.assertEqual(out, "/src (two-way)  idle  1,200 files, 10 B\n")
        _, out, _ = self.run_command("--host", host, "mirrors", "--json")
        self.assertEqual(json.loads(out), [{"context": "default", **json.loads(json.dumps(mirror))}])

    def test_nothing_to_list(self) -> None:
        """Empty tables say that they are empty."""
        host = self.serve(200, json.dumps(status()).encode())
        self.assertEqual(self.run_command("forwards", "--host", host)[1], "no ports are published\n")
        self.assertEqual(self.run_command("mirrors", "--host", host)[1], "nothing is mirrored\n")

    def test_other_schema(self) -> None:
        """A status document of another schema is not guessed at."""
        host = self.serve(200, json.dumps(status() | {"schema": 99, "version": "9.0"}).encode())
        code, _, err = self.run_command("status", "--host", host)
        self.assertEqual(code, UNREACHABLE)
        self.assertIn("rda 9.0", err)

    def test_every_command_has_help(self) -> None:
        """``--help`` of every command describes it."""
        for command in COMMANDS:
            code, out, _ = self.run_command(command.name, "--help")
            self.assertEqual(code, OK)
            self.assertIn(f"usage: rda {command.name}", out)


class TerminalTests(SynchronousTestCase):
    def test_numbers(self) -> None:
        """Sizes and spans of time are said as people say them."""
        said = [size(n) for n in (0, 999, 1000, 99_949, 123_456, 999_999_999, 5 * 10**12)]
        self.assertEqual(said, ["0 B", "999 B", "1.0 kB", "99.9 kB", "123 kB", "1.0 GB", "5.0 TB"])
        said = [duration(n) for n in (0.04, 1, 59.9, 60, 61, 3600, 90_000)]
        self.assertEqual(said, ["40 ms", "1 s", "59 s", "1 min", "1 min 1 s", "1 h", "1 d 1 h"])

    def test_charts(self) -> None:
        """Bars and sparklines stay within their width, whatever the values."""
        self.assertEqual([bar(part, 4) for part in (-1, 0, 0.5, 1, 2)], ["░░░░", "░░░░", "██░░", "████", "████"])
        self.assertEqual(sparkline([0, 1, 2, 4], 3), "▂▄█")
        self.assertEqual(sparkline([0, 0]), "▁▁")
        self.assertEqual(sparkline([]), "")

    def test_names_from_elsewhere(self) -> None:
        """What a terminal would obey is shown, not sent."""
        self.assertEqual(plain("a\x1b[31mb\u202ec"), r"a\x1b[31mb\x202ec")

    def test_columns(self) -> None:
        """Cells are aligned, rows of different lengths too."""
        self.assertEqual(columns([["a", "bb", "c"], ["aaa", "b"]], ""), ["a    bb  c", "aaa  b"])

    def test_colours_only_where_they_are_seen(self) -> None:
        """Nothing is coloured in a file, and on a terminal not when NO_COLOR is set or it is a dumb one."""

        class Screen(io.StringIO):
            def isatty(self) -> bool:
                return True

        for out, environ, colours in (
            (Screen(), {}, True),
            (Screen(), {"NO_COLOR": "1"}, False),
            (Screen(), {"TERM": "dumb"}, False),
            (io.StringIO(), {}, False),
        ):
            with contextlib.redirect_stdout(out):
                self.assertEqual(Terminal.here(environ).colours, colours)
        self.assertEqual(Terminal(io.StringIO(), io.StringIO(), True).style("x", "red"), "\x1b[31mx\x1b[0m")
