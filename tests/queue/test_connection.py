"""The edge to redis-py: what it must not swallow."""

from __future__ import annotations

import asyncio
import random

from tango_async.config import Settings
from tango_async.errors import QueueBroken
from tango_async.queue.redis import Queue


async def test_a_loop_that_asks_redis_ends_when_it_is_cancelled_at_whatever_moment(queue: Queue) -> None:
    async def ask_for_ever() -> None:
        while True:
            await queue.now_ms()

    chance = random.Random(1)
    for _ in range(800):
        task = asyncio.create_task(ask_for_ever())
        await asyncio.sleep(chance.uniform(0, 0.002))
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=1.0)
        assert done


async def test_commands_of_one_moment_have_their_own_answers_and_errors(settings: Settings) -> None:
    queue = Queue(settings)
    key = f"{settings.queue.prefix}text"
    await queue._command("SET", key, "x")
    answers = await asyncio.gather(
        queue._command("GET", key), queue._command("INCR", key), queue._command("GET", key), return_exceptions=True
    )
    assert answers[0] == answers[2] == b"x"
    assert isinstance(answers[1], QueueBroken)
    await queue.close()
