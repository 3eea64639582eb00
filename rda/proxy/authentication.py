"""Who is at the other end of a client's connection, asked once when it comes in and again for each request.

On a UNIX socket and on loopback the kernel says whose the connection is; over TLS a client certificate does; and a
request may carry a bearer token, which then decides. Docker clients send one when their ``config.json`` has
``{"HttpHeaders": {"Authorization": "Bearer rda_…"}}``. They send it to every daemon: a token of ours is taken out of
each request, also where none is asked for.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.logger import Logger

from rda.access import peers
from rda.access.admission import TOKEN_PREFIX, Admission
from rda.access.caller import Caller, Proof
from rda.access.peers import OVERFLOW_UID, Credentials, NoSocketTable, ProcTable, SocketTable
from rda.docker.routes import Fields
from rda.errors import RdaError, Refused
from rda.proxy import tls
from rda.proxy.certificates import user_of
from rda.proxy.listeners import is_network

__all__ = ["Callers", "Machine", "Unauthorized", "Visitor", "anybody"]

_TOKEN = re.compile(b"bearer[ \t]+(" + TOKEN_PREFIX.encode() + b".*)", re.IGNORECASE | re.DOTALL)

#: Callers, and reasons to refuse some, that have been named in the log, once each; further ones are not.
MAX_NAMED = 1024


class Unauthorized(RdaError):
    """The request does not prove who makes it."""

    status = 401


class Visitor:
    """One connection's answer to the question who it is.

    :param found: who the connection itself proves it to be, or why that is nobody who may come in.
    :param tokens: tells whose a token is; None where tokens are not asked for.
    :param welcome: told who calls, when a request first relies on the connection for that.
    :param has_left: whether the kernel says that no process has the other end of the connection any more, as far as
        it can be asked. It may not say so yet at the moment when the end of the input comes.
    """

    __slots__ = ("_found", "_tokens", "_welcome", "has_left")

    def __init__(
        self,
        found: Caller | RdaError,
        tokens: Callable[[bytes], Caller] | None = None,
        welcome: Callable[[Caller], None] | None = None,
        has_left: Callable[[], bool] = lambda: False,
    ) -> None:
        self._found = found
        self._tokens = tokens
        self._welcome = welcome
        self.has_left = has_left

    @property
    def hopeless(self) -> bool:
        """No request of this connection will be let in, whatever it says."""
        return isinstance(self._found, RdaError) and self._tokens is None

    @property
    def known(self) -> bool:
        """The connection itself has proved whose it is."""
        return isinstance(self._found, Caller)

    def identify(self, fields: Fields) -> tuple[Caller, Fields]:
        """Say who makes a request, and which of its fields the daemon may see.

        :param fields: of the request's head.
        :raises RdaError: nobody who may.
        """
        shown = [token for name, value in fields if (token := _token_in(name, value)) is not None]
        if shown:
            fields = [(name, value) for name, value in fields if _token_in(name, value) is None]
            if self._tokens is not None:
                if len(shown) > 1:
                    raise Unauthorized("the request has more than one token")
                return self._tokens(shown[0]), fields
        return self._of_connection(), fields

    def _of_connection(self) -> Caller:
        if isinstance(self._found, RdaError):
            raise self._found
        if self._welcome is not None:
            self._welcome(self._found)
            self._welcome = None
        return self._found


def _token_in(name: bytes, value: bytes) -> bytes | None:
    """The token of rda's that a header field holds."""
    found = _TOKEN.fullmatch(value.strip()) if name.lower() == b"authorization" else None
    return found[1] if found is not None else None


class _TLSVisitor(Visitor):
    """One whose certificate is there once the handshake is over, that is, with its first request."""

    __slots__ = ("_find",)

    def __init__(
        self, find: Callable[[], Caller], tokens: Callable[[bytes], Caller] | None, welcome: Callable[[Caller], None]
    ) -> None:
        super().__init__(Unauthorized("the handshake is not over"), tokens, welcome)
        self._find: Callable[[], Caller] | None = find

    @property
    def hopeless(self) -> bool:
        """That shows with the first request."""
        return False

    def _of_connection(self) -> Caller:
        if self._find is not None:
            self._found = self._find()
            self._find = None
        return super()._of_connection()


def anybody(transport: object) -> Visitor:
    """Let in whoever reaches the listener, as the user that rda runs as."""
    return Visitor(Caller("", Proof.NONE, own=True))


class Machine:
    """What is known of this machine's users and connections; tests replace it.

    :ivar table: tells whose TCP connections are; None where the system has no such thing.
    :ivar problem: why there is none where there ought to be one.
    """

    def __init__(self) -> None:
        self.uid = os.geteuid()
        self.problem = ""
        self.table: SocketTable | ProcTable | None = None
        try:
            self.table = peers.socket_table()
        except NoSocketTable as e:
            self.problem = str(e)

    def user_name(self, uid: int) -> str:
        """A user's login name."""
        return peers.user_name(uid)

    def groups_of(self, uid: int) -> frozenset[int]:
        """The numbers of the groups that a user is in."""
        return peers.groups_of(uid)

    def credentials(self, transport: Any) -> Credentials | None:
        """Who connected to our UNIX socket."""
        return peers.credentials(transport.socket)


