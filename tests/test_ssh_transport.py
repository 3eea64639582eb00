"""rda.ssh.transport: algorithms, host keys, versions, jumps, and how a connection ends."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.conch.ssh import transport as conch
from twisted.conch.ssh.common import NS
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from rda.errors import HostKeyRefused, LinkDown, LoginFailed
from rda.ssh import ciphers, kex
from rda.ssh.channels import Connection, streamlocal
from rda.ssh.exchange import WrongSignature, _check_signature
from rda.ssh.keys import fingerprint
from rda.ssh.options import HANDSHAKE_SECONDS, Algorithms
from rda.ssh.packet_transport import CLOSE_SECONDS
from rda.ssh.transport import ClientTransport, Options
from tests.ssh_case import (
    Collector,
    Echo,
    QuietTransport,
    SshCase,
    bare_client,
    exchange_with,
    host_key_of_somebody_else,
    kexinit,
    packet,
)
from tests.ssh_server import Remote, ServerTransport, SshInMemory, TrustAll, host_key, password_login


class AlgorithmTests(SshCase):
    def test_every_cipher(self):
        """Every cipher works with a server that has only that one, with data of every size of padding."""
        for name in ciphers.CIPHERS:
            with self.subTest(name=name):
                ssh = self.ssh(supportedCiphers=[name])
                self.assertEqual(ssh.client.algorithms.cipher, name.decode())
                self.assertTrue(self.echoes(ssh, bytes(range(256)) * 300))
                for size in range(1, 40):
                    protocol = self.open(ssh)
                    protocol.transport.write(b"x" * size)
                    ssh.flush()
                    self.assertEqual(len(protocol.data), size)

    def test_every_mac(self):
        """Every MAC works with CTR, encrypt-then-MAC or not."""
        for name in ciphers.MACS:
            with self.subTest(name=name):
                ssh = self.ssh(supportedCiphers=[b"aes256-ctr"], supportedMACs=[name])
                self.assertEqual(ssh.client.algorithms.mac, name.decode())
                self.assertTrue(self.echoes(ssh, bytes(range(256)) * 300))

    def test_every_exchange(self):
        """Every key exchange method that Conch's server has works with it."""
        for name in kex.supported_exchanges():
            if name not in ServerTransport.supportedKeyExchanges:
                continue
            with self.subTest(name=name):
                ssh = self.ssh(options=Options(exchanges=(name,)))
                self.assertEqual(ssh.client.algorithms.key_exchange, name.decode())
                self.assertTrue(self.echoes(ssh))

    def test_host_key_kinds(self):
        """Host keys of every kind are verified, RSA ones with SHA-2."""
        cases = {"ed25519": b"ssh-ed25519", "ecdsa": b"ecdsa-sha2-nistp256", "rsa": b"rsa-sha2-512"}
        for kind, algorithm in cases.items():
            with self.subTest(kind=kind):
                trust = TrustAll((algorithm,))
                ssh = self.ssh(host_keys=trust, server_keys=[host_key(kind)])
                self.assertEqual(ssh.client.algorithms.host_key, algorithm.decode())
                self.assertEqual(trust.asked, [fingerprint(host_key(kind).public().blob())])

    def test_host_key_order(self):
        """The server shows the key that is asked for first."""
        both = [host_key("rsa"), host_key("ed25519")]
        for first, second in ((b"ssh-ed25519", b"rsa-sha2-256"), (b"rsa-sha2-256", b"ssh-ed25519")):
            ssh = self.ssh(host_keys=TrustAll((first, second)), server_keys=both)
            self.assertEqual(ssh.client.algorithms.host_key, first.decode())

    def test_nothing_weak(self):
        """CBC, RC4, 3DES, MD5 and SHA-1 are not offered."""
        offered = Options()
        names = b" ".join(offered.ciphers + offered.macs + offered.exchanges)
        for weak in (b"cbc", b"arcfour", b"3des", b"md5", b"sha1", b"umac"):
            self.assertNotIn(weak, names)

    def test_nothing_in_common(self):
        """A server that has nothing in common is not tried again, and the message says what both have."""
        client, wire = exchange_with(kexinit(ciphers_out=(b"aes256-cbc",)))
        reason = self.failureResultOf(client.ready, LoginFailed).value
        self.assertIn("no cipher in common: it offers aes256-cbc; rda accepts aes128-gcm@openssh.com", str(reason))
        self.assertTrue(reason.permanent)
        self.assertTrue(wire.disconnecting)

    def test_wrong_guess(self):
        """The message that a server sent along for another method than the agreed one is ignored."""
        client, wire = exchange_with(
            kexinit(guess_follows=True, exchanges=(b"diffie-hellman-group1-sha1", b"curve25519-sha256"))
        )
        client.dataReceived(packet(31, b"not for us"))
        self.assertFalse(wire.disconnecting)
        client.dataReceived(packet(31, b"for us"))
        self.assertTrue(wire.disconnecting)
        client.connectionLost()
        self.failureResultOf(client.ready, LinkDown)

    def test_signature_algorithms(self):
        """The server's list of signature algorithms for users is there after the login."""
        ssh = self.ssh(server_keys=[host_key("ed25519"), host_key("rsa")])
        self.assertEqual(ssh.client.server_sig_algs, {b"ssh-ed25519", b"rsa-sha2-512", b"rsa-sha2-256"})

    def test_names_for_people(self):
        """What was negotiated can be shown."""
        ssh = self.ssh()
        self.assertTrue(ssh.client.server_version.startswith("SSH-2.0-Twisted"))
        self.assertTrue(ssh.client.algorithms.strict)
        self.assertEqual((ssh.client.algorithms.mac, ssh.client.algorithms.compression), ("", "none"))


