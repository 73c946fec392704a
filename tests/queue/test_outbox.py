"""The outbox as an operator sees it: order, the log of each try, and sending again by hand."""

from __future__ import annotations

from uuid import uuid4

import msgspec
import pytest

from support.jobs import claim_one, spec
from tango_async.config import Settings
from tango_async.model import CallbackState, Verdict
from tango_async.queue import outbox
from tango_async.queue.history import Retired
from tango_async.queue.outbox import Resent
from tango_async.queue.redis import Queue

URL = "http://127.0.0.1/cb"


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks may lie far apart without the clock having been set."""
    monkeypatch.setattr(outbox, "MOST_PAUSE_S", 600.0)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, callbacks=msgspec.structs.replace(settings.callbacks, min_age_s=60.0))


async def add(queue: Queue, **changes: object) -> int:
    return (await queue.add(spec(**{"callback_url": URL, **changes}), fingerprint=uuid4().hex)).id


async def ended(queue: Queue, **changes: object) -> int:
    """A dead job whose callback is due at once."""
    job_id = await add(queue, **changes)
    claim = await claim_one(queue)
    assert claim is not None and claim.id == job_id
    await queue.end(claim, Verdict.SUCCESS, "Success: Autodriver returned normally", f"{job_id}.1.success")
    await due_in(queue, job_id, -1)
    return job_id


async def due_in(queue: Queue, job_id: int, s: float) -> None:
    at_ms = await queue.now_ms() + int(s * 1000)
    await queue._server.command("ZADD", f"{queue._prefix}outbox", "XX", at_ms, job_id)


async def state(queue: Queue, job_id: int) -> CallbackState:
    record = await queue.callback(job_id)
    assert record is not None
    return record.state


async def test_the_longest_due_is_taken_first(queue: Queue) -> None:
    ids = [await ended(queue) for _ in range(4)]
    for job_id, ago_s in zip(ids, (1, 3, 2, 4), strict=True):
        await due_in(queue, job_id, -ago_s)
    assert [due.id for due in await queue.due(3, 60)] == [ids[3], ids[1], ids[2]]
    assert [due.id for due in await queue.due(3, 60)] == [ids[0]]


async def clock_moves(queue: Queue, s: float) -> None:
    """The server's clock is set, as its readers see it: what they noted lies otherwise to it than it did."""
    server = f"{queue._prefix}server"
    for field in ("clock", "looked"):
        if (noted := await queue._command("HGET", server, field)) is not None:
            await queue._command("HSET", server, field, int(noted) - int(s * 1000))
    for job_id, at_ms in await queue._command("ZRANGE", f"{queue._prefix}outbox", 0, -1, "WITHSCORES"):
        await queue._command("ZADD", f"{queue._prefix}outbox", at_ms - s * 1000, job_id)


async def test_a_clock_that_is_set_back_delays_no_callback_by_as_much(queue: Queue) -> None:
    overdue, soon, later = [await ended(queue) for _ in range(3)]
    await due_in(queue, soon, 300)
    await due_in(queue, later, 600)
    await queue.reap()
    await clock_moves(queue, -3600)
    assert (await queue.next_due_s() or 0) > 3000
    await queue.reap()
    listed = {one.id: one.due_ms - await queue.now_ms() for one in await queue.callbacks(10)}
    assert listed[overdue] <= 0
    assert 0 < listed[soon] <= 300_000 < listed[later] <= 600_000
    assert [due.id for due in await queue.due(10, 60)] == [overdue]


async def test_a_clock_that_is_set_back_while_nobody_looks_delays_a_callback_by_the_longest_wait(queue: Queue) -> None:
    await ended(queue)
    await clock_moves(queue, -3600)
    await queue.reap()
    assert 600 < (await queue.next_due_s() or 0) <= 720


async def test_no_wait_that_a_deliverer_can_ask_for_looks_like_a_clock_that_was_set_back(queue: Queue) -> None:
    job_id = await ended(queue)
    await queue.due(1, 60)
    await queue.defer(job_id, "503", 7 * 86_400.0)
    due_s = await queue.next_due_s()
    assert due_s is not None and 600 < due_s <= 720
    await queue.reap()
    assert due_s - 60 < (await queue.next_due_s() or 0) <= due_s


async def test_a_clock_that_is_set_forward_makes_no_callback_too_young(queue: Queue, settings: Settings) -> None:
    job_id = await ended(queue)
    await queue.due(0, 60)
    await queue.answered(job_id)
    await clock_moves(queue, 3600)
    assert (await queue.next_due_s() or 0) < -3000
    assert await queue.due(10, 60) == []
    server, now = f"{queue._prefix}server", await queue.now_ms()
    until = int(await queue._command("HGET", server, "callbacks_from"))
    assert 0 < until - now <= settings.callbacks.min_age_s * 1000
    await queue._command("HSET", server, "callbacks_from", now - 1)
    assert [due.id for due in await queue.due(10, 60)] == [job_id]


async def test_a_clock_that_is_set_forward_and_back_again_silences_nobody(queue: Queue) -> None:
    job_id = await ended(queue)
    await queue._command("HSET", f"{queue._prefix}server", "callbacks_from", await queue.now_ms() + 3_600_000)
    assert [due.id for due in await queue.due(10, 60)] == [job_id]


