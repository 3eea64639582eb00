"""The ``rda`` command, against a real HTTP server on a socket of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from rda.agent_record import AgentRecord, RecordedContext, write_record
from rda.command import COMMANDS, main
from rda.command.base import Exit
from rda.command.plugin import METADATA, own_words, plugin_main
from rda.command.terminal import Terminal, bar, columns, plain, sparkline
from rda.config import Context, Remote
from rda.status import ContextStatus, ForwardStatus, LinkStatus, MirrorStatus, Problem
from rda.words import duration, progress, size

OK, TROUBLE, UNREACHABLE, USAGE = Exit.OK, Exit.TROUBLE, Exit.UNREACHABLE, Exit.USAGE

LINK = LinkStatus("me@host:22", "connected", round_trip=0.0123, socket_via="streamlocal")


def status(**changes: Any) -> dict[str, Any]:
    """The document of an agent with one context."""
    context = asdict(ContextStatus("default", ("tcp://localhost:1",), LINK))
    return {"schema": 1, "version": "0", "contexts": [context | changes]}


#: What a served agent answers: "GET status" -> (HTTP status, document or bytes).
Routes = Mapping[str, tuple[int, Any]]


class CommandCase(SynchronousTestCase):
    """Runs the command, with nothing of the machine's own in its environment."""

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()
        self.requests: list[tuple[str, Any]] = []
        self.fields: list[str | None] = []
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG")}
        self.environ = {**kept, "HOME": str(self.home)}

    def serve(self, code: int, body: bytes) -> str:
        """Answer one path on a UNIX socket; return the DOCKER_HOST value."""
        return self.serve_all({"GET status": (code, body)})

    def serve_status(self, **changes: Any) -> str:
        return self.serve_all({"GET status": (200, status(**changes))})

    def serve_all(self, routes: Routes) -> str:
        case = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                path = f"{self.command} {self.path.removeprefix('/_rda/')}"
                length = int(self.headers.get("Content-Length") or 0)
                case.fields.append(self.headers.get("Authorization"))
                if self.command == "POST":
                    case.requests.append((path, json.loads(self.rfile.read(length))))
                code, document = routes.get(path, (404, {"message": "page not found"}))
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer

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
        environ = mock.patch.dict(os.environ, self.environ, clear=True)
        with environ, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(arguments)
            except SystemExit as e:
                code = int(str(e.code))
        return code, out.getvalue(), err.getvalue()


class StatusTests(CommandCase):
    def test_well(self) -> None:
        """A connected agent without problems is described, and the exit code says that all is well."""
        host = self.serve_status()
        code, out, _ = self.run_command("status", "--host", host)
        self.assertEqual(code, OK)
        self.assertIn("default: me@host:22 connected, 12.3 ms, socket via streamlocal", out)
        self.assertIn("DOCKER_HOST=tcp://localhost:1", out)

    def test_trouble(self) -> None:
        """What does not work is printed with its reason, and the exit code says so."""
        forward = ForwardStatus("c", "web", "80/tcp", "127.0.0.1:80", "", "not forwarded", "in use")
        problem = Problem("/src/secret", "cannot be read")
        conflict = Problem("notes", "was edited on both sides")
        mirror = MirrorStatus("/src", "", "idle", files=3, bytes=10, problems=(problem,), conflicts=(conflict,))
        document = status(forwards=[asdict(forward)], mirrors=[asdict(mirror)])
        code, out, _ = self.run_command("status", "--host", self.serve(200, json.dumps(document).encode()))
        self.assertEqual(code, TROUBLE)
        self.assertIn("127.0.0.1:80 -> web 80/tcp  not forwarded\n", out)
        self.assertIn("! web 80/tcp: in use", out)
        self.assertIn("! /src/secret: cannot be read", out)
        self.assertIn("! /src/notes: was edited on both sides", out)

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
        host = self.serve_status()
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
        code, out, _ = self.run_command("version", "--host", self.serve_status())
        self.assertIn("agent 0 at unix://", out)

    def test_watch(self) -> None:
        """``--watch`` prints the status whenever it changes, and looks again when the agent has gone."""
        states = (status(), status(problems=[asdict(Problem("x", "is wrong"))]))
        stream = b"".join(b"data: " + json.dumps(state).encode() + b"\n\n" for state in states)
        host = self.serve_all({"GET status": (200, status()), "GET events": (200, stream)})
        with mock.patch("time.sleep", side_effect=[None, KeyboardInterrupt]):
            code, out, _ = self.run_command("status", "--watch", "--host", host)
        self.assertEqual(code, Exit.INTERRUPTED)
        self.assertEqual((out.count("connected"), out.count("! x: is wrong"), out.count("looking again")), (4, 2, 2))

    def test_tables(self) -> None:
        """``forwards`` and ``mirrors`` print their table alone, for people or as JSON."""
        forward = asdict(ForwardStatus("c", "web", "80/tcp", "127.0.0.1:80", "127.0.0.1:1", "open", bytes_in=1500))
        mirror = asdict(MirrorStatus("/src", "/there", "idle", "two-way", files=1200, bytes=10))
        host = self.serve_status(forwards=[forward], mirrors=[mirror])
        _, out, _ = self.run_command("forwards", "--host", host)
        self.assertEqual(out, "127.0.0.1:80 -> web 80/tcp  open  0 connections, 1.5 kB in, 0 B out\n")
        _, out, _ = self.run_command("mirrors", "--host", host)
        self.assertEqual(out, "/src (two-way)  idle  1,200 entries, 10 B\n")
        _, out, _ = self.run_command("--host", host, "mirrors", "--json")
        self.assertEqual(json.loads(out), [{"context": "default", **json.loads(json.dumps(mirror))}])

    def test_nested_sources(self) -> None:
        """What is mounted from whose copy is told, and why something is not."""
        outer = asdict(MirrorStatus("/src", "/there", "idle", nested=("/src/lib",)))
        inner = asdict(MirrorStatus("/src/x", "/there", "idle", apart="/src has another: the rules differ"))
        _, out, _ = self.run_command("mirrors", "--host", self.serve_status(mirrors=[outer, inner]))
        self.assertIn("  /src/lib is mounted from the copy of /src\n", out)
        self.assertIn("  /src/x has a copy of its own, and /src has another: the rules differ\n", out)

    def test_nothing_to_list(self) -> None:
        """Empty tables say that they are empty."""
        host = self.serve_status()
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


