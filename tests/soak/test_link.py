"""An SSH link that is cut again and again, and one that carries much."""

from __future__ import annotations

import hashlib
import statistics

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.ssh.transport import ClientTransport
from tests.live.kills import kill_again_and_again
from tests.live.support import MEBIBYTE
from tests.live.test_ssh import SshCase
from tests.soak.support import SoakTestCase, size

#: Bytes that may stay after many reconnects: what an allocator keeps of its peak.
GROWTH = 15 * MEBIBYTE

#: A port of an sshd that asks for new keys after so many bytes.
REKEYING, REKEY_LIMIT = 2306, "64M"

#: Bytes made and sent at once.
PIECE = 256 * 1024

KEY = bytes(16)

#: Prints what :func:`keystream` makes.
GENERATE = "openssl enc -aes-128-ctr -nosalt -K {0} -iv {0}".format(KEY.hex())


def keystream() -> CipherContext:
    """Bytes that look random and that both ends can make: AES-CTR over zeros."""
    return Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor()


class Kills(SoakTestCase):
    """Cut at random moments, with requests and transfers under way."""

    def test_kills(self) -> None:
        """After each of KILLS (50) cuts rda is back within its back-off, and in the end holds no more than before."""
        self.rda.docker("run", "-d", "--name", "box", "busybox", "sleep", "100000")
        kill_again_and_again(self.rda, 3, "box")  # what the first transfers and reconnects cost for good
        before = self.settled(self.holdings())
        times = kill_again_and_again(self.rda, size("KILLS", 50), "box")
        self.tell(
            f"{len(times)} kills; back after {statistics.median(times):.2f} s (median), {max(times):.2f} s at most"
        )
        self.assert_back(before, GROWTH)


class Expected(Protocol):
    """Compares what comes with what has to come."""

    def __init__(self) -> None:
        self.done: Deferred[int] = Deferred()
        self._stream = keystream()
        self._received = 0

    def dataReceived(self, data: bytes) -> None:
        if self._stream.update(bytes(len(data))) != data:
            self.transport.abortConnection()
            self.done.errback(AssertionError(f"other bytes within {len(data)} after {self._received}"))
        self._received += len(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.done.called:
            self.done.callback(self._received)


@implementer(IHalfCloseableProtocol, IPullProducer)
class Source(Protocol):
    """Sends so many bytes, and then takes the checksum that the other end prints.

    :ivar digest: of what was sent, in hexadecimal.
    """

    def __init__(self, amount: int) -> None:
        self.done: Deferred[str] = Deferred()
        self._left = amount
        self._stream = keystream()
        self._hash = hashlib.sha256()
        self._answer = b""

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        piece = self._stream.update(bytes(min(PIECE, self._left)))
        self._left -= len(piece)
        self._hash.update(piece)
        self.transport.write(piece)
        if not self._left:
            self.transport.unregisterProducer()
            self.transport.loseWriteConnection()

    def stopProducing(self) -> None:
        self._left = 0

    def dataReceived(self, data: bytes) -> None:
        self._answer += data

    def readConnectionLost(self) -> None:
        pass

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.done.callback(self._answer.decode().split(" ")[0])


class Volume(SshCase):
    """MEGABYTES (10,240) through a connection whose server asks for new keys all the time, half of them each way."""

    timeout = 3600

    def setUp(self) -> None:
        super().setUp()
        self.half = size("MEGABYTES", 10_240) * MEBIBYTE // 2
        self.host.stop_sshd(REKEYING)
        self.host.start_sshd(REKEYING, RekeyLimit=REKEY_LIMIT, PerSourcePenalties="no")
        self.exchanges = 0
        count = ClientTransport.ssh_NEWKEYS

        def counted(transport: ClientTransport, packet: bytes) -> None:
            self.exchanges += 1
            count(transport, packet)

        self.patch(ClientTransport, "ssh_NEWKEYS", counted)
        self.ssh = self.link(self.site.users["ed25519"], port=REKEYING)

    def tell(self) -> None:
        """Print what happened; the keys were changed as often as the server's limit says."""
        name = self.id().rpartition(".")[2]
        print(f"\n    {name}: {self.half / 1e9:.1f} GB, {self.exchanges} key exchanges", flush=True)
        self.assertGreater(self.exchanges, self.half // (100 * MEBIBYTE))

    async def test_down(self) -> None:
        """What the server sends arrives byte for byte."""
        line = f"head -c {self.half} /dev/zero | {GENERATE}".encode()
        received = await self.ssh.command(line).connect(Factory.forProtocol(Expected))
        self.assertEqual(await received.done, self.half)
        self.tell()

    async def test_up(self) -> None:
        """What is sent has the checksum that the server finds."""
        source = await self.ssh.command(b"sha256sum").connect(Factory.forProtocol(lambda: Source(self.half)))
        self.assertEqual(await source.done, source.digest)
        self.tell()
