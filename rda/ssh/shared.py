"""One link for all contexts that lead to the same remote host: :class:`Links` and :class:`SharedLink`.

Contexts may differ in everything but how they get in (another daemon of the host, another listener, another policy). As
long as one of them runs there is one :class:`rda.ssh.link.Link`, with one login and one way back after a cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar
from weakref import WeakValueDictionary

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.logger import Logger
from zope.interface import implementer

from rda.config import Remote
from rda.errors import LinkDown
from rda.interfaces import IRemoteFiles, IRemoteHost, IRemoteListener
from rda.ssh.docker_socket import parse_docker
from rda.ssh.link import Link
from rda.ssh.observers import LinkObserver, LinkObservers
from rda.status import LinkStatus

__all__ = ["Links", "SharedLink"]

T = TypeVar("T")


class Links:
    """The links of one process.

    :param make: makes the link to a remote, given that and the address of the first daemon on it that is asked for.
    """

    def __init__(self, make: Callable[[Remote, str], Link]) -> None:
        self._make = make
        self._shared: WeakValueDictionary[Remote, _Shared] = WeakValueDictionary()

    def __len__(self) -> int:
        """How many links there are."""
        return len(self._shared)

    def share(self, remote: Remote, docker: str) -> SharedLink:
        """A share of the link to ``remote``; whoever says the same about how to get in shares the same link.

        :param docker: the daemon on it: ``unix:///path`` or ``tcp://host:port``.
        :raises rda.errors.ConfigError: ``docker`` is not an address.
        """
        parse_docker(docker)
        shared = self._shared.get(remote)
        if shared is None:
            shared = self._shared[remote] = _Shared(self._make(remote, docker))
        return SharedLink(shared, docker)


@dataclass(eq=False)
class _Shared:
    """A link, and the shares of it that run."""

    link: Link
    users: list[SharedLink] = field(default_factory=list)


@implementer(IRemoteHost)
class SharedLink(Service):
    """What one context has of a link; the link runs as long as one of its shares does.

    :ivar link: the link itself.
    """

    _log = Logger()

    def __init__(self, shared: _Shared, docker: str) -> None:
        self._shared = shared
        self._docker = docker
        self._ended = False
        self._observers = LinkObservers()
        self.link = shared.link

    # -- IRemoteHost, until this share is stopped

    def docker(self) -> IStreamClientEndpoint:
        """The Docker daemon's API socket, reached in whichever way this server allows."""
        return _WhileRunning(self, lambda: self.link.docker(self._docker))

    def socket(self, path: str) -> IStreamClientEndpoint:
        """See :meth:`rda.ssh.link.Link.socket`."""
        return _WhileRunning(self, lambda: self.link.socket(path))

    def tcp(self, host: str, port: int) -> IStreamClientEndpoint:
        """See :meth:`rda.ssh.link.Link.tcp`."""
        return _WhileRunning(self, lambda: self.link.tcp(host, port))

    def command(self, line: bytes) -> IStreamClientEndpoint:
        """See :meth:`rda.ssh.link.Link.command`."""
        return _WhileRunning(self, lambda: self.link.command(line))

    def listen(self, path: str, factory: IProtocolFactory) -> Deferred[IRemoteListener]:
        """See :meth:`rda.ssh.link.Link.listen`."""
        return self.unless_ended(lambda: self.link.listen(path, factory))

    def files(self) -> Deferred[IRemoteFiles]:
        """See :meth:`rda.ssh.link.Link.files`."""
        return self.unless_ended(self.link.files)

    @property
    def connected(self) -> bool:
        """Whether the link is up, and this share not stopped."""
        return not self._ended and self.link.connected

    def unless_ended(self, ask: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Ask the link; after the end of this share nothing goes over it, though others may use it still."""
        if self._ended:
            return fail(LinkDown("rda is not connected to the remote host: it is stopping."))
        return ask()

    # -- life

    def startService(self) -> None:
        """Start the link, or join it as it is."""
        if self.running:
            return
        super().startService()
        self._ended = False
        users = self._shared.users
        users.append(self)
        self.link.add_observer(self._changed)
        self.link.docker(self._docker)  # from now on spare channels to it are kept open
        if len(users) == 1:
            self.link.startService()
        else:
            self._changed(self.link.status())

    def stopService(self) -> Deferred[None]:
        """Use the link no more; the last one closes it. Channels that are open are closed by whoever opened them."""
        if not self.running:
            return succeed(None)
        super().stopService()
        self._ended = True
        users = self._shared.users
        users.remove(self)
        closed = succeed(None)
        if not users:
            closed = self.link.stopService()
        else:
            if all(user._docker != self._docker for user in users):
                self.link.forget_docker(self._docker)
            self._changed(self.link.status())
        self.link.remove_observer(self._changed)
        return closed

    def retry(self) -> None:
        """See :meth:`rda.ssh.link.Link.retry`; it is for all shares."""
        self.link.retry()

    def network_changed(self) -> None:
        """See :meth:`rda.ssh.link.Link.network_changed`; it is for all shares."""
        self.link.network_changed()

    # -- telling

    def add_observer(self, observer: LinkObserver) -> None:
        """Have ``observer`` called with the status whenever the state changes."""
        self._observers.add(observer)

    def _changed(self, _: LinkStatus) -> None:
        self._observers.tell(self.status())

    def status(self) -> LinkStatus:
        """What the link is doing, as far as this share is concerned."""
        status = self.link.status(self._docker)
        return replace(status, state="stopped") if self._ended else status


@implementer(IStreamClientEndpoint)
@dataclass(frozen=True)
class _WhileRunning:
    """An endpoint that connects until its share is stopped."""

    share: SharedLink
    endpoint: Callable[[], IStreamClientEndpoint]

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        return self.share.unless_ended(lambda: self.endpoint().connect(protocolFactory))
