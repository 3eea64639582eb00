"""A client of ssh-agent (draft-ietf-sshm-ssh-agent; OpenSSH's PROTOCOL.agent).

Keys are opaque blobs here: certificates and security keys are listed and used like any other. Nothing is ever added to
or removed from the agent.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

__all__ = ["AgentClient", "AgentError", "AgentKey"]

#: Longest message in either direction, bytes: OpenSSH's AGENT_MAX_LEN.
MAX_MESSAGE = 256 * 1024

#: Most keys in one answer: OpenSSH's client refuses more than 2048.
MAX_KEYS = 2048

#: Seconds to wait for the list of keys: nobody is asked for it.
LIST_TIMEOUT = 10.0

#: Seconds to wait for a signature: a person may have to confirm (``ssh-add -c``) or touch a security key. sshd's
#: LoginGraceTime is 120 s.
SIGN_TIMEOUT = 120.0

_FAILURE = 5
_REQUEST_IDENTITIES = 11
_IDENTITIES_ANSWER = 12
_SIGN_REQUEST = 13
_SIGN_RESPONSE = 14

#: Flags of SSH_AGENTC_SIGN_REQUEST by the signature wanted of an RSA key (section 3.6.1 of the draft).
_FLAGS = {b"rsa-sha2-256": 2, b"rsa-sha2-512": 4}


class AgentError(Exception):
    """The agent did not do what was asked; the message says what, for people."""


@dataclass(frozen=True)
class AgentKey:
    """A key the agent holds: its public blob (a certificate's, for certificates) and its comment."""

    blob: bytes
    comment: str


class AgentClient(Protocol):
    """One connection to the agent; requests are answered in order.

    :param clock: for the time limits.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._buffer = b""
        self._waiting: deque[Deferred[bytes]] = deque()
        self._lost: AgentError | None = None

    def keys(self) -> Deferred[list[AgentKey]]:
        """List the keys; a locked agent has none.

        Fails with :class:`AgentError`.
        """
        return self._request(bytes((_REQUEST_IDENTITIES,)), LIST_TIMEOUT, "list its keys").addCallback(_parse_keys)

    def sign(self, blob: bytes, data: bytes, signature: bytes) -> Deferred[bytes]:
        """Have ``data`` signed.

        :param blob: the key or certificate, as listed.
        :param signature: the name of the signature wanted, e.g. ``b"rsa-sha2-512"``.
        :returns: the signature blob (RFC 4253, section 6.6). Fails with :class:`AgentError`, also when the agent is too
            old to make this kind of signature.
        """
        message = bytes((_SIGN_REQUEST,)) + _string(blob) + _string(data) + struct.pack(">L", _FLAGS.get(signature, 0))
        answer = self._request(message, SIGN_TIMEOUT, "sign with this key")
        return answer.addCallback(_parse_signature, signature)

    def _request(self, message: bytes, timeout: float, purpose: str) -> Deferred[bytes]:
        answer: Deferred[bytes] = Deferred()
        if self._lost is not None or self.transport is None:
            answer.errback(self._lost or AgentError("the agent is not connected"))
            return answer
        self._waiting.append(answer)
        self.transport.write(_string(message))
        # Answers come in order and carry no number, so that one that is late cannot be told from the next: give the
        # connection up instead.
        timer = self._clock.callLater(timeout, self._give_up, f"the agent did not {purpose} within {timeout:.0f} s")

        def settle(result: bytes | Failure) -> bytes | Failure:
            if timer.active():
                timer.cancel()
            return result

        def check(packet: bytes) -> bytes:
            if packet[0] == _FAILURE:
                raise AgentError(f"the agent refused to {purpose}")
            return packet

        return answer.addBoth(settle).addCallback(check)

    def dataReceived(self, data: bytes) -> None:
        """Cut the stream into messages."""
        self._buffer += data
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if not 1 <= size <= MAX_MESSAGE:
                return self._give_up(f"the agent sent a message of {size} bytes")
            if len(self._buffer) < 4 + size:
                return None
            packet, self._buffer = self._buffer[4 : 4 + size], self._buffer[4 + size :]
            if not self._waiting:
                return self._give_up("the agent sent a message that nobody asked for")
            self._waiting.popleft().callback(packet)
        return None

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 - Twisted's signature
        """Fail what is still waiting."""
        self._fail(AgentError("the agent closed the connection"))

    def close(self) -> None:
        """Close the connection; requests that wait fail."""
        self._give_up("the connection to the agent was closed")

    def _give_up(self, why: str) -> None:
        self._fail(AgentError(why))
        if self.transport is not None:
            self.transport.loseConnection()

    def _fail(self, error: AgentError) -> None:
        if self._lost is None:
            self._lost = error
        waiting, self._waiting = self._waiting, deque()
        self._buffer = b""
        for answer in waiting:
            answer.errback(error)


def _string(data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + data


def _take(data: bytes, at: int) -> tuple[bytes, int]:
    end = at + 4 + int.from_bytes(data[at : at + 4], "big")
    if at + 4 > len(data) or end > len(data):
        raise AgentError("the agent's answer is cut short")
    return data[at + 4 : end], end


def _parse_keys(packet: bytes) -> list[AgentKey]:
    if packet[0] != _IDENTITIES_ANSWER or len(packet) < 5:
        raise AgentError(f"the agent answered with the unexpected message {packet[0]}")
    count, at = int.from_bytes(packet[1:5], "big"), 5
    if count > MAX_KEYS:
        raise AgentError(f"the agent says it holds {count} keys")
    found = []
    for _ in range(count):
        blob, at = _take(packet, at)
        comment, at = _take(packet, at)
        found.append(AgentKey(blob, comment.decode("utf-8", "replace")))
    return found


def _parse_signature(packet: bytes, wanted: bytes) -> bytes:
    if packet[0] != _SIGN_RESPONSE:
        raise AgentError(f"the agent answered with the unexpected message {packet[0]}")
    signature, _ = _take(packet, 1)
    made, _ = _take(signature, 0)
    if wanted in _FLAGS and made != wanted:
        raise AgentError(
            f"the agent is too old to sign with {wanted.decode('ascii')} "
            f"(it made {made.decode('ascii', 'replace')}, which servers refuse)"
        )
    return signature
