"""What the doctor says of broken set-ups that need no remote host, and of one in memory."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import socket
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from rda.agent_record import RECORD_NAME, AgentRecord, RecordedContext, write_record
from rda.command import doctor, main
from rda.command.base import Exit
from rda.config import Context, Remote
from rda.doctor import here
from rda.doctor.advice import about_link
from rda.doctor.finding import Finding, State
from rda.doctor.there import Examination
from tests.broken_setups import HERE
from tests.link_case import LinkCase, Program

OURS = ["tcp://localhost:23750"]


def shown(findings: Any) -> list[dict[str, Any]]:
    """Findings as ``rda doctor --json`` prints them."""
    return [{**vars(one), "state": one.state.value} for one in findings]


def status(**changes: Any) -> dict[str, Any]:
    return {"version": "0.0.1", "contexts": [], "process": {"pid": 1}, **changes}


class HereTests(SynchronousTestCase):
    """Every set-up of :data:`HERE`, made as cheaply as it can be."""

    def directory(self) -> Path:
        path = Path(self.mktemp()).absolute()
        path.mkdir()
        return path

    def examine(self, *words: str) -> list[dict[str, Any]]:
        """Run the command without looking at any remote host."""
        out = io.StringIO()
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.directory()), "DOCKER_HOST": "unix:///nowhere.sock"}
        nothing = mock.patch.object(doctor, "_examine_remotes")
        with mock.patch.dict(os.environ, environ, clear=True), contextlib.redirect_stdout(out), nothing:
            main(["doctor", "--json", *words])
        return json.loads(out.getvalue())

    def proc(self, watches: int, instances: int) -> Path:
        proc = self.directory()
        (proc / "sys/fs/inotify").mkdir(parents=True)
        (proc / "sys/fs/inotify/max_user_watches").write_text(f"{watches}\n")
        (proc / "sys/fs/inotify/max_user_instances").write_text(f"{instances}\n")
        return proc

    def refusing(self, number: int) -> Iterator[Finding]:
        """Say of a state directory in which no file can be made."""
        with mock.patch.object(here.tempfile, "TemporaryFile", side_effect=OSError(number, os.strerror(number))):
            return iter(list(here.state(self.directory())))

    def setups(self) -> dict[str, Callable[[], Any]]:
        return {
            "configuration with errors": self.bad_configuration,
            "nobody said which remote": self.examine,
            "no agent runs": self.examine,
            "state of another agent": lambda: shown(here.whose(status(), OURS[0], 2, Path("/state"))),
            "agent of another version": lambda: shown(here.agent(status(), OURS[0], "")),
            "port taken": self.taken_port,
            "DOCKER_HOST points elsewhere": lambda: self.docker(DOCKER_HOST="tcp://elsewhere:1"),
            "docker context points elsewhere": self.other_context,
            "no docker command": lambda: shown(here.docker_command({"PATH": "/nowhere"}, OURS)),
            "read-only home": lambda: shown(self.refusing(errno.EROFS)),
            "state of somebody else": lambda: shown(self.refusing(errno.EACCES)),
            "full disk here": lambda: shown(self.refusing(errno.ENOSPC)),
            "nearly full disk here": self.nearly_full,
            "old rda, new state": self.new_state,
            "damaged identity": self.damaged_identity,
            "inotify limits": lambda: shown(here.inotify(self.proc(8192, 128))),
            "few open files": lambda: shown(here.descriptors(1024)),
            "clock off": self.clock_off,
        }

    def test_broken_setups(self) -> None:
        """The cause and the cure of each are named."""
        setups = self.setups()
        self.assertEqual(set(setups), set(HERE))
        for name, make in setups.items():
            with self.subTest(name):
                self.assertEqual(HERE[name].problem(make()), "", name)

    def bad_configuration(self) -> Any:
        file = self.directory() / "rda.toml"
        file.write_text('remote = "x"\nremotte = "y"')
        return self.examine("--config", str(file))

    def taken_port(self) -> Any:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            return shown(here.listeners([f"tcp:{port}:interface=127.0.0.1"], OURS))

    def docker(self, **environ: str) -> Any:
        bin_directory = self.directory()
        (bin_directory / "docker").write_text("#!/bin/sh\n")
        (bin_directory / "docker").chmod(0o755)
        environ = {"PATH": str(bin_directory), "HOME": str(self.directory()), **environ}
        return shown(here.docker_command(environ, OURS))

    def other_context(self) -> Any:
        home = self.directory()
        meta = home / ".docker/contexts/meta" / hashlib.sha256(b"away").hexdigest()
        meta.mkdir(parents=True)
        (meta / "meta.json").write_text(json.dumps({"Endpoints": {"docker": {"Host": "ssh://away"}}}))
        (home / ".docker/config.json").write_text('{"currentContext": "away"}')
        return self.docker(HOME=str(home))

    def nearly_full(self) -> Any:
        found = namedtuple("found", "f_bavail f_frsize")(10, 1_000_000)
        with mock.patch("os.statvfs", return_value=found):
            return shown(here.state(self.directory()))

    def new_state(self) -> Any:
        directory = self.directory()
        write_record(directory, AgentRecord(version="99.0"))
        return shown(here.state(directory))

    def damaged_identity(self) -> Any:
        directory = self.directory()
        (directory / "default").mkdir()
        (directory / "default/owner").write_bytes(b"\xff")
        return shown(here.state(directory))

    def clock_off(self) -> Any:
        context = RecordedContext.of(Context("x", Remote("h")), ())
        with mock.patch("rda.doctor.there.DaemonAPI"):
            examination = Examination(mock.Mock(), mock.Mock(), context, lambda: 10_000.0)
        return shown([examination._judge_clock(6_400)])

    def test_well(self) -> None:
        """Where nothing is wrong, nothing is said to be."""
        directory = self.directory()
        (directory / "default").mkdir()
        (directory / "default/owner").write_text("0" * 32 + "\n")
        write_record(directory, AgentRecord())
        checks = [
            *here.state(directory),
            *here.inotify(self.proc(100_000, 128)),
            *here.inotify(directory),
            *here.descriptors(1 << 20),
            *here.listeners(["tcp:23750:interface=127.0.0.1", "unix:/run/rda.sock"], [*OURS, "unix:///run/rda.sock"]),
        ]
        bad = [one for one in checks if one.state is not State.OK and "disk" not in one.subject]
        self.assertEqual(bad, [])
        self.assertEqual([one["state"] for one in self.docker(DOCKER_HOST="tcp://127.0.0.1:23750/")], ["ok"])

    def test_unix_listeners(self) -> None:
        """A socket needs its directory."""
        directory = self.directory()
        (made, missing) = here.listeners([f"unix:{directory}/x.sock", f"unix:{directory}/none/x.sock:mode=600"], [])
        self.assertEqual((made.state, missing.state), (State.OK, State.FAIL))
        self.assertIn(f"mkdir -p {directory}/none", missing.cure)

    def test_agents_problems(self) -> None:
        """What a running agent complains of is repeated."""
        problem = {"subject": "/src", "message": "is gone", "since": 0}
        context = {"name": "gpu", "problems": [], "mirrors": [{"problems": [problem]}]}
        (_, finding) = here.agent(status(contexts=[context]), OURS[0], "")
        self.assertEqual((finding.subject, finding.message), ("agent, context gpu", "/src: is gone"))

    def test_the_agents_own_state(self) -> None:
        """Nothing is said of the state when the agent's own is looked at, or none answers."""
        for one in status(), None:
            self.assertEqual(list(here.whose(one, OURS[0], 1, Path("/state"))), [])

    def test_exit_code(self) -> None:
        """A failure makes the exit code, a warning does not."""
        for state, code in ((State.WARN, Exit.OK), (State.FAIL, Exit.TROUBLE)):
            out = io.StringIO()
            found = Finding(state, "x", "is wrong", "do y")
            examine = mock.patch.object(doctor, "_examine", lambda options, show, found=found: show(found))
            with examine, contextlib.redirect_stdout(out):
                self.assertEqual(main(["doctor"]), code)
            self.assertEqual(out.getvalue(), f"{state.value}  x: is wrong\n      -> do y\n")

    def test_recorded(self) -> None:
        """Without options, what the agent wrote down when it last ran is looked at."""
        directory = self.directory()
        write_record(directory, AgentRecord(contexts=(RecordedContext.of(Context("gpu", Remote("me@host")), ()),)))
        self.assertTrue((directory / RECORD_NAME).exists())
        with mock.patch.object(doctor, "_examine_remotes") as examined, contextlib.redirect_stdout(io.StringIO()):
            main(["doctor", "--state-dir", str(directory), "--host", "unix:///nowhere.sock"])
        (contexts, _), _ = examined.call_args
        self.assertEqual([one.remote.target for one in contexts], ["me@host"])

    def test_advice(self) -> None:
        """There is advice for every reason."""
        self.assertIn("ssh -v", about_link("something new"))