class HostKeyTests(SshCase):
    def test_slow_verification(self):
        """While the host key is being looked up nothing is parsed, and everything goes on afterwards."""
        for strict in (True, False):
            with self.subTest(strict=strict):
                trust = TrustAll()
                answers = []
                trust.answer = lambda answers=answers: answers.append(Deferred()) or answers[-1]
                ssh = self.ssh(host_keys=trust, strict_offered=strict)
                self.assertNoResult(ssh.client.ready)
                self.assertNotIn(conch.MSG_NEWKEYS, ssh.server.received)
                answers[0].callback(None)
                ssh.flush()
                self.successResultOf(ssh.client.ready)
                self.assertTrue(self.echoes(ssh))

    def test_refused(self):
        """A refused key ends the connection with the judge's reason, before any user name was sent."""
        trust = TrustAll()
        trust.answer = lambda: fail(HostKeyRefused("it changed"))
        ssh = self.ssh(host_keys=trust)
        self.assertEqual(self.reason(ssh, HostKeyRefused), "it changed")
        self.assertEqual(ssh.server.received, [conch.MSG_KEXINIT, 30, conch.MSG_DISCONNECT])
        self.assertEqual(ssh.server.disconnects, [(conch.DISCONNECT_HOST_KEY_NOT_VERIFIABLE, b"it changed")])

    def test_broken_judge(self):
        """A judge that fails in an unforeseen way is logged, and trusts nobody."""
        trust = TrustAll()
        trust.answer = lambda: fail(ZeroDivisionError())
        ssh = self.ssh(host_keys=trust)
        self.assertIn("could not be verified", self.reason(ssh, HostKeyRefused))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_stolen_key(self):
        """A server that shows a key it does not own is refused, and nobody is asked about the key."""

        def lies(transport, algorithm):
            return host_key("ed25519").public(), other

        other = type(host_key("ed25519"))(host_key_of_somebody_else())
        self.patch(ServerTransport, "_getHostKeys", lies)
        trust = TrustAll()
        ssh = self.ssh(host_keys=trust)
        self.assertIn("signature of its host key is wrong", self.reason(ssh, LinkDown))
        self.assertEqual(trust.asked, [])

    def test_weak_signature(self):
        """An RSA host key that signs with SHA-1 where SHA-2 was agreed on is refused."""
        sign = type(host_key("rsa")).sign
        self.patch(type(host_key("rsa")), "sign", lambda key, data, signatureType: sign(key, data, b"ssh-rsa"))
        ssh = self.ssh(host_keys=TrustAll((b"rsa-sha2-512",)), server_keys=[host_key("rsa")])
        self.assertIn("signature of its host key is wrong", self.reason(ssh, LinkDown))

    def test_another_kind(self):
        """The key shown has to be of the kind agreed on, and the signature too: a plain key is no certificate."""
        key, digest = host_key("ed25519"), b"digest"
        blob, signature = key.public().blob(), key.sign(digest)
        _check_signature(blob, b"ssh-ed25519", signature, digest)
        for algorithm in (b"ssh-ed25519-cert-v01@openssh.com", b"rsa-sha2-512", b"ecdsa-sha2-nistp256"):
            self.assertRaises(WrongSignature, _check_signature, blob, algorithm, signature, digest)
        rsa = host_key("rsa")
        for made, good in ((b"rsa-sha2-512", True), (b"rsa-sha2-256", False), (b"ssh-rsa", False)):
            arguments = (rsa.public().blob(), b"rsa-sha2-512", rsa.sign(digest, made), digest)
            if good:
                _check_signature(*arguments)
            else:
                self.assertRaises(WrongSignature, _check_signature, *arguments)

    def test_damaged_signature(self):
        """Anything that is no signature, or no key, is a wrong signature."""
        key = host_key("ed25519")
        blob, signature = key.public().blob(), key.sign(b"digest")
        for wrong in (b"", b"x", NS(b"ssh-ed25519"), signature[:-1], NS(b"ssh-ed25519") + NS(b"")):
            self.assertRaises(WrongSignature, _check_signature, blob, b"ssh-ed25519", wrong, b"digest")
            self.assertRaises(WrongSignature, _check_signature, wrong, b"ssh-ed25519", signature, b"digest")

    def test_lost_while_verifying(self):
        """A connection lost during the verification is only that, whatever the judge says later."""
        trust = TrustAll()
        pending = Deferred()
        trust.answer = lambda: pending
        ssh = self.ssh(host_keys=trust)
        ssh.lose()
        self.assertIn("was lost", self.reason(ssh, LinkDown))
        pending.callback(None)