class PlaceTests(CommandCase):
    """Where the agent is looked for."""

    def record(self, *listeners: str) -> None:
        directory = self.home / ".local/state/rda"
        directory.mkdir(parents=True)
        context = RecordedContext.of(Context("default", Remote("host")), listeners)
        write_record(directory, AgentRecord(contexts=(context,)))

    def test_environment(self) -> None:
        """DOCKER_HOST says where, as for the docker command."""
        self.environ["DOCKER_HOST"] = self.serve_status()
        self.assertEqual(self.run_command("status")[0], OK)

    def test_record(self) -> None:
        """Without it, the agent that runs with the user's state directory is found."""
        self.record(self.serve_status())
        self.assertEqual(self.run_command("status")[0], OK)

    def test_token(self) -> None:
        """The header fields that the docker command is configured to send are sent too."""
        (self.home / ".docker").mkdir()
        (self.home / ".docker/config.json").write_text('{"HttpHeaders": {"Authorization": "Bearer x"}}')
        self.assertEqual(self.run_command("status", "--host", self.serve_status())[0], OK)
        self.assertEqual(self.fields[-1], "Bearer x")

    def test_environment_points_elsewhere(self) -> None:
        """When what answers at DOCKER_HOST is no agent, the one of the state directory is used."""
        self.environ["DOCKER_HOST"] = self.serve(404, b'{"message":"page not found"}')
        self.record(self.serve_status())
        self.assertEqual(self.run_command("status")[0], OK)

    def test_nowhere(self) -> None:
        """When there is none, every place is named with what is wrong there."""
        self.environ["DOCKER_HOST"] = self.serve(404, b'{"message":"page not found"}')
        self.record("unix:///gone.sock")
        code, _, err = self.run_command("status")
        self.assertEqual(code, UNREACHABLE)
        self.assertIn("is not rda", err)
        self.assertIn("no agent answers at unix:///gone.sock", err)

    def test_context(self) -> None:
        """A context's own listener is asked for what concerns it; names that there are none of are refused."""
        gpu = self.serve_all({"POST pause": (200, {"schema": 1})})
        contexts = [*status()["contexts"], asdict(ContextStatus("gpu", (gpu,), LINK))]
        self.environ["DOCKER_HOST"] = self.serve_all({"GET status": (200, status() | {"contexts": contexts})})
        self.assertEqual(self.run_command("pause", "--context", "gpu"), (OK, "", ""))
        self.assertEqual(self.requests, [("POST pause", {"path": None})])
        for name, shown in (("gpu", "gpu: me@host"), ("default", "default: me@host")):
            out = self.run_command("status", "--context", name)[1]
            self.assertEqual((out.count("me@host"), shown in out), (1, True))
        self.assertEqual(self.run_command("status", "--context", "cpu")[0], USAGE)
        code, _, err = self.run_command("--context", "cpu", "pause")
        self.assertEqual(code, USAGE)
        self.assertIn("there are: default, gpu", err)


