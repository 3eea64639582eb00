"""An SSH server in memory, to test rda's client against: Conch's own, extended by what OpenSSH has and Conch has not.

The packet protection here (:class:`ServerCiphers`) is written independently of :mod:`rda.ssh.ciphers`, in the plainest
way, so that the two check each other.

A test usually wants::

    remote = Remote()                       # what the server has: sockets, ports, commands, users
    remote.sockets["/run/docker.sock"] = Factory.forProtocol(Echo)
    link = SshInMemory(remote)              # client and server over iosim, logged in
    endpoint = streamlocal(link.connection, "/run/docker.sock")

On the server side a socket, a port, a command or a subsystem is a Twisted protocol factory; the protocol's transport is
a :class:`ServerChannel`, which has ``exit(status)`` for commands.
"""

from __future__ import annotations

import functools
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.poly1305 import Poly1305
from twisted.conch.avatar import ConchUser
from twisted.conch.checkers import InMemorySSHKeyDB, SSHPublicKeyChecker
from twisted.conch.error import ConchError
from twisted.conch.ssh import connection, keys, transport, userauth
from twisted.conch.ssh.channel import SSHChannel
from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.factory import SSHFactory
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocolFactory
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump

from rda.ssh.channels import Connection
from rda.ssh.transport import ClientTransport, Options

STRICT_CLIENT = b"kex-strict-c-v00@openssh.com"
STRICT_SERVER = b"kex-strict-s-v00@openssh.com"

GCM = {b"aes128-gcm@openssh.com": 16, b"aes256-gcm@openssh.com": 32}
CHACHA = b"chacha20-poly1305@openssh.com"
ETM = {b"hmac-sha2-256-etm@openssh.com": "sha256", b"hmac-sha2-512-etm@openssh.com": "sha512"}

#: A window as small as Conch's own would hide what happens with OpenSSH's.
SERVER_WINDOW = 2 << 20

USER, PASSWORD = b"tester", b"open sesame"


@functools.cache
def host_key(kind: str = "ed25519") -> keys.Key:
    """A host key, made once for the whole run."""
    if kind == "ed25519":
        return keys.Key(ed25519.Ed25519PrivateKey.generate())
    if kind == "rsa":
        return keys.Key(rsa.generate_private_key(65537, 2048))
    return keys.Key(ec.generate_private_key(ec.SECP256R1()))


class ServerCiphers(transport.SSHCiphers):
    """Conch's ciphers, and GCM, chacha20-poly1305 and EtM MACs."""

    macMap = {
        **transport.SSHCiphers.macMap,
        **{name: transport.SSHCiphers.macMap[name[:13]] for name in ETM},
    }

    def setKeys(self, outIV, outKey, inIV, inKey, outInteg, inInteg):
        self.keys = {"out": (outIV, outKey, outInteg), "in": (inIV, inKey, inInteg)}
        self.counters = {"out": int.from_bytes(outIV[4:12], "big"), "in": int.from_bytes(inIV[4:12], "big")}
        if self.outCipType in GCM or self.outCipType == CHACHA:
            self.encBlockSize = 16
            return
        super().setKeys(outIV, outKey, inIV, inKey, outInteg, inInteg)

    @property
    def modern(self):
        return self.outCipType in GCM or self.outCipType == CHACHA or self.outMACType in ETM

    def _gcm(self, way, name):
        iv, key, _ = self.keys[way]
        nonce = iv[:4] + (self.counters[way] % (1 << 64)).to_bytes(8, "big")
        self.counters[way] += 1
        return AESGCM(key[: GCM[name]]), nonce

    def _chacha(self, way, sequence):
        key = self.keys[way][1]
        nonce = struct.pack(">Q", sequence)
        start = (0).to_bytes(8, "little")
        lengths = Cipher(algorithms.ChaCha20(key[32:64], start + nonce), None).encryptor()
        poly_key = Cipher(algorithms.ChaCha20(key[:32], start + nonce), None).encryptor().update(bytes(32))
        body = Cipher(algorithms.ChaCha20(key[:32], (1).to_bytes(8, "little") + nonce), None).encryptor()
        return lengths, poly_key, body

    def _etm(self, way, sequence, data):
        name = self.outMACType if way == "out" else self.inMACType
        size = {"sha256": 32, "sha512": 64}[ETM[name]]
        return hmac.digest(self.keys[way][2][:size], struct.pack(">L", sequence) + data, ETM[name])

    def seal(self, sequence, payload):
        block = 8 if self.outCipType == CHACHA else 16
        padding = block - (len(payload) + 1) % block
        padding += block if padding < 4 else 0
        body = bytes((padding,)) + payload + bytes(padding)
        length = struct.pack(">L", len(body))
        if self.outCipType in GCM:
            cipher, nonce = self._gcm("out", self.outCipType)
            return length + cipher.encrypt(nonce, body, length)
        if self.outCipType == CHACHA:
            lengths, poly_key, stream = self._chacha("out", sequence)
            data = lengths.update(length) + stream.update(body)
            return data + Poly1305.generate_tag(poly_key, data)
        data = length + self.encrypt(body)
        return data + self._etm("out", sequence, data)

    def unseal(self, sequence, data):
        """The payload of the first packet of ``data`` and what follows, or None when it is not whole."""
        if len(data) < 4:
            return None
        tail = 16
        head = data[:4]
        if self.inCipType == CHACHA:
            lengths, poly_key, stream = self._chacha("in", sequence)
            head = lengths.update(head)
        elif self.inCipType not in GCM:
            tail = {"sha256": 32, "sha512": 64}[ETM[self.inMACType]]
        end = 4 + struct.unpack(">L", head)[0] + tail
        if len(data) < end:
            return None
        sealed, tag = data[4 : end - tail], data[end - tail : end]
        if self.inCipType in GCM:
            cipher, nonce = self._gcm("in", self.inCipType)
            body = cipher.decrypt(nonce, sealed + tag, data[:4])
        elif self.inCipType == CHACHA:
            Poly1305.verify_tag(poly_key, data[: end - tail], tag)
            body = stream.update(sealed)
        else:
            assert hmac.compare_digest(self._etm("in", sequence, data[: end - tail]), tag)
            body = self.decrypt(sealed)
        return body[1 : len(body) - body[0]], data[end:]


