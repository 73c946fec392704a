"""Which images this host has, whether its engine is well, and loading archives that were ordered."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from ..errors import NotFound, QueueUnavailable, StoreError, VmmsError, VmmsUnavailable
from ..files.base import FileStore
from ..queue.redis import Queue
from ..vmms.base import Vmms

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""An engine that has not answered within this time is not well."""

LOAD_S = 1800.0
"""Longest time for loading an image."""


class Images:
    """The engine as last seen. `well` is set while it answers."""

    def __init__(self, queue: Queue, store: FileStore, vmms: Vmms, install: str) -> None:
        self._queue = queue
        self._store = store
        self._vmms = vmms
        self._install = install
        self._loading: set[tuple[str, str]] = set()
        self._loads: Counter[str] = Counter()
        self._ids: dict[str, str] = {}
        self.names: list[str] = []
        self.problem = ""
        self.well = asyncio.Event()

    @property
    def healthy(self) -> bool:
        return self.well.is_set()

    def version(self, name: str) -> str:
        """Changes when the name gets another image: by a load before anybody is told of it, else when it is seen."""
        return f"{self._loads[name]} {self._ids.get(name, '')}"

    async def look(self) -> None:
        """Asks the engine for its images; one that does not answer is not well until it does again."""
        try:
            async with asyncio.timeout(LOOK_S):
                self.names = await self._vmms.get_images()
                if self._vmms.capabilities.image_ids:
                    self._ids = await self._vmms.image_ids()
        except (VmmsError, TimeoutError) as e:
            self._say(str(e) or "the engine does not answer")
        else:
            if self.problem:
                log.warning("the engine is well again")
            self.problem = ""
            self.well.set()

    def lost(self, error: VmmsUnavailable) -> None:
        """An attempt found the engine away."""
        self._say(str(error))

    def _say(self, problem: str) -> None:
        if not self.problem:
            log.error("no job is claimed until the engine is well: %s", problem)
        self.problem = problem
        self.well.clear()

    async def load_ordered(self) -> None:
        """Loads every ordered archive that this install has not tried yet."""
        if not self._vmms.capabilities.load_images:
            return
        try:
            for order, verdicts in (await self._queue.build_orders()).items():
                if self._install not in verdicts and order not in self._loading:
                    self._loading.add(order)
                    try:
                        await self._queue.built(*order, self._install, await self._load(*order))
                    finally:
                        self._loading.discard(order)
        except QueueUnavailable as e:
            log.warning("image orders cannot be read: %s", e)

    async def _load(self, image: str, ref: str) -> str:
        try:
            archive = await self._store.image(ref)
            async with asyncio.timeout(LOAD_S):
                await self._vmms.load_image(image, archive.read())
            self._loads[image] += 1
            await self.look()
        except (VmmsError, StoreError, NotFound, TimeoutError) as e:
            log.error("image %s could not be loaded: %s", image, e or "too slow")
            return str(e) or "loading took too long"
        log.info("image %s was loaded", image)
        return ""
