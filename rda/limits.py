"""Every number that bounds the proxy, in one place; ``[limits]`` of the configuration changes them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


def raised_by(key: str) -> str:
    """What to do, for the end of a refusal by a limit.

    :param key: its name in :class:`Limits`.
    """
    return f"; {key} in [limits] of rda.toml raises that"


@dataclass(frozen=True)
class Limits:
    """What the proxy takes from clients and from the daemon before it refuses. Sizes are bytes, times seconds.

    :ivar head: a request or answer head. Go's ``http.DefaultMaxHeaderBytes``; X-Registry-Config needs more than
        Twisted's 16 KiB.
    :ivar header_count: header fields of one request. Twisted's default.
    :ivar document: a request body that is read whole and rewritten.
    :ivar answer_document: an answer that is read whole; the list of 10,000 containers has about 15 MB.
    :ivar stream_document: one document of a stream of documents; an event has about 1 KB.
    :ivar held: what the daemon may send on while the head of its answer waits for its permission. Larger than any
        window of the link, so only an upstream that ignores back-pressure reaches it.
    :ivar pipelined: what is read of further requests, or of a hijack's input, before the answer to the first.
        Twisted's default.
    :ivar own_body: the body of a request to rda itself.
    :ivar connections: open client connections of one site.
    :ivar refusals: connections over the limit, or of peers that are not allowed, that are still being told so.
    :ivar refused_head: a request head of a peer that is not allowed; it is read to be answered. Twisted's default.
    :ivar idle_upstreams: daemon connections kept open for the next request.
    :ivar head_seconds: from the first byte of a request head to its last (slowloris).
    :ivar idle_seconds: a connection without a request. Go clients close theirs after 90 seconds.
    :ivar idle_upstream_seconds: a daemon connection without a request.
    :ivar linger_seconds: how long unread input is drained after the last byte of an answer, or unsent bytes flushed
        to the other side, before a connection is cut.
    :ivar keepalive_seconds: without a byte from a client, until the kernel asks whether it is still there; when it does
        not answer, its connection is lost after as long again.
    :ivar reap_seconds: how often connections that are not being read are asked whether their client is still there.
    """

    head: int = 1 << 20
    header_count: int = 500
    document: int = 4 << 20
    answer_document: int = 64 << 20
    stream_document: int = 4 << 20
    held: int = 8 << 20
    pipelined: int = 16 << 10
    own_body: int = 64 << 10
    connections: int = 4096
    refusals: int = 64
    refused_head: int = 16 << 10
    idle_upstreams: int = 4
    head_seconds: float = 30.0
    idle_seconds: float = 900.0
    idle_upstream_seconds: float = 60.0
    linger_seconds: float = 10.0
    keepalive_seconds: float = 60.0
    reap_seconds: float = 5.0
