"""Finds machines in this dispatcher's place that its pool does not know: a creating call that failed left them.

One that an earlier dispatcher left with a live job is followed: its host was out of reach at the start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ..errors import QueueUnavailable, VmmsError
from ..machine import Machine
from ..vmms.base import Vmms
from .pool import Pool

log = logging.getLogger(__name__)

MARGIN = 1.1


class Strays:
    """A machine is a stray when it has been unknown for longer than making one may take (`wait_s`)."""

    def __init__(
        self, vmms: Vmms, pool: Pool, adopt: Callable[[Machine], Awaitable[bool]], *, period_s: float, wait_s: float
    ) -> None:
        self._vmms = vmms
        self._pool = pool
        self._adopt = adopt
        self._period_s = period_s
        self._wait_s = wait_s
        self._seen: dict[str, float] = {}

    async def run(self, done: asyncio.Event) -> None:
        """Until told to stop; what is handed over then is left alone."""
        while not done.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), self._period_s)
            if not done.is_set():
                with suppress(VmmsError, TimeoutError, QueueUnavailable):
                    self.look_at([one for one in await self._unknown() if not await self._followed(one)])

    async def _unknown(self) -> list[Machine]:
        async with asyncio.timeout(self._wait_s):
            return [machine for machine in await self._vmms.get_vms() if not self._pool.owns(machine.id)]

    async def _followed(self, machine: Machine) -> bool:
        """Asked once of each machine that turns up. Raises QueueUnavailable."""
        return machine.id not in self._seen and await self._adopt(machine)

    def look_at(self, unknown: list[Machine]) -> None:
        now = time.monotonic()
        self._seen = {machine.id: self._seen.get(machine.id, now) for machine in unknown}
        for machine in unknown:
            if now - self._seen[machine.id] > self._wait_s * MARGIN:
                log.warning("machine %s belongs to no job and is removed", machine.id)
                self._pool.discard(machine)