class Callers:
    """Says who connects to a context's listeners, and refuses those who may not.

    :param admission: who may.
    :param context: the context's name, for the log.
    """

    _log = Logger()

    def __init__(self, admission: Admission, machine: Machine, context: str = "") -> None:
        self._admission = admission
        self._machine = machine
        self._context = context
        self._own_name = machine.user_name(machine.uid)
        # Names are looked up once: on some systems that is a question to a server.
        own = {0: machine.user_name(0), machine.uid: self._own_name}
        self._users = own | {uid: name for name, uid in admission.users}
        self._named: set[str] = set()
        self._tokens = self._of_token if admission.tokens else None

    def check(self, endpoints: Sequence[str]) -> None:
        """Make sure that those who connect to these endpoints can be told apart.

        :raises RdaError: this system does not say what we need to know.
        """
        plain = not self._admission.tls and any(map(is_network, endpoints))
        if plain and self._admission.check_peer and self._machine.problem:
            raise RdaError(
                f"this system does not say whose TCP connections are ({self._machine.problem}): listen on a UNIX "
                "socket, or set check_peer = false to let in every user of this machine"
            )

    def __call__(self, transport: Any) -> Visitor:
        """Look at a new connection."""
        if tls.is_tls(transport):
            return _TLSVisitor(lambda: self._of_certificate(transport), self._tokens, self._welcome)
        try:
            found = self._of_peer(transport)
            if found.proof is Proof.LOOPBACK:
                return Visitor(found, self._tokens, self._welcome, partial(self._has_left, transport))
            return Visitor(found, self._tokens, self._welcome)
        except RdaError as refusal:
            self._note(str(refusal), "context {context}: refused a connection: {key}")
            if self._tokens is not None:
                refusal = Unauthorized(f"{refusal}; or send a token")
            return Visitor(refusal, self._tokens)

    # -------------------------------------------------------------------------------------------- users of this machine

    def _of_peer(self, transport: Any) -> Caller:
        peer = transport.getPeer()
        if isinstance(peer, UNIXAddress):
            who = self._machine.credentials(transport)
            if who is None:
                return self._unasked()  # the socket's mode is what there is
            return self._local_user(who.uid, Proof.SOCKET, who.pid, (who.gid,))
        if not isinstance(peer, (IPv4Address, IPv6Address)):
            raise Refused(f"connections from {peer!r} prove nothing")
        if not self._admission.check_peer or self._machine.table is None:
            return self._unasked()
        uid = self._owner(peer, transport.getHost())
        if uid is not None:
            return self._local_user(uid, Proof.LOOPBACK)
        if self._admission.unknown_peer:
            return self._unasked()
        raise Refused(
            f"no process of this machine's network has this connection from {peer.host}: it comes from a "
            "container or through a forwarded port, or was closed; use a UNIX socket, or set unknown_peer = true"
        )

    def _owner(self, peer: IPv4Address | IPv6Address, host: IPv4Address | IPv6Address) -> int | None:
        assert self._machine.table is not None
        try:
            return self._machine.table.owner((peer.host, peer.port), (host.host, host.port))
        except OSError as e:
            raise Refused(f"the kernel does not say whose this connection is ({e}); use a UNIX socket") from e

    def _has_left(self, transport: Any) -> bool:
        """Whether nobody has the client's socket of a TCP connection any more, which somebody had before."""
        try:
            return self._owner(transport.getPeer(), transport.getHost()) is None
        except Refused:
            return False

    def _local_user(self, uid: int, proof: Proof, pid: int | None = None, groups: Sequence[int] = ()) -> Caller:
        known = self._users.get(uid) if uid != OVERFLOW_UID else None
        name = known or self._machine.user_name(uid)
        if known is None and not self._in_group(uid, groups):
            raise Refused(
                f"{name} (uid {uid}) may not use this context of {self._own_name}'s; "
                "whom it is for can be said with allow_users and allow_group"
            )
        return Caller(name, proof, uid, pid, own=uid in (0, self._machine.uid))

    def _in_group(self, uid: int, groups: Sequence[int]) -> bool:
        """Whether a user is in the group that may; by the system's lists, which may have changed since the login."""
        if self._admission.group is None or uid == OVERFLOW_UID:
            return False
        _, gid = self._admission.group
        return gid in groups or gid in self._machine.groups_of(uid)

    def _unasked(self) -> Caller:
        return Caller(self._own_name, Proof.NONE, own=True)

    # ------------------------------------------------------------------------------------------ certificates and tokens

    def _of_certificate(self, transport: Any) -> Caller:
        user = user_of(transport)
        if user is None:
            wanted = "a certificate with a common name" + (", or a token" if self._tokens is not None else "")
            raise Unauthorized(f"this listener wants to know who calls: by {wanted}")
        return Caller(user, Proof.CERTIFICATE, own=user == self._own_name)

    def _of_token(self, token: bytes) -> Caller:
        """Whose a token is. Every hash is compared, each in constant time: how long it takes tells nothing."""
        digest = hashlib.sha256(token).digest()
        users = [user for user, known in self._admission.tokens if hmac.compare_digest(digest, known)]
        if not users:
            raise Unauthorized("the token is not known here; it may have been revoked")
        caller = Caller(users[0], Proof.TOKEN, own=users[0] == self._own_name)
        self._welcome(caller)
        return caller

    def _welcome(self, caller: Caller) -> None:
        process = f", uid {caller.uid}" if caller.uid is not None else ""
        process += f", first by process {caller.pid}" if caller.pid is not None else ""
        self._note(str(caller), "context {context}: {key} calls{process}", process=process)

    def _note(self, key: str, text: str, **more: str) -> None:
        """Say something in the log, once."""
        if key not in self._named and len(self._named) < MAX_NAMED:
            self._named.add(key)
            self._log.info(text, context=self._context, key=key, **more)
