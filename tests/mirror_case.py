"""Mirrors between two directories of this machine, and the case of tests that use them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from rda.sync.mirrors import Mirrors
from rda.sync.settings import Settings
from rda.sync.watch import Hints
from tests.fakes_remote import DirectoryHost, at_once, contents

#: Hundreds of manifests are made here: on a disk each one costs a few syncs.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class FakeWatcher:
    """Watches nothing; tests say what changed."""

    def __init__(self) -> None:
        self.hints: list[Hints] = []
        self.refusal: str | None = None
        self.on_watch: Callable[[], None] = lambda: None

    def watch(self, root: bytes, only: bytes | None, hints: Hints) -> Any:
        self.on_watch()
        if self.refusal is not None:
            return self.refusal
        self.hints.append(hints)
        return hints

    def unwatch(self, watch: Any) -> None:
        self.hints.remove(watch)


def write(path: str, content: bytes = b"", mode: int = 0o644) -> None:
    """A local file, with the directories above it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, mode)


class MirrorCase(SynchronousTestCase):
    """A local directory, a remote host, and mirrors between them.

    :ivar own: rda's own state.
    """

    own = ""

    def settings(self, source: str) -> Settings:
        """How a source is mirrored."""
        return Settings()

    def setUp(self) -> None:
        self.top = tempfile.mkdtemp(prefix="rda-test-", dir=MEMORY)
        self.addCleanup(shutil.rmtree, self.top, True)
        self.local = os.path.join(self.top, "local")
        os.mkdir(self.local)
        self.host = self.new_host()
        self.start()

    def new_host(self) -> DirectoryHost:
        """A remote host that has never been connected to."""
        host = DirectoryHost(os.path.join(self.top, "remote"))
        self.addCleanup(host.lose)
        return host

    def start(self) -> None:
        """A (new) rda."""
        self.clock = Clock()
        self.clock.callFromThread = lambda f, *a: f(*a)  # type: ignore[attr-defined]
        self.watcher = FakeWatcher()
        watcher: Any = self.watcher
        state = os.path.join(self.top, "state")
        self.mounted: set[str] = set()
        self.mirrors = Mirrors(
            self.host,
            state,
            "somebody",
            ".rda",
            self.clock,
            at_once,
            watcher,
            settings=self.settings,
            mounted=lambda: succeed(frozenset(self.mounted)),
            own=self.own,
        )
        self.mirrors.startService()
        self.addCleanup(self.mirrors.stopService)

    def kill_when_lost(self) -> None:
        """Kill rda at the moment at which it would learn of a lost connection: nothing is written down any more."""
        manifest: Any = self.mirrors._mirrors[self.local]._manifest

        def kill() -> None:
            manifest.settle = manifest.promote = lambda *results: None
            manifest.remember_blocks = lambda *results: None
            self.host.down = True

        self.host.connections[-1].on_lost = kill

    def restart(self) -> None:
        """Stop rda, and start it again."""
        self.successResultOf(self.mirrors.stopService())
        self.host.down = False
        self.start()

    def path(self, name: str) -> str:
        return os.path.join(self.local, name)

    def place(self, source: str | None = None, **options: Any) -> str:
        """Where a source is on the remote, as a path of this machine."""
        place = self.successResultOf(self.mirrors.place(source or self.local, **options))
        return self.host.root + place.remote

    def flush(self, source: str | None = None) -> None:
        self.successResultOf(self.mirrors.complete(source or self.local))

    def assert_equal_trees(self, remote: str) -> None:
        self.assertEqual(contents(remote), contents(self.local))
