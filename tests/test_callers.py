"""Who calls: by the kernel, by certificate, by token; and who is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from OpenSSL import SSL
from twisted.internet.address import HostnameAddress, IPv4Address, UNIXAddress
from twisted.internet.interfaces import IOpenSSLContextFactory
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from rda.access.admission import Admission
from rda.access.caller import Caller, Proof
from rda.access.peers import OVERFLOW_UID, Credentials
from rda.errors import RdaError, Refused
from rda.proxy.authentication import Callers, Machine, Unauthorized
from rda.proxy.certificates import CertificateProblem, ServerTLS, TLSFactory
from tests.certificates import Authority
from tests.memory_network import Peer
from tests.relay_case import GET, OK, RelayCase

NAMES = {0: "root", 1000: "alice", 1001: "bob", 1002: "carol", OVERFLOW_UID: "nobody"}

TOKEN = b"rda_" + b"x" * 43
TOKENS = (("ci", hashlib.sha256(TOKEN).digest()), ("alice", hashlib.sha256(TOKEN[:-1] + b"y").digest()))


@dataclass
class FakeMachine:
    """A machine on which rda runs as alice, and every connection belongs to one uid."""

    uid: int = 1000
    peer: int | None = 1000
    groups: dict[int, frozenset[int]] = field(default_factory=dict)
    knows: bool = True
    problem: str = ""

    @property
    def table(self) -> Any:
        return SimpleNamespace(owner=lambda near, far: self.peer) if self.knows else None

    def user_name(self, uid: int) -> str:
        return NAMES.get(uid, f"#{uid}")

    def groups_of(self, uid: int) -> frozenset[int]:
        return self.groups.get(uid, frozenset())

    def credentials(self, transport: Any) -> Credentials | None:
        return Credentials(77, self.peer if self.peer is not None else -1, 5) if self.knows else None


TCP = StringTransport(IPv4Address("TCP", "127.0.0.1", 23750), IPv4Address("TCP", "127.0.0.1", 50000))
UNIX = StringTransport(UNIXAddress("/run/x.sock"), UNIXAddress(None))


class CallersCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.machine = FakeMachine()

    def callers(self, **access: Any) -> Callers:
        return Callers(Admission(**access), self.machine, "gpu")  # type: ignore[arg-type]

    def caller(self, transport: Any = TCP, *fields: tuple[bytes, bytes], **access: Any) -> Caller:
        return self.callers(**access)(transport).identify(fields)[0]

    def refusal(self, transport: Any = TCP, *fields: tuple[bytes, bytes], **access: Any) -> RdaError:
        return self.assertRaises(RdaError, self.caller, transport, *fields, **access)


class PeerTests(CallersCase):
    def test_own_user(self) -> None:
        """The user that rda runs as is let in, over TCP and through a UNIX socket."""
        self.assertEqual(self.caller(TCP), Caller("alice", Proof.LOOPBACK, 1000, None, True))
        self.assertEqual(self.caller(UNIX), Caller("alice", Proof.SOCKET, 1000, 77, True))

    def test_root(self) -> None:
        """So is root, who can become anybody."""
        self.machine.peer = 0
        self.assertEqual(self.caller(), Caller("root", Proof.LOOPBACK, 0, None, True))

    def test_others(self) -> None:
        """Nobody else is, and the refusal names who it was and whose the context is."""
        self.machine.peer = 1001
        for transport in (TCP, UNIX):
            refusal = self.refusal(transport)
            self.assertEqual(refusal.status, 403)
            self.assertIn("bob (uid 1001) may not use this context of alice's", str(refusal))
            self.assertTrue(self.callers()(transport).hopeless)

    def test_configured_users(self) -> None:
        """A configured user is let in, under that name, and is not the user that rda runs as."""
        self.machine.peer = 1001
        found = self.caller(UNIX, users=(("bob", 1001),))
        self.assertEqual(found, Caller("bob", Proof.SOCKET, 1001, 77, False))

    def test_groups(self) -> None:
        """A member of the group is let in: by the lists of the system, or as the process is running."""
        self.machine.peer = 1001
        self.refusal(group=("docker", 999))
        self.machine.groups = {1001: frozenset((100, 999))}
        self.assertEqual(self.caller(group=("docker", 999)).user, "bob")
        self.machine.groups = {}
        self.assertEqual(self.caller(UNIX, group=("bobs", 5)).user, "bob")

    def test_users_without_a_number_here(self) -> None:
        """The uid that stands for all users of other user namespaces is nobody's, also when rda runs as it."""
        self.machine.uid = self.machine.peer = OVERFLOW_UID
        for transport in (TCP, UNIX):
            self.assertIn("nobody", str(self.refusal(transport)))

    def test_unknown_peers(self) -> None:
        """A connection of no local process is refused with what to do, or let in where that is configured."""
        self.machine.peer = None
        self.assertIn("a container or through a forwarded port", str(self.refusal()))
        self.assertEqual(self.caller(unknown_peer=True), Caller("alice", Proof.NONE, own=True))

    def test_unchecked(self) -> None:
        """Where the check is off, whoever connects counts as the user rda runs as; UNIX sockets are still checked."""
        self.machine.peer = 1001
        self.assertEqual(self.caller(check_peer=False), Caller("alice", Proof.NONE, own=True))
        self.refusal(UNIX, check_peer=False)

    def test_other_systems(self) -> None:
        """Where the system tells nothing, the same holds."""
        self.machine.knows = False
        for transport in (TCP, UNIX):
            self.assertEqual(self.caller(transport), Caller("alice", Proof.NONE, own=True))

    def test_a_system_that_should_tell(self) -> None:
        """A Linux that does not tell is noticed when the listeners are opened, and only where it matters."""
        self.machine.problem = "no netlink"
        self.assertRaises(RdaError, self.callers().check, ["tcp:1:interface=127.0.0.1"])
        self.callers().check(["unix:/run/x.sock"])
        self.callers(tls="/tls").check(["tcp:1"])
        self.callers(check_peer=False).check(["tcp:1:interface=127.0.0.1"])

    def test_the_kernel_fails(self) -> None:
        """A look-up that fails lets nobody in."""

        class Broken(FakeMachine):
            @property
            def table(self) -> Any:
                def owner(near: object, far: object) -> int:
                    raise OSError("no buffer space")

                return SimpleNamespace(owner=owner)

        self.machine = Broken()
        self.assertIn("no buffer space", str(self.refusal()))

    def test_left(self) -> None:
        """Whether a TCP client is still there shows in the kernel's table, where it was found in it before."""
        visitor = self.callers()(TCP)
        self.assertFalse(visitor.has_left())
        self.machine.peer = None
        self.assertTrue(visitor.has_left())
        self.assertFalse(self.callers(unknown_peer=True)(TCP).has_left())
        self.assertFalse(self.callers()(UNIX).has_left())

    def test_neither_tcp_nor_unix(self) -> None:
        """A connection of an unknown kind proves nothing."""
        self.assertIsInstance(self.refusal(StringTransport(peerAddress=HostnameAddress(b"x", 1))), Refused)

    def test_this_machine(self) -> None:
        """The real machine knows this process."""
        machine = Machine()
        if machine.table is not None:
            self.addCleanup(machine.table.close)
        self.assertEqual((machine.uid, machine.problem), (os.geteuid(), ""))


