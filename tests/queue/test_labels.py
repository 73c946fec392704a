"""Jobs that require labels of their host: who may claim them, whom they wake, and what is kept in mind of them."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from support.jobs import claim_one, spec
from tango_async.config import Settings
from tango_async.model import class_name, parts_of
from tango_async.queue.bells import Bells
from tango_async.queue.redis import Queue

IMAGE = "autograding_image"


def offer(*labels: str, quiet: bool = False) -> str:
    return class_name(IMAGE, quiet=quiet, labels=labels)


async def add(queue: Queue, *labels: str, quiet: bool = False) -> int:
    one = spec(requires=tuple(sorted(labels)), quiet=quiet)
    return (await queue.add(one, fingerprint=uuid4().hex)).id


async def claimed(queue: Queue, *offers: str) -> int | None:
    claim = await claim_one(queue, offers, instance=uuid4().hex)
    return claim.id if claim else None


@pytest.mark.parametrize("labels", [(), ("gpu",), ("avx512", "gpu")])
@pytest.mark.parametrize("quiet", [False, True])
def test_a_class_tells_its_parts(labels: tuple[str, ...], quiet: bool) -> None:
    assert parts_of(class_name(IMAGE, quiet=quiet, labels=labels)) == (IMAGE, quiet, frozenset(labels))


@pytest.mark.parametrize(
    ("required", "offered", "fits"),
    [
        ((), (), True),
        ((), ("gpu",), True),
        (("gpu",), (), False),
        (("gpu",), ("gpu",), True),
        (("gpu",), ("avx512", "gpu"), True),
        (("gpu", "x"), ("avx512", "gpu"), False),
        (("gpu",), ("gpu2",), False),
        (("gpu",), ("a-gpu",), False),
        (("a.c",), ("abc",), False),
        (("a", "c"), ("a", "b", "c"), True),
    ],
)
async def test_a_job_goes_to_a_host_that_has_all_it_requires(
    queue: Queue, required: tuple[str, ...], offered: tuple[str, ...], fits: bool
) -> None:
    job_id = await add(queue, *required)
    assert await claimed(queue, offer(*offered)) == (job_id if fits else None)


async def test_quiet_and_labels_are_required_both(queue: Queue) -> None:
    job_id = await add(queue, "gpu", quiet=True)
    for offers in ([offer("gpu")], [offer(quiet=True)], [offer("a", quiet=True)]):
        assert await claimed(queue, *offers) is None
    assert await claimed(queue, offer("a", "gpu", quiet=True)) == job_id


async def test_all_that_an_offer_stands_for_shares_its_room(queue: Queue) -> None:
    for labels in ((), ("gpu",), ("avx512",), ("avx512", "gpu")):
        await add(queue, *labels)
    claims = await queue.claim("a", "r", {offer("avx512", "gpu"): 3}, 10)
    assert len(claims) == 3


async def test_what_requires_labels_and_what_does_not_take_turns(queue: Queue) -> None:
    ids = [await add(queue), await add(queue, "gpu"), await add(queue)]
    claims = await queue.claim("a", "r", {offer("gpu"): 3}, 3)
    assert [claim.id for claim in claims] == ids


async def test_a_job_wakes_a_host_that_has_all_it_requires_and_no_other(settings: Settings, queue: Queue) -> None:
    both, other = Bells(settings), Bells(settings)
    for offered in (("avx512", "gpu"), ("avx512",)):  # as dispatchers do before they listen
        assert await claimed(queue, offer(*offered)) is None
    waits = [
        asyncio.create_task(bells.wait_classes([offer(*labels)], 600))
        for bells, labels in ((both, ("avx512", "gpu")), (other, ("avx512",)))
    ]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(60):
        await add(queue, "gpu")
        assert await waits[0]
        assert not waits[1].done()
        await add(queue)
        assert await waits[1]
    await asyncio.gather(both.close(), other.close())


async def test_a_claim_that_finds_nothing_silences_its_bells(settings: Settings, queue: Queue) -> None:
    assert await claimed(queue, offer("gpu")) is None
    for _ in range(3):
        await add(queue, "gpu")
        assert await claimed(queue, offer("avx512", "gpu")) is not None
    assert await queue._command("LLEN", f"{settings.queue.prefix}bell:{offer('gpu')}") == 3
    assert await claimed(queue, offer("gpu")) is None
    assert await queue._command("EXISTS", f"{settings.queue.prefix}bell:{offer('gpu')}") == 0


async def test_nothing_is_kept_in_mind_of_classes_whose_jobs_are_gone(settings: Settings, queue: Queue) -> None:
    first, second = await add(queue, "gpu"), await add(queue, "gpu")
    assert await claimed(queue, offer("gpu")) == first
    assert await queue.waiting() == {offer("gpu"): 1}
    await queue.cancel(second)
    assert await queue.waiting() == {}
    assert await queue._command("EXISTS", f"{settings.queue.prefix}labelled:{IMAGE}") == 0
