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
    :param never: a path that is left out whatever the patterns say, and that those below cannot bring back; b"": none.
    """

    __slots__ = ("_above", "_base_length", "_never", "_patterns")

    def __init__(self, base: bytes, lines: Iterable[str], above: Rules | None = None, never: bytes = b"") -> None:
        self._never: bytes = never or (above._never if above is not None else b"")
        self._base_length = len(base) + 1 if base else 0
        self._patterns = _compiled(lines)
        self._above = above

    def ignores(self, path: bytes, *, is_directory: bool) -> bool:
        """Whether ``path`` is left out. The last matching pattern of the deepest file decides, as in git.

        What is below an ignored directory is never asked about: as in git, it cannot be brought back.
        """
        return (path == self._never and bool(path)) or self._decide(path, is_directory, 0)

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
    match, marked = _steady(regex).match, "ps_d" in regex.groupindex
    if not regex.pattern.startswith("^"):  # pathspec's short forms of "everything" and "every directory"
        return lambda path: path.endswith("/") or not marked
    if not marked:
        return lambda path: match(path) is not None

    def matches(path: str) -> bool:
        found = match(path)
        return found is not None and found.end("ps_d") in (-1, len(path))

    return matches


#: What pathspec's expressions are made of.
_ANYWHERE, _BETWEEN = "(?:.+/)?", "(?:/.+)?/"  # **/ at the beginning, /**/
_STAR, _SOME = "[^/]*", "[^/]+"
_ENDING = re.compile(r"(?:\(\?:)?\(\?P<ps_d>.*|\Z", re.S)
_PIECE = re.compile(r"\[\^/\][*+]?|\[\^?\]?(?:\\.|[^\]\\])*\]|\\.|[^\[\\.*+?(){}|^$]", re.S)


def _steady(regex: re.Pattern[str]) -> re.Pattern[str]:
    """Return an expression that matches the same, in a time that does not explode with the number of its wildcards.

    An ignore file may come from anybody: from a repository, or from a container that writes to a two-way mount. With
    ``*a*a*a*…b`` and a name of two hundred times ``a``, Python's matching, which tries again at every wildcard, does
    not end, and nothing else of the process goes on meanwhile. Where a wildcard of the same kind follows, the first
    place that fits is as good as any later one: there is no need to try again (as :func:`fnmatch.translate` knows).
    """
    text = regex.pattern.removeprefix("^")
    found = _ENDING.search(text)
    assert found is not None  # it matches the end
    body, ending = text[: found.start()], found[0]
    start, body = (_ANYWHERE, body[len(_ANYWHERE) :]) if body.startswith(_ANYWHERE) else ("", body)
    runs = [_steady_run(run) for run in body.split(_BETWEEN)]
    if any(run is None for run in runs):
        return regex  # of another pathspec: it is matched as that one means it
    result = "^"
    for number, run in enumerate(runs):
        if number == len(runs) - 1:
            result += f"{start}{run}"
        elif start:
            lazy = "(?:.+?/)??" if start == _ANYWHERE else "(?:/.+?)??/"
            result += f"(?>{lazy}{run}(?=/))"
        else:
            result += f"{run}"
        start = _BETWEEN
    return re.compile(result + ending, regex.flags)


def _steady_run(run: str) -> str | None:
    """Do so for some path components in a row; None for an expression of another kind than pathspec writes."""
    result, since_star, place = "", "", 0
    in_star = False
    while place < len(run):
        found = _PIECE.match(run, place)
        if found is None:
            return None
        piece, place = found[0], found.end()
        if piece in (_STAR, _SOME):
            if in_star:
                result += f"(?>{_STAR}?{since_star})"
            else:
                result += since_star
            since_star = "[^/]" if piece == _SOME else ""
            if piece == _SOME:
                result, since_star = result + since_star, ""
            in_star = True
        elif piece == "/":
            result += (_STAR if in_star else "") + since_star + piece
            since_star, in_star = "", False
        else:
            # A class matches no slash in git, also one that says what it is not.
            since_star += f"(?!/){piece}" if piece[0] == "[" and piece != "[^/]" else piece
    return result + (_STAR if in_star else "") + since_star
