"""Run the benchmarks against the throwaway remote host: ``python -m bench [NAME ...]``, else all.

Each can also be run by itself, against any remote host: ``python bench/relay.py --help``.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.live.host import EXIT_UNSUPPORTED, RemoteHost, wait_until
from tests.live.rootfs import Unsupported

HERE = Path(__file__).parent

#: All benchmarks, in the order in which they are run.
NAMES = ("footprint", "ssh", "relay", "ports", "sync")

#: Where the service that ``bench/ssh.py`` measures with listens, as the remote host sees it.
SERVICE = "/run/rda-bench.sock"


@contextlib.contextmanager
def service(host: RemoteHost) -> Iterator[None]:
    """The measuring service behind a socket of the remote host, which has no Python of its own: it runs here."""
    socket = host.root / SERVICE.lstrip("/")
    socket.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, str(HERE / "ssh.py"), "--serve", str(socket)])
    try:
        wait_until(socket.exists, "the measuring service listens")
        socket.chmod(0o666)
        yield
    finally:
        process.terminate()
        process.wait()
        socket.unlink(missing_ok=True)


def run(name: str, host: RemoteHost) -> int:
    """Run one benchmark; returns its exit code."""
    login = ["--identity", str(host.key), "--known-hosts", str(host.known_hosts)]
    print(f"\n==== {name}\n", flush=True)
    if name in ("ports", "footprint"):
        return subprocess.call([sys.executable, "-m", f"bench.{name}"], cwd=HERE.parent)
    if name != "ssh":
        return subprocess.call([sys.executable, str(HERE / f"{name}.py")])  # both know the throwaway host themselves
    with service(host):
        remote = ["--remote", f"{host.user}@{host.address}:22", "--socket", SERVICE]
        return subprocess.call([sys.executable, str(HERE / "ssh.py"), *remote, *login])


def _name(word: str) -> str:
    if word not in NAMES:
        raise argparse.ArgumentTypeError(f"there is no benchmark {word}")
    return word


def main() -> int:
    """Run those that are named."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES), type=_name)
    names = parser.parse_args().names or NAMES
    host = RemoteHost()
    try:
        host.up()
    except Unsupported as e:
        print(f"bench: {e}", file=sys.stderr)
        return EXIT_UNSUPPORTED
    return max(run(name, host) for name in names)


if __name__ == "__main__":
    sys.exit(main())
