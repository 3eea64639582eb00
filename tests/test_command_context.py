"""``rda context`` and ``rda token``."""

from __future__ import annotations

import hashlib
import io
import json
import stat
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from rda.agent_record import AgentRecord, RecordedContext, write_record
from rda.command import main
from rda.command.base import CommandError
from rda.command.docker_contexts import CERTIFICATES, DockerContexts
from rda.command.terminal import Terminal
from rda.config import Context, Remote

#: Notes its words, and does nothing.
DOCKER = """#!/bin/sh
printf '%s\\n' "$@" >>"$DOCKER_CONFIG/words"
echo "${DOCKER_HOST-unset}" >>"$DOCKER_CONFIG/words"
exit ${DOCKER_EXIT:-0}
"""


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.config = self.home / ".docker"
        self.state = self.home / "state"
        self.state.mkdir(parents=True)
        self.environ = {"HOME": str(self.home), "RDA_STATE_DIR": str(self.state), "PATH": "/nowhere"}

    def run_command(self, *words: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict("os.environ", self.environ, clear=True),
            mock.patch.object(Terminal, "here", return_value=Terminal(out, err)),
        ):
            return main(words), out.getvalue(), err.getvalue()

    def succeed(self, *words: str) -> str:
        code, out, err = self.run_command(*words)
        self.assertEqual((code, err), (0, ""))
        return out

    def fail_with(self, *words: str) -> str:
        code, out, err = self.run_command(*words)
        self.assertEqual((code, out), (3, ""))
        return err

    def record(self, **listeners: str) -> None:
        """An agent that has listened; name -> endpoint, "" for a context that does not run."""
        contexts = tuple(
            RecordedContext.of(Context(name, Remote(f"me@{name}")), tuple(where.split()))
            for name, where in listeners.items()
        )
        write_record(self.state, AgentRecord(pid=1, contexts=contexts))

    def contexts(self) -> DockerContexts:
        return DockerContexts(self.environ)

    def host(self, name: str) -> str:
        found = self.contexts().find(name)
        assert found is not None
        return found.host


