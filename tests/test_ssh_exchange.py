"""rda.ssh.exchange: strict key exchange, and keys that are exchanged anew."""

from twisted.conch.ssh import transport as conch
from twisted.conch.ssh.common import NS
from twisted.internet.protocol import Factory

from rda.errors import LinkDown
from rda.ssh import ciphers, kex, packet_transport
from rda.ssh.channels import streamlocal
from rda.ssh.options import REKEY_SECONDS
from rda.ssh.transport import REKEY_TIMEOUT, Options
from tests.ssh_case import Collector, Echo, SshCase, exchange_with, host_key_of_somebody_else, kexinit, packet
from tests.ssh_server import Remote, host_key


class StrictTests(SshCase):
    """CVE-2023-48795: during the first key exchange of a strict server nothing else may come."""

    NOISE = (
        (conch.MSG_IGNORE, NS(b"")),
        (conch.MSG_DEBUG, b"\0" + NS(b"") + NS(b"")),
        (conch.MSG_UNIMPLEMENTED, bytes(4)),
    )

    def test_before_kexinit(self):
        """Anything before a strict server's KEXINIT ends the connection; before another's, it does not."""
        for strict in (True, False):
            for number, payload in self.NOISE:
                with self.subTest(strict=strict, number=number):
                    names = (b"curve25519-sha256", *((kex.STRICT_SERVER,) if strict else ()))
                    client, wire = exchange_with(packet(number, payload), kexinit(exchanges=names))
                    self.assertEqual(wire.disconnecting, strict)
                    if strict:
                        self.failureResultOf(client.ready, LinkDown)

    def test_after_kexinit(self):
        """Anything between a strict server's KEXINIT and its NEWKEYS ends the connection."""
        for strict in (True, False):
            for number, payload in self.NOISE:
                with self.subTest(strict=strict, number=number):
                    names = (b"curve25519-sha256", *((kex.STRICT_SERVER,) if strict else ()))
                    client, wire = exchange_with(kexinit(exchanges=names), packet(number, payload))
                    self.assertEqual(wire.disconnecting, strict)
                    if strict:
                        self.failureResultOf(client.ready, LinkDown)

    def test_removed_packet(self):
        """A packet removed at the start of the encrypted stream is noticed, with every cipher of a strict server."""
        for name in ciphers.CIPHERS:
            for removed in (False, True):
                with self.subTest(name=name, removed=removed):
                    ssh = self.ssh(greet=False, supportedCiphers=[name])
                    while ssh.client.algorithms is None:
                        ssh.pump.pump()
                    # The server's EXT_INFO is its first packet under the new keys; SERVICE_ACCEPT is the second.
                    said = ssh.server_io.getOutBuffer() or b""
                    while len(said) <= packet_size(name):
                        ssh.pump.serverIO.bufferReceived(ssh.client_io.getOutBuffer())
                        said += ssh.server_io.getOutBuffer()
                    # With the length encrypted, a wrong one may have to be waited for.
                    ssh.client.dataReceived(said[packet_size(name) :] + bytes(300_000) if removed else said)
                    self.assertEqual(ssh.client_io.disconnecting, removed)
                    ssh.client_io.disconnecting = True
                    ssh.client.connectionLost()
                    ssh.client_io.disconnected = ssh.server_io.disconnected = True
                    self.failureResultOf(ssh.client.ready, LinkDown)

    def test_other_messages(self):
        """A message of the later protocol during the first key exchange ends the connection, strict or not."""
        for number in (5, 6, 7, 50, 52, 80, 94, 100):
            client, wire = exchange_with(kexinit(), packet(number, b"\0" * 16))
            with self.subTest(number=number):
                self.assertTrue(wire.disconnecting)
                self.failureResultOf(client.ready, LinkDown)

    def test_not_offered_later(self):
        """The markers are in the first KEXINIT only."""
        ssh = self.ssh()
        offered = ssh.server.client_exchanges
        self.assertLessEqual({kex.STRICT_CLIENT, kex.EXT_INFO_CLIENT}, set(offered))
        ssh.client.sendKexInit()
        self.assertNotIn(kex.STRICT_CLIENT, ssh.client._exchange.proposal.exchanges)

    def test_numbers_start_again(self):
        """With a strict server the sequence numbers start again at every key exchange, with another they go on."""
        for strict in (True, False):
            ssh = self.ssh(strict_offered=strict)
            before = ssh.client._writer.sequence
            ssh.client.sendKexInit()
            ssh.flush()
            self.assertEqual(ssh.client.algorithms.strict, strict)
            self.assertEqual(ssh.client._writer.sequence < before, strict)
            self.assertTrue(self.echoes(ssh))


def packet_size(cipher):
    """Bytes on the wire of the server's EXT_INFO with ssh-ed25519 only, as the first packet under the new keys."""
    payload = 1 + 4 + 4 + len(b"server-sig-algs") + 4 + len(b"ssh-ed25519")
    if cipher == b"chacha20-poly1305@openssh.com":
        align, tail = 8, 16
    else:
        align, tail = 16, 16 if b"gcm" in cipher else 32
    size = 1 + payload
    padding = align - size % align
    padding += align if padding < 4 else 0
    return 4 + size + padding + tail


