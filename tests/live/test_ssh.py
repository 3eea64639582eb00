"""The SSH link against real sshds: every kind of key and certificate, host keys of every standing, awkward servers."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from rda.config import Remote
from rda.errors import HostKeyRefused, LoginFailed
from rda.ssh.kex import supported_exchanges
from rda.ssh.link import Link
from rda.status import LinkStatus
from tests.live.host import RemoteHost
from tests.live.support import remote_host

PLAIN, CERTIFIED, NO_FORWARDING, ONE_SESSION, RSA_ONLY, NARROW = 2301, 2302, 2303, 2304, 2305, 2307


def keygen(directory: Path, name: str, *arguments: str) -> Path:
    path = directory / name
    subprocess.run(["ssh-keygen", "-q", "-f", path, *(arguments or ("-t", "ed25519"))], check=True)
    return path


class Site:
    """Keys, authorities and sshds on the remote host, made once."""

    def __init__(self, host: RemoteHost) -> None:
        self.host = host
        self.directory = directory = Path(tempfile.mkdtemp(prefix="rda-ssh-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        plain = ("-t", "ed25519", "-N", "")
        rsa = ("-t", "rsa", "-b", "2048", "-N", "")
        self.users = {
            "ed25519": keygen(directory, "ed25519", *plain),
            "rsa": keygen(directory, "rsa", *rsa),
            "ecdsa": keygen(directory, "ecdsa", "-t", "ecdsa", "-N", ""),
            "pkcs8": keygen(directory, "pkcs8", *rsa[:4], "-m", "PKCS8", "-N", "secret"),
            "pem": keygen(directory, "pem", *rsa[:4], "-m", "PEM", "-N", "secret"),
            "gcm": keygen(directory, "gcm", *plain[:2], "-N", "secret", "-a", "2", "-Z", "aes256-gcm@openssh.com"),
        }
        self.strangers = [keygen(directory, f"stranger{number}", *plain) for number in range(7)]
        self.user_authority = keygen(directory, "user_ca", *plain)
        self.host_authority = keygen(directory, "host_ca", *plain)
        self.host_key = keygen(directory, "host_key", *plain)
        self.certified = {
            "certified": keygen(directory, "certified", *plain),
            "certified-rsa": keygen(directory, "certified-rsa", *rsa),
        }
        for path in self.certified.values():
            self.sign(self.user_authority, path, "-n", host.user)
        self.sign(self.host_authority, self.host_key, "-h", "-n", host.address)
        lines = [path.with_suffix(".pub").read_text() for path in (host.key, *self.users.values())]
        lines.append("cert-authority " + self.user_authority.with_suffix(".pub").read_text())
        host.run("tee", f"/home/{host.user}/.ssh/authorized_keys", input="".join(lines).encode())
        for path in (self.host_key, self.host_key.with_name("host_key-cert.pub")):
            host.run("install", "-m", "600", "/dev/stdin", f"/etc/ssh/rda_{path.name}", input=path.read_bytes())
        for port in (PLAIN, CERTIFIED, NO_FORWARDING, ONE_SESSION, RSA_ONLY):
            host.stop_sshd(port)  # one of an earlier run has other keys
        usual = {"PerSourcePenalties": "no", "MaxStartups": "100"}
        host.start_sshd(PLAIN, **usual)
        certified = {"HostKey": "/etc/ssh/rda_host_key", "HostCertificate": "/etc/ssh/rda_host_key-cert.pub"}
        host.start_sshd(CERTIFIED, **usual, **certified)
        host.start_sshd(NO_FORWARDING, **usual, AllowStreamLocalForwarding="no", MaxSessions="3")
        host.start_sshd(ONE_SESSION, **usual, MaxSessions="1")
        host.start_sshd(RSA_ONLY, **usual, HostKey="/etc/ssh/ssh_host_rsa_key", PubkeyAcceptedAlgorithms="rsa-sha2-512")

    def sign(self, authority: Path, key: Path, *arguments: str) -> None:
        command = ["ssh-keygen", "-q", "-s", authority, "-I", "live", "-V", "+1d", *arguments, key.with_suffix(".pub")]
        subprocess.run(command, check=True)

    def known_hosts(self, text: str) -> str:
        handle, path = tempfile.mkstemp(dir=self.directory)
        os.write(handle, text.encode())
        os.close(handle)
        return path


@functools.cache
def site() -> Site:
    return Site(remote_host())


class Collect(Protocol):
    """Everything that came, when the connection is closed."""

    def __init__(self) -> None:
        self.done: Deferred[bytes] = Deferred()
        self.received = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.done.callback(bytes(self.received))


class Ping(Collect):
    def connectionMade(self) -> None:
        self.transport.write(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")


class SshCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.site = site()
        self.host = self.site.host

    def link(
        self,
        *identities: object,
        port: int = PLAIN,
        known: str | None = None,
        ask: Callable[[str], Deferred[bytes | None]] = lambda prompt: succeed(None),
        environ: dict[str, str] | None = None,
        config: str = "none",
        target: str = "",
        pins: tuple[str, ...] = (),
    ) -> Link:
        if known is None:
            known = self.host.scan_host_keys(port)
        remote = Remote(
            target or f"{self.host.user}@{self.host.address}:{port}",
            tuple(map(str, identities)),
            (self.site.known_hosts(known),),
            pins,
            ssh_config=config,
        )
        environment = {"HOME": str(self.site.directory), "PATH": os.environ["PATH"], **(environ or {})}
        link = Link(reactor, remote, "unix:///run/docker.sock", environ=environment, ask=ask)
        self.addCleanup(link.stopService)
        link.startService()
        return link

    async def logs_in(self, link: Link) -> None:
        collected = await link.command(b"id -un").connect(Factory.forProtocol(Collect))
        self.assertEqual(await collected.done, self.host.user.encode() + b"\n")

    async def refused(self, link: Link, kind: type[LoginFailed] = LoginFailed) -> str:
        error = await self.assertFailure(link.tcp("127.0.0.1", PLAIN).connect(Factory.forProtocol(Collect)), kind)
        self.assertEqual(link.status().state, "failed")
        return str(error)

    async def pings(self, link: Link) -> None:
        ping = await link.docker().connect(Factory.forProtocol(Ping))
        self.assertTrue((await ping.done).startswith(b"HTTP/1.1 200"))

    @contextmanager
    def agent(self, *keys: Path) -> Iterator[dict[str, str]]:
        if shutil.which("ssh-agent") is None:
            self.skipTest("ssh-agent is not installed")
        socket = str(self.site.directory / f"agent{time.monotonic_ns()}")
        environ = {"SSH_AUTH_SOCK": socket}
        with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as process:
            try:
                while not os.path.exists(socket):
                    time.sleep(0.01)
                for key in keys:
                    subprocess.run(["ssh-add", "-q", key], check=True, env={**os.environ, **environ})
                yield environ
            finally:
                process.terminate()


class UserKeyTests(SshCase):
    async def test_files(self) -> None:
        """Every kind of key file logs in, encrypted ones with their passphrase."""
        for name, path in {**self.site.users, **self.site.certified}.items():
            link = self.link(path, ask=lambda prompt: succeed(b"secret"))
            await self.logs_in(link)
            await link.stopService()
            self.assertEqual(link.status().state, "stopped", name)

    async def test_server_that_takes_one_signature(self) -> None:
        """A server that takes RSA keys with SHA-512 only is logged in to, and its RSA host key verified."""
        await self.logs_in(self.link(self.site.users["rsa"], port=RSA_ONLY))

    async def test_agent(self) -> None:
        """RSA keys and certificates of the agent log in."""
        for key in (self.site.users["rsa"], self.site.certified["certified-rsa"]):
            with self.agent(self.site.strangers[0], key) as environ:
                link = self.link(environ=environ)
                await self.logs_in(link)
                await link.stopService()

    async def test_identities_only(self) -> None:
        """With IdentitiesOnly the agent is asked for the configured key alone, however many it holds."""
        config = self.site.known_hosts("IdentitiesOnly yes\n")
        key = self.site.users["rsa"]
        with self.agent(*self.site.strangers, key) as environ:
            message = await self.refused(self.link(environ=environ))
            self.assertIn("IdentitiesOnly", message)
            await self.logs_in(self.link(key.with_suffix(".pub"), environ=environ, config=config))

    async def test_stranger(self) -> None:
        """A key that the server does not know is refused, for good."""
        message = await self.refused(self.link(self.site.strangers[0]))
        self.assertIn(str(self.site.strangers[0]), message)

    async def test_locked(self) -> None:
        """An encrypted key without a passphrase is not used, and the message says what would help."""
        self.assertIn("ssh-add", await self.refused(self.link(self.site.users["pkcs8"])))


class HostKeyTests(SshCase):
    def line(self, key: Path, port: int = CERTIFIED, marker: str = "") -> str:
        return f"{marker}[{self.host.address}]:{port} {key.with_suffix('.pub').read_text()}"

    async def test_unknown(self) -> None:
        """An unknown host is refused, with its fingerprint, which can be pinned."""
        key = self.site.users["ed25519"]
        message = await self.refused(self.link(key, port=CERTIFIED, known=""), HostKeyRefused)
        printed = subprocess.run(["ssh-keygen", "-lf", self.site.host_key], check=True, capture_output=True, text=True)
        fingerprint = printed.stdout.split()[1]
        self.assertIn(fingerprint, message)
        await self.logs_in(self.link(key, port=CERTIFIED, known="", pins=(fingerprint,)))

    async def test_changed_and_revoked(self) -> None:
        """A changed key and a revoked one are refused."""
        key = self.site.users["ed25519"]
        changed = self.line(self.site.strangers[0])
        self.assertIn("CHANGED", await self.refused(self.link(key, port=CERTIFIED, known=changed), HostKeyRefused))
        revoked = self.line(self.site.host_key) + self.line(self.site.host_key, marker="@revoked ")
        self.assertIn("revoked", await self.refused(self.link(key, port=CERTIFIED, known=revoked), HostKeyRefused))

    async def test_authority(self) -> None:
        """A host certificate of a trusted authority is believed, unless the authority is revoked."""
        key = self.site.users["ed25519"]
        vouched = self.line(self.site.host_authority, marker="@cert-authority ")
        await self.logs_in(self.link(key, port=CERTIFIED, known=vouched))
        revoked = vouched + self.line(self.site.host_authority, marker="@revoked ")
        await self.refused(self.link(key, port=CERTIFIED, known=revoked), HostKeyRefused)
        other = self.line(self.site.user_authority, marker="@cert-authority ")
        message = await self.refused(self.link(key, port=CERTIFIED, known=other), HostKeyRefused)
        self.assertIn("certificate", message)

    async def test_only_one_type_known(self) -> None:
        """A host that is known by its RSA key alone is asked for that one."""
        known = "".join(line + "\n" for line in self.host.scan_host_keys(PLAIN).splitlines() if "ssh-rsa" in line)
        await self.logs_in(self.link(self.site.users["ed25519"], known=known))


@implementer(IHalfCloseableProtocol)
class Cat(Collect):
    """Sends everything at once, and takes it back."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    def connectionMade(self) -> None:
        self.transport.write(self._data)
        self.transport.loseWriteConnection()

    def readConnectionLost(self) -> None:
        pass

    def writeConnectionLost(self) -> None:
        pass


