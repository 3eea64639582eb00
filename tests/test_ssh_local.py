"""What the SSH link asks of its own machine: programs, passphrases, a proxy command, news of the network."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost, ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from rda.errors import LinkDown
from rda.ssh.askpass import passphrase_asker
from rda.ssh.network_watch import SETTLE_SECONDS, NetworkWatch
from rda.ssh.program import MAX_OUTPUT, Finished, run_program
from rda.ssh.proxy_command import ProxyCommandEndpoint


class FakeProcess:
    """A process as its parent sees it."""

    def __init__(self, protocol, executable, args, env) -> None:
        self.protocol, self.executable, self.args, self.env = protocol, executable, args, env
        self.written = b""
        self.stdin_closed = self.lost = False
        self.signals: list[str] = []
        self.producers: list[object] = []
        self.paused = False

    def write(self, data: bytes) -> None:
        self.written += data

    def writeSequence(self, data) -> None:
        self.write(b"".join(data))

    def closeStdin(self) -> None:
        self.stdin_closed = True

    def loseConnection(self) -> None:
        self.lost = True

    def signalProcess(self, name: str) -> None:
        self.signals.append(name)
        self.end(ProcessTerminated(signal=9))

    def registerProducer(self, producer, streaming) -> None:
        self.producers.append(producer)

    def unregisterProducer(self) -> None:
        self.producers.clear()

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def end(self, reason: Exception) -> None:
        self.protocol.processEnded(Failure(reason))


class ProcessClock(Clock):
    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.fails: OSError | None = None

    def spawnProcess(self, protocol, executable, args, env):
        if self.fails is not None:
            raise self.fails
        process = FakeProcess(protocol, executable, args, env)
        self.processes.append(process)
        protocol.makeConnection(process)
        return process


def terminated(status: int) -> ProcessTerminated:
    return ProcessTerminated(exitCode=status)


class ProgramTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = ProcessClock()
        self.running = run_program(self.clock, "/bin/prog", ["-x", "a b"], {"A": "1"}, timeout=30)
        (self.process,) = self.clock.processes

    def test_runs(self) -> None:
        """Arguments are passed as they are, input is closed, and output and status come back."""
        self.assertEqual((self.process.args, self.process.env), (["/bin/prog", "-x", "a b"], {"A": "1"}))
        self.assertTrue(self.process.stdin_closed)
        self.process.protocol.outReceived(b"out")
        self.process.protocol.errReceived(b"err")
        self.process.end(terminated(3))
        self.assertEqual(self.successResultOf(self.running), Finished(3, b"out", b"err"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_takes_too_long(self) -> None:
        """A program that does not end is killed."""
        self.clock.advance(30)
        self.assertEqual(self.process.signals, ["KILL"])
        self.assertIs(self.successResultOf(self.running).status, None)

    def test_writes_too_much(self) -> None:
        """So is one that does not stop writing."""
        self.process.protocol.outReceived(b"x" * (MAX_OUTPUT + 1))
        self.assertEqual(len(self.successResultOf(self.running).output), MAX_OUTPUT)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Peer(Protocol):
    received = b""
    lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


class ProxyCommandTests(SynchronousTestCase):
    def connect(self, environ=None) -> Deferred[Peer]:
        self.clock = ProcessClock()
        endpoint = ProxyCommandEndpoint(self.clock, "nc host 22", environ or {"SHELL": "/bin/zsh"})
        return endpoint.connect(Factory.forProtocol(Peer))

    def setUp(self) -> None:
        self.peer = self.successResultOf(self.connect())
        (self.process,) = self.clock.processes

    def test_data(self) -> None:
        """The command runs in the user's shell, and its input and output are the connection."""
        self.assertEqual(self.process.args, ["/bin/zsh", "-c", "exec nc host 22"])
        self.peer.transport.write(b"to")
        self.peer.transport.writeSequence([b" ", b"it"])
        self.process.protocol.outReceived(b"from it")
        self.assertEqual((self.process.written, self.peer.received), (b"to it", b"from it"))

    def test_default_shell(self) -> None:
        """Without SHELL it is /bin/sh."""
        self.connect({"X": "y"})
        self.assertEqual(self.clock.processes[0].executable, "/bin/sh")

    def test_flow_control(self) -> None:
        """Both directions can be paused."""
        producer = object()
        self.peer.transport.registerProducer(producer, True)
        self.assertEqual(self.process.producers, [producer])
        self.peer.transport.unregisterProducer()
        self.assertEqual(self.process.producers, [])
        self.peer.transport.pauseProducing()
        self.assertTrue(self.process.paused)
        self.peer.transport.resumeProducing()
        self.assertFalse(self.process.paused)

    def test_ends(self) -> None:
        """The command's end is the connection's; with an error, the reason is what it wrote."""
        self.process.end(ProcessDone(0))
        self.peer.lost.trap(ConnectionDone)
        peer = self.successResultOf(self.connect())
        (process,) = self.clock.processes
        process.protocol.errReceived(b"x" * 5000 + b"no route to host\n")
        process.end(terminated(1))
        peer.lost.trap(ConnectionLost)
        self.assertIn("no route to host", str(peer.lost.value))
        self.assertLess(len(str(peer.lost.value)), 500)

    def test_closed_by_us(self) -> None:
        """Closing closes its input; aborting kills it, and so does the end of its output."""
        self.peer.transport.loseConnection()
        self.assertEqual((self.process.lost, self.process.signals), (True, []))
        self.peer.transport.abortConnection()
        self.assertEqual(self.process.signals, ["KILL"])
        self.assertIsNotNone(self.peer.lost)
        self.successResultOf(self.connect())
        (process,) = self.clock.processes
        process.protocol.outConnectionLost()
        self.assertEqual(process.signals, ["KILL"])

    def test_cannot_start(self) -> None:
        """A shell that is not there is a reason to say so."""
        clock = ProcessClock()
        clock.fails = OSError(errno.ENOENT, "No such file")
        endpoint = ProxyCommandEndpoint(clock, "nc", {"SHELL": "/none"})
        failure = self.failureResultOf(endpoint.connect(Factory.forProtocol(Peer)), LinkDown)
        self.assertIn("No such file", str(failure.value))


