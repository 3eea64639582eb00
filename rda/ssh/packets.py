"""A stream of bytes as SSH packets, and back (RFC 4253, section 6). Pure: bytes in, packets out.

:class:`PacketReader` and :class:`PacketWriter` are one direction each: they own the sequence number, the protection and
the compression of that direction, and know nothing of what the packets mean. They are the hot path of everything that
rda does, and so they copy as little as they can: the reader is received into, decrypts many packets into one buffer and
hands out views of it; the writer encrypts many packets into one buffer that leaves with one write.
"""

from __future__ import annotations

import os
import struct
import zlib

from rda.sockets import READ_SIZE
from rda.ssh.ciphers import BadTag, Opener, PlainOpener, PlainSealer, Sealer

__all__ = ["MAX_PACKET", "MalformedPacket", "PacketReader", "PacketWriter"]

#: The longest packet body taken from the peer, in bytes: OpenSSH's PACKET_MAX_SIZE.
MAX_PACKET = 256 * 1024

#: The longest payload sent in one packet, in bytes. Channel data is cut to the peer's maximum (32 KiB with OpenSSH);
#: everything else is far smaller.
MAX_PAYLOAD = MAX_PACKET - 512

#: The longest piece of data in a message of :meth:`PacketWriter.put_run`, in bytes: what every implementation has to
#: take (RFC 4253, section 6.1), and what OpenSSH asks for.
MAX_RUN_PIECE = 32 * 1024

#: Sequence numbers are 32 bits wide and wrap (RFC 4253, section 6.4).
SEQUENCE_MASK = 0xFFFF_FFFF

#: Bytes of each of the reader's two buffers: one read, and of the one before what was not a whole packet yet.
_READ_BUFFER = READ_SIZE + MAX_PACKET + 1024

#: Bytes of packets after which the writer wants to be emptied (:attr:`PacketWriter.full`): what has been read at once
#: leaves with one write.
WRITE_BATCH = 256 * 1024

#: Random bytes fetched at once for padding: one system call for about 400 packets.
_RANDOM_BLOCK = 4096

_UINT32 = struct.Struct(">L")

#: What is in front of the data in the body of a CHANNEL_DATA message: padding length, message number, channel, length.
_DATA_HEAD = struct.Struct(">BBLL")
_DATA_OFFSET = _DATA_HEAD.size
_DATA_TO = struct.Struct(">BL")

_PAD_LENGTHS = tuple(bytes((size,)) for size in range(256))


class MalformedPacket(Exception):
    """The peer sent something that is not a packet; the connection cannot go on.

    :ivar tampered: True when it is the authentication tag that is wrong.
    """

    def __init__(self, message: str, *, tampered: bool = False) -> None:
        super().__init__(message)
        self.tampered = tampered


def _tampered() -> MalformedPacket:
    return MalformedPacket("a packet with a wrong authentication tag", tampered=True)