class RekeyTests(SshCase):
    def test_ours_while_data_flows(self):
        """Data of both directions survives a key exchange that we begin every few packets."""
        ssh = self.ssh(options=Options(rekey_bytes=200_000))
        session = ssh.client.sessionID
        data = bytes(range(256)) * 12_000
        self.assertTrue(self.echoes(ssh, data))
        exchanges = ssh.server.received.count(conch.MSG_KEXINIT)
        self.assertGreater(exchanges, 3)
        self.assertEqual(ssh.client.sessionID, session)

    def test_theirs_while_data_flows(self):
        """Data of both directions survives key exchanges that the server begins, with every cipher."""
        for name in ciphers.CIPHERS:
            with self.subTest(name=name):
                ssh = self.ssh(supportedCiphers=[name], remote=Remote(sockets={"/s": Factory.forProtocol(Echo)}))
                protocol = self.open(ssh)
                data = bytes(range(256)) * 1000
                for _ in range(5):
                    protocol.transport.write(data)
                    ssh.server.sendKexInit()
                    protocol.transport.write(data)
                    ssh.flush()
                self.assertEqual(protocol.data, data * 10)

    def test_both_at_once(self):
        """Both sides may begin at the same time."""
        ssh = self.ssh()
        for _ in range(3):
            ssh.client.sendKexInit()
            ssh.server.sendKexInit()
            ssh.flush()
        self.assertEqual(ssh.server.received.count(conch.MSG_KEXINIT), 4)
        self.assertTrue(self.echoes(ssh))

    def test_by_time(self):
        """New keys are agreed on after an hour, even when nothing was sent; and after the next hour again."""
        ssh = self.ssh()
        for expected in (2, 3):
            ssh.clock.advance(REKEY_SECONDS)
            ssh.flush()
            self.assertEqual(ssh.server.received.count(conch.MSG_KEXINIT), expected)

    def test_by_packets(self):
        """New keys are agreed on before the sequence numbers can repeat."""
        self.patch(packet_transport, "REKEY_PACKETS", 100)
        ssh = self.ssh()
        protocol = self.open_echo(ssh)
        for _ in range(150):
            protocol.transport.write(b"x")
            ssh.flush()
        self.assertGreater(ssh.server.received.count(conch.MSG_KEXINIT), 1)
        self.assertEqual(len(protocol.data), 150)

    def open_echo(self, ssh):
        ssh.remote.sockets["/s"] = Factory.forProtocol(Echo)
        return self.open(ssh)

    def test_held_meanwhile(self):
        """Between our KEXINIT and our NEWKEYS nothing else is sent; channels and data wait, in their order."""
        ssh = self.ssh()
        protocol = self.open_echo(ssh)
        ssh.client.sendKexInit()
        self.assertFalse(ssh.client.may_send)
        protocol.transport.write(b"data")
        protocol.transport.loseWriteConnection()
        another = streamlocal(ssh.connection, "/s").connect(Factory.forProtocol(Collector))
        seen = len(ssh.server.received)
        ssh.flush()
        numbers = ssh.server.received[seen:]
        self.assertEqual(numbers[:3], [conch.MSG_KEXINIT, 30, conch.MSG_NEWKEYS])
        self.assertEqual(sorted(numbers[3:]), [90, 94, 96, 97])
        self.assertLess(numbers.index(94), numbers.index(96))
        self.assertEqual(protocol.data, b"data")
        self.successResultOf(another)

    def test_never_answered(self):
        """A server that does not answer a key exchange is given up, and what waits for it is bounded."""
        ssh = self.ssh()
        ssh.client.sendKexInit()
        ssh.client_io.getOutBuffer()
        ssh.clock.advance(REKEY_TIMEOUT)
        ssh.flush()
        self.assertIn("took too long to agree on new keys", str(self.successResultOf(ssh.client.lost)))

    def test_too_much_waits(self):
        """What waits for the end of a key exchange is bounded."""
        self.patch(packet_transport, "MAX_BLOCKED", 10)
        ssh = self.ssh()
        ssh.client.sendKexInit()
        for _ in range(11):
            ssh.client.sendPacket(80, NS(b"x") + b"\0")
        ssh.flush()
        self.assertIn("Too much waits", str(self.successResultOf(ssh.client.lost)))

    def test_another_host_key(self):
        """A server cannot become another one in the middle of the connection."""
        ssh = self.ssh()
        other = type(host_key())(host_key_of_somebody_else())
        ssh.server.factory.publicKeys = {b"ssh-ed25519": other.public()}
        ssh.server.factory.privateKeys = {b"ssh-ed25519": other}
        ssh.client.sendKexInit()
        ssh.flush()
        self.assertIn("another host key", str(self.successResultOf(ssh.client.lost)))

    def test_not_during_login(self):
        """We do not begin one before the login is done: some servers do not expect it."""
        ssh = self.ssh(authenticate=lambda client, connection: None, options=Options(rekey_seconds=5.0))
        ssh.clock.advance(6)
        ssh.flush()
        self.assertEqual(ssh.server.received.count(conch.MSG_KEXINIT), 1)
