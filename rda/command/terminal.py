"""Printing for people: colours where they are seen, tables, bars and charts."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

__all__ = ["Terminal", "bar", "columns", "plain", "sparkline"]

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")

#: Eighths of a character cell, for bars and sparklines.
_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Terminal:
    """Where a command prints.

    :ivar out: for what was asked for; ``err`` for everything else.
    :ivar colours: whether ``out`` shows them.
    """

    out: TextIO
    err: TextIO
    colours: bool = False

    @classmethod
    def here(cls, environ: Mapping[str, str] = os.environ) -> Terminal:
        """The process's own; colours only on a terminal that has them (https://no-color.org)."""
        wanted = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        return cls(sys.stdout, sys.stderr, wanted and sys.stdout.isatty())

    @property
    def width(self) -> int:
        """Columns; plenty where there is no terminal, so that nothing is cut off in files."""
        return shutil.get_terminal_size().columns if self.out.isatty() else 10_000

    def style(self, text: str, *names: str) -> str:
        """Colour a text, where colours are seen."""
        if not self.colours or not names:
            return text
        return f"\x1b[{';'.join(_STYLES[name] for name in names)}m{text}\x1b[0m"

    def print(self, *lines: str) -> None:
        """Print lines; what the terminal's encoding has no character for becomes a ``?``."""
        encoding = self.out.encoding or "utf-8"
        for line in lines:
            self.out.write(line.encode(encoding, "replace").decode(encoding) + "\n")
        self.out.flush()

    def screen(self, lines: Iterable[str]) -> None:
        """Show lines in the place of what was there; in a file, below it."""
        if not self.out.isatty():
            self.print(*lines, "")
            return
        room = shutil.get_terminal_size()
        shown = [_crop(line, room.columns) for line in lines][: room.lines - 1]
        # Home; each line to its end cleared behind it, so that nothing flickers; then everything below.
        self.out.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J")
        self.out.flush()

    def warn(self, message: str) -> None:
        """Say something that is not part of the output, and may have been said elsewhere."""
        self.err.write("rda: " + "\n".join(map(plain, message.splitlines())) + "\n")


def _crop(line: str, width: int) -> str:
    """A line that takes no more columns than there are; its colours take none."""
    left = width
    parts = []
    for part in _COLOUR.split(line):
        if not part.startswith("\x1b["):
            part = part[:left]
            left -= len(part)
        parts.append(part)
    return "".join(parts)


def plain(text: str) -> str:
    """A text from elsewhere without what a terminal would obey: control characters, bidirectional overrides."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def bar(part: float, width: int = 20) -> str:
    """A progress bar for a fraction."""
    full = round(max(0.0, min(1.0, part)) * width)
    return "█" * full + "░" * (width - full)


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The last values as little columns between zero and the highest."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    return "".join(_BLOCKS[min(7, int(value / top * 7.999))] if top else _BLOCKS[0] for value in shown)


def columns(rows: Iterable[Sequence[str]], indent: str = "  ") -> list[str]:
    """Align the cells of rows; the last one is as long as it is. Cells must not be styled yet."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[n]) for row in rows if n < len(row)) for n in range(max(map(len, rows), default=0))]
    return [(indent + "  ".join(cell.ljust(widths[n]) for n, cell in enumerate(row))).rstrip() for row in rows]
