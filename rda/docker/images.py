"""Names of images, read as the daemon reads them, and patterns of them. Pure.

Source: distribution/reference, ``ParseNormalizedNamed`` and ``splitDockerDomain``.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from rda.docker.binds import path_expression

__all__ = ["Image", "image_matches", "registry_of"]

#: The registry of names that have none.
DEFAULT_REGISTRY = "docker.io"


@dataclass(frozen=True)
class Image:
    """An image's full name.

    :ivar name: with registry: ``docker.io/library/alpine``.
    :ivar tag: ``latest`` where there is neither tag nor digest, else "".
    :ivar digest: ``sha256:…``, or "".
    """

    name: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Image:
        """Read a name; anything is one, if only of an image that no registry has."""
        rest, _, digest = text.partition("@")
        head, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:
            head, tag = rest, ""
        return cls(_full(head), tag or ("" if digest else "latest"), digest)

    @property
    def registry(self) -> str:
        """The host that it is pulled from and pushed to."""
        return self.name.partition("/")[0]


def registry_of(text: str) -> str:
    """Return the host that a registry's address names: ``https://index.docker.io/v1/`` is docker.io."""
    host = text.partition("://")[2] or text
    host = host.partition("/")[0].rpartition("@")[2]
    return DEFAULT_REGISTRY if host in ("", "index.docker.io", "registry-1.docker.io") else host


def _full(name: str) -> str:
    first, slash, rest = name.partition("/")
    is_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
    if not slash or not is_host:
        first, rest = DEFAULT_REGISTRY, name
    if first == "index.docker.io":
        first = DEFAULT_REGISTRY
    return f"{first}/library/{rest}" if first == DEFAULT_REGISTRY and "/" not in rest else f"{first}/{rest}"


@lru_cache(maxsize=1024)
def _pattern(text: str) -> tuple[str, str]:
    """Split a pattern into those of the full name and of the tag ("" for any tag and digest)."""
    head, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        head, tag = text, ""
    return (head if head.startswith("*") else _full(head)), tag


def image_matches(pattern: str, image: Image) -> bool:
    """Return whether a pattern is of an image: ``alpine``, ``ghcr.io/org/**``, ``*/team/*:1.*``, or ``*`` for all.

    ``*`` stays within one segment, ``**`` goes across. Without a tag it is of all tags and digests.
    """
    if pattern in ("*", "**"):
        return True
    name, tag = _pattern(pattern)
    if not path_expression("=/" + name).fullmatch("/" + image.name):
        return False
    return not tag or (not image.digest and fnmatchcase(image.tag, tag))
