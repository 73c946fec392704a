"""The machines that this process knows, by number, and their removal in the background.

What could not be removed is forgotten here, and so found again as a stray.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

from ..errors import VmmsError
from ..machine import Machine
from ..vmms.base import Vmms

log = logging.getLogger(__name__)

FIRST_NUMBER = 1000
"""Tango numbers its machines from here; its clients show the numbers."""

CLOSE_S = 10.0


class Machines:
    """From their making to their removal."""

    def __init__(self, vmms: Vmms, *, wait_s: float, removed: Callable[[str], None]) -> None:
        """`removed` is told the image of each whose removal is over."""
        self._vmms = vmms
        self._wait_s = wait_s
        self._removed = removed
        self._numbers: dict[str, int] = {}
        self._images: dict[str, str] = {}
        self._next_number = count(FIRST_NUMBER)
        self._tasks: set[asyncio.Task[None]] = set()
        self.going: set[str] = set()
        """Those whose removal is under way."""

    def __contains__(self, machine_id: str) -> bool:
        return machine_id in self._numbers

    def enter(self, machine: Machine) -> None:
        self._numbers[machine.id] = next(self._next_number)
        self._images[machine.id] = machine.spec.image

    def number(self, machine: Machine) -> int:
        return self._numbers[machine.id]

    def by_image(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for machine_id, image in self._images.items():
            found[image].append(self._numbers[machine_id])
        return found

    def going_of(self, image: str) -> int:
        return sum(self._images.get(machine_id) == image for machine_id in self.going)

    def discard(self, machine: Machine) -> None:
        """Removes a machine in the background."""
        self.going.add(machine.id)
        self.spawn(self._remove(machine))

    async def _remove(self, machine: Machine) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._vmms.destroy_vm(machine)
        except (VmmsError, TimeoutError) as e:
            log.warning("machine %s could not be removed yet: %s", machine.id, str(e) or "too slow")
        finally:
            self._numbers.pop(machine.id, None)
            self._images.pop(machine.id, None)
            self.going.discard(machine.id)
            self._removed(machine.spec.image)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Does work that nothing waits for but `close`."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a machine: %s", error, exc_info=error)

    async def close(self) -> None:
        """Waits for what is under way, and what follows from it."""
        end = asyncio.get_running_loop().time() + CLOSE_S
        while self._tasks and (left_s := end - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(self._tasks, timeout=left_s)
