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

from support.jobs import claim_one, spec
from tango_async.config import Settings, load
from tango_async.dispatcher.dispatcher import Dispatcher
from tango_async.files.local import LocalStore
from tango_async.model import Verdict
from tango_async.queue.redis import Queue

JOBS = 3000
SLOTS = 32


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
        scripts, whole, floor = [], [], []
        async with redis(directory / sync, sync=sync) as server:
            for turn in range(2 if quick else 5):
                settings = settings_for(directory / f"{sync}-{turn}", server.url)
                scripts.append(await all_scripts(settings, jobs))
                whole.append(await whole_dispatcher(with_prefix(settings), jobs))
                floor.append(await bare_list(server.url, jobs))
        beside = "LPUSH + BLPOP"
        figures.append(Figure(f"empty jobs, all scripts, {sync}", "jobs/s", scripts, floor, beside))
        aim = ">= 1000" if sync == "everysec" else ""
        figures.append(Figure(f"empty jobs, whole dispatcher, {sync}", "jobs/s", whole, floor, beside, aim))
    return Report(figures)


async def all_scripts(settings: Settings, jobs: int) -> float:
    """Jobs a second through add, claim, start, extend, end: what a job costs the queue, from one process."""
    queue = Queue(settings)
    numbers = iter(range(jobs))

    async def work() -> None:
        for _ in numbers:
            await queue.add(spec(), fingerprint=uuid4().hex)
            claim = await claim_one(queue, [IMAGE], instance="bench")
            assert claim is not None
            await queue.start(claim, uuid4().hex)
            await queue.extend([(claim.id, claim.seq)])
            await queue.end(claim, Verdict.SUCCESS, "Success: Autodriver returned normally", "ref")

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(SLOTS)))
    taken = time.perf_counter() - begun
    await queue.close()
    return jobs / taken


async def whole_dispatcher(settings: Settings, jobs: int) -> float:
    """Jobs a second of a dispatcher that finds them waiting, with everything but machines: feedback is stored too."""
    queue, store = Queue(settings), LocalStore(settings.store)
    await store.open_lab("test-lab")
    for start in range(0, jobs, 100):
        pins = [await store.pin("test-lab", []) for _ in range(100)]
        specs = [spec(lab="test-lab", pin=pin.id, output_name=f"{start + i}.txt") for i, pin in enumerate(pins)]
        await asyncio.gather(*(queue.add(one, fingerprint=uuid4().hex) for one in specs))
    stop = asyncio.Event()
    dispatcher = Dispatcher(settings, Queue(settings), store, Idle(settings, "bench"), "bench")
    begun = time.perf_counter()
    running = asyncio.create_task(dispatcher.run(stop, lambda _: None))
    await ended(queue, settings, jobs)
    taken = time.perf_counter() - begun
    stop.set()
    await running
    await queue.close()
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
