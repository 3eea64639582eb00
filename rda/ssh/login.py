"""Who we are: the client side of ssh-userauth (RFC 4252), with keys only.

A :class:`Login` is handed to :class:`rda.ssh.transport.ClientTransport`. A login that the server refuses fails for good
(:class:`rda.errors.LoginFailed`): a person has to act.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.service import SSHService
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from rda.errors import LinkDown, LoginFailed, RdaError
from rda.ssh.agent import AgentClient, AgentError, AgentKey
from rda.ssh.identities import Candidate, IdentityFile, KeyStore, KeyUnusable, order_candidates
from rda.ssh.keys import KeyUnreadable, signature_algorithm

if TYPE_CHECKING:
    from rda.ssh.channels import Connection
    from rda.ssh.transport import ClientTransport

__all__ = ["Login", "LoginKeys", "UserAuth"]

#: Keys offered in one login. OpenSSH's server ends the connection after six refusals (MaxAuthTries); other servers
#: and the keys of an agent that serves a whole team may go further.
MAX_OFFERS = 32

#: Bytes of the server's banner (RFC 4252, section 5.4) that are kept for messages.
MAX_BANNER = 1024

#: Seconds to wait for the agent's socket to answer.
AGENT_CONNECT_TIMEOUT = 5


#: What servers say when they hang up after refusing some keys: "Too many authentication failures" (OpenSSH), "no more
#: authentication methods available", "Max auth tries reached". There is no code of its own for it (RFC 4253, 11.1).
_CUT_OFF = re.compile(r"ended the connection: .*\bauth", re.IGNORECASE)


@dataclass(frozen=True)
class LoginKeys:
    """Which keys to log in with, as ssh_config says.

    :ivar agent_path: the agent's socket, "" for none.
    :ivar accepted: public key algorithms that may be used, None for all.
    """

    identities: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    identities_only: bool = False
    agent_path: str = ""
    accepted: frozenset[bytes] | None = None


class Login:
    """Logs in as one user: the ``authenticate`` of :class:`rda.ssh.transport.ClientTransport`.

    :param reactor: for the agent's socket and the time limits.
    :param user: the remote user.
    :param where: the host for messages.
    :param keys: which keys to use.
    :param store: reads and unlocks the identity files.
    :ivar refusal: why the login failed for good, None unless it did. A server that hangs up after too many refused keys
        gives the transport another, less telling reason.
    """

    _log = Logger()
    refusal: RdaError | None = None

    def __init__(self, reactor: IReactorTime, user: str, where: str, keys: LoginKeys, store: KeyStore) -> None:
        self._reactor = reactor
        self._user = user
        self._where = where
        self._keys = keys
        self._store = store

    def __call__(self, transport: ClientTransport, connection: Connection) -> None:
        """Ask the transport for ssh-userauth and log in; ``connection`` is the service to start then.

        A login that fails ends the transport with its reason, a :class:`rda.errors.LoginFailed`.
        """
        service = UserAuth(self._user.encode(), connection)
        transport.requestService(service)

        def failed(failure: Failure) -> None:
            if failure.check(LoginFailed):
                self.refusal = cast(LoginFailed, failure.value)
            elif not failure.check(RdaError, CancelledError):
                self._log.failure("the login to {where} broke", failure, where=self._where)
            reason = failure.value if isinstance(failure.value, RdaError) else LinkDown("the login broke off")
            transport.fail(reason)

        Deferred.fromCoroutine(self._log_in(service)).addErrback(failed)

    async def _log_in(self, service: UserAuth) -> None:
        # The files are read while the server thinks about the service request.
        identities = self._store.find(self._keys.identities, self._keys.certificates)
        agent, held, note = await self._open_agent()
        try:
            candidates = order_candidates(identities, self._store, agent, held, self._keys.identities_only)
            attempt = _Attempt(
                service, self._user, self._where, candidates, _notes(identities, note), self._keys.accepted
            )
            await attempt.run()
        finally:
            if agent is not None:
                agent.close()

    async def _open_agent(self) -> tuple[AgentClient | None, list[AgentKey], str]:
        """Connect to the agent and list its keys; an agent that fails is a note in the final message, no more."""
        path = self._keys.agent_path
        if not path:
            return None, [], "no ssh-agent (SSH_AUTH_SOCK is not set)"
        agent = None
        try:
            endpoint = UNIXClientEndpoint(self._reactor, path, timeout=AGENT_CONNECT_TIMEOUT)
            agent = await connectProtocol(endpoint, AgentClient(self._reactor))
            held = await agent.keys()
        except AgentError as error:
            if agent is not None:
                agent.close()
            return None, [], f"ssh-agent at {path}: {error}"
        except Exception as error:  # endpoints fail with many types: no socket, refused, timeout
            return None, [], f"ssh-agent at {path} cannot be reached ({error})"
        return agent, held, "" if held else f"ssh-agent at {path} holds no keys"


def _notes(identities: Sequence[IdentityFile], agent_note: str) -> list[str]:
    notes = [f"{identity.path}: {identity.problem}" for identity in identities if identity.problem]
    return [*notes, agent_note] if agent_note else notes


@dataclass(frozen=True)
class _Refusal:
    """USERAUTH_FAILURE: what may be tried next, and whether this step was accepted but is not enough."""

    methods: tuple[bytes, ...]
    partial: bool


@dataclass(frozen=True)
class _Acceptable:
    """USERAUTH_PK_OK: the server would accept a signature by this key."""

    blob: bytes


class _Success:
    """USERAUTH_SUCCESS."""


class UserAuth(SSHService):
    """The packets of ssh-userauth, as questions and answers.

    :param user: the remote user's name.
    :param connection: the service that starts when the server is content.
    """

    name = b"ssh-userauth"
    # Conch takes four characters off the names to find the methods.
    protocolMessages = {51: "MSG_FAILURE", 52: "MSG_SUCCESS", 53: "MSG_BANNER", 60: "MSG_PK_OK"}
    _log = Logger()

    def __init__(self, user: bytes, connection: SSHService) -> None:
        self._user = user
        self._connection = connection
        self._answer: Deferred[_Refusal | _Acceptable | _Success] | None = None
        self.started: Deferred[None] = Deferred()
        self.stopped = False
        self.banner = ""

    def serviceStarted(self) -> None:
        """The server agreed to authenticate us."""
        self.started.callback(None)

    def serviceStopped(self) -> None:
        """The transport is gone, or the connection service took over."""
        self.stopped = True
        answer, self._answer = self._answer, None
        if not self.started.called:
            self.started.errback(_lost())
        if answer is not None:
            answer.errback(_lost())

    def ask(self, method: bytes, details: bytes = b"") -> Deferred[_Refusal | _Acceptable | _Success]:
        """Send one USERAUTH_REQUEST; fires with the answer, fails with LinkDown when the connection is lost."""
        assert self._answer is None, "one request at a time"
        if self.stopped:
            return fail(_lost())
        self._answer = Deferred()
        request = NS(self._user) + NS(self._connection.name) + NS(method) + details
        self._peer().sendPacket(50, request)
        return self._answer

    def signed_part(self, details: bytes) -> bytes:
        """What a signature covers (RFC 4252, section 7)."""
        request = NS(self._user) + NS(self._connection.name) + NS(b"publickey") + details
        session = self._peer().sessionID
        assert session is not None, "asked before the first key exchange"
        return NS(session) + b"\x32" + request

    def _peer(self) -> ClientTransport:
        assert self.transport is not None, "asked before the service was started"
        return cast("ClientTransport", self.transport)

    def _settle(self, answer: _Refusal | _Acceptable | _Success) -> None:
        waiting, self._answer = self._answer, None
        if waiting is None:
            self._peer().sendDisconnect(2, b"an authentication answer that was not asked for")
        else:
            waiting.callback(answer)

    def ssh_FAILURE(self, packet: bytes) -> None:
        """USERAUTH_FAILURE, RFC 4252, section 5.1."""
        try:
            methods, rest = getNS(packet)
            partial = rest[0] != 0
        except Exception:
            # getNS checks nothing: whatever it raises means that the packet is damaged.
            self._peer().sendDisconnect(2, b"malformed USERAUTH_FAILURE")
        else:
            self._settle(_Refusal(tuple(methods.split(b",")), partial))

    def ssh_SUCCESS(self, packet: bytes) -> None:
        """USERAUTH_SUCCESS: the next packet may already be for the connection service."""
        waiting, self._answer = self._answer, None
        if waiting is None:
            self._peer().sendDisconnect(2, b"a success that was not asked for")
            return
        self._peer().setService(self._connection)
        waiting.callback(_Success())

    def ssh_BANNER(self, packet: bytes) -> None:
        """USERAUTH_BANNER: text for the user, from a host that is already verified."""
        text = packet[4 : 4 + int.from_bytes(packet[:4], "big")][:MAX_BANNER].decode("utf-8", "replace")
        room = MAX_BANNER - len(self.banner)
        self.banner += "".join(c if c.isprintable() else " " for c in text)[:room]

    def ssh_PK_OK(self, packet: bytes) -> None:
        """USERAUTH_PK_OK; 60 means other things for methods that are never used here."""
        try:
            _algorithm, blob, _rest = getNS(packet, 2)
        except Exception:
            self._peer().sendDisconnect(2, b"malformed USERAUTH_PK_OK")
        else:
            self._settle(_Acceptable(blob))


def _lost() -> LinkDown:
    return LinkDown("the connection was closed during the login")


class _Attempt:
    """One login: offers each candidate until the server is content or nothing is left."""

    def __init__(
        self,
        service: UserAuth,
        user: str,
        where: str,
        candidates: Sequence[Candidate],
        notes: list[str],
        accepted: frozenset[bytes] | None,
    ) -> None:
        self._service = service
        self._user = user
        self._where = where
        self._candidates = candidates[:MAX_OFFERS]
        self._notes = notes
        self._accepted_algorithms = accepted
        self._refused: dict[bytes, str] = {}
        self._accepted: list[str] = []
        self._methods: tuple[bytes, ...] = ()

    async def run(self) -> None:
        """Log in.

        :raises LoginFailed: the server will not have us.
        """
        await self._service.started
        try:
            if await self._step(b"none", b""):
                return
            for candidate in self._candidates:
                if b"publickey" not in self._methods:
                    break
                if await self._offer(candidate):
                    return
        except LinkDown as error:
            if self._refused and _CUT_OFF.search(str(getattr(self._service.transport, "reason", ""))):
                # It will do so again; a connection that is merely lost is tried again.
                raise LoginFailed(self._message(cut_off=True)) from error
            raise
        raise LoginFailed(self._message())

    async def _step(self, method: bytes, details: bytes) -> bool:
        """Send a request that can succeed; whether we are in."""
        answer = await self._service.ask(method, details)
        if isinstance(answer, _Refusal):
            self._methods = answer.methods
            if answer.partial:
                self._accepted.append(method.decode("ascii"))
        return isinstance(answer, _Success)

    async def _offer(self, candidate: Candidate) -> bool:
        try:
            blob = await candidate.public()
            if blob in self._refused:
                return False
            server = _server_algorithms(self._service.transport)
            algorithm, signature = signature_algorithm(blob, server, self._accepted_algorithms)
            key = NS(algorithm) + NS(blob)
            answer = await self._service.ask(b"publickey", b"\x00" + key)
            if isinstance(answer, _Success):
                return True
            if isinstance(answer, _Refusal):
                self._methods = answer.methods
                self._refused[blob] = candidate.label
                return False
            if answer.blob != blob:
                raise KeyUnusable("the server answered about another key")
            details = b"\x01" + key
            proof = await candidate.sign(self._service.signed_part(details), signature)
        except (KeyUnusable, KeyUnreadable, AgentError) as error:
            self._notes.append(f"{candidate.label}: {error}")
            return False
        before = len(self._accepted)
        done = await self._step(b"publickey", details + NS(proof))
        # Refused or used up as one of several steps: either way it is of no more use.
        self._refused[blob] = candidate.label + (" (accepted, not enough)" if len(self._accepted) > before else "")
        return done

    def _message(self, *, cut_off: bool = False) -> str:
        tried = "; ".join(self._refused.values()) or "no key, as there was none to try"
        parts = [f"{self._where} refused the login of {self._user}. Tried: {tried}."]
        if self._notes:
            parts.append(f"Not used: {'; '.join(self._notes)}.")
        if cut_off:
            parts.append(
                "The server then closed the connection, as servers do after some refusals (MaxAuthTries): name the "
                "right key with IdentityFile and set IdentitiesOnly yes."
            )
        elif b"publickey" not in self._methods:
            methods = b", ".join(self._methods).decode("ascii", "replace")
            more = " after that" if self._accepted else ""
            parts.append(f"The server wants {methods or 'nothing that it names'}{more}; rda logs in with keys only.")
        else:
            parts.append(f"Add a public key of yours to ~/.ssh/authorized_keys of {self._user} there.")
        if self._service.banner:
            parts.append(f"The server says: {self._service.banner.strip()}")
        return " ".join(parts)


def _server_algorithms(transport: object) -> frozenset[bytes] | None:
    """The server's ``server-sig-algs``, None when it sent none."""
    names: frozenset[bytes] | None = getattr(transport, "server_sig_algs", None)
    return names
