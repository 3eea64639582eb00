"""What rda costs when nothing happens: ``python -m bench footprint``.

Against the throwaway remote host: processor time from the start until it listens, for the first time and again (by then
its modules are compiled, as an installation has them); memory; and how often it wakes up, alone and with a container
that has a port and a bind mount. Each SSH connection that is kept asks for a sign of life every five seconds: a wake-up
for the question and one for the answer.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from tests.live.host import EXIT_UNSUPPORTED, RemoteHost
from tests.live.process import RdaProcess, free_port, throwaway_options
from tests.live.rootfs import Unsupported

#: Processor seconds until it listens that are meant to be enough.
ENOUGH_SECONDS = 0.6

#: Seconds until everything that follows a start is over, and for which is counted then.
SETTLE_SECONDS = 5.0
COUNTED_SECONDS = 30.0

CONTAINER = "rda-bench-footprint"
_TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def wake_ups(pid: int) -> int:
    """How often the threads of a process have waited for something."""
    counts = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        counts += int(lines["voluntary_ctxt_switches"])
    return counts


def memory(pid: int) -> float:
    """Its resident memory, MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def show_idle(name: str, pid: int) -> None:
    """Wait until it is idle, count for a while, and print."""
    time.sleep(SETTLE_SECONDS)
    woken, used = wake_ups(pid), processor_seconds(pid)
    time.sleep(COUNTED_SECONDS)
    woken, used = wake_ups(pid) - woken, processor_seconds(pid) - used
    minutes = COUNTED_SECONDS / 60
    print(f"{name:<32}{woken / minutes:6.0f} wake-ups/min  {used / minutes:6.2f} CPU s/min  {memory(pid):6.1f} MB")


def measure(host: RemoteHost, scratch: Path) -> None:
    """Start it twice, and look at the second one."""
    options = {
        **throwaway_options(host),
        "listen": f"tcp:{free_port()}:interface=127.0.0.1",
        "state_dir": str(scratch / "state"),
    }
    # Compiled modules are kept, whatever this machine's Python is told, in a place that is empty at first.
    os.environ |= {"PYTHONPYCACHEPREFIX": str(scratch / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
    for run in ("first start", "start"):
        rda = RdaProcess(options)
        line = rda.find_line("DOCKER_HOST=")
        assert line is not None, rda.output
        used = processor_seconds(rda.process.pid)
        target = f" (wanted: {ENOUGH_SECONDS})" if run == "start" else " (compiles)"
        print(f"{run:<32}{used:6.2f} CPU s until it listens{target}")
        if run == "first start":
            rda.stop()
    try:
        show_idle("idle", rda.process.pid)
        (scratch / "site").mkdir()
        environment = {**host.docker_environment, "DOCKER_HOST": line.rpartition("DOCKER_HOST=")[2].strip()}
        mount, server = f"{scratch}/site:/www", ["busybox", "httpd", "-f", "-p", "80", "-h", "/www"]
        run_it = ["run", "-d", "--rm", "--name", CONTAINER, "-p", f"{free_port()}:80", "-v", mount, *server]
        host.docker(*run_it, env=environment)
        show_idle("idle, with a port and a mount", rda.process.pid)
    finally:
        host.docker("rm", "-f", CONTAINER, check=False)
        rda.stop()


def main() -> int:
    """Measure, and print."""
    host = RemoteHost()
    try:
        host.up()
    except Unsupported as e:
        print(f"bench: {e}", file=sys.stderr)
        return EXIT_UNSUPPORTED
    with tempfile.TemporaryDirectory(prefix="rda-bench-") as scratch:
        measure(host, Path(scratch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
