"""The table of local listeners: published ports, open here as if Docker were local.

``reserve`` opens a container's local ports before its start is relayed, ``attach`` says where they lead,
``release`` closes them. All three may be repeated at will: the table only ever changes by the difference, and
connections of what stays are not touched. Connections accepted before it is known where they lead are held.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from rda.deferreds import follow
from rda.docker.ports import Listener, Listeners, Published, shown_addresses
from rda.errors import PortUnavailable
from rda.interfaces import IRemoteHost
from rda.ports.tcp import ListenTCP, TCPForward, tcp_listener
from rda.ports.udp import ListenUDP, UDPForward, probe, udp_listener
from rda.status import ForwardStatus

__all__ = ["MAX_PORTS", "Forwards", "Reservation"]

#: Local listeners of one container: a descriptor each.
MAX_PORTS = 2048

#: Attempts to find a free port that is free on every default address.
EPHEMERAL_ATTEMPTS = 16


@dataclass(frozen=True)
class Reservation:
    """What a container has open here.

    :ivar listeners: container port -> local addresses, as :meth:`Forwards.local` gives them.
    :ivar problem: why some ports could not be opened; "" when all are, or can never be.
    """

    container: str
    listeners: Listeners
    problem: str = ""


@dataclass(frozen=True)
class _NotForwarded:
    """A published port that is not open here, and why."""

    published: Published
    reason: str


#: TCP and UDP have the same face to the table.
_Forward: TypeAlias = TCPForward | UDPForward


@dataclass
class _Container:
    """A container's part of the table."""

    name: str
    forwards: dict[Published, _Forward] = field(default_factory=dict)
    missing: tuple[_NotForwarded, ...] = ()


