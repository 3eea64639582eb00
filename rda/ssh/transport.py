"""The SSH transport that everything of rda's goes through (RFC 4253): fast, strict and typed.

:class:`ClientTransport` is a Conch client transport as far as Conch's services can tell (``sendPacket``,
``requestService``, ``setService``, ``sessionID``, …), so that user authentication can be Conch's. The packet layer and
the key exchange are rda's own: :mod:`rda.ssh.packets`, :mod:`rda.ssh.ciphers` and :mod:`rda.ssh.kex` are pure,
:mod:`rda.ssh.packet_transport` gives them a network, and this module an order of events::

    version ─▶ KEXINIT ─▶ key exchange ─▶ host key verified ─▶ NEWKEYS ─▶ authenticate() ─▶ ready fires
                 ▲                                                │
                 └──── again after so many bytes or seconds ◀─────┘

What differs from Conch, and why:

* Incoming and outgoing keys change separately, at the two NEWKEYS, as the RFC says. While the host key is being
  verified nothing more is parsed, so a slow verification cannot mix up the keys.
* Nothing is ignored during the first key exchange of a strict server (CVE-2023-48795).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from twisted.conch.ssh import transport as conch
from twisted.conch.ssh.common import getNS
from twisted.conch.ssh.service import SSHService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from rda.errors import HostKeyRefused, LoginFailed, RdaError
from rda.ssh import kex
from rda.ssh.channels import Connection
from rda.ssh.ciphers import Opener
from rda.ssh.exchange import ClientExchange, OutOfOrder, Stage, WrongSignature
from rda.ssh.keys import fingerprint
from rda.ssh.options import Algorithms, HostKeys, Options
from rda.ssh.packet_transport import PacketTransport, ProtocolError

__all__ = ["Algorithms", "ClientTransport", "HostKeys", "Options"]

#: Seconds that a later key exchange may take before the connection is given up.
REKEY_TIMEOUT = 60.0

_UINT32 = struct.Struct(">L")

#: What a peer may send between its KEXINIT and its NEWKEYS: not even that is accepted from a strict server at first.
_TRANSPORT_NOISE = frozenset((conch.MSG_DISCONNECT, conch.MSG_IGNORE, conch.MSG_UNIMPLEMENTED, conch.MSG_DEBUG))
_EXCHANGE_ONLY = frozenset((conch.MSG_DISCONNECT, conch.MSG_KEXINIT, conch.MSG_NEWKEYS, conch.MSG_KEXDH_REPLY))


class ClientTransport(PacketTransport):
    """The client's side of one SSH connection, over any transport; see :class:`PacketTransport` for more of it.

    :param host_keys: which host keys to ask for, and the judge of the one that comes.
    :param authenticate: called once with this transport and the connection service when the server has been verified;
        it requests the user authentication service, which in the end starts the connection service.
    :param clock: for timeouts, periodic rekeying and round trips.
    :ivar algorithms: what was negotiated last, None before.
    :ivar server_sig_algs: the signature algorithms that the server takes from users (RFC 8308, section 3.1), None when
        it does not say. There before user authentication starts.
    """

    _log = Logger()

    def __init__(
        self,
        host_keys: HostKeys,
        authenticate: Callable[[ClientTransport, Connection], None],
        clock: IReactorTime,
        options: Options | None = None,
        connection: Connection | None = None,
    ) -> None:
        super().__init__(clock, options, connection)
        self._host_keys = host_keys
        self._authenticate = authenticate
        self.algorithms: Algorithms | None = None
        self.server_sig_algs: frozenset[bytes] | None = None
        self._strict = False
        self._exchange: ClientExchange | None = None  # from our KEXINIT to the server's NEWKEYS
        self._next_opener: Opener | None = None
        self._host_key_algorithms: tuple[bytes, ...] = ()
        self._trusted_key = b""
        self._compressing = False

    # -- what may come

    def dispatchMessage(self, messageNum: int, payload: bytes) -> None:
        """See :meth:`PacketTransport.dispatchMessage`."""
        try:
            super().dispatchMessage(messageNum, payload)
        except (kex.Malformed, OutOfOrder, WrongSignature) as error:
            raise ProtocolError(str(error), conch.DISCONNECT_KEY_EXCHANGE_FAILED) from None

    def _check_order(self, number: int) -> None:
        """During a key exchange, refuse what may not come (RFC 4253, section 7.1; OpenSSH's PROTOCOL, section 1.10)."""
        exchanging = self._exchange is not None and self._exchange.stage is not Stage.PROPOSED
        if number in _EXCHANGE_ONLY or (self.algorithms is not None and not exchanging):
            return
        if self.algorithms is None and self._strict:
            raise ProtocolError(f"message {number} during the first key exchange")
        if number not in _TRANSPORT_NOISE:
            raise ProtocolError(f"message {number} during a key exchange")

    # -- key exchange

    def sendKexInit(self) -> None:
        """Begin a key exchange, or answer the server's beginning of one (RFC 4253, section 7.1)."""
        offered = self._options
        if not self._host_key_algorithms:
            self._host_key_algorithms = tuple(self._host_keys.algorithms)
        markers = () if self.sessionID else (kex.EXT_INFO_CLIENT, kex.STRICT_CLIENT)
        compressions = (b"zlib@openssh.com", b"none") if offered.compression else (b"none",)
        proposal = kex.Proposal(
            offered.exchanges + markers,
            self._host_key_algorithms,
            offered.ciphers,
            offered.ciphers,
            offered.macs,
            offered.macs,
            compressions,
            compressions,
        )
        self._exchange = ClientExchange(proposal, self.ourVersionString)
        self.sendPacket(conch.MSG_KEXINIT, self._exchange.message[1:])
        self._blocked = []
        if self.sessionID:
            self._start_timer("exchange", REKEY_TIMEOUT, lambda: self._give_up("took too long to agree on new keys"))

    def _rekey(self) -> None:
        """Begin a key exchange of our own, unless one is under way or it is too early."""
        if self._exchange is None and not self._ended and self.service is self.connection:
            self.sendKexInit()

    def ssh_KEXINIT(self, packet: bytes) -> None:
        """The server's proposal: agree, and send our half of the secret."""
        if self._exchange is None:
            self.sendKexInit()
        assert self._exchange is not None
        self._exchange.their_version = self.otherVersionString
        try:
            half = self._exchange.receive_proposal(packet)
        except kex.Disagreement as error:
            # A person has to change something on one of the two sides: trying again would not.
            reason = LoginFailed(f"rda cannot talk to the SSH server at {self._peer()}: {error}.")
            self.fail(reason, conch.DISCONNECT_KEY_EXCHANGE_FAILED)
            return
        if self.sessionID is None:
            self._strict = kex.STRICT_SERVER in self._exchange.theirs.exchanges
            if self._strict and self._reader.sequence != 1:
                raise ProtocolError("a message before the first KEXINIT")
        self.sendPacket(conch.MSG_KEXDH_INIT, half)

    def ssh_KEX_DH_GEX_GROUP(self, packet: bytes) -> None:
        """The server's half, for every method that is offered: message 31 is only *named* after another one."""
        exchange = self._exchange
        if exchange is None:
            raise ProtocolError("a key exchange reply outside of a key exchange")
        if exchange.receive_reply(packet):
            self._verify_host(exchange)

    def ssh_KEX_DH_GEX_REPLY(self, packet: bytes) -> None:
        """Group exchange is not offered."""
        raise ProtocolError("a group exchange reply that nobody waits for")

    def _verify_host(self, exchange: ClientExchange) -> None:
        """Ask whether this key is to be trusted; meanwhile nothing is parsed, and the socket is not read."""
        if self.sessionID is not None:
            if exchange.host_key != self._trusted_key:
                raise ProtocolError("another host key in the middle of the connection")
            self._use_keys(exchange)
            return
        self._held = True
        self.transport.pauseProducing()

        def trusted(_: None) -> None:
            if self._ended:
                return
            self._held = False
            self._trusted_key = exchange.host_key
            self._use_keys(exchange)
            self.transport.resumeProducing()
            self.dataReceived(b"")

        def refused(failure: Failure) -> None:
            if failure.check(RdaError):
                reason: RdaError = failure.value  # type: ignore[assignment]
            else:
                self._log.failure("the host key could not be verified", failure)
                reason = HostKeyRefused(f"The host key of {self._peer()} could not be verified: an internal error.")
            # Closing needs the socket to be read: that is how the peer's end is noticed.
            self.transport.resumeProducing()
            self.fail(reason, conch.DISCONNECT_HOST_KEY_NOT_VERIFIABLE)

        verified = self._host_keys.verify(exchange.host_key, fingerprint(exchange.host_key))
        verified.addCallbacks(trusted, refused)
        verified.addErrback(lambda failure: self._log.failure("after the key exchange", failure))

    def _use_keys(self, exchange: ClientExchange) -> None:
        """Send NEWKEYS, and from there on use the new keys; the other direction follows with the server's NEWKEYS."""
        if self.sessionID is None:
            self.sessionID = exchange.digest
        sealer, self._next_opener = exchange.protections(self.sessionID)
        self.sendPacket(conch.MSG_NEWKEYS, b"")
        self._writer.change_keys(sealer, self._strict)
        if self._compressing:
            self._writer.compressed(exchange.agreed.compression_out != b"none")
        blocked, self._blocked = self._blocked, None
        for number, payload in blocked or ():
            self.sendPacket(number, payload)
        self._let_channels_send()

    def ssh_NEWKEYS(self, packet: bytes) -> None:
        """From here on the server uses the new keys."""
        exchange, opener = self._exchange, self._next_opener
        if exchange is None or opener is None or packet:
            raise ProtocolError("NEWKEYS at a wrong time")
        self._exchange = self._next_opener = None
        self._reader.change_keys(opener, self._strict)
        if self._compressing:
            self._reader.compressed(exchange.agreed.compression_in != b"none")
        first = self.algorithms is None
        self.algorithms = Algorithms.of(exchange.agreed, self._strict)
        self._stop_timer("exchange")
        self._start_timer("rekey", self._options.rekey_seconds, self._rekey)
        if first:
            self._authenticate(self, self.connection)

    # -- services

    def setService(self, service: SSHService) -> None:
        """Start a service. The connection service is started by the end of the login, which also starts compression."""
        starts = service is self.connection and self.service is not service
        if starts:
            # OpenSSH's delayed compression: not before somebody is who they say they are.
            self._compressing = True
            compression = self.algorithms is not None and self.algorithms.compression != "none"
            self._writer.compressed(compression)
            self._reader.compressed(compression)
        if self.service is not None:
            self.service.serviceStopped()
        self.service = service
        service.transport = self
        service.serviceStarted()
        if starts and not self._is_ready:
            self._is_ready = True
            self._stop_timer("handshake")
            self.ready.callback(self.connection)

    def ssh_SERVICE_ACCEPT(self, packet: bytes) -> None:
        """The server starts the service that was asked for."""
        wanted = getattr(self, "instance", None)
        if wanted is None or (packet and getNS(packet)[0] != wanted.name):
            raise ProtocolError("a service was accepted that nobody asked for")
        del self.instance
        self.setService(wanted)

    def ssh_EXT_INFO(self, packet: bytes) -> None:
        """What else the server can do (RFC 8308); ``server-sig-algs`` is what matters, and all that is kept."""
        (count,) = _UINT32.unpack_from(packet)
        rest = packet[4:]
        for _ in range(count):
            name, value, rest = getNS(rest, 2)
            if name == b"server-sig-algs":
                self.server_sig_algs = frozenset(value.split(b","))

    def isEncrypted(self, direction: str = "out") -> bool:
        """Whether the connection is encrypted: Conch's user authentication asks before it sends a password."""
        return self.algorithms is not None

    isVerified = isEncrypted

    def ping(self) -> Deferred[float]:
        """Ask the server for a sign of life (``keepalive@openssh.com``).

        :returns: fires with the round trip in seconds, whatever the answer was; fails with the reason when the
            connection is lost first.
        """
        return self.connection.ping()
