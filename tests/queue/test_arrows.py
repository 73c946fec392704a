"""Each arrow of a job's life, and who may draw it. Start reading here; docs/states.md is the map."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import uuid4

import msgspec
import pytest

from support.jobs import claim_one, spec
from tango_async.config import Settings
from tango_async.errors import QueueFull, QueueUnavailable
from tango_async.model import Claim, JobState, Verdict
from tango_async.queue.redis import Answer, Cancelled, Queue

IMAGE = ["autograding_image"]


class Mark:
    """The high-water mark of ids, as a store keeps it."""

    value = 0

    async def __call__(self, at_least: int, /) -> int:
        self.value = max(self.value, at_least)
        return self.value


async def add(queue: Queue, **changes: object) -> int:
    return (await queue.add(spec(**changes), fingerprint=uuid4().hex)).id


async def claim(queue: Queue, instance: str = "a") -> Claim:
    found = await claim_one(queue, IMAGE, instance=instance)
    assert found is not None
    return found


async def state(queue: Queue, job_id: int) -> JobState:
    job = await queue.job(job_id)
    assert job is not None
    return job.state


def short_leases(settings: Settings, lease_s: float = 0.05, grace_s: float = 0.05) -> Settings:
    """Leases that end at once, and no quiet time for a server that is new."""
    changed = msgspec.structs.replace(
        settings.dispatcher, lease_s=lease_s, adopt_grace_s=grace_s, upkeep_s=5.0, job_retries=1
    )
    return msgspec.structs.replace(settings, dispatcher=changed)


async def reap_until(queue: Queue, wanted: int) -> list[tuple[int, bool]]:
    done: list[tuple[int, bool]] = []
    async with asyncio.timeout(60):
        while len(done) < wanted:
            done += await queue.reap()
            await asyncio.sleep(0.01)
    return done


async def test_a_job_goes_from_queued_through_running_to_dead(queue: Queue) -> None:
    job_id = await add(queue)
    assert await state(queue, job_id) is JobState.QUEUED
    held = await claim(queue)
    assert (held.id, held.attempt) == (job_id, 1)
    assert await state(queue, job_id) is JobState.ASSIGNED
    assert await queue.start(held, "m1") is Answer.OK
    assert await state(queue, job_id) is JobState.RUNNING
    assert await queue.end(held, Verdict.SUCCESS, "Success: Autodriver returned normally", "ref") is Answer.OK
    job = await queue.job(job_id)
    assert job is not None
    assert (job.state, job.verdict, job.output_ref) == (JobState.DEAD, Verdict.SUCCESS, "ref")
    assert [j.id for j in await queue.dead(10)] == [job_id]
    assert await queue.live(10) == []
    assert job.trace[-1].text == "Success: Autodriver returned normally"


async def test_an_identical_addjob_is_the_same_job(queue: Queue) -> None:
    first = await queue.add(spec(), fingerprint="f")
    again = await queue.add(spec(), fingerprint="f")
    assert (again.id, again.new) == (first.id, False)
    assert len(await queue.live(10)) == 1


async def test_a_repeat_by_the_connection_itself_is_still_new(queue: Queue) -> None:
    one = spec()
    first = await queue.add(one, fingerprint="f")
    assert (await queue.add(one, fingerprint="f")) == replace(first, new=True)


async def test_a_repeated_claim_request_gets_the_same_answer(queue: Queue) -> None:
    await add(queue)
    await add(queue)
    first = await claim_one(queue, IMAGE, request="request")
    assert await claim_one(queue, IMAGE, request="request") == first
    assert await claim_one(queue, IMAGE, request="another") != first


async def test_jobs_are_claimed_in_their_order_and_only_of_offered_classes(queue: Queue) -> None:
    other = await add(queue, image="other")
    ids = [await add(queue) for _ in range(3)]
    assert [(await claim(queue)).id for _ in ids] == ids
    assert await claim_one(queue, IMAGE) is None
    both = await claim_one(queue, [*IMAGE, "other"])
    assert both is not None
    assert both.id == other


async def test_a_late_holder_hears_stale_and_changes_nothing(queue: Queue) -> None:
    job_id = await add(queue)
    late = await claim(queue)
    assert await queue.retry(late, "its machine was lost") is Answer.OK
    present = await claim(queue, "b")
    assert await queue.start(late, "m1") is Answer.STALE
    assert await queue.extend([(late.id, late.seq), (present.id, present.seq)]) == [Answer.STALE, Answer.OK]
    assert await queue.end(late, Verdict.SUCCESS, "late", "late") is Answer.STALE
    assert await queue.show(late, 0, b"late") == -1
    assert await queue.retry(late, "late") is Answer.STALE
    assert await state(queue, job_id) is JobState.ASSIGNED


async def test_a_repeated_end_hears_done(queue: Queue) -> None:
    await add(queue)
    held = await claim(queue)
    assert await queue.end(held, Verdict.SUCCESS, "x", "ref") is Answer.OK
    assert await queue.end(held, Verdict.SUCCESS, "x", "ref") is Answer.DONE


async def test_retries_are_counted_and_spent(queue: Queue) -> None:
    job_id = await add(queue)
    for _ in range(2):
        assert await queue.retry(await claim(queue), "no machine") is Answer.OK
    last = await claim(queue)
    assert await queue.retry(last, "no machine") is Answer.SPENT
    assert await state(queue, job_id) is JobState.ASSIGNED
    assert await queue.end(last, Verdict.GAVE_UP, "Internal error", "ref") is Answer.OK


async def test_giving_a_job_back_is_not_charged(queue: Queue) -> None:
    job_id = await add(queue)
    for _ in range(5):
        assert await queue.retry(await claim(queue), "this host is stopping", charged=False) is Answer.OK
    job = await queue.job(job_id)
    assert job is not None
    assert (job.retries, job.attempts) == (0, 5)


async def test_cancelling_a_queued_job_ends_it_with_an_output(queue: Queue) -> None:
    job_id = await add(queue)
    assert await queue.cancel(job_id) is Cancelled.CANCELLED
    job = await queue.job(job_id)
    assert job is not None
    assert (job.state, job.verdict) == (JobState.DEAD, Verdict.CANCELLED)
    assert "Error: Job was cancelled" in job.note
    assert await claim_one(queue, IMAGE, request="r") is None
    assert await queue.cancel(job_id) is Cancelled.COMPLETED
    assert await queue.cancel(987_654) is Cancelled.NOT_FOUND


async def test_cancelling_a_running_job_reaches_every_later_arrow(queue: Queue) -> None:
    await add(queue)
    held = await claim(queue)
    assert await queue.cancel(held.id) is Cancelled.REQUESTED
    assert await queue.start(held, "m") is Answer.CANCEL
    assert await queue.extend([(held.id, held.seq)]) == [Answer.CANCEL]
    assert await queue.retry(held, "x") is Answer.CANCEL
    assert await queue.end(held, Verdict.SUCCESS, "x", "ref") is Answer.CANCEL
    assert await queue.end(held, Verdict.CANCELLED, "cancelled", "ref") is Answer.OK


async def test_an_assigned_job_that_nobody_extends_is_queued_again(settings: Settings, queue: Queue) -> None:
    quick = Queue(short_leases(settings))
    job_id = await add(queue)
    await claim(quick)
    assert await reap_until(quick, 1) == [(job_id, False)]
    assert await state(queue, job_id) is JobState.QUEUED
    await claim(quick)
    assert await reap_until(quick, 1) == [(job_id, True)]
    job = await queue.job(job_id)
    assert job is not None
    assert job.verdict is Verdict.GAVE_UP
    assert "Unable to complete job after 2 tries" in job.note
    await quick.close()


async def test_a_running_job_waits_for_the_grace_and_can_be_adopted(settings: Settings, queue: Queue) -> None:
    quick = Queue(short_leases(settings, grace_s=600))
    job_id = await add(queue)
    old = await claim(quick)
    await quick.start(old, "m1")
    await asyncio.sleep(0.1)
    assert await quick.reap() == []
    adopted = await queue.adopt("m1", "b")
    assert adopted is not None
    assert adopted[0].id == job_id
    assert adopted[0].seq > old.seq
    assert await queue.end(old, Verdict.SUCCESS, "x", "old") is Answer.STALE
    assert await queue.end(adopted[0], Verdict.SUCCESS, "x", "new") is Answer.OK
    assert await queue.adopt("m1", "b") is None
    await quick.close()


async def test_a_clock_that_is_set_back_holds_no_dead_dispatchers_job(queue: Queue, settings: Settings) -> None:
    job_id = await add(queue)
    await claim(queue)
    hour_ms, held, server = 3_600_000, f"{settings.queue.prefix}held", f"{settings.queue.prefix}server"
    before = await queue.now_ms() + hour_ms
    await queue._command("ZADD", held, before, job_id)
    await queue._command("HSET", server, "clock", before)
    assert await queue.reap() == []
    quiet_s = settings.dispatcher.lease_s * 4 / 3
    now = await queue.now_ms()
    assert float(await queue._command("ZSCORE", held, job_id)) <= now + quiet_s * 1000
    await queue._command("ZADD", held, now - 1, job_id)
    await queue._command("HSET", server, "quiet_until", now)
    assert await queue.reap() == [(job_id, False)]


async def due_ms(queue: Queue, job_id: int) -> int:
    record = await queue.callback(job_id)
    assert record is not None
    return record.due_ms


async def test_a_callback_is_due_only_after_the_answer_was_flushed(queue: Queue) -> None:
    job_id = await add(queue, callback_url="http://127.0.0.1/cb")
    await queue.end(await claim(queue), Verdict.SUCCESS, "x", "ref")
    job = await queue.job(job_id)
    assert job is not None and await due_ms(queue, job_id) == job.added_ms + 130_000
    before = await queue.now_ms()
    await queue.answered(job_id)
    assert before + 2000 <= await due_ms(queue, job_id) <= await queue.now_ms() + 2000


async def test_a_callback_is_taken_by_one_and_survives_until_it_is_delivered(queue: Queue) -> None:
    job_id = await add(queue, callback_url="http://127.0.0.1/cb")
    await queue.end(await claim(queue), Verdict.SUCCESS, "x", "ref")
    await queue.defer(job_id, "try at once", 0)
    (due,) = await queue.due(10, 60)
    assert (due.id, due.url, due.output_ref) == (job_id, "http://127.0.0.1/cb", "ref")
    assert await queue.due(10, 60) == []
    await queue.delivered(job_id, "204")
    assert await queue.next_due_s() is None


async def test_visible_output_grows_only_from_where_it_ended(queue: Queue) -> None:
    await add(queue)
    held = await claim(queue)
    assert await queue.show(held, 0, b"abc") == 3
    assert await queue.show(held, 0, b"abc") == 3
    assert await queue.show(held, 3, b"de\xff") == 6
    assert await queue.partial_output(held.id) == b"abcde\xff"


async def test_ids_rise_above_the_mark_when_redis_comes_back_empty(settings: Settings) -> None:
    mark = Mark()
    first = Queue(settings, marks=mark)
    last = [await add(first) for _ in range(3)][-1]
    await first.close()
    nothing_in_it = msgspec.structs.replace(settings.queue, prefix=f"e{uuid4().hex[:12]}:")
    emptied = msgspec.structs.replace(settings, queue=nothing_in_it)
    second = Queue(emptied, marks=mark)
    assert await add(second) > last
    await second.close()


async def test_history_forgets_the_oldest_and_their_output_names(settings: Settings, queue: Queue) -> None:
    few = msgspec.structs.replace(settings, queue=msgspec.structs.replace(settings.queue, history_limit=1))
    short = Queue(few)
    specs = [spec(output_name=f"{i}.out") for i in range(3)]
    for i, one in enumerate(specs):
        await queue.add(one, fingerprint=str(i))
        await queue.end(await claim(queue), Verdict.SUCCESS, "x", f"ref{i}")
    expired = await short.expired()
    assert [ref for _, ref in expired] == ["ref0", "ref1"]
    await short.forget([job_id for job_id, _ in expired])
    assert await queue.job_of_output("test-course-lab", "0.out") is None
    kept = await queue.job_of_output("test-course-lab", "2.out")
    assert kept is not None
    assert await short.expired() == []
    await short.close()


async def test_a_server_that_is_not_there_is_unavailable_within_the_limit(settings: Settings) -> None:
    gone = msgspec.structs.replace(settings, queue=msgspec.structs.replace(settings.queue, url="unix:///nowhere.sock"))
    queue = Queue(gone, timeout_s=1.0)
    with pytest.raises(QueueUnavailable):
        await queue.open()
    await queue.close()


async def test_jobs_are_refused_near_the_memory_limit(settings: Settings, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from support.redis_server import RedisServer

    options = ("--save", "", "--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    server = RedisServer(tmp_path, options=options)
    server.start()
    try:
        full = Queue(msgspec.structs.replace(settings, queue=msgspec.structs.replace(settings.queue, url=server.url)))
        held: Claim | None = None
        with pytest.raises(QueueFull):
            for i in range(100_000):
                full._room_checked = 0.0
                await add(full, notes=("x" * 5000,), name=str(i))
                held = held or await claim(full)
        assert held is not None
        assert await full.end(held, Verdict.SUCCESS, "x", "ref") is Answer.OK
        await full.close()
    finally:
        server.kill()


async def test_a_feedback_is_unnamed_when_its_holder_was_lost_before_it_ended_the_job(queue: Queue) -> None:
    job_id = await add(queue)
    first = await claim(queue)
    refs = [f"{job_id}.{first.seq}.success"]
    assert await queue.unnamed(refs) == []  # it may still end with it
    assert await queue.retry(first, "lost") is Answer.OK
    assert await queue.unnamed(refs) == refs
    second = await claim(queue)
    named = f"{job_id}.{second.seq}.success"
    await queue.end(second, Verdict.SUCCESS, "", named)
    assert await queue.unnamed([*refs, named]) == refs
    # Nothing is said of jobs that this server does not know.
    assert await queue.unnamed(["999999.1.success", "no reference"]) == []


async def test_a_server_emptied_under_a_living_connection_repeats_no_id(settings: Settings) -> None:
    queue = Queue(settings, marks=Mark())
    last = [await add(queue) for _ in range(3)][-1]
    await queue._command("DEL", f"{settings.queue.prefix}ids")
    assert await add(queue) > last
    await queue.close()


async def test_a_job_whose_machine_was_dead_starts_on_another_and_only_that_is_its_own(queue: Queue) -> None:
    job_id, held = await add(queue), await claim(queue)
    assert [await queue.start(held, machine) for machine in ("dead", "m", "m")] == [Answer.OK] * 3
    assert await queue.adopt("dead", "b") is None
    found = await queue.adopt("m", "b")
    assert found is not None and found[0].id == job_id
