"""Which paths are left out: ``.rdaignore`` files at any level, and rules of the configuration. Pure.

The syntax is gitignore's (https://git-scm.com/docs/gitignore), matched by pathspec. It is not ``.dockerignore``'s,
which anchors and negates in another way. Nothing is left out by default: a bind mount holds everything, ``.git`` too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

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

    __slots__ = ("_above", "_base_length", "_spec")

    def __init__(self, base: bytes, lines: Iterable[str], above: Rules | None = None) -> None:
        self._base_length = len(base) + 1 if base else 0
        self._spec = GitIgnoreSpec.from_lines(_compilable(lines))
        self._above = above

    def ignores(self, path: bytes, *, is_directory: bool) -> bool:
        """Whether ``path`` is left out. The last matching pattern of the deepest file decides, as in git.

        What is below an ignored directory is never asked about: as in git, it cannot be brought back.
        """
        rules: Rules | None = self
        while rules is not None:
            name = os.fsdecode(path[rules._base_length :]) + ("/" if is_directory else "")
            verdict = rules._spec.check_file(name).include
            if verdict is not None:
                return verdict
            rules = rules._above
        return False


def rules_from(text: bytes, base: bytes, above: Rules | None) -> Rules:
    """The rules of an ignore file with this text in directory ``base``."""
    return Rules(base, os.fsdecode(text).splitlines(), above)


def _compilable(lines: Iterable[str]) -> list[str]:
    """Leave out what is no pattern, as git does: it skips a broken line and goes on.

    ``x/**`` means everything inside x; pathspec takes x itself, asked for as ``x/``, for something inside.
    """
    good = []
    for line in lines:
        if line.rstrip(" ").endswith("/**"):
            line = line.rstrip(" ") + "/*"
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError:
            continue
        good.append(line)
    return good
