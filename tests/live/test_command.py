"""The ``rda`` command and the docker command's plugin, against a running agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.live.process import fetch
from tests.live.support import COMMAND_SECONDS, LiveTestCase
from tests.live.terminal import Terminal

#: A tree whose first transfer is noticed: more files than a create keeps quiet about.
FILES = 6000

#: What is typed before the Tab key, after ``rda``, and what it becomes.
COMPLETED = {
    "sta": "status",
    "status --w": "status --watch",
    "context inst": "context install",
    "completion zs": "completion zsh",
    "flush /et": "flush /etc/",
    "doctor --config /et": "doctor --config /etc/",
    "reload --state-dir /us": "reload --state-dir /usr/",
}

#: Notes what has been typed, completed by then, at Ctrl-T.
ZSHRC = """
fpath=($ZDOTDIR $fpath)
autoload -Uz compinit && compinit -u -D
note() { print -r -- "$BUFFER" >> $ZDOTDIR/typed; BUFFER=; }
zle -N note
bindkey '^T' note
"""


class Command(LiveTestCase):
    def environ(self, **more: str) -> dict[str, str]:
        """What a command finds the tests' agent by: the state directory alone."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")}
        return {**kept, "RDA_STATE_DIR": str(self.rda.state)} | more

    def command(self, *words: str, code: int = 0, **environ: str) -> str:
        """Run ``rda`` as a user does; return what it printed."""
        program = Path(sys.executable).with_name("rda")
        done = subprocess.run(
            [program, *words],
            env=self.environ(**environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout

    def test_status(self):
        """The link, a published port and a bind mount are there to see; control changes what is seen."""
        source = self.directory()
        (source / "file").write_text("one")
        port = "127.0.0.1::80"
        self.rda.docker("run", "-d", "--name", "web", "-p", port, "-v", f"{source}:/www", "busybox", "sleep", "1000")
        text = self.command("status")
        for words in ("connected", "socket via streamlocal", "-> web 80/tcp", str(source)):
            self.assertIn(words, text)
        self.command("pause", str(source))
        (source / "file").write_text("two")
        self.command("flush", str(source), code=3)
        self.assertIn("paused", self.command("mirrors"))
        self.command("resume")
        self.command("flush", str(source / "file"))
        self.assertEqual(self.rda.docker("exec", "web", "cat", "/www/file").stdout, b"two")
        (forward,) = json.loads(self.command("forwards", "--json"))
        self.assertEqual((forward["name"], forward["state"]), ("web", "open"))
        self.assertIn("agent ", self.command("version"))
        self.assertTrue(self.command("logs", "-n", "5"))

    def test_gc(self):
        """A copy that no container uses any more is listed, then removed when that is asked for."""
        source = self.directory()
        (source / "file").write_bytes(b"x" * 100_000)
        first = self.own_rda()
        first.wait_ready()
        first.docker("run", "--rm", "-v", f"{source}:/x", "busybox", "true")
        # For two minutes a create that is still on its way might need it; another agent knows of none.
        first.stop()
        self.own_rda(state_dir=str(first.state)).wait_ready()

        def unused() -> list[dict[str, Any]]:
            copies = json.loads(self.command("gc", "--json", RDA_STATE_DIR=str(first.state)))
            return [copy for copy in copies if copy["source"] == str(source)]

        (copy,) = unused()
        self.assertGreaterEqual(copy["bytes"], 100_000)
        self.command("gc", "--yes", RDA_STATE_DIR=str(first.state))
        self.assertEqual(unused(), [])
        self.assertEqual(self.host.run("find", "/home", "-name", copy["name"]).stdout, b"")

    def test_plugin(self):
        """``docker rda`` is the same command."""
        config = self.directory()
        self.command("plugin", "install", DOCKER_CONFIG=str(config))
        environ = self.environ(DOCKER_CONFIG=str(config))
        done = subprocess.run(
            self.rda.docker_command("rda", "status", "--json"),
            env=environ,
            capture_output=True,
            timeout=COMMAND_SECONDS,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["schema"], 1)
        helped = subprocess.run(self.rda.docker_command("help"), env=environ, capture_output=True, timeout=60)
        self.assertIn(b"rda", helped.stdout)

    def test_completion_in_zsh(self):
        """In zsh the Tab key completes commands, their options and choices, and paths."""
        home = self.directory()
        (home / "_rda").write_text(self.command("completion", "zsh"))
        (home / ".zshrc").write_text(ZSHRC)
        environ = {"PATH": os.environ["PATH"], "HOME": str(home), "ZDOTDIR": str(home), "TERM": "vt100"}
        terminal = Terminal(["zsh", "-i"], environ)
        self.addCleanup(terminal.close)
        terminal.send("".join(f"rda {words}\t\x14" for words in COMPLETED).encode())
        typed = home / "typed"

        def lines() -> list[str]:
            return typed.read_text().splitlines() if typed.exists() else []

        self.eventually(lambda: len(lines()) == len(COMPLETED), "zsh has read everything", COMMAND_SECONDS)
        self.assertEqual([line.rstrip() for line in lines()], [f"rda {words}" for words in COMPLETED.values()])

    def test_completion_in_fish(self):
        """And in fish."""
        home = self.directory()
        (home / "rda.fish").write_text(self.command("completion", "fish"))
        asked = "".join(f"; complete -C 'rda {words}'" for words in COMPLETED)
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source {home}/rda.fish{asked}"],
            env={"PATH": os.environ["PATH"], "HOME": str(home)},
            capture_output=True,
            timeout=COMMAND_SECONDS,
            text=True,
        )
        found = [line.partition("\t")[0] for line in done.stdout.splitlines()]
        self.assertEqual(found, [words.split()[-1] for words in COMPLETED.values()], done.stderr)

    def test_first_transfer(self):
        """The first transfer of a large tree may be announced by the create, and its progress is there to see."""
        source = self.directory()
        for directory in range(FILES // 500):
            (source / str(directory)).mkdir()
            for file in range(500):
                (source / str(directory) / str(file)).write_bytes(b"%d" % file * 50)
        watch = subprocess.Popen(
            [Path(sys.executable).with_name("rda"), "status", "--watch"],
            env=self.environ(),
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(watch.wait)
        self.addCleanup(watch.kill)
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.extend(watch.stdout), daemon=True)
        reader.start()
        done = self.rda.docker(
            "run", "--rm", "-v", f"{source}:/src", "busybox", "sh", "-c", "find /src -type f | wc -l"
        )
        self.assertEqual(int(done.stdout), FILES)
        # On a fast way so little may be left by the time of the answer that there is nothing to say.
        for line in done.stderr.decode().splitlines():
            self.assertRegex(line, rf"^WARNING: rda: {source} is on its way to the remote host: [\d,]+ files")
        self.eventually(lambda: any(str(source) in line for line in list(seen)), "the watcher sees the mirror", 10)
        metrics = fetch(self.rda.port, "_rda/metrics")
        self.assertRegex(metrics, rf'rda_mirror_files{{context="default",source="{source}"}} {FILES + 13}')
