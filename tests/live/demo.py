"""``make demo``: a web server container on the remote host, used from here. ``python -m tests.live.demo [user@host]``.

Every step checks what it shows; the exit code is 0 only when the whole story came true.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Sequence
from pathlib import Path

from tests.live.host import EXIT_UNSUPPORTED, RemoteHost
from tests.live.process import RdaProcess, fetch, free_port
from tests.live.rootfs import Unsupported
from tests.live.run import options_for

NAME = "rda-demo"

#: Seconds from a local edit until it must be served.
EDIT_SECONDS = 5.0


class NotAsTold(Exception):
    """A step of the story went otherwise; the message says how."""


def say(text: str) -> None:
    """Print one line of the story."""
    print(text, flush=True)


class Story:
    """The demonstration against one running rda.

    :param url: its DOCKER_HOST.
    :param docker: the docker client to use.
    :param directory: where the local files are.
    """

    def __init__(self, url: str, docker: str, directory: Path) -> None:
        self.port = free_port()
        self._docker = docker
        self._environment = {**os.environ, "DOCKER_HOST": url}
        self._page = directory / "site/index.html"
        self._page.parent.mkdir()

    def docker(self, *words: str) -> str:
        """Run and show one docker command; raise :class:`NotAsTold` when it fails."""
        say(f"$ {shlex.join(['docker', *words])}")
        command = [self._docker, *words]
        cwd = self._page.parent.parent
        done = subprocess.run(command, env=self._environment, cwd=cwd, capture_output=True, text=True, timeout=300)
        print(done.stdout + done.stderr, end="", flush=True)
        if done.returncode != 0:
            raise NotAsTold(f"docker {words[0]} ended with {done.returncode}")
        return done.stdout

    def edit(self, text: str) -> None:
        """Write the local page."""
        say(f"$ echo '{text}' > site/index.html")
        self._page.write_text(text + "\n")

    def expect(self, text: str, seconds: float = 0.0) -> None:
        """Fetch until the page is ``text``, and show it."""
        say(f"$ curl http://127.0.0.1:{self.port}/")
        began = time.monotonic()
        while (page := fetch(self.port).strip()) != text:
            if time.monotonic() - began > seconds:
                raise NotAsTold(f"the page is {page!r}, not {text!r}")
            time.sleep(0.02)
        say(f"{page}{f'     (after {time.monotonic() - began:.2f} s)' if seconds else ''}")

    def tell(self, host: RemoteHost | None) -> None:
        """Tell the whole story; raise :class:`NotAsTold` where it goes otherwise."""
        say("# A page on this machine:")
        self.edit("hello from here")
        say("\n# A web server on the remote host, with a port and a directory of this machine:")
        publish, mount = f"{self.port}:80", "./site:/www"
        server = ["busybox", "httpd", "-f", "-p", "80", "-h", "/www"]
        self.docker("run", "-d", "--rm", "--name", NAME, "-p", publish, "-v", mount, *server)
        say("\n# It serves here, the moment it runs over there:")
        self.expect("hello from here")
        self.docker("ps", "--filter", f"name={NAME}", "--format", "table {{.Names}}\t{{.Image}}\t{{.Ports}}")
        if host is not None:
            published = host.docker("port", NAME, "80").stdout.decode().strip()
            mounts = "{{range .Mounts}}{{.Source}}{{end}}"
            source = host.docker("inspect", "-f", mounts, NAME).stdout.decode().strip()
            say(f"# (Asked itself, the remote daemon says: published on its {published}, mounted from its {source})")
        say("\n# An edit here is served from there:")
        self.edit("edited here")
        self.expect("edited here", EDIT_SECONDS)
        say("\n# Stopped, its port is closed here too:")
        self.docker("stop", "-t", "1", NAME)
        say(f"$ curl http://127.0.0.1:{self.port}/")
        try:
            raise NotAsTold(f"the port still answers: {fetch(self.port)!r}")
        except urllib.error.URLError as e:
            refused = (
                os.strerror(e.reason.errno).lower() if isinstance(e.reason, OSError) and e.reason.errno else e.reason
            )
            say(f"curl: (7) Failed to connect to 127.0.0.1 port {self.port}: {refused}")
        say("\nThat was rda.")

    def clean(self) -> None:
        """Remove the container, wherever the story ended."""
        command = [self._docker, "rm", "-f", NAME]
        subprocess.run(command, env=self._environment, capture_output=True, timeout=60)


def main(arguments: Sequence[str]) -> int:
    """Start rda, tell the story, and end it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        options, host = options_for(arguments[0] if arguments else "")
    except Unsupported as reason:
        print(f"not on this machine: {reason}\nwith a host of your own: make demo REMOTE=user@host", file=sys.stderr)
        return EXIT_UNSUPPORTED
    docker = host.docker_cli if host else shutil.which("docker")
    if docker is None:
        print("the demonstration needs a docker client (docker-cli), and there is none on PATH", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="rda-demo-") as scratch, contextlib.ExitStack() as ending:
        listen = f"tcp:{free_port()}:interface=127.0.0.1"
        rda = RdaProcess({**options, "listen": listen, "state_dir": f"{scratch}/state"})
        ending.callback(rda.stop)
        say(f"$ twistd -n rda --remote {options['remote']}")
        if (line := rda.find_line("DOCKER_HOST=")) is None:
            print(rda.output, file=sys.stderr)
            return 1
        url = line.rpartition("DOCKER_HOST=")[2].strip()
        say(f"$ export DOCKER_HOST={url}\n")
        story = Story(url, docker, Path(scratch))
        ending.callback(story.clean)
        try:
            story.tell(host)
        except (NotAsTold, OSError, subprocess.TimeoutExpired) as e:
            print(f"\nNOT AS TOLD: {e}\n\nWhat rda printed:\n{rda.output}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
