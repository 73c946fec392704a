"""Fair share when settings, memory and clocks change under it: nothing is hidden for ever, nobody pays for another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import msgspec
import pytest

from support.jobs import spec
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


async def test_a_bell_rings_only_for_a_job_that_can_be_claimed(front: Front) -> None:
    front.rule(max_running=1)
    await front.add()
    await front.claim()
    for _ in range(5):
        await front.add()
    assert await front.raw("LLEN", f"bell:{IMAGE}") == 0
