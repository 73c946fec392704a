"""The kinds of jobs of a soak: what each does, and what its feedback must say if nothing went wrong.

Every program begins and ends with a line in a file that only the soak's own configuration shows it,
with a name that it draws itself; the same name stands in its output. So starts are counted, and a
feedback is matched with the run that wrote it, without a word of the service's own bookkeeping.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass

STARTS = "/soak-starts"
"""Where a program finds the file."""

RUN = re.compile(rb"^run ([0-9a-f-]{36})$", re.MULTILINE)

TOP = """\
run := $(shell cat /proc/sys/kernel/random/uuid)
began := $(shell echo "{token} $(run) start $$(date +%s.%N)" >> {starts})
all:
\t@echo run $(run)
"""
BOTTOM = """\
\t@echo "{token} $(run) end $$(date +%s.%N)" >> {starts}
\t@echo over
"""

RETURNED = b": Success: Autodriver returned normally\n"
TIMED_OUT = b"Error: Job timed out after %d seconds\n"
TOO_LONG = b"Error: Output exceeded "
CANCELLED = b": Error: Job was cancelled\n"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind. `finishes` is whether its program comes to its last line."""

    name: str
    weight: int
    recipe: str
    timeout_s: int
    says: tuple[bytes, ...]
    finishes: bool = True
    files: tuple[tuple[str, bytes], ...] = ()
    """Its inputs beside the Makefile, by name."""


def _ticks(number: int) -> str:
    return f"@i=0; while [ $$i -lt {number} ]; do i=$$((i+1)); echo tick $$i; sleep 0.5; done"


LONG_TICKS = (4, 8, 14)
BIG = random.Random(0).randbytes(6 * 1024**2)
"""Comes to a bucket in more than one part."""

KINDS = [
    Kind("short", 44, "@echo hello", 20, (RETURNED, b"status 0\n", b"hello\nover\n")),
    Kind("bytes", 4, r"@printf '\033[2J\000\377\r\b--- \n'", 20, (RETURNED, b"\x1b[2J\x00\xff", b"over\n")),
    Kind("failing", 4, "@exit 3", 20, (RETURNED, b"status 2\n"), finishes=False),
    *(
        Kind(f"long-{n}", 7, _ticks(n), 30, (RETURNED, b"".join(b"tick %d\n" % i for i in range(1, n + 1)) + b"over\n"))
        for n in LONG_TICKS
    ),
    Kind("overlong", 4, "@sleep 60", 2, (TIMED_OUT % 2,), finishes=False),
    Kind("stubborn", 4, "@trap '' TERM INT HUP QUIT; while :; do sleep 1; done", 2, (TIMED_OUT % 2,), finishes=False),
    Kind("bomb", 2, "@bomb() { bomb | bomb & }; bomb; sleep 60", 3, (b"Autograder [",), finishes=False),
    Kind("flood", 3, "@yes " + "flooding" * 12, 20, (TOO_LONG,), finishes=False),
    Kind(
        "daemon",
        5,
        "@setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' >/dev/null 2>&1 & echo left",
        20,
        (RETURNED, b"left\nover\n"),
    ),
    Kind(
        "filler", 3, "@dd if=/dev/zero of=big bs=1M count=200 2>/dev/null || echo full", 20, (RETURNED, b"full\nover\n")
    ),
    Kind(
        *("big", 2, "@md5sum <big | cut -c 1-32", 20),
        (RETURNED, hashlib.md5(BIG).hexdigest().encode() + b"\nover\n"),
        files=(("big", BIG),),
    ),
    Kind("replaced", 5, "@echo as added", 20, (RETURNED, b"as added\nover\n")),
    Kind("cancelled", 3, _ticks(14), 30, (), finishes=False),
]
BY_NAME = {kind.name: kind for kind in KINDS}

POISON = b"all:\n\t@echo these files came after the job was added\n"


def draw(chance: random.Random, number: int) -> list[Kind]:
    """So many kinds, by their weights; every kind is there if the number allows it."""
    some = chance.choices(KINDS, [kind.weight for kind in KINDS], k=max(number - len(KINDS), 0))
    kinds = (KINDS[: min(number, len(KINDS))]) + some
    chance.shuffle(kinds)
    return kinds


def makefile(kind: Kind, token: str) -> bytes:
    words = {"token": token, "starts": STARTS}
    return (TOP.format(**words) + f"\t{kind.recipe}\n" + BOTTOM.format(**words)).encode()


def fault(kind: Kind, job_id: int, name: str, feedback: bytes) -> str:
    """What is wrong with a feedback; empty if nothing."""
    if not feedback.startswith(b"Autograder ["):
        return "has no header"
    cancelled = kind.name == "cancelled"
    if cancelled and CANCELLED in feedback:
        return ""
    if f"Received job {name}:{job_id}\n".encode() not in feedback:
        return "is another job's"
    says = BY_NAME[f"long-{LONG_TICKS[-1]}"].says if cancelled else kind.says
    missing = [said for said in says if said not in feedback]
    if missing:
        return f"does not say {missing[0]!r} but {feedback[:300]!r}"
    if len(RUN.findall(feedback)) != 1 and kind.name != "bomb":
        return f"names {len(RUN.findall(feedback))} runs"
    return ""
