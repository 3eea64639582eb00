"""What was done, for those who have to answer for it: one JSON line for each call that changes something.

Only the fields of :class:`Record` are ever written: nothing of a request's head, query or body, so that no secret and
no registry credential can get in. Lines are written by a thread of their own; a disk that is slow or full keeps nobody
waiting but, where the configuration says ``fail_closed``, has changes refused until it takes lines again.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rda.errors import RdaError
from rda.status import Problem

__all__ = ["QUEUE", "Audit", "AuditUnwritable", "Record", "files_of", "read"]

#: Lines that wait for the disk. Beyond it they are counted, and not kept.
QUEUE = 10_000

#: Lines that are written with one call.
LINES_AT_ONCE = 256

#: Seconds between attempts to write what could not be written.
RETRY_SECONDS = 1.0

#: Seconds that the end of the process waits for the last lines.
STOP_SECONDS = 5.0

#: Characters of a path, and of a user's name, that are written.
LONGEST_TEXT = 512


class AuditUnwritable(RdaError):
    """The audit cannot be written, and without it nothing may be changed."""

    status = 503
    retry_after = 2


@dataclass(frozen=True)
class Record:
    """One call.

    :ivar time: when it began, in UTC, as in RFC 3339.
    :ivar user: the caller's name, "" when nobody knows; ``proof``: how it is known.
    :ivar method: HTTP's; ``path``: in normal form, without version and query; ``endpoint``: what rda calls it.
    :ivar decision: ``allowed``: it was sent to the daemon; ``refused``: it was not.
    :ivar rules: which rules of the policy refused it.
    :ivar container: the full id of the container that it is about, where that is known.
    :ivar sent: bytes to the daemon; ``received``: bytes to the client; ``seconds``: until it was over.
    :ivar status: the HTTP status of the answer, or None when there was none.
    """

    time: str
    context: str
    user: str
    proof: str
    uid: int | None
    pid: int | None
    method: str
    path: str
    endpoint: str
    decision: str
    rules: tuple[str, ...]
    container: str
    sent: int
    received: int
    seconds: float
    status: int | None

    def line(self) -> bytes:
        """Write it."""
        fields = asdict(self)
        for name in ("user", "path"):
            fields[name] = fields[name][:LONGEST_TEXT]
        fields["seconds"] = round(self.seconds, 6)
        text = json.dumps(fields, ensure_ascii=True, separators=(",", ":"))
        return text.encode("ascii") + b"\n"


def timestamp(seconds: float) -> str:
    """Write a time: ``2025-01-31T12:00:00.123Z``."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"


class Audit:
    """Writes records to a file, and puts files aside that are full.

    :param path: the file; with ``.1`` and so on behind it, the older ones.
    :param max_bytes: a file is put aside when it has so many.
    :param keep: files that are kept beside the one that is written.
    :param fail_closed: refuse changes while lines cannot be written.
    :param write: as :func:`os.write`; tests have it fail.
    :param retry: seconds between attempts to write.
    :ivar lost: lines that there was no room for.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        keep: int,
        *,
        fail_closed: bool = False,
        write: Callable[[int, bytes], int] = os.write,
        retry: float = RETRY_SECONDS,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._fail_closed = fail_closed
        self._write = write
        self._retry = retry
        self._lines: queue.Queue[bytes | None] = queue.Queue(QUEUE)
        self._descriptor = -1
        self._size = 0
        self._failure = ""
        self._since = 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost = 0

    def start(self) -> None:
        """Open the file, owner-only.

        :raises OSError: it cannot be opened.
        """
        self._open()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, and close. Blocking, for at most some seconds."""
        if self._thread is None:
            return
        self._stopping.set()
        self._put(None)
        self._thread.join(STOP_SECONDS)
        self._thread = None

    def record(self, record: Record) -> None:
        """Note one call. Never blocks."""
        self._put(record.line())

    def _put(self, line: bytes | None) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            if line is not None:
                self.lost += 1

    def check(self) -> None:
        """Do nothing while a change may be made.

        :raises AuditUnwritable: it may not.
        """
        if self._fail_closed and (self._failure or self._lines.full()):
            raise AuditUnwritable(
                f"the audit {self._path} cannot be written ({self._failure or 'it is too slow'}), and nothing is "
                "changed without it: make room for it, or set fail_closed = false"
            )

    def problem(self) -> Problem | None:
        """What does not work, for the status."""
        if self._failure:
            waiting = self._lines.qsize()
            return Problem(
                str(self._path),
                f"the audit cannot be written: {self._failure}; {waiting} lines wait, {self.lost} are lost. Make room",
                self._since,
            )
        if self.lost:
            return Problem(str(self._path), f"{self.lost} lines of the audit are lost: the disk was too slow", 0.0)
        return None

    # In the thread.

    def _run(self) -> None:
        over = False
        while not over:
            lines = [self._lines.get()]
            while len(lines) < LINES_AT_ONCE and not self._lines.empty():
                lines.append(self._lines.get_nowait())
            over = None in lines
            self._write_all(b"".join(line for line in lines if line is not None))
        os.close(self._descriptor)

    def _write_all(self, data: bytes) -> None:
        """Write lines, trying again for as long as it takes; when the process ends, once."""
        begun = last = False
        while data:
            try:
                if not begun and self._size and self._size + len(data) > self._max_bytes:
                    self._put_aside()
                written = self._write(self._descriptor, data)
                begun = True
                self._size += written
                data = data[written:]
                self._failure = ""
            except OSError as error:
                if not self._failure:
                    self._since = time.time()
                self._failure = error.strerror or str(error)
                if last:
                    return
                last = self._stopping.wait(self._retry)

    def _put_aside(self) -> None:
        """Begin a new file; the oldest goes. What fails half-way goes on where it was."""
        if self._path.exists():
            for number in range(self._keep, 0, -1):
                older = self._numbered(number - 1)
                if older.exists():
                    older.replace(self._numbered(number))
        full = self._descriptor
        self._open()
        os.close(full)

    def _numbered(self, number: int) -> Path:
        return self._path if number == 0 else self._path.with_name(f"{self._path.name}.{number}")

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o600)
        os.fchmod(self._descriptor, 0o600)
        self._size = os.fstat(self._descriptor).st_size


def files_of(path: Path) -> list[Path]:
    """Return the files of an audit, oldest first."""
    aside = [one for one in path.parent.glob(f"{path.name}.*") if one.name.rpartition(".")[2].isdecimal()]
    aside.sort(key=lambda one: int(one.name.rpartition(".")[2]), reverse=True)
    return [*aside, *([path] if path.exists() else [])]


def read(paths: list[Path]) -> Iterator[dict[str, object]]:
    """Read records; a line that is torn is left out.

    :raises OSError: a file cannot be read.
    """
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record
