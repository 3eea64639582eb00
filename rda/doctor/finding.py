"""What a check found. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Finding", "State", "fail", "ok", "warn"]


class State(Enum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"  # it works, but not as well as it could, or not for long
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    :ivar subject: what was looked at, in two or three words.
    :ivar message: what was found.
    :ivar cure: what to do about it; "" when all is well.
    """

    state: State
    subject: str
    message: str
    cure: str = ""


def ok(subject: str, message: str) -> Finding:
    """All is well."""
    return Finding(State.OK, subject, message)


def warn(subject: str, message: str, cure: str) -> Finding:
    """It works, but."""
    return Finding(State.WARN, subject, message, cure)


def fail(subject: str, message: str, cure: str) -> Finding:
    """It does not work."""
    return Finding(State.FAIL, subject, message, cure)
