"""A machine with a real systemd, to try the units of ``etc/systemd`` on: an overlay of this one, in its own namespaces.

Only its network is this machine's, so that it reaches the throwaway remote host; its kernel settings are read-only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tests.live.host import wait_until
from tests.live.rootfs import Unsupported, require_supported

SYSTEMD = "/lib/systemd/systemd"

#: Seconds until systemd is up, or gone.
BOOT_SECONDS = 30.0

#: Seconds that one command in it may take.
COMMAND_SECONDS = 60.0

#: Where a unit file that is tried is, and what it runs.
UNITS = Path(__file__).parents[2] / "etc/systemd"

_APART = ("unshare", "-m", "-p", "-C", "-u", "-i", "--fork", "--kill-child")

_BOOT = r"""
set -e
top=$1 units=$2
mount --make-rprivate /
mount -t tmpfs tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/root"
cd "$top/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -o bind,remount,ro proc/sys 2>/dev/null || { mount --bind proc/sys proc/sys; mount -o bind,remount,ro proc/sys; }
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -o bind,remount,ro sys
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
chmod 1777 tmp
mount -t tmpfs tmpfs dev
for name in null zero full random urandom tty; do touch "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mkdir -p opt/rda/bin opt/rda/python opt/rda/source opt/rda/packages
mount --bind "$3" opt/rda/python
mount --bind "$4" opt/rda/source
mount --bind "$5" opt/rda/packages
# The library is named because a Python may look for it where only root may.
program() {
    cat > "opt/rda/bin/$2" <<END
#!/bin/sh
export LD_LIBRARY_PATH=/opt/rda/python/lib PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/opt/rda/source:/opt/rda/packages
exec /opt/rda/python/bin/$1 -c \
  'import sys; sys.argv[0] = "$2"; from $3 import $4; sys.exit($4())' "\$@"
END
    chmod 755 "opt/rda/bin/$2"
}
program "$6" twistd twisted.scripts.twistd run
program "$6" rda rda.command main
rm -rf etc/systemd/system etc/systemd/user
mkdir -p etc/systemd/system etc/systemd/user etc/rda
cp "$units"/system/* etc/systemd/system
cp "$units"/user/* etc/systemd/user
# Not chroot: systemd gives its services mount namespaces, which need a root of their own.
mkdir -p mnt/before
pivot_root . mnt/before
umount -l /mnt/before
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  %s --system --unit=basic.target --show-status=no
"""


class Machine:
    """A booted systemd with rda in ``/opt/rda``.

    :raises Unsupported: when there can be none here.
    """

    def __init__(self) -> None:
        require_supported()
        for program in (SYSTEMD, "/bin/systemctl"):
            if not os.path.exists(program):
                raise Unsupported(f"there is no {program} to try the units with (apt-get install systemd)")
        self._top = Path(tempfile.mkdtemp(prefix="rda-machine-"))
        self._log = open(self._top.with_suffix(".log"), "w+b")  # noqa: SIM115 - it lives as long as the machine
        places = [self._top, UNITS, sys.base_prefix, UNITS.parents[1], sysconfig.get_paths()["purelib"]]
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self._process = subprocess.Popen(
            [*_APART, "bash", "-c", _BOOT % SYSTEMD, "boot", *map(str, places), python],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(self._booted, "systemd comes up", BOOT_SECONDS)
        except BaseException:
            self.stop()
            raise

    @property
    def _pid(self) -> int | None:
        """The process that is PID 1 over there."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def _booted(self) -> bool:
        if self._process.poll() is not None:
            raise Unsupported(f"systemd does not start here: {self.log()[-500:]}")
        if self._pid is None or Path(f"/proc/{self._pid}/comm").read_text() != "systemd\n":
            return False
        return self.systemctl("is-active", "basic.target", check=False) == "active"

    def log(self) -> str:
        """What it printed on its console."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def journal(self) -> str:
        """The last that was logged in it."""
        return self.run("journalctl", "--no-pager", "--lines=60", "--output=cat", check=False)

    def run(self, *command: str, check: bool = True, stdin: str = "") -> str:
        """Run a command in it; return its output.

        :raises AssertionError: when it fails, with what it said.
        """
        enter = ["nsenter", "-t", str(self._pid), "-m", "-p", "-C", "-u", "-i", "-r", "-w"]
        done = subprocess.run(
            [*enter, *command], input=stdin.encode(), capture_output=True, timeout=COMMAND_SECONDS, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command}: {done.stderr.decode()}{done.stdout.decode()}\n{self.journal()}")
        return done.stdout.decode().strip()

    def systemctl(self, *words: str, check: bool = True) -> str:
        """Run ``systemctl`` in it."""
        return self.run("/bin/systemctl", *words, check=check)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "-P", name, unit)

    def write(self, path: str, text: str, mode: str = "644", owner: str = "root") -> None:
        """Write a file in it."""
        self.run("/bin/sh", "-c", 'mkdir -p "${1%/*}" && cat > "$1" && chmod "$2" "$1" && chown "$3" "$1"', "write",
                 path, mode, owner, stdin=text)  # fmt: skip

    def copy(self, file: Path, path: str) -> None:
        """Bring a file of this machine into it."""
        shutil.copyfile(file, f"/proc/{self._pid}/root{path}")

    def stop(self) -> None:
        """End it, and everything in it."""
        self._process.kill()
        self._process.wait()
        self._log.close()
        self._top.with_suffix(".log").unlink()
        shutil.rmtree(self._top, ignore_errors=True)
