"""rda.ssh.login: user authentication, with the keys that there are."""

from __future__ import annotations

from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.keys import Key
from twisted.internet.task import Clock

from rda.errors import LinkDown, LoginFailed
from rda.ssh.agent import AgentKey
from rda.ssh.identities import KeyStore
from rda.ssh.keys import fingerprint
from rda.ssh.login import Login, LoginKeys, UserAuth
from tests.login_case import KEY, OTHER, RSA, FakeAgent, IdentityCase
from tests.ssh_keys import blob, openssh_file, private, public_line
from tests.ssh_server import USER, Remote, SshInMemory


class LoginCase(IdentityCase):
    """Logs in to Conch's server in memory."""

    agent: FakeAgent | None = None

    def setUp(self) -> None:
        super().setUp()
        self.remote = Remote()
        self.store = KeyStore(self.ask)

    def login(
        self, *identities: str, allowed=(), user: str = USER.decode(), only: bool = False, accepted=None, **server
    ) -> SshInMemory:
        self.remote.user_keys.extend(Key(key).public() for key in allowed)
        agent_path = "/agent" if self.agent else ""
        keys = LoginKeys(identities, identities_only=only, agent_path=agent_path, accepted=accepted)
        self.authenticate = Login(self.remote.clock, user, "host (port 22)", keys, self.store)
        if self.agent is not None:
            agent = self.agent

            async def open_agent():
                return agent, agent.listed(), ""

            self.patch(self.authenticate, "_open_agent", open_agent)
        return SshInMemory(self.remote, authenticate=self.authenticate, **server)

    def refusal(self, link: SshInMemory) -> str:
        link.flush()
        failure = self.failureResultOf(link.client.ready)
        self.assertIsInstance(failure.value, LoginFailed)
        self.assertIs(self.authenticate.refusal, failure.value)
        self.assertTrue(failure.value.permanent)
        return str(failure.value)


class LoginTests(LoginCase):
    def test_key_files(self) -> None:
        """Every type of key file logs in, RSA too: with SHA-2."""
        for kind in ("ed25519", "ecdsa", "rsa"):
            key = private(kind)
            link = self.login(self.write(kind, openssh_file(key)), allowed=[key])
            self.assertIs(self.successResultOf(link.client.ready), link.connection, kind)

    def test_encrypted_key(self) -> None:
        """An encrypted key whose public half is hidden asks for its passphrase, and logs in."""
        self.answers = [b"secret"]
        link = self.login(self.write("id", self.encrypted()), allowed=[RSA])
        self.successResultOf(link.client.ready)
        self.assertEqual(len(self.prompts), 1)

    def test_agent(self) -> None:
        """An RSA key of the agent signs with SHA-2; keys that nothing here understands do no harm."""
        self.agent = FakeAgent(RSA)
        strange = NS(b"sk-ssh-ed25519@openssh.com") + NS(b"x" * 32) + NS(b"ssh:")
        self.agent.listed = lambda: [AgentKey(strange, "sk"), AgentKey(blob(RSA), "rsa")]  # type: ignore[method-assign]
        link = self.login(allowed=[RSA])
        self.successResultOf(link.client.ready)
        self.assertIn(self.agent.asked[-1][1], (b"rsa-sha2-512", b"rsa-sha2-256"))

    def test_accepted_algorithms(self) -> None:
        """A key of a kind that PubkeyAcceptedAlgorithms leaves out is not offered, and the message says so."""
        path = self.write("id", openssh_file(KEY))
        message = self.refusal(self.login(path, allowed=[KEY], accepted=frozenset((b"rsa-sha2-512",))))
        self.assertIn("PubkeyAcceptedAlgorithms leaves out ssh-ed25519", message)
        link = self.login(path, allowed=[KEY], accepted=frozenset((b"ssh-ed25519",)))
        self.successResultOf(link.client.ready)

    def test_file_after_a_reluctant_agent(self) -> None:
        """When the agent will not sign, the same key's file does."""
        self.agent = FakeAgent(KEY, refuses=True)
        link = self.login(self.write("id", openssh_file(KEY)), allowed=[KEY])
        self.successResultOf(link.client.ready)
        self.assertEqual(len(self.agent.asked), 1)

    def test_refused(self) -> None:
        """A refused login says which keys were tried, which were not and why, and what to do."""
        tried = self.write("tried", openssh_file(OTHER))
        open_to_all = self.write("open", openssh_file(KEY), 0o644)
        message = self.refusal(self.login(tried, open_to_all, allowed=[KEY]))
        for part in (
            f"file {tried}",
            fingerprint(blob(OTHER)),
            "chmod 600",
            "authorized_keys of tester",
            "SSH_AUTH_SOCK",
        ):
            self.assertIn(part, message)

    def test_a_refused_key_is_offered_once(self) -> None:
        """A key that the agent and a file have is not offered again once it was refused."""
        self.agent = FakeAgent(KEY)
        link = self.login(self.write("id", openssh_file(KEY)))
        self.assertEqual(self.refusal(link).count(fingerprint(blob(KEY))), 1)

    def test_nothing_to_try(self) -> None:
        """Without any key, the message says so."""
        self.assertIn("no key, as there was none to try", self.refusal(self.login()))