async def test_every_try_is_in_the_log(queue: Queue) -> None:
    job_id = await ended(queue)
    await queue.due(1, 60)
    await queue.defer(job_id, "503", 0.0)
    await queue.due(1, 60)
    await queue.delivered(job_id, "204")
    record = await queue.callback(job_id)
    assert record is not None
    assert [line.text for line in record.log] == ["503", "204"]
    assert (record.state, record.tries, record.due_ms) == (CallbackState.DELIVERED, 2, 0)
    assert 0 <= await queue.now_ms() - record.log[0].at_ms < 600_000


@pytest.mark.parametrize("said", ["two\nlines", "a|bar", "a\r\nb", "", "\ud800", "1|2\n3|4", "x" * 5000])
async def test_whatever_a_receiver_makes_us_say_is_one_line(queue: Queue, said: str) -> None:
    job_id = await ended(queue)
    await queue.defer(job_id, said, 1.0)
    await queue.defer(job_id, "503", 1.0)
    record = await queue.callback(job_id)
    assert record is not None and [line.text for line in record.log][1:] == ["503"]


async def test_callbacks_are_listed_by_what_is_to_be_done_about_them(queue: Queue) -> None:
    delivered, given_up, later, sooner = [await ended(queue) for _ in range(4)]
    await queue.delivered(delivered, "204")
    await queue.defer(given_up, "503", None)
    await due_in(queue, later, 60)
    await due_in(queue, sooner, 30)
    await add(queue)
    await queue.cancel(await add(queue, callback_url=None))
    listed = [(one.id, one.state.value) for one in await queue.callbacks(10)]
    assert listed == [(sooner, "pending"), (later, "pending"), (given_up, "unsent"), (delivered, "delivered")]
    assert len(await queue.callbacks(1)) == 2


@pytest.mark.parametrize("before", ["delivered", "unsent", "pending"])
async def test_a_callback_is_sent_again_whatever_became_of_it(queue: Queue, before: str) -> None:
    job_id = await ended(queue)
    if before == "delivered":
        await queue.delivered(job_id, "204")
    elif before == "unsent":
        await queue.defer(job_id, "503", None)
    else:
        await due_in(queue, job_id, 3600)
    assert await state(queue, job_id) == before
    assert await queue.resend(job_id) is Resent.OK
    assert await state(queue, job_id) is CallbackState.PENDING
    assert [due.id for due in await queue.due(10, 60)] == [job_id]
    await queue.delivered(job_id, "200")
    assert await state(queue, job_id) is CallbackState.DELIVERED
    assert await queue.next_due_s() is None


async def test_what_is_sent_again_has_the_whole_horizon(queue: Queue) -> None:
    job_id = await ended(queue)
    week_ms = 7 * 86_400_000
    await queue._server.command("HINCRBY", f"{queue._prefix}job:{job_id}", "ended_ms", -week_ms)
    assert (await queue.due(1, 0.0))[0].since_end_s > 86_400
    await queue.resend(job_id)
    assert (await queue.due(1, 60))[0].since_end_s < 600


async def test_only_what_has_ended_and_wants_a_callback_is_sent_again(queue: Queue) -> None:
    assert await queue.resend(2**62) is Resent.NOT_FOUND
    assert await queue.resend(await add(queue)) is Resent.NOT_ENDED
    silent = await add(queue, callback_url=None)
    await queue.cancel(silent)
    assert await queue.resend(silent) is Resent.NO_CALLBACK
    assert await queue.callback(silent) is None


async def test_a_job_whose_output_is_going_is_not_sent_again(queue: Queue) -> None:
    job_id = await ended(queue, lab="k-lab", output_name="o.txt")
    assert await queue.retire([job_id]) == []
    assert await queue.resend(job_id) is Resent.OK
    await queue.delivered(job_id, "204")
    assert await queue.retire([job_id]) == [Retired(job_id, f"{job_id}.1.success", "k-lab", "o.txt", False)]
    assert await queue.resend(job_id) is Resent.NOT_FOUND
    await queue.forget([job_id])
    assert await queue.callback(job_id) is None


async def test_a_callback_that_is_given_up_on_purpose_is_told(queue: Queue) -> None:
    job_id = await ended(queue)
    [gone] = await queue.retire([job_id], whatever=True)
    assert gone.had_callback
    assert await queue.next_due_s() is None
    await queue.defer(job_id, "a delivery that was under way", 5.0)
    assert await queue.next_due_s() is None


async def test_the_living_and_the_unknown_lose_nothing_by_being_retired(queue: Queue) -> None:
    job_id = await add(queue)
    assert [gone.output_ref for gone in await queue.retire([job_id, 999], whatever=True)] == ["", ""]
    await queue.forget([job_id, 999])
    assert [job.id for job in await queue.live(10)] == [job_id]


async def test_all_jobs_are_seen_once_each(queue: Queue) -> None:
    dead = [await ended(queue) for _ in range(2)]
    held, queued = await add(queue), await add(queue)
    await claim_one(queue)
    seen = [job.id async for page in queue.every_job() for job in page]
    assert sorted(seen) == [*dead, held, queued]
    assert [kept.id async for page in queue.kept() for kept in page] == dead[::-1]