class TokenTests(CallersCase):
    def bearer(self, token: bytes = TOKEN, scheme: bytes = b"Bearer") -> tuple[bytes, bytes]:
        return b"Authorization", scheme + b" " + token

    def test_a_token_decides(self) -> None:
        """A token says who calls, whoever has the connection, and the daemon does not get it."""
        for peer in (1000, 1001, None):
            self.machine.peer = peer
            visitor = self.callers(tokens=TOKENS)(TCP)
            self.assertFalse(visitor.hopeless)
            for scheme in (b"Bearer", b"bearer", b"BEARER \t"):
                caller, fields = visitor.identify([(b"Host", b"x"), self.bearer(scheme=scheme), (b"X", b"y")])
                self.assertEqual(caller, Caller("ci", Proof.TOKEN))
                self.assertEqual(list(fields), [(b"Host", b"x"), (b"X", b"y")])

    def test_own_token(self) -> None:
        """A token of the user that rda runs as makes its bearer that user."""
        self.assertTrue(self.caller(TCP, self.bearer(TOKEN[:-1] + b"y"), tokens=TOKENS).own)

    def test_wrong_tokens(self) -> None:
        """A token that is not known is refused, although the connection would have been let in."""
        for wrong in (TOKEN + b"x", TOKEN[:-1], b"rda_", b"rda_\xff"):
            self.assertEqual(self.refusal(TCP, self.bearer(wrong), tokens=TOKENS).status, 401, wrong)
        self.refusal(TCP, self.bearer(), self.bearer(), tokens=TOKENS)

    def test_without_a_token(self) -> None:
        """Without one, the connection decides as ever."""
        self.assertEqual(self.caller(tokens=TOKENS).proof, Proof.LOOPBACK)
        self.machine.peer = 1001
        refusal = self.refusal(tokens=TOKENS)
        self.assertEqual(refusal.status, 401)
        self.assertIn("or send a token", str(refusal))

    def test_tokens_for_others(self) -> None:
        """Where no tokens are configured, one of rda's is kept from the daemon all the same; others are not ours."""
        other = (b"Authorization", b"Basic cmRhXw==")
        caller, fields = self.callers()(TCP).identify([self.bearer(), other, self.bearer(b"ghp_x")])
        self.assertEqual(caller.proof, Proof.LOOPBACK)
        self.assertEqual(list(fields), [other, self.bearer(b"ghp_x")])

    def test_nothing_to_hide(self) -> None:
        """A request without a token keeps its fields as they are."""
        fields = ((b"Host", b"x"), (b"Authorization", b"Basic x"))
        self.assertIs(self.callers()(TCP).identify(fields)[1], fields)