class AskpassTests(SynchronousTestCase):
    def ask(self, environ: dict[str, str], terminal: str = "/no/terminal"):
        self.clock = ProcessClock()
        return passphrase_asker(self.clock, environ, terminal)

    def test_program(self) -> None:
        """SSH_ASKPASS is run with the prompt where there is a display and no terminal; its first line is the answer."""
        asker = self.ask({"SSH_ASKPASS": "/bin/askpass", "DISPLAY": ":0"})
        assert asker is not None
        answer = asker("Passphrase: ")
        (process,) = self.clock.processes
        self.assertEqual(process.args, ["/bin/askpass", "Passphrase: "])
        process.protocol.outReceived(b"se cret\n")
        process.end(ProcessDone(0))
        self.assertEqual(self.successResultOf(answer), b"se cret")

    def test_cancelled(self) -> None:
        """A person who closes the window gives no answer, and one who does not come neither."""
        for end in (lambda process: process.end(terminated(1)), lambda process: self.clock.advance(120)):
            asker = self.ask({"SSH_ASKPASS": "/bin/askpass", "SSH_ASKPASS_REQUIRE": "force"})
            assert asker is not None
            answer = asker("?")
            end(self.clock.processes[0])
            self.assertIs(self.successResultOf(answer), None)

    def test_who_is_asked(self) -> None:
        """SSH_ASKPASS_REQUIRE decides between the terminal and the program, as in ssh(1)."""
        terminal = str(Path(self.mktemp()).absolute())
        Path(terminal).touch()
        program, display = {"SSH_ASKPASS": "/bin/askpass"}, {"DISPLAY": ":0"}
        table = [
            ({}, "/no/terminal", None),
            (program, "/no/terminal", None),
            ({**program, **display}, "/no/terminal", "by_program"),
            ({**program, **display, "SSH_ASKPASS_REQUIRE": "never"}, "/no/terminal", None),
            ({**program, **display}, terminal, "at_terminal"),
            ({**program, **display, "SSH_ASKPASS_REQUIRE": "prefer"}, terminal, "by_program"),
            ({**program, "SSH_ASKPASS_REQUIRE": "force"}, terminal, "by_program"),
            ({}, terminal, "at_terminal"),
        ]
        for environ, device, expected in table:
            asker = self.ask(environ, device)
            self.assertEqual(asker.__name__ if asker is not None else None, expected, environ)


@implementer(IReactorFDSet)
class SelectClock(Clock):
    """A clock that watches descriptors, as far as it is told to look."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[object] = []

    def addReader(self, reader) -> None:
        self.readers.append(reader)

    def removeReader(self, reader) -> None:
        self.readers.remove(reader)


class NetworkWatchTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = SelectClock()
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        self.addCleanup(self.theirs.close)
        self.addCleanup(self.ours.close)
        self.changes = 0
        self.watch = NetworkWatch(self.clock, self.changed, lambda: self.ours)
        self.watch.startService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def changed(self) -> None:
        self.changes += 1

    def test_a_burst_is_one_change(self) -> None:
        """Many messages in a row are told once, when they are over."""
        for _ in range(5):
            self.theirs.send(b"message")
            self.theirs.send(b"message")
            self.watch.doRead()
            self.clock.advance(SETTLE_SECONDS / 2)
        self.assertEqual(self.changes, 0)
        self.clock.advance(SETTLE_SECONDS / 2)
        self.assertEqual(self.changes, 1)

    def test_stop(self) -> None:
        """Stopping leaves nothing: no reader, no call, no descriptor; it can be started again."""
        self.theirs.send(b"message")
        self.watch.doRead()
        self.watch.stopService()
        self.assertEqual((self.clock.readers, self.clock.getDelayedCalls()), ([], []))
        self.assertEqual(self.ours.fileno(), -1)
        self.assertEqual(self.watch.fileno(), -1)
        self.watch._open_socket = lambda: None
        self.watch.startService()
        self.watch.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_broken_socket(self) -> None:
        """A socket that overflows stays; one that fails is given up, and the reactor does not spin."""

        class Broken:
            error = errno.ENOBUFS

            def recv(self, size: int) -> bytes:
                raise OSError(self.error, os.strerror(self.error))

            def close(self) -> None:
                pass

        self.watch._socket.close()  # type: ignore[union-attr]
        self.watch._socket = broken = Broken()  # type: ignore[assignment]
        self.watch.doRead()
        self.assertEqual(self.clock.readers, [self.watch])
        broken.error = errno.EBADF
        self.watch.doRead()
        self.assertEqual(self.clock.readers, [])
        self.clock.advance(SETTLE_SECONDS)
        self.assertEqual(self.changes, 1)

    def test_the_real_socket(self) -> None:
        """Linux gives such a socket to everybody."""
        from rda.ssh.network_watch import _netlink

        real = _netlink()
        if real is None:
            self.skipTest("no netlink here")
        self.assertRaises(BlockingIOError, real.recv, 1)
        real.close()
