"""The part of ssh_config(5) that rda reads by itself where the ssh program is not installed.

Pure, but for the reading of files, which is a parameter. Understood are ``Host``, ``Match`` with ``all``, ``host``,
``originalhost``, ``user`` and ``final`` (never true), ``Include``, quoting, and ``keyword=value``. The first value of a
keyword wins; IdentityFile and CertificateFile add up. What cannot be decided (``Match exec``) is refused, not guessed.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable

from rda.errors import ConfigError
from rda.ssh.known_hosts import match_patterns

__all__ = ["CUMULATIVE", "Settings", "read_settings"]

#: Lower-case keyword to its values, as ``ssh -G`` prints them.
Settings = dict[str, list[str]]

#: Keywords whose values add up over the blocks.
CUMULATIVE = frozenset(("identityfile", "certificatefile"))

#: Include within Include; ssh's READCONF_MAX_DEPTH.
MAX_DEPTH = 16

#: Keywords that take the rest of the line as it is.
_VERBATIM = frozenset(("proxycommand", "localcommand", "remotecommand", "knownhostscommand"))

#: Keywords of several values on one line, which stay together.
_SEVERAL = frozenset(("userknownhostsfile", "globalknownhostsfile", "revokedhostkeys", "rekeylimit"))


class _Reader:
    """Collects the settings that apply to one host.

    :param original: the host as the user wrote it.
    :param user: the user that the command line named, "" if none.
    :param open_files: given an Include pattern, the matching files as (path, text), in order.
    """

    def __init__(self, original: str, user: str, open_files: Callable[[str], Iterable[tuple[str, str]]]) -> None:
        self.settings: Settings = {}
        self._original = original
        self._user = user
        self._open = open_files

    def read(self, path: str, text: str, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise ConfigError([f"{path}: Include is nested deeper than {MAX_DEPTH}"])
        applies = True
        for number, line in enumerate(text.splitlines(), 1):
            keyword, rest = _split(line)
            where = f"{path}:{number}"
            if not keyword:
                continue
            if keyword == "host":
                applies = match_patterns(",".join(_words(rest, where)).encode(), self._original.lower().encode())
            elif keyword == "match":
                applies = self._matches(_words(rest, where), where)
            elif keyword == "include":
                # What is included stands under this block's condition; its own blocks end with its file.
                for pattern in _words(rest, where) if applies else ():
                    for included, content in self._open(pattern):
                        self.read(included, content, depth + 1)
            elif applies:
                self._set(keyword, rest, where)

    def _set(self, keyword: str, rest: str, where: str) -> None:
        if keyword in _VERBATIM:
            value = rest
        else:
            words = _words(rest, where)
            if not words:
                raise ConfigError([f"{where}: {keyword} has no value"])
            value = " ".join(words) if keyword in _SEVERAL else words[0]
        if keyword in CUMULATIVE:
            self.settings.setdefault(keyword, []).append(value)
        else:
            self.settings.setdefault(keyword, [value])

    def _matches(self, words: list[str], where: str) -> bool:
        found = True
        while words:
            criterion = words.pop(0)
            negated = criterion.startswith("!")
            name = criterion.lstrip("!").lower()
            if name == "all":
                hit = True
            elif name in ("final", "canonical"):
                hit = False  # these ask for a second pass, which is not made
            elif name in ("host", "originalhost", "user") and words:
                hit = match_patterns(words.pop(0).encode(), self._subject(name).encode())
            else:
                raise ConfigError(
                    [f"{where}: rda cannot decide 'Match {name}' without the ssh program; install it (openssh-client)"]
                )
            found = found and hit != negated
        return found

    def _subject(self, name: str) -> str:
        if name == "user":
            return self._user or self.settings.get("user", [""])[0]
        if name == "host":
            return self.settings.get("hostname", [self._original])[0].replace("%h", self._original).lower()
        return self._original.lower()


def read_settings(
    files: Iterable[tuple[str, str]],
    original: str,
    user: str,
    open_files: Callable[[str], Iterable[tuple[str, str]]],
) -> Settings:
    """Read configuration files in order, for one host.

    :param files: pairs of path and text: the user's file, then the system's.
    :param original: the host as the user wrote it.
    :param user: the user that the command line named, "" if none.
    :param open_files: finds what an Include names.
    :raises rda.errors.ConfigError: a line that cannot be understood or decided.
    """
    reader = _Reader(original, user, open_files)
    for path, text in files:
        reader.read(path, text)
    return reader.settings


def _split(line: str) -> tuple[str, str]:
    text = line.strip()
    if not text or text.startswith("#"):
        return "", ""
    end = next((at for at, character in enumerate(text) if character in " \t="), len(text))
    rest = text[end:].lstrip(" \t")
    if rest.startswith("="):
        rest = rest[1:].lstrip(" \t")
    return text[:end].lower(), rest


def _words(rest: str, where: str) -> list[str]:
    lexer = shlex.shlex(rest, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    try:
        return list(lexer)
    except ValueError as error:
        raise ConfigError([f"{where}: {error}"]) from error
