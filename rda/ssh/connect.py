"""Opening one SSH connection to a resolved target: through jump hosts, a proxy command, or plain TCP.

Every hop is an SSH connection of its own with its own host key verification and login; the next one runs over a
``direct-tcpip`` channel of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError, TimeoutError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory

from rda.access.remotes import pins_for
from rda.deferreds import Waiters
from rda.errors import LinkDown, LoginFailed, RdaError
from rda.ssh.address_family import in_family
from rda.ssh.channels import direct_tcp
from rda.ssh.host_keys import HostKeys
from rda.ssh.identities import KeyStore
from rda.ssh.keepalive import WatchedTransport
from rda.ssh.known_hosts import HostName
from rda.ssh.login import Login, LoginKeys
from rda.ssh.options import HANDSHAKE_SECONDS, REKEY_BYTES, REKEY_SECONDS, Options
from rda.ssh.proxy_command import ProxyCommandEndpoint
from rda.ssh.sessions import SessionConnection
from rda.ssh.target import Target

__all__ = ["Connector"]

#: Seconds from the TCP connection to the end of the login while a person may be asked for a passphrase: sshd's own
#: LoginGraceTime.
LOGIN_WITH_PERSON = 120.0


@dataclass
class Connector:
    """Opens connections.

    :param reactor: for the network, processes, threads and time: the real one, or a clock in tests.
    :param store: unlocks identity files.
    :param environ: for proxy commands.
    :param wall_clock: seconds since the epoch, for the validity of host certificates.
    :param pins: fingerprints that the target's host key has to have; jump hosts are looked up in known_hosts.
    :param permits: the hosts that may be connected to, jump hosts included, and their keys (:mod:`rda.access.remotes`).
    :param direct: makes the endpoint for a host and port without a jump or proxy command; tests replace it.
    """

    reactor: Any
    store: KeyStore
    environ: Mapping[str, str]
    wall_clock: Callable[[], float]
    pins: tuple[str, ...] = ()
    permits: tuple[str, ...] | None = None
    direct: Callable[[Target], IStreamClientEndpoint] | None = None
    _alive: set[WatchedTransport] = field(default_factory=set)
    _waiters: Waiters[None] = field(default_factory=Waiters)

    def open(self, target: Target) -> Deferred[WatchedTransport]:
        """Connect, verify and log in.

        :returns: fires with the transport when its connection service runs. Fails with :class:`rda.errors.LinkDown`
            when the host cannot be reached, :class:`rda.errors.LoginFailed` when it is not to be. Can be cancelled.
        """
        return Deferred.fromCoroutine(self._open_permitted(target))

    def closed(self) -> Deferred[None]:
        """Fire when no connection is left, those to jump hosts included."""
        closed = self._waiters.wait()
        self._check()
        return closed

    def _gone(self, reason: RdaError, transport: WatchedTransport) -> RdaError:
        self._alive.discard(transport)
        self._check()
        return reason

    def _check(self) -> None:
        if not self._alive:
            self._waiters.fire(None)

    async def _open_permitted(self, target: Target) -> WatchedTransport:
        """Make sure that every host on the way is allowed before any of them is connected to."""
        pins = [pins_for(self.permits, target.user, target.host, target.port, self.pins)]
        hop = target
        while hop.via is not None:
            hop = hop.via
            pins.append(pins_for(self.permits, hop.user, hop.host, hop.port))
        if self.permits is not None and hop.proxy_command:
            raise LoginFailed(
                f"{hop.label} is reached by a ProxyCommand, which may lead anywhere: with [remotes], use ProxyJump"
            )
        return await self._open(target, tuple(pins))

    async def _open(self, target: Target, pins: Sequence[tuple[str, ...]]) -> WatchedTransport:
        """Open one hop after those before it.

        :param pins: the target's, its jump host's, and so on.
        """
        hop = await self._open(target.via, pins[1:]) if target.via is not None else None
        try:
            transport = await self._over(self._endpoint(target, hop), target, pins[0])
        except BaseException:
            if hop is not None:
                hop.loseConnection()
            raise
        if hop is not None:
            self._tie(transport, hop)
        return transport

    def _tie(self, transport: WatchedTransport, hop: WatchedTransport) -> None:
        """A jump host's connection is there for this one alone, and goes with it."""

        def end_hop(reason: RdaError) -> RdaError:
            hop.loseConnection()
            return reason

        transport.lost.addCallback(end_hop)

    def _endpoint(self, target: Target, hop: WatchedTransport | None) -> IStreamClientEndpoint:
        if hop is not None:
            return direct_tcp(hop.connection, target.host, target.port)
        if target.proxy_command:
            return ProxyCommandEndpoint(self.reactor, target.proxy_command, self.environ)
        if self.direct is not None:
            return self.direct(target)
        # Tries the addresses of both families in parallel (RFC 8305).
        return HostnameEndpoint(
            in_family(self.reactor, target.address_family),
            target.host,
            target.port,
            timeout=target.connect_timeout,
            bindAddress=(target.bind_address, 0) if target.bind_address else None,
        )

    async def _over(self, endpoint: IStreamClientEndpoint, target: Target, pins: tuple[str, ...]) -> WatchedTransport:
        login = self._login(target)
        seconds = HANDSHAKE_SECONDS if self.store.ask is None else LOGIN_WITH_PERSON
        options = transport_options(target, seconds)
        transport = WatchedTransport(self._host_keys(target, pins), login, self.reactor, options, SessionConnection())
        connecting = endpoint.connect(_quiet(transport))

        def too_slow(result: object, seconds: float) -> None:
            raise LinkDown(f"{target.label} cannot be reached: it has not answered for {seconds:.0f} s.")

        # HostnameEndpoint's own limit is for each address, and there is none for resolving the name.
        connecting.addTimeout(target.connect_timeout, self.reactor, too_slow)
        try:
            await connecting
        except (CancelledError, ConnectingCancelledError):
            raise
        except RdaError:
            raise
        except Exception as error:  # endpoints fail in many ways, none of which is a defect
            raise LinkDown(f"{target.label} cannot be reached: {_why(error)}") from error
        self._alive.add(transport)
        transport.lost.addCallback(self._gone, transport)
        try:
            await transport.ready
        except RdaError as error:
            # A server that hangs up after too many refused keys gives a reason that tells less than ours.
            raise login.refusal or error from error
        return transport

    def _login(self, target: Target) -> Login:
        keys = LoginKeys(
            target.identities,
            target.certificates,
            target.identities_only,
            target.agent_path,
            target.allowed.signatures,
        )
        return Login(self.reactor, target.user, f"{target.host} (port {target.port})", keys, self.store)

    def _host_keys(self, target: Target, pins: tuple[str, ...]) -> HostKeys:
        name = target.host_key_alias or target.host
        return HostKeys(
            HostName(name, target.port, alias=bool(target.host_key_alias)),
            target.known_hosts,
            self.wall_clock,
            pins=pins,
            accept_new=target.accept_new,
            revoked_files=target.revoked_host_keys,
            algorithms=target.allowed.host_keys,
            rsa_bits=target.rsa_bits,
            scannable=target.via is None and not target.proxy_command,
        )


def transport_options(target: Target, handshake_seconds: float) -> Options:
    """How the transport to a target is run."""
    allowed = target.allowed
    return Options(
        compression=target.compression,
        rekey_bytes=min(target.rekey_bytes or REKEY_BYTES, REKEY_BYTES),
        rekey_seconds=min(target.rekey_seconds or REKEY_SECONDS, REKEY_SECONDS),
        handshake_seconds=handshake_seconds,
        ciphers=allowed.ciphers,
        macs=allowed.macs,
        exchanges=allowed.exchanges,
    )


def _quiet(transport: WatchedTransport) -> Factory[WatchedTransport]:
    factory: Factory[WatchedTransport] = Factory.forProtocol(lambda: transport)
    factory.noisy = False  # no log line for each attempt
    return factory


def _why(error: Exception) -> str:
    if isinstance(error, DNSLookupError):
        return f"its name cannot be resolved ({error})"
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, ConnectError):
        # Twisted's own words are "Connection was refused by other side: 111: Connection refused."
        number = error.osError
        return os.strerror(number) if isinstance(number, int) else str(error).rstrip(".")
    return str(error) or type(error).__name__
