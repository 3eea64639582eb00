"""Laws of channels under any history: writes, pauses, full sockets, key exchanges and ends in any order."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from rda.interfaces import ITakesViews
from rda.ssh.channels import streamlocal
from rda.ssh.transport import Options
from tests.ssh_server import SERVER_WINDOW, Remote, SshInMemory


@implementer(IHalfCloseableProtocol)
class End(Protocol):
    """One end: it notes what comes, and may be paused."""

    def __init__(self):
        self.data = bytearray()
        self.ends = 0
        self.losses = 0
        self.paused = False

    def dataReceived(self, data):
        assert not self.paused, "data for a paused reader"
        assert not self.ends, "data after its end"
        self.data += data

    def readConnectionLost(self):
        self.ends += 1

    def writeConnectionLost(self):
        pass

    def connectionLost(self, reason):
        self.losses += 1


@implementer(ITakesViews)
class ViewEnd(End):
    """One that takes views."""


#: What can happen: its name, which channel, and how much.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "write",
                "fill",
                "answer",
                "pause",
                "resume",
                "full",
                "drained",
                "rekey",
                "their rekey",
                "turn",
                "flush",
                "end",
                "their end",
            ]
        ),
        st.integers(0, 2),
        st.sampled_from([1, 100, 40_000, SERVER_WINDOW + 1]),
    ),
    max_size=25,
)


class HistoryTests(SynchronousTestCase):
    @settings(max_examples=60, deadline=None)
    @given(STEPS, st.sampled_from([b"aes128-gcm@openssh.com", b"chacha20-poly1305@openssh.com"]), st.booleans())
    def test_everything_arrives_in_order(self, steps, cipher, views):
        """Whatever happens, both ends of every channel get exactly what was sent, in order, then its end, once."""
        run = _Run(cipher, ViewEnd if views else End)
        for name, number, size in steps:
            getattr(run, "do_" + name.replace(" ", "_"))(number, size)
            for ours in run.ours:
                if ours.transport.open and not ours.losses:
                    kept = sum(len(piece) for piece in ours.transport._incoming)
                    self.assertLessEqual(kept + ours.transport.localWindowLeft, ours.transport.localWindowSize)
        run.finish()
        for number in range(3):
            self.assertEqual(run.theirs[number].data, run.sent[number])
            self.assertEqual(run.ours[number].data, run.answered[number])
            self.assertEqual((run.theirs[number].ends, run.ours[number].ends, run.ours[number].losses), (1, 1, 1))
        self.assertEqual(run.ssh.connection.channels, {})
        run.ssh.lose()


class _Run:
    """Three channels, and what was sent over them."""

    def __init__(self, cipher, end):
        self.theirs = []

        def remote_end():
            self.theirs.append(End())
            return self.theirs[-1]

        remote = Remote(sockets={"/s": Factory.forProtocol(remote_end)})
        self.ssh = SshInMemory(remote, Options(ciphers=(cipher,)))
        self.ours = []
        for _ in range(3):
            streamlocal(self.ssh.connection, "/s").connect(Factory.forProtocol(end)).addCallback(self.ours.append)
            self.ssh.flush()
        self.sent = [bytearray() for _ in range(3)]
        self.answered = [bytearray() for _ in range(3)]
        self.ended = [False] * 3
        self.they_ended = [False] * 3
        self.count = 0

    def data(self, size):
        self.count += 1
        return bytes([self.count % 256]) * size

    def do_write(self, number, size):
        if not self.ended[number]:
            data = self.data(size)
            self.sent[number] += data
            self.ours[number].transport.write(data)

    def do_fill(self, number, size):
        channel = self.ours[number].transport
        data = self.data(size)
        while data and not self.ended[number]:
            room = channel.room()
            piece, data = data[: len(room)], data[len(room) :]
            room[: len(piece)] = piece
            self.sent[number] += piece
            channel.filled(len(piece))

    def do_answer(self, number, size):
        if not self.they_ended[number]:
            data = self.data(size)
            self.answered[number] += data
            self.theirs[number].transport.write(data)

    def do_pause(self, number, size):
        self.ours[number].paused = True
        self.ours[number].transport.pauseProducing()

    def do_resume(self, number, size):
        self.ours[number].paused = False
        self.ours[number].transport.resumeProducing()

    def do_full(self, number, size):
        self.ssh.client_io.full()

    def do_drained(self, number, size):
        self.ssh.client_io.drained()

    def do_rekey(self, number, size):
        self.ssh.client._rekey()

    def do_their_rekey(self, number, size):
        server = self.ssh.server
        if server._keyExchangeState == server._KEY_EXCHANGE_NONE:
            server.sendKexInit()

    def do_turn(self, number, size):
        self.ssh.pump.pump()

    def do_flush(self, number, size):
        self.ssh.flush()

    def do_end(self, number, size):
        self.ended[number] = True
        self.ours[number].transport.loseWriteConnection()

    def do_their_end(self, number, size):
        # Conch's server sends an end of data in front of data that still waits for the window.
        channel = self.theirs[number].transport
        if not self.they_ended[number] and not channel.buf:
            self.they_ended[number] = True
            channel.loseWriteConnection()

    def finish(self):
        """Let everything that waits go on, and end what has not ended."""
        self.ssh.client_io.drained()
        for number in range(3):
            self.do_resume(number, 0)
        self.ssh.flush()
        for number in range(3):
            self.do_end(number, 0)
            self.do_their_end(number, 0)
        self.ssh.flush()
