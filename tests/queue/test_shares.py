"""Fair share: lanes by weight, priorities, submitters, caps, supersession, and what is foretold of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from uuid import uuid4

import msgspec
import pytest

from support.jobs import claim_one, spec
from tango_async import shares
from tango_async.config import CourseShare, Resubmission, Settings, Share
from tango_async.model import Claim, JobState, Verdict
from tango_async.queue.redis import Answer, Queue

IMAGE = "autograding_image"


@pytest.fixture
async def queue(settings: Settings) -> AsyncIterator[Queue]:
    rules = (
        CourseShare(pattern="*heavy", weight=3),
        CourseShare(pattern="*capped", max_running=2),
        CourseShare(pattern="*each", max_running_each=1),
        CourseShare(pattern="*newest", resubmission=Resubmission.OUTPUT),
        CourseShare(pattern="*mine", resubmission=Resubmission.SUBMITTER),
    )
    queue = Queue(msgspec.structs.replace(settings, share=Share(course=rules)))
    await queue.open()
    yield queue
    await queue.close()


async def add(queue: Queue, course: str = "plain", **changes: object) -> int:
    one = spec(lab=f"key-{course}-lab", courselab=f"{course}-lab", **changes)
    return (await queue.add(one, fingerprint=uuid4().hex)).id


async def claim(queue: Queue, most: int, **room: int) -> list[Claim]:
    return await queue.claim("a", uuid4().hex, room or {IMAGE: most}, most)


async def end(queue: Queue, held: Claim) -> None:
    assert await queue.end(held, Verdict.SUCCESS, "ended", "ref") is Answer.OK


def ids(claims: Sequence[Claim]) -> list[int]:
    return [c.id for c in claims]


async def test_a_flood_of_one_course_does_not_delay_another(queue: Queue) -> None:
    flood = [await add(queue, "a") for _ in range(50)]
    assert ids(await claim(queue, 4)) == flood[:4]
    late = await add(queue, "b")
    assert ids(await claim(queue, 1)) == [late]


async def test_turns_are_taken_by_weight(queue: Queue) -> None:
    for _ in range(100):
        await add(queue, "heavy")
        await add(queue, "light")
    got = Counter(c.spec.lab for c in await claim(queue, 80))
    assert got == {"key-heavy-lab": 60, "key-light-lab": 20}


async def test_a_course_that_was_away_has_saved_up_nothing(queue: Queue) -> None:
    await add(queue, "b")
    await claim(queue, 1)
    for _ in range(100):
        await add(queue, "a")
    await claim(queue, 50)
    for _ in range(20):
        await add(queue, "b")
    got = Counter(c.spec.lab for c in await claim(queue, 20))
    assert 9 <= got["key-b-lab"] <= 11


async def test_within_a_course_priority_comes_first_then_arrival(queue: Queue) -> None:
    low, first, second, high = [await add(queue, priority=p) for p in (-10, 0, 0, 7)]
    assert ids(await claim(queue, 4)) == [high, first, second, low]


async def test_a_submitters_flood_falls_behind_the_others_of_the_course(queue: Queue) -> None:
    flood = [await add(queue, submitter="eager@example.edu") for _ in range(20)]
    others = [await add(queue, submitter=f"student{n}@example.edu") for n in range(5)]
    assert ids(await claim(queue, 25)) == [flood[0], *others, *flood[1:]]


async def test_a_capped_course_leaves_slots_to_others_until_a_job_of_it_ends(queue: Queue) -> None:
    capped = [await add(queue, "capped") for _ in range(5)]
    held = await claim(queue, 5)
    assert ids(held) == capped[:2]
    other = await add(queue, "plain")
    assert ids(await claim(queue, 5)) == [other]
    await end(queue, held[0])
    assert ids(await claim(queue, 5)) == [capped[2]]
    assert await queue.retry(held[1], "why") is Answer.OK
    assert ids(await claim(queue, 5)) == [capped[1]]


async def test_a_submitter_at_its_cap_hinders_nobody(queue: Queue) -> None:
    mine = [await add(queue, "each", submitter="one@example.edu") for _ in range(3)]
    theirs = await add(queue, "each", submitter="two@example.edu")
    held = await claim(queue, 5)
    assert ids(held) == [mine[0], theirs]
    await end(queue, held[0])
    assert ids(await claim(queue, 5)) == [mine[1]]
    await queue.cancel(mine[2])
    await queue.cancel(mine[1])
    assert await claim(queue, 5) == []


async def test_a_better_job_of_a_submitter_with_a_cap_goes_before_its_regrade(queue: Queue) -> None:
    regrade = await add(queue, "each", submitter="one@example.edu", priority=-10)
    fresh = await add(queue, "each", submitter="one@example.edu")
    assert ids(await claim(queue, 5)) == [fresh]
    await queue.cancel(regrade)


async def test_a_job_of_a_class_that_nobody_offers_holds_no_place_of_its_submitter(queue: Queue) -> None:
    await add(queue, "each", submitter="one@example.edu", image="unknown")
    runs = await add(queue, "each", submitter="one@example.edu")
    assert ids(await claim(queue, 5)) == [runs]
    assert await queue.waiting() == {"unknown": 1}


async def test_a_claim_takes_no_more_of_a_class_than_there_is_room_for(queue: Queue) -> None:
    for _ in range(5):
        await add(queue, image="full")
    free = await add(queue)
    assert [c.spec.image for c in await claim(queue, 4, full=1, **{IMAGE: 4})] == ["full", IMAGE]
    assert ids(await claim(queue, 4, full=0)) == []
    assert free


async def test_a_repeated_claim_of_several_has_the_same_answer(queue: Queue) -> None:
    for _ in range(3):
        await add(queue)
    first = await queue.claim("a", "request", {IMAGE: 5}, 2)
    assert await queue.claim("a", "request", {IMAGE: 5}, 5) == first
    await end(queue, first[0])
    assert await queue.claim("a", "request", {IMAGE: 5}, 5) == first[1:]


@pytest.mark.parametrize("course", ["newest", "mine"])
async def test_a_newer_job_supersedes_the_waiting_and_the_running_one(queue: Queue, course: str) -> None:
    changes = {"submitter": "one@example.edu", "output_name": "same.out"}
    running = await add(queue, course, **changes)
    held = await claim_one(queue)
    assert held is not None
    waiting = await add(queue, course, **changes)
    assert await queue.extend([(held.id, held.seq)]) == [Answer.CANCEL]
    newest = await add(queue, course, **changes)
    other = await add(queue, course, submitter="two@example.edu", output_name="other.out")
    record = await queue.job(waiting)
    assert record is not None
    assert (record.state, record.verdict) == (JobState.DEAD, Verdict.CANCELLED)
    assert any(line.text == f"Superseded by job {newest}" for line in record.trace)
    assert held.id == running
    assert sorted(ids(await claim(queue, 5))) == [newest, other]


async def test_nobody_supersedes_another_submitters_job(queue: Queue) -> None:
    both = [await add(queue, "newest", submitter=f"{who}@example.edu", output_name="same.out") for who in "ab"]
    assert sorted(ids(await claim(queue, 5))) == both


async def test_where_all_are_kept_none_is_superseded(queue: Queue) -> None:
    both = [await add(queue, submitter="one@example.edu", output_name="same.out") for _ in range(2)]
    assert ids(await claim(queue, 5)) == both


async def test_positions_count_what_will_start_before(queue: Queue) -> None:
    flood = [await add(queue, "a") for _ in range(10)]
    late = await add(queue, "b")
    unknown = await add(queue, "b", image="unknown")
    found = await queue.forecasts([*flood, late, unknown, 999], 2, [IMAGE])
    assert [found[i].position for i in flood[:3]] == [0, 2, 3]
    assert found[flood[9]].position == 10
    assert found[late].position <= 1
    assert found[unknown].eta_s is None
    assert 999 not in found
    assert found[flood[0]].eta_s == 0
    last = found[flood[9]].eta_s
    assert last is not None
    assert last > 3
    assert found[late].error_s is None


async def test_the_error_of_forecasts_is_measured(queue: Queue) -> None:
    first, second = [await add(queue) for _ in range(2)]
    await queue.forecasts([first, second], 1, [IMAGE])
    await claim(queue, 2)
    third = await add(queue)
    found = await queue.forecasts([third], 1, [IMAGE])
    assert found[third].error_s is not None


async def test_nothing_is_left_of_lanes_but_their_virtual_time(queue: Queue) -> None:
    for course in ("each", "capped", "plain"):
        for who in ("one@example.edu", ""):
            await add(queue, course, submitter=who)
    for held in await claim(queue, 10):
        await end(queue, held)
    keys = {k.decode().removeprefix(queue._prefix).partition(":")[0] for k in await queue._command("KEYS", "*")}
    assert not keys & {"wait", "parked", "mine", "heads", "running", "lanes", "classes", "queues"}


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("15213_malloclab_3_a_b@example.edu", "a_b@example.edu"),
        ("course_lab_student@example.edu", "student@example.edu"),
        ("student@example.edu", "student@example.edu"),
        ("a job", ""),
        ("course_lab_1_nobody", ""),
    ],
)
def test_the_submitter_stands_at_the_end_of_a_jobs_name(name: str, who: str) -> None:
    assert shares.submitter_of(name) == who


@pytest.mark.parametrize(
    ("lab", "courselab", "lane"),
    [("k-15213-f24-lab1", "15213-f24-lab1", "k-15213-f24"), ("k-e-y-lab", "lab", "k-e-y-lab"), ("k-a-b", "a-b", "k-a")],
)
def test_a_lane_is_a_course(lab: str, courselab: str, lane: str) -> None:
    assert shares.lane_of(Share(), lab, courselab).name == lane
    assert shares.lane_of(Share(course=(CourseShare(pattern="*", lane="all"),)), lab, courselab).name == "all"
