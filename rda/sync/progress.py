"""How far a pass is: what is done of what there is to do, how fast, and how long the rest will take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

#: Seconds between two samples of what is done, and how many are kept: the rate is that of the last ten seconds.
SAMPLE = 0.25
SAMPLES = 40

#: Seconds between two lines in the log about a transfer.
REPORT_SECONDS = 10.0


class Transfer:
    """What one pass has done so far. Counts only; whoever does the work raises them.

    :param seconds: a clock.
    :param check: raises an RdaError when no more should be done.
    :param report: called every :data:`REPORT_SECONDS` while something is transferred.
    :ivar reported: how often it was called in this pass.
    """

    def __init__(
        self,
        seconds: Callable[[], float],
        check: Callable[[], None],
        report: Callable[[], None] = lambda: None,
    ) -> None:
        self._seconds = seconds
        self._report = report
        self.reported = 0
        self._began = 0.0
        self._may_go_on = check
        self.files_done = self.files_total = self.bytes_done = self.bytes_total = 0
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=SAMPLES)

    def begin(self) -> None:
        """A new pass: nothing is done, and nothing is known to be to do."""
        self.files_done = self.files_total = self.bytes_done = self.bytes_total = 0
        self._samples.clear()
        self.reported = 0

    def expect(self, files: int, size: int) -> None:
        """There is so much more to do.

        :param size: bytes.
        """
        self.files_total += files
        self.bytes_total += size
        if not self._samples:
            self._began = self._seconds()
            self._samples.append((self._began, 0, 0))

    def check(self) -> None:
        """Called between steps: raises when no more should be done."""
        self._may_go_on()
        now = self._seconds()
        if self._samples and now - self._samples[-1][0] >= SAMPLE:
            self._samples.append((now, self.files_done, self.bytes_done))
            if now - self._began >= (self.reported + 1) * REPORT_SECONDS:
                self.reported += 1
                self._report()

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return self._seconds() - self._began

    def rate(self) -> float:
        """Bytes per second, lately."""
        return self._rates()[1]

    def time_left(self) -> float | None:
        """Seconds that the rest will take as things go; None when nothing has been done yet.

        Many small files are slow by their number, large ones by their size: the slower one counts.
        """
        files, size = self._rates()
        left = [
            (total - done) / rate
            for done, total, rate in (
                (self.files_done, self.files_total, files),
                (self.bytes_done, self.bytes_total, size),
            )
            if rate > 0 and total > done
        ]
        return max(left, default=None)

    def _rates(self) -> tuple[float, float]:
        if not self._samples:
            return 0.0, 0.0
        at, files, size = self._samples[0]
        passed = self._seconds() - at
        if passed <= 0:
            return 0.0, 0.0
        return (self.files_done - files) / passed, (self.bytes_done - size) / passed
