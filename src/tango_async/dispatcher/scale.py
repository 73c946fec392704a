"""How many machines there may be for the jobs that wait, where one serves job after job and is paid for.

Jobs are claimed for machines that are free, and for as many more as a standing backlog is reason for. How many those
are the queue decides for all dispatchers at once (scale.lua). Makes no machine itself: a claimed job has one made.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from ..errors import QueueUnavailable
from ..machine import Scaling
from ..model import class_name, parts_of
from ..queue.redis import Queue
from ..vmms.base import ScaledVmms, Vmms
from .pool import Pool

LOOK_S = 1.0
"""Between two looks at how many jobs wait."""
GAP_S = 10.0
"""What was not looked at for longer may have been otherwise in between."""


class Backlog:
    """The jobs of one image that wait, as they were seen from time to time. No I/O; times are of one clock, in s."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._since_s = -math.inf
        """Seen without a gap since."""
        self._lows: deque[tuple[float, int]] = deque()
        """(when, how many waited then), rising: those that no later one was below."""

    def saw(self, waiting: int, now: float) -> None:
        if not self._lows or self._lows[-1][0] < now - GAP_S:
            self._since_s = now
        while self._lows and self._lows[-1][1] >= waiting:
            self._lows.pop()
        self._lows.append((now, waiting))

    @property
    def latest(self) -> int:
        return self._lows[-1][1] if self._lows else 0

    def standing(self, now: float) -> int:
        """As many as waited at any time of the last `after_s`; 0 if that has not been seen."""
        while len(self._lows) > 1 and self._lows[0][0] < now - self._after_s:
            self._lows.popleft()
        return self._lows[0][1] if self._lows and self._since_s <= now - self._after_s else 0


@dataclass(frozen=True, slots=True)
class Grant:
    """Machines that there were, and how many more may be made, until the next look."""

    machines: int
    more: int


class Scale:
    """Of one dispatcher with these labels. Jobs on quiet cores have none of these machines."""

    def __init__(self, queue: Queue, vmms: Vmms, pool: Pool, instance: str, labels: Sequence[str]) -> None:
        self._queue = queue
        self._vmms = cast(ScaledVmms, vmms)
        self._scaling = cast(Scaling, vmms.capabilities.scaling)
        self._pool = pool
        self._instance = instance
        self._labels = frozenset(labels)
        self._backlogs: dict[str, Backlog] = {}
        self._grants: dict[str, Grant] = {}

    def room(self, image: str) -> int:
        """How many more jobs of the image may have a machine now: one that is free, or one that may be made."""
        machines = self._vmms.standing(image).machines
        grant = self._grants.get(image, Grant(machines, 0))
        # What was made of the grant is in the first, what has gone since is not in the second.
        return max(0, min(grant.machines, machines) + grant.more - self._pool.used(image))

    async def run(self, rooms: Callable[[], Mapping[str, int]], done: asyncio.Event) -> None:
        """Looks again and again, until told to stop."""
        while not done.is_set():
            with suppress(QueueUnavailable):  # which the beat tells
                await self.look(rooms(), asyncio.get_running_loop().time())
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), LOOK_S)

    async def look(self, room: Mapping[str, int], now: float) -> None:
        """Sees how many jobs wait. `room`: by image, how many could be taken if there were machines.

        Raises QueueUnavailable; then none is granted.
        """
        self._grants.clear()
        waiting = await self._queue.waiting()
        self._backlogs = {image: self._backlogs.get(image) or Backlog(self._scaling.after_s) for image in room}
        for image, backlog in self._backlogs.items():
            backlog.saw(sum(n for name, n in waiting.items() if self._offered(image, name)), now)
            self._grants[image] = await self._grant(image, backlog, room[image], now)
            if self._grants[image].more:
                self._pool.roomier.set()

    def _offered(self, image: str, class_name: str) -> bool:
        of_image, quiet, labels = parts_of(class_name)
        return of_image == image and not quiet and labels <= self._labels

    async def _grant(self, image: str, backlog: Backlog, room: int, now: float) -> Grant:
        there, used, most = self._vmms.standing(image), self._pool.used(image), self._pool.most(image)
        coming = max(0, used - there.machines)  # for jobs that were just claimed
        machines, fresh = there.machines + coming, there.fresh + coming
        waiting = backlog.standing(now)
        if not machines:
            waiting = max(waiting, min(backlog.latest, 1))  # there is nothing that the first one could wait for
        if machines > used:
            waiting = 0  # whatever keeps them waiting, it is not that there are too few
        more = 0
        if waiting or fresh:
            bound = max(0, room if most is None else min(room, most - machines))
            offer = class_name(image, labels=self._labels)
            more = await self._queue.scale(offer, self._instance, waiting, self._scaling.jobs_each, fresh, bound)
        return Grant(machines, more)
