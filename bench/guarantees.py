"""What the guarantees cost: empty jobs through the full path, beside a bare list on the same Redis."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from uuid import uuid4

import msgspec
from figures import Figure, Report
from host import SYNC, redis
from machines import IMAGE, Idle
from redis.asyncio import Redis

from support.jobs import spec
from tango_async.config import Settings, load
from tango_async.dispatcher.claiming import LISTEN_S
from tango_async.dispatcher.dispatcher import Dispatcher
from tango_async.files.local import LocalStore
from tango_async.model import Claim, Verdict
from tango_async.queue.bells import Bells
from tango_async.queue.redis import Queue

JOBS = 3000
SLOTS = 32
SCRIPTS, WHOLE, BEFORE = "all scripts", "whole dispatcher", "whole dispatcher, added before"
FLOOR = "LPUSH + BLPOP"
NOTES = {
    SCRIPTS: "add, BLPOP, claim, start, extend, end, and the history's trimming; one process, adding included",
    WHOLE: "the same process adds them with their pins meanwhile",
    BEFORE: "working off alone",
}


def settings_for(directory: Path, url: str) -> Settings:
    environment = {"TANGO_DATA_DIR": str(directory), "TANGO_REDIS_URL": url, "TANGO_SLOTS": str(SLOTS)}
    return with_prefix(load(environ=environment))


def with_prefix(settings: Settings) -> Settings:
    """The same, with a queue of its own."""
    queue = msgspec.structs.replace(settings.queue, prefix=f"{uuid4().hex[:8]}:")
    return msgspec.structs.replace(settings, queue=queue)


async def guarantees(directory: Path, quick: bool) -> Report:
    """Full path and floor in turn, with each way of fsync."""
    figures: list[Figure] = []
    jobs = 1000 if quick else JOBS
    for sync in SYNC:
        taken: dict[str, list[float]] = {name: [] for name in (*NOTES, FLOOR)}
        async with redis(directory / sync, sync=sync) as server:
            for turn in range(2 if quick else 5):
                settings = settings_for(directory / f"{sync}-{turn}", server.url)
                taken[SCRIPTS].append(await all_scripts(settings, jobs))
                taken[WHOLE].append(await whole_dispatcher(with_prefix(settings), jobs))
                taken[BEFORE].append(await whole_dispatcher(with_prefix(settings), jobs, added_before=True))
                taken[FLOOR].append(await bare_list(server.url, jobs))
        for name, note in NOTES.items():
            aim = ">= 1000" if (name, sync) == (WHOLE, "everysec") else ""
            what = f"empty jobs, {name}, {sync}"
            figures.append(Figure(what, "jobs/s", taken[name], taken[FLOOR], FLOOR, aim, note=note))
    return Report(figures)


async def all_scripts(settings: Settings, jobs: int) -> float:
    """Jobs a second through the queue alone, from one process that asks as the service does.

    The history keeps a tenth of the jobs; the others are forgotten meanwhile, and that counts.
    """
    kept = msgspec.structs.replace(settings.queue, history_limit=jobs // 10)
    path = FullPath(msgspec.structs.replace(settings, queue=kept), jobs)
    begun = time.perf_counter()
    taking = asyncio.create_task(path.take())
    await asyncio.gather(path.add(), path.forget())
    taken = time.perf_counter() - begun
    await taking
    await path.close()
    return jobs / taken


class FullPath:
    """32 clients that add a job when theirs has ended, and one taker with 32 slots, which a bell wakes."""

    def __init__(self, settings: Settings, jobs: int) -> None:
        self._queue, self._bells = Queue(settings), Bells(settings)
        self._numbers, self._over, self._slots = iter(range(jobs)), asyncio.Event(), asyncio.Semaphore(SLOTS)
        self._ends: dict[int, asyncio.Future[None]] = {}

    async def close(self) -> None:
        await self._queue.close()
        await self._bells.close()

    async def add(self) -> None:
        """Until all have ended."""
        await asyncio.gather(*(self._client() for _ in range(SLOTS)))
        self._over.set()
        await self._bells.wake()

    async def _client(self) -> None:
        for _ in self._numbers:
            added = await self._queue.add(spec(), fingerprint=uuid4().hex)
            await self._end(added.id)
            del self._ends[added.id]

    def _end(self, job_id: int) -> asyncio.Future[None]:
        """Whichever of a job's client and its taker knows it first makes it."""
        return self._ends.setdefault(job_id, asyncio.get_running_loop().create_future())

    async def take(self) -> None:
        async with asyncio.TaskGroup() as running:
            while not self._over.is_set():
                room = await self._free()
                claims = await self._queue.claim("bench", uuid4().hex, {IMAGE: room}, room)
                for claim in claims:
                    running.create_task(self._work(claim))
                for _ in range(room - len(claims)):
                    self._slots.release()
                if len(claims) < room and not self._over.is_set():
                    await self._bells.wait_classes([IMAGE], LISTEN_S)

    async def _free(self) -> int:
        """Takes all slots that are free, and waits for one."""
        await self._slots.acquire()
        taken = 1
        while not self._slots.locked():
            await self._slots.acquire()
            taken += 1
        return taken

    async def _work(self, claim: Claim) -> None:
        await self._queue.start(claim, uuid4().hex)
        await self._queue.extend([(claim.id, claim.seq)])
        await self._queue.end(claim, Verdict.SUCCESS, "Success: Autodriver returned normally", "ref")
        self._slots.release()
        self._end(claim.id).set_result(None)

    async def forget(self) -> None:
        """What the history does not keep, as upkeep does, until no job comes any more."""
        while (expired := await self._queue.expired()) or not self._over.is_set():
            retired = await self._queue.retire([job_id for job_id, _ in expired])
            await self._queue.forget([job.id for job in retired])
            if not expired:
                await asyncio.sleep(0.02)


