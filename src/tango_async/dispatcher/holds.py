"""What this dispatcher holds: its claims, extended together, and what the queue says of each.

The queue decides who holds a job; here is only what this process was last told. When Redis is away
nothing is concluded: the machines run on, and the fence in every script drops what came too late.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ..errors import Stale
from ..model import Claim
from ..queue.redis import Answer, Queue


class Cancelled(Exception):
    """Someone wants this job to end."""


class Hold:
    """One held job."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self._told = asyncio.Event()
        self._answer = Answer.OK

    def tell(self, answer: Answer) -> None:
        """STALE is final; a cancel after it means nothing."""
        if answer in (Answer.STALE, Answer.CANCEL) and self._answer is not Answer.STALE:
            self._answer = answer
            self._told.set()

    async def until_told(self) -> None:
        """Raises Stale or Cancelled as soon as the queue has said so; returns never."""
        await self._told.wait()
        self.check(self._answer)

    async def wait(self, turn: asyncio.Future[Any]) -> None:
        """Waits for it as long as the job is to go on. Raises Stale or Cancelled."""
        if turn.done():
            return
        told = asyncio.create_task(self.until_told())
        try:
            await asyncio.wait([turn, told], return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                told.result()
        finally:
            told.cancel()

    @asynccontextmanager
    async def wanted(self) -> AsyncIterator[None]:
        """What is done in it is broken off as soon as the job is not to go on. Raises Stale or Cancelled then."""
        try:
            async with asyncio.TaskGroup() as group:
                told = group.create_task(self.until_told())
                yield
                told.cancel()
        except BaseExceptionGroup as e:
            # The first is the reason; what was broken off may have failed of it.
            reason = e.exceptions[0]
            raise reason from reason.__cause__

    @property
    def stale(self) -> bool:
        return self._answer is Answer.STALE

    @staticmethod
    def check(answer: Answer) -> None:
        """Raises Stale or Cancelled for those answers."""
        if answer is Answer.STALE:
            raise Stale
        if answer is Answer.CANCEL:
            raise Cancelled


class Holds:
    """All of them. `extend` is called every third of a lease, and when the queue rings."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._held: dict[int, Hold] = {}

    def __len__(self) -> int:
        return len(self._held)

    def add(self, claim: Claim) -> Hold:
        if (lost := self._held.get(claim.id)) is not None:
            # Claimed again by the one that lost it: the earlier hold is over, and would never hear so.
            lost.tell(Answer.STALE)
        hold = self._held[claim.id] = Hold(claim)
        return hold

    def drop(self, hold: Hold) -> None:
        if self._held.get(hold.claim.id) is hold:
            del self._held[hold.claim.id]

    async def extend(self) -> None:
        """One call for all. Raises QueueUnavailable, and then nothing has changed here."""
        holds = list(self._held.values())
        if holds:
            answers = await self._queue.extend([(h.claim.id, h.claim.seq) for h in holds])
            for hold, answer in zip(holds, answers, strict=True):
                hold.tell(answer)
