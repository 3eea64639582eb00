"""HTTP messages as bytes: whatever the split, the same events; whatever is odd, refused."""

import itertools
import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rda.proxy.wire import (
    MAX_CHUNK_LINE,
    MAX_INTERIM,
    MAX_TRAILERS,
    AnswerHead,
    Chunked,
    DocumentSplitter,
    Framing,
    HeadReader,
    Length,
    UntilClose,
    WireError,
    chunk,
    request_head,
    tokens,
)

quick = settings(max_examples=60, deadline=None)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut ``data`` at the given places."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def feed_all(framing: Framing, parts: list[bytes]) -> tuple[bytes, bytes]:
    """Feed pieces; return all body bytes, and all bytes after it."""
    body, rest = b"", b""
    for part in parts:
        if framing.done:
            rest += part
        else:
            taken, after = framing.feed(part)
            body += taken
            rest += after
    return body, rest


payloads = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
cuts = st.lists(st.integers(0, 10_000), max_size=12)


def chunked_message(parts: list[bytes], trailers: bytes = b"") -> bytes:
    return b"".join(chunk(part) for part in parts) + b"0\r\n" + trailers + b"\r\n"


class FramingTests(SynchronousTestCase):
    @quick
    @given(payloads, cuts, st.binary(max_size=20), st.booleans())
    def test_chunked_in_any_split(self, parts: list[bytes], where: list[int], tail: bytes, decoding: bool) -> None:
        """A chunked body ends at the same byte however it arrives, and is passed on unchanged or decoded."""
        message = chunked_message(parts, b"X-Sum: 1\r\n")
        framing = Chunked()
        framing.decoding = decoding
        body, rest = feed_all(framing, pieces(message + tail, where))
        self.assertTrue(framing.done)
        self.assertEqual(body, b"".join(parts) if decoding else message)
        self.assertEqual(rest, tail)

    @quick
    @given(st.binary(max_size=60), cuts, st.binary(max_size=20))
    def test_length_in_any_split(self, payload: bytes, where: list[int], tail: bytes) -> None:
        """A body of known length ends there."""
        framing = Length(len(payload))
        self.assertEqual(feed_all(framing, pieces(payload + tail, where)), (payload, tail))
        self.assertTrue(framing.done)

    def test_byte_by_byte(self) -> None:
        """A chunked body can come byte by byte, and nothing of an incomplete chunk header is passed on."""
        framing = Chunked()
        message = chunked_message([b"hello", b"x" * 300])
        seen = [framing.feed(message[i : i + 1])[0] for i in range(len(message))]
        self.assertEqual(seen[:3], [b"", b"", b"5\r\n"])
        self.assertEqual(b"".join(seen), message)
        self.assertTrue(framing.done)

    def test_whole_reads_are_not_copied(self) -> None:
        """The middle of a chunk is passed on as the very object that arrived."""
        framing = Chunked()
        framing.feed(b"ffff\r\n")
        data = b"x" * 1000
        self.assertIs(framing.feed(data)[0], data)

    def test_until_close_never_ends(self) -> None:
        """Without a length everything is body."""
        framing = UntilClose()
        self.assertEqual(framing.feed(b"abc"), (b"abc", b""))
        self.assertFalse(framing.done)

    def test_malformed_chunks_are_refused(self) -> None:
        """Each known way to make two parsers disagree about a chunk is an error."""
        for message in (
            b"5 \r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b"-5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b"5_0\r\n",
            b"\r\n",
            b"5\nhello\r\n",
            b"5\rhello\r\n",
            b"5;a=b\r\nhello\r\n",
            b"5\r\nhelloX\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"10000000000000000\r\n",
            b"g\r\n",
            b"0\r\nContent-Length: 5\r\n\r\n",
            b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"0\r\nno colon\r\n\r\n",
            b"0\r\nName : x\r\n\r\n",
            b"0\r\n folded: x\r\n\r\n",
            b"0\r\nName: a\0b\r\n\r\n",
            b"0\r\nName: a\rb\r\n\r\n",
            b"0\r\n\n",
            b"1" * (MAX_CHUNK_LINE + 1),
            b"0\r\n" + b"A: b\r\n" * (MAX_TRAILERS // 4 + 1),
        ):
            for split in (False, True):
                framing = Chunked()
                parts = [message[i : i + 1] for i in range(len(message))] if split and len(message) < 99 else [message]
                with self.assertRaises(WireError, msg=message[:40]):
                    feed_all(framing, [*parts, b"\r\n"])

    def test_the_daemon_may_extend_chunks(self) -> None:
        """Chunk extensions of the daemon's pass, whole."""
        framing = Chunked(extensions=True)
        message = b"5;a=b\r\nhello\r\n0\r\n\r\n"
        self.assertEqual(framing.feed(message), (message, b""))


class AnswerHeadTests(SynchronousTestCase):
    def parse(self, *lines: bytes) -> AnswerHead:
        return AnswerHead(b"\r\n".join(lines))

    def test_reads_a_head(self) -> None:
        """Status, version and the fields of the connection are read; the lines stay as they came."""
        head = self.parse(
            b"HTTP/1.1 101 UPGRADED", b"CONNECTION:  Upgrade ", b"X:  y ", b"Upgrade:tcp", b"Connection: z"
        )
        self.assertEqual((head.status, head.minor), (101, 1))
        self.assertEqual((head.values(b"connection"), head.values(b"upgrade")), ([b"Upgrade", b"z"], [b"tcp"]))
        lines = b"CONNECTION:  Upgrade \r\nX:  y \r\nUpgrade:tcp\r\nConnection: z\r\n\r\n"
        self.assertEqual(head.verbatim, b"HTTP/1.1 101 UPGRADED\r\n" + lines)

    def test_names_that_only_look_alike(self) -> None:
        """A field whose name or value contains the name of another is not that one."""
        head = self.parse(b"HTTP/1.1 200 OK", b"X-Content-Length: 1", b"Content-Length-X: 2", b"A: Content-Length: 3")
        self.assertEqual(head.values(b"content-length"), [])
        self.assertIsInstance(head.framing(b"GET"), UntilClose)

    def test_refuses_what_is_none(self) -> None:
        """A line that is not a status line or a field is an error."""
        for raw in (
            b"",
            b"HTTP/2 200 OK",
            b"HTTP/1.1 20 OK",
            b"HTTP/1.1 099 OK",
            b"HTTP/1.1  200 OK",
            b"http/1.1 200 OK",
            b"HTTP/1.1 200 OK\nX: y",
            b"HTTP/1.1 200 OK\r\n folded",
            b"HTTP/1.1 200 OK\r\nA : b",
            b"HTTP/1.1 200 OK\r\n: b",
            b"HTTP/1.1 200 OK\r\nA: b\0",
            b"HTTP/1.1 200 OK\r\nA: b\nC: d",
        ):
            with self.assertRaises(WireError, msg=raw):
                AnswerHead(raw)

    def test_framing(self) -> None:
        """The body's end follows RFC 9112, section 6.3."""
        ok, chunked, five = b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", b"Content-Length: 5"
        self.assertIsInstance(self.parse(ok).framing(b"GET"), UntilClose)
        self.assertIsInstance(self.parse(ok, chunked).framing(b"GET"), Chunked)
        self.assertIsInstance(self.parse(ok, five).framing(b"GET"), Length)
        self.assertFalse(self.parse(ok, five).framing(b"GET").done)
        self.assertTrue(self.parse(ok, b"Content-Length: 0").framing(b"GET").done)
        for none in (
            self.parse(ok, five).framing(b"HEAD"),
            self.parse(b"HTTP/1.1 204 No Content").framing(b"GET"),
            self.parse(b"HTTP/1.1 304 Not Modified", five).framing(b"GET"),
        ):
            self.assertTrue(none.done)

    def test_unclear_framing_is_refused(self) -> None:
        """Two lengths, both framings, or an odd length are an error."""
        for lines in (
            (b"Content-Length: 5", b"Content-Length: 6"),
            (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
            (b"Transfer-Encoding: gzip, chunked",),
            (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
            (b"Content-Length: +5",),
            (b"Content-Length: ",),
            (b"Content-Length: " + b"9" * 30,),
        ):
            with self.assertRaises(WireError, msg=lines):
                self.parse(b"HTTP/1.1 200 OK", *lines).framing(b"GET")

    def test_keeps_alive(self) -> None:
        """HTTP/1.1 keeps connections unless told otherwise, HTTP/1.0 only when told."""
        self.assertTrue(self.parse(b"HTTP/1.1 200 OK").keeps_alive)
        self.assertFalse(self.parse(b"HTTP/1.1 200 OK", b"Connection: x, Close").keeps_alive)
        self.assertFalse(self.parse(b"HTTP/1.0 200 OK").keeps_alive)
        self.assertTrue(self.parse(b"HTTP/1.0 200 OK", b"Connection: keep-alive").keeps_alive)

    def test_writes_without_the_connection_s_fields(self) -> None:
        """Fields of the daemon's connection, and those it names, stay behind; framing is kept on demand."""
        head = self.parse(
            b"HTTP/1.1 200 OK",
            b"Connection: close, X-Hop",
            b"X-Hop: 1",
            b"Keep-Alive: 5",
            b"Content-Length: 2",
            b"A: b",
        )
        self.assertEqual(head.write(), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nA: b\r\n\r\n")
        self.assertEqual(head.write((), b"C: d\r\n"), b"HTTP/1.1 200 OK\r\nA: b\r\nC: d\r\n\r\n")


class HeadReaderTests(SynchronousTestCase):
    @quick
    @given(cuts, st.binary(max_size=30))
    def test_any_split(self, where: list[int], tail: bytes) -> None:
        """A head is found however it arrives, interim answers are left out, and what follows is handed back."""
        message = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nL: x\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\n"
        reader, found, rest = HeadReader(1000), None, b""
        for part in pieces(message + tail, where):
            if found is not None:
                rest += part
            elif (result := reader.feed(part)) is not None:
                found, rest = result
        assert found is not None
        self.assertEqual((found.status, rest), (200, tail))

    def test_limits(self) -> None:
        """A head that is too long, and endless interim answers, are errors; so is the long one that is complete."""
        for raw in (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100, b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100 + b"\r\n\r\n"):
            with self.assertRaises(WireError):
                HeadReader(100).feed(raw)
        with self.assertRaises(WireError):
            HeadReader(1000).feed(b"HTTP/1.1 102 Processing\r\n\r\n" * (MAX_INTERIM + 1))

    def test_knows_whether_it_has_started(self) -> None:
        """One byte is a start."""
        reader = HeadReader(100)
        self.assertFalse(reader.started)
        reader.feed(b"H")
        self.assertTrue(reader.started)


class RequestHeadTests(SynchronousTestCase):
    def test_framing_is_made_not_copied(self) -> None:
        """The client's framing and connection fields are replaced by those of what is really sent."""
        fields = [
            (b"Host", b"x"),
            (b"Content-Length", b"5"),
            (b"Transfer-Encoding", b"chunked"),
            (b"Connection", b"keep-alive, X-Hop"),
            (b"X-Hop", b"1"),
            (b"Expect", b"100-continue"),
            (b"Accept-Encoding", b"gzip"),
            (b"TE", b"trailers"),
            (b"A", b"b"),
        ]
        head = request_head(b"POST", b"/x", 1, fields, length=7, drop=(b"accept-encoding",))
        self.assertEqual(head, b"POST /x HTTP/1.1\r\nHost: x\r\nA: b\r\nContent-Length: 7\r\n\r\n")
        self.assertIn(b"\r\nTransfer-Encoding: chunked\r\n\r\n", request_head(b"PUT", b"/", 1, [], chunked=True))
        self.assertEqual(request_head(b"GET", b"/", 0, []), b"GET / HTTP/1.0\r\n\r\n")
        trick = [(b"Host", b"x"), (b"Connection", b"Host")]
        self.assertEqual(request_head(b"GET", b"/", 1, trick), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

    def test_upgrade(self) -> None:
        """An upgrade is asked for as the client did."""
        head = request_head(
            b"POST", b"/session", 1, [(b"Upgrade", b"h2c"), (b"Connection", b"Upgrade")], upgrade=b"h2c"
        )
        self.assertEqual(head, b"POST /session HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")

    def test_tokens(self) -> None:
        """List members are compared in lower case, whatever the spacing."""
        self.assertEqual(tokens([b"Close,  X-a ,", b"upgrade"]), {b"close", b"x-a", b"upgrade"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(max_size=6), json_values, max_size=4)


class DocumentSplitterTests(SynchronousTestCase):
    @quick
    @given(st.lists(json_objects, max_size=5), st.sampled_from([b"", b"\n", b"\r\n", b" \n\x1e"]), cuts, st.booleans())
    def test_any_split(self, documents: list[object], between: bytes, where: list[int], ascii_only: bool) -> None:
        """Documents come out whole and in order, whatever separates them and however they arrive."""
        stream = b"".join(json.dumps(d, ensure_ascii=ascii_only).encode() + between for d in documents)
        splitter, found = DocumentSplitter(1 << 20), []
        for part in pieces(stream, where):
            found += splitter.feed(part)
        self.assertEqual([json.loads(document) for document in found], documents)
        self.assertFalse(splitter.pending)

    def test_a_document_is_complete_with_its_last_byte(self) -> None:
        """An event is not held back until the next one."""
        splitter = DocumentSplitter(1000)
        self.assertEqual(splitter.feed(b'{"a":"}\\"'), [])
        self.assertTrue(splitter.pending)
        self.assertEqual(splitter.feed(b'"}'), [b'{"a":"}\\""}'])

    def test_split_behind_a_backslash(self) -> None:
        """What a backslash escapes may come later; it ends no string."""
        splitter = DocumentSplitter(1000)
        self.assertEqual(splitter.feed(b'{"a":"\\'), [])
        self.assertEqual(splitter.feed(b'"}"}'), [b'{"a":"\\"}"}'])

    def test_refuses_other_things(self) -> None:
        """What is not an object, and one that is too long, is an error."""
        for stream in (b"hello", b"1\n", b"}", b'{"a":1}x', b'{"a":"' + b"b" * 1000):
            with self.assertRaises(WireError, msg=stream[:20]):
                DocumentSplitter(100).feed(stream)
