"""Assembly: all contexts of one process, what they share, and whom they tell."""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.logger import Logger, globalLogPublisher

from rda.access.audit import Audit
from rda.agent_record import AgentRecord, write_record
from rda.config import Config, Context
from rda.context import ContextAgent
from rda.deferreds import threads_of
from rda.errors import ConfigError, RdaError
from rda.pages.document import Process
from rda.pages.logs import RecentLog
from rda.proxy.authentication import Machine
from rda.reload import Reloading, difference
from rda.service_manager import ServiceManager
from rda.ssh.link import Link
from rda.ssh.shared import Links
from rda.state import private_directory
from rda.status import ContextStatus, LinkStatus, Problem

__all__ = ["Agent"]

#: Objects made and not freed after which garbage is searched for; each is some hundred bytes.
GARBAGE_THRESHOLD = 20_000


class Agent(MultiService):
    """All contexts of one process.

    :param load: reads the configuration again, for :meth:`reload`; raises :class:`rda.errors.ConfigError`.
    :param say: prints one line to the person who started it.
    :param give_up: ends the process with a failure; the reason has been said.
    :param manager: is told when the service is ready, and how it is; by default nobody is.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: Config,
        load: Callable[[], Config],
        say: Callable[[str], object],
        give_up: Callable[[], object],
        manager: ServiceManager | None = None,
    ) -> None:
        super().__init__()
        self.setName("rda")
        self._reactor = reactor
        self._config = config
        self._say = say
        self._give_up = give_up
        self.log = RecentLog()
        self.audit = _audit(config)
        self.process = Process(os.getpid(), time.time())
        self.links = Links(lambda remote, docker: Link(reactor, remote, docker))
        self._manager = manager or ServiceManager({}, os.getpid(), reactor)
        self.machine = Machine()
        self._reloading = Reloading(load, self._change, self._reloaded, time.time)
        self._contexts = {context.name: self.make_context(context) for context in config.contexts}

    def make_context(self, context: Context) -> ContextAgent:
        """Wire a context; it is started as a service of this one."""
        return ContextAgent(self._reactor, context, Path(self._config.state_dir), self._say, self)

    def startService(self) -> None:
        """Make the state directory, allow as many descriptors as the system does, and start every context.

        One that cannot start ends the process: whoever starts it wants to know.
        """
        try:
            private_directory(Path(self._config.state_dir))
            if self.audit is not None:
                self.audit.start()
        except OSError as error:
            self._complain([Problem("state", unusable(error, self._config.state_dir), time.time())])
            return
        _raise_descriptor_limit()
        _search_less_garbage()
        globalLogPublisher.addObserver(self.log)
        super().startService()
        for context in self._contexts.values():
            self._start(context).addCallback(self._complain)

    def _start(self, context: ContextAgent) -> Deferred[list[Problem]]:
        """Start a context; fires when its listeners are open, with what went wrong."""
        try:
            context.setServiceParent(self)
        except (RdaError, OSError) as error:
            why = str(error) if isinstance(error, RdaError) else unusable(error, self._config.state_dir)
            return succeed([Problem(f"context {context.name}", why, time.time())])
        return context.opened

    def _complain(self, problems: list[Problem]) -> None:
        for problem in problems:
            self._say(f"rda: {problem.subject}: {problem.message}")
        if problems:
            self._give_up()

    def stopService(self) -> Deferred[Any]:
        """Stop every context, also those that a change of the configuration is stopping; fires when they have."""
        self._manager.stopping()

        def stopped(result: Any) -> Any:
            globalLogPublisher.removeObserver(self.log)
            return result

        stopping = [maybeDeferred(super().stopService), self._reloading.when_idle()]
        return DeferredList(stopping, consumeErrors=True).addBoth(self._close_audit).addBoth(stopped)

    def _close_audit(self, result: Any) -> Any:
        """Have the last calls noted: beside the reactor, as the disk may be slow."""
        if self.audit is None:
            return result
        return threads_of(self._reactor)(self.audit.stop).addBoth(lambda _: result)

    def reload(self) -> None:
        """Read the configuration again and apply what is different in it."""
        self._manager.reloading()
        self._reloading.request()

    def _reloaded(self) -> None:
        self._manager.reloaded(summary(self._links_status()))
        self.note_listeners()

    async def _change(self, wanted: Config) -> list[Problem]:
        """Stop and start contexts; those that did not change keep everything they have."""
        if wanted.state_dir != self._config.state_dir:
            raise ConfigError(["state_dir: it cannot change while rda runs; restart rda"])
        if wanted.audit != self._config.audit:
            raise ConfigError(["audit: it cannot change while rda runs; restart rda"])
        running = {name: context.context for name, context in self._contexts.items() if context.works}
        changes = difference(running, wanted)
        broken = [name for name in self._contexts if name not in running]
        self._config = wanted
        for ending in [self._end(name) for name in (*changes.stop, *broken)]:
            await ending
        if not self.running:
            return []
        problems = [problem for context in self._contexts.values() for problem in context.read_files()]
        started = [self.make_context(context) for context in changes.start]
        self._contexts |= {context.context.name: context for context in started}
        for opening in [self._start(context) for context in started]:
            problems += await opening
        return problems

    def _end(self, name: str) -> Deferred[Any]:
        """Stop a context for good; whatever it meets on its way out does not stop the others."""
        ending = maybeDeferred(self._contexts.pop(name).disownServiceParent)
        return ending.addErrback(lambda failure: self._log.failure("defect while stopping {name}", failure, name=name))

    def note_listeners(self) -> None:
        """Write down where the contexts listen now, for the ``rda`` command."""
        pid = os.getpid() if self.running else 0
        record = AgentRecord(
            pid=pid,
            contexts=tuple(context.record() for context in self._contexts.values() if context.wired),
            reloads=self._reloading.count,
            reload_problems=tuple(f"{one.subject}: {one.message}" for one in self._reloading.problems()),
        )
        try:
            write_record(Path(self._config.state_dir), record)
        except OSError as error:
            self._log.info("the rda command will need --host: {error}", error=error)

    def changed(self) -> None:
        """Tell the service manager how the contexts are, if it should know."""
        if not self.running:
            return
        listening = all(context.listening for context in self._contexts.values())
        links = self._links_status()
        line = summary(links)
        if listening and settled(link for _, link in links):
            self._manager.ready(line)
        else:
            self._manager.waiting(line)

    def _links_status(self) -> list[tuple[str, LinkStatus]]:
        return [(name, context.link_status()) for name, context in self._contexts.items() if context.wired]

    def status(self) -> tuple[ContextStatus, ...]:
        """What every context is doing; what of the configuration is not in effect concerns them all."""
        contexts = [context.status() for context in self._contexts.values() if context.wired]
        audit = self.audit.problem() if self.audit is not None else None
        problems = (*self._reloading.problems(), *((audit,) if audit is not None else ()))
        return tuple(replace(one, problems=tuple(dict.fromkeys((*one.problems, *problems)))) for one in contexts)


def unusable(error: OSError, state_dir: str) -> str:
    """Why rda cannot keep what it has to, and what to do."""
    where = error.filename or state_dir
    return (
        f"{where} cannot be used: {error.strerror or error}; make it writable, free some space on its disk, or choose "
        "another place with --state-dir (rda doctor tells more)"
    )


def settled(links: Iterable[LinkStatus]) -> bool:
    """Whether a service with these links is ready: none is still on its way, and at least one is there.

    A link that failed waits for a person; the other contexts of the process do not wait for it.
    """
    states = {link.state for link in links}
    return "connected" in states and states <= {"connected", "failed"}


def summary(links: Iterable[tuple[str, LinkStatus]]) -> str:
    """How the links of the contexts are, in one line."""
    return "; ".join(
        f"{name}: {link.remote} {link.state}" + (f" ({link.reason})" if link.reason else "") for name, link in links
    )


def _audit(config: Config) -> Audit | None:
    """The audit that the configuration asks for."""
    settings = config.audit
    if settings is None:
        return None
    path = Path(settings.path) if settings.path else Path(config.state_dir) / "audit.jsonl"
    return Audit(path, settings.max_bytes, settings.keep, fail_closed=settings.fail_closed)


def _search_less_garbage() -> None:
    """Leave what was made until now out of the searches for garbage, and search less often.

    Each search goes through all objects of the modules, which never go; connections come and go in thousands, and most
    of their objects are freed without a search. Measured, it is a tenth of the processor time of a new connection.
    """
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


def _raise_descriptor_limit() -> None:
    """Two descriptors per stream: take what the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