class ServerTransport(transport.SSHServerTransport):
    """Conch's server transport with strict key exchange and the ciphers above.

    :ivar strict_offered: announce strict key exchange.
    :ivar received: the numbers of the messages the client sent.
    """

    supportedCiphers = [*GCM, CHACHA, b"aes128-ctr", b"aes192-ctr", b"aes256-ctr"]
    supportedMACs = [*ETM, b"hmac-sha2-256", b"hmac-sha2-512"]
    supportedCompressions = [b"none"]
    strict_offered = True
    strict = False

    def connectionMade(self):
        self.received: list[int] = []
        self.disconnects: list[tuple[int, bytes]] = []
        if self.strict_offered:
            self.supportedKeyExchanges = [*self.supportedKeyExchanges, STRICT_SERVER]
        super().connectionMade()

    def ssh_KEXINIT(self, packet):
        theirs = getNS(packet[16:])[0].split(b",")
        if self.sessionID is None:
            self.strict = self.strict_offered and STRICT_CLIENT in theirs
            self.client_exchanges = theirs
        # The check for a common MAC is Conch's; it does not know that some ciphers need none.
        super().ssh_KEXINIT(packet)
        agreed = self.nextEncryptions
        self.nextEncryptions = ServerCiphers(agreed.outCipType, agreed.inCipType, agreed.outMACType, agreed.inMACType)

    def _keySetup(self, sharedSecret, exchangeHash):
        super()._keySetup(sharedSecret, exchangeHash)
        if self.strict:
            self.outgoingPacketSequence = 0

    def ssh_NEWKEYS(self, packet):
        if self.strict:
            self.incomingPacketSequence = 0
        super().ssh_NEWKEYS(packet)

    def sendPacket(self, messageType, payload):
        ciphers = self.currentEncryptions
        if not isinstance(ciphers, ServerCiphers) or not ciphers.modern:
            super().sendPacket(messageType, payload)
            return
        if self._keyExchangeState != self._KEY_EXCHANGE_NONE and not self._allowedKeyExchangeMessageType(messageType):
            self._blockedByKeyExchange.append((messageType, payload))
            return
        self.transport.write(ciphers.seal(self.outgoingPacketSequence, bytes((messageType,)) + payload))
        self.outgoingPacketSequence += 1

    def getPacket(self):
        ciphers = self.currentEncryptions
        if not isinstance(ciphers, ServerCiphers) or not ciphers.modern:
            return super().getPacket()
        found = ciphers.unseal(self.incomingPacketSequence, self.buf)
        if found is None:
            return None
        payload, self.buf = found
        self.incomingPacketSequence += 1
        return payload

    def dispatchMessage(self, messageNum, payload):
        self.received.append(messageNum)
        super().dispatchMessage(messageNum, payload)

    def receiveError(self, reasonCode, description):
        self.disconnects.append((reasonCode, description))


