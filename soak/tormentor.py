"""Does what the plan says to the parts of the stage, and to nothing else."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from contextlib import suppress

from plan import Torment
from recovery import Recovery
from redis.exceptions import RedisError
from settings import PREFIX
from stage import Stage

WATCHED = ("kill", "cut off")
"""After these it is measured how long a part takes to work again."""


class Tormentor:
    def __init__(self, stage: Stage, torments: list[Torment], recovery: Recovery) -> None:
        self._stage = stage
        self._torments = torments
        self._recovery = recovery
        self.done: Counter[str] = Counter()
        self.lost_machines: set[int] = set()
        """Jobs whose machine was destroyed: these may run again."""
        self.outages: list[tuple[str, float, float]] = []
        """What kind of part was away, from when to when, by the clock of the machines."""
        # Some take their time to start, and what is planned for them next must wait until they have.
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._parts = stage.parts

    async def run(self) -> None:
        """All torments; when it returns, each is undone."""
        begin = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for torment in self._torments:
                await asyncio.sleep(max(0.0, begin + torment.at_s - time.monotonic()))
                group.create_task(self._torment(torment))

    async def _torment(self, t: Torment) -> None:
        if t.what == "destroy":
            await self._destroy_machine()
            return
        part = self._parts[t.part]
        async with self._turns[t.part]:
            works = await self._recovery.how_it_works(t.part) if t.what in WATCHED else None
            began = time.time()
            self._recovery.away(t.part)
            if await part.begin(t.what):
                self.done[f"{t.what} {part.kind}"] += 1
            await asyncio.sleep(t.for_s)
            await part.undo(t.what)
            self._recovery.back(t.part)
            self.outages.append((part.kind, began, time.time()))
            if works is not None:
                self._recovery.watch(t.part, part.kind, works)

    async def _destroy_machine(self) -> None:
        """Ends a running machine from the outside; which one the time decides, since they come and go."""
        with suppress(OSError, RedisError, TimeoutError):
            async with asyncio.timeout(1.0):
                machines = await self._stage.witness.hgetall(f"{PREFIX}machines")
            for name in sorted(machines):
                job = int(machines[name])
                if job not in self.lost_machines and await self._stage.backend.destroy(name.decode()):
                    self.lost_machines.add(job)
                    self.done["destroy machine"] += 1
                    return
