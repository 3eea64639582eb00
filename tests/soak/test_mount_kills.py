"""Ends in the middle of a sync: the connection's or rda's own, at random moments, against the real host."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time

from tests.live.support import Rda
from tests.live.trees import LIST, ChangingTree
from tests.soak.support import SoakTestCase, size

#: Seconds of a sync of this tree, about: the end comes somewhere in it.
LONGEST_WAIT = 0.8


class Kills(SoakTestCase):
    """A tree that changes, and a sync of it that never gets to its end."""

    def setUp(self) -> None:
        self.addCleanup(lambda: self.rda.stop())  # the last one, and after all else
        super().setUp()

    def test_kills(self):
        """After each end both sides are equal, what a container made is untouched, and no temporary is left."""
        tree = ChangingTree(self.directory(), files=3000, seed=7)
        chance = random.Random(7)
        script = "echo 1 > /tree/made"
        self.rda.docker("run", "--name", "box", "-v", f"{tree.root}:/tree", "busybox", "sh", "-c", script)
        kept = tree.listing()
        for number in range(size("KILLS", 100)):
            tree.change()
            with self.rda.running("start", "-a", "box"):
                time.sleep(chance.uniform(0, LONGEST_WAIT))
                self.end(chance.random() < 0.5)
            kept = tree.listing()
            self.assertEqual(self.found(tree), kept, f"kill {number}")
        self.tell(f"{size('KILLS', 100)} kills; {len(kept)} files")

    def end(self, whole: bool) -> None:
        """End rda and start it again, or only its connection."""
        if not whole:
            self.host.drop_ssh_connections()
            return
        self.rda.process.send_signal(signal.SIGKILL)
        self.rda.process.wait()
        self.rda = Rda(self.host, state_dir=str(self.rda.state))
        self.rda.wait_ready()

    def found(self, tree: ChangingTree) -> list[str]:
        """What a container sees, without what the first one made; checks that, and the stage."""
        done = self.rda.docker("run", "--rm", "-v", f"{tree.root}:/tree", "busybox", "sh", "-c", LIST)
        made = hashlib.md5(b"1\n", usedforsecurity=False).hexdigest()
        lines = done.stdout.decode().splitlines()
        self.assertIn(f"{made}  ./made", lines)
        for stage in (self.host.root / f"home/{self.host.user}").glob(".rda/*/stage"):
            left = [os.lstat(stage / name).st_size for name in os.listdir(stage)]
            self.assertLessEqual(len(left), 4, stage)  # kept for the next change, and empty
            self.assertEqual(sum(left), 0, stage)
        return sorted(line for line in lines if not line.endswith("  ./made"))
