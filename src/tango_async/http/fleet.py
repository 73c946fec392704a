"""What the dispatchers have published of themselves: their images, machines and whether they live."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..model import DispatcherRecord, class_name
from ..queue.redis import Queue

FRESH_S = 1.0
LIVE_S = 30.0
"""A dispatcher publishes itself every few seconds; after so long without it is taken for dead."""


class Fleet:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._images: frozenset[str] = frozenset()
        self._offered: frozenset[str] = frozenset()
        self._slots = 0
        self._read_at = float("-inf")

    async def all(self) -> list[DispatcherRecord]:
        """Every dispatcher that ever published itself."""
        records = await self._queue.dispatchers()
        self._images = frozenset(image for record in records for image in record.images)
        working = [record for record in records if works(record)]
        self._offered = frozenset(offer for record in working for offer in _offers(record))
        self._slots = sum(record.slots for record in working)
        self._read_at = time.monotonic()
        return records

    async def find(self, name: str) -> list[DispatcherRecord]:
        """The dispatcher of that install, or all on the host of that name, also dead ones."""
        found = [record for record in await self.all() if name in (record.install, record.host)]
        return sorted(found, key=lambda record: (record.host, record.install))

    async def live(self) -> list[DispatcherRecord]:
        """Those that have published themselves lately."""
        return [record for record in await self.all() if lives(record)]

    async def offers(self) -> tuple[int, frozenset[str]]:
        """The slots of all dispatchers that work, and the requirement classes that they offer; as of a second ago."""
        if time.monotonic() - self._read_at >= FRESH_S:
            await self.all()
        return self._slots, self._offered

    def offered(self, kind: str) -> bool:
        """Whether a dispatcher that works offered the requirement class when `may_run` was asked."""
        return kind in self._offered

    async def may_run(self, image: str) -> bool:
        """Whether a job that wants the image can be accepted.

        It can if any dispatcher, even a dead one, has the image, and also if there has never been a
        dispatcher: then nobody knows, and the job waits. Never refuses by old knowledge.
        """
        if image in self._images and time.monotonic() - self._read_at < FRESH_S:
            return True
        records = await self.all()
        return not records or image in self._images

    async def has(self, image: str) -> bool:
        """Whether any dispatcher has the image."""
        await self.all()
        return image in self._images


def _offers(record: DispatcherRecord) -> Iterator[str]:
    """Requirement classes."""
    for image in record.images:
        yield class_name(image)
        if record.quiet_cores:
            yield class_name(image, quiet=True)


def lives(record: DispatcherRecord) -> bool:
    return record.age_s < LIVE_S


def works(record: DispatcherRecord) -> bool:
    """Whether it lives and claims jobs."""
    return lives(record) and not record.paused
