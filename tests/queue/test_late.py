"""What comes late, twice, before its time, or all at once changes nothing that it should not."""

from __future__ import annotations

import asyncio

import pytest

from support.jobs import claim_one, spec
from tango_async.config import Settings
from tango_async.errors import QueueUnavailable, StoreError
from tango_async.model import Claim, Verdict
from tango_async.queue.redis import Answer, Queue


async def held_job(queue: Queue, **changes: object) -> Claim:
    await queue.add(spec(**changes), fingerprint="f")
    claim = await claim_one(queue)
    assert claim is not None
    return claim


async def write(queue: Queue, command: str, name: str, *words: object) -> None:
    await queue._server.command(command, f"{queue._prefix}{name}", *words)


async def test_a_holder_that_did_not_end_the_job_hears_stale(queue: Queue) -> None:
    late = await held_job(queue)
    await queue.cancel(late.id)
    await write(queue, "HSET", "server", "quiet_until", 0)
    await write(queue, "ZADD", "held", 1, late.id)
    assert await queue.reap() == [(late.id, True)]
    assert await queue.end(late, Verdict.CANCELLED, "x", "late") is Answer.STALE


async def test_a_delivery_that_came_late_changes_nothing(queue: Queue) -> None:
    held = await held_job(queue, callback_url="http://127.0.0.1/cb")
    await queue.end(held, Verdict.SUCCESS, "x", "ref")
    await queue.delivered(held.id, "204, by the one who took it after the hold")
    await queue.defer(held.id, "the first, too slow: timeout", 5.0)
    assert await queue.next_due_s() is None
    await queue.delivered(held.id, "204")
    await queue.forget([held.id])
    await queue.defer(held.id, "slower still", None)
    assert await queue.job(held.id) is None


async def test_a_repeat_that_is_not_answered_yet_holds_the_callback_back(queue: Queue) -> None:
    held = await held_job(queue, callback_url="http://127.0.0.1/cb")
    await queue.answered(held.id)
    await write(queue, "HINCRBY", f"job:{held.id}", "added_ms", -140_000)
    await queue.add(spec(callback_url="http://127.0.0.1/cb"), fingerprint="f")
    await queue.end(held, Verdict.SUCCESS, "x", "ref")
    assert (await queue.next_due_s() or 0) > 100


async def test_no_id_is_given_before_the_mark_was_read(settings: Settings) -> None:
    failures = [StoreError("the mark cannot be read now")]

    async def marks(at_least: int) -> int:
        if failures:
            raise failures.pop()
        return max(at_least, 5000)

    queue = Queue(settings, marks=marks)
    with pytest.raises(QueueUnavailable):
        await queue.open()
    try:
        assert (await queue.add(spec(), fingerprint="f")).id > 5000
    finally:
        await queue.close()


async def test_many_requests_at_a_time_wait_for_a_connection(queue: Queue) -> None:
    answers = await asyncio.gather(*(queue.counters() for _ in range(200)), return_exceptions=True)
    assert not [a for a in answers if isinstance(a, Exception)]