class AlgorithmTests(SshCase):
    """Servers that know one way only."""

    async def through(self, size: int = 2_000_000, **options: str) -> LinkStatus:
        """Send some bytes there and back, through an sshd with some options; returns how it was done."""
        self.host.stop_sshd(NARROW)
        self.host.start_sshd(NARROW, PerSourcePenalties="no", **options)
        # Not asked of this one: ssh-keyscan may know less than rda does.
        known = self.host.scan_host_keys(PLAIN).replace(f"]:{PLAIN}", f"]:{NARROW}")
        link = self.link(self.site.users["ed25519"], port=NARROW, known=known)
        data = os.urandom(size)
        cat = await link.command(b"cat").connect(Factory.forProtocol(lambda: Cat(data)))
        self.assertEqual(await cat.done, data)
        status = link.status()
        await link.stopService()
        return status

    async def test_ciphers(self) -> None:
        """GCM, chacha20-poly1305, and CTR with each kind of MAC carry bytes both ways."""
        for cipher, mac in (
            ("aes256-gcm@openssh.com", ""),
            ("chacha20-poly1305@openssh.com", ""),
            ("aes256-ctr", "hmac-sha2-512-etm@openssh.com"),
            ("aes128-ctr", "hmac-sha2-256"),
        ):
            status = await self.through(Ciphers=cipher, **({"MACs": mac} if mac else {}))
            self.assertEqual(status.cipher, cipher)

    async def test_exchanges(self) -> None:
        """So do the key exchanges: the post-quantum one, an elliptic curve, and a fixed group."""
        for exchange in ("mlkem768x25519-sha256", "ecdh-sha2-nistp256", "diffie-hellman-group16-sha512"):
            if exchange.encode() not in supported_exchanges():
                continue  # an older cryptography
            status = await self.through(100_000, KexAlgorithms=exchange)
            self.assertEqual(status.key_exchange, exchange)

    async def test_rekeys(self) -> None:
        """A server that asks for new keys after every megabyte interrupts nothing."""
        await self.through(20_000_000, RekeyLimit="1M")


