"""How many machines dispatchers may make together for the jobs that wait."""

from __future__ import annotations

import asyncio

import pytest

from tango_async.model import class_name
from tango_async.queue import redis
from tango_async.queue.redis import Queue

IMAGE = "autograding_image"


async def test_so_many_jobs_are_reason_for_one_and_a_rest_is_too(queue: Queue) -> None:
    async def granted(waiting: int, each: int, fresh: int = 0, most: int = 99) -> int:
        return await queue.scale(IMAGE, "one", waiting, each, fresh, most)

    assert [await granted(waiting, 4) for waiting in (0, 1, 4, 5, 49)] == [0, 1, 1, 2, 13]
    assert [await granted(waiting, 1) for waiting in (0, 1, 50)] == [0, 1, 50]
    assert await granted(49, 4, most=3) == 3


async def test_what_is_being_made_is_not_made_twice(queue: Queue) -> None:
    assert await queue.scale(IMAGE, "one", 49, 10, 1, 99) == 4
    assert await queue.scale(IMAGE, "one", 45, 10, 5, 99) == 0


async def test_for_one_job_each_those_that_are_being_made_have_theirs(queue: Queue) -> None:
    assert await queue.scale(IMAGE, "one", 3, 1, 5, 99) == 3


async def test_all_dispatchers_together_make_no_more_than_one_would(queue: Queue) -> None:
    granted = await asyncio.gather(*(queue.scale(IMAGE, f"d{number}", 50, 10, 0, 2) for number in range(8)))
    assert sorted(granted, reverse=True) == [2, 2, 1, 0, 0, 0, 0, 0]
    assert await queue.scale("other", "d9", 50, 10, 0, 2) == 2


async def test_whoever_asks_no_more_holds_up_nobody(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "FRESH_MS", 600_000)
    assert await queue.scale(IMAGE, "dead", 9, 10, 0, 9) == 1
    assert await queue.scale(IMAGE, "alive", 9, 10, 0, 9) == 0
    monkeypatch.setattr(redis, "FRESH_MS", 50)
    assert await queue.scale(IMAGE, "dead", 9, 10, 0, 9) == 1
    async with asyncio.timeout(60):
        while not await queue.scale(IMAGE, "alive", 9, 10, 0, 9):
            await asyncio.sleep(0.01)


async def test_none_waits_for_what_serves_no_job_of_his(queue: Queue) -> None:
    async def granted(instance: str, labels: str, waiting: int, fresh: int = 0) -> int:
        return await queue.scale(class_name(IMAGE, labels=labels.split()), instance, waiting, 4, fresh, 9)

    assert await granted("one", "gpu", 4) == 1
    assert await granted("other", "fpga", 1) == 1
    assert await granted("both", "fpga gpu", 1) == 1
    assert await granted("none", "", 4) == 0  # any of them serves those
    assert await granted("another", "gpu", 4) == 0


async def test_nothing_is_kept_of_whoever_makes_none(queue: Queue) -> None:
    assert await queue.scale(IMAGE, "one", 5, 4, 1, 9) == 1
    assert await queue.scale(IMAGE, "other", 5, 4, 0, 9) == 0
    assert await queue._command("HKEYS", f"{queue._prefix}fresh:{IMAGE}") == [b"one"]
    assert await queue.scale(IMAGE, "one", 0, 4, 0, 9) == 0
    assert not await queue._command("EXISTS", f"{queue._prefix}fresh:{IMAGE}")
