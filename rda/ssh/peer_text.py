"""What a peer says, as people may see it."""

from __future__ import annotations

__all__ = ["MAX_TEXT", "peer_text"]

#: The most characters of a peer's text that are shown.
MAX_TEXT = 300


def peer_text(data: bytes, limit: int = MAX_TEXT) -> str:
    """A peer's text as people may see it: in one line, not too long, and with nothing that a terminal would obey."""
    text = data[:limit].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()
