"""Removes what dead dispatchers of this host left and no live job owns, until somebody takes their places.

A machine whose job still counts on it is left alone: the next dispatcher in that place may adopt it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import cast

import msgspec

from ..config import Settings
from ..errors import ConfigError, QueueUnavailable, VmmsError
from ..machine import Machine
from ..queue.redis import Queue
from ..vmms.base import CloudVmms, ManyHosts, Vmms, load
from . import places

log = logging.getLogger(__name__)


class Siblings:
    """The other places beside `own`. A back-end is open for each as long as there may be something in it."""

    def __init__(self, settings: Settings, queue: Queue, own: Path) -> None:
        self._settings = settings
        self._queue = queue
        self._own = own
        self._opened: dict[Path, Vmms] = {}
        self._since: dict[Path, tuple[int, float]] = {}
        """Place → when it was last taken, and when it was first found abandoned after that."""
        self._clean: dict[Path, int] = {}
        """Places with nothing in them, and when each was last taken; as long as that is true, so is the first."""

    async def run(self, stop: asyncio.Event) -> None:
        """Looks every `upkeep_s`, until told to stop. What goes wrong is tried again."""
        try:
            while not stop.is_set():
                for place in sorted(self._own.parent.glob("[0-9]*")):
                    if place != self._own and not stop.is_set():
                        await self._look_at(place)
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._settings.dispatcher.upkeep_s)
        finally:
            for place in list(self._opened):
                await self._close(place)

    async def _look_at(self, place: Path) -> None:
        with places.abandoned(place) as taken_at:
            left = places.left(place)
            if taken_at is None or left is None:
                await self._close(place)
                return
            if self._clean.get(place) == taken_at:
                return
            try:
                async with asyncio.timeout(places.LOOK_THROUGH_S):
                    machines = await self._look_through(place, left.vmms)
            except Exception as e:  # whatever it is, this dispatcher's jobs do not depend on it
                ours = None if isinstance(e, VmmsError | ConfigError | QueueUnavailable | OSError) else e
                said = "what a dead dispatcher left in %s is not known yet: %s"
                log.warning(said, place, str(e) or "too slow", exc_info=ours)
                await self._close(place)
                return
            if machines == 0 and self._waited(place, taken_at):
                self._clean[place] = taken_at
                await self._close(place)

    def _waited(self, place: Path, taken_at: int) -> bool:
        """Whether the place has been abandoned for as long as an engine may be busy with a call of the dead."""
        now = time.monotonic()
        if self._since.get(place, (0, now))[0] != taken_at:
            self._since[place] = (taken_at, now)
        return now - self._since[place][1] > self._settings.dispatcher.machine_wait_s

    async def _look_through(self, place: Path, name: str) -> int:
        """Removes what no live job counts on; answers how many machines, and hosts or accounts that may hide some,
        there were."""
        vmms = self._opened.get(place)
        if vmms is None:
            dispatcher = msgspec.structs.replace(self._settings.dispatcher, state_dir=place)
            settings = msgspec.structs.replace(self._settings, dispatcher=dispatcher)
            vmms = self._opened[place] = load(name, settings, places.install_id(place))
            await vmms.open()
        machines = await vmms.get_vms()
        busy = await self._queue.counted_on([machine.id for machine in machines])
        await asyncio.gather(*(_remove(vmms, machine) for machine in machines if machine.id not in busy))
        unseen = sum(not host.healthy for host in vmms.hosts()) if isinstance(vmms, ManyHosts) else 0
        if vmms.capabilities.clouds:
            unseen += cast(CloudVmms, vmms).unseen()
        return len(machines) + unseen

    async def _close(self, place: Path) -> None:
        if (vmms := self._opened.pop(place, None)) is not None:
            with suppress(VmmsError):
                await vmms.close()


async def _remove(vmms: Vmms, machine: Machine) -> None:
    log.warning("machine %s of a dead dispatcher belongs to no job and is removed", machine.id)
    await vmms.destroy_vm(machine)
