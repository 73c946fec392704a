"""Asks the queue for jobs whenever there is room for some, and listens to its bells when it has none for that room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

from ..config import Settings
from ..errors import QueueUnavailable
from ..model import Claim
from ..queue.bells import Bells
from ..queue.redis import Queue
from .offers import Offers
from .pool import Pool
from .waits import either, end, wake_on

log = logging.getLogger(__name__)

LISTEN_S = 2.0
"""A bell that was lost costs a waiting job this long."""

PAUSE_S = 0.5
"""After Redis could not be reached."""


class Claiming:
    """`take` hears of each job that is this dispatcher's from then on."""

    def __init__(
        self, settings: Settings, queue: Queue, instance: str, offers: Offers, pool: Pool, take: Callable[[Claim], None]
    ) -> None:
        self._queue = queue
        self._instance = instance
        self._offers = offers
        self._pool = pool
        self._take = take
        self._bells = Bells(settings)

    async def until(self, stop: asyncio.Event) -> None:
        waker = asyncio.create_task(wake_on(stop, self._bells))
        request = uuid4().hex
        try:
            while not stop.is_set():
                if not self._offers.ready:
                    await either(self._offers.room(), stop)
                    continue
                self._pool.roomier.clear()
                filled = []
                try:
                    for room, most in self._offers.now():
                        filled.append(await self._claim(request, room, most) >= most)
                        request = uuid4().hex
                except QueueUnavailable as e:
                    # The same request again: had the claim been made, its answer is repeated.
                    log.warning("no job can be claimed: %s", e)
                    await either(asyncio.sleep(PAUSE_S), stop)
                    continue
                if not filled or not all(filled):
                    await self._listen(stop)
        finally:
            await end(waker)

    async def _claim(self, request: str, room: dict[str, int], most: int) -> int:
        """Answers the slots that what was claimed wants."""
        claims = await self._queue.claim(self._instance, request, room, most)
        for claim in claims:
            self._take(claim)
        return sum(claim.spec.slots for claim in claims)

    async def _listen(self, stop: asyncio.Event) -> None:
        classes = [name for room, _ in self._offers.now() for name in room]
        waker = asyncio.create_task(wake_on(self._pool.roomier, self._bells))
        try:
            if classes and not stop.is_set():
                await self._bells.wait_classes(classes, LISTEN_S)
            elif not classes:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LISTEN_S):
                        await either(self._pool.roomier.wait(), stop)
        except QueueUnavailable as e:
            log.warning("the queue's bells cannot be heard: %s", e)
            await either(asyncio.sleep(PAUSE_S), stop)
        finally:
            await end(waker)

    async def close(self) -> None:
        await self._bells.close()
