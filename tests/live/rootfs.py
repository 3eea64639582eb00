"""The file system of the throwaway remote host: Debian with sshd and dockerd, made once with mmdebstrap.

Also what the machine itself needs to make and to use it: programs installed with apt where they are missing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SUITE = "trixie"

#: What the remote host has: the daemon, the server, and what a Docker host usually has beside them.
PACKAGES = (
    "busybox-static",  # the contents of the image that the tests run
    "ca-certificates",
    "curl",
    "docker-buildx",
    "docker-cli",
    "docker-compose",
    "docker-registry",  # push and pull with no network
    "docker.io",
    "iproute2",
    "iptables",
    "openssh-server",
    "procps",
    "rsync",
    "socat",
)

#: Program that has to be on the machine -> the Debian package that brings it.
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "ssh-keyscan": "openssh-client",
    "ssh-agent": "openssh-client",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "zsh": "zsh",  # the shells that words are completed in
    "fish": "fish",
}

DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Unsupported(Exception):
    """This machine cannot carry a throwaway remote host; the message says why."""


def require_supported() -> None:
    """Raise :class:`Unsupported` unless this is Linux, we are root and apt is there."""
    if not sys.platform.startswith("linux"):
        raise Unsupported(f"the throwaway remote host needs Linux (this is {sys.platform})")
    if os.geteuid() != 0:
        raise Unsupported("the throwaway remote host needs root (namespaces, mounts, dockerd): run this with sudo")
    if shutil.which("apt-get") is None:
        raise Unsupported("the throwaway remote host needs apt (Debian or Ubuntu) to build its file system")


def install_programs() -> None:
    """Install by apt the programs that are missing here."""
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    if not DEBIAN_KEYRING.exists():
        missing.add("debian-archive-keyring")
    if not missing:
        return
    print(f"installing {' '.join(sorted(missing))} with apt …", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *sorted(missing)]):
        subprocess.run(["apt-get", *command], check=True, env=environment, stdout=subprocess.DEVNULL)


def debian_mirror() -> str | None:
    """Where this machine's apt gets Debian from; None when it has no Debian source (then mmdebstrap's default)."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    codename = subprocess.run(
        ["sh", "-c", '. /etc/os-release; echo "$ID $VERSION_CODENAME"'], check=True, capture_output=True, text=True
    ).stdout.split()
    for line in listed.splitlines():
        uri, release, component = (*line.split(), "", "")[:3]
        # The archive itself, not its security or third-party companions: they have other suite names.
        if codename[:1] == ["debian"] and release in codename[1:] and component == "main" and "security" not in uri:
            return uri
    return None


def apt_options() -> str:
    """How this machine's apt reaches its archive (proxies, certificates, clocks), in apt.conf's syntax."""
    dumped = subprocess.run(["apt-config", "dump", "Acquire"], check=True, capture_output=True, text=True).stdout
    wanted = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries", "Acquire::ForceIPv")
    return "".join(f"{line}\n" for line in dumped.splitlines() if line.startswith(wanted) and '""' not in line)


def build(target: Path) -> None:
    """Make the root file system in ``target``, unless it is there already and made of the same packages."""
    recipe = hashlib.sha256(" ".join((SUITE, *PACKAGES)).encode()).hexdigest()
    stamp = target / ".recipe"
    if stamp.exists() and stamp.read_text() == recipe:
        return
    print(f"making the remote host's file system (Debian {SUITE}, about half a minute) …", file=sys.stderr, flush=True)
    unfinished = target.with_name(target.name + ".unfinished")
    for leftover in (target, unfinished):
        remove_tree(leftover)
    mirror = debian_mirror()
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as options:
        options.write(apt_options())
        options.flush()
        os.chmod(options.name, 0o644)  # apt's sandbox user reads it
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--aptopt={options.name}"]
        command += [f"--include={','.join(PACKAGES)}", SUITE, str(unfinished), *([mirror] if mirror else [])]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    (unfinished / ".recipe").write_text(recipe)
    unfinished.rename(target)


def remove_tree(path: Path) -> None:
    """Remove a directory tree, never leaving its file system (a mount that is left in it stays untouched)."""
    subprocess.run(["rm", "-rf", "--one-file-system", "--", str(path)], check=True)


def busybox_archive(root: Path) -> bytes:
    """Return a tar archive to ``docker import``: busybox, static, with a link for each of its applets.

    :param root: a root file system that has busybox-static installed.
    """
    with tempfile.TemporaryDirectory(prefix="rda-image-") as scratch:
        top = Path(scratch)
        for directory in ("bin", "etc", "root", "tmp", "usr/bin", "var"):
            (top / directory).mkdir(parents=True)
        (top / "tmp").chmod(0o1777)
        (top / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
        (top / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
        shutil.copy(root / "usr/bin/busybox", top / "bin/busybox")
        applets = subprocess.run([top / "bin/busybox", "--list"], check=True, capture_output=True, text=True).stdout
        for applet in set(applets.split()) - {"busybox"}:  # the list includes busybox itself
            (top / "bin" / applet).symlink_to("busybox")
        (top / "usr/bin/env").symlink_to("../../bin/busybox")
        return subprocess.run(
            ["tar", "--numeric-owner", "--owner=0", "--group=0", "-C", scratch, "-c", "."],
            check=True,
            capture_output=True,
        ).stdout