class VersionTests(SynchronousTestCase):
    def test_banner(self):
        """Lines in front of the version are skipped, wherever the bytes are cut."""
        client, wire = bare_client()
        for byte in b"Welcome!\r\nAuthorised use only.\nSSH-2.0-Some_1.0 comment\n":
            client.dataReceived(bytes((byte,)))
        self.assertEqual(client.server_version, "SSH-2.0-Some_1.0 comment")
        self.assertFalse(wire.disconnecting)

    def test_ours(self):
        """Our version is a line of its own, and KEXINIT follows without waiting."""
        _, wire = bare_client()
        self.assertRegex(wire.value(), rb"^SSH-2\.0-rda_[0-9.]+\r\n\0\0")

    def test_refused(self):
        """Version 1, a line that is too long, and endless other text end the connection with a reason."""
        cases = {
            b"SSH-1.5-old\n": "unsupported version SSH-1.5-old",
            b"SSH-2.0-" + b"x" * 300 + b"\n": "unsupported version",
            b"HTTP/1.1 400 Bad Request\r\n" * 3000: "no SSH version",
            b"x" * 70_000: "no SSH version",
        }
        for data, text in cases.items():
            with self.subTest(text=text):
                client, wire = bare_client()
                client.dataReceived(data)
                self.assertTrue(wire.disconnecting)
                client.connectionLost()
                self.assertIn(text, str(self.failureResultOf(client.ready, LinkDown).value))

    def test_with_packets(self):
        """What follows the version in the same read is parsed."""
        client, _ = bare_client()
        client.dataReceived(b"SSH-2.0-test\r\n" + kexinit())
        self.assertEqual(client._exchange.agreed.exchange, b"curve25519-sha256")


class CompressionTests(SshCase):
    """Against a peer that is the same code's packet layer: Conch's server has no delayed compression."""

    def test_begins_with_the_connection_service(self):
        """zlib@openssh.com starts in both directions when the connection service does, and again with new keys."""
        client, _ = bare_client(options=Options(compression=True))
        self.assertEqual(client._exchange.proposal.compressions_out, (b"zlib@openssh.com", b"none"))
        client.algorithms = Algorithms("", "", "", "", "zlib@openssh.com", True)
        self.assertIsNone(client._writer._deflate)
        client.setService(client.connection)
        self.assertIsNotNone(client._writer._deflate)
        self.assertIsNotNone(client._reader._inflate)
        client.connectionLost()

    def test_not_offered(self):
        """It is not offered unless asked for."""
        client, _ = bare_client()
        self.assertEqual(client._exchange.proposal.compressions_in, (b"none",))

    def test_refused_by_the_server(self):
        """A server that has none is fine."""
        ssh = self.ssh(options=Options(compression=True))
        self.assertEqual(ssh.client.algorithms.compression, "none")
        self.assertTrue(self.echoes(ssh))


