"""An SSH connection in memory whose channels end in scripts and clients, and the case of tests that use it."""

from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IPushProducer,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from rda.ssh.channels import command, streamlocal
from tests.ssh_server import Remote, SshInMemory


class Script(Protocol):
    """The remote end: what a test wants of it is done by hand, through :attr:`transport`."""

    def __init__(self):
        self.data = bytearray()
        self.lost = False

    def dataReceived(self, data):
        self.data += data

    def connectionLost(self, reason):
        self.lost = True


@implementer(IHalfCloseableProtocol)
class HalfScript(Script):
    """A remote end that is told of the end of data."""

    ended = False

    def readConnectionLost(self):
        self.ended = True

    def writeConnectionLost(self):
        pass


class Client(Protocol):
    """Our end: it notes what happens to it, in order."""

    def __init__(self):
        self.data = bytearray()
        self.events = []
        self.reasons = []

    def dataReceived(self, data):
        self.data += data
        self.events.append("data")

    def connectionLost(self, reason):
        self.reasons.append(reason)
        self.events.append("lost")


@implementer(IHalfCloseableProtocol)
class HalfClient(Client):
    """Our end, which is told of the end of data."""

    def readConnectionLost(self):
        self.events.append("read end")

    def writeConnectionLost(self):
        self.events.append("write end")


@implementer(IPushProducer)
class Producer:
    """Notes what it is told. As a pull producer, it writes a piece for each call, and ends."""

    def __init__(self, consumer=None, pieces=()):
        self.calls = []
        self.consumer = consumer
        self.pieces = list(pieces)

    def pauseProducing(self):
        self.calls.append("pause")

    def resumeProducing(self):
        self.calls.append("resume")
        if self.pieces:
            self.consumer.write(self.pieces.pop(0))
        elif self.consumer is not None:
            self.consumer.unregisterProducer()

    def stopProducing(self):
        self.calls.append("stop")


class ChannelCase(SynchronousTestCase):
    """One SSH connection; :meth:`open` gives both ends of a channel over it."""

    def setUp(self):
        self.remote = Remote()
        self.ends = []
        for path, kind in (("/s", Script), ("/half", HalfScript)):
            self.remote.sockets[path] = self.factory(kind)
        self.ssh = SshInMemory(self.remote)
        self.addCleanup(self.check_end)

    def check_end(self):
        self.ssh.lose()
        self.assertEqual(self.ssh.connection.channels, {})
        self.assertEqual(self.ssh.connection.sinks, {})

    def factory(self, kind):
        def make():
            self.ends.append(kind())
            return self.ends[-1]

        return Factory.forProtocol(make)

    def connect(self, endpoint, kind=Client):
        connected = endpoint.connect(Factory.forProtocol(kind))
        self.ssh.flush()
        return connected

    def open(self, kind=Client, path="/s"):
        ours = self.successResultOf(self.connect(streamlocal(self.ssh.connection, path), kind))
        return ours, self.ends[-1]

    def run_command(self, kind=Client, name=b"run", remote_kind=Script):
        self.remote.commands[name] = self.factory(remote_kind)
        ours = self.successResultOf(self.connect(command(self.ssh.connection, name), kind))
        return ours, self.ends[-1]

    def reason(self, protocol):
        self.assertEqual(len(protocol.reasons), 1)
        return protocol.reasons[0].value
