"""HTTP/1.1 messages as bytes: answer heads, the two heads that rda writes, body framing, JSON document streams. Pure.

Bodies are followed, not decoded: a framing is fed what arrives and says which bytes belong to the body (with their
chunk headers) and which come after it, so that a body can be spliced through. What is passed on has been checked
against the strict grammar, so that the next parser cannot see a different message.

Source: RFC 9112; line limits as in Go's net/http and h11.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from rda.limits import raised_by

__all__ = [
    "AnswerHead",
    "Chunked",
    "DocumentSplitter",
    "Framing",
    "HeadReader",
    "Length",
    "RequestHead",
    "UntilClose",
    "WireError",
    "chunk",
    "is_token",
    "request_head",
    "tokens",
]

#: Longest chunk header or trailer line, bytes. A size has at most 16 digits; Twisted's limit.
MAX_CHUNK_LINE = 1024

#: All trailer lines of one body, bytes. Twisted's limit.
MAX_TRAILERS = 64 << 10

#: Interim (1xx) answers before the final one: dockerd sends none of its own accord.
MAX_INTERIM = 16

#: Fields that belong to one connection and are never passed on as they came (RFC 9110, section 7.6.1), and the
#: fields that are written anew from their parsed value.
_CONNECTION_FIELDS = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
        b"expect",
        b"http2-settings",
    )
)

#: Trailer fields that would change how a message is read (RFC 9110, section 6.5.1).
_NO_TRAILERS = _CONNECTION_FIELDS | {b"host", b"authorization", b"content-encoding", b"content-type"}

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++")
_FIELD_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*+")
_ANSWER_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: %b)?(?:\r\n%b:%b)*+"
    % (_FIELD_VALUE.pattern, _TOKEN.pattern, _FIELD_VALUE.pattern)
)
#: The fields of an answer that mean something to a relay: each with its value.
_NOTED = re.compile(
    rb"(?i)\r\n(content-type|%b):[\t ]*(%b)" % (b"|".join(sorted(_CONNECTION_FIELDS)), _FIELD_VALUE.pattern)
)
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
_DIGITS = re.compile(rb"[0-9]{1,18}")


class WireError(Exception):
    """The bytes are not the HTTP message they have to be; nothing of them can be trusted from here on."""


def is_token(text: bytes) -> bool:
    """Return whether ``text`` is a token (RFC 9110, section 5.6.2)."""
    return _TOKEN.fullmatch(text) is not None


def tokens(values: Iterable[bytes]) -> frozenset[bytes]:
    """Return the lower-case members of a field that is a comma-separated list and may come more than once."""
    return frozenset(member for value in values for part in value.lower().split(b",") if (member := part.strip(b" \t")))


def chunk(data: bytes) -> bytes:
    """Frame some bytes (at least one: an empty chunk ends a body) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


# --------------------------------------------------------------------------------------------------- body framing


class Framing:
    """Where a body ends.

    :ivar done: the whole body has been fed.
    :ivar decoding: hand out the body's payload instead of its framed bytes; to be set before the first ``feed``.
    """

    __slots__ = ("decoding", "done")

    def __init__(self) -> None:
        self.done = False
        self.decoding = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take what arrived next.

        :returns: the bytes that belong to the body and may be passed on now, and those after its end.
        :raises WireError: it is not a body of this framing.
        """
        raise NotImplementedError


class Length(Framing):
    """A body of ``Content-Length`` bytes."""

    __slots__ = ("_left",)

    def __init__(self, length: int) -> None:
        super().__init__()
        self._left = length
        self.done = not length

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See :meth:`Framing.feed`."""
        if len(data) < self._left:
            self._left -= len(data)
            return data, b""
        left, self._left = self._left, 0
        self.done = True
        return data[:left], data[left:]


class UntilClose(Framing):
    """A body that ends when its connection does."""

    __slots__ = ()

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See :meth:`Framing.feed`."""
        return data, b""


class _At(Enum):
    """What a chunked body's next bytes are."""

    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()


