"""Fair share when settings, memory and clocks change under it: nothing is hidden for ever, nobody pays for another."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from support.jobs import limits, spec
from support.redis_server import RedisServer
from tango_async.config import CourseShare, Settings, Share
from tango_async.model import Claim, Verdict
from tango_async.queue.redis import Queue

IMAGE = "autograding_image"
ONE, TWO = "one@example.edu", "two@example.edu"


class Front:
    """One server's queue, whose share of every course can be set anew."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.queue = Queue(settings)

    def rule(self, **rule: object) -> None:
        share = Share(course=(CourseShare(pattern="*", **rule),))  # type: ignore[arg-type]
        self.queue._settings = msgspec.structs.replace(self._settings, share=share)

    async def add(self, course: str = "plain", **changes: object) -> int:
        one = spec(lab=f"key-{course}-lab", courselab=f"{course}-lab", **changes)
        return (await self.queue.add(one, fingerprint=uuid4().hex)).id

    async def claim(self, most: int = 10, *classes: str) -> list[Claim]:
        return await self.queue.claim("a", uuid4().hex, dict.fromkeys(classes or (IMAGE,), most), most)

    async def ids(self, most: int = 10, *classes: str) -> list[int]:
        return [c.id for c in await self.claim(most, *classes)]

    async def end(self, held: Claim) -> None:
        await self.queue.end(held, Verdict.SUCCESS, "ended", "ref")

    async def raw(self, command: str, name: str, *words: object) -> object:
        return await self.queue._command(command, f"{self.queue._prefix}{name}", *words)


@pytest.fixture
async def front(settings: Settings) -> AsyncIterator[Front]:
    front = Front(settings)
    await front.queue.open()
    yield front
    await front.queue.close()


# -- caps that change ------------------------------------------------------------------------------


async def test_a_job_kept_back_by_a_cap_that_was_lifted_is_not_hidden_for_ever(front: Front) -> None:
    front.rule(max_running_each=1)
    await front.add(submitter=ONE)
    kept_back = await front.add(submitter=ONE)
    (held,) = await front.claim()
    front.rule()
    other = await front.add(submitter=TWO)
    await front.end(held)
    assert sorted(await front.ids()) == [kept_back, other]


async def test_a_cap_holds_for_what_waited_before_it_was_set(front: Front) -> None:
    front.rule()
    for _ in range(5):
        await front.add(submitter=ONE)
    front.rule(max_running_each=1)
    other = await front.add(submitter=TWO)
    assert len(await front.ids()) == 2
    assert other


@pytest.mark.parametrize("cap", ["max_running", "max_running_each"])
async def test_a_raised_cap_holds_at_once_for_every_class(front: Front, cap: str) -> None:
    front.rule(**{cap: 1})
    await front.add(submitter=ONE)
    hidden = await front.add(submitter=ONE, image="second")
    assert len(await front.claim(1)) == 1
    assert await front.ids(10, "second") == []
    front.rule(**{cap: 5})
    await front.add(submitter=TWO)
    assert await front.ids(10, "second") == [hidden]


async def test_a_lowered_cap_holds_at_once_for_every_class(front: Front) -> None:
    front.rule(max_running=5)
    for _ in range(2):
        await front.add()
    await front.add(image="second")
    assert len(await front.claim()) == 2
    front.rule(max_running=2)
    await front.add()
    assert await front.ids(10, "second") == []


# -- what is remembered of a lane --------------------------------------------------------------------


async def test_a_lane_with_jobs_is_never_forgotten(front: Front) -> None:
    front.rule(max_running_each=1)
    await front.add(submitter=ONE)
    await front.add(submitter=ONE)
    (held,) = await front.claim()
    assert await front.raw("PTTL", "lane:key-plain") == -1
    await front.end(held)
    assert await front.raw("PTTL", "lane:key-plain") == -1
    (held,) = await front.claim()
    await front.end(held)
    assert int(str(await front.raw("PTTL", "lane:key-plain"))) > 0
    await front.queue.cancel(await front.add())
    assert int(str(await front.raw("PTTL", "lane:key-plain"))) > 0


