"""The case of tests of one SSH connection in memory."""

from twisted.conch.ssh import transport as conch
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from rda.ssh import kex
from rda.ssh.channels import streamlocal
from rda.ssh.transport import ClientTransport
from tests.ssh_server import SshInMemory, TrustAll, password_login


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


class SshCase(SynchronousTestCase):
    """Helpers: everything that was started is ended, and leaves no timer behind."""

    def ssh(self, **arguments):
        ssh = SshInMemory(**arguments)
        self.addCleanup(self.check_end, ssh)
        return ssh

    def check_end(self, ssh):
        ssh.lose()
        self.assertEqual(ssh.client._timers, {})
        ssh.client.ready.addErrback(lambda failure: None)

    def open(self, ssh, path="/s"):
        opened = streamlocal(ssh.connection, path).connect(Factory.forProtocol(Collector))
        ssh.flush()
        return self.successResultOf(opened)

    def echoes(self, ssh, data=b"hello"):
        """Whether the connection works, in both directions."""
        ssh.remote.sockets["/s"] = Factory.forProtocol(Echo)
        protocol = self.open(ssh)
        protocol.transport.write(data)
        ssh.flush()
        return protocol.data == data

    def reason(self, ssh, *kinds):
        return str(self.failureResultOf(ssh.client.ready, *kinds).value)


def host_key_of_somebody_else():
    from cryptography.hazmat.primitives.asymmetric import ed25519

    return ed25519.Ed25519PrivateKey.generate()


def packet(number, payload, writer=None):
    """One packet as a server without keys sends it."""
    from rda.ssh.packets import PacketWriter

    writer = writer or PacketWriter()
    writer.put(bytes((number,)), payload)
    return bytes(writer.take())


def proposal(**changes):
    """A server's proposal that fits ours but for the changes."""
    values = {
        "exchanges": (b"curve25519-sha256",),
        "host_keys": (b"ssh-ed25519",),
        "ciphers_out": (b"aes128-ctr",),
        "ciphers_in": (b"aes128-ctr",),
        "macs_out": (b"hmac-sha2-256",),
        "macs_in": (b"hmac-sha2-256",),
        "compressions_out": (b"none",),
        "compressions_in": (b"none",),
    }
    return kex.Proposal(**{**values, **changes})


def kexinit(**changes):
    """Such a proposal, as a KEXINIT packet."""
    return packet(conch.MSG_KEXINIT, proposal(**changes).encode(bytes(16)))


class QuietTransport(StringTransport):
    """A StringTransport that says when it is aborted."""

    aborted = False

    def abortConnection(self):
        self.aborted = True
        self.loseConnection()


def bare_client(clock=None, options=None):
    """A client on a wire that the test writes to by hand."""
    client = ClientTransport(TrustAll(), password_login, clock or Clock(), options)
    wire = QuietTransport()
    client.makeConnection(wire)
    return client, wire


def exchange_with(*packets):
    """A client that got a version and these packets; when it hangs up, the connection is lost."""
    client, wire = bare_client()
    client.dataReceived(b"SSH-2.0-test\r\n")
    for data in packets:
        client.dataReceived(data)
    if wire.disconnecting:
        client.connectionLost()
    return client, wire