class InstallTests(Case):
    def test_the_only_context(self) -> None:
        """The agent's only context is meant, whatever the Docker context is called."""
        self.record(default="tcp://localhost:23750")
        out = self.succeed("context", "install", "over-there")
        self.assertEqual(
            out,
            "The Docker context over-there leads to tcp://localhost:23750. To use it: docker context use over-there\n",
        )
        (found,) = self.contexts().all()
        self.assertEqual(found.description, "rda: default on me@default")

    def test_the_context_of_that_name(self) -> None:
        """Of several, the one of the same name is meant, or the one that is said; a UNIX socket is preferred."""
        self.record(gpu="tcp://localhost:1 unix:///run/gpu.sock", arm="tcp://localhost:2")
        self.succeed("context", "install", "gpu")
        self.assertEqual(self.host("gpu"), "unix:///run/gpu.sock")
        self.succeed("context", "install", "mine", "--context", "arm")
        self.assertEqual(self.host("mine"), "tcp://localhost:2")
        self.assertIn("--context: arm, gpu", self.fail_with("context", "install", "other"))
        self.assertIn("--context: arm, gpu", self.fail_with("--context", "x", "context", "install", "gpu"))

    def test_nothing_to_lead_to(self) -> None:
        """What does not run cannot be led to."""
        self.assertIn("no agent has listened yet", self.fail_with("context", "install", "x-y"))
        self.record(default="")
        self.assertIn("is not running", self.fail_with("context", "install", "x-y"))
        self.succeed("context", "install", "x-y", "--host", "unix:///x")

    def test_again(self) -> None:
        """Installed again, it leads to where the agent is now; whoever made it otherwise keeps it."""
        for host in ("unix:///a", "unix:///b"):
            self.succeed("-H", host, "context", "install", "rda")
        self.assertEqual(self.host("rda"), "unix:///b")
        meta = next(self.config.glob("contexts/meta/*/meta.json"))
        meta.write_text(json.dumps({"Name": "rda", "Endpoints": {"docker": {"Host": "ssh://x"}}}))
        self.assertIn("not rda's (ssh://x)", self.fail_with("-H", "unix:///c", "context", "install", "rda"))
        self.assertIn("docker context rm rda", self.fail_with("context", "remove", "rda"))
        self.assertEqual(self.host("rda"), "ssh://x")

    def test_files(self) -> None:
        """The files are where the docker command looks for them, and it can read them."""
        self.succeed("-H", "unix:///a", "context", "install", "rda")
        digest = hashlib.sha256(b"rda").hexdigest()
        document = json.loads((self.config / f"contexts/meta/{digest}/meta.json").read_text())
        endpoint = {"Host": "unix:///a", "SkipTLSVerify": False}
        self.assertEqual((document["Name"], document["Endpoints"]), ("rda", {"docker": endpoint}))

    def test_certificates(self) -> None:
        """Certificates go with it, readable by their owner only, and are missed when one is not there."""
        files = self.home / "tls"
        files.mkdir()
        for name in CERTIFICATES[:2]:
            (files / name).write_text(name)
        words = ("-H", "tcp://x:1", "context", "install", "rda", "--tls", str(files))
        self.assertIn("has no key.pem", self.fail_with(*words))
        (files / "key.pem").write_text("key.pem")
        self.succeed(*words)
        directory = next(self.config.glob("contexts/tls/*/docker"))
        for name in CERTIFICATES:
            self.assertEqual((directory / name).read_text(), name)
            self.assertEqual(stat.S_IMODE((directory / name).stat().st_mode), 0o600)
        self.environ |= {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(self.home)}
        self.assertIn("has no ca.pem", self.fail_with("-H", "tcp://x:1", "context", "install", "rda"))

    def test_names(self) -> None:
        """A name that Docker has no context of is refused."""
        for name in ("default", "a b", "../x", "x"):
            self.assertIn("cannot be the name", self.fail_with("-H", "unix:///a", "context", "install", name))

    def test_an_unwritable_directory(self) -> None:
        """What cannot be written is named."""
        self.config.write_text("a file")
        self.assertIn("cannot write the Docker context", self.fail_with("-H", "unix:///a", "context", "install", "rda"))

    def test_docker_host_wins(self) -> None:
        """A variable that is stronger than any context is pointed out."""
        self.environ["DOCKER_HOST"] = "unix:///var/run/docker.sock"
        code, _, err = self.run_command("-H", "unix:///a", "context", "install", "rda")
        self.assertEqual(code, 0)
        self.assertIn("unset DOCKER_HOST", err)


class ListTests(Case):
    def test_list(self) -> None:
        """Only contexts that rda made are listed; the one in use is marked."""
        self.assertIn("No Docker context", self.succeed("context", "list"))
        for name in ("b1", "a1"):
            self.succeed("-H", f"unix:///{name}", "context", "install", name)
        other = self.config / "contexts/meta/0"
        other.mkdir()
        (other / "meta.json").write_text('{"Name": "other"}')
        damaged = self.config / "contexts/meta/1"
        damaged.mkdir()
        (damaged / "meta.json").write_text("[")
        (self.config / "config.json").write_text('{"currentContext": "b1"}')
        lines = self.succeed("context", "list").splitlines()
        self.assertEqual([line.split()[0] for line in lines], ["a1", "b1"])
        self.assertIn("b1 *", lines[1])
        shown = json.loads(self.succeed("context", "list", "--json"))
        self.assertEqual([(one["name"], one["current"]) for one in shown], [("a1", False), ("b1", True)])

    def test_remove(self) -> None:
        """A context is removed with its certificates, but not while it is in use."""
        self.succeed("-H", "unix:///a", "context", "install", "rda")
        (self.config / "config.json").write_text('{"currentContext": "rda"}')
        self.assertIn("is in use", self.fail_with("context", "remove", "rda"))
        (self.config / "config.json").write_text("{}")
        self.succeed("context", "remove", "rda")
        self.assertEqual(list(self.config.glob("contexts/*/*")), [])
        self.assertIn("there is no", self.fail_with("context", "remove", "rda"))


