#!/usr/bin/env python3
"""One peer: peer.py NAME REDIS_URL JOBS. Enqueues no-op jobs, runs them in this process, prints both rates as JSON.

Runs in the benchmark's own environment. Each peer as its documentation starts it, with the settings that make
it survive a killed worker where it has them, at most 32 jobs at a time, its results kept as they are by default.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version

AT_A_TIME = 32


class Count:
    """Tells when the last job has been run."""

    def __init__(self, jobs: int) -> None:
        self.left = jobs
        self.done = asyncio.Event()

    def one(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.done.set()


async def enqueue(jobs: int, one: Callable[[int], Awaitable[object]]) -> None:
    numbers = iter(range(jobs))

    async def work() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(work() for _ in range(AT_A_TIME)))


async def timed(work: Awaitable[object]) -> float:
    begun = time.perf_counter()
    await work
    return time.perf_counter() - begun


async def drained(count: Count, run: Awaitable[object]) -> float:
    """Seconds from the start of the worker, in this process and connected, to the end of the last job."""
    begun = time.perf_counter()
    worker = asyncio.ensure_future(run)
    await count.done.wait()
    taken = time.perf_counter() - begun
    worker.cancel()
    return taken


async def arq(url: str, jobs: int) -> tuple[float, float]:
    from arq import create_pool
    from arq.connections import RedisSettings
    from arq.worker import Worker, func

    count = Count(jobs)

    async def nothing(_: object) -> None:
        count.one()

    settings = RedisSettings(unix_socket_path=url.removeprefix("unix://"))
    pool = await create_pool(settings)
    added = await timed(enqueue(jobs, lambda _: pool.enqueue_job("nothing")))
    worker = Worker([func(nothing, name="nothing")], redis_pool=pool, max_jobs=AT_A_TIME, handle_signals=False)
    return added, await drained(count, worker.main())


async def saq(url: str, jobs: int) -> tuple[float, float]:
    from redis.asyncio import Redis
    from saq import Worker
    from saq.queue.redis import RedisQueue

    count = Count(jobs)

    async def nothing(_: object) -> None:
        count.one()

    queue = RedisQueue(Redis.from_url(url))
    await queue.connect()
    added = await timed(enqueue(jobs, lambda _: queue.enqueue("nothing", retries=3)))
    worker = Worker(queue, functions=[("nothing", nothing)], concurrency=AT_A_TIME)
    return added, await drained(count, worker.start())


async def taskiq(url: str, jobs: int) -> tuple[float, float]:
    from taskiq.api import run_receiver_task
    from taskiq_redis import RedisStreamBroker

    count, broker = Count(jobs), RedisStreamBroker(url=url)

    @broker.task
    async def nothing() -> None:
        count.one()

    await broker.startup()
    added = await timed(enqueue(jobs, lambda _: nothing.kiq()))
    broker.is_worker_process = True
    return added, await drained(count, run_receiver_task(broker, max_async_tasks=AT_A_TIME))


async def dramatiq(url: str, jobs: int) -> tuple[float, float]:
    """Its workers are threads: eight, its own number."""
    import dramatiq as library
    from dramatiq.brokers.redis import RedisBroker

    broker = RedisBroker(url=url)
    library.set_broker(broker)

    @library.actor(max_retries=3)
    def nothing() -> None:
        pass

    async def add() -> None:
        for _ in range(jobs):
            nothing.send()

    added = await timed(add())
    worker = library.Worker(broker, worker_threads=8)
    begun = time.perf_counter()
    worker.start()
    broker.join(nothing.queue_name)
    worker.join()
    return added, time.perf_counter() - begun


async def celery(url: str, jobs: int) -> tuple[float, float]:
    """One process that runs one job after the other (`--pool solo`), acknowledged after it."""
    from celery import Celery, signals

    app = Celery("peer", broker="redis+socket://" + url.removeprefix("unix://"))
    app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, task_ignore_result=True)
    app.conf.worker_redirect_stdouts = False
    left, begun = jobs, 0.0

    @app.task
    def nothing() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            tell("celery", jobs, added, time.perf_counter() - begun)
            os._exit(0)

    async def add() -> None:
        for _ in range(jobs):
            nothing.delay()

    @signals.worker_ready.connect(weak=False)
    def ready(**_: object) -> None:
        nonlocal begun
        begun = time.perf_counter()

    added = await timed(add())
    app.worker_main(["worker", "--pool=solo", "--loglevel=ERROR", "--without-gossip", "--without-mingle"])
    raise SystemExit("celery's worker ended too early")


PEERS = {"arq": arq, "saq": saq, "taskiq": taskiq, "dramatiq": dramatiq, "celery": celery}


def tell(name: str, jobs: int, added_s: float, drained_s: float) -> None:
    packages = {"taskiq": "taskiq-redis"}
    found = {"version": version(name), "redis": version("redis"), "add": jobs / added_s, "drain": jobs / drained_s}
    if name in packages:
        found["version"] = f"{version(name)} ({packages[name]} {version(packages[name])})"
    print(json.dumps(found), flush=True)


async def main(name: str, url: str, jobs: int) -> None:
    tell(name, jobs, *await PEERS[name](url, jobs))
    os._exit(0)  # workers that were cancelled, and their threads, are of no more interest


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
