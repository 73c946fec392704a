"""Machines ready for a job, by what is fixed when they are made. Each serves one job.

Lends with `async with pool.lease(spec)`. Removal and replacement happen in the background, so that
neither delays a result or the next claim. How many wait is decided in policy.py and shelf.py; what
is made and removed for it, here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import cast

from ..config import Pools
from ..errors import VmmsError, VmmsUnavailable
from ..machine import Machine, MachineSpec
from ..model import PoolState
from ..vitals import available_bytes
from ..vmms.base import ManyHosts, ScaledVmms, Vmms
from .machines import Machines
from .policy import Policy
from .shelf import Ready, Shelf, share_out

log = logging.getLogger(__name__)

REPLACE_AFTER_S = 0.1
"""A replacement waits for the job that took the machine, since making it takes the job's processor, but no longer."""

TICK_S = 1.0
"""Between two looks at what has become idle, may be tried again, or fills the memory."""

LOOK_S = 10.0
"""A machine that waits is asked for a sign of life so often, and one at a time."""

MAKERS = 2
"""Machines made at a time without a job that waits for them, each for another spec."""


@dataclass
class Lent:
    """A machine on loan. Once `started` is set it may be left running for the next dispatcher."""

    machine: Machine
    prepared: bool = False
    """It waited for the job, and may have died meanwhile."""
    started: bool = False
    kept: bool = False


