"""How quiet it was around a quiet job: what Linux counted on its cores, beside what the job itself used.

Counted in hundredths of a second by /proc/stat; the job's own time by its machine's control group, as
the back-end knows it. Where a machine's count goes with its end, the last look before counts.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import VmmsError
from ..machine import Machine, Usage
from ..vmms.base import Vmms
from .cores import numbers

FIRST_LOOK_S, PERIOD_S = 0.2, 1.0
LOOK_S = 5.0
"""A back-end that takes longer tells nothing."""

_TICKS_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Look:
    """The counters at one moment; seconds."""

    at_s: float
    busy_s: float
    stolen_s: float
    used: Usage | None


class Watch:
    """Of one machine's cores."""

    def __init__(self, vmms: Vmms, machine: Machine) -> None:
        self._vmms = vmms
        self._machine = machine
        self._cores = numbers(machine.spec.cpuset)
        self._first: Look | None = None
        self._last: Look | None = None

    async def go_on(self) -> None:
        """Looks now and then, until it is cancelled."""
        pause_s = FIRST_LOOK_S
        while True:
            await asyncio.sleep(pause_s)
            await self.look()
            pause_s = PERIOD_S

    async def look(self) -> None:
        used: Usage | None = None
        with suppress(VmmsError, TimeoutError):
            async with asyncio.timeout(LOOK_S):
                used = await self._vmms.usage(self._machine)
        look = Look(time.monotonic(), *_counted(self._cores), used)
        if self._first is None:
            self._first = look
        elif used is not None or self._last is None or self._last.used is None:
            self._last = look

    async def over(self) -> str:
        """One line for the feedback and the trace: what came of it all."""
        await self.look()
        return self._said()

    def _said(self) -> str:
        first, last = self._first, self._last
        head = f"Quiet cores {self._machine.spec.cpuset}"
        if first is None or last is None:
            return f"{head}: the job was too short to be measured"
        busy_s, stolen_s = last.busy_s - first.busy_s, last.stolen_s - first.stolen_s
        during = f"{head}: in {last.at_s - first.at_s:.2f} s"
        if first.used is None or last.used is None:
            return f"{during} they were busy for {busy_s:.2f} s, {stolen_s:.2f} s were stolen"
        used_s = last.used.cpu_s - first.used.cpu_s
        throttled_s = last.used.throttled_s - first.used.throttled_s
        return (
            f"{during} the job used {used_s:.2f} s and was throttled for {throttled_s:.3f} s,"
            f" others used {max(0.0, busy_s - used_s):.2f} s, {stolen_s:.2f} s were stolen"
        )


def _counted(cores: set[int]) -> tuple[float, float]:
    """Seconds that the cores have been busy, and that the hypervisor gave to others, since the boot."""
    busy = stolen = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *counts = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, irq, softirq, steal = map(int, counts[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
    return busy * _TICKS_S, stolen * _TICKS_S


@asynccontextmanager
async def watched(vmms: Vmms, machine: Machine, *, wait_s: float) -> AsyncIterator[Watch]:
    """Watches a quiet job's cores. In the end its machine is gone, so that its cores are free.

    Not if the caller is cancelled: then the machine may run on, for the next dispatcher.
    """
    watch = Watch(vmms, machine)
    await watch.look()
    going_on = asyncio.create_task(watch.go_on())
    try:
        yield watch
    except asyncio.CancelledError:
        raise
    except BaseException:
        await _remove(vmms, machine, wait_s)
        raise
    else:
        await _remove(vmms, machine, wait_s)
    finally:
        going_on.cancel()


async def _remove(vmms: Vmms, machine: Machine, wait_s: float) -> None:
    with suppress(VmmsError, TimeoutError):  # the pool and the upkeep try again
        async with asyncio.timeout(wait_s):
            await vmms.destroy_vm(machine)
