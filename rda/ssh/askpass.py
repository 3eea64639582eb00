"""Asking a person for a passphrase, as ssh(1) does: by the SSH_ASKPASS program or at the terminal."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred

from rda.deferreds import threads_of
from rda.ssh.identities import AskPassphrase
from rda.ssh.program import Finished, run_program

__all__ = ["passphrase_asker"]

#: Seconds for a person to answer; sshd waits for a login no longer than this either (LoginGraceTime).
ANSWER_TIMEOUT = 120.0


def passphrase_asker(reactor: Any, environ: Mapping[str, str], terminal: str = "/dev/tty") -> AskPassphrase | None:
    """Find out how a person can be asked here (ssh(1), "ENVIRONMENT", SSH_ASKPASS and SSH_ASKPASS_REQUIRE).

    :param reactor: runs processes and threads.
    :param terminal: the controlling terminal's device.
    :returns: None when nobody can: no terminal and no askpass program.
    """
    program = environ.get("SSH_ASKPASS", "")
    require = environ.get("SSH_ASKPASS_REQUIRE", "")
    has_display = bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))
    has_terminal = _is_usable(terminal)

    def at_terminal(prompt: str) -> Deferred[bytes | None]:
        return threads_of(reactor)(_read_passphrase, prompt)

    def by_program(prompt: str) -> Deferred[bytes | None]:
        return run_program(reactor, program, [prompt], environ, ANSWER_TIMEOUT).addCallback(_answer_of)

    if program and (require == "force" or (require == "prefer" and has_display)):
        return by_program
    if has_terminal and require != "force":
        return at_terminal
    if program and has_display and require != "never":
        return by_program
    return None


def _answer_of(result: Finished) -> bytes | None:
    return result.output.rstrip(b"\r\n") if result.status == 0 else None


def _read_passphrase(prompt: str) -> bytes | None:
    try:
        return getpass.getpass(prompt).encode()
    except (EOFError, OSError):
        return None


def _is_usable(terminal: str) -> bool:
    try:
        os.close(os.open(terminal, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
