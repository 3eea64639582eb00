"""Host keys are judged and users logged in, against Conch's server and an agent in memory."""

from __future__ import annotations

import os
import struct
from base64 import b64encode
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.keys import Key
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from rda.errors import HostKeyRefused, LinkDown, LoginFailed
from rda.ssh.agent import MAX_MESSAGE, AgentClient, AgentError, AgentKey
from rda.ssh.host_keys import HostKeys
from rda.ssh.identities import KeyStore, KeyUnusable, order_candidates
from rda.ssh.keys import fingerprint
from rda.ssh.known_hosts import HostName, KnownHosts
from rda.ssh.login import Login, LoginKeys, UserAuth
from tests.ssh_keys import NOW, blob, certificate_line, openssh_file, private, public_line
from tests.ssh_server import USER, Remote, SshInMemory

KEY, OTHER = private(), private("ed25519", 1)
RSA = private("rsa")


HOST = HostName("host.example", 2222)


class HostKeysTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def keys(self, text: bytes = b"", host: HostName = HOST, **options) -> HostKeys:
        if text:
            self.path.write_bytes(text)
        return HostKeys(host, [str(self.path)], lambda: NOW, **options)

    def refusal(self, keys: HostKeys, key=KEY) -> str:
        failure = self.failureResultOf(keys.verify(blob(key)), HostKeyRefused)
        self.assertTrue(failure.value.permanent)
        return str(failure.value)

    def test_known(self) -> None:
        """A key that known_hosts has is trusted, and the file is read anew each time."""
        keys = self.keys()
        self.refusal(keys)
        self.path.write_bytes(b"[host.example]:2222 " + public_line(KEY))
        self.assertIs(self.successResultOf(keys.verify(blob(KEY))), None)
        self.assertEqual(keys.algorithms[0], b"ssh-ed25519")

    def test_unknown(self) -> None:
        """An unknown key is refused with its fingerprint and the command that would add it."""
        message = self.refusal(self.keys())
        self.assertIn(fingerprint(blob(KEY)), message)
        self.assertIn(f"ssh-keyscan -H -p 2222 host.example >> {self.path}", message)
        self.assertIn(f"--host-key {fingerprint(blob(KEY))}", message)

    def test_unknown_behind_a_jump_host(self) -> None:
        """Where ssh-keyscan cannot reach, it is not recommended."""
        self.assertNotIn("ssh-keyscan", self.refusal(self.keys(scannable=False)))

    def test_changed(self) -> None:
        """A changed key is refused with the line that holds the old one, even when new ones are accepted."""
        for accept in (False, True):
            message = self.refusal(self.keys(b"[host.example]:2222 " + public_line(OTHER), accept_new=accept))
            self.assertIn("HAS CHANGED", message)
            self.assertIn(f"{self.path}:1 holds ssh-ed25519 {fingerprint(blob(OTHER))}", message)
            self.assertIn("ssh-keygen -R '[host.example]:2222'", message)
        self.assertNotIn(public_line(KEY), self.path.read_bytes())

    def test_another_type(self) -> None:
        """A key of another type than the known one is not accepted as new either."""
        keys = self.keys(b"[host.example]:2222 " + public_line(RSA), accept_new=True)
        self.assertIn("another type", self.refusal(keys))

    def test_revoked(self) -> None:
        """A revoked key is refused, whatever else would trust it: its line, a pin, acceptance of new keys."""
        revoked = b"@revoked * " + public_line(KEY) + b"\n"
        self.assertIn("revoked", self.refusal(self.keys(revoked + b"* " + public_line(KEY))))
        self.assertIn("revoked", self.refusal(self.keys(revoked, accept_new=True)))
        self.assertIn("revoked", self.refusal(self.keys(revoked, pins=[fingerprint(blob(KEY))])))

    def test_revoked_host_keys_file(self) -> None:
        """RevokedHostKeys lists revoked keys; a list that cannot be read revokes every key, as in ssh."""
        good = b"* " + public_line(KEY)
        listed = Path(self.mktemp())
        for content, expected in ((public_line(KEY), "revoked"), (b"SSHKRL\n\0...", "KRL"), (None, "cannot be read")):
            if content is None:
                listed.unlink()
            else:
                listed.write_bytes(content)
            self.assertIn(expected, self.refusal(self.keys(good, revoked_files=[str(listed)])))
        listed.write_bytes(public_line(OTHER))
        self.successResultOf(self.keys(good, revoked_files=[str(listed)]).verify(blob(KEY)))

    def test_weak(self) -> None:
        """An RSA key that is too short is refused, known and pinned though it is."""
        weak = rsa.generate_private_key(65537, 1024)
        line = b"[host.example]:2222 " + public_line(weak)
        for options in ({}, {"pins": [fingerprint(blob(weak))]}):
            self.assertIn("1024 bits", self.refusal(self.keys(line, **options), weak))
        strong = b"[host.example]:2222 " + public_line(RSA)
        self.successResultOf(self.keys(strong).verify(blob(RSA)))
        self.assertIn("below 4096", self.refusal(self.keys(strong, rsa_bits=4096), RSA))

    def test_allowed_algorithms(self) -> None:
        """HostKeyAlgorithms limits what is asked for; an authority that nobody knows does not empty the list."""
        self.assertEqual(self.keys(algorithms=[b"ssh-ed25519", b"x"]).algorithms, [b"ssh-ed25519"])
        self.assertEqual(self.keys(algorithms=[b"ssh-ed25519"], pins=["SHA256:x"]).algorithms, [b"ssh-ed25519"])
        certificates = [b"ssh-ed25519-cert-v01@openssh.com"]
        self.assertEqual(self.keys(algorithms=certificates).algorithms, certificates)

    def test_pins(self) -> None:
        """With pins only they count: neither known_hosts nor acceptance of new keys does."""
        pin = fingerprint(blob(KEY))
        self.successResultOf(self.keys(pins=[pin]).verify(blob(KEY)))
        self.successResultOf(self.keys(pins=[pin + "="]).verify(blob(KEY)))
        keys = self.keys(b"[host.example]:2222 " + public_line(OTHER), pins=[pin], accept_new=True)
        self.assertIn(pin, self.refusal(keys, OTHER))
        self.successResultOf(keys.verify(blob(KEY)))

    def test_accept_new(self) -> None:
        """A new host's key is remembered, hashed, on a line of its own, and is the only one from then on."""
        self.path.write_bytes(b"# no newline at the end")
        keys = self.keys(accept_new=True)
        self.successResultOf(keys.verify(blob(KEY)))
        self.assertNotIn(b"host.example", self.path.read_bytes())
        self.assertEqual(len(KnownHosts([("kh", self.path.read_bytes())]).entries), 1)
        self.successResultOf(self.keys().verify(blob(KEY)))
        self.assertIn("HAS CHANGED", self.refusal(keys, OTHER))

    def test_accept_new_makes_the_file(self) -> None:
        """The directory and the file are made where they are missing."""
        self.path = Path(self.mktemp()) / "ssh" / "known_hosts"
        self.successResultOf(self.keys(accept_new=True).verify(blob(KEY)))
        self.assertEqual(self.path.parent.stat().st_mode & 0o777, 0o700)

    def test_accept_new_that_cannot_be_remembered(self) -> None:
        """A key that cannot be remembered is not trusted: it would be a new one every time."""
        self.path.mkdir()
        self.assertIn("cannot be remembered", self.refusal(self.keys(accept_new=True)))

    def test_alias(self) -> None:
        """HostKeyAlias is looked up without a port."""
        keys = self.keys(b"alias " + public_line(KEY), HostName("alias", 2222, alias=True))
        self.successResultOf(keys.verify(blob(KEY)))


