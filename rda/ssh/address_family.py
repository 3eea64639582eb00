"""Names resolved to addresses of one family only: ssh_config's AddressFamily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
)
from zope.interface import implementer

__all__ = ["FAMILIES", "in_family"]

#: What AddressFamily may be, and the addresses it stands for.
FAMILIES: dict[str, tuple[type[IAddress], ...] | None] = {
    "any": None,
    "inet": (IPv4Address,),
    "inet6": (IPv6Address,),
}


def in_family(reactor: Any, family: str) -> Any:
    """A reactor like this one, whose resolver gives addresses of one family.

    :param family: of :data:`FAMILIES`.
    """
    types = FAMILIES[family]
    return reactor if types is None else _OneFamily(reactor, types)


@implementer(IReactorPluggableNameResolver)
class _OneFamily:
    def __init__(self, reactor: Any, types: tuple[type[IAddress], ...]) -> None:
        self._reactor = reactor
        self.nameResolver = _Resolver(reactor.nameResolver, types)

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """The resolver of this reactor is its own."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IHostnameResolver)
class _Resolver:
    def __init__(self, resolver: IHostnameResolver, types: tuple[type[IAddress], ...]) -> None:
        self._resolver = resolver
        self._types = types

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        return self._resolver.resolveHostName(resolutionReceiver, hostName, portNumber, self._types, transportSemantics)
