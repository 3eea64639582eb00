"""The audit: what is written, how files are put aside, and what a full disk does."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rda.access.audit import Audit, AuditUnwritable, Record, files_of, read, timestamp
from rda.command import main
from rda.command.base import Exit
from tests.gate_case import GateCase

#: Seconds that a test waits for the writing thread before it gives up; it waits for events, and needs milliseconds.
PATIENCE = 30.0


def a_record(**changes: Any) -> Record:
    known: dict[str, Any] = {
        "time": timestamp(0), "context": "default", "user": "ann", "proof": "unix socket", "uid": 1000, "pid": 1,
        "method": "POST", "path": "/containers/x/start", "endpoint": "container start", "decision": "allowed",
        "rules": (), "container": "", "sent": 1, "received": 2, "seconds": 0.5, "status": 204,
    }  # fmt: skip
    return Record(**{**known, **changes})


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.fail: int | None = None
        self.failures = threading.Semaphore(0)

    def open(self, **options: Any) -> Audit:
        audit = Audit(self.path, **{"max_bytes": 1 << 20, "keep": 8, **options}, write=self.write, retry=0.001)
        audit.start()
        self.addCleanup(audit.stop)
        return audit

    def write(self, descriptor: int, data: bytes) -> int:
        if self.fail is not None:
            self.failures.release()
            raise OSError(self.fail, os.strerror(self.fail))
        return os.write(descriptor, data)

    def wait_failed(self) -> None:
        """Wait until the audit knows that it cannot write: when it tries for the second time."""
        for _ in range(2):
            self.assertTrue(self.failures.acquire(timeout=PATIENCE))

    def test_lines(self) -> None:
        """Each record is one JSON line; the file is its owner's only, whatever the umask."""
        self.path.touch(0o644)
        audit = self.open()
        audit.record(a_record())
        audit.record(a_record(user="b\nob", path="/" + "x" * 1000))
        audit.stop()
        lines = self.path.read_bytes().splitlines()
        self.assertEqual([json.loads(line)["user"] for line in lines], ["ann", "b\nob"])
        self.assertEqual(len(json.loads(lines[1])["path"]), 512)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        self.assertEqual([one["seconds"] for one in read([self.path])], [0.5, 0.5])

    def test_rotation(self) -> None:
        """A full file is put aside, and the oldest goes; no line is split between two."""
        audit = self.open(max_bytes=1000, keep=2)
        for number in range(20):
            audit.record(a_record(sent=number))
            audit.stop()
            audit.start()
        audit.stop()
        files = files_of(self.path)
        self.assertEqual([one.name.removeprefix(self.path.name) for one in files], [".2", ".1", ""])
        self.assertLessEqual(max(one.stat().st_size for one in files), 1000)
        sent = [one["sent"] for one in read(files)]
        self.assertEqual(sent, list(range(20))[-len(sent) :])

    def test_full_disk(self) -> None:
        """A full disk is reported and keeps nobody from working; what waits is written when there is room."""
        audit = self.open()
        self.fail = errno.ENOSPC
        audit.record(a_record())
        self.wait_failed()
        audit.record(a_record())
        audit.check()
        self.fail = None
        audit.stop()
        self.assertEqual(len(list(read([self.path]))), 2)

    def test_reported(self) -> None:
        """While the audit cannot be written, the status says so."""
        audit = self.open()
        self.fail = errno.ENOSPC
        self.assertIsNone(audit.problem())
        audit.record(a_record())
        self.wait_failed()
        problem = audit.problem()
        assert problem is not None
        self.assertIn("No space left on device", problem.message)

    def test_fail_closed(self) -> None:
        """Where it is asked for, nothing is changed while the audit cannot be written."""
        audit = self.open(fail_closed=True)
        audit.check()
        self.fail = errno.ENOSPC
        audit.record(a_record())
        self.wait_failed()
        with self.assertRaises(AuditUnwritable):
            audit.check()

    def test_too_many_wait(self) -> None:
        """Lines beyond the bound are counted, not kept: the reactor never waits."""
        audit = Audit(self.path, 1 << 20, 8)  # not started: nobody writes
        for _ in range(10_005):
            audit.record(a_record())
        self.assertEqual(audit.lost, 5)
        problem = audit.problem()
        assert problem is not None
        self.assertIn("5 lines", problem.message)

    def test_stopping_with_a_full_disk(self) -> None:
        """The end of the process does not wait for a disk that stays full."""
        audit = self.open()
        self.fail = errno.ENOSPC
        audit.record(a_record())
        self.wait_failed()
        audit.stop()
        self.assertEqual(self.path.read_bytes(), b"")

    def test_not_through_a_link(self) -> None:
        """The file is not written through a symbolic link that somebody left."""
        self.path.symlink_to("/dev/null")
        with self.assertRaises(OSError):
            Audit(self.path, 1 << 20, 8).start()

    def test_torn_line(self) -> None:
        """A line that a crash has torn is left out."""
        self.path.write_bytes(a_record().line() + b'{"time":')
        self.assertEqual(len(list(read([self.path]))), 1)


