"""JSON documents of the Engine API, read exactly as the daemon will read them.

The daemon reads its requests with Go's ``encoding/json``: object keys match struct fields whatever their case (by
Unicode simple folding), a key that comes twice merges with itself, and bytes that are not UTF-8 become U+FFFD. A
document that rda and the daemon would read differently is a way around every decision that rda makes, so:

- :func:`parse` reads one JSON object strictly and refuses keys that come twice;
- :func:`canonical` gives the keys of the places that rda reads their canonical spelling, and refuses two keys that
  Go would take for the same one;
- only what these two made is sent on (:func:`serialise`), with all fields in their order and all numbers verbatim.

Source: https://pkg.go.dev/encoding/json#Unmarshal, and ``foldName`` and ``unquoteBytes`` in its source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

from rda.errors import BadRequest

__all__ = [
    "DATA",
    "MAX_DEPTH",
    "Many",
    "Named",
    "Number",
    "Schema",
    "Struct",
    "canonical",
    "fold",
    "object_of",
    "objects",
    "parse",
    "parse_any",
    "serialise",
    "text_list",
    "text_of",
]

#: How deep a request document may nest. The API's deepest is under 10; Go gives up at 10,000.
MAX_DEPTH = 64

#: Integers of up to this many characters become ``int``; longer ones stay text. An int64 has 20 with its sign.
_MAX_INT_CHARACTERS = 20

#: Surrogates in the text: an undecodable byte on its way in, or an unpaired ``\ud800`` escape.
_SURROGATE = re.compile("[\ud800-\udfff]")

#: How an unpaired surrogate can get through the JSON scanner.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Number:
    """A JSON number that has no exact Python form, kept as it was written.

    :ivar text: its JSON spelling, e.g. ``1.50`` or ``1e400``.
    """

    text: str

    def __float__(self) -> float:
        return float(self.text)


class Schema:
    """What a place of a document holds: :class:`Struct`, :class:`Named`, :class:`Many`, or :data:`DATA`."""

    __slots__ = ()


class Struct(Schema):
    """A Go struct: its keys are field names, which fold.

    :param fields: canonical field name -> what it holds. Fields that rda does not read need not be there: they are
        kept as they came.
    """

    __slots__ = ("_spelling", "fields")

    def __init__(self, fields: Mapping[str, Schema]) -> None:
        self.fields = dict(fields)
        self._spelling = {fold(name): name for name in fields}

    def spelling(self, folded: str) -> str | None:
        """Return the canonical spelling of a folded key, or None for a field that rda does not read."""
        return self._spelling.get(folded)


class Named(Schema):
    """A Go map: its keys are data (label names, ports, volume names) and are never folded."""

    __slots__ = ("value",)

    def __init__(self, value: Schema) -> None:
        self.value = value


class Many(Schema):
    """A list of one kind of thing."""

    __slots__ = ("item",)

    def __init__(self, item: Schema) -> None:
        self.item = item


#: Text, numbers, or anything else that is not looked into.
DATA = Schema()


def fold(key: str) -> str:
    """Return the form in which Go compares an object key with its (always ASCII) field names.

    Two letters outside ASCII fold into it: U+017F (long s) and U+212A (the Kelvin sign).
    """
    return key.replace("\u017f", "s").replace("\u212a", "k").lower() if not key.isascii() else key.lower()


def parse(body: bytes, schema: Schema = DATA) -> dict[str, object]:
    """Read a request document: exactly one JSON object, or null or nothing, which are empty ones to the daemon.

    :param body: the whole body, bytes as they came; as large as ``[limits] document`` lets it be.
    :param schema: when given, :func:`canonical` is applied with it.
    :raises BadRequest: it is not one, nests too deep, or a key comes twice.
    """
    if not body.strip(b" \t\r\n"):
        return {}
    document = _load(body, _unique)
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise BadRequest("the request document is not a JSON object")
    _check_depth(document)
    return canonical(document, schema)


def parse_any(body: bytes) -> object:
    """Read a document that the daemon wrote: any JSON value; of a key that comes twice, the last one counts.

    :raises BadRequest: it is not JSON.
    """
    return _load(body, dict)


def serialise(document: object) -> bytes:
    """Write a document compactly: keys in their order, text as UTF-8, numbers as they were read.

    :raises TypeError: something in it has no JSON form.
    """
    try:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except TypeError:  # the C encoder knows no Number: the documents that hold one are written here
        text = "".join(_pieces(document))
    return _without_surrogates(text).encode("utf-8")


def canonical(document: dict[str, object], schema: Schema) -> dict[str, object]:
    """Return the document with the keys that ``schema`` knows in their canonical spelling, all else as it is.

    :raises BadRequest: two keys of one object are the same to the daemon.
    """
    result = _canonical(document, schema, "")
    assert isinstance(result, dict)
    return result


def _canonical(value: object, schema: Schema, where: str) -> object:
    """Do the work of :func:`canonical`; a value of another shape than the schema's is left for its reader to refuse."""
    if isinstance(value, dict):
        if isinstance(schema, Struct):
            return _canonical_struct(value, schema, where)
        if isinstance(schema, Named):
            return {key: _canonical(item, schema.value, f"{where}{key}.") for key, item in value.items()}
    elif isinstance(value, list) and isinstance(schema, Many):
        return [_canonical(item, schema.item, where) for item in value]
    return value


