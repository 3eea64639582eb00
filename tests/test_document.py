"""rda.docker.document: request documents are read as the daemon reads them, or refused."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rda.docker.document import (
    DATA,
    MAX_DEPTH,
    Many,
    Named,
    Number,
    Struct,
    canonical,
    fold,
    objects,
    parse,
    parse_any,
    serialise,
    text_list,
)
from rda.errors import BadRequest

SCHEMA = Struct(
    {
        "Labels": Named(DATA),
        "HostConfig": Struct(
            {
                "Binds": DATA,
                "Mounts": Many(Struct({"Source": DATA, "Type": DATA})),
                "PortBindings": Named(Many(Struct({"HostIp": DATA, "HostPort": DATA}))),
            }
        ),
    }
)

texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


class ParseTests(SynchronousTestCase):
    """parse and serialise."""

    @given(st.dictionaries(texts, values, max_size=5))
    @settings(max_examples=100, deadline=None)
    def test_round_trip(self, document: dict[str, object]) -> None:
        """Whatever JSON object comes in goes out with the same fields, order, texts and numbers, to the byte."""
        body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        self.assertEqual(serialise(parse(body)), body)
        self.assertEqual(serialise(parse_any(body)), body)

    def test_numbers_are_verbatim(self) -> None:
        """Numbers that Python would change come out as they were written."""
        body = b'{"a":[1.50,1e400,-0,-0.0,123456789012345678901234567890],"b":9223372036854775807,"c":"x"}'
        document = parse(body)
        self.assertEqual(serialise(document), body)
        self.assertEqual(document["b"], 9223372036854775807)
        self.assertEqual(float(document["a"][0]), 1.5)  # type: ignore[index]

    def test_number_of_ten_thousand_digits(self) -> None:
        """A number that Python's int() would refuse to read is relayed."""
        body = b'{"a":' + b"7" * 10_000 + b"}"
        self.assertEqual(serialise(parse(body)), body)

    def test_equal_numbers_spelled_alike_are_equal(self) -> None:
        """A number has value semantics, so that documents can be compared."""
        self.assertEqual(Number("1.0"), parse(b'{"a":1.0}')["a"])

    def test_not_one_object(self) -> None:
        """Anything but exactly one JSON object is refused."""
        for body in (
            *(b"[]", b"1", b'"a"', b"{", b"{}{}", b"{} x", b"{'a':1}", b'{"a":01}', b'{"a":}'),
            *(b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b"\xef\xbb\xbf{}", b'{"a":"\n"}', b'{"a":1,}'),
        ):
            self.assertRaises(BadRequest, parse, body)

    def test_nothing(self) -> None:
        """A request without a body, or with null, is an empty document, as for the daemon's volumes/create."""
        for body in (b"", b" \r\n", b"null", b" null\n"):
            self.assertEqual(parse(body), {})

    def test_too_deep(self) -> None:
        """Nesting is bounded, however deep it is."""
        for depth in (MAX_DEPTH + 1, 100_000):
            self.assertRaises(BadRequest, parse, b'{"a":' + b"[" * depth + b"]" * depth + b"}")
        parse(b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}")

    def test_twice_the_same_key(self) -> None:
        """A key that comes twice in one object is named and refused, at any depth, however it is spelled."""
        for body in (b'{"a":1,"a":2}', b'{"x":[{"a":1,"a":1}]}', b'{"a":1,"\\u0061":2}', b'{"\\ud800":1,"\\ud801":2}'):
            error = self.assertRaises(BadRequest, parse, body)
            self.assertIn("twice", str(error))
        self.assertIn("'a'", str(self.assertRaises(BadRequest, parse, b'{"a":1,"a":2}')))

    def test_invalid_text(self) -> None:
        """Bytes and escapes that are no text become U+FFFD, one for each byte or escape, as Go does."""
        self.assertEqual(parse(b'{"a":"\xff\xe2\x82x"}'), {"a": "\ufffd\ufffd\ufffdx"})
        self.assertEqual(parse(b'{"a":"\xed\xa0\x80"}'), {"a": "\ufffd\ufffd\ufffd"})
        self.assertEqual(parse(b'{"a":["\\ud800x"],"\\udc00":1}'), {"a": ["\ufffdx"], "\ufffd": 1})
        self.assertEqual(parse(b'{"a":"\\ud83d\\ude00"}'), {"a": "\U0001f600"})

    def test_daemon_documents_are_read_leniently(self) -> None:
        """Of a key that the daemon wrote twice the last counts, and any JSON value is a document."""
        self.assertEqual(parse_any(b'{"a":1,"a":2}'), {"a": 2})
        self.assertEqual(parse_any(b"[1,null]\n"), [1, None])
        self.assertRaises(BadRequest, parse_any, b"<html>")
        self.assertRaises(BadRequest, parse_any, b"[" * 100_000)

    def test_no_json_form(self) -> None:
        """Writing something that is no JSON is a defect, and told as one."""
        self.assertRaises(TypeError, serialise, {"a": object()})
        self.assertRaises(TypeError, serialise, {"a": [Number("1.0"), object()]})


