"""Trivial jobs a minute, and the processor time of each: the whole service beside the engine alone at its best."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

from client import Connection, each_in_turn, timed
from figures import Figure, Line, Plot, Report
from host import cpu_s, job, service
from latency import Numbers, docker_service
from raw import Job, WarmContainers, at_once, bare_sandbox

from support.service import Service

CONCURRENCY = (1, 2, 4, 8, 16)
SLOTS = 4
LOOK_EVERY_S = 0.01


async def throughput_sandbox(directory: Path, quick: bool) -> Report:
    options = {"TANGO_VMMS": "localSandbox", "TANGO_SLOTS": str(SLOTS)}
    async with service(directory, "tango-http", "tango-dispatcher", **options) as running:
        return await _compare("sandbox", running, bare_sandbox(directory), 100 if quick else 300, 2 if quick else 5)


async def throughput_docker(directory: Path, quick: bool) -> Report:
    async with docker_service(directory) as (running, docker):
        return await _compare("Docker", running, WarmContainers(docker), 30 if quick else 60, 2 if quick else 5)


async def _compare(what: str, running: Service, floor: Job, jobs: int, rounds: int) -> Report:
    """A service with four slots; the floor with as many at a time as serve it best."""
    tried = {most: jobs / 3 / await timed(at_once(floor, jobs // 3, most)) * 60 for most in CONCURRENCY}
    best = max(tried, key=lambda most: tried[most])
    numbers = Numbers()
    mine, theirs = Took(), Took()
    await _through(running, numbers, 10)
    for _ in range(rounds):
        async with mine.measure(jobs):
            await _through(running, numbers, jobs)
        async with theirs.measure(jobs, with_own=True):
            await at_once(floor, jobs, best)
    beside = f"engine alone, {best} at a time"
    return Report(
        [
            Figure(f"{what}, {jobs} trivial jobs", "jobs/min", mine.rates, theirs.rates, beside, ">= 0.8 x floor"),
            Figure(f"{what}, processor time a job", "ms", mine.cpu_ms, theirs.cpu_ms, f"{beside}, its client included"),
        ],
        [
            Plot(
                f"throughput-{what.lower()}",
                f"Trivial jobs a minute, {what}",
                "at a time",
                "jobs/min",
                [
                    Line("engine alone", list(tried), list(tried.values())),
                    Line(f"service, {SLOTS} slots", [SLOTS], [statistics.median(mine.rates)]),
                ],
            )
        ],
    )


class Took:
    """Jobs a minute and processor milliseconds a job, of each round."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.cpu_ms: list[float] = []

    def measure(self, jobs: int, *, with_own: bool = False) -> _Round:
        return _Round(self, jobs, with_own)


class _Round:
    def __init__(self, took: Took, jobs: int, with_own: bool) -> None:
        self._took, self._jobs, self._with_own = took, jobs, with_own

    async def __aenter__(self) -> None:
        self._begun, self._cpu, self._own = time.perf_counter(), cpu_s(), time.process_time()

    async def __aexit__(self, *_: object) -> None:
        own = time.process_time() - self._own if self._with_own else 0.0
        cpu = cpu_s() - self._cpu + own
        self._took.rates.append(self._jobs / (time.perf_counter() - self._begun) * 60)
        self._took.cpu_ms.append(cpu / self._jobs * 1000)


async def _through(running: Service, numbers: Numbers, jobs: int) -> None:
    """All are added, by four connections at most as fast as they are answered, and seen ready.

    They are asked for one after the other, seldom: a poll takes a part of the processor that the jobs need.
    """
    taken = numbers.take(jobs)
    await each_in_turn(running.url, 4, taken, job, "/addJob/test/lab/")
    async with Connection(running.url) as connection:
        for number in taken:
            while not await connection.is_ready(f"{number}.txt"):
                await asyncio.sleep(LOOK_EVERY_S)
