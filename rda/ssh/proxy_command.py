"""ssh_config's ProxyCommand: a local program whose standard input and output are the connection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet.address import _ProcessAddress as ProcessAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost, ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IReactorProcess,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from rda.errors import LinkDown

__all__ = ["ProxyCommandEndpoint"]

#: Bytes of the command's error output that are kept for the message when it fails.
MAX_ERRORS = 2000

_STDIN, _STDERR = 0, 2


@implementer(IStreamClientEndpoint)
class ProxyCommandEndpoint:
    """Runs a command in the user's shell and connects a protocol to it.

    Twisted's own ProcessEndpoint cannot abort a connection: a command that hangs would never be got rid of.

    :param command: a shell command line; its ``%h`` and the like are already replaced, by values that were checked.
    """

    def __init__(self, reactor: IReactorProcess, command: str, environ: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._command = command
        self._environ = environ

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Start the command; a command that cannot do its work is noticed when it ends."""
        protocol = factory.buildProtocol(ProcessAddress())
        if protocol is None:
            return fail(LinkDown("the connection was not wanted any more"))
        shell = self._environ.get("SHELL") or "/bin/sh"
        process = _ProxyProcess(protocol, self._command)
        # exec, as ssh does: no shell stays in between, and a signal reaches the command itself.
        arguments = [shell, "-c", f"exec {self._command}"]
        try:
            self._reactor.spawnProcess(process, shell, arguments, dict(self._environ))
        except OSError as error:
            return fail(LinkDown(f"ProxyCommand cannot be started: {error.strerror or error}"))
        return succeed(protocol)


@implementer(ITransport)
class _ProxyProcess(ProcessProtocol):
    """The process's side and the connection's transport in one."""

    _log = Logger()

    def __init__(self, protocol: IProtocol, command: str) -> None:
        self._protocol = protocol
        self._command = command
        self._errors = b""

    # -- the process

    def connectionMade(self) -> None:
        self._protocol.makeConnection(self)

    def outReceived(self, data: bytes) -> None:
        self._protocol.dataReceived(data)

    def errReceived(self, data: bytes) -> None:
        self._errors = (self._errors + data)[-MAX_ERRORS:]

    def outConnectionLost(self) -> None:
        # The other end is closed: nothing more can come of it.
        self.abortConnection()

    def processEnded(self, reason: Failure) -> None:
        if reason.check(ProcessDone) or not self._errors:
            lost: Exception = ConnectionDone()
        else:
            text = self._errors.decode("utf-8", "replace").strip()
            self._log.info("ProxyCommand {command!r} says: {text}", command=self._command, text=text)
            lost = ConnectionLost(f"ProxyCommand: {text[-300:]}")
        self._protocol.connectionLost(Failure(lost))

    # -- the transport

    def write(self, data: bytes) -> None:
        self._process.write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self._process.writeSequence(data)

    def loseConnection(self) -> None:
        self._process.loseConnection()

    def abortConnection(self) -> None:
        try:
            self._process.signalProcess("KILL")
        except ProcessExitedAlready:
            pass  # processEnded tells the protocol
        self._process.loseConnection()

    def getPeer(self) -> IAddress:
        return ProcessAddress()

    def getHost(self) -> IAddress:
        return ProcessAddress()

    def registerProducer(self, producer: object, streaming: bool) -> None:
        self._process.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self._process.unregisterProducer()

    def pauseProducing(self) -> None:
        self._process.pauseProducing()

    def resumeProducing(self) -> None:
        self._process.resumeProducing()

    def stopProducing(self) -> None:
        self.loseConnection()

    @property
    def _process(self) -> Any:
        # Any: what a process can do as a producer and consumer is in no interface.
        assert self.transport is not None
        return self.transport
