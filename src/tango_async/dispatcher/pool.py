"""Machines ready for a job, by what is fixed when they are made. Each serves one job.

Lends with `async with pool.lease(spec)`. Removal and replacement happen in the background, so that
neither delays a result or the next claim. What could not be removed is found again by upkeep.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from ..errors import VmmsError
from ..model import Machine, MachineSpec, PoolState
from ..vmms.base import Vmms

log = logging.getLogger(__name__)

FIRST_NUMBER = 1000
"""Tango numbers its machines from here; its clients show the numbers."""

REPLACE_AFTER_S = 0.1
"""A replacement waits so long, so that making it takes no processor from the job that took the machine."""

BACKOFF_MAX_S = 30.0


@dataclass
class Lent:
    """A machine on loan. Once `started` is set it may be left running for the next dispatcher."""

    machine: Machine
    started: bool = False
    kept: bool = False


class Pool:
    """All machines of one dispatcher."""

    def __init__(self, vmms: Vmms, owner: str, *, wait_s: float) -> None:
        self._vmms = vmms
        self._owner = owner
        self._wait_s = wait_s
        self._idle: dict[MachineSpec, deque[Machine]] = defaultdict(deque)
        self._wanted: dict[MachineSpec, int] = {}
        self._making: dict[MachineSpec, int] = defaultdict(int)
        self._numbers: dict[str, int] = {}
        self._images: dict[str, str] = {}
        self._next_number = count(FIRST_NUMBER)
        self._tasks: set[asyncio.Task[None]] = set()
        self._refill = asyncio.Event()

    @asynccontextmanager
    async def lease(self, spec: MachineSpec) -> AsyncIterator[Lent]:
        """A machine that takes files. Raises VmmsError, TimeoutError."""
        async with self._lend(await self._take(spec)) as lent:
            yield lent

    @asynccontextmanager
    async def lease_of(self, machine: Machine) -> AsyncIterator[Lent]:
        """The same for a machine that was found running."""
        self._enter(machine)
        async with self._lend(machine) as lent:
            yield lent

    @asynccontextmanager
    async def _lend(self, machine: Machine) -> AsyncIterator[Lent]:
        lent = Lent(machine)
        try:
            yield lent
        except asyncio.CancelledError:
            lent.kept = lent.started and self._vmms.capabilities.adopt
            raise
        finally:
            # One that was kept stays known to this process, so that it is not taken for a stray.
            if not lent.kept:
                self.discard(machine)

    def want(self, sizes: dict[MachineSpec, int]) -> None:
        """Sets how many idle machines of each spec there should be; others go."""
        if sizes != self._wanted:
            self._wanted = dict(sizes)
            self._refill.set()

    def owns(self, machine_id: str) -> bool:
        return machine_id in self._numbers

    def state(self) -> dict[str, PoolState]:
        """What /pool/ shows: numbers of all machines and of the idle ones, by image."""
        total: dict[str, list[int]] = {spec.image: [] for spec in self._wanted}
        free: dict[str, list[int]] = {image: [] for image in total}
        for machine_id, image in self._images.items():
            total.setdefault(image, []).append(self._numbers[machine_id])
        for spec, machines in self._idle.items():
            free.setdefault(spec.image, []).extend(self._numbers[m.id] for m in machines)
        return {i: PoolState(total=tuple(sorted(t)), free=tuple(sorted(free.get(i, ())))) for i, t in total.items()}

    async def tend(self, stop: asyncio.Event) -> None:
        """Keeps the wanted number of idle machines until told to stop."""
        backoff_s = 0.5
        while not stop.is_set():
            self._refill.clear()
            try:
                made = await self._refill_once()
                backoff_s = 0.5
            except Exception as e:  # whatever it is, jobs do not depend on prepared machines
                ours = None if isinstance(e, VmmsError | TimeoutError) else e
                said = "a prepared machine could not be made, next try in %.1f s: %s"
                log.warning(said, backoff_s, e or "too slow", exc_info=ours)
                await _first(stop.wait(), asyncio.sleep(backoff_s))
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
                continue
            if not made:
                await _first(stop.wait(), self._refill.wait())

    async def close(self) -> None:
        """Removes the idle machines and waits for removals under way."""
        for spec in list(self._idle):
            while self._idle[spec]:
                self.discard(self._idle[spec].popleft())
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10.0)

    def discard(self, machine: Machine) -> None:
        """Removes a machine in the background."""

        async def remove() -> None:
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._vmms.destroy_vm(machine)
            except (VmmsError, TimeoutError) as e:
                log.warning("machine %s could not be removed yet: %s", machine.id, e or "too slow")
            self._leave(machine)

        self._spawn(remove())

    async def _take(self, spec: MachineSpec) -> Machine:
        idle = self._idle[spec]
        while idle:
            machine = idle.popleft()
            asyncio.get_running_loop().call_later(REPLACE_AFTER_S, self._refill.set)
            if await self._lives(machine):
                return machine
        return await self._make(spec)

    async def _lives(self, machine: Machine) -> bool:
        """An engine that was restarted meanwhile has taken its idle machines with it."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._vmms.wait_vm(machine)
        except (VmmsError, TimeoutError) as e:
            log.warning("prepared machine %s is of no use any more: %s", machine.id, e or "too slow")
        except BaseException:
            self.discard(machine)
            raise
        else:
            return True
        self.discard(machine)
        return False

    async def _make(self, spec: MachineSpec) -> Machine:
        async with asyncio.timeout(self._wait_s):
            machine = await self._vmms.initialize_vm(spec, self._owner)
            self._enter(machine)
            try:
                await self._vmms.wait_vm(machine)
            except BaseException:
                self.discard(machine)
                raise
        return machine

    async def _refill_once(self) -> bool:
        for spec, machines in self._idle.items():
            while len(machines) > self._wanted.get(spec, 0):
                self.discard(machines.popleft())
        for spec, size in self._wanted.items():
            if len(self._idle[spec]) < size:
                self._idle[spec].append(await self._make(spec))
                return True
        return False

    def _enter(self, machine: Machine) -> None:
        self._numbers[machine.id] = next(self._next_number)
        self._images[machine.id] = machine.spec.image

    def _leave(self, machine: Machine) -> None:
        self._numbers.pop(machine.id, None)
        self._images.pop(machine.id, None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    tasks = [asyncio.ensure_future(w) for w in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
