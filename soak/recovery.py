"""How long it takes until a part works again, from when it and all it stands on are back."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgpack
from plan import ENGINES
from program import Program
from redis.exceptions import RedisError
from stage import PREFIX, Stage

ENGINE_PARTS = [f"engine-{i}" for i in range(ENGINES)]

LONGEST_S = 60.0
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

    def watch(self, part: str, works: Callable[[], Awaitable[bool]]) -> None:
        """Begins when the part is told to be back."""
        task = asyncio.create_task(self._watch(part, works))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Waits for the parts that do not work yet."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LONGEST_S)

    async def _watch(self, part: str, works: Callable[[], Awaitable[bool]]) -> None:
        kind = part.partition("-")[0].replace("http", "server")
        end = time.monotonic() + LONGEST_S
        while time.monotonic() < end:
            if part in self._away:
                return  # it was killed again; that torment has a watch of its own
            if await works():
                now = time.monotonic()
                self.took[kind].append(now - max((self._back.get(p, 0.0) for p in self._stands_on(part)), default=now))
                return
            await asyncio.sleep(LOOK_S)
        self.never.append(part)

    def _stands_on(self, part: str) -> list[str]:
        if part == "redis":
            return ["redis", *(f"http-{i}{what}" for i in (0, 1) for what in ("", "-redis", "-clients"))]
        # An upkeep that finds the disk full, and an engine that is away, hold up a dispatcher's start.
        return [part, "redis", *ENGINE_PARTS, "disk", f"{part}-redis", f"{part}-clients"]

    # -- what works means ----------------------------------------------------------------------------

    async def server_works(self, number: int) -> bool:
        return await self._stage.answers(number)

    async def redis_works(self) -> bool:
        return all(await asyncio.gather(*(self._stage.answers(i) for i in (0, 1))))

    async def instance_of(self, dispatcher: Program) -> str | None:
        """What a living dispatcher calls itself, by the place that its process has locked."""
        with suppress(OSError, RedisError, TimeoutError, StopIteration):
            targets = (link.readlink() for link in Path(f"/proc/{dispatcher.pid}/fd").iterdir())
            lock = next(t for t in targets if t.name == "lock" and t.is_relative_to(self._stage.state))
            install = (lock.parent / "install").read_text().strip()
            async with asyncio.timeout(0.3):
                packed = await self._stage.witness.hget(f"{PREFIX}dispatchers", install)
            return str(msgpack.unpackb(packed)["instance"]) if packed else None
        return None

    async def holds_nothing(self, instance: str | None) -> bool:
        """Whether every job that a dead dispatcher held is another's, waiting, or dead."""
        if instance is None:
            return True
        redis = self._stage.witness
        with suppress(OSError, RedisError, TimeoutError):
            async with asyncio.timeout(1.0):
                held = [int(i) for i in await redis.zrange(f"{PREFIX}held", 0, -1)]
                holders = [await redis.hget(f"{PREFIX}job:{i}", "holder") for i in held]
                return instance.encode() not in holders
        return False

    async def dispatcher_works(self, dispatcher: Program, before: str | None) -> bool:
        return dispatcher.is_ready.is_set() and await self.holds_nothing(before)

    async def engine_works(self, since: float) -> bool:
        """Whether both dispatchers have said since then that their engine is well."""
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
            return len(fresh) >= 2 and all(well)
        return False
