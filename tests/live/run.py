"""``make run``: rda in the foreground, and the lines to try. ``python -m tests.live.run [user@host] [options]``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from tests.live.host import EXIT_UNSUPPORTED, RemoteHost
from tests.live.process import RdaProcess, throwaway_options
from tests.live.rootfs import Unsupported

TRY = """
    mkdir -p site && echo 'hello from here' > site/index.html
    docker run -d --rm --name web -p 8080:80 -v ./site:/www busybox httpd -f -p 80 -h /www
    curl http://localhost:8080/
    echo 'edited here' > site/index.html
    curl http://localhost:8080/
    docker rm -f web
"""


def options_for(remote: str) -> tuple[dict[str, str | None], RemoteHost | None]:
    """Return rda's options for a remote; with none, those for the throwaway host, which is made live, and that host.

    Raises :class:`Unsupported` where there can be no throwaway host.
    """
    if remote:
        return {"remote": remote}, None
    host = RemoteHost()
    host.up()
    # Not the state of an agent that this user may have besides.
    return {**throwaway_options(host), "state_dir": str(host.directory / "rda-state")}, host


def main(arguments: Sequence[str]) -> int:
    """Start rda, print what to try when it is ready, and end with its exit code."""
    try:
        given = bool(arguments) and not arguments[0].startswith("-")
        options, host = options_for(arguments[0] if given else "")
    except Unsupported as reason:
        print(f"not on this machine: {reason}\nwith a host of your own: make run REMOTE=user@host", file=sys.stderr)
        return EXIT_UNSUPPORTED
    rda = RdaProcess(options, arguments[given:], echo=True)
    try:
        if (line := rda.find_line("DOCKER_HOST=")) is not None:
            url = line.rpartition("DOCKER_HOST=")[2].strip()
            print(f"\nrda is running. Try it in another terminal:\n\n    export DOCKER_HOST={url}{_client(host)}{TRY}")
            print(f"Ctrl-C ends it{'' if host is None else '; make clean ends the remote host too'}.", flush=True)
        return rda.wait_end(None)
    except KeyboardInterrupt:
        rda.stop()
        return 0


def _client(host: RemoteHost | None) -> str:
    """The lines that name rda's state, and give this machine a docker client with its plugins, where it lacks them."""
    if host is None:
        return ""
    lines = f"\n    export RDA_STATE_DIR={host.directory / 'rda-state'}    # rda doctor, rda reload"
    if shutil.which("docker") is None:
        lines += f"\n    alias docker={host.docker_cli}"
    plugins = [[host.docker_cli, plugin, "version"] for plugin in ("buildx", "compose")]
    environment = {k: v for k, v in os.environ.items() if k != "DOCKER_CONFIG"}
    if any(subprocess.run(command, capture_output=True, env=environment).returncode for command in plugins):
        lines += f"\n    export DOCKER_CONFIG={host.docker_config}    # docker buildx and docker compose"
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
