"""What each script costs the Redis server in an otherwise quiet queue, beside the commands of a plain stream.

Costs are the server's own (`INFO commandstats`): no trip and no client is in them. A queue that hands its jobs
out by a stream and trusts a time-out needs XADD, XREADGROUP and XACK for each.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

from figures import Figure, Report
from guarantees import settings_for
from host import redis
from machines import IMAGE

from support.jobs import claim_one, spec
from tango_async.config import Settings
from tango_async.model import Claim, Verdict
from tango_async.queue.redis import Answer, Queue

WAITING = 100
CALLS = 100
"""A cost is the mean of so many calls, in each round."""
PATH = ("add", "claim", "start", "extend", "end")
STREAM = {"xadd": "XADD", "xreadgroup": "XREADGROUP", "xack": "XACK"}
FLOOR = " + ".join(STREAM.values())
NOTES = {
    "add": "with its lane's share, its trace and the bell",
    "claim": "one job a call; a dispatcher with more room takes several by one",
    "extend": "one job a call; a dispatcher extends all of its jobs by one",
    "end": "with verdict, trace, history, and the outbox's entry of a callback",
    "reap": "with nothing abandoned; once a period, not once a job",
}


async def costs(directory: Path, quick: bool) -> Report:
    found: dict[str, list[float]] = {}
    async with redis(directory / "redis") as server:
        for turn in range(2 if quick else 7):
            settings = settings_for(directory / str(turn), server.url)
            scripts = Scripts(settings)
            for name, cost in (await scripts.costs() | {FLOOR: await scripts.stream()}).items():
                found.setdefault(name, []).append(cost)
            await scripts.close()
    floor = found.pop(FLOOR)
    figures = [
        Figure(f"Redis's time, {name}, a call", "µs", cost, note=NOTES.get(name, "")) for name, cost in found.items()
    ]
    job = [sum(costs) for costs in zip(*(found[name] for name in PATH), strict=True)]
    figures.append(Figure(f"Redis's time, a job: {', '.join(PATH)}", "µs", job, floor, FLOOR))
    return Report(figures)


class Scripts:
    """The calls of one round, on a prefix of their own with jobs that wait. Each job has a callback."""

    def __init__(self, settings: Settings) -> None:
        self._queue = Queue(settings)
        self._claims: list[Claim] = []

    async def close(self) -> None:
        await self._queue.close()

    async def costs(self) -> dict[str, float]:
        """Microseconds of a call, by its name."""
        for n in range(WAITING):
            await self._add(n)
        found = {}
        for call in (self._add, self._claim, self._start, self._extend, self._adopt, self._retry, self._reap):
            found[call.__name__.strip("_")] = await self._cost(call)
        self._claims.clear()
        for n in range(CALLS):
            await self._claim(n)
            await self._start(n)
        return found | {"end": await self._cost(self._end)}

    async def _add(self, _: int) -> None:
        await self._queue.add(spec(callback_url="http://127.0.0.1/"), fingerprint=uuid4().hex)

    async def _claim(self, _: int) -> None:
        found = await claim_one(self._queue, [IMAGE])
        assert found is not None
        self._claims.append(found)

    async def _start(self, n: int) -> None:
        _held(await self._queue.start(self._claims[n], self._machine(n)))

    async def _extend(self, n: int) -> None:
        claim = self._claims[n]
        _held(*await self._queue.extend([(claim.id, claim.seq)]))

    async def _adopt(self, n: int) -> None:
        found = await self._queue.adopt(self._machine(n), "another")
        assert found is not None
        self._claims[n] = found[0]

    async def _retry(self, n: int) -> None:
        _held(await self._queue.retry(self._claims[n], "its machine was lost"))

    async def _reap(self, _: int) -> None:
        await self._queue.reap()

    async def _end(self, n: int) -> None:
        verdict, text = Verdict.SUCCESS, "Success: Autodriver returned normally"
        _held(await self._queue.end(self._claims[n], verdict, text, "ref"))

    def _machine(self, n: int) -> str:
        return f"{self._claims[n].id:032}"

    async def stream(self) -> float:
        """Microseconds of a job that a consumer group hands out."""
        key, command = f"{self._queue._prefix}stream", self._queue._command
        await command("XGROUP", "CREATE", key, "group", "$", "MKSTREAM")

        async def job(_: int) -> None:
            await command("XADD", key, "*", "data", bytes(300))
            found = await command("XREADGROUP", "GROUP", "group", "me", "COUNT", 1, "STREAMS", key, ">")
            [[(entry, _)]] = found.values()
            await command("XACK", key, "group", entry)

        return await self._cost(job, *STREAM)

    async def _cost(self, call: Callable[[int], Awaitable[None]], *commands: str) -> float:
        """A script's time has its commands' in it."""
        await self._queue._command("CONFIG", "RESETSTAT")
        for n in range(CALLS):
            await call(n)
        stats = await self._queue._server.info("commandstats")
        spent = [re.findall(r"usec\D+(\d+)", stats[f"cmdstat_{name}"])[0] for name in commands or ("evalsha",)]
        return sum(map(int, spent)) / CALLS


def _held(*answers: Answer) -> None:
    """A call that was turned away costs less."""
    if any(answer is not Answer.OK for answer in answers):
        raise RuntimeError(f"the queue answered {answers}")