class FakeSSHTransport:
    """Records what a service sends."""

    sessionID = b"session"
    server_sig_algs = None
    reason = LinkDown("The SSH connection to host:22 was lost: reset.")

    def __init__(self) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self.disconnected: list[bytes] = []
        self.service: object = None
        self.failed: list[Exception] = []

    def requestService(self, service) -> None:
        service.transport = self
        self.wanted = service

    def setService(self, service) -> None:
        self.service = service

    def sendPacket(self, number: int, payload: bytes) -> None:
        self.sent.append((number, payload))

    def sendDisconnect(self, code: int, text: bytes) -> None:
        self.disconnected.append(text)

    def fail(self, reason: Exception) -> None:
        self.failed.append(reason)


class Connection:
    name = b"ssh-connection"


class DialogueTests(IdentityCase):
    """One login, message by message, with a server that Conch's is not."""

    def setUp(self) -> None:
        super().setUp()
        self.transport = FakeSSHTransport()
        self.connection = Connection()

    def begin(self, *identities: str, store: KeyStore | None = None) -> UserAuth:
        login = Login(Clock(), "me", "host (port 22)", LoginKeys(identities), store or KeyStore())
        login(self.transport, self.connection)  # type: ignore[arg-type]
        service = self.transport.wanted
        service.serviceStarted()
        return service

    def last(self) -> tuple[bytes, bytes]:
        """The last request's method and the rest of it."""
        number, payload = self.transport.sent[-1]
        self.assertEqual(number, 50)
        user, service, method, rest = getNS(payload, 3)
        self.assertEqual((user, service), (b"me", b"ssh-connection"))
        return method, rest

    def refuse(self, service: UserAuth, methods: bytes = b"publickey", partial: bool = False) -> None:
        service.ssh_FAILURE(NS(methods) + bytes((partial,)))

    def test_probe_then_sign(self) -> None:
        """The key is offered before it signs, and the signature covers the session (RFC 4252, section 7)."""
        service = self.begin(self.write("id", openssh_file(KEY)))
        self.assertEqual(self.last(), (b"none", b""))
        self.refuse(service)
        offered = NS(b"ssh-ed25519") + NS(blob(KEY))
        self.assertEqual(self.last(), (b"publickey", b"\0" + offered))
        service.ssh_PK_OK(offered)
        method, rest = self.last()
        self.assertTrue(rest.startswith(b"\1" + offered))
        signature, _ = getNS(rest[1 + len(offered) :])
        signed = NS(b"session") + b"\x32" + NS(b"me") + NS(b"ssh-connection") + NS(method) + b"\1" + offered
        self.assertTrue(Key(KEY).public().verify(signature, signed))
        service.ssh_SUCCESS(b"")
        self.assertIs(self.transport.service, self.connection)
        self.assertEqual(self.transport.failed, [])

    def test_no_prompt_for_a_key_that_is_not_wanted(self) -> None:
        """A passphrase is not asked for before the server says that the key would do."""
        locked = self.write("locked", self.encrypted())
        self.write("locked.pub", public_line(RSA))
        service = self.begin(locked, store=KeyStore(self.ask))
        self.refuse(service)
        self.assertIn(blob(RSA), self.last()[1])
        self.assertEqual(self.prompts, [])
        self.answers = [b"secret"]
        service.ssh_PK_OK(NS(b"rsa-sha2-512") + NS(blob(RSA)))
        self.assertEqual(len(self.prompts), 1)
        self.assertTrue(self.last()[1].startswith(b"\1"))

    def test_no_authentication_needed(self) -> None:
        """A server that lets everybody in is taken at its word."""
        self.begin().ssh_SUCCESS(b"")
        self.assertIs(self.transport.service, self.connection)

    def test_two_keys_wanted(self) -> None:
        """A server that wants two keys gets a second, different one."""
        service = self.begin(self.write("a", openssh_file(KEY)), self.write("b", openssh_file(OTHER)))
        self.refuse(service)
        service.ssh_PK_OK(NS(b"ssh-ed25519") + NS(blob(KEY)))
        self.refuse(service, partial=True)
        self.assertIn(blob(OTHER), self.last()[1])
        service.ssh_PK_OK(NS(b"ssh-ed25519") + NS(blob(OTHER)))
        service.ssh_SUCCESS(b"")
        self.assertIs(self.transport.service, self.connection)

    def test_more_than_keys_wanted(self) -> None:
        """A server that wants a password too is refused with its wish."""
        service = self.begin(self.write("a", openssh_file(KEY)))
        self.refuse(service)
        service.ssh_PK_OK(NS(b"ssh-ed25519") + NS(blob(KEY)))
        self.refuse(service, b"keyboard-interactive", partial=True)
        (error,) = self.transport.failed
        self.assertIsInstance(error, LoginFailed)
        self.assertIn("wants keyboard-interactive after that", str(error))

    def test_banner(self) -> None:
        """The server's banner is shown when the login fails, without control characters, and not all of it."""
        service = self.begin()
        service.ssh_BANNER(NS(b"Closed for \x1b[31mrepairs\n" + b"x" * 5000) + NS(b""))
        service.ssh_BANNER(NS(b"more") + NS(b""))
        self.refuse(service)
        message = str(self.transport.failed[0])
        self.assertIn("The server says: Closed for  [31mrepairs", message)
        self.assertLess(len(message), 1500)

    def test_too_many_refusals(self) -> None:
        """A server that hangs up after some refusals makes a failure for good, with advice."""
        service = self.begin(*(self.write(f"k{n}", openssh_file(private("ed25519", 20 + n))) for n in range(3)))
        for _ in range(2):
            self.refuse(service)
        self.transport.reason = LinkDown("The SSH server at x ended the connection: Too many authentication failures")
        service.serviceStopped()
        (error,) = self.transport.failed
        self.assertIsInstance(error, LoginFailed)
        self.assertIn("IdentitiesOnly", str(error))

    def test_lost_on_the_way(self) -> None:
        """A connection that is lost during the login is no refusal."""
        service = self.begin(self.write("a", openssh_file(KEY)), self.write("b", openssh_file(OTHER)))
        for _ in range(2):
            self.refuse(service)
        service.serviceStopped()
        (error,) = self.transport.failed
        self.assertNotIsInstance(error, LoginFailed)
        self.assertIsInstance(error, LinkDown)

    def test_lost_before_the_start(self) -> None:
        """A server that never starts the service is no refusal either."""
        login = Login(Clock(), "me", "host", LoginKeys(), KeyStore())
        login(self.transport, self.connection)  # type: ignore[arg-type]
        self.transport.wanted.serviceStopped()
        self.assertNotIsInstance(self.transport.failed[0], LoginFailed)

    def test_malformed(self) -> None:
        """Messages that are damaged, or that nobody asked for, end the connection."""
        service = self.begin()
        for call, packet in (
            (service.ssh_FAILURE, b""),
            (service.ssh_PK_OK, b"\0\0\0\x09x"),
            (service.ssh_FAILURE, NS(b"x")),
        ):
            before = len(self.transport.disconnected)
            call(packet)
            self.assertEqual(len(self.transport.disconnected), before + 1)
        service.ssh_BANNER(b"")
        self.refuse(service)  # the attempt is over now
        for call, packet in ((service.ssh_SUCCESS, b""), (service.ssh_FAILURE, NS(b"x") + b"\0")):
            before = len(self.transport.disconnected)
            call(packet)
            self.assertEqual(len(self.transport.disconnected), before + 1)
        self.assertIs(self.transport.service, None)

    def test_answer_about_another_key(self) -> None:
        """A server that accepts a key that was not offered gets no signature for it."""
        service = self.begin(self.write("a", openssh_file(KEY)))
        self.refuse(service)
        service.ssh_PK_OK(NS(b"ssh-ed25519") + NS(blob(OTHER)))
        self.assertIn("another key", str(self.transport.failed[0]))