class CommandTests(SynchronousTestCase):
    """``rda audit``."""

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.path = directory / "audit.jsonl"
        early = [a_record(), a_record(user="bob", container="c" * 64, context="gpu")]
        late = [a_record(time=timestamp(1e9), decision="refused", rules=("privileged",), status=403)]
        (directory / "audit.jsonl.1").write_bytes(b"".join(one.line() for one in early))
        self.path.write_bytes(b"".join(one.line() for one in late))

    def run_it(self, *words: str, file: Path | None = None) -> tuple[int, list[str]]:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = main(["audit", "--file", str(file or self.path), *words])
        return code, output.getvalue().splitlines()

    def test_all(self) -> None:
        """All files are read, oldest first, a line for each call."""
        code, lines = self.run_it()
        self.assertEqual((code, len(lines)), (0, 3))
        self.assertIn("ann: POST /containers/x/start allowed, 204", lines[0])
        self.assertIn("gpu bob", lines[1])
        self.assertIn("container cccccccccccc", lines[1])
        self.assertIn("refused (privileged), 403", lines[2])

    def test_some(self) -> None:
        """Lines are chosen by user, context, container, time and decision."""
        for words, count in (
            (("--user", "bob"), 1),
            (("--user", "carl"), 0),
            (("--context", "gpu"), 1),
            (("--container", "ccc"), 1),
            (("--refused",), 1),
            (("--since", "2000-01-01"), 1),
            (("-n", "2"), 2),
        ):
            code, lines = self.run_it("--json", *words)
            self.assertEqual((code, len(lines)), (0, count), words)
            for line in lines:
                json.loads(line)

    def test_none(self) -> None:
        """Without an audit it says where it looked."""
        code, lines = self.run_it(file=Path("/nowhere/audit.jsonl"))
        self.assertEqual(code, Exit.REFUSED)
        self.assertIn("/nowhere/audit.jsonl", lines[0])


