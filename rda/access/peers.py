"""What the kernel knows of the other end of a connection on this machine: the user it belongs to.

A UNIX-domain socket's peer was noted when it connected (``SO_PEERCRED``). A TCP connection of this machine has two
sockets in the kernel's table, and the table says whose the other one is. One exact look-up in it is one message over a
netlink socket (``NETLINK_SOCK_DIAG``); where that is not to be had, ``/proc/net/tcp`` is read instead, which takes as
long as the table is.

A socket whose process has closed it, or ended, is listed as root's. Such a one is taken for nobody's: otherwise anyone
could send a request, close, and be root.

Source: socket(7), sock_diag(7), proc_net(5); Linux ``include/uapi/linux/inet_diag.h``, ``net/ipv4/inet_diag.c``.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "OVERFLOW_UID",
    "Address",
    "Credentials",
    "NoSocketTable",
    "ProcTable",
    "SocketTable",
    "credentials",
    "groups_of",
    "is_private_group",
    "process_name",
    "socket_table",
    "user_name",
    "who_listens",
]

#: An IP address (without a zone) and a port.
Address = tuple[str, int]

#: What the kernel shows for a user that has no number in our user namespace (``/proc/sys/kernel/overflowuid``).
OVERFLOW_UID = 65534

_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLM_F_REQUEST = 1
_NETLINK_SOCK_DIAG = 4
_HEADER = struct.Struct("=LHHLL")  # nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBBL")  # inet_diag_req_v2: family, protocol, extensions, padding, states
_SOCKID = struct.Struct("!HH16s16s4s8s")  # inet_diag_sockid: ports, addresses, interface, cookie
_ANSWER = struct.Struct("=BBBB")  # inet_diag_msg: family, state, timer, retransmissions; then a sockid, and
_OWNER = struct.Struct("=LLLLL")  # expires, receive queue, send queue, uid, inode
_ANY_COOKIE = b"\xff" * 8
_MAPPED = bytes(10) + b"\xff\xff"

#: ESTABLISHED, FIN_WAIT1 and FIN_WAIT2: what a client that has connected, and perhaps ended its input, can be.
_CONNECTED = frozenset((1, 4, 5))
_LISTENING = 10

#: Below the root of the proc file system.
_PROC_TABLES = ("net/tcp", "net/tcp6")

#: Bytes of the largest answer to one exact look-up: a message of a few hundred.
_ANSWER_SIZE = 8192


class NoSocketTable(OSError):
    """This system does not tell whose TCP connections are."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who connected to a UNIX-domain socket: the process, and its effective ids at that moment."""

    pid: int
    uid: int
    gid: int


def credentials(connection: socket.socket) -> Credentials | None:
    """Whose the other end of a UNIX-domain socket is; None where the system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    pid, uid, gid = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, option, 12))
    return Credentials(pid, uid, gid)


def user_name(uid: int) -> str:
    """A user's login name, or ``#1000`` for a number without one."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def groups_of(uid: int) -> frozenset[int]:
    """The groups that a user is in, by the system's lists of users and groups."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return frozenset()
    return frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))


def is_private_group(gid: int) -> bool:
    """Whether a group is what many systems make for each user: called like the user, with nobody else in it."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def process_name(who: Credentials | None) -> str:
    """A process for people: ``process 812 (twistd) of alice``."""
    if who is None:
        return "another process"
    try:
        with open(f"/proc/{who.pid}/comm", encoding="utf-8", errors="replace") as file:
            name = f" ({file.read().strip()})"
    except OSError:
        name = ""
    return f"process {who.pid}{name} of {user_name(who.uid)}"


def who_listens(port: int) -> str:
    """Who listens on a TCP port of this machine, for people; "" when that cannot be found out."""
    for name in _PROC_TABLES:
        try:
            with open(f"/proc/{name}", encoding="ascii") as file:
                rows = [_columns(line) for line in file.readlines()[1:]]
        except OSError:
            continue
        for local, _, state, uid, inode in rows:
            if local[1] == port and state == _LISTENING:
                pid = _holder_of(inode)
                return process_name(Credentials(pid, uid, -1)) if pid else f"a process of {user_name(uid)}"
    return ""


def _holder_of(inode: int) -> int:
    """The process that has a socket open; 0 when it is none that we may look at."""
    for process in os.scandir("/proc"):
        if not process.name.isdigit():
            continue
        try:
            for descriptor in os.scandir(f"{process.path}/fd"):
                if os.readlink(descriptor.path) == f"socket:[{inode}]":
                    return int(process.name)
        except OSError:
            continue
    return 0


def socket_table() -> SocketTable | ProcTable | None:
    """The best way to ask this system whose a TCP connection is; None on one where nobody has ever been able to.

    :raises NoSocketTable: Linux, but neither way works here.
    """
    if sys.platform != "linux":
        return None
    makers: tuple[Callable[[], SocketTable | ProcTable], ...] = (SocketTable, ProcTable)
    for make in makers:
        try:
            table = make()
        except OSError:
            continue
        if _finds_our_own(table):
            return table
        table.close()
    raise NoSocketTable("neither sock_diag nor /proc/net/tcp shows our own connections")


