"""A hold breaks off what nobody wants any more, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from support.jobs import spec
from tango_async.dispatcher.holds import Cancelled, Hold
from tango_async.errors import MachineLost, Stale
from tango_async.model import Claim
from tango_async.queue.redis import Answer


@pytest.fixture
def hold() -> Hold:
    return Hold(Claim(id=1, seq=1, attempt=1, added_ms=0, spec=spec()))


@pytest.mark.parametrize(("answer", "reason"), [(Answer.CANCEL, Cancelled), (Answer.STALE, Stale)])
async def test_what_is_not_wanted_is_broken_off_for_the_reason_told(
    hold: Hold, answer: Answer, reason: type[Exception]
) -> None:
    cleared = False
    asyncio.get_running_loop().call_soon(hold.tell, answer)
    with pytest.raises(reason):
        async with hold.wanted():
            try:
                await asyncio.Event().wait()
            finally:
                cleared = True
                raise MachineLost("of being broken off")
    assert cleared


async def test_who_was_told_before_is_broken_off_where_it_first_waits(hold: Hold) -> None:
    hold.tell(Answer.CANCEL)
    with pytest.raises(Cancelled):
        async with hold.wanted():
            await asyncio.Event().wait()


async def test_what_fails_by_itself_fails_with_its_own_error(hold: Hold) -> None:
    why = OSError("the reason of that")
    with pytest.raises(MachineLost, match="by itself") as caught:
        async with hold.wanted():
            raise MachineLost("by itself") from why
    assert caught.value.__cause__ is why


async def test_a_dispatcher_that_stops_stops_it(hold: Hold) -> None:
    async def work() -> None:
        async with hold.wanted():
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_ends_well_leaves_nobody_that_listens(hold: Hold) -> None:
    before = asyncio.all_tasks()
    async with hold.wanted():
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    hold.tell(Answer.CANCEL)
    await asyncio.sleep(0)
