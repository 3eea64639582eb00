"""The log as lines of JSON."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import Any

from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from rda.json_log import JSONLines

#: Runs twistd as its own script does.
TWISTD = "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"


class JSONLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.file = io.StringIO()
        self.log = Logger("rda.x", observer=LogPublisher(JSONLines(self.file)))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.getvalue().splitlines()]

    def test_a_line_for_each_event(self) -> None:
        """A line has the time, the level, the part of the program and the text, whatever that holds."""
        event = {"log_format": "{name} is gone", "name": "a\nb\udc80", "log_namespace": "rda.x", "log_time": 1.5}
        JSONLines(self.file)({**event, "log_level": LogLevel.warn})
        self.log.debug("not of interest")
        self.assertEqual(
            self.lines(),
            [{"time": "1970-01-01T00:00:01.500Z", "level": "warn", "where": "rda.x", "text": "a\nb\udc80 is gone"}],
        )

    def test_tracebacks(self) -> None:
        """A defect has its traceback in the text."""
        self.log.failure("a defect", Failure(ZeroDivisionError("by nothing")))
        (line,) = self.lines()
        self.assertEqual(line["level"], "critical")
        self.assertIn("a defect\n", line["text"])
        self.assertIn("ZeroDivisionError: by nothing", line["text"])

    def test_twistd(self) -> None:
        """twistd writes nothing but such lines, also for what rda prints."""
        options = ["-n", "--pidfile=", "--logger", "rda.json_log.to_stdout", "rda", "--remote", "a@b"]
        done = subprocess.run(
            [sys.executable, "-c", TWISTD, *options, "--state-dir", "/dev/null/x"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
        )
        texts = [json.loads(line)["text"] for line in done.stdout.splitlines()]
        self.assertEqual((done.returncode, done.stderr), (1, ""))
        self.assertTrue(any(text.startswith("rda: state: /dev/null") for text in texts), texts)
