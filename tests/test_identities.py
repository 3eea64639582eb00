"""rda.ssh.identities and rda.ssh.agent: which keys there are, and in which order they are offered."""

from __future__ import annotations

import os
import struct
from base64 import b64encode

from twisted.conch.ssh.common import NS
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from rda.ssh.agent import MAX_MESSAGE, AgentClient, AgentError, AgentKey
from rda.ssh.identities import KeyStore, KeyUnusable, order_candidates
from tests.login_case import KEY, OTHER, RSA, FakeAgent, IdentityCase
from tests.ssh_keys import blob, certificate_line, openssh_file, private, public_line


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
