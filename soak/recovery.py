"""How long it takes until a part works again, from when it and all it stands on are back."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgpack
from program import Program
from redis.exceptions import RedisError
from settings import PREFIX
from stage import NEEDS_FILES, NEEDS_REDIS, Stage

Works = Callable[[float], Awaitable[bool]]
"""Told when its part was back, by the monotonic clock."""

LONGEST_S = 120.0
LOOK_S = 0.05


class Recovery:
    """Watches each part that was killed, until it works."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._back: dict[str, float] = {}
        self._away: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.took: dict[str, list[float]] = defaultdict(list)
        self.never: list[str] = []

    def away(self, part: str) -> None:
        self._away.add(part)

    def back(self, part: str) -> None:
        self._away.discard(part)
        self._back[part] = time.monotonic()

    def watch(self, part: str, kind: str, works: Works) -> None:
        """Begins when the part is told to be back."""
        task = asyncio.create_task(self._watch(part, kind, works))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Waits for the parts that do not work yet."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LONGEST_S)

    async def _watch(self, part: str, kind: str, works: Works) -> None:
        back = time.monotonic()
        while time.monotonic() < self._whole_since(part, back) + LONGEST_S:
            if part in self._away:
                return  # it was killed again; that torment has a watch of its own
            if await works(back):
                now = time.monotonic()
                self.took[kind].append(now - max((self._back.get(p, 0.0) for p in self._stands_on(part)), default=now))
                return
            await asyncio.sleep(LOOK_S)
        self.never.append(part)

    def _whole_since(self, part: str, back: float) -> float:
        """When all that it stands on was back; now, while something of that is away."""
        needs = self._stands_on(part)
        if self._away.intersection(needs):
            return time.monotonic()
        return max(back, *(self._back.get(p, 0.0) for p in needs))

    def _stands_on(self, part: str) -> list[str]:
        to_servers = [f"{server.name}{what}" for server in self._stage.servers for what in ("", "-redis", "-clients")]
        if part == "redis":
            return ["redis", *to_servers]
        # An upkeep that finds the store away, and an engine that is away, hold up a dispatcher's start.
        whole = [part, "redis", *self._stage.backend.parts, *(p.name for p in self._stage.store.programs)]
        whole += [*self._stage.store.parts, f"{part}-redis", f"{part}-clients"]
        return whole + (to_servers if part in self._store_parts else [])

    # -- what works means ----------------------------------------------------------------------------

    @property
    def _store_parts(self) -> set[str]:
        return {*self._stage.store.parts, *(p.name for p in self._stage.store.programs)}

    async def how_it_works(self, part: str) -> Works:
        """Asked before the part is taken away."""
        for number, server in enumerate(self._stage.servers):
            if part == server.name:
                return lambda _: self._stage.answers(number, NEEDS_REDIS)
        for dispatcher in self._stage.dispatchers:
            if part == dispatcher.name:
                before = await self.instance_of(dispatcher)
                return lambda _: self.dispatcher_works(dispatcher, before)
        if part == "redis":
            return lambda _: self._stage.all_answer(NEEDS_REDIS)
        if part in self._store_parts:
            return lambda _: self._stage.all_answer(NEEDS_FILES)
        return self.backend_works

    async def instance_of(self, dispatcher: Program) -> str | None:
        """What a living dispatcher calls itself, by the place that its process has locked."""
        with suppress(OSError, RedisError, TimeoutError, StopIteration):
            targets = (link.readlink() for link in Path(f"/proc/{dispatcher.pid}/fd").iterdir())
            lock = next(t for t in targets if t.name == "lock" and t.is_relative_to(self._stage.state))
            install = (lock.parent / "install").read_text().strip()
            async with asyncio.timeout(1.0):
                packed = await self._stage.witness.hget(f"{PREFIX}dispatchers", install)
            return str(msgpack.unpackb(packed)["instance"]) if packed else None
        return None

    async def holds_nothing(self, instance: str | None) -> bool:
        """Whether every job that a dead dispatcher held is another's, waiting, or dead.

        One whose machine was ended meanwhile waits until its dispatcher's grace is over; that is not counted.
        """
        if instance is None:
            return True
        redis = self._stage.witness
        with suppress(OSError, RedisError, TimeoutError):
            async with asyncio.timeout(1.0):
                held = [int(i) for i in await redis.zrange(f"{PREFIX}held", 0, -1)]
                jobs = [await redis.hmget(f"{PREFIX}job:{i}", "holder", "machine") for i in held]
            lost = self._stage.backend.lost
            return not any(
                holder == instance.encode() and (machine or b"").decode() not in lost for holder, machine in jobs
            )
        return False

    async def dispatcher_works(self, dispatcher: Program, before: str | None) -> bool:
        return dispatcher.is_ready.is_set() and await self.holds_nothing(before)

    async def backend_works(self, since: float) -> bool:
        """Whether all dispatchers have said since then that what runs their machines is well."""
        redis = self._stage.witness
        with suppress(OSError, RedisError, TimeoutError):
            async with asyncio.timeout(1.0):
                seconds, micros = await redis.time()
                since_ms = (seconds + micros / 1e6 - (time.monotonic() - since)) * 1000
                beats = await redis.hgetall(f"{PREFIX}beats")
                said = await redis.hgetall(f"{PREFIX}dispatchers")
            fresh = [name for name, at in beats.items() if int(at) > since_ms]
            records = [msgpack.unpackb(said[name]) for name in fresh]
            well = [r["healthy"] and all(engine["healthy"] for engine in r["engines"]) for r in records]
            return len(fresh) >= len(self._stage.dispatchers) and all(well)
        return False
