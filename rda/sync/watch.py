"""Watch local trees: watchdog's threads collect hints, and the reactor is told that there are some.

An event only ever means "look again here": nothing is concluded from its kind or order. Doubt (an overflow, too many
hints) means "look at everything". What watchdog does with a big tree, and what is done about it:

- it reads ``opened`` and ``closed without writing`` events too, which its own walk causes: the walk overflows its
  queue, it walks again, for ever. The event filter leaves these out.
- it tells of an overflow only through ``logging``: a logging handler listens.
- it holds a file's departure back for half a second, and all events behind it, to see whether it arrives elsewhere in
  the tree: what is paired does not matter here, so it waits for a few milliseconds only.
- it is silent when the kernel refuses a watch below the root: :func:`watches_left` asks the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import watchdog.events
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch
from watchdog.utils import UnsupportedLibcError

from rda.sync.tree import WHOLE, Scope

#: Seconds without another event before the tree is looked at, and the longest that a stream of events can delay it.
QUIET = 0.010
LONGEST_DELAY = 0.100

#: Seconds that watchdog may wait for the second half of a move (it reads both at once, as a rule).
PAIRING = 0.005

#: With more hints than this, one look at the whole tree is cheaper, and memory stays bounded.
HINTS_LIMIT = 5000

#: What may change what a tree holds. By name, because older watchdogs have no attribute events.
_WANTED = (
    "FileCreatedEvent",
    "FileModifiedEvent",
    "FileAttribEvent",
    "FileDeletedEvent",
    "FileMovedEvent",
    "FileClosedEvent",
    "DirCreatedEvent",
    "DirModifiedEvent",
    "DirAttribEvent",
    "DirDeletedEvent",
    "DirMovedEvent",
)
EVENTS: list[type[FileSystemEvent]] = [
    getattr(watchdog.events, name) for name in _WANTED if hasattr(watchdog.events, name)
]

#: Directories that appeared with content: events of what is in them may have been missed.
_DEEP = ("created", "moved")


class Hints(FileSystemEventHandler):
    """Collects where to look again, in watchdog's thread, and hands it to the reactor, once per burst.

    :param root: the watched directory as the file system events name it.
    :param only: for a single file, its name: everything else in the directory is somebody else's.
    :param changed: called in the reactor's thread with the scope to look at.
    """

    def __init__(
        self,
        reactor: Any,
        root: bytes,
        only: bytes | None,
        changed: Callable[[Scope], None],
    ) -> None:
        self._reactor = reactor
        self._prefix = root.rstrip(b"/") + b"/"
        self._only = only
        self._changed = changed
        self._lock = threading.Lock()
        self._paths: set[bytes] = set()
        self._trees: set[bytes] = set()
        self._told = False
        self._first = 0.0
        self._count = 0
        self._timer: IDelayedCall | None = None
        self._stopped = False

    def dispatch(self, event: FileSystemEvent) -> None:
        """Take one event. Called in watchdog's thread."""
        deep = event.is_directory and event.event_type in _DEEP
        places = [os.fsencode(event.src_path)]
        if event.dest_path:
            places.append(os.fsencode(event.dest_path))
        with self._lock:
            for place in places:
                self._note(place, deep)
            tell = not self._told and bool(self._paths or self._trees)
            self._told = self._told or tell
        if tell:
            self._tell()

    def _note(self, place: bytes, deep: bool) -> None:
        path = place[len(self._prefix) :] if place.startswith(self._prefix) else b""
        if self._only is not None:
            if path not in (self._only, b""):
                return
            path = b""
        (self._trees if deep and self._only is None else self._paths).add(path)
        if len(self._paths) + len(self._trees) > HINTS_LIMIT:
            self._paths.clear()
            self._trees = {b""}

    def lost(self) -> None:
        """Events were lost: everything has to be looked at. Called in any thread."""
        with self._lock:
            self._paths.clear()
            self._trees = {b""}
            tell, self._told = not self._told, True
        if tell:
            self._tell()

    def stop(self) -> None:
        """Tell nothing any more. Called in the reactor's thread."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        self._reactor.callFromThread(self._begin)

    def _begin(self) -> None:
        if not self._stopped:
            self._first = self._reactor.seconds()
            self._count = self._size()
            self._timer = self._reactor.callLater(QUIET, self._wait_or_hand_over)

    def _size(self) -> int:
        return len(self._paths) + len(self._trees)

    def _wait_or_hand_over(self) -> None:
        """While new places keep coming, wait a little longer; then hand over what there is."""
        self._timer = None
        count = self._size()
        left = self._first + LONGEST_DELAY - self._reactor.seconds()
        if count != self._count and left > 0 and self._trees != {b""}:
            self._count = count
            self._timer = self._reactor.callLater(min(QUIET, left), self._wait_or_hand_over)
            return
        with self._lock:
            paths, trees = self._paths, self._trees
            self._paths, self._trees, self._told = set(), set(), False
        self._changed(WHOLE if b"" in trees else Scope(frozenset(paths), frozenset(trees)))


class Watcher:
    """All local trees that are watched, through one watchdog observer.

    :param reactor: its clock and ``callFromThread``.
    :param observer: makes the observer; watchdog's best for the platform unless a test says otherwise.

    :meth:`watch` and :meth:`unwatch` block (they walk the tree): call them in a thread.
    """

    _log = Logger()

    def __init__(self, reactor: Any, observer: Callable[[], BaseObserver] = Observer) -> None:
        self._reactor = reactor
        self._new_observer = observer
        self._observer: BaseObserver | None = None
        self._lock = threading.Lock()
        self._watched: dict[ObservedWatch, Hints] = {}
        _pair_moves_quickly()
        # Of a directory that it watches already it warns, with all that it watches in the text: megabytes of log.
        warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning, "watchdog")
        self._overflow = _OverflowListener(self._lost)

    def watch(self, root: bytes, only: bytes | None, hints: Hints) -> ObservedWatch | str:
        """Watch a directory and everything below it (with ``only``: just itself).

        :return: what :meth:`unwatch` takes, or the reason why the tree has to be polled instead.
        """
        with self._lock:
            try:
                if self._observer is None:
                    observer = self._new_observer()
                    observer.start()
                    self._observer = observer
                    self._overflow.attach()
                watch = self._observer.schedule(
                    hints, os.fsdecode(root), recursive=only is None, event_filter=list(EVENTS)
                )
            except OSError as error:
                return _limit_advice(error)
            self._watched[watch] = hints
        if only is None and not watches_left():
            self.unwatch(watch)
            return _limit_advice(None)
        return watch

    def unwatch(self, watch: ObservedWatch) -> None:
        """Stop watching; the last one stops the threads."""
        with self._lock:
            self._watched.pop(watch, None)
            if self._observer is None:
                return
            try:
                self._observer.unschedule(watch)
            except KeyError:  # its root was removed, and watchdog has dropped it itself
                pass
            if not self._watched:
                self._overflow.detach()
                self._observer.stop()
                self._observer.join()
                self._observer = None

    def _lost(self) -> None:
        for hints in list(self._watched.values()):
            hints.lost()


def _pair_moves_quickly() -> None:
    """Shorten watchdog's wait for the second half of a move, where this version of it keeps the number."""
    holders = {"inotify_move_event_grouper": "InotifyMoveEventGrouper", "inotify_buffer": "InotifyBuffer"}
    for module, name in holders.items():
        try:
            holder = getattr(importlib.import_module(f"watchdog.observers.{module}"), name)
        except (ImportError, AttributeError, UnsupportedLibcError):
            continue
        holder.delay = PAIRING


