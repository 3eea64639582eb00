"""Channels as transports, against Conch's server in memory."""

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from rda.ssh.channels import streamlocal
from tests.ssh_server import Remote, SshInMemory


class Echo(Protocol):
    """Sends back what it gets."""

    def dataReceived(self, data):
        self.transport.write(data)


class Collector(Protocol):
    """Keeps what it gets."""

    def __init__(self):
        self.data = b""
        self.reasons = []

    def dataReceived(self, data):
        self.data += data

    def connectionLost(self, reason):
        self.reasons.append(reason)


class StreamTests(SynchronousTestCase):
    def test_echo(self):
        """More than a window goes to a socket and comes back, and closing closes both sides."""
        remote = Remote(sockets={"/s": Factory.forProtocol(Echo)})
        ssh = SshInMemory(remote)
        opened = streamlocal(ssh.connection, "/s").connect(Factory.forProtocol(Collector))
        ssh.flush()
        protocol = self.successResultOf(opened)
        sent = bytes(range(256)) * 20_000
        protocol.transport.write(sent)
        ssh.flush()
        self.assertEqual(protocol.data, sent)
        protocol.transport.loseConnection()
        ssh.flush()
        self.assertEqual([reason.type for reason in protocol.reasons], [ConnectionDone])
        self.assertEqual(ssh.connection.channels, {})