class Pool:
    """All machines of one dispatcher. `version_of` an image changes when its name gets another image."""

    def __init__(
        self,
        vmms: Vmms,
        owner: str,
        *,
        wait_s: float,
        bounds: Pools,
        version_of: Callable[[str], str],
        available: Callable[[], int] = available_bytes,
    ) -> None:
        self._vmms = vmms
        self._hosts = vmms if isinstance(vmms, ManyHosts) else None
        self._owner = owner
        self._wait_s = wait_s
        self._bounds = bounds
        self._version_of = version_of
        self._available = available
        self._reused = vmms.capabilities.scaling is not None
        """One on its way out may be back in a moment."""
        self._machines = Machines(vmms, wait_s=wait_s, removed=self._open)
        self._shelves: dict[MachineSpec, Shelf] = {}
        self._policies: dict[str, Policy] = {}
        self._jobs: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._looking = False
        self._closed = False
        self.roomier = asyncio.Event()
        """Set when `room` may have risen for an image; whoever waits for it clears it."""

    @asynccontextmanager
    async def lease(self, spec: MachineSpec, *, fresh: bool = False, host: str = "") -> AsyncIterator[Lent]:
        """A machine that takes files, on that host if one is named; made now if `fresh` or none waits.

        Raises VmmsError, TimeoutError.
        """
        policy = self._policies.get(spec.image)
        shelf = self._shelf(policy.fit(spec) if policy is not None else spec)
        with self._using(shelf):
            waiting = None if fresh else self._take(shelf, host)
            machine = await self._make(shelf.spec, host) if waiting is None else waiting.machine
            async with self._lend(Lent(machine, prepared=waiting is not None)) as lent:
                yield lent

    @asynccontextmanager
    async def lease_of(self, machine: Machine) -> AsyncIterator[Lent]:
        """The same for a machine that was found running."""
        self._machines.enter(machine)
        with self._using(self._shelf(machine.spec)):
            async with self._lend(Lent(machine, started=True)) as lent:
                yield lent

    @asynccontextmanager
    async def _lend(self, lent: Lent) -> AsyncIterator[Lent]:
        try:
            yield lent
        except asyncio.CancelledError:
            lent.kept = lent.started and self._vmms.capabilities.adopt
            raise
        finally:
            # One that was kept stays known to this process, so that it is not taken for a stray.
            if not lent.kept:
                self.discard(lent.machine)

    @contextmanager
    def _using(self, shelf: Shelf) -> Iterator[None]:
        """Counts a machine as in use, and has it replaced when the job has ended or soon after its start."""
        loop = asyncio.get_running_loop()
        shelf.lend(loop.time())
        due = loop.call_later(REPLACE_AFTER_S, self._due, shelf)
        self._changed.set()  # it may need what others only wait with
        try:
            yield
        finally:
            if loop.time() < due.when():
                due.cancel()
                self._due(shelf)
            shelf.give_back(loop.time())
            self._changed.set()

    def _due(self, shelf: Shelf) -> None:
        shelf.owed -= 1
        self._changed.set()

    def follow(self, policies: Mapping[str, Policy]) -> None:
        """Keeps ready what these say of each image of this host."""
        most_before = {image: policy.most for image, policy in self._policies.items()}
        self._policies = dict(policies)
        for policy in self._policies.values():
            if policy.ready:
                self._shelf(policy.spec)
        if most_before != {image: policy.most for image, policy in self._policies.items()}:
            self.roomier.set()
        self._changed.set()

    def room(self, image: str) -> int | None:
        """How many more jobs of the image may have a machine now; None if only slots bound them.

        One that is being made is as good as taken: where that takes minutes, the next job gets it sooner than its own.
        """
        most = self.most(image)
        return None if most is None else max(0, most - self._jobs[image] - self._making(image))

    def most(self, image: str) -> int | None:
        """Machines that the image may have at a time; None if only slots bound them."""
        policy = self._policies.get(image)
        return policy.most if policy is not None else None

    def used(self, image: str) -> int:
        """Machines of the image that jobs have or will have, and those in the making and on their way out."""
        return self._jobs[image] + self._making(image) + self._machines.going_of(image)

    def _making(self, image: str) -> int:
        return sum(shelf.making for shelf in self._of(image))

    def _may_have_one_more(self, image: str) -> bool:
        """A claimed job may not have asked for its machine yet, so jobs are counted, and what waits besides."""
        room = self.room(image)
        return room is None or room > sum(len(shelf.idle) for shelf in self._of(image))

    def enter(self, image: str) -> None:
        """A job of the image was claimed, and has or will have a machine."""
        self._jobs[image] += 1

    def leave(self, image: str) -> None:
        """… and has ended here."""
        self._jobs[image] -= 1
        self._changed.set()
        self._open(image)

    def _open(self, image: str) -> None:
        if self.room(image) is not None or self._reused:
            self.roomier.set()

    def owns(self, machine_id: str) -> bool:
        return machine_id in self._machines

    def state(self) -> dict[str, PoolState]:
        """What /pool/ shows: numbers of all machines and of those that wait, by image."""
        total = self._machines.by_image()
        named = [image for image, policy in self._policies.items() if policy.ordered]
        ailing = [shelf.spec.image for shelf in self._shelves.values() if shelf.problem]
        return {image: self._state(image, total.get(image, [])) for image in dict.fromkeys([*named, *ailing, *total])}

    def _state(self, image: str, total: list[int]) -> PoolState:
        shelves = self._of(image)
        free = [self._machines.number(waiting.machine) for shelf in shelves for waiting in self._at_hand(shelf)]
        problem = next((shelf.problem for shelf in shelves if shelf.problem), "")
        return PoolState(total=tuple(sorted(total)), free=tuple(sorted(free)), problem=problem)

    async def tend(self, stop: asyncio.Event) -> None:
        """Keeps as many machines ready as there should be, until told to stop."""
        waker = asyncio.create_task(_wake_on(stop, self._changed))
        try:
            while not stop.is_set():
                self._changed.clear()
                self._settle()
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._changed.wait()
        finally:
            waker.cancel()

    async def close(self) -> None:
        """Removes the machines that wait, and waits for removals under way."""
        self._closed = True
        for shelf in self._shelves.values():
            while shelf.idle:
                self._remove(shelf, shelf.idle[0])
        await self._machines.close()

    def discard(self, machine: Machine) -> None:
        """Removes a machine in the background."""
        self._machines.discard(machine)

    # -- what waits --------------------------------------------------------------------------------

    def _settle(self) -> None:
        now = asyncio.get_running_loop().time()
        for shelf in self._shelves.values():
            for waiting in [one for one in shelf.idle if not self._is_current(one)]:
                self._remove(shelf, waiting)
        granted = share_out(self._shelves.values(), self._policies.get, self._idle_room(), now)
        for shelf, size in granted.items():
            at_hand = self._at_hand(shelf)
            for surplus in at_hand[size:]:
                self._remove(shelf, surplus)
            makers = sum(one.making for one in self._shelves.values())
            lacking = len(at_hand) + self._coming(shelf) < size and self._may_have_one_more(shelf.spec.image)
            if lacking and shelf.may_make(now) and makers < MAKERS:
                shelf.making = True
                self._machines.spawn(self._prepare(shelf))
            if shelf.blank and not any(shelf.wanted(self._policies.get(shelf.spec.image), now)):
                del self._shelves[shelf.spec]
        self._look_at_one(now)

    def _coming(self, shelf: Shelf) -> int:
        """Machines that will wait or be in use without another one being made, or not yet."""
        if not self._reused:
            return shelf.owed
        image = shelf.spec.image
        claimed = self._jobs[image] - sum(one.lent for one in self._of(image))
        return shelf.owed + self._machines.going_of(image) + max(0, claimed)

    def _idle_room(self) -> int:
        """How many machines may wait, by the settings and by the memory that the host has left."""
        bounds, each = self._bounds, self._vmms.capabilities.idle_bytes
        waiting = sum(len(shelf.idle) for shelf in self._shelves.values())
        if not waiting and not any(policy.ready or policy.low or policy.demand for policy in self._policies.values()):
            return 0
        returning = len(self._machines.going) * each
        surplus = self._available() + returning - bounds.spare_memory_bytes
        if surplus > 0:
            surplus = max(0, surplus - bounds.spare_memory_bytes // 4)  # so that none is made and removed in turn
        return max(0, min(bounds.max_idle, bounds.idle_memory_bytes // each, waiting + surplus // each))

    async def _prepare(self, shelf: Shelf) -> None:
        version, loop = self._version_of(shelf.spec.image), asyncio.get_running_loop()
        try:
            machine = await self._make(shelf.spec)
        except VmmsUnavailable:
            shelf.put_off(loop.time())  # no image is to blame, and the engine's state is told elsewhere
        except Exception as e:  # whatever it is, jobs do not depend on prepared machines
            wait_s = shelf.failed(str(e) or "too slow", loop.time())
            said = "a machine of %s could not be prepared, next try in %.1f s: %s"
            ours = None if isinstance(e, VmmsError | TimeoutError) else e
            log.warning(said, shelf.spec.image, wait_s, shelf.problem, exc_info=ours)
        else:
            shelf.well()
            waiting = Ready(machine, version, loop.time())
            shelf.idle.append(waiting)
            if self._closed or not self._is_current(waiting):
                self._remove(shelf, waiting)
        finally:
            shelf.making = False
            self._changed.set()
            self._open(shelf.spec.image)

    async def _make(self, spec: MachineSpec, host: str = "") -> Machine:
        if self._reused and (most := self.most(spec.image)) is not None:
            cast(ScaledVmms, self._vmms).make_way(spec, most)
        async with asyncio.timeout(self._wait_s):
            if host and self._hosts is not None:
                machine = await self._hosts.initialize_on(host, spec, self._owner)
            else:
                machine = await self._vmms.initialize_vm(spec, self._owner)
            self._machines.enter(machine)
            try:
                await self._vmms.wait_vm(machine)
            except BaseException:
                self.discard(machine)
                raise
        return machine

    def _take(self, shelf: Shelf, host: str) -> Ready | None:
        """One that waits. Nobody is asked whether it lives: that would cost every job some milliseconds."""
        for waiting in [one for one in shelf.idle if not host or self._host_of(one) == host]:
            shelf.idle.remove(waiting)
            if self._is_current(waiting):
                return waiting
            self.discard(waiting.machine)
        if not shelf.passed_by and any(other.idle for other in self._of(shelf.spec.image)):
            shelf.passed_by = True
            log.warning("machines of %s wait, but a job needs another kind: %s", shelf.spec.image, shelf.spec)
        return None

    def _host_of(self, waiting: Ready) -> str:
        return self._hosts.host_of(waiting.machine) if self._hosts is not None else ""

    def _at_hand(self, shelf: Shelf) -> list[Ready]:
        """Those that wait, the oldest first. One on a host that is away counts again when that is back."""
        if self._hosts is None:
            return list(shelf.idle)
        well = {host.name for host in self._hosts.hosts() if host.healthy}
        return [one for one in shelf.idle if self._host_of(one) in well]

    def _look_at_one(self, now: float) -> None:
        """An engine that was restarted has taken the machines with it that waited; /pool/ should not show them."""
        waiting = [(one, shelf) for shelf in self._shelves.values() for one in shelf.idle]
        if waiting and not self._looking:
            one, shelf = min(waiting, key=lambda found: found[0].looked_s)
            if now - one.looked_s > LOOK_S:
                one.looked_s, self._looking = now, True
                self._machines.spawn(self._look_at(shelf, one))

    async def _look_at(self, shelf: Shelf, one: Ready) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._vmms.wait_vm(one.machine)
        except (VmmsUnavailable, TimeoutError):
            return  # that is the engine's trouble
        except VmmsError as e:
            if one in shelf.idle:
                log.warning("a prepared machine of %s is of no use any more: %s", shelf.spec.image, e)
                self._remove(shelf, one)
                self._changed.set()
        finally:
            self._looking = False

    def _remove(self, shelf: Shelf, waiting: Ready) -> None:
        shelf.idle.remove(waiting)
        self.discard(waiting.machine)

    def _is_current(self, waiting: Ready) -> bool:
        return waiting.version == self._version_of(waiting.machine.spec.image)

    def _shelf(self, spec: MachineSpec) -> Shelf:
        if spec not in self._shelves:
            self._shelves[spec] = Shelf(spec, asyncio.get_running_loop().time())
        return self._shelves[spec]

    def _of(self, image: str) -> list[Shelf]:
        return [shelf for spec, shelf in self._shelves.items() if spec.image == image]


async def _wake_on(event: asyncio.Event, waiter: asyncio.Event) -> None:
    await event.wait()
    waiter.set()
