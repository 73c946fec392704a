"""Slots under every order of taking, giving back, resizing and pausing."""

from __future__ import annotations

import asyncio
import random

import pytest

from tango_async.dispatcher.slots import Slots


async def acquire(slots: Slots, n: int = 1) -> None:
    turn = slots.ask(n)
    try:
        await turn
    except asyncio.CancelledError:
        slots.leave(n, turn)
        raise


async def waiting(slots: Slots, n: int = 1) -> asyncio.Task[None]:
    """A task that waits for `n` slots already, unless it has them."""
    task = asyncio.create_task(acquire(slots, n))
    await asyncio.sleep(0)
    return task


async def test_no_more_are_given_than_there_are() -> None:
    slots = Slots(2)
    await acquire(slots)
    await acquire(slots)
    third = await waiting(slots)
    assert not third.done()
    assert slots.free == 0
    slots.release()
    await third
    assert slots.busy == 2


async def test_a_large_job_is_not_overtaken_for_ever() -> None:
    slots = Slots(3)
    await acquire(slots)
    large, small = await waiting(slots, 3), await waiting(slots)
    assert not large.done()
    assert not small.done()
    slots.release()
    await large
    assert not small.done()
    slots.release(3)
    await small


async def test_a_job_larger_than_the_host_runs_alone() -> None:
    slots = Slots(2)
    await acquire(slots)
    large = await waiting(slots, 5)
    assert not large.done()
    slots.release()
    await large
    assert (slots.busy, slots.free) == (5, 0)
    other = await waiting(slots)
    assert not other.done()
    slots.release(5)
    await other


async def test_more_slots_are_given_at_once_and_fewer_take_nothing_away() -> None:
    slots = Slots(1)
    await acquire(slots)
    second = await waiting(slots)
    slots.resize(3)
    await second
    assert slots.free == 1
    slots.resize(1)
    assert (slots.busy, slots.free) == (2, 0)
    third = await waiting(slots)
    slots.release()
    await asyncio.sleep(0)
    assert not third.done()
    slots.release()
    await third


async def test_while_it_is_paused_nothing_is_free_but_who_asked_before_gets_its_turn() -> None:
    slots = Slots(2)
    await acquire(slots)
    claimed = await waiting(slots, 2)
    slots.pause()
    slots.pause()
    slots.release()
    await claimed
    slots.release(2)
    assert slots.free == 0
    slots.resize(4)
    room = asyncio.create_task(slots.room())
    await asyncio.sleep(0)
    assert (room.done(), slots.free) == (False, 0)
    slots.resume()
    await room
    assert slots.free == 4


async def test_there_is_room_as_long_as_something_is_free_and_nobody_waits() -> None:
    slots = Slots(2)
    await slots.room()
    slots.take(2)
    room = asyncio.create_task(slots.room())
    large = await waiting(slots, 2)
    slots.release()
    await asyncio.sleep(0)
    assert not room.done()
    large.cancel()
    await room


async def test_what_runs_already_is_counted_and_never_refused() -> None:
    slots = Slots(1)
    slots.take(3)
    assert (slots.busy, slots.free) == (3, 0)
    slots.release(3)
    await acquire(slots)


async def test_a_wait_that_is_given_up_leaves_nothing_behind() -> None:
    slots = Slots(2)
    await acquire(slots)
    large, small = await waiting(slots, 2), await waiting(slots)
    large.cancel()
    await small
    with pytest.raises(asyncio.CancelledError):
        await large
    slots.release(2)
    granted = await waiting(slots)
    assert granted.done()
    assert slots.busy == 1


async def test_slots_that_come_together_with_a_cancel_go_back() -> None:
    slots = Slots(1)
    await acquire(slots)
    unlucky = await waiting(slots)
    slots.release()
    unlucky.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unlucky
    assert slots.busy == 0


@pytest.mark.parametrize("size", [0, -1])
async def test_a_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="slots"):
        Slots(1).resize(size)


async def test_more_cannot_be_given_back_than_was_taken() -> None:
    slots = Slots(2)
    await acquire(slots)
    with pytest.raises(ValueError, match="released"):
        slots.release(2)


@pytest.mark.parametrize("seed", range(20))
async def test_in_any_order_of_events_everyone_gets_in_and_everything_comes_back(seed: int) -> None:
    dice = random.Random(seed)
    slots, got_in = Slots(3), 0

    async def job() -> None:
        nonlocal got_in
        n = dice.randint(1, 5)
        await acquire(slots, n)
        assert slots.busy == n or slots.busy <= most
        try:
            got_in += 1
            for _ in range(dice.randint(0, 3)):
                await asyncio.sleep(0)
        finally:
            slots.release(n)

    most = 6
    jobs = [asyncio.create_task(job()) for _ in range(60)]
    for _ in range(100):
        await asyncio.sleep(0)
        match dice.randint(0, 3):
            case 0:
                slots.resize(dice.randint(1, most))
            case 1:
                slots.pause()
            case 2:
                slots.resume()
            case _:
                dice.choice(jobs).cancel()
    slots.resume()
    ends = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 60)
    assert slots.busy == 0
    assert got_in >= sum(end is None for end in ends)
    assert not [end for end in ends if end is not None and not isinstance(end, asyncio.CancelledError)]