class Forwards:
    """The forwards of one context.

    :param host: where the containers are.
    :param reactor: clock, and opener of listeners unless ``listen_tcp`` and ``listen_udp`` are given.
    :param publish_address: the local addresses that an empty HostIp means.
    :param listen_tcp: opens one TCP listener, see :func:`~rda.ports.tcp.tcp_listener`.
    :param listen_udp: opens one UDP listener, see :func:`~rda.ports.udp.udp_listener`.
    """

    _log = Logger()

    def __init__(
        self,
        host: IRemoteHost,
        reactor: Any,
        publish_address: Sequence[str] = ("127.0.0.1", "::1"),
        listen_tcp: ListenTCP | None = None,
        listen_udp: ListenUDP | None = None,
    ) -> None:
        self._host = host
        self._clock: IReactorTime = reactor
        self._listen_tcp = listen_tcp or tcp_listener(reactor)
        self._listen_udp = listen_udp or udp_listener(reactor)
        self._publish_address = tuple(publish_address)
        self._containers: dict[str, _Container] = {}
        self._closing: set[Deferred[Any]] = set()
        self._leaving: set[_Forward] = set()
        self._relays_udp = False

    # Changing the table.

    def reserve(
        self, container: str, name: str, wanted: Iterable[Published], *, all_or_none: bool = True
    ) -> Deferred[Reservation]:
        """Open all local listeners that a container wants, and close those that it no longer does.

        Fires when they listen. After a failure those that were opened by this call are closed again, and those from
        before are as they were; or, without ``all_or_none``, what can be opened is, and the rest is told.

        :param container: the full id.
        :param name: for messages and status.
        :raises PortUnavailable: one cannot be opened; in the daemon's words where the daemon has some.
        """
        ports = tuple(dict.fromkeys(wanted))
        return Deferred.fromCoroutine(self._reserve(container, name.lstrip("/"), ports, all_or_none))

    async def _reserve(
        self, container: str, name: str, wanted: tuple[Published, ...], all_or_none: bool
    ) -> Reservation:
        if self._closing:  # a port that is being closed may be among those to open
            await DeferredList([follow(one) for one in self._closing], consumeErrors=True)
        entry = self._containers.setdefault(container, _Container(name))
        entry.name = name
        missing = tuple(_NotForwarded(one, reason) for one in wanted if (reason := _unsupported(one)))
        unsupported = {one.published for one in missing}
        able = [one for one in wanted if one not in unsupported]
        new = [one for one in able if one not in entry.forwards]
        opened, failed = self._open_all(_Endpoint(container, name), new, all_or_none)
        if failed and all_or_none:
            for forward in opened.values():
                self._shut(forward)
            entry.missing = (*missing, *(_NotForwarded(one, str(failed[0][1])) for one in new))
            raise failed[0][1]
        for gone in entry.forwards.keys() - set(able):
            self._shut(entry.forwards.pop(gone))
        entry.forwards = {one: found for one in able if (found := opened.get(one) or entry.forwards.get(one))}
        entry.missing = (*missing, *(_NotForwarded(one, str(error)) for one, error in failed))
        return Reservation(container, self._listeners(entry), "; ".join(str(error) for _, error in failed))

    def attach(self, container: str, remote_ports: Mapping[str, int]) -> None:
        """Say where a running container's ports lead; connections that waited go there now.

        A port that the daemon does not publish (no network connects it at the moment) is closed here too, until it
        is reserved again.

        :param remote_ports: container port (``80/tcp``) -> port of the remote host's 127.0.0.1.
        """
        entry = self._containers.get(container)
        if entry is None:
            return
        for published, forward in list(entry.forwards.items()):
            remote = remote_ports.get(published.key)
            if remote is not None:
                forward.lead_to(remote)
                continue
            self._shut(entry.forwards.pop(published))
            reason = "the remote daemon does not publish it: the container is on no network that could"
            entry.missing = (*entry.missing, _NotForwarded(published, reason))

    def release(self, container: str) -> Deferred[None]:
        """Close a container's listeners; fires when they are closed.

        Its open connections are left to end by themselves: what the container sent last may still be on its way.
        """
        entry = self._containers.pop(container, None)
        closing = [self._shut(forward) for forward in entry.forwards.values()] if entry else []
        return DeferredList([follow(one) for one in closing], consumeErrors=True).addCallback(lambda _: None)

    def stop(self) -> Deferred[None]:
        """Close everything at once; fires when it is closed."""
        forwards = [forward for entry in self._containers.values() for forward in entry.forwards.values()]
        closing = [self.release(container) for container in list(self._containers)]
        for forward in (*forwards, *self._leaving):
            forward.abort()
        return DeferredList(closing, consumeErrors=True).addCallback(lambda _: None)

    # Looking at it.

    def udp_problem(self) -> Deferred[str]:
        """Ask the remote host whether it can relay datagrams: "" or, for create's Warnings, the reason why not.

        A host that can is asked once: what it lacks may be installed, but hardly ever the other way round.
        """
        if self._relays_udp:
            return succeed("")

        def answered(problem: str) -> str:
            self._relays_udp = not problem
            return problem

        return probe(self._host, self._clock).addCallback(answered)

    def local(self, container: str) -> Listeners | None:
        """Return where a container's ports are open here; None for a container that has no part in the table."""
        entry = self._containers.get(container)
        return None if entry is None else self._listeners(entry)

    def rivals(self, container: str, wanted: Iterable[Published]) -> tuple[str, ...]:
        """Return the other containers that have a port open which this one wants, whatever the address."""
        spans = [(one.protocol, range(one.first, one.last + 1)) for one in wanted if one.first]
        return tuple(
            other
            for other, entry in self._containers.items()
            if other != container
            and any(
                published.protocol == protocol and forward.port in span
                for published, forward in entry.forwards.items()
                for protocol, span in spans
            )
        )

    def status(self) -> tuple[ForwardStatus, ...]:
        """Describe every published port, those that are not forwarded among them."""
        return tuple(
            status for container, entry in self._containers.items() for status in _entry_status(container, entry)
        )

    @staticmethod
    def _listeners(entry: _Container) -> Listeners:
        found: dict[str, list[Listener]] = {}
        for published, forward in entry.forwards.items():
            found.setdefault(published.key, []).append(Listener(published.host_ip, forward.port))
        return {key: tuple(listeners) for key, listeners in found.items()}

    # Opening and closing.

    def _open_all(
        self, endpoint: _Endpoint, wanted: Sequence[Published], all_or_none: bool
    ) -> tuple[dict[Published, _Forward], list[tuple[Published, PortUnavailable]]]:
        """Open listeners; return those that are open now, and those that cannot (with ``all_or_none``: one)."""
        opened: dict[Published, _Forward] = {}
        failed: list[tuple[Published, PortUnavailable]] = []
        if len(wanted) > MAX_PORTS:
            what = f"{endpoint.name} publishes {len(wanted)} ports; rda opens at most {MAX_PORTS}"
            return {}, [(wanted[0], PortUnavailable(what))]
        for one in wanted:
            try:
                opened[one] = self._open(endpoint, one)
            except PortUnavailable as error:
                failed.append((one, error))
                if all_or_none:
                    break
        return opened, failed

    def _open(self, endpoint: _Endpoint, published: Published) -> _Forward:
        """Open the listeners of one published port, on the first number of its range that is free."""
        numbers = range(published.first, published.last + 1) if published.first else (0,) * EPHEMERAL_ATTEMPTS
        failure: CannotListenError | None = None
        for number in numbers:
            forward = self._make(published)
            try:
                self._open_at(forward, number)
            except CannotListenError as error:
                self._shut(forward)
                failure = error
                if _errno(error) != errno.EADDRINUSE:
                    break
            else:
                return forward
        assert failure is not None
        raise _unavailable(endpoint, published, failure)

    def _make(self, published: Published) -> _Forward:
        if published.protocol == "udp":
            return UDPForward(self._host, self._clock, self._listen_udp, published)
        return TCPForward(self._host, self._clock, self._listen_tcp, published)

    def _open_at(self, forward: _Forward, number: int) -> None:
        """Open one port number on every address that is meant.

        :param number: 0 for any free one: the first address decides, the others follow.
        """
        host_ip = forward.published.host_ip
        absent: CannotListenError | None = None
        for address in (host_ip,) if host_ip else self._publish_address:
            try:
                forward.listen_on(address, forward.port or number)
            except CannotListenError as error:
                # A machine without IPv6 (or with one family only) has what it has; an address that the user named has
                # to be there.
                if host_ip or _errno(error) not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                absent = error
        if not forward.listening and absent is not None:
            raise absent

    def _shut(self, forward: _Forward) -> Deferred[Any]:
        """Close a forward's listeners, and remember that until it is done."""
        closing = forward.shut()
        self._leaving = {one for one in (*self._leaving, forward) if one.busy}
        if not closing.called:
            self._closing.add(closing)
            closing.addBoth(self._closed, closing)
        return closing

    def _closed(self, result: Any, closing: Deferred[Any]) -> Any:
        self._closing.discard(closing)
        return result