class RelayedTokenTests(RelayCase):
    site_options = {"identify": Callers(Admission(tokens=TOKENS), FakeMachine(), "gpu")}  # type: ignore[arg-type]

    def request(self, token: bytes) -> Peer:
        return self.client(GET[:-2] + b"Authorization: Bearer " + token + b"\r\nX-Other: 1\r\n\r\n")

    def test_relayed(self) -> None:
        """The daemon gets the request without the token."""
        client = self.request(TOKEN)
        self.assertIn(b"X-Other: 1", self.upstream.received)
        self.assertNotIn(b"rda_", self.upstream.received)
        self.send(self.upstream, OK)
        self.assertEqual(client.received, OK)

    def test_refused(self) -> None:
        """The daemon gets nothing of a request whose token is not known, and the connection ends."""
        client = self.request(TOKEN[:-1])
        self.assert_error(client, 401, "the token is not known")
        self.assertEqual(self.daemon.peers, [])
        self.assertTrue(client.closed_cleanly)


class CertificateTests(RelayCase):
    """A site that is served over TLS, with the identity of callers noted."""

    access: dict[str, Any] = {}

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="rda-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.authority = Authority()
        self.server = self.authority.write(
            self.directory / "server", "server", [x509.DNSName("RDA.example")], server=True
        )
        self.callers: list[Caller] = []
        self.identify = Callers(Admission(tls="x", **self.access), FakeMachine(), "gpu")  # type: ignore[arg-type]
        self.site_options = {"identify": self.identify}
        self.tls_peers: list[Any] = []
        super().setUp()
        dispatch = self.site.proxy.exchange

        def exchange(request: Any, head: Any, call: Any, *rest: Any) -> Any:
            self.callers.append(call.caller)
            return dispatch(request, head, call, *rest)

        self.site.proxy.exchange = exchange  # type: ignore[method-assign]
        self.tls = ServerTLS(str(self.server), need_certificate=not self.access)

    def everyone(self) -> list[Peer]:
        return [*super().everyone(), *self.tls_peers]

    def connect(self, directory: Path | None, data: bytes = GET, maximum: int | None = None) -> Peer:
        """A client with the files of a directory, or without a certificate."""
        context = CertificateOptions().getContext()
        if directory is not None:
            context.use_certificate_file(str(directory / "cert.pem"))
            context.use_privatekey_file(str(directory / "key.pem"))
        if maximum is not None:
            context.set_max_proto_version(maximum)
        client = Peer()
        far = TLSMemoryBIOFactory(_ClientTLS(context), True, Factory.forProtocol(lambda: client), self.clock)
        near = TLSFactory(self.tls, False, self.site, self.clock)
        client_end = far.buildProtocol(None)
        self.network.connect(client_end, near.buildProtocol(None))
        self.tls_peers.append(client_end)
        self.clients.append(client)
        client.send(data)
        self.pump()
        return client

    def user(self, *args: Any, **kw: Any) -> Caller:
        """Who a client with such a certificate is."""
        self.connect(self.authority.write(self.directory / "client", *args, **kw))
        self.send(self.upstream, OK)
        return self.callers[-1]

    def assert_shut_out(self, client: Peer) -> None:
        """The handshake failed, and nothing came through."""
        self.assertEqual((client.received, self.callers, self.daemon.peers), (b"", [], []))
        self.assertIsNotNone(client.lost)


