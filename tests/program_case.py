"""The programs for the remote host, run as processes of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

#: Seconds that anything may take that takes milliseconds.
TIMEOUT = 20.0


class ProgramCase(SynchronousTestCase):
    """Runs one program in the interpreters that a test allows.

    :cvar command: of the program.
    """

    command: bytes

    def start(self, *interpreters: str) -> subprocess.Popen[bytes]:
        """Run the command where only these interpreters are found."""
        directory = Path(self.mktemp())
        directory.mkdir(parents=True)
        for name in ("sh", *interpreters):
            path = sys.executable if name == "python3" else shutil.which(name)
            if path is None:
                raise SkipTest(f"{name} is not on this machine")
            (directory / name).symlink_to(os.path.realpath(path))
        process = subprocess.Popen(
            ["/bin/sh", "-c", self.command.decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={"PATH": str(directory)},
        )
        self.addCleanup(process.wait, TIMEOUT)
        self.addCleanup(process.stdout.close)  # type: ignore[union-attr]
        self.addCleanup(process.stdin.close)  # type: ignore[union-attr]
        return process

    def read(self, process: subprocess.Popen[bytes], size: int) -> bytes:
        assert process.stdout is not None
        data = b""
        while len(data) < size:
            piece = process.stdout.read(size - len(data))
            assert piece, data
            data += piece
        return data
