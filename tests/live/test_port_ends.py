"""Twenty-two ways in which a container can end, none of which leaves its port open here."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from tests.live.process import free_ports
from tests.live.support import LiveTestCase, Rda

#: Seconds from the end of a container, however it ended, until its port must be closed here.
CLOSED_SECONDS = 15.0

#: Serves, and ends when it is told to.
SERVE = "httpd -p 80 -h /etc; trap 'exit 0' TERM; sleep 1000 & wait"

#: How a way ends the container of a name, made with these words, whose local port is given.
End: TypeAlias = "Callable[[Ends, str], object]"


class Ends(LiveTestCase):
    """Each way has a container of its own; several are under way at the same time."""

    def run_serving(self, rda: Rda, name: str, port: int, *options: str, script: str = SERVE) -> None:
        words = ("run", "-d", "--name", name, "-p", f"127.0.0.1:{port}:80", *options)
        rda.docker(*words, "busybox", "sh", "-c", script)

    def there(self, *words: str) -> None:
        """Run a docker command on the remote host itself."""
        self.host.docker(*words)

    def kill_process(self, name: str) -> None:
        pid = self.host.docker("inspect", "-f", "{{.State.Pid}}", name).stdout.decode().strip()
        self.host.run("kill", "-9", pid)

    def kill_shim(self, name: str) -> None:
        container = self.host.docker("inspect", "-f", "{{.Id}}", name).stdout.decode().strip()
        self.host.run("pkill", "-KILL", "-f", f"containerd-shim-runc-v2 .*-id {container}")

    def pause_and_kill(self, name: str) -> None:
        self.rda.docker("pause", name)
        self.assertIn(
            name, self.rda.docker("ps", "--filter", "status=paused", "--format", "{{.Names}}").stdout.decode()
        )
        self.rda.docker("kill", name)

    def rename_and_stop(self, name: str) -> None:
        self.rda.docker("rename", name, f"{name}-new")
        self.rda.docker("stop", "-t", "0", f"{name}-new")

    def disconnect(self, name: str) -> None:
        """It lives on, but its port is published nowhere."""
        self.rda.docker("network", "disconnect", "bridge", name)

    def stop_and_prune(self, name: str) -> None:
        self.there("stop", "-t", "0", name)
        self.rda.docker("container", "prune", "-f", "--filter", f"label=way={name}")

    def exec_kill(self, name: str) -> None:
        self.rda.docker("exec", name, "kill", "-TERM", "1", check=False)  # which may end with it

    def never_started(self, name: str) -> None:
        self.rda.docker("rm", "-f", name)
        self.rda.docker("create", "--name", name, "-p", "127.0.0.1::80", "busybox")
        self.rda.docker("rm", name)

    def start_refused(self, name: str) -> None:
        self.rda.docker("rm", "-f", name)
        words = ("run", "-d", "--name", name, "-p", "127.0.0.1::80", "busybox", "no-such-program")
        self.assertNotEqual(self.rda.docker(*words, check=False).returncode, 0)

    def client_interrupted(self, name: str) -> None:
        """The person at ``docker run`` presses Ctrl-C."""
        self.rda.docker("rm", "-f", name)
        words = ("run", "--rm", "--name", name, "-p", "127.0.0.1::80", "busybox", "sh", "-c", SERVE)
        with self.rda.running(*words) as client:
            self.eventually(lambda: self.running(name), f"{name} runs", 20)
            client.send_signal(signal.SIGINT)
            client.wait(30)

    def running(self, name: str) -> bool:
        return self.host.docker("inspect", "-f", "{{.State.Running}}", name, check=False).stdout == b"true\n"

    def restarted_until_it_gives_up(self, name: str) -> None:
        """A restart policy that is used up."""
        self.eventually(lambda: not self.running(name), f"{name} gives up", 30)

    #: The table: what it is called -> further options of ``docker run``, the script if it is another, and the end.
    WAYS: dict[str, tuple[tuple[str, ...], str, End]] = {
        "stop": ((), SERVE, lambda t, n: t.rda.docker("stop", n)),
        "stop-at-once": ((), SERVE, lambda t, n: t.rda.docker("stop", "-t", "0", n)),
        "kill": ((), SERVE, lambda t, n: t.rda.docker("kill", n)),
        "kill-term": ((), SERVE, lambda t, n: t.rda.docker("kill", "-s", "TERM", n)),
        "rm-force": ((), SERVE, lambda t, n: t.rda.docker("rm", "-f", n)),
        "rm-autoremove": (("--rm",), SERVE, lambda t, n: t.rda.docker("stop", "-t", "0", n)),
        "exits-well": ((), "httpd -p 80; sleep 1", lambda t, n: None),
        "exits-badly": ((), "httpd -p 80; sleep 1; exit 3", lambda t, n: None),
        "exits-autoremove": (("--rm",), "httpd -p 80; sleep 1", lambda t, n: None),
        "exec-kill": ((), SERVE, exec_kill),
        "there-stop": ((), SERVE, lambda t, n: t.there("stop", "-t", "0", n)),
        "there-rm": ((), SERVE, lambda t, n: t.there("rm", "-f", n)),
        "there-kill-process": ((), SERVE, kill_process),
        "there-kill-shim": ((), SERVE, kill_shim),
        "pause-kill": ((), SERVE, pause_and_kill),
        "rename-stop": ((), SERVE, rename_and_stop),
        "disconnect": ((), SERVE, disconnect),
        "prune": (("--label", "way=prune"), SERVE, stop_and_prune),
        "gives-up": (("--restart", "on-failure:1"), "httpd -p 80; exit 1", restarted_until_it_gives_up),
        "no-restart": (("--restart", "unless-stopped"), SERVE, lambda t, n: t.rda.docker("stop", "-t", "0", n)),
        "never-started": ((), SERVE, never_started),
        "start-refused": ((), SERVE, start_refused),
        "client-interrupted": ((), SERVE, client_interrupted),
    }

    def test_every_way(self):
        """However a container ends, its port closes here."""
        ports = dict(zip(self.WAYS, free_ports(len(self.WAYS)), strict=True))

        def end(name: str) -> str:
            options, script, way = self.WAYS[name]
            try:
                self.run_serving(self.rda, name, ports[name], *options, script=script)
                way(self, name)
                self.eventually(
                    lambda: ports[name] not in self.rda.ports(), f"the port of {name} closes", CLOSED_SECONDS
                )
            except (AssertionError, subprocess.SubprocessError) as error:
                return f"{name}: {str(error).splitlines()[0]}"
            return ""

        with ThreadPoolExecutor(4) as pool:
            failures = [failure for failure in pool.map(end, self.WAYS) if failure]
        self.assertEqual(failures, [])
        self.eventually(lambda: not self.rda.ports(), "nothing is open any more", CLOSED_SECONDS)
        self.assertEqual([one for one in self.rda.status()["forwards"] if one["state"] == "open"], [])


class Returns(LiveTestCase):
    """After rda or the link has ended and come back, exactly the right ports are open; more ways are a soak test."""

    #: Seconds from the return of the link until they are, on a machine that may be busy; the soak test measures it.
    RESTORED_SECONDS = 15.0

    def setUp(self):
        super().setUp()
        self.mine = self.own_rda()
        self.mine.wait_ready()
        self.stays, self.goes, self.comes = free_ports(3)
        for name, port in (("stays", self.stays), ("goes", self.goes), ("comes", self.comes)):
            restart = ("--restart", "always") if name == "stays" else ()
            words = ("run", "-d", "--name", name, "-p", f"127.0.0.1:{port}:80", *restart)
            self.mine.docker(*words, "busybox", "sh", "-c", SERVE)
        self.mine.docker("stop", "-t", "0", "comes")
        self.host.docker("run", "-d", "--name", "foreign", "-p", "127.0.0.1::80", "busybox", "sh", "-c", SERVE)

    def meanwhile(self) -> None:
        """What happens on the remote host while nobody looks."""
        self.host.docker("stop", "-t", "0", "goes")
        self.host.docker("start", "comes")

    def assert_restored(self, *ports: int) -> float:
        """Check that these ports, and no others, are open soon after the link is back; return how soon."""
        self.eventually(lambda: self.mine.status()["link"]["state"] == "connected", "the link is back", 30)
        back = time.monotonic()
        self.eventually(lambda: self.mine.ports() == set(ports), "the right ports are open", self.RESTORED_SECONDS)
        return time.monotonic() - back

    def again(self) -> None:
        """Start rda anew, with the same state."""
        self.mine = self.own_rda(state_dir=str(self.mine.state))
        self.mine.wait_ready()

    def test_killed(self):
        """rda is killed, and started again."""
        self.mine.process.kill()
        self.mine.process.wait()
        self.meanwhile()
        self.again()
        self.assert_restored(self.stays, self.comes)

    def test_port_taken_meanwhile(self):
        """A port that somebody took while rda was away is told, and opened as soon as it is free."""
        self.mine.stop()
        with socket.create_server(("127.0.0.1", self.stays)):
            self.again()
            self.assert_restored(self.goes)
            self.eventually(lambda: self.mine.status()["problems"], "the port is a problem", 10)
            self.assertIn("port is already allocated", self.mine.status()["problems"][0]["message"])
        self.assert_restored(self.goes, self.stays)
        self.eventually(lambda: not self.mine.status()["problems"], "the problem is over", 10)
