"""How long a trivial job takes: addJob sent to output seen ready by poll, alone and in bursts, cold and prepared."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
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


async def _prepared(running: Service, size: int) -> None:
    """Orders prepared machines and waits until they are there."""
    async with Connection(running.url) as connection:
        await connection.ask("POST", f"/prealloc/test/{IMAGE}/{size}/", b'{"network": false}')
        async with asyncio.timeout(60):
            while (await _free(connection)) < size:
                await asyncio.sleep(0.02)


async def _free(connection: Connection) -> int:
    pools = json.loads((await connection.ask("GET", f"/pool/test/{IMAGE}/"))[1]).get("pools", {})
    return len(pools.get(IMAGE, {}).get("free", ()))


Wait = Callable[[], Awaitable[object]]


async def _settled() -> None:
    """The pool tells what it has once a beat only; a machine takes less than this to be replaced."""
    await asyncio.sleep(0.7)


async def sequential(running: Service, numbers: Numbers, floor: Job, rounds: int, settle: Wait | None) -> Any:
    """Milliseconds of service and floor one after the other, so that a slow minute hits both."""
    mine, theirs = [], []
    for turn in range(rounds + WARM_UP):
        if settle is not None:
            await settle()
        values = await alone(running, numbers.take(1)[0]), await floor()
        if turn >= WARM_UP:
            mine.append(values[0] * 1000)
            theirs.append(values[1] * 1000)
    return mine, theirs


async def bursts(
    running: Service, numbers: Numbers, floor: Job, size: int, rounds: int, settle: Wait | None
) -> tuple[list[float], list[float], float]:
    """Milliseconds of each job of all rounds; and the poll's resolution."""
    mine: list[float] = []
    theirs: list[float] = []
    gaps: list[float] = []
    for _ in range(rounds):
        if settle is not None:
            await settle()
        mine += [s * 1000 for s in await burst(running, numbers.take(size), gaps)]
        theirs += [s * 1000 for s in await at_once(floor, size, SLOTS)]
    return mine, theirs, statistics.median(gaps) * 1000


async def _all(
    what: str, running: Service, numbers: Numbers, floor: Job, floor_is: str, rounds: int, settle: Wait | None, aim: str
) -> list[Figure]:
    mine, theirs = await sequential(running, numbers, floor, rounds, settle)
    alone_note = "looked for every 1–2 ms"
    figures = [Figure(f"{what}, alone", "ms", mine, theirs, floor_is, aim, tail=True, note=alone_note)]
    for size in (10, 50):
        mine, theirs, gap = await bursts(running, numbers, floor, size, max(1, rounds * 2 // size), settle)
        note = f"looked for every {gap:.1f} ms"
        beside = f"{floor_is}, {SLOTS} at a time"
        figures.append(Figure(f"{what}, burst of {size}", "ms", mine, theirs, beside, tail=True, note=note))
    return figures


async def latency_sandbox(directory: Path, quick: bool) -> Report:
    bare, numbers = bare_sandbox(directory), Numbers()
    rounds = 20 if quick else 60
    options = {"TANGO_VMMS": "localSandbox"} | ROOM
    async with service(directory, "tango-http", "tango-dispatcher", **options) as running:
        figures = await _all("sandbox, cold", running, numbers, bare, "bare bwrap", rounds, None, "<= 40")
        await _prepared(running, PREPARED)
        figures += await _all("sandbox, prepared", running, numbers, bare, "bare bwrap", rounds, _settled, "")
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
    rounds, numbers = 8 if quick else 20, Numbers()
    async with docker_service(directory) as (running, docker):
        cold, warm = cold_container(docker), WarmContainers(docker)
        beside = "create, start, wait"
        figures = await _all("Docker, cold", running, numbers, cold, beside, rounds, None, "<= 1.3 x floor")
        await _prepared(running, PREPARED)
        beside = "fed on stdin, prepared"

        async def settled() -> None:
            await warm.prepare(PREPARED)
            await _settled()

        figures += await _all("Docker, prepared", running, numbers, warm, beside, rounds, settled, "<= 1.6 x floor")
    return Report(figures)
