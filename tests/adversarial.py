"""Requests that divide parsers of HTTP/1.1: the published forms of request smuggling, and what can be made of them.

Sources: RFC 9112 sections 2.2, 6.3, 7.1 and 11.2; "HTTP Desync Attacks" (Kettle, 2019) and its sequels; "HTTP Garden"
(Kallus and others, 2024); the CVEs of HAProxy, Node and Go for chunk extensions, bare LF and odd spaces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

__all__ = ["HOST", "MALFORMED", "MALFORMED_CHUNKS", "Attempt", "Parsed", "attempt", "get", "read_strictly"]


def get(*fields: bytes, target: bytes = b"/_ping", version: bytes = b"HTTP/1.1") -> bytes:
    """Write a request head."""
    return b"\r\n".join([b"GET " + target + b" " + version, *fields, b"", b""])


HOST = b"Host: localhost"

#: Requests that two parsers might read differently, from the published collections of smuggling forms.
MALFORMED = {
    "no version": b"GET /_ping\r\n\r\n",
    "HTTP/0.9": b"GET /_ping HTTP/0.9\r\n\r\n",
    "HTTP/2.0": get(HOST, version=b"HTTP/2.0"),
    "HTTP/1.2": get(HOST, version=b"HTTP/1.2"),
    "http/1.1": get(HOST, version=b"http/1.1"),
    "two spaces": b"GET  /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tab": b"GET\t/_ping HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "space before": b" GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "method with separator": b"G(T /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "target with NUL": get(HOST, target=b"/a\0b"),
    "target with high byte": get(HOST, target=b"/a\xffb"),
    "query with high byte": get(HOST, target=b"/a?b=\x80"),
    "target with bad escape": get(HOST, target=b"/a%zz"),
    "target with escaped NUL": get(HOST, target=b"/a%00"),
    "target with escaped line end": get(HOST, target=b"/a%0d%0aX:%20y"),
    "absolute form": get(HOST, target=b"http://localhost/containers/create"),
    "authority form": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CONNECT with a path": b"CONNECT /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no host": get(),
    "two hosts": get(HOST, HOST),
    "host with a path": get(b"Host: localhost/x"),
    "host with user": get(b"Host: a@localhost"),
    "host list": get(b"Host: localhost, evil"),
    "space before colon": get(HOST, b"A : b"),
    "no colon": get(HOST, b"A"),
    "empty name": get(HOST, b": b"),
    "name with NUL": get(HOST, b"A\0: b"),
    "value with NUL": get(HOST, b"A: b\0c"),
    "value with vertical tab": get(HOST, b"A: b\x0bc"),
    "value with CR": get(HOST, b"A: b\rc"),
    "value with bare LF": get(HOST, b"A: b\nContent-Length: 5"),
    "bare LF in request line": b"GET /_ping HTTP/1.1\nHost: localhost\r\n\r\n",
    "first line folded": b"GET /_ping HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "CL and TE": get(HOST, b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "TE and CL": get(HOST, b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n",
    "CL twice": get(HOST, b"Content-Length: 5", b"Content-Length: 5") + b"hello",
    "CL twice, other": get(HOST, b"Content-Length: 5", b"Content-Length: 6") + b"hello!",
    "CL list": get(HOST, b"Content-Length: 5, 5") + b"hello",
    "CL signed": get(HOST, b"Content-Length: +5") + b"hello",
    "CL negative": get(HOST, b"Content-Length: -1"),
    "CL hexadecimal": get(HOST, b"Content-Length: 0x5") + b"hello",
    "CL with underscore": get(HOST, b"Content-Length: 1_0") + b"helloworld",
    "CL empty": get(HOST, b"Content-Length: "),
    "CL huge": get(HOST, b"Content-Length: " + b"9" * 5000),
    "CL beyond 64 bits": get(HOST, b"Content-Length: 18446744073709551621") + b"hello",
    "CL folded": get(HOST, b"Content-Length:", b" 5 6") + b"hello",
    "TE identity": get(HOST, b"Transfer-Encoding: identity"),
    "TE gzip": get(HOST, b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "TE chunked twice": get(HOST, b"Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",
    "TE twice": get(HOST, b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "TE and identity": get(HOST, b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity") + b"0\r\n\r\n",
    "TE quoted": get(HOST, b'Transfer-Encoding: "chunked"') + b"0\r\n\r\n",
    "TE with vertical tab": get(HOST, b"Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n",
    "TE xchunked": get(HOST, b"Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "TE in HTTP/1.0": get(HOST, b"Transfer-Encoding: chunked", version=b"HTTP/1.0") + b"0\r\n\r\n",
    "unknown expectation": get(HOST, b"Expect: 200-ok"),
    "API version of too many parts": get(HOST, target=b"/v1.2.3/_ping"),
    "query with semicolon": get(HOST, target=b"/events?a=1;b=2"),
}

#: Chunked bodies, after a head that is good.
MALFORMED_CHUNKS = {
    "extension": b"5;a=b\r\nhello\r\n0\r\n\r\n",
    "bare LF": b"5\nhello\n0\n\n",
    "size with space": b"5 \r\nhello\r\n0\r\n\r\n",
    "size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "size with sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "size too large": b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "no end of chunk": b"5\r\nhelloworld\r\n0\r\n\r\n",
    "forbidden trailer": b"0\r\nContent-Length: 5\r\n\r\n",
}

#: What is hidden in a body or behind an ambiguous end, for a parser that sees another message: it makes a volume.
SMUGGLED = (
    b"POST /volumes/create HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n"
    b'{"Name":"smuggled"}'
)

#: The same without consequences, where it may as well be a request of its own.
_PIPED = b"POST /containers/nosuch/start HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"

_METHODS = (b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"get", b"PRI")
_TARGETS = (
    b"/_ping",
    b"//_ping",
    b"/./_ping",
    b"/x/../_ping",
    b"/%5fping",
    b"/v1.45/containers%2fjson",
    b"/containers/nosuch/json",
    b"/containers/no%2f..%2fsuch/json",
    b"/v1.45/containers/%2e%2e/json",
    b"/containers/json?all=1&all=0",
    b"/containers/json?filters=%7b%7d#x",
    b"/%c0%af",
    b"/%252f",
    b"/_ping?" + b"x" * 200,
    b"/\\_ping",
)
_FIELDS = (
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: 005",
    b"content-length:5",
    b"Content-Length:\t5",
    b"Content-Length : 5",
    b"Content-Length: 5\x0b",
    b"Content_Length: 5",
    b"X-Content-Length: 5",
    b"Content-Length: 4\n5",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding:CHUNKED",
    b"Transfer-Encoding:\tchunked",
    b"Transfer-Encoding: chunked ",
    b"Transfer-Encoding: chunked\x0c",
    b"Transfer-Encoding : chunked",
    b"Transfer_Encoding: chunked",
    b"Transfer-Encoding:\r\n chunked",
    b"X: y\r\n Transfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b"X: y\rTransfer-Encoding: chunked",
    b"Connection: close",
    b"Connection: keep-alive, Content-Length",
    b"Connection: Transfer-Encoding",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    b"TE: trailers",
    b"Trailer: Content-Length",
    b"Expect: 100-continue",
    b"Host: elsewhere",
    b"X-Forwarded-Host: localhost",
    b"X: \xff\xfe",
    b"X: " + b"y" * 4000,
    b"\xef\xbb\xbfX: y",
)
_BODIES = (
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"0\r\n\r\n",
    b"5;x=y\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"005\r\nhello\r\n000\r\n\r\n",
    b"-1\r\nhello\r\n0\r\n\r\n",
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(_PIPED), _PIPED),
    _PIPED,
)
_BEHIND = (b"", b"", get(HOST), get(HOST, b"Content-Length: 2") + b"hi", b"\r\n" + get(HOST), b"GET / HTTP/1.1\r\n")
_NOISE = (b"\0", b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b";", b"\x0b", b"\x80", b"0", b"9", b"%", b"/")


_BUILD = b"POST /build HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
_KNOWN = [*MALFORMED.items(), *((f"TE, {name}", _BUILD + body) for name, body in MALFORMED_CHUNKS.items())]
_UNCLEAR = ("CL", "TE", "bare LF", "value with", "name with", "space before")


@dataclass(frozen=True)
class Attempt:
    """What one connection sends.

    :ivar malformed: all of it is one message that has to be refused.
    """

    data: bytes
    malformed: bool = False


def attempt(random: Random) -> Attempt:
    """Make something up: a known form, or pieces that may or may not be a request, and what may follow it."""
    if random.random() < 0.3:
        name, request = random.choice(_KNOWN)
        # Where a message ends is clear: what follows it is the next one, and may be served.
        return Attempt(request + (SMUGGLED if name.startswith(_UNCLEAR) else get(HOST)), malformed=True)
    line = b"%b %b HTTP/1.%d" % (random.choice(_METHODS), random.choice(_TARGETS), random.random() < 0.9)
    fields = [HOST, *random.sample(_FIELDS, random.randrange(4))]
    random.shuffle(fields)
    data = b"\r\n".join([line, *fields, b"", random.choice(_BODIES)]) + random.choice(_BEHIND)
    for _ in range(random.choice((0, 0, 1, 2))):
        place = random.randrange(len(data))
        data = data[:place] + random.choice(_NOISE) + data[place + random.randrange(2) :]
    return Attempt(data)


@dataclass(frozen=True)
class Parsed:
    """A complete request, as every parser there is reads it."""

    method: bytes
    target: bytes
    body: bytes


_TOKEN = rb"[!#-'*+\-.^_`|~0-9A-Za-z]+"
_FIELD_LINES = rb"((?:%b:[\t -~\x80-\xff]*\r\n)*)\r\n" % _TOKEN
_HEAD = re.compile(rb"(%b) (/[!-~]*) HTTP/1\.[01]\r\n%b" % (_TOKEN, _FIELD_LINES))
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_TRAILERS = re.compile(_FIELD_LINES)


def read_strictly(data: bytes) -> tuple[list[Parsed], bytes]:
    """Read a stream of requests that leaves no parser a choice.

    :returns: the complete requests, and the incomplete rest.
    :raises ValueError: it does leave one.
    """
    found = []
    while b"\r\n\r\n" in data:
        head = _HEAD.match(data)
        if head is None:
            raise ValueError(f"a head that is none: {data[:200]!r}")
        fields = [line.partition(b":") for line in head[3].split(b"\r\n")[:-1]]
        lengths = [value.strip() for name, _, value in fields if name.lower() == b"content-length"]
        encodings = [value.strip() for name, _, value in fields if name.lower() == b"transfer-encoding"]
        if len(lengths) + len(encodings) > 1 or encodings not in ([], [b"chunked"]):
            raise ValueError(f"the end of a message is not clear: {head[0]!r}")
        rest = data[head.end() :]
        body = _chunks(rest) if encodings else _plain(rest, lengths[0] if lengths else b"0")
        if body is None:
            break
        found.append(Parsed(head[1], head[2], body[0]))
        data = rest[body[1] :]
    return found, data


def _plain(data: bytes, length: bytes) -> tuple[bytes, int] | None:
    if not re.fullmatch(rb"[0-9]{1,18}", length):
        raise ValueError(f"a length that is none: {length!r}")
    size = int(length)
    return (data[:size], size) if len(data) >= size else None


def _chunks(data: bytes) -> tuple[bytes, int] | None:
    body, place = b"", 0
    while b"\r\n" in data[place:]:
        size = _CHUNK.match(data, place)
        if size is None:
            raise ValueError(f"a chunk that is none: {data[place : place + 100]!r}")
        place, length = size.end(), int(size[1], 16)
        if not length:
            end = _TRAILERS.match(data, place)
            return None if end is None else (body, end.end())
        if len(data) < place + length + 2:
            return None
        if data[place + length : place + length + 2] != b"\r\n":
            raise ValueError("a chunk without its end")
        body += data[place : place + length]
        place += length + 2
    return None
