"""What the dispatchers have published of themselves: their images, machines and whether they live."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ..model import EVERY_IMAGE, DispatcherRecord, parts_of
from ..queue.redis import Queue

FRESH_S = 1.0
LIVE_S = 30.0
"""A dispatcher publishes itself every few seconds; after so long without it is taken for dead."""


class Fleet:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._images: frozenset[str] = frozenset()
        self._working: list[DispatcherRecord] = []
        self._slots = 0
        self._read_at = float("-inf")

    async def all(self) -> list[DispatcherRecord]:
        """Every dispatcher that ever published itself."""
        records = await self._queue.dispatchers()
        self._images = frozenset(image for record in records for image in record.images)
        self._working = [record for record in records if works(record)]
        self._slots = sum(record.slots for record in self._working)
        self._read_at = time.monotonic()
        return records

    async def find(self, name: str) -> list[DispatcherRecord]:
        """The dispatcher of that install, or all on the host of that name, also dead ones."""
        found = [record for record in await self.all() if name in (record.install, record.host)]
        return sorted(found, key=lambda record: (record.host, record.install))

    async def live(self) -> list[DispatcherRecord]:
        """Those that have published themselves lately."""
        return [record for record in await self.all() if lives(record)]

    async def offers(self, kinds: Iterable[str]) -> tuple[int, frozenset[str]]:
        """The slots of all dispatchers that work, and which of the classes they offer; as of a second ago."""
        if time.monotonic() - self._read_at >= FRESH_S:
            await self.all()
        return self._slots, frozenset(kind for kind in kinds if self.offered(kind))

    def offered(self, kind: str) -> bool:
        """Whether a dispatcher that works offered the requirement class when `may_run` or `offers` was asked."""
        image, quiet, labels = parts_of(kind)
        return any(
            image in record.images
            and image not in record.shut
            and (record.quiet_cores > 0 or not quiet)
            and labels.issubset(record.labels)
            for record in self._working
        )

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


def lives(record: DispatcherRecord) -> bool:
    return record.age_s < LIVE_S


def fails(record: DispatcherRecord) -> bool:
    """Whether it takes no jobs, but one to try now and then, since too many failed."""
    return EVERY_IMAGE in record.shut or bool(record.images and record.shut.keys() >= set(record.images))


def works(record: DispatcherRecord) -> bool:
    """Whether it lives and claims jobs."""
    return lives(record) and not record.paused and not fails(record)
