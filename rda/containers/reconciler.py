"""Keeps forwards and mirrors equal to what the remote daemon says about this context's containers.

The daemon is the truth: an event only ever means "look again at this container", and a new link or a new event stream
means "look at all of them". What a look finds is applied to the forwards (open while the container runs) and to the
mirrors (live while the container exists).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from rda.api import DaemonAPI
from rda.containers.made_here import MadeHere
from rda.deferreds import Waiters
from rda.docker.host_network import HostForwards
from rda.docker.ports import Published
from rda.docker.request import OWNER_LABEL, Request, is_labelled, request_of
from rda.errors import RdaError
from rda.ports.forwards import Forwards
from rda.status import Problem
from rda.sync.mirrors import Mirrors

__all__ = ["Owned", "Reconciler"]

#: Containers inspected at the same time when all of them are looked at.
LOOKS_AT_ONCE = 8

#: Seconds until a port that could not be opened for a running container is tried again, for the first and for the later
#: times: soon for one that an ending rda still holds, and then not more often than somebody would look.
RETRY_PORTS_SECONDS = 0.5
MAX_RETRY_PORTS_SECONDS = 30.0

#: Container events after which ports, mounts or names may be different.
_CONTAINER_EVENTS = ("create", "start", "die", "destroy", "restart", "rename", "update", "pause", "unpause")

#: Network events after which the daemon may have moved a container's ports.
_NETWORK_EVENTS = ("connect", "disconnect")


@dataclass(frozen=True)
class Owned:
    """A container that this context made, as last seen.

    :ivar request: what the user asked for, from the container's label.
    :ivar ports: what is to be open here while it runs.
    :ivar sources: the local paths that are mirrored for it.
    """

    id: str
    name: str
    running: bool
    request: Request
    ports: tuple[Published, ...] = ()
    sources: tuple[str, ...] = ()


class Reconciler(Service):
    """Follows the daemon and applies what it says.

    :param owner: the identity that this context writes into the labels of its containers.
    :param mirrored: the local paths among the bind sources of a request.
    :param made_here: the record of this context's containers.
    :param host_forwards: what is forwarded of containers on the host's network without their asking.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        api: DaemonAPI,
        forwards: Forwards,
        mirrors: Mirrors,
        owner: str,
        mirrored: Callable[[Request], tuple[str, ...]],
        made_here: MadeHere | None = None,
        host_forwards: HostForwards | None = None,
    ) -> None:
        self._clock = clock
        self._api = api
        self._forwards = forwards
        self._mirrors = mirrors
        self._owner = owner
        self._mirrored = mirrored
        self._host_forwards = host_forwards or HostForwards()
        self.made_here = made_here or MadeHere()
        self._owned: dict[str, Owned] = {}
        self._starting: dict[str, int] = {}
        self._looks: dict[str, Waiters[None]] = {}
        self._look_again: set[str] = set()
        self._blocked: dict[str, tuple[int, IDelayedCall]] = {}
        self._problems: dict[str, Problem] = {}
        self._stream: Deferred[None] | None = None
        self._retry: IDelayedCall | None = None
        self._failures = 0
        self._delay = backoffPolicy(initialDelay=0.2, maxDelay=15.0)

    def stopService(self) -> None:
        """Stop following. What is open stays open: closing is the forwards' own."""
        super().stopService()
        self.link_down()
        for container in list(self._blocked):
            self._unblocked(container)

    # The stream of events.

    def link_up(self) -> None:
        """Follow the daemon over the link that has just come up."""
        self._failures = 0
        if self.running and self._stream is None:
            self._follow()

    def link_down(self) -> None:
        """Stop following; what is known stays, to be checked when the link is back."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    def _follow(self) -> None:
        """Open the stream first and list second, so that nothing falls between the two."""
        self._retry = None
        filters = {"type": ["container", "network"], "event": [*_CONTAINER_EVENTS, *_NETWORK_EVENTS]}
        stream = self._api.follow_events(filters, None, self._seen)
        self._stream = stream
        stream.addBoth(self._stream_ended, stream)
        Deferred.fromCoroutine(self.look_at_all()).addErrback(self._complain, "the containers of the remote daemon")

    def _stream_ended(self, result: object, stream: Deferred[None]) -> None:
        """The daemon went away, or never answered: try again, unless the link went with it."""
        if isinstance(result, Failure) and not result.check(RdaError, CancelledError):
            self._log.failure("The stream of events broke", result)
        if self._stream is not stream or not self.running:
            return
        self._stream = None
        self._failures += 1
        self._retry = self._clock.callLater(self._delay(self._failures), self._follow)

    def _seen(self, event: dict[str, Any]) -> None:
        self._failures = 0
        actor = event.get("Actor") or {}
        attributes = actor.get("Attributes") or {}
        if event.get("Type") == "network":
            container = attributes.get("container", "")
            if container in self._owned:
                self._look_in_background(container)
        elif attributes.get(OWNER_LABEL) == self._owner or actor.get("ID") in self._owned:
            self._look_in_background(str(actor.get("ID", "")))

    def _look_in_background(self, container: str) -> None:
        self.look(container).addErrback(self._complain, container)

    def _complain(self, failure: Failure, subject: str) -> None:
        """A look that fails is made again by the next event or link; a defect is logged."""
        if failure.check(RdaError):
            self._log.info("Could not look at {subject}: {reason}", subject=subject, reason=failure.getErrorMessage())
        else:
            self._log.failure("Looking at {subject} failed", failure, subject=subject)

    # Looking.

    async def look_at_all(self) -> None:
        """Look at every container of this context, and forget those that are gone."""
        listed = await self._api.list_containers([f"{OWNER_LABEL}={self._owner}"])
        found = {str(item["Id"]) for item in listed}
        at_once = DeferredSemaphore(LOOKS_AT_ONCE)
        looks = [at_once.run(self.look, container) for container in found | self._owned.keys()]
        for look, container in zip(looks, found | self._owned.keys(), strict=True):
            look.addErrback(self._complain, container)
        await gatherResults(looks)

    def look(self, container: str) -> Deferred[None]:
        """Inspect one container and apply what is found; fires when that is done.

        Looks at one container never overlap: a look asked for during another one is made after it.

        :param container: the full id.
        """
        if container in self._looks:
            self._look_again.add(container)
            return self._looks[container].wait()
        waiters = self._looks[container] = Waiters()
        looked = waiters.wait()
        Deferred.fromCoroutine(self._look_until_still(container)).addBoth(self._looked, container)
        return looked

    def _looked(self, result: Failure | None, container: str) -> None:
        self._looks.pop(container).fire(result)

    async def _look_until_still(self, container: str) -> None:
        while True:
            self._look_again.discard(container)
            await self._look_once(container)
            if container not in self._look_again:
                return

    async def _look_once(self, container: str) -> None:
        description = await self._api.inspect_container(container)
        if container in self._starting:
            return  # the start that is under way applies what it finds itself, at its end
        await self.apply(container, description)

    async def apply(self, container: str, description: dict[str, Any] | None) -> None:
        """Make forwards and mirrors what this description of the container asks for.

        :param description: the daemon's answer to inspect, or None: the container is gone.
        """
        owned = self.owned(description) if description is not None else None
        if owned is None or description is None:
            if description is None:
                self.made_here.removed(container)
            await self._forget(container)
            return
        before = self._owned.get(container)
        self._owned[container] = owned
        await self._hold_mirrors(owned)
        if container in self._starting:
            return  # it has begun meanwhile, has its ports, and looks when it ends
        if not owned.running:
            await self._release(container)
            if before is not None and before.running:
                self._bring_back(before)  # in the background: whoever asked for the look need not wait for it
            return
        reservation = await self._forwards.reserve(container, owned.name, owned.ports, all_or_none=False)
        if reservation.problem:
            self._problems[container] = Problem(owned.name, reservation.problem, time.time())
            self._try_again(container)
        else:
            self._problems.pop(container, None)
            self._unblocked(container)
        self._forwards.attach(container, owned.request.remote_ports(description, owned.ports))

    def _try_again(self, container: str) -> None:
        """A running container lacks a port that something else holds: look again by and by, until it is free."""
        times, waiting = self._blocked.get(container, (0, None))
        if waiting is not None and waiting.active():
            return
        seconds = min(RETRY_PORTS_SECONDS * 2**times, MAX_RETRY_PORTS_SECONDS)
        again = self._clock.callLater(seconds, self._look_in_background, container)
        self._blocked[container] = (times + 1, again)

    def _unblocked(self, container: str) -> None:
        _, waiting = self._blocked.pop(container, (0, None))
        if waiting is not None and waiting.active():
            waiting.cancel()

    async def _release(self, container: str) -> None:
        """Close a container's ports; whoever waits for one of them may have it now."""
        self._unblocked(container)
        open_before = bool(self._forwards.local(container))
        await self._forwards.release(container)
        for waiting in list(self._blocked) if open_before else ():
            self._look_in_background(waiting)

    async def _hold_mirrors(self, owned: Owned) -> None:
        """Adopt the mirrors of a container that was made before this process started."""
        try:
            await self._mirrors.hold(owned.id, owned.sources, owned.request.shown)
        except RdaError as e:
            self._problems[owned.id] = Problem(owned.name, str(e), time.time())

    async def _forget(self, container: str) -> None:
        before = self._owned.pop(container, None)
        self._problems.pop(container, None)
        await self._release(container)
        if before is not None and before.running:
            self._bring_back(before).addCallback(lambda _: self._mirrors.release(container))
        else:
            await self._mirrors.release(container)

    def _bring_back(self, ended: Owned) -> Deferred[Any]:
        """A container has ended: let two-way mirrors see what it wrote last. What fails shows in their status."""
        completing = [self._mirrors.complete(source, ended.request.shown) for source in ended.sources]
        return DeferredList(completing, consumeErrors=True)

    def is_ours(self, container: Mapping[str, object]) -> bool:
        """Return whether this context made a container.

        :param container: its inspect document, or its entry in a list.
        """
        if not is_labelled(container, self._owner):
            return False
        return self.made_here.holds(str(container.get("Id", "")), request_of(container).nonce)

    def owned(self, description: Mapping[str, Any]) -> Owned | None:
        """Return a container as ours, or None when this context did not make it."""
        if not self.is_ours(description):
            return None
        request = request_of(description)
        name = str(description.get("Name", "")).lstrip("/")
        state = description.get("State") or {}
        configured = self._host_forwards.of(name) if request.on_host_network else ()
        return Owned(
            id=str(description["Id"]),
            name=name,
            running=bool(state.get("Running"))
            and not state.get("Restarting"),  # the daemon waits: nothing is published
            request=request,
            ports=tuple(dict.fromkeys((*request.ports, *configured))),
            sources=self._mirrored(request),
        )

    # What the calls of clients need.

    def start_begins(self, container: str) -> None:
        """Leave a container's forwards to the start that is under way, until :meth:`start_ends`."""
        self._starting[container] = self._starting.get(container, 0) + 1

    def start_ends(self, container: str) -> Deferred[None]:
        """Look at the container as its start left it."""
        self._starting[container] -= 1
        if not self._starting[container]:
            del self._starting[container]
        return self.look(container)

    def is_starting(self, container: str) -> bool:
        """Whether a start that somebody asked for is under way."""
        return container in self._starting

    def known(self, container: str) -> Owned | None:
        """A container of ours by its full id, as last seen."""
        return self._owned.get(container)

    def problems(self) -> tuple[Problem, ...]:
        """What could not be applied."""
        return tuple(self._problems.values())
