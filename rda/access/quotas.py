"""How much each user has, and what is being made: for the limits of policies."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rda.access.policy import Facts, Policy
from rda.api import DaemonAPI
from rda.deferreds import InThread
from rda.docker.owned import marked
from rda.docker.request import find_request, labels_of

__all__ = ["Quotas"]

#: Files that are looked at to see how large a bind source is, before it is called too large.
MAX_FILES_COUNTED = 1_000_000


class Quotas:
    """Counts containers, published ports and the bytes of bind sources.

    :param owner: the identity that this context writes into labels.
    :param has: whether a container, by its entry in a list, is a user's.
    :param in_thread: runs a blocking function in a thread.
    """

    def __init__(
        self,
        api: DaemonAPI,
        owner: str,
        has: Callable[[Mapping[str, object], str], bool],
        in_thread: InThread,
    ) -> None:
        self._api = api
        self._owner = owner
        self._has = has
        self._in_thread = in_thread
        self._reserved: Counter[tuple[str, str]] = Counter()  # user and key of a limit -> what is being made
        self._released: Counter[tuple[str, str]] = Counter()  # what is not any more, since somebody began to count
        self._counting = 0

    async def count(self, user: str, facts: Facts, policy: Policy) -> Facts:
        """Count what a user has, and what a new container would add.

        What is made while the daemon is asked may be missing in its answer: it stays reserved until that is there.
        """
        self._counting += 1
        try:
            labels = [f"{name}={value}" for name, value in marked(self._owner, user).items()]
            mine = [one for one in await self._api.list_containers(labels) if self._has(one, user)]
            requests = [request for one in mine if (request := find_request(labels_of(one))) is not None]
            used = {"max_containers": len(mine), "max_forwards": sum(len(request.ports) for request in requests)}
            wanted = {"max_containers": 1, "max_forwards": len(facts.ports)}
            if most := policy.limits.get("max_sync_bytes", 0):
                there = {source for request in requests for source in request.sources}
                new = sorted({real for _, real in facts.local} - there)
                used["max_sync_bytes"] = await self._in_thread(_size_of_all, sorted(there), most) if new else 0
                wanted["max_sync_bytes"] = await self._in_thread(_size_of_all, new, most)
            used = {key: count + self._reserved[user, key] for key, count in used.items()}
        finally:
            self._counting -= 1
            if not self._counting:
                self._reserved.subtract(self._released)
                self._released.clear()
        return replace(facts, used=used, wanted=wanted)

    def reserve(self, user: str, facts: Facts) -> dict[str, int]:
        """Count what is about to be made, so that creates at the same time do not each see room for themselves."""
        for key, count in facts.wanted.items():
            self._reserved[user, key] += count
        return dict(facts.wanted)

    def release(self, user: str, reserved: Mapping[str, int]) -> None:
        """What was reserved has been made, or is not made after all."""
        given_back = {(user, key): count for key, count in reserved.items()}
        if self._counting:
            self._released.update(given_back)
        else:
            self._reserved.subtract(given_back)


def _size_of_all(paths: Sequence[str], most: int) -> int:
    """Add up the bytes of the files at and below some paths, until they are more than ``most``. Blocking."""
    total = files = 0
    pending = list(paths)
    while pending and total <= most and files < MAX_FILES_COUNTED:
        path = pending.pop()
        try:
            with os.scandir(path) as listing:
                for item in listing:
                    files += 1
                    if item.is_dir(follow_symlinks=False):
                        pending.append(item.path)
                    elif item.is_file(follow_symlinks=False):
                        total += item.stat(follow_symlinks=False).st_size
        except NotADirectoryError:
            total += os.stat(path).st_size
        except OSError:
            continue
    return total if files < MAX_FILES_COUNTED else most + 1
