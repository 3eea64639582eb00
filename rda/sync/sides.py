"""The two sides of one transfer, and what keeps account of it: shared by everything that carries out a plan."""

from __future__ import annotations

from dataclasses import dataclass

from rda.deferreds import InThread
from rda.interfaces import IRemoteFiles
from rda.sync.large import Progress
from rda.sync.manifest import Manifest
from rda.sync.remote import RemoteTree


@dataclass(frozen=True)
class Sides:
    """What a plan is carried out between.

    :ivar root: of the local tree.
    :ivar remote: the tree on the remote host, over one connection.
    :ivar manifest: what is on the remote because of us.
    :ivar in_thread: runs a blocking function in a thread and fires with its result.
    :ivar progress: told how far things are.
    """

    root: bytes
    remote: RemoteTree
    manifest: Manifest
    in_thread: InThread
    progress: Progress

    @property
    def files(self) -> IRemoteFiles:
        """Operations on the remote host's files."""
        return self.remote.files