class ControlTests(CommandCase):
    def test_tells(self) -> None:
        """Paths are made absolute; the command returns when the agent has done it."""
        actions = ("flush", "pause", "resume", "confirm")
        answers: Routes = {f"POST {action}": (200, {"schema": 1}) for action in actions}
        self.environ["DOCKER_HOST"] = self.serve_all({"GET status": (200, status()), **answers})
        for action in actions:
            self.assertEqual(self.run_command(action, "there"), (OK, "", ""))
        self.assertEqual(self.run_command("flush")[0], OK)
        path = os.path.abspath("there")
        asked = [(f"POST {action}", {"path": path}) for action in actions]
        self.assertEqual(self.requests, [*asked, ("POST flush", {"path": None})])

    def test_refused(self) -> None:
        """What the agent refuses is printed as it says it, with an exit code of its own."""
        refusal = (400, {"message": "rda: /x\x1b is not mirrored"})
        self.environ["DOCKER_HOST"] = self.serve_all({"GET status": (200, status()), "POST flush": refusal})
        self.assertEqual(self.run_command("flush", "/x"), (Exit.REFUSED, "", "rda: /x\\x1b is not mirrored\n"))

    def test_confirm_needs_a_path(self) -> None:
        """What is confirmed has to be named."""
        self.assertEqual(self.run_command("confirm")[0], USAGE)


class CollectTests(CommandCase):
    COPIES = [
        {"name": "a-2", "source": "/large", "bytes": 2_000_000, "age": 90_000.0},
        {"name": "a-1", "source": "", "bytes": 10, "age": 60.0},
    ]

    def serve_copies(self, copies: list[dict[str, Any]], kept: Any = ()) -> None:
        done = {"schema": 1, "removed": ["a-2"], "kept": list(kept)}
        routes: Routes = {
            "GET status": (200, status()),
            "GET unused": (200, {"schema": 1, "copies": copies}),
            "POST collect": (200, done),
        }
        self.environ["DOCKER_HOST"] = self.serve_all(routes)

    def test_dry_run(self) -> None:
        """Without ``--yes`` copies are listed with their sizes, and none is removed."""
        self.serve_copies(self.COPIES)
        code, out, _ = self.run_command("gc")
        self.assertEqual(code, OK)
        self.assertIn("2.0 MB  unused for 1 d 1 h  /large\n10 B    unused for 1 min    a-1\n", out)
        self.assertIn("2.0 MB in 2 copies", out)
        self.assertIn("rda gc --yes", out)
        self.assertEqual(self.requests, [])

    def test_removes(self) -> None:
        """With it they are removed; those of the last days can be spared."""
        self.serve_copies(self.COPIES)
        code, out, _ = self.run_command("gc", "--yes", "--older", "1")
        self.assertEqual((code, out.splitlines()[-1]), (OK, "removed 2.0 MB"))
        self.assertEqual(self.requests, [("POST collect", {"names": ["a-2"]})])

    def test_kept(self) -> None:
        """What could not be removed is named, and the exit code says so."""
        self.serve_copies(self.COPIES, [{"subject": "/there/a-1", "message": "cannot be removed"}])
        code, _, err = self.run_command("gc", "--yes")
        self.assertEqual((code, err), (TROUBLE, "rda: /there/a-1: cannot be removed\n"))

    def test_nothing(self) -> None:
        """When every copy is in use, that is said."""
        self.serve_copies([])
        self.assertIn("nothing to remove", self.run_command("gc")[1])
        self.assertEqual(self.run_command("gc", "--json")[1], "[]\n")


class LogsTests(CommandCase):
    def test_lines(self) -> None:
        """The last lines are printed with their time; what has several lines is indented."""
        lines = [
            {"number": n, "time": 0.0, "level": level, "where": "x", "text": text}
            for n, (level, text) in enumerate([("info", "one"), ("error", "two\nmore\x1b")])
        ]
        more = {"number": 2, "time": 0.0, "level": "info", "where": "x", "text": "three"}
        stream = b"".join(b"event: line\ndata: " + json.dumps(line).encode() + b"\n\n" for line in [*lines, more])
        routes: Routes = {
            "GET status": (200, status()),
            "GET logs": (200, {"schema": 1, "lines": lines}),
            "GET logs/events": (200, stream),
        }
        self.environ |= {"DOCKER_HOST": self.serve_all(routes), "TZ": "UTC"}
        _, out, _ = self.run_command("logs")
        self.assertRegex(out, r"^19(70|69)-\S+ \S+ one\n\S+ \S+ error: two\n    more\\x1b\n$")
        self.assertEqual(json.loads(self.run_command("logs", "-n", "1", "--json")[1])["number"], 1)
        code, out, err = self.run_command("logs", "-f", "-n", "0")
        self.assertRegex(out, r"^\S+ \S+ three\n$")
        self.assertEqual(code, UNREACHABLE)
        self.assertIn("has stopped", err)