class EndTests(SshCase):
    def test_lost(self):
        """A lost connection says so to everybody, with the same reason."""
        ssh = self.ssh()
        ssh.lose()
        reason = self.successResultOf(ssh.client.lost)
        self.assertIsInstance(reason, LinkDown)
        self.assertFalse(reason.permanent)
        self.assertIs(ssh.client.reason, reason)

    def test_lost_before_the_login(self):
        """A connection lost during the login fails ready."""
        ssh = self.ssh(authenticate=lambda client, connection: None)
        self.assertNoResult(ssh.client.ready)
        ssh.lose()
        self.assertIn("was lost", self.reason(ssh, LinkDown))

    def test_disconnected_by_the_server(self):
        """The server's own words are passed on, without what could upset a terminal's line."""
        ssh = self.ssh(authenticate=lambda client, connection: None)
        ssh.server.sendDisconnect(conch.DISCONNECT_TOO_MANY_CONNECTIONS, b"Too many \xff users")
        ssh.flush()
        self.assertIn("ended the connection: Too many \ufffd users", self.reason(ssh, LinkDown))

    def test_failed_login(self):
        """What the login says is what ready fails with, and the server is told."""
        ssh = self.ssh(authenticate=lambda client, connection: client.fail(LoginFailed("no key fits")))
        self.assertEqual(self.reason(ssh, LoginFailed), "no key fits")
        self.assertEqual(ssh.server.disconnects, [(conch.DISCONNECT_BY_APPLICATION, b"no key fits")])

    def test_closed(self):
        """Closing tells the server, and everything that is open ends."""
        ssh = self.ssh(remote=Remote(sockets={"/s": Factory.forProtocol(Echo)}))
        protocol = self.open(ssh)
        ssh.client.loseConnection()
        ssh.flush()
        self.assertEqual(len(protocol.reasons), 1)
        self.assertEqual(len(ssh.server.disconnects), 1)

    def test_cancelled(self):
        """Cancelling ready gives the connection up."""
        ssh = self.ssh(authenticate=lambda client, connection: None)
        ssh.client.ready.cancel()
        self.failureResultOf(ssh.client.ready, CancelledError)
        ssh.flush()
        self.assertTrue(ssh.client_io.disconnected)

    def test_cancelled_before_it_began(self):
        """Cancelling before there is a connection closes that as soon as it is there."""
        client = ClientTransport(TrustAll(), password_login, Clock())
        client.ready.cancel()
        self.failureResultOf(client.ready, CancelledError)
        wire = QuietTransport()
        client.makeConnection(wire)
        self.assertEqual((wire.disconnecting, wire.value()), (True, b""))
        client.connectionLost()

    def test_slow_login(self):
        """A login that takes too long is given up, without waiting for the server to agree."""
        clock = Clock()
        client, wire = bare_client(clock)
        clock.advance(HANDSHAKE_SECONDS)
        self.assertTrue(wire.aborted)
        client.connectionLost()
        self.assertIn("took too long to log in", str(self.failureResultOf(client.ready, LinkDown).value))
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_slow_end(self):
        """A peer that does not take our last words is cut off."""
        clock = Clock()
        client, wire = bare_client(clock)
        client.loseConnection()
        self.assertTrue(wire.disconnecting)
        self.assertFalse(wire.aborted)
        clock.advance(CLOSE_SECONDS)
        self.assertTrue(wire.aborted)
        client.connectionLost()
        self.failureResultOf(client.ready, LinkDown)

    def test_nothing_after_the_end(self):
        """What comes after the end is not looked at, and nothing more is sent."""
        client, wire = exchange_with(kexinit(), packet(94, b""))
        wire.clear()
        client.dataReceived(kexinit())
        client.sendPacket(2, NS(b""))
        self.assertEqual(wire.value(), b"")
        self.failureResultOf(client.ready, LinkDown)

    def test_server_end_noticed(self):
        """The reason names the host and port, and says when no SSH server has answered there at all."""
        from twisted.internet.address import IPv4Address, IPv6Address

        for address, shown in (
            (IPv4Address("TCP", "192.0.2.1", 22), "192.0.2.1:22"),
            (IPv6Address("TCP", "2001:db8::1", 22), "[2001:db8::1]:22"),
        ):
            client = ClientTransport(TrustAll(), password_login, Clock())
            client.makeConnection(StringTransport(peerAddress=address))
            client.connectionLost()
            reason = str(self.failureResultOf(client.ready, LinkDown).value)
            self.assertIn(f"to {shown} was lost", reason)
            self.assertIn("before any SSH server answered. Does sshd run there", reason)


