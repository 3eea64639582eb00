"""Published ports over and over: no connection is refused that Docker would take, and what ended comes back in time."""

from __future__ import annotations

import statistics
import time

from tests.live import test_port_ends
from tests.live.process import fetch, free_port
from tests.soak.support import SoakTestCase, size

#: Seconds from the return of the link until the right ports are open.
RESTORED_SECONDS = 2.0

#: Seconds that the network is cut: longer than rda needs to notice.
CUT_SECONDS = 20.0


class Loop(SoakTestCase):
    """``docker run -d -p 18081:80 …; curl localhost:18081``, again and again."""

    def test_served_at_once(self):
        """Each time the page is there at the first attempt after ``run`` has returned, on the same port."""
        port, times = free_port(), []
        for _ in range(size("RUNS", 200)):
            words = ("run", "-d", "--rm", "--name", "web", "-p", f"{port}:80", "busybox")
            self.rda.docker(*words, "httpd", "-f", "-p", "80", "-h", "/etc")
            began = time.monotonic()
            self.assertIn("root:x:0:0", fetch(port, "passwd"))
            times.append(time.monotonic() - began)
            self.rda.docker("rm", "-f", "web")
        print(
            f"{len(times)} pages, {statistics.median(times) * 1e3:.1f} ms (median), {max(times) * 1e3:.1f} ms (longest)"
        )
        self.assertEqual(self.rda.ports(), set())


class ReturnsInTime(test_port_ends.Returns):
    """Every way in which rda or the link can end and come back."""

    def assert_restored(self, *ports: int) -> float:
        """Check that the right ports are open in time."""
        seconds = super().assert_restored(*ports)
        print(f"{self.id().rpartition('.')[2]}: restored {seconds:.2f} s after the link")
        self.assertLess(seconds, RESTORED_SECONDS)
        return seconds

    def test_ended(self):
        """rda is told to end, and started again."""
        self.mine.stop()
        self.meanwhile()
        self.again()
        self.assert_restored(self.stays, self.comes)

    def test_connections_killed(self):
        """The server's processes of the SSH connections are killed."""
        connects = self.mine.status()["link"]["connects"]
        self.host.drop_ssh_connections()
        self.meanwhile()
        self.eventually(lambda: self.mine.status()["link"]["connects"] > connects, "there is a new connection", 30)
        self.assert_restored(self.stays, self.comes)

    def test_server_gone(self):
        """The SSH server is gone for a while, and back."""
        connects = self.mine.status()["link"]["connects"]
        self.host.stop_sshd()
        self.addCleanup(self.host.start_sshd)
        self.host.drop_ssh_connections()
        self.meanwhile()
        self.host.start_sshd()
        self.eventually(lambda: self.mine.status()["link"]["connects"] > connects, "there is a new connection", 30)
        self.assert_restored(self.stays, self.comes)

    def test_daemon_restarted(self):
        """The Docker daemon is restarted: what has a restart policy comes back, the rest is closed."""
        self.host.restart_dockerd()
        self.assert_restored(self.stays)

    def test_network_cut(self):
        """The network is gone for a while, and nobody is told."""
        connects = self.mine.status()["link"]["connects"]
        self.host.cut_network()
        self.addCleanup(self.host.restore_network)
        self.meanwhile()
        time.sleep(CUT_SECONDS)  # the length of the cut is the condition under test
        self.host.restore_network()
        self.eventually(lambda: self.mine.status()["link"]["connects"] > connects, "there is a new connection", 60)
        self.assert_restored(self.stays, self.comes)

    def test_again_and_again(self):
        """The connections are killed at any moment of the restoring."""
        for number in range(size("KILLS", 10)):
            self.host.drop_ssh_connections()
            time.sleep(number % 5 / 10)
        self.eventually(lambda: self.mine.status()["link"]["state"] == "connected", "the link is back", 60)
        self.eventually(lambda: self.mine.ports() == {self.stays, self.goes}, "the right ports are open", 30)
