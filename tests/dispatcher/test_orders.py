"""Orders to a dispatcher that runs: it pauses, goes on, and has other numbers of slots, without a restart."""

from __future__ import annotations

import asyncio

from dispatcher.conftest import Bench
from tango_async.model import DispatcherRecord, JobState, Verdict


async def record(bench: Bench) -> DispatcherRecord:
    (found,) = await bench.queue.dispatchers()
    return found


async def until_record(bench: Bench, **fields: object) -> None:
    async with asyncio.timeout(60):
        while True:
            found = await record(bench)
            if all(getattr(found, name) == value for name, value in fields.items()):
                return
            await asyncio.sleep(0.01)


async def started(bench: Bench) -> None:
    """With beats so rare that only the bell can be why an order is heard."""
    bench.beat_s = 300.0
    await bench.start()
    async with asyncio.timeout(60):
        while not await bench.queue.dispatchers():
            await asyncio.sleep(0.01)


async def test_a_paused_dispatcher_finishes_what_it_has_and_claims_nothing(bench: Bench) -> None:
    await started(bench)
    first = await bench.add("wait\nexit 0")
    await bench.until(first, JobState.RUNNING)
    assert await bench.queue.pause("install", True)
    await until_record(bench, paused=True)
    second = await bench.add("exit 0")
    bench.engine.go.set()
    assert (await bench.until(first)).verdict is Verdict.SUCCESS
    await asyncio.sleep(0.3)
    await bench.until(second, JobState.QUEUED)
    await bench.queue.pause("install", False)
    assert (await bench.until(second)).verdict is Verdict.SUCCESS
    await until_record(bench, paused=False)


async def test_a_pause_outlives_the_dispatcher(bench: Bench) -> None:
    await started(bench)
    await bench.queue.pause("install", True)
    await bench.queue.set_slots("install", 3)
    await bench.finish()
    waiting = await bench.add("exit 0")
    await bench.start()
    await until_record(bench, paused=True, slots=3)
    await bench.until(waiting, JobState.QUEUED)
    await bench.queue.pause("install", False)
    await bench.until(waiting)


async def test_more_slots_start_claims_at_once_and_fewer_end_no_job(bench: Bench) -> None:
    bench.change(slots=1)
    await started(bench)
    jobs = [await bench.add("hang", timeout_s=60) for _ in range(4)]
    await bench.until(jobs[0], JobState.RUNNING)
    await bench.until(jobs[1], JobState.QUEUED)
    await bench.queue.set_slots("install", 3)
    for job_id in jobs[1:3]:
        await bench.until(job_id, JobState.RUNNING)
    await bench.queue.set_slots("install", 1)
    await until_record(bench, slots=1, busy=3)
    await bench.queue.cancel(jobs[0])
    await bench.until(jobs[0])
    await asyncio.sleep(0.2)
    assert [(await bench.until(job_id, JobState.RUNNING)).retries for job_id in jobs[1:3]] == [0, 0]
    await bench.until(jobs[3], JobState.QUEUED)
    await bench.queue.set_slots("install", None)
    for job_id in jobs[1:]:
        await bench.queue.cancel(job_id)
        await bench.until(job_id)


async def test_a_job_that_is_adopted_by_a_paused_dispatcher_runs_on(bench: Bench) -> None:
    bench.change(grace_s=0.1)
    await bench.start()
    job_id = await bench.add("wait\nsay two\nexit 0")
    await bench.until_true(lambda: bench.engine.starts == 1)
    await bench.queue.pause("install", True)
    await bench.finish()
    bench.change(grace_s=5.0)
    await bench.start()
    bench.engine.go.set()
    job = await bench.until(job_id)
    assert (job.verdict, job.retries, bench.engine.starts) == (Verdict.SUCCESS, 0, 1)
