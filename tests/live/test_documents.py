"""Every command of the documents, run as a reader runs it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.live.documents import Reader, steps
from tests.live.host import SSHD_PORT
from tests.live.process import free_port
from tests.live.support import LiveTestCase, SkipTest, is_open

ROOT = Path(__file__).parents[2]

#: What the documents call the remote host, as an alias of ssh's own configuration.
ALIAS = "rda-document-host"

_SSH_CONFIG = """
Host {alias}
    HostName {host.address}
    Port {port}
    User {host.user}
    IdentityFile {host.key}
    UserKnownHostsFile {host.known_hosts}
"""


class DocumentTests(LiveTestCase):
    """One test for each document."""

    def read(self, name: str) -> None:
        home = Path(tempfile.mkdtemp(prefix="rda-reader-"))
        self.addCleanup(shutil.rmtree, home, ignore_errors=True)
        reader = Reader(home, self.environment(home), self.here())
        self.addCleanup(reader.leave)
        self.assertGreater(reader.follow((ROOT / name).read_text(encoding="utf-8")), 0)

    def here(self) -> dict[str, str]:
        """What the documents' ports and names are here: free ports; only the default one is what it is."""
        if is_open(23750):
            raise SkipTest("something listens on port 23750, where the documents' rda would")
        numbers = ("23751", "8080", "8443", "5432", "9000")
        return {r"user@host\b": ALIAS, r"user@gpu-box\b": ALIAS} | {rf"\b{n}\b": str(free_port()) for n in numbers}

    def environment(self, home: Path) -> dict[str, str]:
        """A login of a user without anything of their own."""
        (home / ".ssh").mkdir(mode=0o700)
        config = _SSH_CONFIG.format(alias=ALIAS, host=self.host, port=SSHD_PORT)
        (home / ".ssh/config").write_text(config, encoding="utf-8")
        programs = home / ".programs"
        programs.mkdir()
        # ssh looks for its configuration in the home directory of the account, whatever HOME says.
        (programs / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {home}/.ssh/config "$@"\n')
        (programs / "ssh").chmod(0o755)
        path = [
            str(programs),
            str(Path(sys.executable).parent),
            str(Path(self.host.docker_cli).parent),
            os.environ["PATH"],
        ]
        return {
            "HOME": str(home),
            "PATH": ":".join(path),
            "DOCKER_CONFIG": str(self.host.docker_config),
            "LANG": "C.UTF-8",
        }


def _add(path: Path) -> None:
    name = str(path.relative_to(ROOT))

    def test(self: DocumentTests) -> None:
        self.read(name)

    test.__doc__ = f"The commands of {name} do what it says."
    setattr(DocumentTests, "test_" + name.removesuffix(".rst").replace("/", "_").replace("-", "_").lower(), test)


for _path in [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))]:
    if any(steps(_path.read_text(encoding="utf-8"))):
        _add(_path)
