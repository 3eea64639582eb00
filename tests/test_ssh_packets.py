"""The packet layer: ciphers, padding, sequence numbers, compression."""

import hashlib
import struct
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rda.ssh import ciphers
from rda.ssh.packets import (
    MAX_PACKET,
    MAX_PAYLOAD,
    MAX_RUN_PIECE,
    SEQUENCE_MASK,
    MalformedPacket,
    PacketReader,
    PacketWriter,
)

#: Every protection there is: authenticated ciphers, and CTR with each MAC.
PROTECTIONS = [(name, b"") for name, spec in ciphers.CIPHERS.items() if spec.make is not None] + [
    (b"aes128-ctr", mac) for mac in ciphers.MACS
]


def derive(letter, size):
    """Key material that both ends agree on."""
    return hashlib.shake_256(letter).digest(size)


def pair(cipher=b"", mac=b"", restart=False):
    """A writer and the reader of what it writes."""
    writer, reader = PacketWriter(), PacketReader()
    if cipher:
        writer.change_keys(ciphers.sealer(cipher, mac, derive, b"ACE"), restart)
        reader.change_keys(ciphers.opener(cipher, mac, derive, b"ACE"), restart)
    return writer, reader


def read_all(reader):
    """All whole packets that there are."""
    found = []
    while reader.next():
        found.append(bytes(reader.body))
    reader.rewind()
    return found


def joined(messages):
    """Messages with the data of those that follow each other on one channel in one."""
    found = []
    for number, channel, data in messages:
        if found and number == 94 and found[-1][:2] == (number, channel):
            found[-1] = (number, channel, found[-1][2] + data)
        else:
            found.append((number, channel, data))
    return found


PAYLOADS = st.lists(
    st.one_of(st.binary(min_size=1, max_size=80), st.integers(1, 70_000).map(lambda n: b"x" * n)), max_size=6
)


