"""What can go wrong, in words for the user.

Every error that may reach a person is an :class:`RdaError`: its message says what happened, to what, and what to do
next, and its class says which HTTP status the Docker client gets (:attr:`RdaError.status`). Anything else that is
raised is a defect and is logged with its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class RdaError(Exception):
    """The parent of all errors whose message is written for the user."""

    #: The HTTP status that this error becomes when it answers a Docker client.
    status = 500

    #: Seconds after which a client may try again (the ``Retry-After`` header), or None.
    retry_after: int | None = None

    #: What its message begins with when it answers a client: whose words they are. None where they are the daemon's.
    prefix = "rda: "

    #: Whether trying again without a change by a person is pointless (a changed host key, a refused login).
    permanent = False


class ConfigError(RdaError):
    """The configuration cannot be used; :attr:`problems` holds every reason, each with its key."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class BadRequest(RdaError):
    """The client's request cannot be understood, and so is not passed on."""

    status = 400


class BadDocument(BadRequest):
    """A document asks for something impossible: told as the daemon tells it."""

    prefix = ""


class Refused(RdaError):
    """The request is understood and not allowed."""

    status = 403


class Moved(RdaError):
    """The request's path is not in its normal form, and the daemon's router sends clients to that.

    :ivar location: the target to ask for instead.
    """

    status = 301

    def __init__(self, location: bytes) -> None:
        super().__init__(f"the normal form of this path is at {location.decode('ascii', 'replace')}")
        self.location = location


class NotFound(RdaError):
    """There is no such thing, or none of the caller's."""

    status = 404


class BodyTooLarge(RdaError):
    """A request body that has to be read whole is over its limit."""

    status = 413


class HeadTooLarge(RdaError):
    """A request head is over its limit."""

    status = 431


class RequestTimeout(RdaError):
    """The client did not finish its request head in time."""

    status = 408


class PortUnavailable(RdaError):
    """A local port that a container wants published cannot be opened: told as the daemon tells it."""

    prefix = ""


class StateUnwritable(RdaError):
    """What rda has to remember cannot be written to its state directory."""


class StateInUse(RdaError):
    """Another process uses the state directory."""


class DaemonError(RdaError):
    """The remote Docker daemon answered a call of rda's own with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class DaemonUnreachable(RdaError):
    """The SSH link is up, but nothing answers at the Docker socket behind it, or it stopped half-way."""

    status = 502


class LinkDown(RdaError):
    """The SSH connection is not there at the moment; rda is trying to bring it back."""

    status = 503
    retry_after = 2


class LoginFailed(LinkDown):
    """The remote host refused every key, or its own key is not to be trusted: a person has to act."""

    permanent = True


class HostKeyRefused(LoginFailed):
    """The remote host's key is unknown, changed or revoked."""


class ChannelRefused(RdaError):
    """The SSH server refused to open a channel (no such socket, nothing listens, not allowed).

    :ivar code: the reason code of RFC 4254, section 5.1.
    """

    status = 502

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class CommandFailed(RdaError):
    """A command on the remote host ended with an error.

    :ivar exit_status: its exit status, or None when a signal ended it or the status never came.
    """

    status = 502

    def __init__(self, message: str, exit_status: int | None) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class SyncFailed(RdaError):
    """A bind mount cannot be made complete; the message names the paths and the reasons."""


class SyncHalted(SyncFailed):
    """A bind mount stopped syncing to protect files, and waits for a person."""

    permanent = True
