"""Sockets that the service manager made."""

import os
import socket
import stat
from pathlib import Path

from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from rda.proxy.adopted import adopt_unix_port


class AdoptedTests(TestCase):
    """On the real reactor: what matters is what the system does."""

    async def test_file_stays_as_it_is(self):
        """The socket is served again and again, and its name and mode stay the service manager's."""
        from twisted.internet import reactor

        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        path = f"/tmp/rda-adopt-{os.getpid()}"  # a UNIX address holds 108 bytes
        os.symlink(directory, path)
        self.addCleanup(os.unlink, path)
        path += "/s"
        made = socket.socket(socket.AF_UNIX)
        self.addCleanup(made.close)
        made.bind(path)
        made.listen()
        os.chmod(path, 0o600)
        for _ in range(2):  # a restart hands the same socket over again
            port = adopt_unix_port(reactor, made.fileno(), Factory.forProtocol(Protocol))
            client = await connectProtocol(UNIXClientEndpoint(reactor, path), Protocol())
            client.transport.abortConnection()
            self.assertEqual(os.fsdecode(port.getHost().name), path)
            await port.stopListening()
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)

    test_file_stays_as_it_is.timeout = 10
