"""Which paths are left out: ``.rdaignore`` files at any level, and rules of the configuration. Pure.

The syntax is gitignore's (https://git-scm.com/docs/gitignore), matched by pathspec. It is not ``.dockerignore``'s,
which anchors and negates in another way. Nothing is left out by default: a bind mount holds everything, ``.git`` too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable

from pathspec import GitIgnoreSpec

#: The file whose rules hold for its directory and everything below.
IGNORE_FILE = b".rdaignore"

#: A rules file that is longer is not read: patterns are compiled to regular expressions, each matched on every path.
IGNORE_FILE_LIMIT = 256 * 1024


class Rules:
    """The rules that hold in one directory: its own, and through ``above`` those of the directories above it.

    :param base: the directory that holds the rules, relative to the root.
    :param lines: patterns, one each.
    :param above: the rules of the nearest directory above that has any.
    """

    __slots__ = ("_above", "_base_length", "_patterns")

    def __init__(self, base: bytes, lines: Iterable[str], above: Rules | None = None) -> None:
        self._base_length = len(base) + 1 if base else 0
        self._patterns = _compiled(lines)
        self._above = above

    def ignores(self, path: bytes, *, is_directory: bool) -> bool:
        """Whether ``path`` is left out. The last matching pattern of the deepest file decides, as in git.

        What is below an ignored directory is never asked about: as in git, it cannot be brought back.
        """
        return self._decide(path, is_directory, 0)

    def ignores_below(self, top: bytes, path: bytes) -> bool:
        """Whether ``path`` is left out, be it a file or a directory, by rules in ``top`` and below alone."""
        return any(self._decide(path, is_directory, len(top) + 1) for is_directory in (False, True))

    def _decide(self, path: bytes, is_directory: bool, shortest: int) -> bool:
        """Ask the rules from the deepest on; all of them are of directories above ``path``, so lengths tell which."""
        rules: Rules | None = self
        while rules is not None and rules._base_length >= shortest:
            name = os.fsdecode(path[rules._base_length :]) + ("/" if is_directory else "")
            for match, included in rules._patterns:
                if match(name):
                    return included
            rules = rules._above
        return False


def rules_from(text: bytes, base: bytes, above: Rules | None) -> Rules:
    """The rules of an ignore file with this text in directory ``base``."""
    return Rules(base, os.fsdecode(text).splitlines(), above)


def _compiled(lines: Iterable[str]) -> list[tuple[Callable[[str], bool], bool]]:
    """The patterns, last one first: what tells whether a path matches, and whether it is left out then.

    What is no pattern is left out, as git does: it skips a broken line and goes on.
    """
    compiled = []
    for line in lines:
        try:
            patterns = GitIgnoreSpec.from_lines([_spelled_out(line)]).patterns
        except ValueError:
            continue
        for pattern in patterns:
            regex: re.Pattern[str] | None = getattr(pattern, "regex", None)
            if regex is not None and pattern.include is not None:
                compiled.append((_matcher(regex), pattern.include))
    return compiled[::-1]


def _spelled_out(line: str) -> str:
    """``x/**`` means everything inside x; pathspec takes x itself, asked for as ``x/``, for something inside."""
    bare = line.rstrip(" ")
    if bare.endswith("/**"):
        return bare + "/*"
    if bare.endswith("/**/") or bare.lstrip("!") == "**/":
        return bare + "*/"
    return line


def _matcher(regex: re.Pattern[str]) -> Callable[[str], bool]:
    """Tell whether a pattern matches a path itself.

    pathspec's expressions match what is below a directory too, from the slash on that their group ``ps_d`` stands for.
    Here every directory is asked about before what is in it; a pattern that brings a directory back (``!/packages``)
    must not bring back what another one leaves out below it (``node_modules/``).
    """
    match, marked = regex.match, "ps_d" in regex.groupindex
    if not regex.pattern.startswith("^"):  # pathspec's short forms of "everything" and "every directory"
        return lambda path: path.endswith("/") or not marked
    if not marked:
        return lambda path: match(path) is not None

    def matches(path: str) -> bool:
        found = match(path)
        return found is not None and found.end("ps_d") in (-1, len(path))

    return matches
