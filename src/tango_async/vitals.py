"""How this process feels: how late its event loop is, how much memory it holds and could have."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

TICK_S = 0.25
WORST_OF = 240
"""Ticks that `lag_s` looks back on: a minute's, so that a reader who comes by once a minute misses nothing."""


class Vitals:
    """Felt as long as `watch` runs."""

    def __init__(self) -> None:
        self._lags = [0.0] * WORST_OF

    @property
    def lag_s(self) -> float:
        """The longest that a callback which was due has had to wait in the last minute."""
        return max(self._lags)

    async def watch(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        tick = 0
        while True:
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            self._lags[tick % WORST_OF] = max(0.0, loop.time() - due)
            tick += 1


def available_bytes() -> int:
    """Memory that programs on this host can still have without swapping; no limit where the kernel does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return sys.maxsize


def rss_bytes() -> int:
    """Resident memory; 0 where the kernel does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