class CanonicalTests(SynchronousTestCase):
    """canonical."""

    def test_spelling(self) -> None:
        """Keys that Go takes for a field get the field's spelling, in their place; the others stay as they are."""
        document = parse(b'{"zY":1,"hostconfig":{"BIND\xc5\xbf":["/a:/b"],"unKnown":{"binds":1}},"z":2}', SCHEMA)
        self.assertEqual(serialise(document), b'{"zY":1,"HostConfig":{"Binds":["/a:/b"],"unKnown":{"binds":1}},"z":2}')

    def test_kelvin(self) -> None:
        """The two letters outside ASCII that fold into it do."""
        self.assertEqual(fold("\u212aEY\u017f"), "keys")
        self.assertNotEqual(fold("\u0130"), "i")

    def test_data_keys(self) -> None:
        """Label names and ports are data: two that differ by case are two, and are not respelled."""
        body = (
            b'{"Labels":{"hostconfig":"1","HostConfig":"2"},'
            b'"HostConfig":{"PortBindings":{"80/TCP":[{"hostip":"","HOSTPORT":"1"}]}}}'
        )
        self.assertEqual(
            parse(body, SCHEMA),
            {
                "Labels": {"hostconfig": "1", "HostConfig": "2"},
                "HostConfig": {"PortBindings": {"80/TCP": [{"HostIp": "", "HostPort": "1"}]}},
            },
        )

    def test_ambiguous(self) -> None:
        """Two keys of one struct that Go takes for the same are refused by name, also those that rda does not read."""
        error = self.assertRaises(BadRequest, parse, b'{"HostConfig":{"Binds":[],"binds":["/:/x"]}}', SCHEMA)
        self.assertIn("HostConfig.Binds and HostConfig.binds", str(error))
        self.assertRaises(BadRequest, parse, b'{"hostConfig":{},"HostConfig":{}}', SCHEMA)
        self.assertRaises(BadRequest, parse, b'{"HostConfig":{"Mounts":[{"Source":"a","\xc5\xbfource":"b"}]}}', SCHEMA)
        self.assertRaises(BadRequest, parse, b'{"Other":1,"other":2}', SCHEMA)

    def test_other_shapes(self) -> None:
        """A value of another shape than expected is left for its reader, who refuses it."""
        document = {"HostConfig": None, "Labels": [], "x": 1}
        self.assertEqual(canonical(document, SCHEMA), document)
        self.assertEqual(canonical({"HostConfig": {"Mounts": {"a": 1}}}, SCHEMA), {"HostConfig": {"Mounts": {"a": 1}}})

    @given(st.dictionaries(texts, values, max_size=5))
    @settings(max_examples=50, deadline=None)
    def test_idempotent(self, document: dict[str, object]) -> None:
        """A canonical document is its own canonical form."""
        try:
            once = canonical(document, SCHEMA)
        except BadRequest:
            return
        self.assertEqual(canonical(once, SCHEMA), once)
        self.assertEqual(list(canonical(once, SCHEMA)), list(once))


class ReaderTests(SynchronousTestCase):
    """objects and text_list."""

    def test_null_is_empty(self) -> None:
        """Null and absent lists are empty, and a null object is an empty one, as in Go."""
        self.assertEqual(objects(None, "x"), [])
        self.assertEqual(objects([None, {"a": 1}], "x"), [{}, {"a": 1}])
        self.assertEqual(text_list(None, "x"), [])
        self.assertEqual(text_list(["a"], "x"), ["a"])

    def test_wrong_shape(self) -> None:
        """Another shape is refused, naming the place."""
        for reader, value in ((objects, {}), (objects, ["a"]), (text_list, "a"), (text_list, [1]), (text_list, [None])):
            error = self.assertRaises(BadRequest, reader, value, "HostConfig.Binds")  # type: ignore[arg-type]
            self.assertIn("HostConfig.Binds", str(error))
