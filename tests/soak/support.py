"""What the soak tests share: an rda of their own, how long to go on, and what rda holds on to meanwhile."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.live.support import MEBIBYTE, LiveTestCase, Rda

#: Seconds until what ended has been let go of: a lingering close lasts 10 s, a kept daemon connection 60 s.
SETTLE_SECONDS = 80.0


def size(name: str, default: int) -> int:
    """Return how often to repeat something: ``$RDA_SOAK_NAME``, else ``default``."""
    return int(os.environ.get(f"RDA_SOAK_{name}", default))


@dataclass(frozen=True)
class Holdings:
    """What rda and the server at its other end hold on to.

    :ivar memory: resident bytes of rda.
    :ivar descriptors: open descriptors of rda.
    :ivar threads: its threads.
    :ivar channels: open descriptors of the remote host's sshd processes: each channel to a socket is one.
    """

    memory: int
    descriptors: int
    threads: int
    channels: int

    def __str__(self) -> str:
        return (
            f"{self.memory / MEBIBYTE:.1f} MiB, {self.descriptors} descriptors, {self.threads} threads, "
            f"{self.channels} descriptors of sshd"
        )


class SoakTestCase(LiveTestCase):
    """A test with an rda of its own, so that nothing else changes what it holds."""

    def choose_rda(self) -> Rda:
        """Start an rda for this test alone."""
        rda = self.own_rda()
        rda.wait_ready()
        return rda

    def holdings(self) -> Holdings:
        """Return what is held now."""
        process = Path(f"/proc/{self.rda.process.pid}")
        return Holdings(
            memory=self.rda.memory(),
            descriptors=len(os.listdir(process / "fd")),
            threads=len(os.listdir(process / "task")),
            channels=self._sshd_descriptors(),
        )

    def _sshd_descriptors(self) -> int:
        """Count the descriptors of the processes that serve the user's SSH connections."""
        script = 'for pid in $(pgrep -u "$1" sshd); do ls "/proc/$pid/fd"; done | wc -l'
        return int(self.host.run("sh", "-c", script, "sh", self.host.user).stdout)

    def settled(self, before: Holdings, seconds: float = SETTLE_SECONDS) -> Holdings:
        """Return what is held when descriptors, threads and channels are back at ``before``, or ``seconds`` later."""
        deadline = time.monotonic() + seconds
        while True:
            now = self.holdings()
            counts = ((getattr(now, name), getattr(before, name)) for name in ("descriptors", "threads", "channels"))
            back = all(held <= held_before for held, held_before in counts)
            if back or time.monotonic() > deadline:
                return now
            time.sleep(1)

    def assert_back(self, before: Holdings, memory: int, seconds: float = SETTLE_SECONDS) -> None:
        """Check that everything held since ``before`` has been let go of.

        :param memory: bytes that may stay: allocators do not give everything back.
        """
        now = self.settled(before, seconds)
        self.tell(f"before: {before}; after: {now}")
        self.assertLessEqual(now.descriptors, before.descriptors)
        self.assertLessEqual(now.threads, before.threads)
        self.assertLessEqual(now.channels, before.channels)
        self.assertLessEqual(now.memory - before.memory, memory)
        self.assertNotIn("Traceback", "".join(self.rda.lines))

    def tell(self, text: str) -> None:
        """Print what was measured."""
        print(f"\n    {self.id().rpartition('.')[2]}: {text}", flush=True)
