"""What a backlog costs: each call of the queue, empty jobs a second, and memory, with up to a million jobs waiting.

The jobs are loaded by the real script with the arguments that `Queue.add` makes, sent in pipelines. Costs
are the server's own (`INFO commandstats`), so that no noise of trips and clients is in them; the floor
is a script that stores as many bytes and pushes and pops an id.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import hiredis
from figures import Figure, Line, Plot, Report, slope
from guarantees import settings_for
from host import redis
from machines import IMAGE

from support.jobs import claim_one, spec
from tango_async.config import Settings
from tango_async.model import Claim, Verdict
from tango_async.queue.connection import _script
from tango_async.queue.redis import Queue

LIST = 500
LISTING = f"/jobs/, capped at {LIST}"
COURSES = 20
SUBMITTERS = 50
BATCHES, BATCH = 10, 10
"""A cost is the median of so many batches of so many calls."""
PIPELINE = 500
EMPTY_JOBS = 1000
BARE = "HSET + RPUSH + LPOP"
BARE_SCRIPT = (
    "redis.call('HSET', ARGV[1], 'spec', ARGV[2]) redis.call('RPUSH', KEYS[1], '1') redis.call('LPOP', KEYS[1])"
)
NAME, PIN, SAME = "0" * 28 + ".txt", "1" * 32, "2" * 32
"""Stand for what differs between jobs; of the same length as what is put there."""
NO_REWRITE = ("--auto-aof-rewrite-percentage", "0")
"""A rewrite of the file forks in the middle of a measurement."""


async def scale(directory: Path, quick: bool) -> Report:
    sizes = [10, 100, 1000, 10_000] if quick else [10, 100, 1000, 10_000, 100_000, 1_000_000]
    costs: dict[str, list[float]] = {}
    rates: dict[int, list[float]] = {}
    async with redis(directory / "redis", *NO_REWRITE) as server:
        settings = settings_for(directory, server.url)
        queue = Queue(settings)
        loaded, rate, job_bytes = 0, 0.0, 0.0
        rates[0] = [await _empty_jobs(queue) for _ in range(3)]
        templates = await _templates(settings)
        for size in sizes:
            begun, used = time.perf_counter(), await _memory(queue)
            await _load(server.socket, settings, templates, range(loaded, size))
            rate = (size - loaded) / (time.perf_counter() - begun)
            job_bytes = (await _memory(queue) - used) / (size - loaded)
            loaded = size
            for call, cost in (await _costs(queue)).items():
                costs.setdefault(call, []).append(cost)
            if size >= 10_000:
                rates[size] = [await _empty_jobs(queue) for _ in range(3)]
        await queue.close()
    bare = costs.pop(BARE)
    figures = [Figure(f"empty jobs, {n:,} waiting", "jobs/s", r, rates[0], "0 waiting") for n, r in rates.items()]
    figures.append(Figure(f"Redis's memory a waiting job, {sizes[-1]:,}", "bytes", [job_bytes]))
    figures.append(Figure("jobs added in pipelines", "jobs/s", [rate]))
    for call, found in costs.items():
        # A list is as long as the backlog until that is as long as its cap.
        first = sum(size <= LIST for size in sizes) if call == LISTING else 0
        grows, error = slope(sizes[first:], found[first:])
        what = f"{call}, {sizes[first]:,} to {sizes[-1]:,} waiting"
        note = f"grows with the backlog's power {grows:.3f} ± {error:.3f}: {_kind(grows)}"
        figures.append(Figure(what, "µs", found[first:], bare[first:], BARE, note=note))
    lines = [Line(call, sizes, found) for call, found in (costs | {BARE: bare}).items()]
    plot = Plot("scale", "Cost of a call to the Redis server", "jobs waiting", "µs", lines, log=True)
    return Report(figures, [plot])


def _kind(grows: float) -> str:
    if grows < 0.15:
        return "constant or logarithmic"
    return "linear" if grows > 0.85 else "between"


# -- loading -------------------------------------------------------------------------------------------


async def _templates(settings: Settings) -> list[tuple[Any, ...]]:
    """The command that adds a job, for each course and submitter, as the queue itself makes it."""
    recorder = _Recorder(settings)
    made = []
    for n in range(COURSES * SUBMITTERS):
        courselab, who = f"course{n % COURSES}-lab1", f"student{n // COURSES}@example.edu"
        one = spec(lab=f"test-{courselab}", courselab=courselab, submitter=who, output_name=NAME, pin=PIN)
        await recorder.add(one, fingerprint=SAME)
        made.append(recorder.command)
    await recorder.close()
    return made


class _Recorder(Queue):
    """Keeps what would be sent."""

    command: tuple[Any, ...] = ()

    async def _require_room(self) -> None: ...

    async def _run(self, script: str, *args: Any) -> Any:
        words = ("EVALSHA", _script(script)[1], 1, self._prefix, *args)
        self.command = tuple(w if isinstance(w, bytes) else str(w).encode() for w in words)
        return 1, 1


async def _load(socket: Path, settings: Settings, templates: list[tuple[Any, ...]], numbers: range) -> None:
    reader, writer = await asyncio.open_unix_connection(str(socket))
    replies = hiredis.Reader()
    writer.write(hiredis.pack_command((b"SCRIPT", b"LOAD", _script("add")[0].encode())))
    await _read(reader, replies, 1)
    for start in range(numbers.start, numbers.stop, PIPELINE):
        part = range(start, min(start + PIPELINE, numbers.stop))
        writer.write(b"".join(hiredis.pack_command(_one(templates[n % len(templates)], n)) for n in part))
        await _read(reader, replies, len(part))
    writer.close()


def _one(template: tuple[bytes, ...], number: int) -> tuple[bytes, ...]:
    given = ((NAME, f"{number:028}.txt"), (PIN, f"{number:032}"), (SAME, f"{number:032}"))
    words = list(template)
    for old, new in given:
        words = [word.replace(old.encode(), new.encode()) for word in words]
    return tuple(words)


async def _read(reader: asyncio.StreamReader, replies: Any, count: int) -> None:
    while count:
        found = replies.gets()
        if found is False:
            replies.feed(await reader.read(1 << 16))
        elif isinstance(found, Exception):
            raise found
        else:
            count -= 1


# -- measuring -----------------------------------------------------------------------------------------


async def _memory(queue: Queue) -> int:
    return int((await queue._server.info("memory"))["used_memory"])


async def _costs(queue: Queue) -> dict[str, float]:
    """Microseconds of the server for each call; as many jobs wait afterwards as before."""
    claims: list[Claim] = []

    async def add(_: int) -> None:
        await queue.add(spec(lab="test-course0-lab1", courselab="course0-lab1"), fingerprint=uuid4().hex)

    async def claim(_: int) -> None:
        found = await claim_one(queue, [IMAGE])
        assert found is not None
        claims.append(found)

    async def end(n: int) -> None:
        await queue.end(claims[n], Verdict.SUCCESS, "Success: Autodriver returned normally", "ref")

    async def position(n: int) -> None:
        await queue.forecasts([waiting[n % len(waiting)]], 32, [IMAGE])

    async def listing(_: int) -> None:
        await queue.live(LIST)

    async def bare(n: int) -> None:
        await queue._command("EVAL", BARE_SCRIPT, 1, f"{queue._prefix}bare", f"{queue._prefix}bare:{n}", bytes(600))

    costs = {BARE: await _cost(queue, bare, "eval"), "add": await _cost(queue, add)}
    middle = await queue._command("ZCARD", f"{queue._prefix}queued") // 2
    waiting = [
        int(i) for i in await queue._command("ZRANGE", f"{queue._prefix}queued", middle, middle + BATCHES * BATCH)
    ]
    costs["a job's position"] = await _cost(queue, position)
    costs[LISTING] = await _cost(queue, listing, "zrange", "hgetall")
    costs["claim"] = await _cost(queue, claim)
    costs["end"] = await _cost(queue, end)
    return costs


async def _cost(queue: Queue, call: Callable[[int], Awaitable[None]], *commands: str) -> float:
    """Of one call: what the server spent on these commands. A script's time has its commands' in it."""
    means = []
    for start in range(0, BATCHES * BATCH, BATCH):
        await queue._command("CONFIG", "RESETSTAT")
        for n in range(start, start + BATCH):
            await call(n)
        found = await queue._server.info("commandstats")
        spent = [re.findall(r"usec\D+(\d+)", found[f"cmdstat_{name}"])[0] for name in commands or ("evalsha",)]
        means.append(sum(map(int, spent)) / BATCH)
    return statistics.median(means)


async def _empty_jobs(queue: Queue) -> float:
    """Jobs a second through add, claim, start, end, by 32 coroutines of one process."""
    numbers = iter(range(EMPTY_JOBS))

    async def work() -> None:
        for _ in numbers:
            await queue.add(spec(lab="test-course0-lab1", courselab="course0-lab1"), fingerprint=uuid4().hex)
            claim = await claim_one(queue, [IMAGE])
            assert claim is not None
            await queue.start(claim, uuid4().hex)
            await queue.end(claim, Verdict.SUCCESS, "Success: Autodriver returned normally", "ref")

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(32)))
    return EMPTY_JOBS / (time.perf_counter() - begun)