class ServerChannel(SSHChannel):
    """A channel of the server, as the transport of one of the test's protocols."""

    def __init__(self, factory, **keywords):
        super().__init__(localWindow=SERVER_WINDOW, **keywords)
        self.factory = factory
        self.protocol = None
        self.requests: list[tuple[bytes, bytes]] = []

    def channelOpen(self, specificData):
        if self.factory is not None:
            self.start(self.factory)

    def start(self, factory):
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self)

    def request_exec(self, data):
        return self._run(self.avatar.remote.commands, getNS(data)[0])

    def request_subsystem(self, data):
        return self._run(self.avatar.remote.subsystems, getNS(data)[0])

    def _run(self, table, name):
        factory = table.get(name)
        if factory is None:
            return False
        # The answer to the request comes before what the command prints.
        self.avatar.remote.clock.callLater(0, self.start, factory)
        return True

    def dataReceived(self, data):
        self.protocol.dataReceived(data)

    def eofReceived(self):
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.readConnectionLost()
        elif self.protocol is not None:
            self.loseConnection()

    def loseWriteConnection(self):
        self.conn.sendEOF(self)

    def closeReceived(self):
        self.loseConnection()

    def exit(self, status):
        self.conn.sendRequest(self, b"exit-status", struct.pack(">L", status))
        self.loseConnection()

    def exit_by_signal(self, name):
        self.conn.sendRequest(self, b"exit-signal", NS(name) + b"\0" + NS(b"") + NS(b""))
        self.loseConnection()

    def closed(self):
        if self.protocol is not None:
            protocol, self.protocol = self.protocol, None
            protocol.connectionLost(Failure(ConchError("closed")))


class ServerConnection(connection.SSHConnection):
    """The server's connection service; global requests are remembered."""

    # Conch logs every refused channel with its traceback.
    _log = Logger(observer=lambda event: None)

    def gotGlobalRequest(self, requestType, data):
        self.transport.factory.remote.global_requests.append(requestType)
        return self.transport.factory.remote.answers_pings

    def packetReceived(self, messageNum, packet):
        if messageNum == connection.MSG_GLOBAL_REQUEST and self.transport.factory.remote.deaf:
            return None
        return super().packetReceived(messageNum, packet)


class _User(ConchUser):
    def __init__(self, remote):
        super().__init__()
        self.remote = remote

    def lookupChannel(self, channelType, windowSize, maxPacket, data):
        keywords = {"remoteWindow": windowSize, "remoteMaxPacket": maxPacket, "avatar": self}
        remote = self.remote
        remote.opened.append((channelType, data))
        if channelType == b"session":
            if remote.sessions_left == 0:
                raise ConchError("open failed", connection.OPEN_CONNECT_FAILED)
            channel = ServerChannel(None, **keywords)
        elif channelType == b"direct-streamlocal@openssh.com":
            factory = remote.sockets.get(getNS(data)[0].decode()) if remote.streamlocal_allowed else None
            if factory is None:
                raise ConchError("open failed", connection.OPEN_CONNECT_FAILED)
            channel = ServerChannel(factory, **keywords)
        elif channelType == b"direct-tcpip":
            host, rest = getNS(data)
            address = (host.decode(), struct.unpack(">L", rest[:4])[0])
            if not remote.tcp_allowed:
                raise ConchError("open failed", connection.OPEN_ADMINISTRATIVELY_PROHIBITED)
            if address not in remote.ports:
                raise ConchError("Connection refused", connection.OPEN_CONNECT_FAILED)
            channel = ServerChannel(remote.ports[address], **keywords)
        else:
            raise ConchError("unknown channel", connection.OPEN_UNKNOWN_CHANNEL_TYPE)
        remote.channels.append(channel)
        return channel


@dataclass
class Remote:
    """What the server has and allows.

    :ivar sockets: UNIX-domain sockets by path.
    :ivar ports: TCP ports by host and number.
    :ivar commands: by the exact command line.
    :ivar user_keys: public keys that may log in as :data:`USER`, who also has :data:`PASSWORD`.
    :ivar deaf: global requests get no answer (a dead peer, as far as keepalives can tell).
    :ivar channels: the server's side of every channel opened so far.
    :ivar opened: what was asked for: channel types and their data.
    :ivar connections: the server's transports so far.
    """

    clock: Clock = field(default_factory=Clock)
    sockets: dict[str, IProtocolFactory] = field(default_factory=dict)
    ports: dict[tuple[str, int], IProtocolFactory] = field(default_factory=dict)
    commands: dict[bytes, IProtocolFactory] = field(default_factory=dict)
    subsystems: dict[bytes, IProtocolFactory] = field(default_factory=dict)
    user_keys: list[keys.Key] = field(default_factory=list)
    streamlocal_allowed: bool = True
    tcp_allowed: bool = True
    sessions_left: int = -1
    deaf: bool = False
    answers_pings: bool = False
    global_requests: list[bytes] = field(default_factory=list)
    channels: list[ServerChannel] = field(default_factory=list)
    opened: list[tuple[bytes, bytes]] = field(default_factory=list)
    connections: list[ServerTransport] = field(default_factory=list)


