"""Who they are: whether a server's host key is the one that is meant.

What is refused here is refused for good (:class:`rda.errors.HostKeyRefused`): a key that is not trusted today will not
be trusted in a second either.
"""

from __future__ import annotations

import os
import shlex
from base64 import b64encode
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from rda.errors import HostKeyRefused, RdaError
from rda.ssh.keys import KeyUnreadable, fingerprint, key_type, plain_blob, rsa_bits
from rda.ssh.known_hosts import HOST_KEY_ALGORITHMS, HostName, KnownHosts, Trust, Verdict, hashed_name

__all__ = ["HostKeys"]

#: The shortest RSA host key that is taken, in bits: NIST SP 800-131A has allowed none below since 2014. RequiredRSASize
#: may ask for more.
MIN_RSA_BITS = 2048

#: Largest known_hosts file that is read, bytes. A site-wide one with 100,000 hosts has about 40 MB.
MAX_KNOWN_HOSTS = 64 * 1024 * 1024


class HostKeys:
    """Decides whether a server is the one that is meant.

    :param host: the name it is looked up by.
    :param files: known_hosts files, the user's own first: new keys are remembered there.
    :param pins: fingerprints (``SHA256:…``); when there are any, nothing else counts.
    :param accept_new: trust and remember the key of a host that no file knows.
    :param revoked_files: ssh_config's RevokedHostKeys: public keys, one per line.
    :param wall_clock: seconds since the epoch, for the validity of certificates.
    :param algorithms: host key algorithms that may be used, None for all.
    :param rsa_bits: the shortest RSA key that is taken.
    :param scannable: whether ssh-keyscan can reach the host from here (it cannot through a jump host).
    """

    _log = Logger()

    def __init__(
        self,
        host: HostName,
        files: Sequence[str],
        wall_clock: Callable[[], float],
        *,
        pins: Sequence[str] = (),
        accept_new: bool = False,
        revoked_files: Sequence[str] = (),
        algorithms: Sequence[bytes] | None = None,
        rsa_bits: int = MIN_RSA_BITS,
        scannable: bool = True,
    ) -> None:
        self._host = host
        self._files = tuple(files)
        self._now = wall_clock
        self._pins = tuple(pin.rstrip("=") for pin in pins)
        self._accept_new = accept_new
        self._revoked_files = tuple(revoked_files)
        self._allowed = None if algorithms is None else tuple(algorithms)
        self._rsa_bits = max(rsa_bits, MIN_RSA_BITS)
        self._scannable = scannable and not host.alias

    @property
    def algorithms(self) -> list[bytes]:
        """The host key algorithms to offer, those that can be verified first (read anew for each connection)."""
        wanted = list(HOST_KEY_ALGORITHMS) if self._pins else list(self._known().algorithms(self._host))
        if self._allowed is None:
            return wanted
        # None of both: certificates alone are allowed, and no authority is known. The server's own will say so.
        return [name for name in wanted if name in self._allowed] or list(self._allowed)

    def verify(self, blob: bytes, fingerprint: object = None) -> Deferred[None]:
        """Judge the key that the server presents; that it owns it is for the key exchange to check.

        :param blob: a public key or a host certificate.
        :param fingerprint: of the key in any form; not used, it is calculated here.
        :returns: fires when it is trusted; fails with :class:`rda.errors.HostKeyRefused`.
        """
        try:
            self._verify(blob)
        except RdaError as error:
            return fail(error)
        return succeed(None)

    def _verify(self, blob: bytes) -> None:
        seen = _describe(blob)
        bits = rsa_bits(blob)
        if bits is not None and bits < self._rsa_bits:
            raise HostKeyRefused(
                f"{self._name} presented the host key {seen}, an RSA key of {bits} bits: those below {self._rsa_bits} "
                "are too weak. Give the host another key: ssh-keygen -A makes those that are missing."
            )
        known = self._known()
        verdict = known.judge(self._host, blob, self._now())
        if verdict.trust is Trust.REVOKED or self._is_revoked(blob):
            where = ", ".join(entry.where for entry in verdict.entries) or ", ".join(self._revoked_files)
            raise HostKeyRefused(
                f"{self._name} presented the host key {seen}, which is revoked ({where}). Whoever holds it is not to "
                "be trusted: ask the host's administrator for its new key."
            )
        if self._pins:
            return self._check_pins(blob, seen)
        if verdict.trust is Trust.KNOWN:
            return None
        if verdict.trust is Trust.CHANGED:
            raise HostKeyRefused(self._changed(blob, seen, verdict))
        if not self._accept_new:
            raise HostKeyRefused(self._unknown(blob, seen, verdict))
        return self._remember(blob, seen)

    def _check_pins(self, blob: bytes, seen: str) -> None:
        if fingerprint(blob) not in self._pins:
            raise HostKeyRefused(
                f"{self._name} presented the host key {seen}, which is none of those pinned with --host-key "
                f"({', '.join(self._pins)}). If that is its key, pin it instead; else somebody is in between."
            )

    def _unknown(self, blob: bytes, seen: str, verdict: Verdict) -> str:
        target = _shown(self._files[0]) if self._files else "~/.ssh/known_hosts"
        because = f" ({verdict.reason})" if verdict.reason else ""
        message = (
            f"The host key of {self._name} is not known, so nothing was sent to it{because}. "
            f"It presented {seen}. Compare this fingerprint with one from the host's administrator. "
        )
        if self._scannable:
            name = shlex.quote(self._host.name)
            message += f"Then run: ssh-keyscan -H -p {self._host.port} {name} >> {target}   or "
        else:
            message += f"Then add the key to {target} (connecting once with ssh does), or "
        return message + f"start rda with: --host-key {fingerprint(blob)}"

    def _changed(self, blob: bytes, seen: str, verdict: Verdict) -> str:
        kind = key_type(plain_blob(blob))
        known = "; ".join(f"{entry.where} holds {_describe(entry.blob)}" for entry in verdict.entries)
        entry = verdict.entries[0]
        same_type = any(key_type(entry.blob) == kind for entry in verdict.entries)
        message = (
            f"THE HOST KEY OF {self._name} HAS CHANGED: it presented {seen}, but {known}. "
            if same_type
            else f"{self._name} presented {seen}, a key of another type than those known of it: {known}. "
        )
        lookup = shlex.quote(self._host.lookup.decode("utf-8", "replace"))
        because = f"{verdict.reason}. " if verdict.reason else ""
        return (
            f"{message}{because}Somebody may be in between, so nothing was sent. If you know that the host was set up "
            f"anew, remove the old line: ssh-keygen -R {lookup} -f {shlex.quote(entry.path)}   and add the new key."
        )

    def _remember(self, blob: bytes, seen: str) -> None:
        plain = plain_blob(blob)
        name = hashed_name(self._host.lookup, os.urandom(20))
        line = b"%s %s %s\n" % (name, key_type(plain), b64encode(plain))
        self._log.warn("{host} is new: its host key {key} is trusted from now on.", host=self._name, key=seen)
        if not self._files:
            raise HostKeyRefused(f"There is no known_hosts file to remember the new host key of {self._name} in.")
        path = self._files[0]
        try:
            os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
            _append_line(path, line)
        except OSError as error:
            # Trusting it without remembering it would mean trusting any key, every time.
            raise HostKeyRefused(
                f"The host key of the new host {self._name}, {seen}, cannot be remembered in {path}: "
                f"{error.strerror or error}. Make the file writable, or pin the key: --host-key {fingerprint(blob)}"
            ) from error

    def _known(self) -> KnownHosts:
        texts = [(_shown(path), text) for path in self._files if (text := _read_if_there(path)) is not None]
        known = KnownHosts(texts)
        for where in known.damaged:
            self._log.warn("{where}: this @revoked line cannot be understood and protects nobody.", where=where)
        return known

    def _is_revoked(self, blob: bytes) -> bool:
        suspects = {b64encode(blob), b64encode(plain_blob(blob))}
        for path in self._revoked_files:
            text = _read_if_there(path)
            if text is None or text.startswith(b"SSHKRL\n"):
                # As ssh(1): a list of revoked keys that cannot be read revokes every key.
                why = "cannot be read" if text is None else "is a binary KRL, which rda cannot read"
                raise HostKeyRefused(f"RevokedHostKeys {path} {why}: no host can be trusted before it can be.")
            if suspects & set(text.split()):
                return True
        return False

    @property
    def _name(self) -> str:
        return self._host.name if self._host.alias else f"{self._host.name} (port {self._host.port})"


def _describe(blob: bytes) -> str:
    try:
        return f"{key_type(blob).decode('ascii')} {fingerprint(blob)}"
    except KeyUnreadable:
        return fingerprint(blob)


def _shown(path: str) -> str:
    """The path as a person would type it; it may go into a shell command line."""
    home = os.path.expanduser("~") + "/"
    if path.startswith(home):
        return "~/" + shlex.quote(path[len(home) :])
    return shlex.quote(path)


def _read_if_there(path: str) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            return stream.read(MAX_KNOWN_HOSTS)
    except OSError:
        return None


def _append_line(path: str, line: bytes) -> None:
    with open(path, "ab+") as stream:
        if stream.tell() > 0:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                line = b"\n" + line
        stream.write(line)
