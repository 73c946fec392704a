"""Fair share: a course's wait beside another one's flood, and what lanes of different weights get."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from uuid import uuid4

import msgspec
from client import Connection, Outputs, each_in_turn
from figures import Figure, Line, Plot, Report, percentile
from guarantees import ended, settings_for
from host import job, redis, service
from machines import Idle

from support.jobs import spec
from support.service import Service
from tango_async.config import CourseShare, Share
from tango_async.dispatcher.dispatcher import Dispatcher
from tango_async.files.local import LocalStore
from tango_async.machine import Exit, Machine
from tango_async.queue.redis import Queue

SLOTS = 32
LANES = 20
SHORT_S = 0.05
ONE_JOB_MS = 1000
"""What a job of the flood takes."""


async def fairness(directory: Path, quick: bool) -> Report:
    flood = await beside_a_flood(directory / "flood", 400 if quick else 2000)
    shares = await by_weight(directory / "weights", 5 if quick else 10)
    return Report([*flood.figures, *shares.figures], [*flood.plots, *shares.plots])


async def beside_a_flood(directory: Path, jobs: int) -> Report:
    """B sends a job a second, first alone, then while A's jobs, a second each, hold and await all slots."""
    options = {"TANGO_VMMS": "machines:Idle", "TANGO_SLOTS": str(SLOTS)}
    directory.mkdir()
    async with service(directory, "tango-http", "tango-dispatcher", **options) as running:
        await running.upload("flooding-lab1", {"Makefile": b"# sleep 1\n"})
        await running.upload("calm-lab1", {"Makefile": b"# sleep 0\n"})
        takes_s = jobs / SLOTS
        alone = await _one_a_second(running, range(int(takes_s / 3)), "calm-lab1")
        await each_in_turn(running.url, 16, range(jobs), job, "/addJob/test/flooding-lab1/")
        beside = await _one_a_second(running, range(1000, 1000 + int(takes_s * 0.9)), "calm-lab1")
    what = f"a course's wait while another's {jobs:,} jobs hold all {SLOTS} slots"
    most, p99 = ONE_JOB_MS + statistics.median(alone), percentile(beside, 0.99)
    aim = f"p99 <= {most:,.0f}: one job of the other's, and its own median with nobody else there"
    first = (
        f"p99 is {p99:,.0f}: {'held' if p99 <= most else 'missed'}; in order of arrival: up to {takes_s * 1000:,.0f} ms"
    )
    times = [n for n, _ in enumerate(beside)]
    return Report(
        [Figure(what, "ms", beside, alone, "nobody else there", aim, tail=True, note=first)],
        [
            Plot(
                "fairness-flood",
                "A calm course beside a flood",
                "second",
                "ms from addJob to output",
                [Line("beside the flood", times, beside), Line("alone", times[: len(alone)], alone)],
            )
        ],
    )


async def _one_a_second(running: Service, numbers: range, lab: str) -> list[float]:
    """Milliseconds from addJob sent to output ready of each; the jobs themselves take none."""

    async def one(number: int, after_s: float) -> float:
        await asyncio.sleep(after_s)
        async with Connection(running.url) as connection:
            begun = time.perf_counter()
            await connection.ask("POST", f"/addJob/test/{lab}/", job(number))
            seen = await Outputs(running.url, window=1).wait([number], lab)
            return (seen[number] - begun) * 1000

    return list(await asyncio.gather(*(one(n, float(i)) for i, n in enumerate(numbers))))


async def by_weight(directory: Path, each: int) -> Report:
    """Twenty courses of weights 1 to 20 that never run dry: of the first jobs to end, whose were they?"""
    weights = range(1, LANES + 1)
    courses = tuple(CourseShare(pattern=f"test-c{w}", weight=float(w)) for w in weights)
    async with redis(directory / "redis") as server:
        settings = msgspec.structs.replace(settings_for(directory, server.url), share=Share(course=courses))
        queue, its_own, store = Queue(settings), Queue(settings), LocalStore(settings.store)
        for weight in weights:
            await store.open_lab(f"test-c{weight}-lab")
            for _ in range(each * weight * 3 // 2 + each):
                await _add(queue, store, f"c{weight}-lab")
        stop, looked_at = asyncio.Event(), each * sum(weights)
        dispatcher = Dispatcher(settings, its_own, store, Sleeping(settings, "bench"), "bench")
        running = asyncio.create_task(dispatcher.run(stop, lambda _: None))
        await ended(queue, settings, looked_at)
        prefix = settings.queue.prefix
        ids = await queue._command("ZRANGE", f"{prefix}dead", 0, looked_at - 1)
        lanes = await asyncio.gather(*(queue._command("HGET", f"{prefix}job:{int(i)}", "lab") for i in ids))
        stop.set()
        await running
        await queue.close()
        await its_own.close()
        await store.close()
    got = [lanes.count(f"test-c{w}-lab".encode()) for w in weights]
    due = [each * w for w in weights]
    off = [abs(g / d - 1) * 100 for g, d in zip(got, due, strict=True)]
    heavy = [o for o, d in zip(off, due, strict=True) if d >= 5 * each]
    return Report(
        [
            Figure(f"share obtained is off the share due, {LANES} lanes", "%", off, aim="median <= 10"),
            Figure("the same, lanes of weight 5 and more", "%", heavy, aim="median <= 5"),
        ],
        [
            Plot(
                "fairness-weights",
                f"Jobs of the first {looked_at:,} to end, by the weight of their course",
                "weight",
                "jobs",
                [Line("obtained", list(weights), got), Line("due", list(weights), due)],
            )
        ],
    )


class Sleeping(Idle):
    """Every job sleeps as long."""

    async def run_job(self, machine: Machine) -> Exit:
        await asyncio.sleep(SHORT_S)
        return await super().run_job(machine)


async def _add(queue: Queue, store: LocalStore, courselab: str) -> None:
    pin = await store.pin(f"test-{courselab}", [])
    await queue.add(spec(lab=f"test-{courselab}", courselab=courselab, pin=pin.id), fingerprint=uuid4().hex)
