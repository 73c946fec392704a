"""The numbers of the whole queue, for those who watch it. Read in one trip, and of no job in particular."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    queued: int
    held: int
    """Assigned or running."""
    lapsed: int
    """Held under a lease that is over, counted up to 100: their dispatcher is gone, and no other has them yet."""
    dead: int
    outbox: int
    """Callbacks that are to be delivered, now or later."""
    overdue_s: float
    """How long the first of them has been due; 0 if none is."""
    unsent: int
    """Callbacks that were given up, of jobs that are still remembered."""
    first_waits_s: float
    """How long the job that is first in the queue has waited since it was added."""
    memory_bytes: int
    memory_limit_bytes: int
    """0: Redis has none."""
    counters: Mapping[str, int]
    """What has happened since Redis's data began."""


def commands(prefix: str) -> list[tuple[Any, ...]]:
    """The first one's answer tells the job that is first in the queue; `read` takes the others'."""
    return [
        ("ZRANGE", f"{prefix}queued", 0, 0),
        ("TIME",),
        *(("ZCARD", prefix + name) for name in ("queued", "held", "dead", "outbox", "unsent")),
        ("ZRANGE", f"{prefix}held", 0, 99, "WITHSCORES"),
        ("ZRANGE", f"{prefix}outbox", 0, 0, "WITHSCORES"),
        ("HGETALL", f"{prefix}counters"),
    ]


def read(answers: Sequence[Any], first_added_ms: int, memory: Mapping[str, str]) -> Figures:
    (seconds, micros), queued, held, dead, outbox, unsent, leases, first_due, counters = answers
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    due_ms = float(first_due[0][1]) if first_due else now_ms
    return Figures(
        queued=queued,
        held=held,
        lapsed=sum(float(end_ms) < now_ms for _, end_ms in leases),
        dead=dead,
        outbox=outbox,
        overdue_s=max(0.0, (now_ms - due_ms) / 1000),
        unsent=unsent,
        first_waits_s=max(0.0, (now_ms - first_added_ms) / 1000) if first_added_ms else 0.0,
        memory_bytes=int(memory.get("used_memory", 0)),
        memory_limit_bytes=int(memory.get("maxmemory", 0)),
        counters={name.decode(): int(value) for name, value in counters.items()},
    )
