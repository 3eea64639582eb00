"""The keys a person can log in with: identity files and the agent's keys, in the order ssh(1) tries them.

The result is a list of :class:`Candidate`: something with a public blob that can sign. Files are read anew for every
login, so that a replaced key or certificate is used without a restart; a key that was unlocked with a passphrase stays
unlocked as long as its file does not change.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from twisted.conch.ssh.keys import Key
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from rda.deferreds import Waiters
from rda.ssh.agent import AgentClient, AgentKey
from rda.ssh.keys import (
    CERTIFICATE_SUFFIX,
    KeyUnreadable,
    fingerprint,
    key_type,
    load_public_line,
    parse_certificate,
    plain_blob,
)
from rda.ssh.private_keys import KeyEncrypted, load_private_key, public_in_private_file

__all__ = ["AskPassphrase", "Candidate", "IdentityFile", "KeyStore", "KeyUnusable", "order_candidates"]

#: Asks a person for a passphrase; fires with None when there is nobody to ask, or the person gives up.
AskPassphrase = Callable[[str], "Deferred[bytes | None]"]

#: Longest identity file that is read, bytes: OpenSSH's MAX_KEY_FILE_SIZE.
MAX_KEY_FILE = 1024 * 1024

#: How often a passphrase is asked for per key; ssh's NumberOfPasswordPrompts.
PASSPHRASE_TRIES = 3


class KeyUnusable(Exception):
    """This key cannot be used for this login; the message says why, for people."""


class Candidate:
    """A key to offer to the server.

    :param label: names the key for people, e.g. ``ED25519 key /home/me/.ssh/id_ed25519``.
    :param blob: its public key or certificate; None when only its passphrase reveals it.
    :param sign: given the data and the signature's name, makes the signature blob; raises :class:`KeyUnusable`,
        :class:`rda.ssh.agent.AgentError`.
    :param reveal: finds the blob when it is None.
    """

    def __init__(
        self,
        label: str,
        blob: bytes | None,
        sign: Callable[[bytes, bytes], Awaitable[bytes]],
        reveal: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self.label = label
        self.blob = blob
        self.sign = sign
        self._reveal = reveal

    async def public(self) -> bytes:
        """The blob to offer; may ask for a passphrase.

        :raises KeyUnusable: it stays hidden.
        """
        if self.blob is None:
            assert self._reveal is not None
            self.blob = await self._reveal()
        return self.blob


@dataclass
class IdentityFile:
    """An identity file as it was found.

    :ivar blob: the public key, None when it is hidden by the encryption and no ``.pub`` file is there.
    :ivar private: the private key file's content, None when there is only the public one.
    :ivar certificates: blobs of the certificates for this key.
    :ivar problem: why the file cannot be used on its own, for people; "" if it can.
    """

    path: str
    blob: bytes | None = None
    private: bytes | None = None
    certificates: list[bytes] = field(default_factory=list)
    problem: str = ""


class KeyStore:
    """Reads identity files, and remembers which private keys were unlocked.

    :param ask: how to ask for a passphrase. Set :attr:`ask` to None once nobody is there to answer any more: rda asks
        while it starts, never later.
    """

    def __init__(self, ask: AskPassphrase | None = None) -> None:
        self.ask = ask
        self._unlocked: dict[bytes, Key] = {}
        # Prompts that are on the screen: a connection that is lost meanwhile must not lead to a second one.
        self._asking: dict[bytes, Waiters[bytes | None]] = {}

    def find(self, paths: Iterable[str], certificates: Iterable[str] = ()) -> list[IdentityFile]:
        """Read identity files.

        :param paths: private (or public) key files; those that do not exist are left out.
        :param certificates: certificate files besides ``PATH-cert.pub`` (ssh_config's CertificateFile).
        """
        found = [identity for identity in (self._read(path) for path in paths) if identity is not None]
        extra = [blob for blob in (_read_public(path) for path in certificates) if blob is not None]
        for identity in found:
            beside = _read_public(identity.path.removesuffix(".pub") + "-cert.pub")
            for blob in [*extra, beside]:
                if blob is not None and blob not in identity.certificates and _is_about(blob, identity.blob):
                    identity.certificates.append(blob)
        return found

    def _read(self, path: str) -> IdentityFile | None:
        try:
            data, mode, owner = _read_file(path)
        except FileNotFoundError:
            blob = _read_public(path + ".pub")
            # The private half may be in the agent only; ssh does the same.
            return IdentityFile(path, blob) if blob is not None else None
        except OSError as error:
            return IdentityFile(path, problem=f"it cannot be read ({error.strerror or error})")
        if b"PRIVATE KEY" not in data:
            return self._public_only(path, data)
        identity = IdentityFile(path, public_in_private_file(data) or _read_public(path + ".pub"), data)
        if owner == os.getuid() and mode & 0o077:
            identity.private = None
            identity.problem = f"others can read it, so it is not used; run: chmod 600 {path}"
        elif identity.blob is not None and key_type(identity.blob).startswith(b"sk-"):
            identity.private = None
            identity.problem = f"it is on a security key, which is used through the agent; run: ssh-add {path}"
        else:
            self._look_inside(identity)
        return identity

    def _public_only(self, path: str, data: bytes) -> IdentityFile:
        try:
            return IdentityFile(path, load_public_line(data)[0])
        except KeyUnreadable as error:
            return IdentityFile(path, problem=f"it is not a key: {error}")

    def _look_inside(self, identity: IdentityFile) -> None:
        assert identity.private is not None
        try:
            key = self._unlocked.get(identity.private) or load_private_key(identity.private)
        except KeyEncrypted:
            return
        except KeyUnreadable as error:
            identity.private, identity.problem = None, str(error)
            return
        # What is inside counts: the .pub file beside it may be another key's.
        identity.blob = key.blob()
        self._unlocked[identity.private] = key

    async def unlock(self, identity: IdentityFile) -> Key:
        """The private key of an identity file, asking for its passphrase if it has one.

        :raises KeyUnusable: nobody can be asked, or the passphrase is wrong.
        """
        data = identity.private
        if data is None:
            raise KeyUnusable(identity.problem or "its private half is not here")
        key = self._unlocked.get(data)
        for _ in range(PASSPHRASE_TRIES):
            if key is not None:
                break
            passphrase = None if self.ask is None else await self._prompt(identity)
            if not passphrase:
                raise KeyUnusable(f"it needs a passphrase; add it to the agent: ssh-add {identity.path}")
            try:
                key = load_private_key(data, passphrase)
            except KeyEncrypted:
                continue
            except KeyUnreadable as error:
                raise KeyUnusable(str(error)) from error
        if key is None:
            raise KeyUnusable(f"the passphrase was wrong {PASSPHRASE_TRIES} times")
        self._unlocked[data] = key
        return key

    def _prompt(self, identity: IdentityFile) -> Deferred[bytes | None]:
        assert self.ask is not None
        assert identity.private is not None
        if identity.private in self._asking:
            return self._asking[identity.private].wait()
        waiters = self._asking[identity.private] = Waiters()
        answer = waiters.wait()
        self.ask(f"Passphrase for the key {identity.path}: ").addBoth(self._answered, identity.private)
        return answer

    def _answered(self, result: bytes | Failure | None, private: bytes) -> None:
        self._asking.pop(private).fire(result)

    def candidate(self, identity: IdentityFile, certificate: bytes | None = None) -> Candidate:
        """An identity file, or its certificate, as something to log in with."""

        async def sign(data: bytes, signature: bytes) -> bytes:
            key = await self.unlock(identity)
            return bytes(key.sign(data, signature))

        async def reveal() -> bytes:
            key = await self.unlock(identity)
            return bytes(key.blob())

        blob = certificate or identity.blob
        return Candidate(_label(blob, f"file {identity.path}"), blob, sign, reveal)


def _agent_candidate(agent: AgentClient, blob: bytes, held: AgentKey) -> Candidate:
    """A key of the agent; ``blob`` is what is offered: the key itself or a certificate for it that lies in a file."""

    async def sign(data: bytes, signature: bytes) -> bytes:
        return await agent.sign(held.blob, data, signature)

    return Candidate(_label(blob, f"agent key {held.comment}".rstrip()), blob, sign)


def order_candidates(
    identities: Sequence[IdentityFile],
    store: KeyStore,
    agent: AgentClient | None,
    agent_keys: Sequence[AgentKey],
    identities_only: bool,
) -> list[Candidate]:
    """Put the keys in the order of ssh(1) (sshconnect2.c, ``pubkey_prepare``).

    Certificates of identity files; the agent's keys that are identity files too; the agent's other keys unless
    ``identities_only``; identity files. A file whose key the agent has too comes once more at the end, in case the
    agent cannot or must not sign (it is old, its owner says no); a key that the server refused is not offered again.
    """
    held = {key.blob: key for key in agent_keys}
    chosen: dict[object, Candidate] = {}

    def add(candidate: Candidate, source: object = None) -> None:
        chosen.setdefault((candidate.blob, source), candidate)

    for identity in identities:
        for certificate in identity.certificates:
            in_agent = held.get(certificate) or held.get(plain_blob(certificate))
            if in_agent is not None and agent is not None:
                add(_agent_candidate(agent, certificate, in_agent))
            elif identity.private is not None:
                add(store.candidate(identity, certificate))
    if agent is not None:
        configured = [identity.blob for identity in identities if identity.blob in held]
        others = [] if identities_only else list(held)
        for blob in [*configured, *others]:
            assert blob is not None
            add(_agent_candidate(agent, blob, held[blob]))
    for identity in identities:
        if identity.private is not None:
            add(store.candidate(identity), identity.private)
    return list(chosen.values())


def _label(blob: bytes | None, where: str) -> str:
    if blob is None:
        return where
    try:
        kind = key_type(blob).decode("ascii")
    except KeyUnreadable:
        return where
    return f"{where} ({kind} {fingerprint(blob)})"


def _read_file(path: str) -> tuple[bytes, int, int]:
    # O_NONBLOCK: a FIFO in the place of a key must not hold the reactor up.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "not a regular file")
        data = stream.read(MAX_KEY_FILE + 1)
    if len(data) > MAX_KEY_FILE:
        raise OSError(0, f"larger than {MAX_KEY_FILE} bytes")
    return data, status.st_mode, status.st_uid


def _read_public(path: str) -> bytes | None:
    try:
        return load_public_line(_read_file(path)[0])[0]
    except (OSError, KeyUnreadable):
        return None


def _is_about(certificate: bytes, blob: bytes | None) -> bool:
    """Whether this is a user certificate for that public key."""
    try:
        if not key_type(certificate).endswith(CERTIFICATE_SUFFIX):
            return False
        parsed = parse_certificate(certificate)
    except KeyUnreadable:
        return False
    return not parsed.is_host and (blob is None or parsed.plain == blob)