def _finds_our_own(table: SocketTable | ProcTable) -> bool:
    """Whether a look-up works: a missing kernel module answers as a missing connection does."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
            return table.owner(client.getsockname(), client.getpeername()) == os.geteuid()
    except OSError:
        return False


class SocketTable:
    """Exact look-ups over netlink.

    :raises OSError: there are no such sockets here.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._socket.setblocking(False)  # the kernel has answered when sending returns
        self._socket.connect((0, 0))  # from nobody but the kernel is an answer taken
        self._sequence = 0

    def close(self) -> None:
        """Close the netlink socket."""
        self._socket.close()

    def owner(self, near: Address, far: Address) -> int | None:
        """The uid that owns a connection's socket; None when no process of this machine holds one.

        :param near: the address of the socket that is asked about (a client's own), and ``far`` the one at which it is
            connected (our listener's).
        :raises OSError: the kernel did not answer.
        """
        family, near_ip, far_ip = _packed(near[0], far[0])
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        wanted = _SOCKID.pack(near[1], far[1], near_ip, far_ip, bytes(4), _ANY_COOKIE)
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + wanted
        size = _HEADER.size + len(request)
        header = _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + request)
        return _owner_in(self._answer(), near, far)

    def _answer(self) -> bytes:
        """The kernel's answer to the last request; b"" when there is no such socket. Older answers are dropped."""
        while True:
            data = self._socket.recv(_ANSWER_SIZE)
            _, kind, _, sequence, _ = _HEADER.unpack_from(data)
            if sequence != self._sequence:
                continue
            if kind != _NLMSG_ERROR:
                return data[_HEADER.size :]
            (code,) = struct.unpack_from("=i", data, _HEADER.size)
            if -code == errno.ENOENT:
                return b""
            raise OSError(-code, os.strerror(-code))


def _owner_in(answer: bytes, near: Address, far: Address) -> int | None:
    """The uid in an inet_diag_msg, if it is of this very connection and a process still holds it.

    The kernel falls back to a listening socket of the same port, and lists what no process holds as root's, inode 0.
    """
    if len(answer) < _ANSWER.size + _SOCKID.size + _OWNER.size:
        return None
    family, state, _, _ = _ANSWER.unpack_from(answer)
    near_port, far_port, near_ip, far_ip, _, _ = _SOCKID.unpack_from(answer, _ANSWER.size)
    _, _, _, uid, inode = _OWNER.unpack_from(answer, _ANSWER.size + _SOCKID.size)
    size = 4 if family == socket.AF_INET else 16
    found = [_plain(ip[:size]) for ip in (near_ip, far_ip)]
    same = found == [_plain_text(near[0]), _plain_text(far[0])] and (near_port, far_port) == (near[1], far[1])
    return uid if same and state in _CONNECTED and inode else None


class ProcTable:
    """The same question, answered by reading ``/proc/net/tcp`` and ``tcp6``.

    :param root: of the proc file system.
    """

    def __init__(self, root: str = "/proc") -> None:
        self._files = [f"{root}/{name}" for name in _PROC_TABLES]

    def close(self) -> None:
        """There is nothing to close."""

    def owner(self, near: Address, far: Address) -> int | None:
        """See :meth:`SocketTable.owner`."""
        wanted = [(_plain_text(host), port) for host, port in (near, far)]
        for name in self._files:
            try:
                with open(name, encoding="ascii") as file:
                    next(file, None)  # the heading
                    for line in file:
                        local, remote, state, uid, inode = _columns(line)
                        if [local, remote] == wanted and state in _CONNECTED and inode:
                            return uid
            except FileNotFoundError:  # no IPv6
                continue
        return None


def _columns(line: str) -> tuple[tuple[bytes, int], tuple[bytes, int], int, int, int]:
    """The interesting columns of a line of /proc/net/tcp."""
    _, local, remote, state, _, _, _, uid, _, inode, *_ = line.split()
    return _hex_address(local), _hex_address(remote), int(state, 16), int(uid), int(inode)


def _hex_address(text: str) -> tuple[bytes, int]:
    """An address as /proc/net/tcp writes it: 32-bit words in the machine's byte order."""
    address, _, port = text.partition(":")
    words = [int(address[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(address), 8)]
    return _plain(b"".join(words)), int(port, 16)


def _plain(packed: bytes) -> bytes:
    """An address in its shortest form: an IPv4 one in IPv6 clothes (``::ffff:127.0.0.1``) as what it is."""
    return packed[12:] if packed.startswith(_MAPPED) else packed


def _plain_text(host: str) -> bytes:
    host = host.partition("%")[0]
    return _plain(socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host))


def _packed(near: str, far: str) -> tuple[int, bytes, bytes]:
    """Family and both addresses for a look-up, padded to 16 bytes."""
    addresses = [_plain_text(near), _plain_text(far)]
    family = socket.AF_INET if len(addresses[0]) == 4 else socket.AF_INET6
    return family, addresses[0].ljust(16, b"\0"), addresses[1].ljust(16, b"\0")
