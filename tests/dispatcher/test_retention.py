"""What is kept of each course, and what is never removed whatever the limits say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from dispatcher.conftest import Bench
from support.jobs import claim_one, spec
from tango_async.config import CourseRetention, Retention, Settings
from tango_async.dispatcher import retention
from tango_async.errors import NotFound
from tango_async.files.local import LocalStore
from tango_async.model import Verdict
from tango_async.queue.redis import Queue

FEEDBACK = b"x" * 1000


class Kept:
    """A queue and a store with jobs that ended."""

    def __init__(self, settings: Settings, queue: Queue, store: LocalStore) -> None:
        self.settings, self.queue, self.store = settings, queue, store
        self.labs = settings.store.labs

    async def ended(self, lab: str, *, days_ago: float = 0, callback_url: str | None = None, **changes: Any) -> int:
        await self.store.open_lab(lab)
        one = spec(lab=lab, courselab=lab, callback_url=callback_url, **changes)
        job_id = (await self.queue.add(one, fingerprint=uuid4().hex)).id
        claim = await claim_one(self.queue)
        assert claim is not None
        ref = f"{job_id}.1.success"
        await self.store.put_output(ref, FEEDBACK)
        await self.queue.end(claim, Verdict.SUCCESS, "Success: Autodriver returned normally", ref)
        await self.store.show_output(ref, lab, one.output_name)
        ended_ms = await self.queue.now_ms() - int(days_ago * 86_400_000)
        await self.queue._server.command("ZADD", f"{self.queue._prefix}dead", ended_ms, job_id)
        return job_id

    async def upload(self, lab: str, *names: str) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield FEEDBACK

        await self.store.open_lab(lab)
        for name in names:
            await self.store.put(lab, name, body())
            await asyncio.sleep(0.02)

    async def apply(self, *courses: CourseRetention, stray_age_s: float = 0.001, **all_of_them: Any) -> None:
        await asyncio.sleep(0.01)
        settings = msgspec.structs.replace(
            self.settings,
            retention=Retention(course=courses, **all_of_them),
            dispatcher=msgspec.structs.replace(self.settings.dispatcher, stray_age_s=stray_age_s),
        )
        await retention.apply(settings, self.queue, self.store, asyncio.Event())

    async def jobs(self) -> list[int]:
        return sorted(job.id for job in await self.queue.dead(100))

    def shown(self, lab: str) -> int:
        return len(list((self.labs / lab / "output").iterdir()))

    def uploads(self, lab: str) -> set[str]:
        return {path.name for path in (self.labs / lab).iterdir() if path.is_file()}


@pytest.fixture
async def kept(settings: Settings) -> AsyncIterator[Kept]:
    queue, store = Queue(settings), LocalStore(settings.store)
    yield Kept(settings, queue, store)
    await queue.close()
    await store.close()


async def test_without_limits_nothing_goes(kept: Kept) -> None:
    await kept.upload("k-a-1", "x")
    await kept.ended("k-a-1", days_ago=10_000)
    await kept.apply()
    await kept.apply(CourseRetention(pattern="*"))
    assert (kept.uploads("k-a-1"), len(await kept.jobs())) == ({"x"}, 1)


async def test_old_jobs_go_with_their_outputs_and_what_shows_them(kept: Kept) -> None:
    old, new = await kept.ended("k-a-1", days_ago=8), await kept.ended("k-a-2", days_ago=6)
    await kept.apply(output_days=7)
    assert await kept.jobs() == [new]
    assert (kept.shown("k-a-1"), kept.shown("k-a-2")) == (0, 1)
    with pytest.raises(NotFound):
        await kept.store.output(f"{old}.1.success")
    assert await kept.queue.job(old) is None


async def test_the_oldest_jobs_of_a_course_go_when_its_outputs_are_too_large(kept: Kept) -> None:
    mine = [await kept.ended(f"k-a-{n}", days_ago=9 - n) for n in range(4)]
    other = await kept.ended("k-b-1", days_ago=20)
    await kept.apply(output_bytes=2 * len(FEEDBACK))
    assert await kept.jobs() == [*mine[2:], other]


async def test_the_first_pattern_that_fits_holds_for_a_course(kept: Kept) -> None:
    long, short, plain = [await kept.ended(f"k-{course}-1", days_ago=8) for course in ("long", "short", "plain")]
    await kept.apply(
        CourseRetention(pattern="*-long", output_days=0),
        CourseRetention(pattern="*-l*", output_days=1),
        CourseRetention(pattern="*-short", output_days=1),
        output_days=10,
    )
    assert await kept.jobs() == [long, plain]
    assert short


async def test_an_output_whose_callback_is_pending_stays(kept: Kept) -> None:
    job_id = await kept.ended("k-a-1", days_ago=99, callback_url="http://127.0.0.1/cb")
    await kept.apply(output_days=1, output_bytes=1)
    assert await kept.jobs() == [job_id]
    await kept.queue.delivered(job_id, "204")
    await kept.apply(output_days=1)
    assert await kept.jobs() == []


async def test_an_output_of_the_same_name_that_is_newer_stays_shown(kept: Kept) -> None:
    await kept.ended("k-a-1", days_ago=9, output_name="o")
    new = await kept.ended("k-a-1", output_name="o")
    await kept.apply(output_days=7)
    assert (await kept.jobs(), kept.shown("k-a-1")) == ([new], 1)
    assert await kept.queue.job_of_output("k-a-1", "o") is not None


async def test_uploads_go_by_course_and_a_live_job_keeps_its_inputs(kept: Kept) -> None:
    await kept.upload("k-a-1", "x", "y")
    await kept.upload("k-a-2", "z")
    await kept.upload("k-b-1", "x")
    pin = await kept.store.pin("k-a-1", [("y", "y")])
    await asyncio.sleep(0.02)
    await kept.apply(upload_bytes=len(FEEDBACK))
    assert (kept.uploads("k-a-1"), kept.uploads("k-a-2"), kept.uploads("k-b-1")) == ({"y"}, set(), {"x"})
    await kept.apply(upload_days=0.01 / 86_400)
    assert kept.uploads("k-a-1") == kept.uploads("k-b-1") == set()
    [file] = kept.store.inputs(pin.id, pin.files)
    assert b"".join([chunk async for chunk in file.chunks()]) == FEEDBACK


async def test_what_was_uploaded_lately_stays_whatever_the_limits_say(kept: Kept) -> None:
    await kept.upload("k-a-1", "x", "y")
    await kept.apply(upload_days=0.001 / 86_400, upload_bytes=1, stray_age_s=3600)
    assert kept.uploads("k-a-1") == {"x", "y"}


async def test_limits_that_were_cut_off_are_applied_the_next_time(kept: Kept) -> None:
    for _ in range(3):
        await kept.ended("k-a-1", days_ago=9)
    retired = await kept.queue.retire(await kept.jobs())
    await kept.store.drop_output(retired[0].output_ref, retired[0].lab, retired[0].output_name)
    await kept.apply(output_days=7)
    assert (await kept.jobs(), kept.shown("k-a-1")) == ([], 0)


@pytest.mark.parametrize(
    ("lab", "course"), [("k-15213-f24-lab1", "k-15213-f24"), ("k-lab", "k"), ("lab", "lab"), ("-", "-"), ("a-", "a")]
)
def test_a_course_is_a_directory_up_to_its_last_dash(lab: str, course: str) -> None:
    assert retention.course_of(lab) == course


async def test_a_dispatcher_does_it_by_itself(bench: Bench) -> None:
    bench.settings = msgspec.structs.replace(bench.settings, retention=Retention(output_bytes=1, period_s=0.1))
    await bench.start()
    job_id = await bench.add("say hi")
    async with asyncio.timeout(60):
        while await bench.queue.job(job_id) is not None:
            await asyncio.sleep(0.02)
    assert (await bench.queue.counters())["ended_success"] == 1
    shown = Path(bench.settings.store.labs / "test-course-lab" / "output")
    assert list(shown.iterdir()) == []
