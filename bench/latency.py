"""How long a trivial job takes: addJob sent to output seen ready by poll, alone and in bursts, cold and prepared."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiodocker
from client import Connection, Outputs, each_in_turn
from figures import Figure, Report
from host import IMAGE, engine, job, service
from raw import Job, WarmContainers, at_once, bare_sandbox, cold_container

from support.service import Service

SLOTS = 4
PREPARED = 12
ROOM = {"TANGO_SLOTS": str(SLOTS), "TANGO_POOLS_MAX": str(PREPARED + SLOTS)}
WARM_UP = 3


class Numbers:
    """Every job of a service has an output of its own."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> list[int]:
        self._next += count
        return list(range(self._next - count, self._next))


def unconnected(number: int) -> bytes:
    """A job without a network, as the floors have none."""
    return job(number, disable_network=True)


async def alone(running: Service, number: int) -> float:
    """Seconds of one job; looks every millisecond."""
    outputs = Outputs(running.url, window=1)
    async with Connection(running.url) as connection:
        begun = time.perf_counter()
        await connection.ask("POST", "/addJob/test/lab/", unconnected(number))
        return (await outputs.wait([number]))[number] - begun


async def burst(running: Service, numbers: list[int], gaps: list[float]) -> list[float]:
    """Seconds of each, from when the first was sent: as in the floor, all are handed over at once."""
    outputs = Outputs(running.url, window=SLOTS + 2)
    waiting = asyncio.create_task(outputs.wait(numbers))
    sent = await each_in_turn(running.url, 10, numbers, unconnected, "/addJob/test/lab/")
    seen = await waiting
    gaps += outputs.gaps
    first = min(sent.values())
    return [seen[n] - first for n in numbers]


async def prepare(running: Service, size: int) -> None:
    """Orders prepared machines and waits until they are there. A dispatcher may not have told of its images yet."""
    async with Connection(running.url) as connection, asyncio.timeout(60):
        order = "POST", f"/prealloc/test/{IMAGE}/{size}/", b'{"network": false}'
        while json.loads((await connection.ask(*order))[1])["statusId"]:
            await asyncio.sleep(0.1)
        while (await _free(connection)) < size:
            await asyncio.sleep(0.02)


async def _free(connection: Connection) -> int:
    pools = json.loads((await connection.ask("GET", f"/pool/test/{IMAGE}/"))[1]).get("pools", {})
    return len(pools.get(IMAGE, {}).get("free", ()))


Wait = Callable[[], Awaitable[object]]
Floors = dict[str, Job]
Taken = dict[str, list[float]]
"""Milliseconds of each job, of each floor."""


async def cleared() -> None:
    """The last machine is removed after its job's output is there: it shall not be in the next one's time."""
    await asyncio.sleep(0.2)


async def settled() -> None:
    """The pool tells what it has once a beat only; a machine takes less than this to be replaced."""
    await asyncio.sleep(0.7)


async def sequential(
    running: Service, numbers: Numbers, floors: Floors, rounds: int, settle: Wait
) -> tuple[list[float], Taken]:
    """Milliseconds of service and floors one after the other, so that a slow minute hits all."""
    mine: list[float] = []
    theirs: Taken = {name: [] for name in floors}
    for turn in range(rounds + WARM_UP):
        await settle()
        values = [await alone(running, numbers.take(1)[0])]
        for floor in floors.values():
            await settle()
            values.append(await floor())
        if turn >= WARM_UP:
            for taken, value in zip((mine, *theirs.values()), values, strict=True):
                taken.append(value * 1000)
    return mine, theirs


async def bursts(
    running: Service, numbers: Numbers, floors: Floors, size: int, rounds: int, settle: Wait
) -> tuple[list[float], Taken, float]:
    """Milliseconds of each job of all rounds; and the poll's resolution."""
    mine: list[float] = []
    theirs: Taken = {name: [] for name in floors}
    gaps: list[float] = []
    for _ in range(rounds):
        await settle()
        mine += [s * 1000 for s in await burst(running, numbers.take(size), gaps)]
        for name, floor in floors.items():
            await settle()
            theirs[name] += [s * 1000 for s in await at_once(floor, size, SLOTS)]
    return mine, theirs, statistics.median(gaps) * 1000


async def all_of(
    what: str,
    running: Service,
    numbers: Numbers,
    floors: Floors,
    rounds: int,
    settle: Wait,
    aim: str = "",
    *,
    sizes: Sequence[int] = (10, 50),
    note: str = "",
) -> list[Figure]:
    """Jobs alone and in bursts of these sizes. The aim is of the median of single jobs, beside each of the floors."""
    mine, theirs = await sequential(running, numbers, floors, rounds, settle)
    told = _noted("looked for every 1–2 ms", note)
    figures = [Figure(f"{what}, alone", "ms", mine, taken, name, aim, True, told) for name, taken in theirs.items()]
    for size in sizes:
        mine, theirs, gap = await bursts(running, numbers, floors, size, max(1, rounds * 2 // size), settle)
        told = _noted(f"looked for every {gap:.1f} ms", note)
        figures += [
            Figure(f"{what}, burst of {size}", "ms", mine, taken, f"{name}, {SLOTS} at a time", tail=True, note=told)
            for name, taken in theirs.items()
        ]
    return figures


def _noted(*notes: str) -> str:
    return "; ".join(filter(None, notes))


async def latency_sandbox(directory: Path, quick: bool) -> Report:
    floors, numbers = {"bare bwrap": bare_sandbox(directory)}, Numbers()
    rounds = 20 if quick else 60
    options = {"TANGO_VMMS": "localSandbox"} | ROOM
    async with service(directory, "tango-http", "tango-dispatcher", **options) as running:
        figures = await all_of("sandbox, cold", running, numbers, floors, rounds, cleared, "median <= 40")
        await prepare(running, PREPARED)
        figures += await all_of("sandbox, prepared", running, numbers, floors, rounds, settled, "median <= 25")
    return Report(figures)


@asynccontextmanager
async def docker_service(directory: Path) -> Any:
    """The service on an engine, and a client of the engine for the floors."""
    with engine() as private:
        options = {"TANGO_VMMS": "localDocker", "DOCKER_HOST": private.host} | ROOM
        async with (
            aiodocker.Docker(private.host) as docker,
            service(directory, "tango-http", "tango-dispatcher", **options) as running,
        ):
            yield running, docker


async def latency_docker(directory: Path, quick: bool) -> Report:
    """Beside the engine with its network `none`, as a client asks for it, and disabled, as the service does."""
    rounds, numbers = 8 if quick else 20, Numbers()
    ways: dict[str, dict[str, Any]] = {"network `none`": {}, "network disabled": {"NetworkDisabled": True}}
    async with docker_service(directory) as (running, docker):
        floors: Floors = {f"create, start, wait; {way}": cold_container(docker, **more) for way, more in ways.items()}
        figures = await all_of("Docker, cold", running, numbers, floors, rounds, cleared, "<= 1.3 x floor")
        await prepare(running, PREPARED)
        warm = {f"fed on stdin, prepared; {way}": WarmContainers(docker, **more) for way, more in ways.items()}

        async def ready() -> None:
            for floor in warm.values():
                await floor.prepare(PREPARED)
            await settled()

        figures += await all_of("Docker, prepared", running, numbers, {**warm}, rounds, ready, "<= 1.6 x floor")
    return Report(figures)