class FakeAgent(AgentClient):
    """An agent in memory: keys by blob, and the flags it was asked to sign with. Old ones sign RSA with SHA-1."""

    def __init__(self, *held, old: bool = False, refuses: bool = False) -> None:
        super().__init__(Clock())
        self.held = {blob(key): key for key in held}
        self.asked: list[tuple[bytes, bytes]] = []
        self.refuses = refuses

    def listed(self) -> list[AgentKey]:
        return [AgentKey(one, f"held {number}") for number, one in enumerate(self.held)]

    def sign(self, key: bytes, data: bytes, signature: bytes) -> Deferred[bytes]:
        self.asked.append((key, signature))
        if self.refuses or key not in self.held:
            return fail(AgentError("the agent refused to sign with this key"))
        return succeed(Key(self.held[key]).sign(data, signature))


class AgentClientTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.transport = StringTransport()
        self.agent = AgentClient(self.clock)
        self.agent.makeConnection(self.transport)
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def answer(self, packet: bytes) -> None:
        self.agent.dataReceived(NS(packet))

    def test_lists_keys(self) -> None:
        """Keys are opaque: certificates and security keys are listed like any other, byte by byte."""
        keys = self.agent.keys()
        self.assertEqual(self.transport.value(), b"\0\0\0\x01\x0b")
        strange = b"\0\0\0\x03sk-whatever"
        packet = NS(b"\x0c" + struct.pack(">L", 2) + NS(strange) + NS(b"a") + NS(blob(KEY)) + NS(b"\xff"))
        for at in range(len(packet)):
            self.assertNoResult(keys)
            self.agent.dataReceived(packet[at : at + 1])
        self.assertEqual(self.successResultOf(keys), [AgentKey(strange, "a"), AgentKey(blob(KEY), "\ufffd")])

    def test_signs_with_flags(self) -> None:
        """The flags ask for the SHA-2 signature that the server takes; others have none."""
        for name, flags in ((b"rsa-sha2-512", 4), (b"rsa-sha2-256", 2), (b"ssh-ed25519", 0)):
            self.transport.clear()
            signing = self.agent.sign(b"blob", b"data", name)
            self.assertEqual(self.transport.value(), NS(b"\x0d" + NS(b"blob") + NS(b"data") + struct.pack(">L", flags)))
            self.answer(b"\x0e" + NS(NS(name) + NS(b"signature")))
            self.assertEqual(self.successResultOf(signing), NS(name) + NS(b"signature"))

    def test_an_old_agent(self) -> None:
        """An agent that signs with SHA-1 all the same is told from a server that refuses."""
        signing = self.agent.sign(b"blob", b"data", b"rsa-sha2-512")
        self.answer(b"\x0e" + NS(NS(b"ssh-rsa") + NS(b"signature")))
        self.assertIn("too old", str(self.failureResultOf(signing, AgentError).value))

    def test_answers_in_order(self) -> None:
        """Requests that are under way together get their own answers."""
        first, second = self.agent.sign(b"1", b"", b"x"), self.agent.keys()
        self.answer(b"\x05")
        self.failureResultOf(first, AgentError)
        self.answer(b"\x0c\0\0\0\0")
        self.assertEqual(self.successResultOf(second), [])

    def test_bad_answers(self) -> None:
        """An agent that talks rubbish fails the request, or the connection where the rest would be out of step."""
        for packet in (
            b"\x0c",
            b"\x0c\0\0\0\x01",
            b"\x0c\xff\xff\xff\xff",
            b"\x0e",
            b"\x63",
            b"\x0c\0\0\0\x01\0\0\0\x09x",
        ):
            keys = self.agent.keys()
            self.answer(packet)
            self.failureResultOf(keys, AgentError)
        keys = self.agent.keys()
        self.agent.dataReceived(struct.pack(">L", MAX_MESSAGE + 1))
        self.failureResultOf(keys, AgentError)
        self.assertTrue(self.transport.disconnecting)
        self.failureResultOf(self.agent.keys(), AgentError)

    def test_unasked(self) -> None:
        """An answer that nobody asked for ends the connection."""
        self.answer(b"\x05")
        self.assertTrue(self.transport.disconnecting)

    def test_silence(self) -> None:
        """An agent that does not answer is given up after a named time."""
        keys = self.agent.keys()
        self.clock.advance(10)
        self.assertIn("within 10 s", str(self.failureResultOf(keys, AgentError).value))

    def test_lost(self) -> None:
        """A lost connection fails what waits and what comes."""
        keys = self.agent.keys()
        self.agent.connectionLost()
        self.failureResultOf(keys, AgentError)
        self.failureResultOf(self.agent.keys(), AgentError)


class IdentityCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.prompts: list[str] = []
        self.answers: list[bytes | None] = []

    def write(self, name: str, data: bytes, mode: int = 0o600) -> str:
        path = self.directory / name
        path.write_bytes(data)
        path.chmod(mode)
        return str(path)

    def ask(self, prompt: str) -> Deferred[bytes | None]:
        self.prompts.append(prompt)
        return succeed(self.answers.pop(0))

    def encrypted(self, key=RSA) -> bytes:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


class KeyStoreTests(IdentityCase):
    def test_finds_what_is_there(self) -> None:
        """Missing files are left out; a .pub file alone, or named itself, stands for a key in the agent."""
        one = self.write("one", openssh_file(KEY))
        self.write("two.pub", public_line(OTHER))
        three = self.write("three.pub", public_line(RSA))
        found = KeyStore().find([one, str(self.directory / "two"), three, str(self.directory / "none")])
        self.assertEqual([identity.blob for identity in found], [blob(KEY), blob(OTHER), blob(RSA)])
        self.assertEqual([identity.private is None for identity in found], [False, True, True])

    def test_problems(self) -> None:
        """What cannot be used says why, and never stops the others."""
        open_to_all = self.write("open", openssh_file(KEY), 0o644)
        rubbish = self.write("rubbish", b"-----BEGIN PRIVATE KEY-----\nxx\n-----END PRIVATE KEY-----\n")
        folder = self.directory / "folder"
        folder.mkdir()
        pipe = self.directory / "pipe"
        os.mkfifo(pipe)
        text = self.write("text", b"hello")
        found = KeyStore().find([open_to_all, rubbish, str(folder), str(pipe), text])
        self.assertEqual(len(found), 5)
        self.assertIn("chmod 600", found[0].problem)
        self.assertEqual(found[0].blob, blob(KEY))  # the agent may still have it
        for identity in found:
            self.assertTrue(identity.problem, identity.path)
            self.assertIs(identity.private, None)

    def test_security_key_file(self) -> None:
        """A security key's file only names the key; the agent has to sign."""
        kind = b"sk-ssh-ed25519@openssh.com"
        raw = (
            b"openssh-key-v1\0"
            + NS(b"none")
            + NS(b"none")
            + NS(b"")
            + b"\0\0\0\x01"
            + NS(NS(kind) + NS(b"x"))
            + NS(b"")
        )
        data = b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + b64encode(raw) + b"\n-----END OPENSSH PRIVATE KEY-----\n"
        found = KeyStore().find([self.write("sk", data)])[0]
        self.assertIn("ssh-add", found.problem)
        self.assertIs(found.private, None)

    def test_certificates(self) -> None:
        """A user certificate beside the key belongs to it; one for another key, or for a host, does not."""
        authority = private("ed25519", 3)
        path = self.write("id", openssh_file(KEY))
        good = certificate_line(KEY, authority, host=False)
        self.write("id-cert.pub", good)
        other = self.write("other", certificate_line(OTHER, authority, host=False))
        host = self.write("host", certificate_line(KEY, authority, host=True))
        extra = self.write("extra", certificate_line(KEY, authority, host=False, names=[b"x"]))
        (found,) = KeyStore().find([path], [other, host, extra])
        self.assertEqual(len(found.certificates), 2)

    def test_unlocks_once(self) -> None:
        """A passphrase is asked for once; the key stays unlocked until its file changes."""
        path = self.write("id", self.encrypted())
        store = KeyStore(self.ask)
        self.answers = [b"wrong", b"secret"]
        for _ in range(2):
            (identity,) = store.find([path])
            key = self.successResultOf(Deferred.fromCoroutine(store.unlock(identity)))
            self.assertEqual(key.blob(), blob(RSA))
        self.assertEqual(len(self.prompts), 2)
        self.assertIn(path, self.prompts[0])
        self.assertEqual(identity.blob, blob(RSA))

    def test_three_tries(self) -> None:
        """After three wrong passphrases the key is left alone."""
        (identity,) = KeyStore().find([self.write("id", self.encrypted())])
        self.answers = [b"a", b"b", b"c"]
        unlocking = Deferred.fromCoroutine(KeyStore(self.ask).unlock(identity))
        self.assertIn("3 times", str(self.failureResultOf(unlocking, KeyUnusable).value))

    def test_nobody_to_ask(self) -> None:
        """Without anybody to ask, the message says how to use the key all the same."""
        (identity,) = KeyStore().find([self.write("id", self.encrypted())])
        for store in (KeyStore(), KeyStore(lambda prompt: succeed(None))):
            unlocking = Deferred.fromCoroutine(store.unlock(identity))
            self.assertIn("ssh-add", str(self.failureResultOf(unlocking, KeyUnusable).value))

    def test_one_prompt_at_a_time(self) -> None:
        """A second login while the prompt is on the screen waits for the same answer."""
        prompt: Deferred[bytes | None] = Deferred()
        asked = []
        store = KeyStore(lambda text: (asked.append(text), prompt)[1])
        (identity,) = store.find([self.write("id", self.encrypted())])
        first = Deferred.fromCoroutine(store.unlock(identity))
        second = Deferred.fromCoroutine(store.unlock(identity))
        first.cancel()
        self.failureResultOf(first)
        prompt.callback(b"secret")
        self.assertEqual(self.successResultOf(second).blob(), blob(RSA))
        self.assertEqual(len(asked), 1)