@dataclass(frozen=True)
class _Endpoint:
    """Whose port it is, as the daemon names it in errors."""

    container: str
    name: str


def _entry_status(container: str, entry: _Container) -> Iterable[ForwardStatus]:
    for forward in entry.forwards.values():
        yield ForwardStatus(
            container=container,
            name=entry.name,
            port=forward.published.key,
            local=", ".join(_joined(address, forward.port) for address in forward.addresses),
            remote="" if forward.remote is None else f"127.0.0.1:{forward.remote}",
            state="reserved" if forward.remote is None else "open",
            reason=forward.problem,
            connections=forward.connections,
            connections_total=forward.total,
            bytes_in=forward.bytes_in,
            bytes_out=forward.bytes_out,
            dropped=forward.dropped,
        )
    for one in entry.missing:
        yield ForwardStatus(
            container, entry.name, one.published.key, _asked(one.published), "", "not forwarded", one.reason
        )


def _asked(published: Published) -> str:
    """Name a local address that could not be opened, as the user asked for it."""
    if not published.first:
        return shown_addresses(published.host_ip)[0]
    span = str(published.first) if published.first == published.last else f"{published.first}-{published.last}"
    return _joined(shown_addresses(published.host_ip)[0], span)


def _joined(address: str, port: int | str) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _unsupported(published: Published) -> str:
    """Return why a published port cannot be forwarded at all, or ""."""
    if published.protocol == "sctp":
        return "SCTP does not pass through an SSH connection"
    return ""


def _errno(error: CannotListenError) -> int | None:
    return getattr(error.socketError, "errno", None)


def _unavailable(endpoint: _Endpoint, published: Published, error: CannotListenError) -> PortUnavailable:
    """Say why a port cannot be opened, in the daemon's words where the daemon has some."""
    code = _errno(error)
    if code == errno.EACCES:
        return PortUnavailable(
            f"rda may not open port {error.port} on {error.interface}: on this machine, ports below the number in the "
            f"sysctl net.ipv4.ip_unprivileged_port_start need a privilege. Lower it to {error.port}, or give rda the "
            "capability cap_net_bind_service, or publish on a higher port"
        )
    if code in (errno.EMFILE, errno.ENFILE):
        return PortUnavailable(
            f"rda has no file descriptor left to open port {error.port}: raise its limit (ulimit -n)"
        )
    shown = shown_addresses(published.host_ip)[0]
    what = f"driver failed programming external connectivity on endpoint {endpoint.name} ({endpoint.container}): "
    if code == errno.EADDRINUSE and published.first != published.last:
        span = f"{published.first}-{published.last}"
        return PortUnavailable(f"{what}all ports in the range {_joined(shown, span)} are already allocated")
    if code == errno.EADDRINUSE:
        return PortUnavailable(f"{what}Bind for {_joined(shown, error.port)} failed: port is already allocated")
    reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
    family = "tcp6" if ":" in str(error.interface) else "tcp4"
    at = _joined(str(error.interface), error.port)
    return PortUnavailable(f"{what}Error starting userland proxy: listen {family} {at}: bind: {reason.lower()}")