class Chunked(Framing):
    """A chunked body (RFC 9112, section 7.1), strictly: no extensions, no bare line feeds, no odd sizes.

    :param extensions: let chunk extensions pass (the daemon's; a client's are refused).
    """

    __slots__ = ("_at", "_extensions", "_held", "_left", "_trailers")

    def __init__(self, *, extensions: bool = False) -> None:
        super().__init__()
        self._at = _At.SIZE
        self._extensions = extensions
        self._held = b""  # an incomplete line, which is not passed on before it is known to be good
        self._left = 0
        self._trailers = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See :meth:`Framing.feed`."""
        if len(data) < self._left:  # the usual case by far: the middle of a chunk
            self._left -= len(data)
            return data, b""
        if self._held:
            data, self._held = self._held + data, b""
        position, payload = 0, []
        while not self.done:
            if self._at is _At.DATA:
                end = min(position + self._left, len(data))
                if self.decoding:
                    payload.append(data[position:end])
                self._left -= end - position
                position = end
                if self._left:
                    break
                self._at = _At.DATA_END
            end = data.find(b"\n", position)
            if end < 0:
                self._held = data[position:]
                self._check_held()
                break
            self._line(data[position : end + 1])
            position = end + 1
        rest = data[position:] if self.done else b""
        return b"".join(payload) if self.decoding else data[:position], rest

    def _check_held(self) -> None:
        """Refuse an incomplete line as soon as it cannot become a good one."""
        if len(self._held) > MAX_CHUNK_LINE:
            raise WireError("a chunk line is too long")
        if self._at is _At.DATA_END and self._held not in (b"", b"\r"):
            raise WireError("a chunk does not end with CR LF")

    def _line(self, line: bytes) -> None:
        """Take a complete line with its line feed."""
        if len(line) > MAX_CHUNK_LINE or line[-2:] != b"\r\n":
            raise WireError("a chunk line is too long or does not end with CR LF")
        line = line[:-2]
        if self._at is _At.DATA_END:
            if line:
                raise WireError("a chunk does not end with CR LF")
            self._at = _At.SIZE
        elif self._at is _At.SIZE:
            self._left = self._size(line)
            self._at = _At.DATA if self._left else _At.TRAILER
        elif line:
            self._trailer(line)
        else:
            self.done = True

    def _size(self, line: bytes) -> int:
        size, semicolon, extension = line.partition(b";")
        if semicolon and not (self._extensions and _FIELD_VALUE.fullmatch(extension)):
            raise WireError("a chunk has an extension")
        if not _CHUNK_SIZE.fullmatch(size):
            raise WireError("a chunk size is not a hexadecimal number")
        return int(size, 16)

    def _trailer(self, line: bytes) -> None:
        self._trailers += len(line)
        if self._trailers > MAX_TRAILERS:
            raise WireError("the trailers are too long")
        name, colon, value = line.partition(b":")
        if not colon or not is_token(name) or not _FIELD_VALUE.fullmatch(value) or name.lower() in _NO_TRAILERS:
            raise WireError("a trailer line is not a field that may be one")


# ---------------------------------------------------------------------------------------------------------- heads


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The head of a request, as parsed.

    :ivar minor: of the HTTP version, 0 or 1.
    :ivar fields: name and value, as they came.
    :ivar length: of the body in bytes, 0 also where there is none; None when it is chunked.
    """

    method: bytes
    target: bytes
    minor: int
    fields: tuple[tuple[bytes, bytes], ...]
    length: int | None

    def first(self, name: bytes) -> bytes | None:
        """Return the first value of a field, given in lower case, or None."""
        return next((value for field, value in self.fields if field.lower() == name), None)