class PingTests(SshCase):
    def test_round_trip(self):
        """Any answer counts, and its time is measured."""
        for answers in (False, True):
            ssh = self.ssh(remote=Remote(answers_pings=answers))
            answered = ssh.client.ping()
            ssh.clock.advance(0.25)
            ssh.flush()
            self.assertEqual(self.successResultOf(answered), 0.25)
            self.assertEqual(ssh.remote.global_requests, [b"keepalive@openssh.com"])

    def test_order(self):
        """Several questions get their answers in order."""
        ssh = self.ssh()
        first = ssh.client.ping()
        ssh.clock.advance(1)
        second = ssh.client.ping()
        ssh.clock.advance(1)
        ssh.flush()
        self.assertEqual((self.successResultOf(first), self.successResultOf(second)), (2, 1))

    def test_during_rekey(self):
        """A question during a key exchange is asked after it."""
        ssh = self.ssh()
        ssh.client.sendKexInit()
        answered = ssh.client.ping()
        ssh.flush()
        self.assertEqual(self.successResultOf(answered), 0)

    def test_lost(self):
        """A question that is never answered fails with the connection, and one asked afterwards at once."""
        ssh = self.ssh(remote=Remote(deaf=True))
        answered = ssh.client.ping()
        ssh.flush()
        self.assertNoResult(answered)
        ssh.lose()
        self.failureResultOf(answered, LinkDown)
        self.failureResultOf(ssh.client.ping(), LinkDown)

    def test_bounded(self):
        """Questions to a server that does not answer are bounded."""
        ssh = self.ssh(remote=Remote(deaf=True))
        asked = [ssh.client.ping() for _ in range(20)]
        failed = [deferred for deferred in asked if deferred.called]
        self.assertEqual(len(failed), 4)
        for deferred in failed:
            self.failureResultOf(deferred, LinkDown)
        ssh.lose()
        for deferred in asked[:16]:
            self.failureResultOf(deferred, LinkDown)

    def test_cancelled(self):
        """An answer to a question that nobody waits for any more is taken, and keeps the order."""
        ssh = self.ssh()
        first, second = ssh.client.ping(), ssh.client.ping()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        ssh.flush()
        self.successResultOf(second)


class CongestionTests(SshCase):
    def test_full_socket(self):
        """While the socket is full, data waits in its channel; afterwards it goes on in order."""
        ssh = self.ssh(remote=Remote(sockets={"/s": Factory.forProtocol(Echo)}))
        one, two = self.open(ssh), self.open(ssh)
        ssh.client_io.full()
        seen = len(ssh.server.received)
        for protocol in (one, two):
            protocol.transport.write(b"a" * 50_000)
            protocol.transport.write(b"b")
            protocol.transport.loseWriteConnection()
        ssh.flush()
        self.assertEqual(ssh.server.received[seen:], [])
        ssh.client_io.drained()
        ssh.flush()
        self.assertEqual([one.data, two.data], [b"a" * 50_000 + b"b"] * 2)

    def test_lost_while_full(self):
        """A connection lost with a full socket ends everything all the same."""
        ssh = self.ssh(remote=Remote(sockets={"/s": Factory.forProtocol(Echo)}))
        protocol = self.open(ssh)
        ssh.client_io.full()
        protocol.transport.write(b"a" * 50_000)
        ssh.client.stopProducing()
        ssh.lose()
        self.assertEqual(len(protocol.reasons), 1)

    def test_one_write_for_a_batch(self):
        """All packets that are caused by one read leave with one write."""
        ssh = self.ssh(remote=Remote(sockets={"/s": Factory.forProtocol(Echo)}))
        protocols = [self.open(ssh) for _ in range(5)]
        for protocol in protocols:
            protocol.dataReceived = lambda data, protocol=protocol: protocol.transport.write(b"again")
        for channel in ssh.remote.channels:
            channel.write(b"hello")
        data = ssh.server_io.getOutBuffer()
        ssh.client_io.getOutBuffer()
        ssh.client.dataReceived(data)
        self.assertEqual(len(ssh.client_io.stream), 1)


