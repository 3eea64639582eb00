"""What the user asked for, as labels of a container or volume keep it on the remote host, and whose it is. Pure.

The remote is the truth: after a restart of rda, the labels are all that is left, and all that is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from rda.docker.document import object_of, parse_any, serialise, text_list, text_of
from rda.docker.host_network import FORWARD_LABEL, read_ports
from rda.docker.ports import Published, published, requested
from rda.errors import BadRequest, RdaError

__all__ = [
    "LABEL_PREFIX",
    "OWNER_LABEL",
    "REQUEST_LABEL",
    "USER_LABEL",
    "Request",
    "find_request",
    "hidden",
    "is_labelled",
    "is_ours",
    "labels_of",
    "publishes",
    "request_of",
]

#: Labels that begin so are rda's: clients neither set nor see them (but :data:`FORWARD_LABEL`).
LABEL_PREFIX = "io.rda."
OWNER_LABEL = "io.rda.owner"
REQUEST_LABEL = "io.rda.request"
#: Who asked for it: the name of the caller.
USER_LABEL = "io.rda.user"

#: The form of :class:`Request`. A label of another version is not understood, and its container not touched.
_VERSION = 1

#: Labels whose meaning is remembered: lists show the same containers again and again.
REMEMBERED = 4096

#: Network modes whose containers publish nothing.
_UNPUBLISHED = ("host", "none")


def publishes(network_mode: str) -> bool:
    """Return whether containers of a network mode publish ports."""
    return network_mode not in _UNPUBLISHED and not network_mode.startswith("container:")


@dataclass(frozen=True)
class Request:
    """What the user asked for, as a container's or volume's label keeps it.

    :ivar nonce: unlike any other request's: a label that an image was committed with can be told by it.
    :ivar bindings: the original PortBindings, or None when there were none.
    :ivar publish_all: the original PublishAllPorts.
    :ivar exposed: with ``publish_all``, the container ports that it meant.
    :ivar originals: what the rewrite replaced: place in the document -> text, ``b0`` for the whole of Binds[0],
        ``m2`` for the source of Mounts[2], ``v`` for the device of a volumes/create.
    :ivar shown: remote path -> the path that Docker would show, for the places that name the path alone.
    :ivar sources: the bind paths that are mirrored for it, as the client's system writes them, each once, in order.
    :ivar network_mode: the original NetworkMode.
    :ivar replaced: further fields of HostConfig that the rewrite replaced: name -> the original, None where there was
        none.
    :ivar forward: the ports that :data:`FORWARD_LABEL` names, as it does, with network mode host.
    """

    nonce: str
    bindings: Mapping[str, object] | None = None
    publish_all: bool = False
    exposed: tuple[str, ...] = ()
    originals: Mapping[str, str] = field(default_factory=dict)
    shown: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    network_mode: str = ""
    forward: tuple[str, ...] = ()
    replaced: Mapping[str, object] = field(default_factory=dict)

    def label(self) -> str:
        """Return the label's value: compact JSON, what is empty left out."""
        fields: dict[str, object] = {"v": _VERSION, "n": self.nonce}
        if self.bindings is not None:
            fields["ports"] = self.bindings
        if self.publish_all:
            fields |= {"all": True, "exposed": list(self.exposed)}
        if self.originals or self.sources:
            fields |= {"originals": dict(self.originals), "shown": dict(self.shown), "sources": list(self.sources)}
        if self.network_mode:
            fields["net"] = self.network_mode
        if self.forward:
            fields["forward"] = list(self.forward)
        if self.replaced:
            fields["replaced"] = dict(self.replaced)
        return serialise(fields).decode("utf-8")

    @property
    def ports(self) -> tuple[Published, ...]:
        """What it publishes, or has forwarded; nothing where the network mode publishes nothing."""
        if self.on_host_network:
            return read_ports(self.forward)
        if not publishes(self.network_mode):
            return ()
        return requested(self.bindings, self.publish_all, self.exposed)

    @property
    def on_host_network(self) -> bool:
        """Whether its container's ports are the remote host's own."""
        return self.network_mode == "host"

    def remote_ports(self, inspect: Mapping[str, object], ports: Iterable[Published]) -> dict[str, int]:
        """Return where a running container's ports are on the remote host: container port -> port of its 127.0.0.1.

        :param inspect: the daemon's description of it.
        :param ports: those that are wanted here.
        """
        return {one.key: one.port for one in ports} if self.on_host_network else published(inspect)


def find_request(labels: object) -> Request | None:
    """Read the request among a container's or volume's labels; None when there is none that we understand."""
    text = labels.get(REQUEST_LABEL) if isinstance(labels, dict) else None
    return _parsed(text) if isinstance(text, str) else None


@lru_cache(maxsize=REMEMBERED)
def _parsed(text: str) -> Request | None:
    try:
        fields = object_of(parse_any(text.encode("utf-8", "replace")), REQUEST_LABEL)
        ports = fields.get("ports")
        request = Request(
            nonce=text_of(fields.get("n"), "n"),
            bindings=None if ports is None else object_of(ports, "ports"),
            publish_all=fields.get("all") is True,
            exposed=tuple(text_list(fields.get("exposed"), "exposed")),
            originals=_texts(fields.get("originals")),
            shown=_texts(fields.get("shown")),
            sources=tuple(text_list(fields.get("sources"), "sources")),
            network_mode=text_of(fields.get("net"), "net"),
            forward=tuple(text_list(fields.get("forward"), "forward")),
            replaced=object_of(fields.get("replaced"), "replaced"),
        )
        understood = fields.get("v") == _VERSION and request.nonce and request.ports is not None
    except RdaError:
        return None
    return request if understood else None


def _texts(value: object) -> dict[str, str]:
    return {name: text_of(text, name) for name, text in object_of(value, REQUEST_LABEL).items()}


def request_of(container: Mapping[str, object]) -> Request:
    """Return what the user asked for with a container that :func:`is_labelled` as ours.

    :raises BadRequest: it does not say.
    """
    request = find_request(labels_of(container))
    if request is None:
        raise BadRequest(f"container {container.get('Id')} carries no {REQUEST_LABEL} label that this rda understands")
    return request


def is_labelled(container: Mapping[str, object], owner: str) -> bool:
    """Return whether a container's labels say that ``owner`` made it.

    That counts only where :class:`rda.containers.made_here.MadeHere` holds the container too: labels can be copied.

    :param container: its inspect document, or its entry in a list.
    """
    labels = labels_of(container)
    return labels.get(OWNER_LABEL) == owner and find_request(labels) is not None


def hidden(labels: Mapping[str, object]) -> dict[str, object]:
    """Return labels without rda's own."""
    return {name: value for name, value in labels.items() if not is_ours(name)}


def is_ours(label: str) -> bool:
    """Return whether a label is one that only rda sets."""
    return label.startswith(LABEL_PREFIX) and label != FORWARD_LABEL


def labels_of(document: Mapping[str, object]) -> Mapping[str, object]:
    """Return the labels of an inspect document (below Config) or of a list entry (at the top)."""
    config = document.get("Config")
    labels = config.get("Labels") if isinstance(config, dict) else document.get("Labels")
    return labels if isinstance(labels, dict) else {}
