"""How one source is mirrored, and what all mirrors of a context share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rda.deferreds import InThread
from rda.interfaces import IRemoteHost
from rda.sync.bulk import Bulk
from rda.sync.owner import DEFAULT_OWNER, OwnerChoice
from rda.sync.remote_look import RemoteLook
from rda.sync.remote_watch import RemoteWatch
from rda.sync.watch import Watcher


@dataclass(frozen=True)
class Settings:
    """How one source is mirrored.

    :ivar mode: ``one-way``: what is made on the remote stays there, untouched; ``mirror``: it is removed; ``two-way``:
        it comes back.
    :ivar ignore: patterns of paths that are left out, as in an ignore file at the root.
    :ivar plain: the source was judged as its own real path: nothing is reached through a symbolic link, see
        :mod:`rda.sync.inside`.
    :ivar ownership: whose it is on the remote.
    """

    mode: str = "one-way"
    ignore: tuple[str, ...] = ()
    plain: bool = False
    ownership: OwnerChoice = DEFAULT_OWNER


@dataclass(frozen=True)
class Tools:
    """What all mirrors of a context share.

    :ivar reactor: the clock, and ``callFromThread`` for the watcher.
    :ivar in_thread: runs a blocking function in a thread and fires with its result.
    :ivar own: the real path of rda's own state on this machine, see :class:`rda.sync.scan.Scanner`.
    :ivar watched: what is watched on the remote host.
    """

    host: IRemoteHost
    reactor: Any
    in_thread: InThread
    watcher: Watcher
    bulk: Bulk
    look: RemoteLook
    own: bytes = b""
    watched: set[RemoteWatch] = field(default_factory=set)
