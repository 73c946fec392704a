"""Commands that many tasks ask at the same moment go to the server in one trip.

A trip costs redis-py more than the command in it: with dozens of jobs in progress this is what bounds
a dispatcher. A command that is alone goes alone, and no command waits for another to be asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

Asked = tuple[Sequence[Any], "asyncio.Future[Any]"]


class Batches:
    """What was asked in one turn of the loop is one batch. Each command has its own answer or error."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: list[Asked] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def ask(self, words: Sequence[Any]) -> Any:
        """The answer. One who stops waiting leaves the others, and the command itself, as they are."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._asked.append((words, answer))
        if len(self._asked) == 1:
            loop.call_soon(self._send)
        return await answer

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
        try:
            answers = await self._answers([words for words, _ in batch])
        except asyncio.CancelledError:
            for _, waiting in batch:
                waiting.cancel()
            raise
        except Exception as error:
            answers = [error] * len(batch)
        for (_, waiting), answer in zip(batch, answers, strict=True):
            if waiting.done():
                continue
            if isinstance(answer, Exception):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)

    async def _answers(self, commands: list[Sequence[Any]]) -> list[Any]:
        if len(commands) == 1:
            return [await self._redis.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
        async with self._redis.pipeline(transaction=False) as pipe:
            for words in commands:
                pipe.execute_command(*words)
            return list(await pipe.execute(raise_on_error=False))
