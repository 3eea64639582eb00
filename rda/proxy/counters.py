"""What a site has done, as numbers. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counters"]


@dataclass
class Counters:
    """What a site has done so far, for status and metrics.

    :ivar requests: heads read, including the refused ones.
    :ivar refused: answered by rda instead of the daemon: errors of the client's or of the link.
    :ivar active: exchanges under way, tunnels included.
    :ivar hijacks: open tunnels; ``hijacks_total``: all there have been.
    :ivar retries: requests sent again because a kept connection turned out to be dead.
    :ivar to_daemon: bytes sent to the daemon; ``to_client``: bytes sent to clients.
    """

    requests: int = 0
    refused: int = 0
    active: int = 0
    hijacks: int = 0
    hijacks_total: int = 0
    retries: int = 0
    to_daemon: int = 0
    to_client: int = 0