class JumpTests(SshCase):
    def test_over_a_channel(self):
        """A transport runs over a channel of another one, with back-pressure, and ends with it."""
        from tests.ssh_server import ServerFactory

        inner_remote = Remote(sockets={"/s": Factory.forProtocol(Echo)})
        outer = self.ssh(remote=Remote(clock=inner_remote.clock))
        outer.remote.ports["inner", 22] = ServerFactory(inner_remote)
        from rda.ssh.channels import direct_tcp

        inner = ClientTransport(TrustAll(), password_login, outer.clock)
        opened = direct_tcp(outer.connection, "inner", 22).connect(Factory.forProtocol(lambda: inner))
        outer.flush()
        self.assertIs(self.successResultOf(opened), inner)
        connection = self.successResultOf(inner.ready)
        stream = streamlocal(connection, "/s").connect(Factory.forProtocol(Collector))
        outer.flush()
        protocol = self.successResultOf(stream)
        data = bytes(range(256)) * 40_000
        protocol.transport.write(data)
        outer.flush()
        self.assertEqual(protocol.data, data)
        self.assertIn("inner:22", str(inner.reason))
        outer.lose()
        self.assertEqual(len(protocol.reasons), 1)
        self.successResultOf(inner.lost)


#: What a server may say when it means harm, or is broken.
MESSAGES = st.tuples(
    st.one_of(st.integers(0, 255), st.sampled_from([1, 3, 4, 7, 20, 21, 31, 33, 51, 52, 80, 81, 82, *range(90, 101)])),
    st.one_of(
        st.binary(max_size=60),
        st.builds(lambda number, rest: struct.pack(">L", number) + rest, st.integers(0, 3), st.binary(max_size=40)),
        st.builds(lambda number, data: struct.pack(">L", number) + NS(data), st.integers(0, 3), st.binary(max_size=40)),
    ),
)


class HostileTests(SynchronousTestCase):
    @settings(max_examples=150, deadline=None)
    @given(st.lists(MESSAGES, min_size=1, max_size=5))
    def test_messages_after_the_login(self, messages):
        """No message, however malformed, does anything but what it may do, or end the connection with a reason."""
        remote = Remote(sockets={"/s": Factory.forProtocol(Echo)})
        ssh = SshInMemory(remote)
        protocols = []
        for _ in range(2):
            streamlocal(ssh.connection, "/s").connect(Factory.forProtocol(Collector)).addCallbacks(
                protocols.append, lambda failure: None
            )
        ssh.flush()
        streamlocal(ssh.connection, "/s").connect(Factory.forProtocol(Collector)).addErrback(lambda failure: None)
        for number, payload in messages:
            # As the server's own code would: encrypted, numbered, valid.
            ssh.server_io.write(
                ssh.server.currentEncryptions.seal(ssh.server.outgoingPacketSequence, bytes((number,)) + payload)
            )
            ssh.server.outgoingPacketSequence += 1
        ssh.client.dataReceived(ssh.server_io.getOutBuffer())
        ended = ssh.client_io.disconnecting
        ssh.client.connectionLost()
        reason = self.successResultOf(ssh.client.lost)
        self.assertIsInstance(reason, LinkDown)
        self.assertEqual(ended, "was lost" not in str(reason))
        self.assertEqual([len(protocol.reasons) for protocol in protocols], [1, 1])
        self.assertEqual(ssh.connection.channels, {})
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(ssh.client._timers, {})

    @settings(max_examples=150, deadline=None)
    @given(st.lists(MESSAGES, min_size=1, max_size=4), st.booleans())
    def test_messages_before_the_keys(self, messages, answered):
        """The same holds for messages before there are keys."""
        client, _ = bare_client()
        client.dataReceived(b"SSH-2.0-test\r\n" + (kexinit() if answered else b""))
        for number, payload in messages:
            client.dataReceived(packet(number, payload))
        client.connectionLost()
        self.failureResultOf(client.ready, LinkDown, LoginFailed)
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(client._timers, {})

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.binary(max_size=200), max_size=5), st.booleans())
    def test_noise(self, pieces, version):
        """The same holds for bytes that are no messages."""
        client, _ = bare_client()
        if version:
            client.dataReceived(b"SSH-2.0-test\r\n")
        for piece in pieces:
            client.dataReceived(piece)
        client.connectionLost()
        self.failureResultOf(client.ready, LinkDown)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_unknown_messages(self):
        """A message that nobody knows is answered with its number, and does not end the connection."""
        ssh = SshInMemory()
        said = []
        ssh.server.receiveUnimplemented = said.append
        number = ssh.client._reader.sequence
        ssh.server.sendPacket(192, b"what is this?")
        ssh.server.sendPacket(101, b"and this?")
        ssh.flush()
        self.assertEqual(said, [number, number + 1])
        ssh.lose()

    def test_connection_service_alone(self):
        """A connection service that never started fails what it is asked for."""
        self.failureResultOf(Connection().ping(), LinkDown)