class ServerFactory(SSHFactory):
    """Makes :class:`ServerTransport` instances for a :class:`Remote`.

    :param attributes: set on every transport made: ``supportedCiphers``, ``strict_offered``, ….
    """

    def __init__(self, remote: Remote, host_keys: list[keys.Key] | None = None, **attributes: object) -> None:
        self.remote = remote
        self.attributes = attributes
        host_keys = host_keys or [host_key()]
        self.publicKeys = {key.sshType(): key.public() for key in host_keys}
        self.privateKeys = {key.sshType(): key for key in host_keys}
        self.portal = Portal(self)
        passwords = InMemoryUsernamePasswordDatabaseDontUse()
        passwords.addUser(USER, PASSWORD)
        self.portal.registerChecker(passwords)
        self.portal.registerChecker(SSHPublicKeyChecker(InMemorySSHKeyDB({USER: remote.user_keys})))

    def requestAvatar(self, avatarId, mind, *interfaces):
        return interfaces[0], _User(self.remote), lambda: None

    def buildProtocol(self, addr):
        server = ServerTransport()
        server.factory = self
        server.supportedPublicKeys = [
            name
            for kind in self.privateKeys
            for name in ((b"rsa-sha2-512", b"rsa-sha2-256") if kind == b"ssh-rsa" else (kind,))
        ]
        for name, value in self.attributes.items():
            setattr(server, name, value)
        self.remote.connections.append(server)
        return server

    def getService(self, transport, service):
        if service == b"ssh-userauth" and not hasattr(transport, "avatar"):
            return self._authentication
        return ServerConnection if service == b"ssh-connection" else None

    def _authentication(self):
        service = userauth.SSHUserAuthServer()
        service.clock = self.remote.clock
        service.passwordDelay = 0
        return service


class PasswordLogin(userauth.SSHUserAuthClient):
    """The plainest login: these tests are not about authentication."""

    def __init__(self, connection, password=PASSWORD):
        super().__init__(USER, connection)
        self._password = password

    def getPassword(self, prompt=None):
        return succeed(self._password)

    def getPublicKey(self):
        return None


def password_login(client: ClientTransport, connection: Connection) -> None:
    """An ``authenticate`` that logs in as :data:`USER`."""
    client.requestService(PasswordLogin(connection))


class TrustAll:
    """Host keys of any kind; :ivar asked: the fingerprints it was asked about. :ivar answer: made anew for each."""

    def __init__(self, algorithms: tuple[bytes, ...] = (b"ssh-ed25519",)) -> None:
        self.algorithms = algorithms
        self.asked: list[str] = []
        self.answer: Callable[[], Deferred[None]] = lambda: succeed(None)

    def verify(self, blob: bytes, fingerprint: str) -> Deferred[None]:
        self.asked.append(fingerprint)
        return self.answer()


class SlowTransport(FakeTransport):
    """An iosim transport that has a full buffer when told so, as a socket has."""

    def full(self):
        self.producer.pauseProducing()

    def drained(self):
        self.producer.resumeProducing()


class SshInMemory:
    """A client and a server over iosim.

    :ivar client: the :class:`ClientTransport`; :attr:`connection` its service; :attr:`server` the other side.
    :ivar clock: both sides' clock, which stands still unless the test moves it.
    """

    def __init__(
        self,
        remote: Remote | None = None,
        options: Options | None = None,
        host_keys: TrustAll | None = None,
        server_keys: list[keys.Key] | None = None,
        authenticate: Callable[[ClientTransport, Connection], None] = password_login,
        greet: bool = True,
        **attributes: object,
    ) -> None:
        self.remote = remote or Remote()
        self.clock = self.remote.clock
        self.host_keys = host_keys or TrustAll()
        self.server = ServerFactory(self.remote, server_keys, **attributes).buildProtocol(None)
        self.client = ClientTransport(self.host_keys, authenticate, self.clock, options)
        self.connection = self.client.connection
        self.client_io = SlowTransport(self.client, isServer=False)
        self.server_io = FakeTransport(self.server, isServer=True)
        self.pump = IOPump(self.client, self.server, self.client_io, self.server_io, False, clock=self.clock)
        self.server.makeConnection(self.server_io)
        self.client.makeConnection(self.client_io)
        if greet:
            self.pump.flush()

    def flush(self) -> None:
        """Let everything happen that needs no time."""
        self.pump.flush()

    def lose(self) -> None:
        """Cut the wire."""
        self.client_io.disconnecting = True
        self.flush()
