"""The processor cores of this host: some kept for quiet jobs, the others for all else.

The division is made at the start and stays. A quiet job has its cores to itself until its machine is
gone. What the kernel and other services do on them is not ours to forbid; quiet.py tells of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError
from .slots import Slots

ONLINE = Path("/sys/devices/system/cpu/online")


class Cores:
    """`quiet_cores` as in the settings. Raises ConfigError if this host cannot be divided so."""

    def __init__(self, quiet_cores: str) -> None:
        self._quiet = numbers(quiet_cores)
        self._others: set[int] = set()
        if self._quiet:
            there = numbers(ONLINE.read_text())
            if not self._quiet < there:
                raise ConfigError(
                    f"dispatcher.quiet_cores: this host has the cores {listed(there)}, and one must be left for others"
                )
            self._others = there - self._quiet
        self._free = set(self._quiet)
        self.turns = Slots(len(self._quiet))
        """Whose turn it is to `pick` some."""

    @property
    def ordinary(self) -> str:
        """The cpuset of all that is not quiet; empty (any core) where there are no quiet cores."""
        return listed(self._others)

    @property
    def capacity(self) -> int:
        """How many cores quiet jobs may have together."""
        return len(self._quiet)

    @contextmanager
    def pick(self, n: int) -> Iterator[str]:
        """The cpuset of `n` quiet cores, or of all if there are fewer, for who has had as many `turns`."""
        mine = set(sorted(self._free)[:n])
        with self.hold(listed(mine)) as cpuset:
            yield cpuset

    @contextmanager
    def hold(self, cpuset: str) -> Iterator[str]:
        """Takes those of the cpuset that are quiet cores, as for a machine that runs on them already."""
        mine = numbers(cpuset) & self._free
        self._free -= mine
        try:
            yield cpuset
        finally:
            self._free |= mine

    def leave(self) -> None:
        """Moves this process, and what it starts from now on, to the ordinary cores.

        Raises ConfigError if it may not use the cores that it is to divide, as in a container with fewer.
        """
        for cores in (self._quiet, self._others) if self._quiet else ():
            try:
                for thread in Path("/proc/self/task").iterdir():
                    os.sched_setaffinity(int(thread.name), cores)
            except OSError as e:
                raise ConfigError(f"dispatcher.quiet_cores: the cores {listed(cores)}: {e.strerror}") from e
            if (ours := os.sched_getaffinity(0)) != cores:
                raise ConfigError(f"dispatcher.quiet_cores: of {listed(cores)} only {listed(ours)} may be used here")


def numbers(cpuset: str) -> set[int]:
    """The cores of a list such as `0,2-3`."""
    parts = [part.split("-") for part in cpuset.strip().split(",") if part]
    return {core for part in parts for core in range(int(part[0]), int(part[-1]) + 1)}


def listed(cores: Iterable[int]) -> str:
    """The list, each core by itself."""
    return ",".join(map(str, sorted(cores)))
