"""What the queue says of itself as a whole, against what was done to it."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import msgspec

from support.jobs import claim_one, spec
from tango_async.config import Settings
from tango_async.model import Verdict
from tango_async.queue.redis import Queue

IMAGE = ["autograding_image"]


async def test_an_empty_queue_has_nothing_to_tell(queue: Queue) -> None:
    f = await queue.figures()
    assert (f.queued, f.held, f.lapsed, f.dead, f.outbox, f.unsent) == (0, 0, 0, 0, 0, 0)
    assert (f.overdue_s, f.first_waits_s, f.counters) == (0.0, 0.0, {})
    assert f.memory_bytes > 0


async def test_each_job_is_in_one_state_and_the_oldest_waiting_one_is_told(queue: Queue) -> None:
    for _ in range(3):
        await queue.add(spec(callback_url="http://127.0.0.1:1/"), fingerprint=uuid4().hex)
        await asyncio.sleep(0.02)
    for _ in range(2):
        held = await claim_one(queue, IMAGE)
        assert held is not None
    await queue.end(held, Verdict.TIMEOUT, "…", "ref")
    f = await queue.figures()
    assert (f.queued, f.held, f.lapsed, f.dead, f.outbox) == (1, 1, 0, 1, 1)
    assert 0.0 < f.first_waits_s < 600
    assert f.counters == {"job_requests": 3, "claims": 2, "ended_timeout": 1}


async def test_a_lapsed_lease_is_seen_until_it_is_reaped(settings: Settings) -> None:
    short = msgspec.structs.replace(settings.dispatcher, lease_s=0.05, adopt_grace_s=0.05)
    queue = Queue(msgspec.structs.replace(settings, dispatcher=short))
    await queue.add(spec(), fingerprint=uuid4().hex)
    assert await claim_one(queue, IMAGE) is not None
    await asyncio.sleep(0.1)
    assert (await queue.figures()).lapsed == 1
    async with asyncio.timeout(60):
        while not await queue.reap():
            await asyncio.sleep(0.01)
    f = await queue.figures()
    assert (f.queued, f.held, f.lapsed) == (1, 0, 0)
    assert (f.counters["leases_lost"], f.counters["job_retries"]) == (1, 1)
    await queue.close()


async def test_an_overdue_callback_is_told_by_its_age(settings: Settings) -> None:
    at_once = msgspec.structs.replace(settings.callbacks, min_age_s=0.0, unanswered_s=0.0)
    queue = Queue(msgspec.structs.replace(settings, callbacks=at_once))
    job_id = (await queue.add(spec(callback_url="http://127.0.0.1:1/"), fingerprint=uuid4().hex)).id
    await queue.cancel(job_id)
    await asyncio.sleep(0.1)
    assert 0.05 < (await queue.figures()).overdue_s < 600
    await queue.defer(job_id, "refused", None)
    f = await queue.figures()
    assert (f.outbox, f.overdue_s, f.unsent) == (0, 0.0, 1)
    assert f.counters["callbacks_given_up"] == 1 == f.counters["ended_cancelled"]
    await queue.close()
