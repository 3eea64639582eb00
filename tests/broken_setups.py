"""Set-ups in which rda cannot work, or not well, and what the doctor has to say of each.

The ones that need a real sshd and dockerd are made by tests/live/test_doctor.py, the others by tests/test_doctor.py;
each of those checks that it makes all of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["HERE", "THERE", "Broken"]


@dataclass(frozen=True)
class Broken:
    """What the doctor says of a broken set-up: a regular expression for each column of its line.

    :ivar state: ``warn`` or ``fail``.
    """

    state: str
    subject: str
    cause: str
    cure: str

    def problem(self, findings: Sequence[dict[str, Any]]) -> str:
        """Why these findings, as ``rda doctor --json`` prints them, do not name cause and cure; "" if they do."""
        for one in findings:
            parts = ((self.state, one["state"]), (self.subject, one["subject"]), (self.cause, one["message"]))
            if all(re.search(pattern, text) for pattern, text in (*parts, (self.cure, one["cure"]))):
                return ""
        said = "\n".join(f"{one['state']} {one['subject']}: {one['message']} -> {one['cure']}" for one in findings)
        return f"nothing says {self} in:\n{said}"


#: On this machine.
HERE = {
    "configuration with errors": Broken("fail", "configuration", "no such key", "rda.toml"),
    "nobody said which remote": Broken("fail", "configuration", "which remote host", "--remote user@host"),
    "no agent runs": Broken("warn", "agent", "no agent answers at", "twistd -n rda --remote"),
    "agent of another version": Broken("warn", "agent", "rda 0.0.1 runs at", "[Rr]estart"),
    "state of another agent": Broken("warn", "agent's state", "elsewhere.*another agent was told", "--state-dir"),
    "port taken": Broken("fail", "listening", r"port \d+ is taken by process \d+ \(\S+\)", "--listen"),
    "DOCKER_HOST points elsewhere": Broken(
        "fail", "docker command", "tcp://elsewhere:1 .DOCKER_HOST", "export DOCKER_HOST="
    ),
    "docker context points elsewhere": Broken("fail", "docker command", "docker context away", "export DOCKER_HOST="),
    "no docker command": Broken("warn", "docker command", "none on PATH", "Install"),
    "read-only home": Broken("fail", "state directory", "read-only file system", "--state-dir"),
    "state of somebody else": Broken("fail", "state directory", "Permission denied", "chown"),
    "full disk here": Broken("fail", "disk space here", "is full", "Free some space"),
    "nearly full disk here": Broken("fail", "disk space here", "only 10 MB free", "Free some space"),
    "old rda, new state": Broken("fail", "saved state", r"last used by rda 99\.0", "Upgrade rda"),
    "damaged identity": Broken("fail", "saved state", "default/owner cannot be used", "Restore it"),
    "inotify limits": Broken("warn", "inotify limits", "only 8192 watches", "sysctl fs.inotify.max_user_watches="),
    "few open files": Broken("warn", "open files", "only 1024", "LimitNOFILE"),
    "clock off": Broken("warn", "clock", "3600 s behind", "NTP"),
}

#: Between here and there, and there.
THERE = {
    "DNS fails": Broken("fail", "ssh", "name cannot be resolved", "typing errors"),
    "host down": Broken("fail", "ssh", "cannot be reached", "Is the host up"),
    "sshd stopped": Broken("fail", "ssh", "refused", "start sshd"),
    "unknown host key": Broken("fail", "ssh", "host key of .* is not known.*ssh-keyscan", "fingerprint"),
    "changed host key": Broken("fail", "ssh", "(?i)changed|another", "fingerprint"),
    "wrong key": Broken("fail", "ssh", "other", "authorized_keys"),
    "wrong user": Broken("fail", "ssh", "stranger", "authorized_keys"),
    "key with a passphrase, no ssh-agent": Broken("fail", "ssh", "(?i)passphrase", "ssh-add"),
    "no docker group": Broken("fail", "docker group", "dev may not use", "usermod -aG docker dev"),
    "dockerd stopped": Broken("fail", "docker", "nothing answers|no socket", "systemctl (re)?start docker"),
    "socket missing": Broken("fail", "docker", "no socket unix:///run/none.sock", "--docker"),
    "no SFTP": Broken("fail", "sftp", "files cannot be transferred", "Subsystem sftp"),
    "no commands": Broken("warn", "commands", "cannot be run", "ForceCommand"),
    "one session only": Broken("warn", "sessions", "allows 1 at a time", "MaxSessions 10"),
    "no socket forwarding": Broken("warn", "socket forwarding", "dial-stdio", "AllowStreamLocalForwarding yes"),
    "no port forwarding": Broken("fail", "port forwarding", "does not allow", "AllowTcpForwarding yes"),
    "sync root not writable": Broken("fail", "sync root", "/root/mirrors cannot be written to", "--sync-root"),
    "read-only disk there": Broken("fail", "sync root", "/mnt/ro/mirrors cannot be written to", "read-only"),
    "full disk there": Broken(
        "fail", "disk space there|sync root", "only 0 MB free|cannot be written", "(?i)free|full"
    ),
}
