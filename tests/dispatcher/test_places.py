"""Which place a dispatcher takes, and what others may do in it. Each opening has its lock, so one process has many."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from tango_async.config import Settings
from tango_async.dispatcher import places
from tango_async.dispatcher.siblings import Siblings
from tango_async.queue.redis import Queue


async def take(root: Path, stack: AsyncExitStack) -> str:
    return (await stack.enter_async_context(places.own_place(root))).name


async def test_the_first_place_that_nobody_has_is_taken(tmp_path: Path) -> None:
    async with AsyncExitStack() as one, AsyncExitStack() as two:
        assert [await take(tmp_path, stack) for stack in (one, two, two)] == ["0", "1", "2"]
        await one.aclose()
        assert await take(tmp_path, two) == "0"


async def test_a_place_that_is_only_looked_through_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_PATIENCE_S", 600.0)
    async with AsyncExitStack() as stack:
        assert await take(tmp_path, stack) == "0"
    async with AsyncExitStack() as stack:
        with places.abandoned(tmp_path / "0") as one, places.abandoned(tmp_path / "0") as another:
            assert one is not None and one == another
            taking = [asyncio.create_task(take(tmp_path, stack)) for _ in range(3)]
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in taking)
        assert sorted(await asyncio.gather(*taking)) == ["0", "1", "2"]


async def test_a_place_is_given_up_to_one_who_hangs_while_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_PATIENCE_S", 0.1)
    (tmp_path / "0").mkdir()
    (tmp_path / "0/lock").touch()
    async with AsyncExitStack() as stack:
        with places.abandoned(tmp_path / "0") as taken_at:
            assert taken_at is not None
            assert await take(tmp_path, stack) == "1"


async def test_nobody_looks_through_a_place_in_which_a_dispatcher_lives_or_never_lived(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        await take(tmp_path, stack)
        with places.abandoned(tmp_path / "0") as lives, places.abandoned(tmp_path / "1") as never:
            assert (lives, never) == (None, None)


async def test_a_place_that_was_taken_meanwhile_is_looked_through_anew(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        async with AsyncExitStack() as stack:
            await take(tmp_path, stack)
        with places.abandoned(tmp_path / "0") as taken_at:
            seen.append(taken_at)
        await asyncio.sleep(0.02)
    assert seen[0] != seen[1]


def test_only_what_a_dispatcher_of_this_host_noted_is_believed(tmp_path: Path) -> None:
    assert places.left(tmp_path) is None
    places.note(tmp_path, "localSandbox")
    places.note(tmp_path, "localDocker")
    assert places.left(tmp_path) == places.Left(socket.gethostname(), "localDocker")
    (tmp_path / "left").write_bytes(msgspec.json.encode(places.Left("elsewhere", "localDocker")))
    assert places.left(tmp_path) is None
    (tmp_path / "left").write_bytes(b"half")
    assert places.left(tmp_path) is None


async def test_a_place_that_cannot_be_looked_through_for_whatever_reason_ends_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    """Such as a back-end of somebody else's that was changed since."""
    own = tmp_path / "0"
    (tmp_path / "1").mkdir()
    (tmp_path / "1/lock").touch()
    places.note(tmp_path / "1", "support.fake_vmms:IMAGE")  # which cannot be called
    stop = asyncio.Event()
    looking = asyncio.create_task(Siblings(settings, Queue(settings), own).run(stop))
    done, _ = await asyncio.wait([looking], timeout=0.2)
    assert not done
    stop.set()
    await looking
