"""The one connection that all tasks of a process share: commands go out as they are asked, answers come in their order.

What is asked in one turn of the loop goes in one trip, and no command waits for the answer to another. redis-py makes
the connection and reads from it; its pool and its pipelines, which give a connection to one task at a time, cost a
dispatcher with dozens of jobs in progress more than the commands do.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hiredis import pack_command
from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from .address import NotMaster
from .edge import cancels, ours

MOST = 16
"""Commands in one write. The server answers when it has done all that it read, so that this process works on the
answers to one write while the server does the next."""

REPEATS = 3
"""Of a command whose connection was lost."""

PAUSE_S, LONGEST_PAUSE_S = 0.04, 0.25
"""Before a repeat: doubled each time."""

CONNECT_S = 10.0
"""For a connection to be made and greeted, a dozen trips. Whoever asks waits less, but cutting it as short as they wait
would never let in one who is far away."""


class Asked(NamedTuple):
    packed: bytes
    answer: asyncio.Future[Any]
    due_s: float
    """When nobody waits for it any more, by the loop's clock."""


class Line:
    """Each command has its own answer or error, one of ours. `timeout_s` bounds each, repeats included."""

    def __init__(self, connection: AbstractConnection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._asked: list[Asked] = []
        """Not sent yet, or to be sent again."""
        self._unanswered: deque[Asked] = deque()
        self._rung = asyncio.Event()
        self._met = False
        """Whether the connection of the moment was made."""
        self._heard = False
        """Whether an answer has come over it."""
        self._patience: asyncio.Timeout | None = None
        """With it."""
        self._serving: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None

    def ask(self, words: Sequence[Any]) -> asyncio.Future[Any]:
        """The answer to come. One who stops waiting leaves the others, and the command itself, as they are."""
        loop = asyncio.get_running_loop()
        one = Asked(pack_command(tuple(words)), loop.create_future(), loop.time() + self._timeout_s)
        self._asked.append(one)
        self._rung.set()
        if self._serving is None or self._serving.done():
            self._serving = loop.create_task(self._serve())
        if self._watch is None:
            self._watch = loop.call_at(one.due_s, self._look)
        return one.answer

    async def close(self) -> None:
        """Ends what is under way; who waits for it hears that it was cancelled."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait([self._serving])
        for one in self._waiting():
            one.answer.cancel()
        self._asked, self._unanswered = [], deque()
        await self._connection.disconnect()

    async def _serve(self) -> None:
        failures = 0
        while True:
            await self._rung.wait()
            self._met = self._heard = False
            try:
                await self._talk()
            except Exception as error:
                if cancels():
                    # A group that is failing already forgets that it was cancelled.
                    raise asyncio.CancelledError from error
                await self._connection.disconnect(nowait=True)
                failures = 1 if self._heard else failures + 1
                # One that was never made was tried more than once by redis-py.
                if failures > REPEATS or (failures == 1 and not self._met):
                    _tell(self._asked, error)
                    self._asked = []
                if self._asked:
                    self._rung.set()
                    await asyncio.sleep(min(PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S))
                else:
                    self._rung.clear()
                    failures = 0

    async def _talk(self) -> None:
        """Until the connection is lost."""
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._connection.connect()  # type: ignore[no-untyped-call]
            self._met = True
            async with asyncio.timeout(None) as self._patience, asyncio.TaskGroup() as group:
                group.create_task(self._send())
                await self._read()
        except BaseExceptionGroup as lost:
            raise lost.exceptions[0] from None
        finally:
            self._patience = None
            # Also when the task was ended from without: the next connection's answers are not theirs.
            self._asked, self._unanswered = self._waiting(), deque()

    async def _send(self) -> None:
        while True:
            await self._rung.wait()
            self._rung.clear()
            asked, self._asked = self._asked, []
            self._unanswered.extend(asked)
            for first in range(0, len(asked), MOST):
                packed = b"".join([one.packed for one in asked[first : first + MOST]])
                await self._connection.send_packed_command(packed)

    async def _read(self) -> None:
        while True:
            try:
                answer = await self._connection.read_response(timeout=math.inf)
            except (NotMaster, exceptions.ReadOnlyError) as refusal:
                # The next connection goes to the master. Where there is none, a repeat would end that one, too, and all
                # that the others ask over it.
                self._heard = True
                _tell([self._unanswered.popleft()], refusal)
                raise
            except exceptions.ResponseError as refusal:
                answer = refusal
            self._heard = True
            one = self._unanswered.popleft()
            if isinstance(answer, Exception):
                _tell([one], answer)
            elif not one.answer.done():
                one.answer.set_result(answer)

    def _look(self) -> None:
        """Nobody waits longer than was said, and a connection on which somebody waited so long is given up."""
        loop = asyncio.get_running_loop()
        now, asked = loop.time(), [*self._unanswered, *self._asked]
        late = [one for one in asked if one.due_s <= now]
        _tell(late, TimeoutError())
        self._asked = [one for one in self._asked if one.due_s > now]
        if late and self._patience is not None and not self._patience.expired():
            self._patience.reschedule(now)
        self._watch = loop.call_at(asked[len(late)].due_s, self._look) if len(asked) > len(late) else None

    def _waiting(self) -> list[Asked]:
        return [one for one in (*self._unanswered, *self._asked) if not one.answer.done()]


def _tell(asked: Iterable[Asked], error: Exception) -> None:
    """Those who still wait."""
    for one in asked:
        if not one.answer.done():
            one.answer.set_exception(ours(error))
