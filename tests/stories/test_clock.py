"""The clock of Redis's host is set while the service runs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import absent
from stories.conftest import Receiver, Rig, dispatched, durable_redis
from support.clock import Clock
from support.engine import Lacking
from support.redis_server import RedisServer
from support.service import PATIENCE_S, Process, addjob

DAY_S = 86_400


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    try:
        return Clock(tmp_path)
    except Lacking as e:
        absent(str(e))
        raise


@pytest.fixture
def own_redis(clock: Clock, environment: dict[str, str]) -> Iterator[RedisServer]:
    with durable_redis(environment, **clock.environment) as server:
        yield server


@pytest.mark.parametrize("by_s", [3600, -3600])
async def test_a_clock_that_is_set_costs_no_upload_no_result_and_no_prepared_machine(
    rig: Rig, clock: Clock, by_s: int
) -> None:
    await rig.service.run("tango-http")
    await rig.dispatcher(TANGO_SLOTS="2")
    await rig.add("ended", 1)
    result = await rig.ended("ended", 1)
    await rig.running(await rig.add("runs", 12))
    busy = set(rig.machines())
    await rig.service.prealloc(1)
    await rig.service.prepared(1)
    (waits,) = set(rig.machines()) - busy
    clock.set(by_s)
    await rig.service.upload("ended", {"later": b"x"})
    assert (await rig.service.json("GET", "/open/test/ended/"))["files"].keys() == {"Makefile", "later"}
    assert await rig.ended("ended", 1) == result
    await rig.ended("runs", 12)
    await rig.service.prepared(1)
    await rig.until(lambda: rig.machines() == [waits])
    await rig.add("next", 1)
    await rig.ended("next", 1)
    assert await rig.ended("ended", 1) == result
    assert [(job["retries"], dispatched(job)) for job in (await rig.jobs(1)).values()] == [(0, 1)] * 3
    assert rig.begun() == ["ended", "next", "runs"]
    await rig.until(lambda: len(rig.machines()) == 1 and waits not in rig.machines())
    await rig.service.prepared(1)


async def test_history_counts_its_days_by_this_clock(rig: Rig, clock: Clock) -> None:
    await rig.service.run("tango-http")
    await rig.dispatcher(TANGO_QUEUE_HISTORY_DAYS="3")
    await rig.add("one", 1)
    result = await rig.ended("one", 1)
    clock.set(2 * DAY_S)
    await rig.add("two", 1)
    await rig.ended("two", 1)
    assert await rig.ended("one", 1) == result
    clock.set(4 * DAY_S)
    async with asyncio.timeout(PATIENCE_S):
        while len(await rig.jobs(1)) == 2:
            await asyncio.sleep(0.05)
    assert (await rig.service.json("GET", "/poll/test/one/one"))["statusMsg"] == "Output file not found"
    await rig.ended("two", 1)


async def test_a_clock_that_is_set_forward_may_tell_of_a_job_before_its_addjob_was_answered(
    rig: Rig, clock: Clock, receiver: Receiver
) -> None:
    server = await rig.service.run("tango-http")
    await rig.dispatcher()
    await rig.put("one", 1)
    await leave_before_the_answer(rig, server, addjob("one", ["Makefile"], "one", callback_url=receiver.url))
    feedbacks = [await rig.ended("one", 1)]
    await rig.add("answered", 1, callback_url=receiver.url)
    feedbacks.insert(0, await rig.ended("answered", 1))
    await receiver.has(1)
    assert receiver.came == feedbacks[:1]
    clock.set(131)
    await receiver.has(2)
    assert receiver.came == feedbacks


async def leave_before_the_answer(rig: Rig, server: Process, body: bytes) -> None:
    """The server finds the request and that its client is gone, and takes the job all the same, sooner or later."""
    host, _, port = rig.service.url.removeprefix("http://").partition(":")
    head = f"POST /addJob/test/one/ HTTP/1.1\r\nHost: tango\r\nContent-Length: {len(body)}\r\n\r\n"
    async with asyncio.timeout(PATIENCE_S):
        while not (await rig.jobs(0) or await rig.jobs(1)):
            server.popen.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, server.popen.pid, os.WSTOPPED)
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode() + body)
            await writer.drain()
            writer.transport.abort()
            await asyncio.sleep(0)
            server.popen.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.1)