class _Kept(Audit):
    """An audit in memory."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), 1 << 20, 8)
        self.records: list[Record] = []
        self.failing = False

    def record(self, record: Record) -> None:
        self.records.append(record)

    def check(self) -> None:
        if self.failing:
            raise AuditUnwritable("full")


class CallTests(GateCase):
    """What the gate notes of calls."""

    def build(self, **table: Any) -> None:
        self.audit = self.kept = _Kept()
        super().build(**table)

    def test_an_allowed_call(self) -> None:
        """Who, what, the container, bytes, seconds and the status are noted."""
        id_ = self.create("ann", "web")
        (record,) = self.kept.records
        self.assertEqual((record.user, record.proof, record.uid), ("ann", "unix socket", 1000))
        self.assertEqual(
            (record.method, record.path, record.endpoint), ("POST", "/containers/create", "container create")
        )
        self.assertEqual((record.decision, record.rules, record.status), ("allowed", (), 201))
        self.assertEqual(record.container, id_)
        self.assertGreater(record.sent, 100)
        self.assertGreater(record.received, 10)

    def test_a_refused_call(self) -> None:
        """The rules that refused it are noted, and that nothing was sent."""
        document = {"Image": "x", "HostConfig": {"Privileged": True, "CapAdd": ["ALL"]}}
        self.refusal("POST", "/v1.45/containers/create", document)
        (record,) = self.kept.records
        self.assertEqual((record.decision, record.status, record.sent), ("refused", 403, 0))
        self.assertEqual(set(record.rules), {"privileged", "capabilities"})
        self.assertEqual(record.path, "/containers/create")

    def test_a_malformed_call(self) -> None:
        """A document that cannot be read is refused, and noted."""
        self.assertEqual(self.ask("POST", "/containers/create", b"{")[0], 400)
        (record,) = self.kept.records
        self.assertEqual((record.decision, record.status), ("refused", 400))

    def test_a_form(self) -> None:
        """So is one that is refused for its head."""
        form = "Content-Type: application/x-www-form-urlencoded\r\n"
        self.assertEqual(self.ask("POST", "/containers/prune", b"filters={}", more=form)[0], 400)
        (record,) = self.kept.records
        self.assertEqual((record.decision, record.status, record.path), ("refused", 400, "/containers/prune"))

    def test_reads_are_not_noted(self) -> None:
        """Calls that change nothing are not noted."""
        id_ = self.create("ann", "web")
        self.kept.records.clear()
        for method, path in (("GET", "/containers/json"), ("GET", "/_ping"), ("POST", f"/containers/{id_}/wait")):
            self.ask(method, path)
        self.assertEqual(self.kept.records, [])

    def test_fail_closed(self) -> None:
        """Without an audit nothing is changed; reads go on."""
        self.kept.failing = True
        self.assertEqual(self.ask("POST", "/containers/x/start")[0], 503)
        self.assertEqual(self.ask("GET", "/_ping")[0], 200)
        self.assertEqual(self.daemon.calls("POST", "/containers/x/start"), [])

    def test_no_secrets(self) -> None:
        """Nothing of a head, query or body is written: the fields are these and no others."""
        secret = "hunter2"
        more = f"X-Registry-Auth: {secret}\r\nAuthorization: Bearer {secret}\r\nX-Registry-Config: {secret}\r\n"
        for target, document in (
            (f"/images/create?fromImage=busybox&secret={secret}", None),
            ("/auth", {"username": "x", "password": secret, "serveraddress": f"https://u:{secret}@example.com"}),
            ("/containers/create", {"Image": "x", "Env": [f"PASSWORD={secret}"], "Labels": {"a": secret}}),
            (f"/build?buildargs={secret}&remote=https://u:{secret}@example.com/x", None),
            ("/volumes/create", {"DriverOpts": {"type": "cifs", "o": f"password={secret}", "device": "//x"}}),
            ("/containers/x/exec", {"Cmd": ["login", secret], "Env": [secret], "Privileged": True}),
        ):
            self.ask("POST", target, document, more=more)
        self.assertEqual(len(self.kept.records), 6)
        self.assertNotIn(secret, b"".join(record.line() for record in self.kept.records).decode())
        names = (
            "time context user proof uid pid method path endpoint decision rules container sent received seconds status"
        )
        self.assertEqual({field.name for field in fields(Record)}, set(names.split()))


class OwnerTests(GateCase):
    access = {"owner_filter": True}

    def build(self, **table: Any) -> None:
        self.audit = self.kept = _Kept()
        super().build(**table)

    def test_others(self) -> None:
        """A call for what is another's is noted as refused by the filter; one's own with the container's id."""
        id_ = self.create("ann", "web")
        self.ask("POST", "/containers/web/stop", user="bob")
        self.ask("POST", "/swarm/init", user="bob")
        self.ask("POST", "/containers/web/stop", user="ann")
        noted = [(one.user, one.decision, one.rules, one.container) for one in self.kept.records[1:]]
        refused = ("bob", "refused", ("owner_filter",), "")
        self.assertEqual(noted, [refused, refused, ("ann", "allowed", (), id_)])


class OnlyAuditTests(CallTests):
    """Without a policy, calls are noted and nothing else is different."""

    access = {}

    def test_a_refused_call(self) -> None:
        """Nothing is refused."""
        document = {"Image": "x", "HostConfig": {"Privileged": True}}
        self.assertEqual(self.ask("POST", "/containers/create", document)[0], 201)