class ServerTests(SshCase):
    async def test_docker(self) -> None:
        """The Docker socket is reached by streamlocal, and again after the server has killed the connection."""
        link = self.link(self.site.users["ed25519"])
        for _ in range(3):
            await self.pings(link)
            self.assertEqual(link.status().socket_via, "streamlocal")
            self.host.drop_ssh_connections()
            await gatherResults([Deferred.fromCoroutine(self.reached(link)) for _ in range(10)])

    async def reached(self, link: Link) -> None:
        # What was sent before the connection broke is lost with it: that is the client's to see.
        ping = await link.docker().connect(Factory.forProtocol(Ping))
        if not await ping.done:
            await self.pings(link)

    async def test_no_streamlocal(self) -> None:
        """Where streamlocal is forbidden, docker system dial-stdio leads there, beyond MaxSessions too."""
        link = self.link(self.site.users["ed25519"], port=NO_FORWARDING)
        await self.pings(link)
        self.assertEqual(link.status().socket_via, "dial-stdio")
        await gatherResults([Deferred.fromCoroutine(self.pings(link)) for _ in range(8)])

    async def test_one_session(self) -> None:
        """With MaxSessions 1, files and many commands go on side by side."""
        link = self.link(self.site.users["ed25519"], port=ONE_SESSION)
        files = await link.files()
        self.assertEqual(await files.real_path(b"."), f"/home/{self.host.user}".encode())
        await gatherResults([Deferred.fromCoroutine(self.logs_in(link)) for _ in range(6)])

    async def test_two_jumps(self) -> None:
        """Two jump hosts in a row, each verified, lead to a target that only they could name."""
        known = self.site.known_hosts(
            self.host.scan_host_keys(PLAIN).replace(f"[{self.host.address}]:{PLAIN}", "known")
        )
        config = self.site.known_hosts(
            f"Host far\n HostName 127.0.0.1\n Port {PLAIN}\n ProxyJump one,two\n"
            f"Host one\n HostName {self.host.address}\n Port {PLAIN}\n"
            f"Host two\n HostName localhost\n Port {PLAIN}\n"
            f"Host *\n User {self.host.user}\n HostKeyAlias known\n UserKnownHostsFile {known}\n"
            f" IdentityFile {self.site.users['rsa']}\n"
        )
        remote = Remote("far", ssh_config=config)
        environ = {"HOME": str(self.site.directory), "PATH": os.environ["PATH"]}
        link = Link(reactor, remote, "unix:///run/docker.sock", environ=environ, ask=lambda prompt: succeed(None))
        self.addCleanup(link.stopService)
        link.startService()
        await self.logs_in(link)
        await self.pings(link)
        self.assertEqual(link.status().remote, f"{self.host.user}@127.0.0.1:{PLAIN}")