class WithDockerTests(Case):
    def setUp(self) -> None:
        super().setUp()
        programs = self.home / "bin"
        programs.mkdir()
        (programs / "docker").write_text(DOCKER)
        (programs / "docker").chmod(0o755)
        self.config.mkdir()
        self.environ |= {"PATH": f"{programs}:/bin:/usr/bin", "DOCKER_CONFIG": str(self.config)}

    def words(self) -> list[str]:
        return (self.config / "words").read_text().splitlines()

    def test_create(self) -> None:
        """Where there is the docker command, it makes the context, and is not led astray by where it would connect."""
        self.environ["DOCKER_HOST"] = "unix:///elsewhere"
        self.run_command("-H", "unix:///a", "context", "install", "rda")
        wanted = ["context", "create", "rda", "--description", "rda: unix:///a", "--docker", "host=unix:///a", "unset"]
        self.assertEqual(self.words(), wanted)

    def test_failure(self) -> None:
        """What it complains about is passed on."""
        self.environ["DOCKER_EXIT"] = "1"
        self.assertIn(
            "docker context create rda failed", self.fail_with("-H", "unix:///a", "context", "install", "rda")
        )

    def test_update_and_remove(self) -> None:
        """It changes and removes it, too."""
        with_files = DockerContexts({**self.environ, "PATH": "/nowhere"})
        with_files.install("rda", "unix:///a", "x", None)
        self.succeed("-H", "unix:///b", "context", "install", "rda")
        self.assertEqual(self.words()[:3], ["context", "update", "rda"])
        self.succeed("context", "remove", "rda")
        self.assertEqual(self.words()[-4:], ["context", "rm", "rda", "unset"])

    def test_certificates(self) -> None:
        """Certificates are handed to it by their paths."""
        files = self.home / "tls"
        files.mkdir()
        for name in CERTIFICATES:
            (files / name).write_text("")
        self.contexts().install("rda", "tcp://x:1", "x", files)
        self.assertIn(f"host=tcp://x:1,ca={files}/ca.pem,cert={files}/cert.pem,key={files}/key.pem", self.words())

    def test_not_to_be_run(self) -> None:
        """A docker command that cannot be run is a problem of its own."""
        contexts = self.contexts()
        (self.home / "bin/docker").write_text("#!/nowhere/sh\n")
        self.assertRaises(CommandError, contexts.install, "rda", "unix:///a", "x", None)


class TokenTests(Case):
    def test_token(self) -> None:
        """A token is made once, with the hash that the configuration takes."""
        found = json.loads(self.succeed("token", "bob@example.com", "--json"))
        self.assertEqual(found["hash"], "sha256:" + hashlib.sha256(found["token"].encode()).hexdigest())
        self.assertRegex(found["token"], r"^rda_[\w-]{43}$")
        again = json.loads(self.succeed("token", "bob@example.com", "--json"))
        self.assertNotEqual(again["token"], found["token"])

    def test_for_people(self) -> None:
        """What goes where is said; the lines can be copied."""
        lines = self.succeed("token", "ci").splitlines()
        headers = json.loads(lines[-1])["HttpHeaders"]
        self.assertTrue(headers["Authorization"].startswith("Bearer rda_"))
        self.assertEqual(lines[1], "[tokens]")
        self.assertRegex(lines[2], r'^"ci" = "sha256:[0-9a-f]{64}"$')

    def test_names(self) -> None:
        """A user whom the configuration could not name is refused."""
        self.assertIn("cannot be a user's name", self.fail_with("token", "a b"))
