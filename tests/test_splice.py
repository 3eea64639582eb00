"""A joined connection whose data is received into the channel: real sockets (a pair, no network)."""

import socket

from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from rda.interfaces import IRoomy
from rda.ports.splice import Splice


@implementer(IRoomy)
class Roomy(StringTransport):
    """A channel that can be received into."""

    def __init__(self):
        super().__init__()
        self.space = memoryview(bytearray(1000))
        self.filled_with = b""

    def room(self):
        """See IRoomy."""
        return self.space

    def filled(self, size):
        """See IRoomy."""
        self.filled_with += bytes(self.space[:size])


class SpliceTests(SynchronousTestCase):
    def setUp(self):
        self.splice = Splice(Clock(), lambda splice: None, lambda splice: None)
        self.far = Roomy()

    def test_into_the_channel(self):
        """What a plain socket brings is received into the channel, behind what came before the channel was there."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
            self.addCleanup(end.close)
        near = Connection(ours, self.splice, MemoryReactorClock())
        near.connected = True
        self.splice.makeConnection(near)
        theirs.send(b"early")
        near.doRead()
        self.splice.far_made(self.far)
        theirs.send(b"later")
        near.doRead()
        self.assertEqual((self.far.value(), self.far.filled_with, self.splice.bytes_in), (b"early", b"later", 10))
        self.splice.far_data(memoryview(b"answer"))
        self.assertEqual((theirs.recv(100), self.splice.bytes_out), (b"answer", 6))

    def test_other_transports(self):
        """What anything else brings is written to the channel."""
        self.splice.makeConnection(StringTransport())
        self.splice.far_made(self.far)
        self.splice.dataReceived(b"hello")
        self.assertEqual((self.far.value(), self.far.filled_with), (b"hello", b""))
