"""The one connection of a process: answers in order, whoever leaves, and whatever becomes of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.redis_server import RedisServer
from tango_async.config import Queue as QueueSettings
from tango_async.config import Settings
from tango_async.errors import QueueUnavailable
from tango_async.queue.line import MOST
from tango_async.queue.redis import Queue

SOON_S = 60.0
"""Patience only: what a test waits for comes at once, or never."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def asked(server: RedisServer) -> AsyncIterator[Queue]:
    queue = Queue(Settings(queue=QueueSettings(url=server.url)), timeout_s=SOON_S)
    await queue.open()
    yield queue
    await queue.close()


async def set_names(queue: Queue, number: int) -> None:
    await asyncio.gather(*(queue._command("SET", f"name{n}", n) for n in range(number)))


async def test_more_than_one_write_is_answered_in_order(asked: Queue) -> None:
    await set_names(asked, 5 * MOST + 1)
    answers = await asyncio.gather(*(asked._command("GET", f"name{n}") for n in range(5 * MOST + 1)))
    assert answers == [b"%d" % n for n in range(5 * MOST + 1)]


async def test_one_who_leaves_takes_no_answer_from_the_others(asked: Queue) -> None:
    await set_names(asked, 3)
    for _ in range(50):
        first, second, third = (asyncio.ensure_future(asked._command("GET", f"name{n}")) for n in range(3))
        await asyncio.sleep(0)
        second.cancel()
        assert (await first, await third) == (b"0", b"2")


async def test_what_was_under_way_when_the_connection_was_lost_is_asked_again(
    asked: Queue, server: RedisServer
) -> None:
    await set_names(asked, 40)
    for _ in range(20):
        asking = [asyncio.ensure_future(asked._command("GET", f"name{n}")) for n in range(40)]
        await asyncio.to_thread(server._ask, "CLIENT", "KILL", "TYPE", "normal")
        assert await asyncio.gather(*asking) == [b"%d" % n for n in range(40)]


async def test_a_connection_that_was_ended_while_nobody_asked_is_made_anew(asked: Queue, server: RedisServer) -> None:
    for _ in range(3):
        await asyncio.to_thread(server._ask, "CLIENT", "KILL", "TYPE", "normal")
        await asyncio.sleep(0.05)
        assert await asked.now_ms() > 0


async def test_a_server_that_was_restarted_meanwhile_has_what_is_asked_next(asked: Queue, server: RedisServer) -> None:
    server.kill()
    with pytest.raises(QueueUnavailable):
        await asked.now_ms()
    server.start()
    assert await asked.now_ms() > 0


async def test_nobody_waits_for_a_server_that_hangs_and_it_is_asked_again_afterwards(
    asked: Queue, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await set_names(asked, 3)
    hurried = Queue(Settings(queue=QueueSettings(url=server.url)), timeout_s=0.3)
    async with asyncio.timeout(SOON_S):
        await opened(hurried)
        server.send(signal.SIGSTOP)
        early = [asyncio.ensure_future(hurried._command("GET", f"name{n}")) for n in range(2)]
        await asyncio.sleep(0)
        monkeypatch.setattr(hurried._server._line, "_timeout_s", SOON_S)
        late = asyncio.ensure_future(hurried._command("GET", "name2"))
        told = await asyncio.gather(*early, return_exceptions=True)
        assert [str(error) for error in told] == ["Redis does not answer"] * 2
        assert not late.done()
        server.send(signal.SIGCONT)
        assert await late == b"2"
        assert await hurried._command("GET", "name0") == b"0"
    await hurried.close()


async def opened(queue: Queue) -> None:
    """However long that takes."""
    while True:
        with suppress(QueueUnavailable):
            return await queue.open()


async def test_one_whose_way_to_the_server_is_longer_than_anybody_waits_is_let_in(server: RedisServer) -> None:
    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                await asyncio.sleep(0.04)
                target.write(data)
        target.close()

    leading: set[asyncio.Task[object]] = set()

    async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(server.socket)
        await asyncio.gather(carry(reader, there[1]), carry(there[0], writer))
        await asyncio.gather(writer.wait_closed(), there[1].wait_closed(), return_exceptions=True)

    def led(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        leading.add(asyncio.create_task(lead(reader, writer)))

    async with await asyncio.start_server(led, "127.0.0.1", 0) as way:
        port = way.sockets[0].getsockname()[1]
        queue = Queue(Settings(queue=QueueSettings(url=f"redis://127.0.0.1:{port}")), timeout_s=0.4)
        async with asyncio.timeout(SOON_S):
            with pytest.raises(QueueUnavailable):
                await queue.open()
            await opened(queue)
        await queue.close()
        await asyncio.gather(*leading)


async def test_who_asks_after_all_tasks_were_cancelled_hears_no_answer_to_another(
    asked: Queue, server: RedisServer
) -> None:
    await set_names(asked, 3)
    server.send(signal.SIGSTOP)
    early = asyncio.ensure_future(asked._command("GET", "name0"))
    await asyncio.sleep(0.05)
    ended = [task for task in asyncio.all_tasks() if task not in (asyncio.current_task(), early)]
    for task in ended:
        task.cancel()
    await asyncio.wait(ended)
    server.send(signal.SIGCONT)
    asking = [asyncio.ensure_future(asked._command("GET", f"name{n}")) for n in (1, 2)]
    assert await asyncio.gather(early, *asking) == [b"0", b"1", b"2"]


async def test_it_can_be_closed_at_whatever_moment_after_its_connection_was_lost(server: RedisServer) -> None:
    for turns in range(8):
        queue = Queue(Settings(queue=QueueSettings(url=server.url)))
        await queue.open()
        server.kill()
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(SOON_S):
            await queue.close()
        server.start()


async def test_who_waits_when_it_is_closed_hears_so(asked: Queue, server: RedisServer) -> None:
    server.send(signal.SIGSTOP)
    waiting = asyncio.ensure_future(asked.now_ms())
    await asyncio.sleep(0.05)
    await asked.close()
    server.send(signal.SIGCONT)
    with pytest.raises(asyncio.CancelledError):
        await waiting