async def whole_dispatcher(settings: Settings, jobs: int, *, added_before: bool = False) -> float:
    """Jobs a second of a dispatcher with everything but machines: pins and feedback are stored too.

    The jobs are added by this process meanwhile, or it finds them waiting.
    """
    queue, its_own, store = Queue(settings), Queue(settings), LocalStore(settings.store)
    await store.open_lab("test-lab")
    stop, numbers = asyncio.Event(), iter(range(jobs))

    async def client() -> None:
        for n in numbers:
            pin = await store.pin("test-lab", [])
            one = spec(lab="test-lab", pin=pin.id, output_name=f"{n}.txt")
            await queue.add(one, fingerprint=uuid4().hex)

    async def add() -> None:
        await asyncio.gather(*(client() for _ in range(SLOTS)))

    if added_before:
        await add()
    dispatcher = Dispatcher(settings, its_own, store, Idle(settings, "bench"), "bench")
    begun = time.perf_counter()
    running = asyncio.create_task(dispatcher.run(stop, lambda _: None))
    if not added_before:
        await add()
    await ended(queue, settings, jobs)
    taken = time.perf_counter() - begun
    stop.set()
    await running
    await queue.close()
    await its_own.close()
    await store.close()
    return jobs / taken


async def ended(queue: Queue, settings: Settings, jobs: int) -> None:
    """Until so many jobs are dead."""
    while await queue._command("ZCARD", f"{settings.queue.prefix}dead") < jobs:
        await asyncio.sleep(0.05)


async def bare_list(url: str, jobs: int) -> float:
    client = Redis.from_url(url, socket_timeout=None)
    key, numbers = uuid4().hex, iter(range(jobs))

    async def work() -> None:
        for _ in numbers:
            await client.lpush(key, b"x" * 300)
            await client.blpop([key], 5)

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(SLOTS)))
    taken = time.perf_counter() - begun
    await client.aclose()
    return jobs / taken