class ReloadTests(CommandCase):
    """This process is the agent: it hears the signal, and writes down what came of it."""

    def setUp(self) -> None:
        super().setUp()
        self.directory = self.home / ".local/state/rda"
        self.directory.mkdir(parents=True)
        self.problems: tuple[str, ...] = ()
        self.heard = 0
        before = signal.signal(signal.SIGHUP, lambda number, frame: self.reload())
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        self.agent = json.loads(json.dumps(status())) | {"process": {"pid": os.getpid(), "started": 0.0}}

    def record(self, pid: int, reloads: int) -> None:
        write_record(self.directory, AgentRecord(pid=pid, reloads=reloads, reload_problems=self.problems))

    def reload(self) -> None:
        self.heard += 1
        self.record(os.getpid(), self.heard + 3)

    def test_applied(self) -> None:
        """The agent is told, and the command returns when it has done it."""
        self.record(os.getpid(), 3)
        host = self.serve_all({"GET status": (200, self.agent)})
        self.assertEqual(self.run_command("reload", "-H", host)[:2], (OK, "the configuration has been applied\n"))
        self.assertEqual(self.heard, 1)

    def test_refused(self) -> None:
        """What is wrong with the file is printed, and the exit code says that something is."""
        self.record(os.getpid(), 3)
        self.problems = ("configuration: docker: is wrong", "configuration: listen: too")
        code, out, err = self.run_command("reload", "--pid", str(os.getpid()))
        self.assertEqual((code, out), (TROUBLE, ""))
        self.assertEqual(err, "rda: configuration: docker: is wrong\nrda: configuration: listen: too\n")

    def test_before_it_listens(self) -> None:
        """What an agent that ran before has left behind is not taken for an answer."""
        self.record(1, 99)
        command = ("reload", "--pid", str(os.getpid()), "--state-dir", str(self.directory))
        self.assertEqual(self.run_command(*command)[0], OK)

    def test_no_agent(self) -> None:
        """Nothing is told to a process that is no agent, or another's than the one whose state is looked at."""
        self.record(os.getpid(), 3)
        nowhere = f"unix://{self.directory / 'none.sock'}"
        self.assertEqual(self.run_command("reload", "-H", nowhere)[0], UNREACHABLE)
        self.record(1, 3)
        host = self.serve_all({"GET status": (200, self.agent)})
        code, _, err = self.run_command("reload", "-H", host)
        self.assertEqual((code, self.heard), (Exit.REFUSED, 0))
        self.assertIn("--state-dir", err)

    def test_an_agent_that_ends(self) -> None:
        """An agent that has gone is not waited for."""
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        code, _, err = self.run_command("reload", "--pid", str(gone.pid))
        self.assertEqual(code, UNREACHABLE)
        self.assertIn("has ended", err)

    def test_no_result(self) -> None:
        """An agent that does not say what came of it, as on a full disk, is not waited for without end."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        code, _, err = self.run_command("reload", "--pid", str(os.getpid()), "--timeout", "0")
        self.assertEqual(code, Exit.REFUSED)
        self.assertIn("rda status, or say --state-dir", err)


class CompletionTests(CommandCase):
    def test_shells(self) -> None:
        """For each shell there is a script that knows the commands."""
        for shell in ("bash", "zsh", "fish"):
            code, out, _ = self.run_command("completion", shell)
            self.assertEqual(code, OK)
            self.assertIn("mirrors", out)

    def test_bash(self) -> None:
        """In bash, the Tab key completes commands and their options."""
        bash = shutil.which("bash")
        if bash is None:
            self.skipTest("there is no bash here")
        script = Path(self.mktemp())
        script.write_text(self.run_command("completion", "bash")[1])
        for words, wanted in ((["rda", "sta"], "status"), (["rda", "status", "--w"], "--watch")):
            typed = " ".join(words)
            complete = f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _shtab_rda; echo ${{COMPREPLY[@]}}"
            done = subprocess.run(
                [bash, "-c", f"source {script}; {complete}"], capture_output=True, text=True, timeout=60
            )
            self.assertEqual(done.stdout.strip(), wanted, done.stderr)


class PluginTests(CommandCase):
    def test_handshake(self) -> None:
        """The docker command is given the metadata that it asks for."""
        out = io.StringIO()
        asked = mock.patch.object(sys, "argv", ["docker-rda", "docker-cli-plugin-metadata"])
        with asked, contextlib.redirect_stdout(out):
            self.assertEqual(plugin_main(), 0)
        self.assertEqual(json.loads(out.getvalue()), METADATA)

    def test_words(self) -> None:
        """The docker command's own options are taken off; its ``--host`` is the agent's."""
        for words, wanted in (
            ("rda status --watch", "status --watch"),
            ("--host tcp://x:1 rda status", "--host tcp://x:1 status"),
            ("-H=tcp://x:1 --tls rda", "--host tcp://x:1"),
            ("--context away --config /c -D -l debug rda gc --yes", "gc --yes"),
            ("status", "status"),
            ("", ""),
        ):
            self.assertEqual(own_words(words.split()), wanted.split())

    def test_install(self) -> None:
        """The link is made where the docker command looks, replaced, and removed; a file that is none stays."""
        self.environ["DOCKER_CONFIG"] = str(self.home / "docker")
        program = self.home / "docker-rda"
        program.touch()
        link = self.home / "docker/cli-plugins/docker-rda"
        with mock.patch.object(sys, "argv", [str(self.home / "rda")]):
            for _ in range(2):
                self.assertEqual(self.run_command("plugin", "install")[0], OK)
                self.assertEqual(link.readlink(), program)
            self.assertEqual(self.run_command("plugin", "remove")[0], OK)
            self.assertFalse(link.is_symlink())
            link.write_text("")
            for do in ("install", "remove"):
                self.assertEqual(self.run_command("plugin", do)[0], Exit.REFUSED)
        self.assertTrue(link.exists())


class DocumentationTests(SynchronousTestCase):
    def test_commands_and_exit_codes(self) -> None:
        """docs/command.rst describes every command and every exit code, and none that there is not."""
        text = (Path(__file__).parent.parent / "docs/command.rst").read_text(encoding="utf-8")
        described = re.findall(r"^``rda (\w+)``$", text, re.MULTILINE)
        self.assertEqual(sorted(described), sorted(command.name for command in COMMANDS))
        table = text.partition("Exit codes\n----------\n")[2].partition("What the doctor")[0]
        self.assertEqual({int(code) for code in re.findall(r"^(\d+) ", table, re.MULTILINE)}, set(Exit))


class TerminalTests(SynchronousTestCase):
    def test_numbers(self) -> None:
        """Sizes and spans of time are said as people say them."""
        said = [size(n) for n in (0, 999, 1000, 99_949, 123_456, 999_999_999, 5 * 10**12)]
        self.assertEqual(said, ["0 B", "999 B", "1.0 kB", "99.9 kB", "123 kB", "1.0 GB", "5.0 TB"])
        said = [duration(n) for n in (0.04, 1, 59.9, 60, 61, 3600, 90_000)]
        self.assertEqual(said, ["40 ms", "1 s", "59 s", "1 min", "1 min 1 s", "1 h", "1 d 1 h"])

    def test_progress(self) -> None:
        """How far a mirror is, is said with what is known of it."""
        mirror = MirrorStatus("/x", "", "applying", files_done=1200, files_total=80_000)
        self.assertEqual(progress(mirror), "1,200 of 80,000 files")
        mirror = replace(mirror, bytes_done=5, bytes_total=4 * 10**9, rate=35e6, time_left=0.2)
        self.assertEqual(progress(mirror), "1,200 of 80,000 files, 5 B of 4.0 GB, 35.0 MB/s, about 1 s left")
        self.assertEqual(progress(replace(mirror, state="scanning")), "looking at the files here")

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

    def test_screen(self) -> None:
        """A screen is drawn over the one before; what does not fit is cut off, but no colour is left on."""

        class Screen(io.StringIO):
            def isatty(self) -> bool:
                return True

        screen = Terminal(Screen(), io.StringIO(), True)
        with mock.patch("shutil.get_terminal_size", return_value=os.terminal_size((5, 3))):
            screen.screen([screen.style("123", "red") + "4567", "x", "y"])
        red = "\x1b[31m123\x1b[0m45"
        self.assertEqual(screen.out.getvalue(), f"\x1b[H{red}\x1b[K\nx\x1b[K\n\x1b[J")  # type: ignore[attr-defined]

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
