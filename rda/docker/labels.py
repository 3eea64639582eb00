"""rda's labels where clients could set or see them: documents of containers, and whatever makes or shows images. Pure.

Whose a container is, is never decided by labels alone (:mod:`rda.containers.made_here`): what is refused here could
not do harm, but it could mislead whoever reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rda.docker.document import object_of, parse_any
from rda.docker.host_network import FORWARD_LABEL
from rda.docker.request import LABEL_PREFIX, hidden, is_ours, labels_of
from rda.errors import BadRequest

__all__ = ["check_label_changes", "check_labels", "inward_image", "inward_images", "unlabelled", "with_labels_shown"]

#: An instruction of a commit's or import's changes that sets one of our labels.
_LABEL_CHANGE = re.compile(
    rf"^\s*(?i:LABEL)\s(?:.*\s)?[\"']?{re.escape(LABEL_PREFIX)}(?!{FORWARD_LABEL.removeprefix(LABEL_PREFIX)}[\"'=\s])",
    re.MULTILINE,
)


def check_labels(labels: object, what: str) -> dict[str, object]:
    """Return the client's labels; none of them may be one of ours.

    :raises BadRequest: one is.
    """
    found = object_of(labels, what)
    for name in found:
        if is_ours(name):
            raise BadRequest(f"the label {name} cannot be set: labels that begin with {LABEL_PREFIX} are rda's own")
    return dict(found)


def check_label_changes(query: Iterable[tuple[str, str]]) -> None:
    """Look through the query of a call that makes an image: its ``labels`` and ``changes`` may not set our labels.

    :raises BadRequest: one does.
    """
    for name, value in query:
        if name == "labels":
            check_labels(parse_any(value.encode("utf-8", "replace")) if value else None, "labels")
        elif name == "changes" and _LABEL_CHANGE.search(value):
            raise BadRequest(f"--change {value!r}: labels that begin with {LABEL_PREFIX} are rda's own")


def unlabelled(container: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Return what a commit's query is to say more, for the image not to get rda's labels of its container.

    A commit can only give labels other values: empty ones mean nothing to anybody.
    """
    ours = [name for name in labels_of(container) if is_ours(name)]
    return tuple(("changes", f'LABEL {name}=""') for name in ours)


def inward_image(document: Mapping[str, object]) -> dict[str, object]:
    """Show an image's inspect document: without the labels that a commit copied, before rda kept them out."""
    result = dict(document)
    for name in ("Config", "ContainerConfig"):
        if isinstance(config := result.get(name), dict):
            result[name] = with_labels_shown(config)
    return result


def inward_images(items: Sequence[object]) -> list[object]:
    """Show the answer of ``/images/json``."""
    return [with_labels_shown(item) if isinstance(item, dict) else item for item in items]


def with_labels_shown(holder: Mapping[str, object]) -> dict[str, object]:
    """Hide rda's labels; where they were all there was, there are none."""
    labels = holder.get("Labels")
    if not isinstance(labels, dict) or not any(is_ours(name) for name in labels):
        return dict(holder)
    return {**holder, "Labels": hidden(labels) or None}