def _canonical_struct(value: dict[str, object], schema: Struct, where: str) -> dict[str, object]:
    seen: dict[str, str] = {}
    result: dict[str, object] = {}
    for key, item in value.items():
        folded = fold(key)
        if folded in seen:
            raise BadRequest(
                f"the request document is ambiguous: {where}{seen[folded]} and {where}{key} are the same key "
                "to the Docker daemon; send only one of them"
            )
        seen[folded] = key
        name = schema.spelling(folded)
        if name is None:
            result[key] = item
        else:
            result[name] = _canonical(item, schema.fields[name], f"{where}{name}.")
    return result


def object_of(value: object, what: str) -> Mapping[str, object]:
    """Return an object that was read from a document; null and absent are empty, as in Go.

    :param what: the place, for the error, e.g. ``HostConfig``.
    :raises BadRequest: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"{what} in the request document has to be an object")
    return value


def text_of(value: object, what: str) -> str:
    """Return a text that was read from a document; null and absent are empty, as in Go.

    :raises BadRequest: it is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"{what} in the request document has to be a text")
    return value


def objects(value: object, what: str) -> list[dict[str, object]]:
    """Return a list of objects that was read from a document; null and absent are empty, as in Go.

    :param what: the place, for the error, e.g. ``HostConfig.Mounts``.
    :raises BadRequest: it is something else. A null among the objects is an empty object to Go, and so here.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(item is None or isinstance(item, dict) for item in value):
        raise BadRequest(f"{what} in the request document has to be a list of objects")
    return [{} if item is None else item for item in value]


def text_list(value: object, what: str) -> list[str]:
    """Return a list of texts that was read from a document; null and absent are empty, as in Go.

    :raises BadRequest: it is something else.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRequest(f"{what} in the request document has to be a list of texts")
    return value


@cache
def _decoder(pairs: object) -> json.JSONDecoder:
    """Return the decoder that makes objects with ``pairs``; to make one takes longer than to read a small document."""
    return json.JSONDecoder(
        object_pairs_hook=pairs,  # type: ignore[arg-type]
        parse_float=Number,
        parse_int=_integer,
        parse_constant=_no_constant,
    )


def _load(body: bytes, pairs: object) -> object:
    """Scan JSON; ``pairs`` makes an object out of its key-value pairs."""
    text = _without_surrogates(body.decode("utf-8", "surrogateescape"))
    try:
        document = _decoder(pairs).decode(text)
    except ValueError as error:
        raise BadRequest(f"the document is not valid JSON: {error}") from None
    except RecursionError:
        raise BadRequest("the document nests too deep") from None
    if _SURROGATE_ESCAPE.search(text):
        document = _clean(document, pairs)
    return document


def _without_surrogates(text: str) -> str:
    """Replace what is no character by U+FFFD: one for each undecodable byte, as Go does."""
    return _SURROGATE.sub("\ufffd", text) if not text.isascii() else text


def _clean(value: object, pairs: object) -> object:
    """Replace unpaired surrogates that came as escapes, in texts and keys (which may make two keys equal)."""
    if isinstance(value, str):
        return _without_surrogates(value)
    if isinstance(value, list):
        return [_clean(item, pairs) for item in value]
    if isinstance(value, dict):
        cleaned = [(_without_surrogates(key), _clean(item, pairs)) for key, item in value.items()]
        return pairs(cleaned)  # type: ignore[operator]
    return value


def _integer(text: str) -> int | Number:
    """Keep an integer exact; ``-0`` and those beyond any of Go's integer types stay as they were written."""
    return int(text) if len(text) <= _MAX_INT_CHARACTERS and text != "-0" else Number(text)


def _no_constant(text: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{text} is not a JSON value")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make an object, refusing a key that comes twice."""
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise BadRequest(f"the request document is ambiguous: the key {key!r} comes twice in one object")
        result[key] = value
    return result


def _check_depth(document: object) -> None:
    """Refuse a document that nests deeper than :data:`MAX_DEPTH`; uses no recursion itself."""
    level = [document]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for value in level
            if isinstance(value, (dict, list))
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise BadRequest(f"the request document nests more than {MAX_DEPTH} levels deep")


def _pieces(value: object) -> list[str]:
    """Write a document that holds a :class:`Number`."""
    if isinstance(value, Number):
        return [value.text]
    if isinstance(value, dict):
        items = [[json.dumps(key, ensure_ascii=False), ":", *_pieces(item)] for key, item in value.items()]
        return ["{", *_joined(items), "}"]
    if isinstance(value, (list, tuple)):
        return ["[", *_joined([_pieces(item) for item in value]), "]"]
    return [json.dumps(value, ensure_ascii=False, allow_nan=False)]


def _joined(items: list[list[str]]) -> list[str]:
    """Put a comma between the items."""
    return [piece for number, item in enumerate(items) for piece in ([",", *item] if number else item)]
