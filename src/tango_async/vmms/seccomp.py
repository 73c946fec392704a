"""The system calls that a job in a sandbox is refused: they reach what no namespace parts.

A service's session keyring is inherited by all its jobs, and keys are found by the host's uid, which
is one for all: a key that a job leaves there has been read by another, also by a later one. io_uring
is refused as container engines refuse it. Where only their affinity keeps jobs to their cores, they are
refused to change it. All end as on a kernel that does not have them, for which
programs are prepared.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping, Sequence

_KEYRINGS: Mapping[int, Sequence[int]] = {
    0xC000_003E: (248, 249, 250),  # x86_64
    0x4000_0003: (286, 287, 288),  # i386, whose programs x86_64 runs too
    0xC000_00B7: (217, 218, 219),  # aarch64
    0x4000_0028: (309, 310, 311),  # arm
    0xC000_00F3: (217, 218, 219),  # riscv64
    0xC000_0015: (269, 270, 271),  # powerpc64le
    0x8000_0016: (278, 279, 280),  # s390x
}
"""The kernel's name of an architecture → its numbers of add_key, request_key and keyctl."""

_SET_AFFINITY: Mapping[int, int] = {
    0xC000_003E: 203,
    0x4000_0003: 241,
    0xC000_00B7: 122,
    0x4000_0028: 241,
    0xC000_00F3: 122,
    0xC000_0015: 222,
    0x8000_0016: 239,
}
"""… → its number of sched_setaffinity."""

_IO_URING_SETUP = 425
"""Everywhere."""

_LOAD, _AND, _IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_CALL, _ARCHITECTURE = 0, 4
_X32 = 0x4000_0000
"""Set in x86_64's other numbers for the same calls; no other architecture has calls so high."""
_ALLOW, _FAIL = 0x7FFF_0000, 0x0005_0000


def program(*, pinned: bool = False) -> bytes:
    """The filter, in the kernel's classic BPF, as bubblewrap takes it. `pinned`: a job stays on the cores it has."""
    instructions = [(_LOAD, 0, 0, _ARCHITECTURE)]
    for architecture, calls in _KEYRINGS.items():
        pinning = [_SET_AFFINITY[architecture]] if pinned else []
        block = list(_refuse([*calls, *pinning, _IO_URING_SETUP]))
        instructions += [(_IF_EQUAL, 0, len(block), architecture), *block]
    instructions.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _refuse(calls: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    yield (_LOAD, 0, 0, _CALL)
    yield (_AND, 0, 0, ~_X32 & 0xFFFF_FFFF)
    for n, call in enumerate(calls):
        yield (_IF_EQUAL, len(calls) - n, 0, call)
    yield (_RETURN, 0, 0, _ALLOW)
    yield (_RETURN, 0, 0, _FAIL | errno.ENOSYS)
