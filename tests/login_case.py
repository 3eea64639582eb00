"""Keys in a directory, and the case of tests that log in with them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from twisted.conch.ssh.keys import Key
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from rda.ssh.agent import AgentClient, AgentError, AgentKey
from tests.ssh_keys import blob, private

KEY = private()


OTHER = private("ed25519", 1)


RSA = private("rsa")


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
