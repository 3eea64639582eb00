"""A stream of bytes as SSH packets, and back (RFC 4253, section 6). Pure: bytes in, packets out.

:class:`PacketReader` and :class:`PacketWriter` are one direction each: they own the sequence number, the protection and
the compression of that direction, and know nothing of what the packets mean. They are the hot path of everything that
rda does, and so they copy as little as they can: the reader decrypts many packets into one buffer and hands out views
of it; the writer encrypts many packets into one buffer that leaves with one write.
"""

from __future__ import annotations

import os
import struct
import zlib

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

#: Bytes decrypted before a fresh buffer is taken: what a 256 KiB read and the tail of the one before can hold.
_READ_BUFFER = 640 * 1024

#: Bytes of new data that are copied to complete a packet that was cut in two: a packet of 32 KiB and its surroundings.
_STITCH = 33 * 1024

#: Bytes of packets after which the writer wants to be emptied (:attr:`PacketWriter.full`): as much as the reactor
#: takes from a socket in one read, so that the buffer of a batch stays in the processor's cache.
WRITE_BATCH = 256 * 1024

#: Random bytes fetched at once for padding: one system call for about 400 packets.
_RANDOM_BLOCK = 4096

_UINT32 = struct.Struct(">L")
_PAD_LENGTHS = tuple(bytes((size,)) for size in range(256))


class MalformedPacket(Exception):
    """The peer sent something that is not a packet; the connection cannot go on.

    :ivar tampered: True when it is the authentication tag that is wrong.
    """

    def __init__(self, message: str, tampered: bool = False) -> None:
        super().__init__(message)
        self.tampered = tampered


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
        self._data = memoryview(b"")
        self._offset = 0
        self._fed = b""  # what _data holds the beginning of, behind _rest_size bytes that came earlier
        self._rest_size = 0
        self._length = -1  # of the packet at _offset, when it has been read already
        self._plain = memoryview(bytearray(_READ_BUFFER))
        self._used = 0

    def feed(self, data: bytes) -> None:
        """Take bytes from the wire."""
        self._leave_stitch()
        rest = self._data[self._offset :]
        self._offset = 0
        if not len(rest):
            self._data = memoryview(data)
            return
        # The packet that was cut in two is put together with a little of what follows, not with all of it: that would
        # copy every byte once more.
        self._data = memoryview(b"".join((rest, data[:_STITCH])))
        if len(data) > _STITCH:
            self._rest_size = len(rest)
            self._fed = data

    def _leave_stitch(self) -> bool:
        """Go on in the data that the stitched piece was cut from; False when there is none."""
        data, self._fed = self._fed, b""
        if not data:
            return False
        if self._offset >= self._rest_size:
            self._data = memoryview(data)
            self._offset -= self._rest_size
        else:  # the packet is longer than the stitched piece
            self._data = memoryview(b"".join((self._data[self._offset : self._rest_size], data)))
            self._offset = 0
        return True

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
        data, offset, opener = self._data, self._offset, self._opener
        length = self._length
        if length < 0:
            if len(data) - offset < opener.prefix:
                return self._leave_stitch() and self.next()
            length = opener.length(self.sequence, data[offset:])
            # Padding length, message number and four bytes of padding is the least there can be.
            if not 6 <= length <= MAX_PACKET or (length + opener.counted) % opener.align:
                raise MalformedPacket(f"a packet of {length} bytes")
        following = offset + 4 + length + opener.tail
        if following > len(data):
            self._length = length
            return self._leave_stitch() and self.next()
        plain = self._room(length)
        try:
            opener.open(self.sequence, data[offset:following], plain)
        except BadTag:
            raise MalformedPacket("a packet with a wrong authentication tag", tampered=True) from None
        self._length = -1
        self._offset = following
        self.sequence = (self.sequence + 1) & SEQUENCE_MASK
        self.octets += following - offset
        self.packets += 1
        padding = plain[0]
        if padding < 4 or padding + 2 > length:
            raise MalformedPacket(f"{padding} bytes of padding in a packet of {length}")
        self.body = plain[1 : length - padding]
        if self._inflate is not None:
            self.body = self._expand(self._inflate)
        return True

    def rewind(self) -> None:
        """Say that no body handed out so far is needed any more: their buffer is used again."""
        self._used = 0

    def close(self) -> None:
        """Give the buffers back: whoever still knows this reader would keep them, and there may be many such."""
        self._data = self._plain = memoryview(b"")
        self._fed = b""

    def _room(self, length: int) -> memoryview:
        start = self._used
        if start + length > _READ_BUFFER:
            # The views handed out keep the old buffer alive for as long as they are needed.
            self._plain = memoryview(bytearray(_READ_BUFFER))
            start = 0
        self._used = start + length
        return self._plain[start : start + length]

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
    """

    def __init__(self) -> None:
        self.sequence = 0
        self.octets = 0
        self.packets = 0
        self.pending = 0
        self._sealer: Sealer = PlainSealer()
        self._deflate: zlib._Compress | None = None
        self._out = memoryview(bytearray(WRITE_BATCH + MAX_PACKET + 1024))
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
        sealer, out, total, packed = self._sealer, self._out, len(data), 1 + len(head) + 4
        seal, tail, pack = sealer.seal, sealer.tail, _UINT32.pack
        position, start, sequence, packets, begin = 0, self.pending, self.sequence, 0, b""
        piece_size = padding = 0
        while position < total and start < WRITE_BATCH:
            piece = data[position : position + size]
            if len(piece) != piece_size:
                piece_size = len(piece)
                padding = self._padding_size(packed + piece_size)
                begin = b"".join((_PAD_LENGTHS[padding], head, pack(piece_size)))
            body = b"".join((begin, piece, self._padding(padding)))
            stop = start + 4 + len(body) + tail
            seal(sequence, body, out[start:stop])
            start = stop
            sequence = (sequence + 1) & SEQUENCE_MASK
            position += piece_size
            packets += 1
        self.octets += start - self.pending
        self.packets += packets
        self.pending = start
        self.sequence = sequence
        return position

    def close(self) -> None:
        """Give the buffer back, and take no more packets; see :meth:`PacketReader.close`."""
        self._out = memoryview(b"")
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