class AnswerHead:
    """The head of an answer.

    :param raw: as it came, without the empty line that ends it.
    :raises WireError: it is none.
    :ivar minor: of the HTTP version, 0 or 1.
    """

    __slots__ = ("_noted", "_raw", "minor", "status")

    def __init__(self, raw: bytes) -> None:
        found = _ANSWER_HEAD.fullmatch(raw)
        if not found:
            raise WireError("the status line, or a header line, is none")
        self._raw = raw
        self.minor = int(found[1])
        self.status = int(found[2])
        self._noted = [(name.lower(), value.rstrip(b" \t")) for name, value in _NOTED.findall(raw)]

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of a field.

        :param name: ``content-type``, or one of the fields that belong to a connection, in lower case.
        """
        return [value for field, value in self._noted if field == name]

    def framing(self, method: bytes) -> Framing:
        """Say where the body of this answer to a ``method`` request ends (RFC 9112, section 6.3).

        :raises WireError: it is not clear.
        """
        encodings, lengths = self.values(b"transfer-encoding"), self.values(b"content-length")
        if encodings and (lengths or len(encodings) > 1 or encodings[0].lower() != b"chunked"):
            raise WireError("the framing of the answer is not clear")
        if lengths and (len(set(lengths)) > 1 or not _DIGITS.fullmatch(lengths[0])):
            raise WireError("the length of the answer is not clear")
        if method == b"HEAD" or self.status in (204, 304) or self.status < 200:
            return Length(0)
        if encodings:
            return Chunked(extensions=True)
        return Length(int(lengths[0])) if lengths else UntilClose()

    @property
    def keeps_alive(self) -> bool:
        """Whether the daemon will take another request on this connection."""
        connection = tokens(self.values(b"connection"))
        return b"close" not in connection and (self.minor == 1 or b"keep-alive" in connection)

    @property
    def verbatim(self) -> bytes:
        """The head as it came, whole: after it, the connection is no longer HTTP."""
        return self._raw + b"\r\n\r\n"

    def write(self, keep: Collection[bytes] = (b"content-length", b"transfer-encoding"), more: bytes = b"") -> bytes:
        """Write this head for the client, without what concerned only the daemon's connection.

        :param keep: which of the framing fields stay as they came.
        :param more: further complete lines, each with its CR LF.
        """
        left_out = {name for name, _ in self._noted} & _CONNECTION_FIELDS - frozenset(keep)
        left_out |= tokens(self.values(b"connection")) - frozenset(keep)
        raw = self._raw
        if left_out:
            first, *lines = raw.split(b"\r\n")
            raw = b"\r\n".join([first, *(line for line in lines if line.partition(b":")[0].lower() not in left_out)])
        return b"%b\r\n%b\r\n" % (raw, more)


class HeadReader:
    """Collects the bytes of an answer until its head is complete.

    :param limit: bytes of one head.
    """

    __slots__ = ("_buffer", "_interim", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = b""
        self._interim = 0

    @property
    def started(self) -> bool:
        """Whether a byte of an answer has come."""
        return bool(self._buffer or self._interim)

    def feed(self, data: bytes) -> tuple[AnswerHead, bytes] | None:
        """Take what arrived next.

        Interim answers are left out: rda answers ``Expect: 100-continue`` itself.

        :returns: the head and the bytes after it, or None as long as it is not complete.
        :raises WireError: it is no head, or over the limit.
        """
        self._buffer += data
        while True:
            raw, end, rest = self._buffer.partition(b"\r\n\r\n")
            if len(raw) > self._limit:
                raise WireError(f"the head of the answer has more than {self._limit} bytes{raised_by('head')}")
            if not end:
                return None
            head = AnswerHead(raw)
            self._buffer = rest
            if head.status == 101 or head.status >= 200:
                self._buffer = b""
                return head, rest
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise WireError("too many interim answers")


def request_head(
    method: bytes,
    target: bytes,
    minor: int,
    fields: Iterable[tuple[bytes, bytes]],
    *,
    length: int | None = None,
    chunked: bool = False,
    upgrade: bytes | None = None,
    drop: Iterable[bytes] = (),
) -> bytes:
    """Write the head that is sent to the daemon; framing and connection fields are made, never copied.

    :param minor: of the HTTP version, 0 or 1.
    :param fields: the client's, name and value.
    :param length: of the body, bytes; None with ``chunked`` unset means that there is none.
    :param upgrade: the protocol to switch to.
    :param drop: further fields to leave out, in lower case.
    """
    fields = list(fields)
    named = tokens(value for name, value in fields if name.lower() == b"connection")
    left_out = _CONNECTION_FIELDS | frozenset(drop) | (named - {b"host"})
    lines = [b"%b %b HTTP/1.%d" % (method, target, minor)]
    lines += [b"%b: %b" % field for field in fields if field[0].lower() not in left_out]
    if upgrade is not None:
        lines += [b"Connection: Upgrade", b"Upgrade: " + upgrade]
    if chunked:
        lines.append(b"Transfer-Encoding: chunked")
    elif length is not None:
        lines.append(b"Content-Length: %d" % length)
    return b"\r\n".join([*lines, b"\r\n"])


# ----------------------------------------------------------------------------------------------- document streams

_STRUCTURE = re.compile(rb'["{}\[\]]')
_STRING_END = re.compile(rb'["\\]')
_BETWEEN = b" \t\r\n\x1e"  # \x1e: application/json-seq, RFC 7464


class DocumentSplitter:
    """Splits a stream of JSON objects into documents, without reading them.

    :param limit: bytes of one document.
    """

    __slots__ = ("_buffer", "_depth", "_in_string", "_limit", "_position")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = b""
        self._position = 0  # everything before it has been looked at
        self._depth = 0
        self._in_string = False

    @property
    def pending(self) -> bool:
        """Whether a document has begun and not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take what arrived next; return the documents that are now complete.

        :raises WireError: something else stands between the documents, or one is over the limit.
        """
        self._buffer += data
        documents = []
        while (end := self._end()) is not None:
            documents.append(self._buffer[:end])
            self._buffer = self._buffer[end:]
            self._position = 0
        if len(self._buffer) > self._limit:
            raise WireError(f"a document of the stream has more than {self._limit} bytes{raised_by('stream_document')}")
        return documents

    def _end(self) -> int | None:
        """Return the index after the first document, or None while it is not complete."""
        if not self._depth:
            self._buffer = self._buffer.lstrip(_BETWEEN)
            if self._buffer[:1] not in (b"{", b"[", b""):
                raise WireError("the stream holds something that is not a JSON object")
        while found := (_STRING_END if self._in_string else _STRUCTURE).search(self._buffer, self._position):
            character = found[0]
            if character == b"\\":
                if found.end() == len(self._buffer):  # what is escaped has not come yet
                    self._position = found.start()
                    return None
                self._position = found.end() + 1
                continue
            self._position = found.end()
            if character == b'"':
                self._in_string = not self._in_string
            elif character in b"{[":
                self._depth += 1
            else:
                self._depth -= 1
                if not self._depth:
                    return self._position
        self._position = len(self._buffer)
        return None
