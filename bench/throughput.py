"""Trivial jobs a minute, and the processor time of each: the whole service beside the engine alone at its best."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client import Connection, each_in_turn, timed
from figures import Figure, Line, Plot, Report
from host import cpu_s, job, service
from latency import Numbers, docker_service, unconnected
from raw import Job, WarmContainers, at_once, bare_sandbox

from support.service import Service

CONCURRENCY = (1, 2, 4, 8, 16)
SLOTS = 4
AIM = ">= 0.9 x floor"


BEST = "the engine's best, as the service asks for it; the service's own processes hold it back, told at processor time"


@dataclass(frozen=True)
class Floor:
    """The engine alone. One has the aim; another is told beside it."""

    job: Job
    aim: str = ""
    note: str = ""


async def throughput_sandbox(directory: Path, quick: bool) -> Report:
    options = {"TANGO_VMMS": "localSandbox", "TANGO_SLOTS": str(SLOTS)}
    async with service(directory, "tango-http", "tango-dispatcher", **options) as running:
        feed = Feed(running, job, look_every_s=0.01)
        floors = {"engine alone": Floor(bare_sandbox(directory), AIM)}
        return await _compare("sandbox", feed, floors, 100 if quick else 300, 2 if quick else 5)


async def throughput_docker(directory: Path, quick: bool) -> Report:
    """Jobs without a network and with one, which the engine makes of processes of its own."""
    jobs, rounds = (30, 2) if quick else (60, 5)
    async with docker_service(directory) as (running, docker):
        without = Feed(running, unconnected, look_every_s=0.1)
        floors = {
            "engine alone, network `none`": Floor(WarmContainers(docker), AIM, "as a client asks for it"),
            "engine alone, network disabled": Floor(WarmContainers(docker, NetworkDisabled=True), note=BEST),
        }
        report = await _compare("Docker", without, floors, jobs, rounds)
        connected = Feed(running, job, look_every_s=0.1, numbers=without.numbers)
        floors = {"engine alone, on its bridge": Floor(WarmContainers(docker, network="bridge"), AIM)}
        bridged = await _compare("Docker with a network", connected, floors, jobs, rounds)
        return Report(report.figures + bridged.figures, report.plots + bridged.plots)


class Feed:
    """Trivial jobs for a service. They are seldom looked for: a poll takes a part of the processor that they need."""

    def __init__(
        self,
        running: Service,
        request: Callable[[int], bytes],
        *,
        look_every_s: float,
        numbers: Numbers | None = None,
    ) -> None:
        self._running, self._request, self._look_every_s = running, request, look_every_s
        self.numbers = numbers or Numbers()

    def cpu_s(self) -> dict[str, float]:
        """Processor time so far of the service's own processes, without those of its machines."""
        return {process.name: process.cpu_s() for process in self._running.processes}

    async def through(self, jobs: int) -> None:
        """All are added, by four connections at most as fast as they are answered, and seen ready one by one."""
        taken = self.numbers.take(jobs)
        await each_in_turn(self._running.url, 4, taken, self._request, "/addJob/test/lab/")
        async with Connection(self._running.url) as connection:
            for number in taken:
                while not await connection.is_ready(f"{number}.txt"):
                    await asyncio.sleep(self._look_every_s)


async def _compare(what: str, feed: Feed, floors: dict[str, Floor], jobs: int, rounds: int) -> Report:
    """A service with four slots; each floor with as many at a time as serve it best, in turn with the service."""
    tried = {
        name: {most: await _rate(floor.job, jobs // 3, most) for most in CONCURRENCY} for name, floor in floors.items()
    }
    best = {name: max(rates, key=lambda most: rates[most]) for name, rates in tried.items()}
    mine, theirs = Took(), {name: Took() for name in floors}
    await feed.through(10)
    own: dict[str, float] = {}
    for _ in range(rounds):
        before = feed.cpu_s()
        async with mine.measure(jobs):
            await feed.through(jobs)
        own = {name: own.get(name, 0.0) + now - before[name] for name, now in feed.cpu_s().items()}
        for name, floor in floors.items():
            async with theirs[name].measure(jobs, with_own=True):
                await at_once(floor.job, jobs, best[name])
    total = f"{what}, {jobs * rounds:,} trivial jobs, {jobs} a round"
    shares = ", ".join(f"{name} {taken / jobs / rounds * 1000:.1f}" for name, taken in own.items())
    figures = []
    for name, took in theirs.items():
        beside, floor = f"{name}, {best[name]} at a time", floors[name]
        client = statistics.median(took.own_ms)
        note = f"of the service's: {shares} ms; of the floor's: its client {client:.1f} ms"
        figures += [
            Figure(total, "jobs/min", mine.rates, took.rates, beside, floor.aim, note=_of(name, floor.note)),
            Figure(
                f"{what}, processor time a job",
                "ms",
                mine.cpu_ms,
                took.cpu_ms,
                f"{beside}, its client included",
                note=_of(name, note),
            ),
        ]
    lines = [Line(name, list(rates), list(rates.values())) for name, rates in tried.items()]
    lines.append(Line(f"service, {SLOTS} slots", [SLOTS], [statistics.median(mine.rates)]))
    name = f"throughput-{what.lower().replace(' ', '-')}"
    return Report(figures, [Plot(name, f"Trivial jobs a minute, {what}", "at a time", "jobs/min", lines)])


def _of(floor: str, note: str) -> str:
    """A note names its row's floor: several rows have the same name."""
    return f"beside {floor}: {note}" if note else ""


async def _rate(job: Job, jobs: int, most: int) -> float:
    """Jobs a minute."""
    return jobs / await timed(at_once(job, jobs, most)) * 60


class Took:
    """Jobs a minute and processor milliseconds a job, of each round; `own_ms` are the client's part of them."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.cpu_ms: list[float] = []
        self.own_ms: list[float] = []

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
        self._took.own_ms.append(own / self._jobs * 1000)
