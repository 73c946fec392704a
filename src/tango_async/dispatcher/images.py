"""Which images this host has, and whether its engine is well."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from ..errors import VmmsError, VmmsUnavailable
from ..vmms.base import Vmms

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""An engine that has not answered within this time is not well."""


class Images:
    """The engine as last seen. `well` is set while it answers."""

    def __init__(self, vmms: Vmms) -> None:
        self._vmms = vmms
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

    async def replaced(self, name: str) -> None:
        """The name has got another image by our doing: known before anybody is told of it."""
        self._loads[name] += 1
        await self.look()
