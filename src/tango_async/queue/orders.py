"""What operators want of each dispatcher while it runs: to pause, and how many slots it has."""

from __future__ import annotations

from ..model import HostOrders
from .asking import Asking


class Orders(Asking):
    async def pause(self, install: str, paused: bool) -> bool:
        """Whether the dispatcher may claim jobs; rings it. False: no dispatcher is known by that install.

        One that paused by itself claims again when it is resumed.
        """
        return bool(await self._run("order", install, "paused", "1" if paused else ""))

    async def set_slots(self, install: str, slots: int | None) -> bool:
        """How many slots it has; None: what its settings say. Rings it. False: it is not known."""
        return bool(await self._run("order", install, "slots", slots or ""))

    async def orders(self, install: str) -> HostOrders:
        """What is wanted of it now. Raises QueueUnavailable."""
        key = f"{self._prefix}orders:{install}"
        paused, slots, resumed = await self._command("HMGET", key, "paused", "slots", "resumed")
        return HostOrders(paused=paused is not None, slots=int(slots) if slots else None, resumed=int(resumed or 0))
