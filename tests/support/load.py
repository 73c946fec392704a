"""How much of the time that passed this process could not use, since others had the processors."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def waited_s() -> float:
    """What all its threads have waited until now, ready to run; 0 where the kernel does not count it."""
    waited_ns = 0
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it may have ended
            waited_ns += int((thread / "schedstat").read_text().split()[1])
    return waited_ns / 1e9
