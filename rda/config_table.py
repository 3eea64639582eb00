"""One table of the configuration, taken apart key by key. What is wrong is noted, so that all of it is told at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["TableReader"]


class TableReader:
    """Takes typed values out of one table, and notes what is wrong with them.

    A value of the wrong type is a problem, and its default is returned.

    :param path: put before the keys in problems, e.g. ``context.gpu.``.
    :param problems: what is wrong is added here, each with its key.
    """

    def __init__(self, path: str, table: Mapping[str, object], problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        self._table = dict(table)

    def problem(self, key: str, what: str) -> None:
        """Note what is wrong with a key."""
        self.problems.append(f"{self.path}{key}: {what}")

    def __iter__(self) -> Iterator[str]:
        """Tell the keys that are left."""
        return iter(tuple(self._table))

    def anything(self, key: str, default: object) -> object:
        """Take a value of any type."""
        return self._table.pop(key, default)

    def rest(self) -> dict[str, object]:
        """Take everything that is left."""
        left, self._table = self._table, {}
        return left

    def text(self, key: str, default: str) -> str:
        """Take a string."""
        value = self._table.pop(key, default)
        if not isinstance(value, str) or "\0" in value:
            self.problem(key, "must be a string")
            return default
        return value

    def choice(self, key: str, default: str, choices: Collection[str]) -> str:
        """Take one of some strings; the default need not be among them."""
        if key not in self._table:
            return default
        value = self._table.pop(key)
        if not isinstance(value, str) or value not in choices:
            *some, last = (f'"{one}"' for one in choices)
            self.problem(key, f"must be {', '.join(some)} or {last}")
            return default
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Take true or false."""
        value = self._table.pop(key, default)
        if not isinstance(value, bool):
            self.problem(key, "must be true or false")
            return default
        return value

    def whole_number(self, key: str, default: int, least: int, meaning: str = "") -> int:
        """Take a whole number.

        :param meaning: of the least, for the one who gave something else.
        """
        value = self._table.pop(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self.problem(key, f"must be a whole number, and at least {least}{meaning}")
            return default
        return value

    def texts(self, key: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        """Take a list of strings, none of them empty; a string is a list of one."""
        value = self._table.pop(key, default)
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) and v and "\0" not in v for v in value):
            self.problem(key, "must be a string or a list of strings")
            return tuple(default)
        return tuple(value)

    def table(self, key: str) -> TableReader | None:
        """Take ``[key]``; None when there is none."""
        value = self._table.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.problem(key, f"must be a table like [{self.path}{key}]")
            value = {}
        return TableReader(f"{self.path}{key}.", value, self.problems)

    def tables(self, key: str) -> list[TableReader]:
        """Take every ``[[key]]``."""
        value = self._table.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            self.problem(key, f"must be tables like [[{key}]]")
            return []
        return [TableReader(f"{self.path}{key}[{n}].", table, self.problems) for n, table in enumerate(value)]

    def named_tables(self, key: str) -> dict[str, dict[str, Any]]:
        """Take every ``[key.NAME]``, by name."""
        value = self._table.pop(key, {})
        if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
            self.problem(key, f"must be tables like [{self.path}{key}.NAME]")
            return {}
        return value

    def finish(self, known: str) -> None:
        """Note every key that is left: nobody knows it.

        :param known: which keys there are, or where they can be found.
        """
        for key in self._table:
            self.problem(key, f"no such key ({known})")
