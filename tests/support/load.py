"""How much of the time that passed a thread could not use, since others had the processors."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def waited_s() -> float:
    """What the calling thread has waited until now, ready to run; 0 where the kernel does not count it.

    No other thread's: several wait at the same time, so that theirs together may be more than has passed.
    """
    with suppress(OSError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0