async def test_a_course_that_is_new_is_charged_with_what_jobs_take_elsewhere(front: Front) -> None:
    front.rule()
    for _ in range(200):
        await front.add("old")
    (held,) = await front.claim(1)
    await front.raw("HINCRBY", f"job:{held.id}", "claimed_ms", -60_000)
    await front.end(held)
    for _ in range(200):
        await front.add("new")
    got = Counter(c.spec.courselab for c in await front.claim(40))
    assert got["old-lab"] >= 18


async def test_a_clock_set_forward_costs_no_course_its_share(front: Front) -> None:
    front.rule()
    for _ in range(10):
        await front.add("ran")
    for held in await front.claim(5):
        await front.raw("HINCRBY", f"job:{held.id}", "claimed_ms", -80_000_000)
        await front.end(held)
    later = [await front.add("later") for _ in range(200)]
    got = await front.ids(50)
    assert set(got) - set(later)


async def test_a_bell_rings_only_for_a_job_that_can_be_claimed(front: Front) -> None:
    front.rule(max_running=1)
    await front.add()
    await front.claim()
    for _ in range(5):
        await front.add()
    assert await front.raw("LLEN", f"bell:{IMAGE}") == 0


# -- jobs of several slots -----------------------------------------------------------------------------


async def test_no_more_is_claimed_than_there_are_slots(front: Front) -> None:
    front.rule()
    large = [await front.add(limits=limits(cores=4.0)) for _ in range(4)]
    assert await front.ids(8) == large[:2]


async def test_a_job_of_several_slots_is_charged_for_each(front: Front) -> None:
    front.rule()
    for _ in range(20):
        await front.add("large", limits=limits(cores=4.0))
        await front.add("small")
    held = [(await front.claim(1))[0] for _ in range(20)]
    got = Counter(c.spec.courselab for c in held)
    assert got == {"large-lab": 4, "small-lab": 16}


# -- forecasts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", ["max_running", "max_running_each"])
async def test_a_job_kept_back_by_a_cap_is_not_foretold_for_now(front: Front, cap: str) -> None:
    front.rule(**{cap: 1})
    await front.add(submitter=ONE)
    await front.claim()
    kept_back = await front.add(submitter=ONE)
    found = await front.queue.forecasts([kept_back], 8, [IMAGE])
    assert (found[kept_back].eta_s or 0) > 0


async def test_a_forecast_is_compared_once(front: Front) -> None:
    front.rule()
    job_id = await front.add()
    await front.queue.forecasts([job_id], 8, [IMAGE])
    (held,) = await front.claim()
    await front.queue.retry(held, "why")
    assert await front.raw("HGET", f"job:{job_id}", "eta_ms") is None


async def test_what_ran_while_nobody_else_waited_is_not_owed_later(front: Front) -> None:
    front.rule()
    await front.add("early")
    (held,) = await front.claim()
    await front.raw("HSET", f"job:{held.id}", "longest_ms", 3_600_000)
    await front.raw("HINCRBY", f"job:{held.id}", "claimed_ms", -3_600_000)
    await front.end(held)
    for _ in range(20):
        await front.add("late")
    (held,) = await front.claim(1)
    await front.end(held)
    early = await front.add("early")
    assert early in await front.ids(3)


async def test_forecasts_are_told_also_when_the_server_is_out_of_memory(settings: Settings, tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    try:
        front = Front(msgspec.structs.replace(settings, queue=msgspec.structs.replace(settings.queue, url=server.url)))
        front.rule()
        job_id = await front.add()
        await front.queue._command("CONFIG", "SET", "maxmemory", 1)
        assert job_id in await front.queue.forecasts([job_id], 8, [IMAGE])
        await front.queue.close()
    finally:
        server.kill()
