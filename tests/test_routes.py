"""rda.docker.routes: one normal form for each target, and the table that it is looked up in."""

from __future__ import annotations

from urllib.parse import quote

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rda.docker.routes import RELAYED, ROUTES, Answer, Outgoing, RequestBody, match, target
from rda.errors import BadRequest

segments = st.text(
    st.characters(min_codepoint=33, blacklist_characters="\x7f/", blacklist_categories=["Cs"]), min_size=1
)
pairs = st.lists(
    st.tuples(
        st.text(st.characters(blacklist_categories=["Cs"]), max_size=6),
        st.text(st.characters(blacklist_categories=["Cs"]), max_size=6),
    ),
    max_size=4,
)


class MatchTests(SynchronousTestCase):
    """match."""

    def name(self, method: bytes, path: bytes) -> str:
        """The name of the matched route."""
        return match(method, path).route.name

    def test_table(self) -> None:
        """Every line of the table is reached by its own pattern, versioned or not, with its reference."""
        for route in ROUTES:
            path = route.pattern.replace("{ref}", "web").encode()
            for prefix, version in ((b"", None), (b"/v1.45", "1.45")):
                call = match(route.method, prefix + path)
                self.assertIs(call.route, route)
                self.assertEqual((call.version, call.path), (version, path.decode()))
                self.assertEqual(call.ref, "web" if "{ref}" in route.pattern else None)

    def test_spellings_of_create(self) -> None:
        """Every spelling that reaches create on the daemon, or is redirected there, is create and sent on as such."""
        for spelling in (
            *(b"/containers/create", b"/containers/%63reate", b"/containers%2fcreate", b"//containers/create"),
            *(
                b"/./containers/create",
                b"/x/../containers/create",
                b"/%2e%2e/containers//create",
                b"/%2Fcontainers/create",
            ),
            b"/containers/./create",
        ):
            call = match(b"POST", spelling + b"?name=a")
            self.assertEqual(call.route.name, "container create", spelling)
            self.assertEqual(target(call), b"/containers/create?name=a")
        for spelling in (b"/v1.45/containers/create", b"/v01.45/containers/create", b"/%761.45/containers/create"):
            self.assertEqual(target(match(b"POST", spelling)), b"/v1.45/containers/create")

    def test_not_create(self) -> None:
        """What the daemon does not take for create is not create: a last slash, another case, another method."""
        for path in (
            b"/containers/create/",
            b"/Containers/create",
            b"/containers/Create",
            b"/v1.45/v1.45/containers/create",
        ):
            self.assertEqual(self.name(b"POST", path), "relayed")
        self.assertEqual(self.name(b"post", b"/containers/create"), "relayed")
        self.assertEqual(self.name(b"PUT", b"/containers/create"), "relayed")

    def test_references(self) -> None:
        """A reference may hold slashes, dots, colons and any encoded letter."""
        for path, ref in (
            (b"/containers/a/b/json", "a/b"),
            (b"/containers/%2Fweb/json", "web"),
            (b"/containers/json/json", "json"),
            (b"/containers/%C3%A9/json", "é"),
            (b"/containers/a.b_c-d/json", "a.b_c-d"),
        ):
            call = match(b"GET", path)
            self.assertEqual((call.route.name, call.ref), ("container inspect", ref))
        self.assertEqual(self.name(b"GET", b"/containers/json"), "container list")
        self.assertEqual(match(b"DELETE", b"/containers/web").ref, "web")
        self.assertEqual(self.name(b"GET", b"/containers/web/attach/ws"), "container attach websocket")

    def test_relayed(self) -> None:
        """What is not in the table streams, asks nobody, and keeps its target to the byte."""
        for raw in (
            b"/_ping",
            b"/v1.45/images/create?fromImage=a%2Fb&tag=x",
            b"/images/a/b:c@sha256:1/history",
            b"/x?a=%7b",
        ):
            call = match(b"GET", raw)
            self.assertIs(call.route, RELAYED)
            self.assertEqual((call.route.body, call.route.answer), (RequestBody.STREAM, Answer.STREAM))
            self.assertEqual(target(call), raw)

    def test_refused(self) -> None:
        """A target without a normal form is refused."""
        for bad in (
            *(
                b"",
                b"*",
                b"http://x/containers/json",
                b"containers/json",
                b"/a%",
                b"/a%4",
                b"/a%zz",
                b"/a b",
                b"/a\x00",
            ),
            *(b"/a%00", b"/a%0a", b"/a?b=%", b"/a?b;c", b"/a\x7f", b"/containers/x%0d%0a/json"),
        ):
            self.assertRaises(BadRequest, match, b"GET", bad)

    def test_versions(self) -> None:
        """A version is two plain numbers; those that the daemon itself refuses as too old are refused in its words."""
        for bad in (b"/v1/info", b"/v1.2.3/info", b"/v./info", b"/v1./info", b"/v1.99999/info"):
            self.assertRaises(BadRequest, match, b"GET", bad)
        error = self.assertRaises(BadRequest, match, b"POST", b"/v1.23/containers/x/start")
        self.assertIn("client version 1.23 is too old", str(error))
        self.assertEqual(match(b"GET", b"/v1.45").path, "/v1.45")
        self.assertEqual(match(b"GET", b"/volumes/v1.45").ref, "v1.45")

    def test_query(self) -> None:
        """The query keeps its order and repetitions, and is decoded as a form."""
        call = match(b"POST", b"/containers/create?b=1&a=x+y%26&b=2&&flag&e=")
        self.assertEqual(call.query, (("b", "1"), ("a", "x y&"), ("b", "2"), ("flag", ""), ("e", "")))
        self.assertEqual(target(call), b"/containers/create?b=1&a=x%20y%26&b=2&flag=&e=")

    def test_new_query(self) -> None:
        """The query may be replaced, or taken away."""
        call = match(b"GET", b"/containers/json?filters=x&all=1")
        self.assertEqual(target(call, Outgoing(query=(("all", "1"),))), b"/containers/json?all=1")
        self.assertEqual(target(call, Outgoing(query=())), b"/containers/json")
        self.assertEqual(target(call, Outgoing()), b"/containers/json?filters=x&all=1")
        self.assertEqual(target(match(b"GET", b"/_ping?x"), Outgoing(query=())), b"/_ping")

    def test_bytes_that_are_no_text(self) -> None:
        """A path or query of other bytes than UTF-8 is sent on as the same bytes."""
        call = match(b"GET", b"/containers/%ff/json?a=%fe")
        self.assertEqual(target(call), b"/containers/%FF/json?a=%FE")

    @given(st.lists(segments, max_size=5), pairs)
    @settings(max_examples=200, deadline=None)
    def test_law(self, parts: list[str], query: list[tuple[str, str]]) -> None:
        """What is sent on reads as the same call, and is its own normal form."""
        raw = "/" + "/".join(quote(part, safe="") for part in parts)
        raw += "?" + "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query)
        try:
            call = match(b"GET", raw.encode())
        except BadRequest:
            return
        sent = target(call, Outgoing(query=call.query))
        self.assertEqual(match(b"GET", sent), call)
        self.assertEqual(target(match(b"GET", sent)), sent)

    @given(st.binary(max_size=30))
    @settings(max_examples=200, deadline=None)
    def test_any_bytes(self, tail: bytes) -> None:
        """Any target is either refused or has a normal form that reads the same."""
        try:
            call = match(b"GET", b"/" + tail)
        except BadRequest:
            return
        again = match(b"GET", target(call))
        self.assertEqual((again.route, again.path, again.query), (call.route, call.path, call.query))