class PacketReader:
    """The incoming direction.

    :ivar sequence: the number of the next packet.
    :ivar octets: bytes taken since the keys were last changed.
    :ivar packets: packets taken since the keys were last changed.
    :ivar body: after :meth:`next` returned True, the payload of that packet, message number first. It is a view: valid
        until :meth:`rewind`.
    """

    def __init__(self) -> None:
        self.sequence = 0
        self.octets = 0
        self.packets = 0
        self.body = memoryview(b"")
        self._opener: Opener = PlainOpener()
        self._inflate: zlib._Decompress | None = None
        self._wire = memoryview(bytearray(_READ_BUFFER))
        self._start = 0  # of the next packet in _wire
        self._end = 0  # of what has come
        self._length = -1  # of the packet at _start, when it has been read already
        self._plain = memoryview(bytearray(_READ_BUFFER))
        self._used = 0
        self._body_start = -1  # of the packet whose payload is body, in _plain; -1 when it is not there
        self._ahead: bytes | None = None  # the next packet, decrypted already
        self._broken: MalformedPacket | None = None  # what next() raises, after the data that came before it

    def room(self) -> memoryview:
        """Where to receive bytes from the wire, at least :data:`READ_SIZE` of them; then call :meth:`received`."""
        return self._room_for(READ_SIZE)[:READ_SIZE]

    def received(self, size: int) -> None:
        """Say how many bytes have been received into :meth:`room`."""
        self._end += size

    def feed(self, data: bytes) -> None:
        """Take bytes from the wire, when somebody else has received them."""
        size = len(data)
        if size:
            self._room_for(size)[:size] = data
            self._end += size

    def unread(self) -> bytes:
        """Take out all that has not been read yet: what comes before the first packet is no packet."""
        rest = bytes(self._wire[self._start : self._end])
        self._start = self._end
        return rest

    def _room_for(self, size: int) -> memoryview:
        """Make room at the end of the wire's buffer, which is a packet in pieces at most unless reading is held up."""
        if self._start:
            rest = self._end - self._start
            self._wire[:rest] = self._wire[self._start : self._end]
            self._start, self._end = 0, rest
        wanted = max(_READ_BUFFER, self._end + size)
        if len(self._wire) < wanted or len(self._wire) > 2 * wanted:
            other = memoryview(bytearray(wanted))
            other[: self._end] = self._wire[: self._end]
            self._wire = other
        return self._wire[self._end :]

    def change_keys(self, opener: Opener, restart: bool) -> None:
        """Read what follows with another protection.

        :param restart: begin to count from 0 again (strict key exchange).
        """
        self._opener = opener
        self.octets = 0
        self.packets = 0
        if restart:
            self.sequence = 0

    def compressed(self, on: bool) -> None:
        """Expect compressed payloads from here on, in a fresh context, or not any more."""
        self._inflate = zlib.decompressobj() if on else None

    def next(self) -> bool:
        """Go to the next packet, if the whole of it is there.

        :raise MalformedPacket: when what is there cannot be a packet.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            plain, length, self._body_start = memoryview(ahead), len(ahead), -1
        elif self._broken is not None:
            raise self._broken
        elif (length := self._whole()) < 0:
            return False
        else:
            self._body_start, plain = self._room(length)
            try:
                self._open(length, plain)
            except BadTag:
                self._broken = _tampered()
                raise self._broken from None
        padding = plain[0]
        if padding < 4 or padding + 2 > length:
            raise MalformedPacket(f"{padding} bytes of padding in a packet of {length}")
        self.body = plain[1 : length - padding]
        if self._inflate is not None:
            self.body = self._expand(self._inflate)
        return True

    def _whole(self) -> int:
        """The length of the next packet's body, -1 when not all of the packet is there."""
        opener, length = self._opener, self._length
        if length < 0:
            if self._end - self._start < opener.prefix:
                return -1
            length = opener.length(self.sequence, self._wire[self._start : self._end])
            # Padding length, message number and four bytes of padding is the least there can be.
            if not 6 <= length <= MAX_PACKET or (length + opener.counted) % opener.align:
                raise MalformedPacket(f"a packet of {length} bytes")
        if self._start + 4 + length + opener.tail > self._end:
            self._length = length
            return -1
        self._length = -1
        return length

    def _open(self, length: int, plain: memoryview) -> None:
        """Decrypt the next packet, which is there as a whole, and go behind it."""
        size = 4 + length + self._opener.tail
        start = self._start
        self._opener.open(self.sequence, self._wire[start : start + size], plain)
        self._start = start + size
        self.sequence = (self.sequence + 1) & SEQUENCE_MASK
        self.octets += size
        self.packets += 1

    def run(self, size: int, longest: int, most: int) -> memoryview:
        """Return the data of the CHANNEL_DATA message in :attr:`body`, and of those for the same channel behind it.

        The data of a large transfer comes as message after message. Each is decrypted so that its head covers the end
        of the data before it, which is put back then: all data is in one piece, and none of it was moved.

        :param size: bytes of data in the first message; the caller has looked at it.
        :param longest: the most bytes of data that a further message may have.
        :param most: the most bytes of data that all further ones may have. What is not within these is left to
            :meth:`next`, as is everything else.
        """
        at, opener, tail = self._body_start, self._opener, self._opener.tail
        if at < 0 or not opener.clear_length or self._inflate is not None:
            return self.body[_DATA_OFFSET - 1 : _DATA_OFFSET - 1 + size]
        plain, wire, offset, sequence = self._plain, self._wire, self._start, self.sequence
        of_run = _DATA_TO.unpack_from(self.body)
        begin = at + _DATA_OFFSET
        end = begin + size
        most += end
        while self._end - offset >= 4:
            (length,) = _UINT32.unpack_from(wire, offset)
            at, following = end - _DATA_OFFSET, offset + 4 + length + tail
            plausible = 6 <= length <= MAX_PACKET and length % opener.align == 0
            if not plausible or following > self._end or at + length > len(plain):
                break
            covered = bytes(plain[at:end])
            try:
                opener.open(sequence, wire[offset:following], plain[at : at + length])
            except BadTag:
                self._broken = _tampered()
            else:
                offset, sequence = following, (sequence + 1) & SEQUENCE_MASK
                self.packets += 1
                padding, number, channel, size = _DATA_HEAD.unpack_from(plain, at)
                fits = size <= longest and end + size <= most and padding >= 4
                if (number, channel) != of_run or size + padding + _DATA_OFFSET != length or not fits:
                    self._ahead = bytes(plain[at : at + length])
            plain[at:end] = covered
            if self._broken is not None or self._ahead is not None:
                break
            end += size
        self.octets += offset - self._start
        self._start, self.sequence, self._used = offset, sequence, end
        return plain[begin:end]

    def rewind(self) -> None:
        """Say that no body handed out so far is needed any more: their buffer is used again."""
        self._used = 0

    def close(self) -> None:
        """Give the buffers back: whoever still knows this reader would keep them, and there may be many such."""
        self._wire = self._plain = memoryview(b"")
        self._start = self._end = 0
        self._ahead = None

    def _room(self, length: int) -> tuple[int, memoryview]:
        """Where to decrypt a body to."""
        start = self._used
        if start + length > len(self._plain):
            # The views handed out keep the old buffer alive for as long as they are needed.
            self._plain = memoryview(bytearray(_READ_BUFFER))
            start = 0
        self._used = start + length
        return start, self._plain[start : start + length]

    def _expand(self, inflate: zlib._Decompress) -> memoryview:
        try:
            # The limit stops a small packet from becoming gigabytes.
            expanded = inflate.decompress(self.body, MAX_PACKET)
        except zlib.error as error:
            raise MalformedPacket(f"a payload that cannot be decompressed ({error})") from None
        if inflate.unconsumed_tail:
            raise MalformedPacket(f"a compressed payload of more than {MAX_PACKET} bytes")
        if not expanded:
            raise MalformedPacket("an empty payload")
        return memoryview(expanded)


