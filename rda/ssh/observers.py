"""Who is told of a link's state."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from rda.status import LinkStatus

__all__ = ["LinkObserver", "LinkObservers"]

LinkObserver = Callable[[LinkStatus], object]


class LinkObservers:
    """Those who are told; one that fails keeps neither the others from it nor the link from going on."""

    _log = Logger()

    def __init__(self) -> None:
        self._observers: list[LinkObserver] = []

    def add(self, observer: LinkObserver) -> None:
        """Have ``observer`` called with each status."""
        self._observers.append(observer)

    def remove(self, observer: LinkObserver) -> None:
        """Undo :meth:`add`."""
        self._observers.remove(observer)

    def tell(self, status: LinkStatus) -> None:
        """Call all of them."""
        for observer in list(self._observers):
            try:
                observer(status)
            except Exception:
                self._log.failure("an observer of the link failed")