class _OverflowListener(logging.Handler):
    """Hears watchdog say that the kernel's event queue has overflowed."""

    def __init__(self, lost: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._lost = lost
        self._source = logging.getLogger("watchdog.observers")

    def attach(self) -> None:
        self._source.addHandler(self)

    def detach(self) -> None:
        self._source.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if "overflow" in record.getMessage():
            self._lost()


def watches_left() -> bool:
    """Whether the kernel would give this user one more inotify watch. True where there is no inotify."""
    if not sys.platform.startswith("linux"):
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:  # no more instances; the one that is used has its own
        return True
    try:
        return bool(libc.inotify_add_watch(descriptor, b"/", 0x400) >= 0)  # IN_DELETE_SELF
    finally:
        os.close(descriptor)


def _limit_advice(error: OSError | None) -> str:
    if error is not None and error.errno not in (errno.EMFILE, errno.ENOSPC):
        return f"changes cannot be watched ({error.strerror}), so the tree is looked at every few seconds"
    instances = error is not None and error.errno == errno.EMFILE
    setting = "max_user_instances=1024" if instances else "max_user_watches=1048576"
    return (
        f"the limit of inotify is reached, so changes are found by looking every few seconds. "
        f"To have them at once: sysctl fs.inotify.{setting}"
    )
