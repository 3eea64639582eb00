"""What happens to each endpoint of the Engine API: one table. Everything that is not in it is relayed as it is.

Source: the Engine API reference, https://docs.docker.com/reference/api/engine/.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto


class RequestBody(Enum):
    """What becomes of the request's body."""

    STREAM = auto()  # spliced to the daemon as it arrives
    DOCUMENT = auto()  # read whole (bounded), parsed strictly as one JSON object, and replaced


class Answer(Enum):
    """What becomes of the daemon's answer."""

    STREAM = auto()  # spliced to the client as it arrives
    HELD = auto()  # spliced, but its head waits until ICallRewriter.answered fires
    DOCUMENT = auto()  # read whole (bounded), parsed as JSON, and replaced by what answered() fires with
    DOCUMENTS = auto()  # a stream of JSON documents, each passed through ICallRewriter.streamed
    HIJACK = auto()  # may become a raw connection (101, or the old 200 without framing)


@dataclass(frozen=True)
class Route:
    """One line of the table.

    :ivar name: what the code calls it, e.g. ``container create``.
    :ivar method: the HTTP method.
    :ivar pattern: path without version; ``{ref}`` stands for one or more segments that name something.
    :ivar asks: whether ``ICallRewriter.outgoing`` is asked before anything is sent.
    """

    name: str
    method: bytes
    pattern: str
    body: RequestBody = RequestBody.STREAM
    answer: Answer = Answer.STREAM
    asks: bool = False


@dataclass(frozen=True)
class Call:
    """One request, after its path has been brought to normal form.

    :ivar path: without version and query: decoded, one slash between segments, e.g. ``/containers/web/start``.
    :ivar version: ``1.45`` of ``/v1.45/…``, or None for an unversioned path.
    :ivar query: decoded name-value pairs, in order.
    :ivar ref: the name or id in the path, or None.
    """

    route: Route
    method: bytes
    path: str
    version: str | None
    query: tuple[tuple[str, str], ...] = ()
    ref: str | None = None


@dataclass(frozen=True)
class Outgoing:
    """What is sent to the daemon instead of the call as it came.

    :ivar query: replaces the call's query; None leaves it.
    :ivar body: the new JSON document for routes with a document body; None where the route streams its body.
    :ivar memo: whatever the rewriter wants back in ``answered`` and ``aborted``; nobody else looks at it.
    """

    query: tuple[tuple[str, str], ...] | None = None
    body: dict[str, object] | None = None
    memo: object = field(default=None, compare=False)
