"""Running a local program to its end without blocking, within limits of time and output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReactorProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

__all__ = ["Finished", "run_program"]

#: Bytes of output and of error output that are kept; a program that writes more is killed.
MAX_OUTPUT = 1024 * 1024


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    :ivar status: its exit status; None when a signal ended it (ours, when it took too long or wrote too much).
    """

    status: int | None
    output: bytes
    errors: bytes


class _Collect(ProcessProtocol):
    def __init__(self) -> None:
        self.finished: Deferred[Finished] = Deferred()
        self._output = bytearray()
        self._errors = bytearray()

    def outReceived(self, data: bytes) -> None:
        self._output += data
        self._check(self._output)

    def errReceived(self, data: bytes) -> None:
        self._errors += data
        self._check(self._errors)

    def _check(self, collected: bytearray) -> None:
        if len(collected) > MAX_OUTPUT:
            self.kill()

    def kill(self) -> None:
        try:
            if self.transport is not None:
                self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass  # it was faster

    def processEnded(self, reason: Failure) -> None:
        status = getattr(reason.value, "exitCode", None)
        self.finished.callback(Finished(status, bytes(self._output[:MAX_OUTPUT]), bytes(self._errors[:MAX_OUTPUT])))


def run_program(
    reactor: IReactorProcess,
    program: str,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    timeout: float,
) -> Deferred[Finished]:
    """Run ``program`` with its standard input closed.

    :param arguments: without the program's own name.
    :param timeout: seconds after which it is killed.
    """
    collect = _Collect()
    timer = reactor.callLater(timeout, collect.kill)  # type: ignore[attr-defined]

    def stop_timer(result: Finished) -> Finished:
        if timer.active():
            timer.cancel()
        return result

    process = reactor.spawnProcess(collect, program, [program, *arguments], dict(environ))
    process.closeStdin()
    return collect.finished.addCallback(stop_timer)