@implementer(IOpenSSLContextFactory)
class _ClientTLS:
    """The context of one client."""

    def __init__(self, context: SSL.Context) -> None:
        self._context = context

    def getContext(self) -> SSL.Context:
        return self._context


class RequiredCertificateTests(CertificateTests):
    def test_common_name(self) -> None:
        """The certificate's common name is the user; the one that rda runs as is rda's own."""
        self.assertEqual(self.user("bob", [x509.DNSName("other")]), Caller("bob", Proof.CERTIFICATE))
        self.assertEqual(self.user("alice"), Caller("alice", Proof.CERTIFICATE, own=True))

    def test_alternative_names(self) -> None:
        """Without a common name, an alternative name is: an address before a host."""
        names = [x509.DNSName("host.example"), x509.RFC822Name("bob@example.com")]
        self.assertEqual(self.user("", names).user, "bob@example.com")
        self.assertEqual(self.user("", names[:1]).user, "host.example")

    def test_no_name(self) -> None:
        """A certificate that names nobody lets nobody in, nor does a name that would break a log."""
        for names in ((), [x509.UniformResourceIdentifier("spiffe://x")]):
            client = self.connect(self.authority.write(self.directory / "client", "", names))
            self.assert_error(client, 401, "a certificate with a common name")
        client = self.connect(self.authority.write(self.directory / "client", "a\nb"))
        self.assert_error(client, 401)
        self.assertEqual(self.daemon.peers, [])

    def test_no_certificate(self) -> None:
        """A client without a certificate does not get past the handshake."""
        self.assert_shut_out(self.connect(None))

    def test_anothers_certificate(self) -> None:
        """Nor does one whose certificate another authority signed, even one of the same name."""
        self.assert_shut_out(self.connect(Authority().write(self.directory / "client", "alice")))

    def test_a_servers_certificate(self) -> None:
        """Nor does one with a certificate that is made for servers."""
        self.assert_shut_out(self.connect(self.server))

    def test_an_old_certificate(self) -> None:
        """Nor does one whose certificate has expired."""
        self.assert_shut_out(self.connect(self.authority.write(self.directory / "client", "bob", expired=True)))

    def test_old_tls(self) -> None:
        """Nor does one that speaks no TLS 1.2."""
        directory = self.authority.write(self.directory / "client", "bob")
        self.assert_shut_out(self.connect(directory, maximum=SSL.TLS1_1_VERSION))

    def test_silence(self) -> None:
        """A client that does not get on with its handshake is not waited for as one that has come in."""
        client = Peer()
        self.clients.append(client)
        self.network.connect(client, TLSFactory(self.tls, False, self.site, self.clock).buildProtocol(None))
        self.advance(self.limits.head_seconds)
        self.assertEqual(self.site.connections, 0)

    def test_too_many(self) -> None:
        """A connection that the site does not take is closed."""
        self.site.buildProtocol = lambda addr: None  # type: ignore[method-assign]
        self.assertIsNone(TLSFactory(self.tls, False, self.site, self.clock).buildProtocol(None))


