"""Commands that many tasks ask at the same moment go to the server in one trip.

A trip costs more than the command in it: with dozens of jobs in progress this is what bounds a dispatcher. A command
that is alone goes alone, and no command waits for another to be asked. redis-py has the connections; the trips are
made here, since its pipelines pack in Python what hiredis packs in C, and set a timer for each answer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

from hiredis import pack_command
from redis import exceptions
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection

from .edge import ours

Asked = tuple[bytes, "asyncio.Future[Any]"]
"""A command as it is sent, and who waits for its answer."""


class Batches:
    """What was asked in one turn of the loop is one batch. Each command has its own answer or error, one of ours.

    `timeout_s` bounds each, repeats included.
    """

    def __init__(self, pool: BlockingConnectionPool, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._asked: list[Asked] = []
        self._sending: set[asyncio.Task[None]] = set()

    def ask(self, words: Sequence[Any]) -> asyncio.Future[Any]:
        """The answer to come. One who stops waiting leaves the others, and the command itself, as they are."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._asked.append((pack_command(tuple(words)), answer))
        if len(self._asked) == 1:
            loop.call_soon(self._send)
        return answer

    async def close(self) -> None:
        """Ends what is under way; who waits for it hears that it was cancelled."""
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)

    def _send(self) -> None:
        batch, self._asked = self._asked, []
        task = asyncio.create_task(self._answer(batch))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _answer(self, batch: list[Asked]) -> None:
        # Whatever redis-py does with a cancellation, nobody waits longer.
        late = asyncio.get_running_loop().call_later(self._timeout_s, _tell, batch, repeat(TimeoutError()))
        try:
            _tell(batch, await self._trip([packed for packed, _ in batch]))
        except asyncio.CancelledError:
            for _, waiting in batch:
                waiting.cancel()
            raise
        except Exception as error:
            _tell(batch, repeat(error))
        finally:
            late.cancel()

    async def _trip(self, packed: Sequence[bytes]) -> list[Any]:
        """Their answers, of which some may be redis-py's errors. Repeated as a whole when the connection is lost."""
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            answers: list[Any] = await connection.retry.call_with_retry(
                lambda: _exchange(connection, packed), lambda _: connection.disconnect()
            )
        finally:
            await self._pool.release(connection)
        return answers


async def _exchange(connection: AbstractConnection, packed: Sequence[bytes]) -> list[Any]:
    await connection.send_packed_command(b"".join(packed))
    try:
        async with asyncio.timeout(connection.socket_timeout):
            return [await _answer(connection) for _ in packed]
    except TimeoutError as e:
        raise exceptions.TimeoutError("no answer") from e


async def _answer(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response(timeout=math.inf)
    except exceptions.ResponseError as e:
        return e


def _tell(batch: Sequence[Asked], answers: Iterable[Any]) -> None:
    """Those who still wait."""
    for (_, waiting), answer in zip(batch, answers, strict=False):
        if waiting.done():
            continue
        if isinstance(answer, Exception):
            waiting.set_exception(ours(answer))
        else:
            waiting.set_result(answer)
