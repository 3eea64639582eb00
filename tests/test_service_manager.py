"""What systemd is told."""

import os
import socket
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from rda.service_manager import STATUS_BYTES, ServiceManager


class ServiceManagerTests(SynchronousTestCase):
    """The sd_notify(3) protocol against a socket like systemd's."""

    def setUp(self):
        self.clock = Clock()
        self.environment = {}
        self.socket = None

    def listen(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.socket.close)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def by_path(self, **environment):
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        # A UNIX address holds 108 bytes, fewer than trial's directories may need.
        link = f"/tmp/rda-notify-{os.getpid()}"
        os.symlink(directory, link)
        self.addCleanup(os.unlink, link)
        self.listen(f"{link}/s")
        return ServiceManager({"NOTIFY_SOCKET": f"{link}/s", **environment}, 77, self.clock)

    def heard(self):
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages

    def test_ready(self):
        """Readiness is said once, its line of status whenever it changes."""
        manager = self.by_path()
        manager.waiting("connecting")
        manager.ready("2 contexts")
        manager.ready("2 contexts")
        manager.ready("1 context")
        self.assertEqual(self.heard(), ["STATUS=connecting", "READY=1\nSTATUS=2 contexts", "STATUS=1 context"])

    def test_reload(self):
        """A reload carries the time that systemd asks for, and readiness is said anew after it."""
        manager = self.by_path()
        manager.ready("up")
        manager.reloading()
        manager.reloaded("up")
        _, reloading, reloaded = self.heard()
        self.assertRegex(reloading, r"\ARELOADING=1\nMONOTONIC_USEC=\d+\Z")
        self.assertEqual(reloaded, "READY=1\nSTATUS=up")

    def test_watchdog(self):
        """A sign of life comes twice in the time that systemd waits for it, until the service stops."""
        manager = self.by_path(WATCHDOG_USEC="60000000", WATCHDOG_PID="77")
        self.clock.advance(29)
        self.assertEqual(self.heard(), [])
        self.clock.advance(1)
        self.clock.advance(30)
        self.assertEqual(self.heard(), ["WATCHDOG=1", "WATCHDOG=1"])
        manager.stopping()
        self.clock.advance(300)
        self.assertEqual(self.heard(), ["STOPPING=1"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_watchdog_of_another_process(self):
        """A watchdog that waits for another process, or has no sensible time, is left alone."""
        for environment in (
            {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "78"},
            {"WATCHDOG_USEC": "0"},
            {"WATCHDOG_USEC": "soon"},
        ):
            ServiceManager({"NOTIFY_SOCKET": "/nonexistent", **environment}, 77, self.clock)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_abstract(self):
        """A name with @ in front is an abstract one."""
        name = f"rda-test-{os.getpid()}"
        self.listen("\0" + name)
        ServiceManager({"NOTIFY_SOCKET": "@" + name}, 77, self.clock).ready("up")
        self.assertEqual(self.heard(), ["READY=1\nSTATUS=up"])

    def test_one_line(self):
        """Whatever a status is made of stays one line of bounded length."""
        manager = self.by_path()
        manager.waiting("a\nREADY=1 " + "é" * 1000)
        (message,) = self.heard()
        self.assertTrue(message.startswith("STATUS=a READY=1 é"), message)
        self.assertNotIn("\n", message)
        self.assertLessEqual(len(message.encode()), STATUS_BYTES + len("STATUS="))

    def test_nobody(self):
        """Without a service manager nothing is said, and nothing waits."""
        manager = ServiceManager({"WATCHDOG_USEC": "1000000"}, 77, self.clock)
        manager.ready("up")
        manager.stopping()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_manager_gone(self):
        """A service manager that does not hear is logged, and the service goes on."""
        manager = ServiceManager({"NOTIFY_SOCKET": "/nonexistent/notify"}, 77, self.clock)
        manager.ready("up")
        manager.stopping()
