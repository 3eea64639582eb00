"""The line that an SSH server begins with (RFC 4253, section 4.2). Pure."""

from __future__ import annotations

__all__ = ["BadVersion", "VersionReader"]

#: Bytes that the peer may send before its version (RFC 4253, section 4.2 allows lines in front of it), and the longest
#: version line. OpenSSH reads up to 1024 lines of 8 KiB; nobody sends more than a screen.
MAX_BANNER = 64 * 1024
MAX_VERSION_LINE = 255

_SUPPORTED = (b"SSH-2.0-", b"SSH-1.99-")


class BadVersion(Exception):
    """It is no SSH server, or speaks a version that rda does not."""


class VersionReader:
    """Finds the version line in what a server sends first."""

    def __init__(self) -> None:
        self._data = b""
        self._skipped = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Take bytes from the wire.

        :returns: the version without its line end and what follows it, once the line is whole; None before.
        :raise BadVersion: it cannot become one any more.
        """
        self._data += data
        while b"\n" in self._data:
            line, _, self._data = self._data.partition(b"\n")
            if line.startswith(b"SSH-"):
                return self._checked(line.rstrip(b"\r")), self._data
            self._skipped += len(line) + 1
        if self._skipped + len(self._data) > MAX_BANNER:
            raise BadVersion(f"no SSH version in the first {MAX_BANNER} bytes")
        return None

    def _checked(self, line: bytes) -> bytes:
        if len(line) > MAX_VERSION_LINE or not line.startswith(_SUPPORTED):
            shown = line[:MAX_VERSION_LINE].decode("ascii", "backslashreplace")
            raise BadVersion(f"unsupported version {shown}")
        return line
