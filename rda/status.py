"""What rda is doing, as values: the snapshot behind ``rda status`` and ``/_rda/status``.

Each part of the program describes itself with one of these; nothing here holds a secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

#: Of a link; ``waiting``: to try again; ``failed``: a person has to act. Two that nobody is shown: ``stopped``, before
#: the start and after the end, and ``idle``, of the second connection while there is nothing for it to do.
LinkState = Literal["connected", "connecting", "waiting", "failed", "stopped", "idle"]

#: Of a published port: ``reserved``: it listens, but the container is not up yet. The last two: of a port of this
#: machine that containers reach.
ForwardState = Literal["open", "reserved", "not forwarded", "exposed", "not exposed"]

#: Of a mirror; ``waiting``: for the link; ``paused``: by a person; ``halted``: a person has to act.
MirrorState = Literal["idle", "scanning", "applying", "waiting", "paused", "halted"]


@dataclass(frozen=True)
class Problem:
    """Something that does not work, and what to do about it.

    :ivar subject: a path, a port or a host, as the user would write it.
    :ivar message: what happened and what to do next.
    :ivar since: when it began, seconds since the epoch.
    """

    subject: str
    message: str
    since: float = 0.0


@dataclass(frozen=True)
class LinkStatus:
    """One SSH link.

    :ivar remote: ``user@host:port`` as resolved.
    :ivar reason: why it is not connected, for people.
    :ivar round_trip: seconds, as last measured; ``round_trips``: the last measurements, each with the time of it in
        seconds since the epoch, oldest first.
    :ivar connects: how often it has been connected; ``channels``: SSH channels that are open now.
    :ivar socket_via: how the Docker socket is reached: ``streamlocal``, ``tcp``, ``dial-stdio`` or ``socat``.
    """

    remote: str
    state: LinkState
    reason: str = ""
    since: float = 0.0
    round_trip: float | None = None
    connects: int = 0
    channels: int = 0
    cipher: str = ""
    key_exchange: str = ""
    server: str = ""
    socket_via: str = ""
    next_try: float | None = None
    round_trips: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class ForwardStatus:
    """One published port; or, with ``host.docker.internal`` as its name, one that is open the other way round.

    :ivar local: where it is open here, e.g. ``127.0.0.1:8080``.
    :ivar remote: where the daemon published it on the remote host, or "" when it is not known yet.
    :ivar reason: for what is not forwarded or exposed, why.
    :ivar dropped: datagrams that could not be passed on, or connections that were refused.
    """

    container: str
    name: str
    port: str
    local: str
    remote: str
    state: ForwardState
    reason: str = ""
    connections: int = 0
    connections_total: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class MirrorStatus:
    """One bind mount's source.

    :ivar source: the local path.
    :ivar remote: the directory or file on the remote host.
    :ivar containers: ids of the containers that use it.
    :ivar files: what is on the remote because of it, in all; ``bytes`` likewise.
    :ivar files_done: of the transfer that is under way, or was the last; ``bytes_done`` likewise.
    :ivar rate: bytes per second, while something is transferred.
    :ivar time_left: seconds until all is transferred, as things go; None when that is not known.
    :ivar last_change: when the last change arrived, seconds since the epoch.
    :ivar latency: seconds between the last noticed change and its arrival.
    :ivar problems: of single paths, and of the mirror as a whole; the first hundred.
    :ivar problems_total: how many there are.
    :ivar conflicts: what was made on the remote in a local file's place, and is kept under another name.
    :ivar nested: other sources, inside this one, that are mounted from this copy.
    :ivar apart: why it is not mounted from the copy of a directory above that is mirrored too; "" where there is none.
    """

    source: str
    remote: str
    state: MirrorState
    mode: str = "one-way"
    containers: tuple[str, ...] = ()
    files: int = 0
    bytes: int = 0
    files_done: int = 0
    files_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    last_change: float | None = None
    latency: float | None = None
    problems: tuple[Problem, ...] = ()
    rate: float = 0.0
    time_left: float | None = None
    problems_total: int = 0
    conflicts: tuple[Problem, ...] = ()
    nested: tuple[str, ...] = ()
    apart: str = ""


@dataclass(frozen=True)
class WaitStatus:
    """A call that waits until a bind mount is complete.

    :ivar call: for people, e.g. ``start of web``.
    :ivar source: the local path.
    :ivar since: seconds since the epoch.
    """

    call: str
    source: str
    since: float


@dataclass(frozen=True)
class RemoteCopy:
    """A copy on the remote host that no container uses any more.

    :ivar name: of its directory below the sync root.
    :ivar source: the local path that it is a copy of; "" when that is not known any more.
    :ivar bytes: of all files in it that the remote user can see.
    :ivar age: seconds since it was last used.
    """

    name: str
    source: str
    bytes: int
    age: float


@dataclass(frozen=True)
class CallStatus:
    """One call of a Docker client's. Its query and bodies are not here: they may hold secrets.

    :ivar path: in normal form, without the API version.
    :ivar name: what rda calls it, e.g. ``container create``; "" for a path that it only passes on.
    :ivar caller: the user who made it; "" when callers are not asked who they are.
    :ivar began: seconds since the epoch.
    :ivar code: the HTTP status of the answer, None before there is one (and when the client left before).
    :ivar answered: seconds until the answer's head was there, or None.
    :ivar seconds: that it took in all, or None while it is under way.
    """

    method: str
    path: str
    name: str
    caller: str
    began: float
    code: int | None = None
    answered: float | None = None
    seconds: float | None = None


#: Upper bounds of the buckets in which times until the answer are counted, in seconds; what is beyond has one more.
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class RouteStatus:
    """What was answered to one kind of call since rda started.

    :ivar name: as in :class:`CallStatus`.
    :ivar codes: HTTP statuses, each with the number of answers that had it.
    :ivar buckets: how many answers took so long to begin: see :data:`LATENCY_BUCKETS`.
    :ivar seconds: that all of them took together to begin.
    """

    name: str
    codes: tuple[tuple[int, int], ...]
    buckets: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class RelayStatus:
    """What has been relayed since rda started.

    :ivar connections: clients that are connected.
    :ivar requests: all that were read; ``refused``: those that rda answered with an error itself.
    :ivar active: calls under way; ``hijacks``: attached terminals, execs and BuildKit sessions among them.
    :ivar retries: calls sent again because a kept connection to the daemon was dead.
    :ivar to_daemon: bytes; ``to_client`` likewise.
    """

    connections: int = 0
    requests: int = 0
    refused: int = 0
    active: int = 0
    hijacks: int = 0
    retries: int = 0
    to_daemon: int = 0
    to_client: int = 0
    routes: tuple[RouteStatus, ...] = ()


@dataclass(frozen=True)
class ContextStatus:
    """One context: a remote daemon and everything rda keeps for it.

    :ivar calls: the latest, newest first, and those that are under way.
    :ivar waiting: those that wait for bind mounts, the longest first.
    """

    name: str
    listeners: tuple[str, ...]
    link: LinkStatus
    forwards: tuple[ForwardStatus, ...] = ()
    mirrors: tuple[MirrorStatus, ...] = ()
    problems: tuple[Problem, ...] = field(default=())
    relay: RelayStatus = field(default=RelayStatus())
    calls: tuple[CallStatus, ...] = ()
    waiting: tuple[WaitStatus, ...] = ()