class OrderTests(IdentityCase):
    def labels(self, identities, store, agent=None, only=False) -> list[str]:
        held = agent.listed() if agent is not None else []
        return [one.label.split(" (")[0] for one in order_candidates(identities, store, agent, held, only)]

    def test_order(self) -> None:
        """Certificates, configured keys of the agent, its other keys, then files; as ssh has it."""
        store = KeyStore()
        third = private("ed25519", 4)
        a = self.write("a", openssh_file(KEY))
        b = self.write("b", openssh_file(OTHER))
        self.write("b-cert.pub", certificate_line(OTHER, private("ed25519", 3), host=False))
        identities = store.find([a, b])
        agent = FakeAgent(third, KEY)
        self.assertEqual(
            self.labels(identities, store, agent),
            [f"file {b}", "agent key held 1", "agent key held 0", f"file {a}", f"file {b}"],
        )
        self.assertEqual(
            self.labels(identities, store, agent, only=True),
            [f"file {b}", "agent key held 1", f"file {a}", f"file {b}"],
        )
        self.assertEqual(self.labels(identities, store), [f"file {b}", f"file {a}", f"file {b}"])

    def test_certificate_signed_by_the_agent(self) -> None:
        """A certificate in a file is usable when only the agent has its private key."""
        self.write("id.pub", public_line(KEY))
        self.write("id-cert.pub", certificate_line(KEY, private("ed25519", 3), host=False))
        store = KeyStore()
        identities = store.find([str(self.directory / "id")])
        agent = FakeAgent(KEY)
        first = order_candidates(identities, store, agent, agent.listed(), False)[0]
        self.assertIn("cert-v01", first.label)
        self.successResultOf(Deferred.fromCoroutine(first.sign(b"data", b"ssh-ed25519")))  # type: ignore[arg-type]
        self.assertEqual(agent.asked, [(blob(KEY), b"ssh-ed25519")])


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