class CertificateOrTokenTests(CertificateTests):
    access = {"tokens": TOKENS}

    def test_a_token(self) -> None:
        """A client without a certificate may prove by token who it is."""
        self.connect(None, GET[:-2] + b"Authorization: Bearer " + TOKEN + b"\r\n\r\n")
        self.send(self.upstream, OK)
        self.assertEqual(self.callers, [Caller("ci", Proof.TOKEN)])

    def test_a_certificate(self) -> None:
        """Or by certificate, as ever."""
        self.assertEqual(self.user("bob"), Caller("bob", Proof.CERTIFICATE))

    def test_neither(self) -> None:
        """Without either it is told what is wanted."""
        self.assert_error(self.connect(None), 401, "or a token")
        self.assertEqual(self.daemon.peers, [])

    def test_anothers_certificate(self) -> None:
        """A certificate of another authority is worse than none."""
        self.assert_shut_out(self.connect(Authority().write(self.directory / "client", "alice")))


class FilesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        Authority().write(self.directory, "server", [x509.DNSName("RDA.example")], server=True)

    def problem(self, need_certificate: bool = True) -> str:
        make = lambda: ServerTLS(str(self.directory), need_certificate)  # noqa: E731
        return str(self.assertRaises(CertificateProblem, make))

    def test_names(self) -> None:
        """The certificate says what clients call the listener."""
        self.assertEqual(ServerTLS(str(self.directory), True).names, {"rda.example"})

    def test_missing_files(self) -> None:
        """A missing file is named; the authority is not needed where tokens say who calls."""
        (self.directory / "ca.pem").unlink()
        self.assertIn("cannot be used", self.problem())
        ServerTLS(str(self.directory), need_certificate=False)
        (self.directory / "key.pem").unlink()
        self.assertIn("cannot be used", self.problem(False))

    def test_a_key_of_another(self) -> None:
        """A key that does not belong to the certificate is found out at once."""
        other = Authority().write(Path(self.mktemp()), "x")
        shutil.copy(other / "key.pem", self.directory / "key.pem")
        self.assertIn("does not belong to the certificate", self.problem())

    def test_renewed(self) -> None:
        """Files that have changed are read again; damaged ones leave those before in use."""
        tls = ServerTLS(str(self.directory), True)
        before = tls.getContext()
        (self.directory / "cert.pem").write_text("damaged")
        self.assertRaises(CertificateProblem, tls.read)
        self.assertIs(tls.getContext(), before)
        Authority().write(self.directory, "server", [x509.DNSName("new.example")], server=True)
        tls.read()
        self.assertIsNot(tls.getContext(), before)
        self.assertEqual(tls.names, {"new.example"})


class UnauthorizedTests(SynchronousTestCase):
    def test_status(self) -> None:
        """Who proves nothing gets 401, who is known and not allowed 403."""
        self.assertEqual((Unauthorized.status, Refused.status), (401, 403))