class RoundTripTests(SynchronousTestCase):
    @settings(max_examples=60, deadline=None)
    @given(
        st.sampled_from([(b"", b""), *PROTECTIONS]), PAYLOADS, st.lists(st.integers(1, 5000), min_size=1, max_size=5)
    )
    def test_any_split(self, protection, payloads, steps):
        """What is written is read, however the bytes are cut on the way, and with any protection."""
        writer, reader = pair(*protection)
        wire = b""
        for payload in payloads:
            writer.put(payload[:1], payload[1:])
            if writer.full:
                wire += writer.take()
        wire += writer.take()
        found, position, turn = [], 0, 0
        while position < len(wire):
            step = steps[turn % len(steps)]
            reader.feed(wire[position : position + step])
            found += read_all(reader)
            position += step
            turn += 1
        self.assertEqual(found, payloads)
        self.assertEqual((reader.sequence, reader.octets), (writer.sequence, writer.octets))

    def test_one_large_read(self):
        """A packet that was cut in two is completed by a read that holds many more."""
        for protection in PROTECTIONS:
            writer, reader = pair(*protection)
            payloads = [bytes([n]) * 32_000 for n in range(1, 9)]
            for payload in payloads:
                writer.put(payload)
            wire = bytes(writer.take())
            for cut in (1, 3, 5, 17, 31_999, 32_010, 32_040, 60_000):
                with self.subTest(protection=protection, cut=cut):
                    writer, reader = pair(*protection)
                    reader.feed(wire[:cut])
                    found = read_all(reader)
                    reader.feed(wire[cut:])
                    self.assertEqual(found + read_all(reader), payloads)

    def test_fed_while_packets_wait(self):
        """Feeding before everything was read (as after a pause) loses nothing."""
        writer, reader = pair(*PROTECTIONS[0])
        payloads = [bytes([n]) * 32_000 for n in range(1, 9)]
        for payload in payloads:
            writer.put(payload)
        wire = bytes(writer.take())
        reader.feed(wire[:20_000])
        self.assertFalse(reader.next())
        reader.feed(wire[20_000:200_000])
        self.assertTrue(reader.next())
        found = [bytes(reader.body)]
        reader.feed(b"")
        reader.feed(wire[200_000:])
        self.assertEqual(found + read_all(reader), payloads)

    def test_compressed(self):
        """Compressed payloads are read, and are shorter on the wire."""
        writer, reader = pair(b"aes128-gcm@openssh.com")
        writer.compressed(True)
        reader.compressed(True)
        for _ in range(3):
            writer.put(b"\x5e", b"abcd" * 5000)
        self.assertLess(writer.pending, 2000)
        reader.feed(bytes(writer.take()))
        self.assertEqual(read_all(reader), [b"\x5e" + b"abcd" * 5000] * 3)

    @settings(max_examples=25, deadline=None)
    @given(
        st.sampled_from([(b"", b""), *PROTECTIONS]),
        st.integers(1, 400_000),
        st.sampled_from([1000, 32_759, MAX_RUN_PIECE]),
        st.booleans(),
    )
    def test_runs(self, protection, size, piece, compressed):
        """A run is one message for each piece, none longer than asked for, and stops when the writer is full."""
        writer, reader = pair(*protection)
        writer.compressed(compressed)
        reader.compressed(compressed)
        data = bytes(range(251)) * (size // 251 + 1)
        found, position = [], 0
        while position < size:
            taken = writer.put_run(b"head", memoryview(data)[position:size], piece)
            self.assertTrue(position + taken == size or writer.full)
            position += taken
            reader.feed(bytes(writer.take()))
            found += read_all(reader)
        self.assertEqual({message[:4] for message in found}, {b"head"})
        self.assertEqual([int.from_bytes(message[4:8], "big") for message in found], [len(m) - 8 for m in found])
        self.assertLessEqual(max(len(message) for message in found), piece + 8)
        self.assertEqual(b"".join(message[8:] for message in found), data[:size])
        self.assertEqual(
            (reader.sequence, reader.octets, reader.packets), (writer.sequence, writer.octets, writer.packets)
        )

    @settings(max_examples=60, deadline=None)
    @given(
        st.sampled_from(PROTECTIONS),
        st.lists(
            st.tuples(st.integers(92, 95), st.integers(0, 1), st.sampled_from([0, 1, 9, 700, 32_768])), max_size=30
        ),
        st.lists(st.integers(1, 90_000), min_size=1, max_size=4),
        st.integers(0, 100_000),
    )
    def test_runs_are_read(self, protection, messages, steps, most):
        """All data for one channel comes in one piece as far as it may, everything else by itself, all in order."""
        writer, reader = pair(*protection)
        wire, sent = b"", []
        for turn, (number, channel, size) in enumerate(messages):
            data = bytes((turn,)) * size
            sent.append((number, channel, data))
            writer.put(bytes((number,)), channel.to_bytes(4, "big"), size.to_bytes(4, "big"), data)
            wire += writer.take()
        found, position, turn = [], 0, 0
        while position < len(wire):
            reader.feed(wire[position : position + steps[turn % len(steps)]])
            position += steps[turn % len(steps)]
            turn += 1
            while reader.next():
                number, channel, size = struct.unpack_from(">BLL", reader.body)
                data = reader.run(size, 32_768, most) if number == 94 else reader.body[9:]
                self.assertLessEqual(len(data), size + most)
                found.append((number, channel, data))
            found = [(number, channel, bytes(data)) for number, channel, data in found]
            reader.rewind()
        self.assertEqual(joined(found), joined(sent))
        self.assertEqual((reader.sequence, reader.octets, reader.packets), (writer.sequence, writer.octets, len(sent)))

    def test_a_run_in_one_piece(self):
        """What comes at once for one channel is one piece, and the message behind it is not lost."""
        writer, reader = pair(b"aes128-gcm@openssh.com")
        writer.put_run(b"\x5e" + bytes(4), memoryview(b"abc" * 40_000), MAX_RUN_PIECE)
        writer.put(b"\x60", bytes(4))
        reader.feed(bytes(writer.take()))
        self.assertTrue(reader.next())
        self.assertEqual(reader.run(MAX_RUN_PIECE, MAX_RUN_PIECE, 1 << 20), b"abc" * 40_000)
        self.assertEqual(read_all(reader), [b"\x60" + bytes(4)])

    def test_pieces(self):
        """Data that was put where it is sealed is read as a message like any other, with every protection."""
        for protection in [(b"", b""), *PROTECTIONS]:
            with self.subTest(protection=protection):
                writer, reader = pair(*protection)
                for size in (1, 700, MAX_RUN_PIECE, 0):
                    writer.piece[:size] = b"x" * size
                    writer.put_piece(94, 7, size)
                    reader.feed(bytes(writer.take()))
                    self.assertEqual(read_all(reader), [b"\x5e" + struct.pack(">2L", 7, size) + b"x" * size])
                self.assertEqual((reader.octets, reader.packets), (writer.octets, writer.packets))

    def test_views_survive_many_packets(self):
        """Views of a batch stay whole when it is longer than the buffer."""
        writer, reader = pair(b"aes128-gcm@openssh.com")
        wire = b""
        payloads = [bytes([n]) * 100_000 for n in range(1, 12)]
        for payload in payloads:
            writer.put(payload)
            wire += writer.take()
        reader.feed(wire)
        views = []
        while reader.next():
            views.append(reader.body)
        self.assertEqual([bytes(view) for view in views], payloads)

    def test_padding_is_random(self):
        """The same payload does not give the same bytes, even without a cipher."""
        writer, _ = pair()
        writer.put(b"hello")
        first = bytes(writer.take())
        writer.put(b"hello")
        self.assertNotEqual(first, bytes(writer.take()))

    def test_sequence_wraps(self):
        """After packet 2**32 - 1 comes packet 0, on both sides."""
        writer, reader = pair(b"chacha20-poly1305@openssh.com")
        writer.sequence = reader.sequence = SEQUENCE_MASK
        writer.put(b"last")
        writer.put(b"first")
        reader.feed(bytes(writer.take()))
        self.assertEqual(read_all(reader), [b"last", b"first"])
        self.assertEqual((writer.sequence, reader.sequence), (1, 1))

    def test_restart(self):
        """New keys start the numbers again only for strict key exchange."""
        for restart in (False, True):
            writer, _ = pair()
            writer.put(b"hello")
            writer.change_keys(ciphers.sealer(b"aes128-gcm@openssh.com", b"", derive), restart)
            self.assertEqual((writer.sequence, writer.octets, writer.packets), (0 if restart else 1, 0, 0))

    def test_too_long(self):
        """A payload that no peer would take is a defect of ours."""
        writer, _ = pair()
        self.assertRaises(ValueError, writer.put, bytes(MAX_PAYLOAD + 1))


class MalformedTests(SynchronousTestCase):
    def test_tampered_run(self):
        """The data before a tampered packet is given out, and nothing after it, however often it is tried."""
        writer, reader = pair(b"aes128-gcm@openssh.com")
        packets = []
        for number in range(4):
            writer.put_run(b"\x5e" + bytes(4), memoryview(bytes((number,)) * 100), 100)
            packets.append(bytes(writer.take()))
        for what, wire in {
            "a bit": packets[0] + packets[1][:-1] + bytes((packets[1][-1] ^ 1,)) + packets[2],
            # The counter must not go on to where the packet that comes would be right.
            "one is missing": packets[0] + packets[2] + packets[3],
        }.items():
            with self.subTest(what):
                _, reader = pair(b"aes128-gcm@openssh.com")
                reader.feed(wire)
                self.assertTrue(reader.next())
                self.assertEqual(reader.run(100, 100, 1000), bytes(100))
                for _ in range(3):
                    self.assertRaises(MalformedPacket, reader.next)

    def test_run_of_impossible_lengths(self):
        """A length that no packet can have ends a run, and then the connection."""
        for length in (0, 5, 17, MAX_PACKET + 16, 0xFFFF_FFF0):
            with self.subTest(length):
                writer, reader = pair(b"aes128-gcm@openssh.com")
                writer.put_run(b"\x5e" + bytes(4), memoryview(bytes(100)), 100)
                reader.feed(bytes(writer.take()) + length.to_bytes(4, "big") + bytes(400_000))
                self.assertTrue(reader.next())
                self.assertEqual(reader.run(100, 100, 1000), bytes(100))
                self.assertRaises(MalformedPacket, reader.next)

    def test_tampered(self):
        """One changed bit anywhere is noticed, with every protection."""
        for protection in PROTECTIONS:
            for position in (0, 4, 20, -20, -1):
                with self.subTest(protection=protection, position=position):
                    writer, reader = pair(*protection)
                    writer.put(b"\x5e", b"x" * 100)
                    wire = bytearray(writer.take())
                    wire[position] ^= 1
                    reader.feed(bytes(wire) + bytes(300_000))
                    self.assertRaises(MalformedPacket, reader.next)

    def test_replayed(self):
        """A packet that comes a second time is noticed."""
        for protection in PROTECTIONS:
            with self.subTest(protection=protection):
                writer, reader = pair(*protection)
                writer.put(b"\x5e", b"x" * 100)
                wire = bytes(writer.take())
                reader.feed(wire + wire)
                self.assertTrue(reader.next())
                self.assertRaises(MalformedPacket, reader.next)

    def test_lengths(self):
        """Lengths that no packet can have are refused before anything is waited for."""
        for length in (0, 1, 5, 11, 13, MAX_PACKET + 4, 0xFFFF_FFFF):
            with self.subTest(length=length):
                reader = PacketReader()
                reader.feed(length.to_bytes(4, "big"))
                self.assertRaises(MalformedPacket, reader.next)

    def test_padding(self):
        """Padding that is too short, or longer than the packet, is refused."""
        for padding in (0, 3, 11, 12, 255):
            with self.subTest(padding=padding):
                reader = PacketReader()
                reader.feed((12).to_bytes(4, "big") + bytes((padding,)) + bytes(11))
                self.assertRaises(MalformedPacket, reader.next)

    def test_bomb(self):
        """A small packet that would become large is refused."""
        writer, reader = pair()
        writer.put(zlib.compress(bytes(MAX_PACKET + 1)))
        reader.compressed(True)
        reader.feed(bytes(writer.take()))
        self.assertRaisesRegex(MalformedPacket, "more than", reader.next)

    def test_not_compressed(self):
        """What is not zlib's where zlib was agreed on is refused."""
        writer, reader = pair()
        writer.put(b"\x5e", b"plain")
        reader.compressed(True)
        reader.feed(bytes(writer.take()))
        self.assertRaises(MalformedPacket, reader.next)

    @settings(max_examples=200, deadline=None)
    @given(st.sampled_from([(b"", b""), *PROTECTIONS]), st.binary(max_size=400))
    def test_noise(self, protection, noise):
        """Random bytes are no packets, and nothing but MalformedPacket comes of them."""
        _, reader = pair(*protection)
        reader.feed(noise)
        try:
            found = read_all(reader)
        except MalformedPacket:
            return
        if protection[0]:
            self.assertEqual(found, [])