class PacketWriter:
    """The outgoing direction: packets gather until :meth:`take`.

    :ivar sequence: the number of the next packet.
    :ivar octets: bytes produced since the keys were last changed.
    :ivar packets: packets produced since the keys were last changed.
    :ivar pending: bytes that wait to be taken.
    :ivar piece: room for the data of one message, :data:`MAX_RUN_PIECE` bytes, for :meth:`put_piece`.
    :ivar compresses: payloads are compressed.
    """

    def __init__(self) -> None:
        self.sequence = 0
        self.octets = 0
        self.packets = 0
        self.pending = 0
        self.compresses = False
        self._sealer: Sealer = PlainSealer()
        self._deflate: zlib._Compress | None = None
        self._out = memoryview(bytearray(WRITE_BATCH + MAX_PACKET + 1024))
        self._body = memoryview(bytearray(_DATA_OFFSET + MAX_RUN_PIECE + 256))
        self.piece = self._body[_DATA_OFFSET : _DATA_OFFSET + MAX_RUN_PIECE]
        self._random = b""
        self._random_used = 0

    def change_keys(self, sealer: Sealer, restart: bool) -> None:
        """Protect what follows with other keys; see :meth:`PacketReader.change_keys`."""
        self._sealer = sealer
        self.octets = 0
        self.packets = 0
        if restart:
            self.sequence = 0

    def compressed(self, on: bool) -> None:
        """Compress payloads from here on, in a fresh context, or not any more."""
        self._deflate = zlib.compressobj(6) if on else None
        self.compresses = on

    def put(self, *parts: bytes | memoryview) -> None:
        """Add one packet.

        :param parts: the payload, message number first, in pieces.
        :raise ValueError: when the payload is over :data:`MAX_PAYLOAD`.
        """
        if self._deflate is not None:
            deflate = self._deflate
            parts = (deflate.compress(b"".join(parts)), deflate.flush(zlib.Z_SYNC_FLUSH))
        sealer = self._sealer
        size = 1
        for part in parts:
            size += len(part)
        if size > MAX_PAYLOAD:
            raise ValueError(f"a payload of {size} bytes does not fit into one packet")
        padding = self._padding_size(size)
        body = b"".join((_PAD_LENGTHS[padding], *parts, self._padding(padding)))
        start = self.pending
        stop = start + 4 + len(body) + sealer.tail
        sealer.seal(self.sequence, body, self._out[start:stop])
        self.pending = stop
        self.sequence = (self.sequence + 1) & SEQUENCE_MASK
        self.octets += stop - start
        self.packets += 1

    def put_run(self, head: bytes, data: memoryview, size: int) -> int:
        """Add messages that are ``head`` and a string (RFC 4251, section 5) each, one for each piece of ``data``.

        What one call to :meth:`put` costs for each packet is most of what Python costs on the way of bulk data: here it
        is paid once for all of them.

        :param size: the most bytes of data in one message, at most :data:`MAX_RUN_PIECE`.
        :returns: how many bytes were taken: all of them, or less when the writer has become :attr:`full`.
        """
        if self._deflate is not None:
            return self._put_compressed_run(head, data, size)
        sealer, out, left, packed = self._sealer, self._out, len(data), 1 + len(head) + 4
        position, start, sequence, packets, begin = 0, self.pending, self.sequence, 0, b""
        piece = padding = whole = 0
        seal, join = sealer.seal, b"".join
        while left > 0 and start < WRITE_BATCH:
            if piece != size or left < size:
                piece = min(size, left)
                padding = self._padding_size(packed + piece)
                begin = join((_PAD_LENGTHS[padding], head, _UINT32.pack(piece)))
                whole = 4 + packed + piece + padding + sealer.tail
            body = join((begin, data[position : position + piece], self._padding(padding)))
            seal(sequence, body, out[start : start + whole])
            start += whole
            sequence = (sequence + 1) & SEQUENCE_MASK
            position += piece
            left -= piece
            packets += 1
        self.octets += start - self.pending
        self.packets += packets
        self.pending = start
        self.sequence = sequence
        return position

    def put_piece(self, number: int, recipient: int, size: int) -> None:
        """Add a CHANNEL_DATA message whose data is in :attr:`piece` already.

        What is received there is sealed where it is, while it is in the processor's cache. Not for compressed packets.

        :param number: the message's.
        :param size: bytes of data in it.
        """
        sealer, body, start = self._sealer, self._body, self.pending
        data_end = _DATA_OFFSET + size
        padding = self._padding_size(data_end)
        end = data_end + padding
        _DATA_HEAD.pack_into(body, 0, padding, number, recipient, size)
        body[data_end:end] = self._padding(padding)
        self.pending = stop = start + 4 + end + sealer.tail
        sealer.seal(self.sequence, body[:end], self._out[start:stop])
        self.sequence = (self.sequence + 1) & SEQUENCE_MASK
        self.octets += stop - start
        self.packets += 1

    def close(self) -> None:
        """Give the buffer back, and take no more packets; see :meth:`PacketReader.close`."""
        self._out = self._body = self.piece = memoryview(b"")
        self.pending = 0

    def _put_compressed_run(self, head: bytes, data: memoryview, size: int) -> int:
        position = 0
        while position < len(data) and not self.full:
            piece = data[position : position + size]
            self.put(head, _UINT32.pack(len(piece)), piece)
            position += len(piece)
        return position

    @property
    def full(self) -> bool:
        """Whether it is time to :meth:`take`; there is room for one more packet even then."""
        return self.pending >= WRITE_BATCH

    def take(self) -> memoryview:
        """Return, and forget, what has gathered: a view that is valid until the next :meth:`put`."""
        taken = self._out[: self.pending]
        self.pending = 0
        return taken

    def _padding_size(self, size: int) -> int:
        """How much padding a body of so many bytes, the padding's length included, needs: at least four bytes."""
        align = self._sealer.align
        padding = align - (size + self._sealer.counted) % align
        return padding if padding >= 4 else padding + align

    def _padding(self, size: int) -> bytes:
        """Fresh random bytes (RFC 4253, section 6: padding SHOULD be random), without a system call for each packet."""
        start = self._random_used
        if start + size > len(self._random):
            self._random = os.urandom(_RANDOM_BLOCK)
            start = 0
        self._random_used = start + size
        return self._random[start : start + size]
