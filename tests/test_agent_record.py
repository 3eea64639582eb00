"""What the agent writes down for the command."""

from __future__ import annotations

import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rda.agent_record import RECORD_NAME, AgentRecord, RecordedContext, read_record, write_record
from rda.config import Context, Remote


class RecordTests(SynchronousTestCase):
    def directory(self) -> Path:
        path = Path(self.mktemp())
        path.mkdir()
        return path

    def test_round_trip(self) -> None:
        """What is written is read again; only its owner can read it, and nothing else is left there."""
        directory = self.directory()
        remote = Remote("me@host", identities=("/key",), accept_new=True)
        contexts = (RecordedContext.of(Context("x", remote), ("tcp://localhost:1",)),)
        record = AgentRecord(pid=7, contexts=contexts, reloads=2, reload_problems=("context x: in use",))
        write_record(directory, AgentRecord())
        write_record(directory, record)
        self.assertEqual(read_record(directory), record)
        self.assertEqual([path.name for path in directory.iterdir()], [RECORD_NAME])
        self.assertEqual(stat.S_IMODE((directory / RECORD_NAME).stat().st_mode), 0o600)

    def test_older(self) -> None:
        """A file of a version that did not count reloads is read all the same."""
        directory = self.directory()
        (directory / RECORD_NAME).write_text('{"version": "0.0", "pid": 7, "contexts": []}')
        self.assertEqual(read_record(directory), AgentRecord("0.0", 7))

    def test_unreadable(self) -> None:
        """A file that is missing, damaged or of another version is none."""
        directory = self.directory()
        self.assertEqual(read_record(directory), AgentRecord())
        for text in ("", "[]", "{}", '{"version": "9", "pid": 1, "contexts": [{}]}', "\x00"):
            (directory / RECORD_NAME).write_text(text)
            self.assertEqual(read_record(directory), AgentRecord())