class InfoDaemon(Protocol):
    """Answers what the doctor asks."""

    def dataReceived(self, data: bytes) -> None:
        body = b'{"ServerVersion": "1.2", "DockerRootDir": "/var/lib/docker"}'
        if b"/_ping" in data:
            body = b"OK"
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


class ThereTests(LinkCase):
    """The examination over real SSH in memory."""

    def examine(self) -> list[Finding]:
        context = RecordedContext.of(Context("x", Remote("server")), ())
        found: list[Finding] = []

        async def run() -> None:
            async for finding in Examination(self.clock, self.link, context).run():
                found.append(finding)

        done = Deferred.fromCoroutine(run())
        self.network.advance(100)
        self.successResultOf(done)
        return found

    def states(self) -> dict[str, str]:
        return {one.subject: one.state.value for one in self.examine()}

    def test_server_without_anything(self) -> None:
        """What a server does not have is said, each in its line; the examination goes on."""
        self.remote.sockets["/var/run/docker.sock"] = Factory.forProtocol(InfoDaemon)
        self.remote.tcp_allowed = False
        states = self.states()
        self.assertEqual(states.pop("port forwarding"), "fail")
        self.assertEqual(states, {"ssh": "ok", "docker": "ok", "commands": "warn", "sftp": "fail"})

    def test_something_else_is_run(self) -> None:
        """A forced command that prints something else is no shell."""
        from rda.doctor.there import PROBE

        self.remote.sockets["/var/run/docker.sock"] = Factory.forProtocol(InfoDaemon)
        self.remote.commands[PROBE] = Factory.forProtocol(lambda: Program(0, b"Welcome!\n"))
        (finding,) = [one for one in self.examine() if one.subject == "commands"]
        self.assertIn("something else", finding.message)

    def test_refused(self) -> None:
        """When there is no connection, its reason is all there is to say."""
        self.network.state = "refused"
        (finding,) = self.examine()
        self.assertEqual((finding.state, finding.subject), (State.FAIL, "ssh"))
        self.assertIn("start sshd", finding.cure)
