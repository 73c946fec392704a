"""How much a job may use: what addJob asks for, within the most that its image is allowed.

What is asked above that is cut to it, and the job's trace says so. What is no sensible number at all
is refused: a job of -1 cores was meant otherwise.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..config import Limits as LimitSettings
from ..machine import Limits
from .requests import AddJob, LimitsRequest, Number, VmRequest

MIB = 1024**2
MOST_MB = 1 << 30

_DECIMAL = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Size:
    """One thing that a job can ask for."""

    name: str
    """Of the limit, in the settings and in the job."""
    asked_as: str
    meaning: str
    low: float
    high: float
    """A number outside of these is refused."""
    unit: int = 1

    def shown(self, value: float) -> str:
        return f"{value / self.unit:g} MB" if self.unit == MIB else f"{value:g}"


_SIZES = (
    _Size("cores", "vm.cores", "number of cores", 0.01, 4096),
    _Size("memory_bytes", "vm.memory", "memory", 16, MOST_MB, MIB),
    _Size("processes", "limits.processes", "number of processes", 8, 1 << 22),
    _Size("file_bytes", "limits.file_mb", "file size", 1, MOST_MB, MIB),
    _Size("disk_bytes", "limits.disk_mb", "disk size", 1, MOST_MB, MIB),
)
"""With less than their lowest values not even the Makefile would be read."""


def limits(asked: AddJob, allowed: LimitSettings, reasons: list[str]) -> tuple[Limits, list[str]]:
    """The job's limits, and what its trace should say of them. Adds to `reasons` what is refused."""
    notes: list[str] = []
    timeout_s = allowed.timeout_s
    if asked.timeout is not None and asked.timeout > 0:
        timeout_s = _at_most(asked.timeout, allowed.max_timeout_s)
        if timeout_s < asked.timeout:
            notes.append(_cut("timeout", f"{timeout_s} s"))
    output_bytes = allowed.output_bytes
    if asked.max_kb is not None and asked.max_kb > 0:
        output_bytes = _at_most(asked.max_kb * 1024, allowed.max_output_bytes)
        if output_bytes < asked.max_kb * 1024:
            notes.append(_cut("output limit", f"{output_bytes} bytes"))
    sizes = {size.name: _size(size, asked, allowed, reasons, notes) for size in _SIZES}
    found = Limits(
        timeout_s=timeout_s,
        output_bytes=output_bytes,
        output_stop_bytes=allowed.output_stop_bytes,
        cores=sizes.pop("cores"),
        **{name: math.ceil(value) for name, value in sizes.items()},
    )
    return found, notes


def _size(size: _Size, asked: AddJob, allowed: LimitSettings, reasons: list[str], notes: list[str]) -> float:
    default: float = getattr(allowed, size.name)
    most: float = getattr(allowed, f"max_{size.name}")
    table, _, field = size.asked_as.partition(".")
    tables: dict[str, VmRequest | LimitsRequest | None] = {"vm": asked.vm, "limits": asked.limits}
    number = _number(getattr(tables[table], field, None))
    if number == 0:
        return default
    if not size.low <= number <= size.high:
        reasons.append(f"Bad {size.asked_as}: expected a number from {size.low:.10g} to {size.high:.10g}")
        return default
    if number * size.unit > most:
        notes.append(_cut(size.meaning, size.shown(most)))
    return min(number * size.unit, most)


def _number(raw: Number) -> float:
    """0 for what is not given, NaN for what is no number."""
    if raw is None or raw == "":
        return 0
    if isinstance(raw, str):
        return float(raw) if _DECIMAL.fullmatch(raw.strip()) else math.nan
    return raw


def _at_most(asked: float, most: int) -> int:
    return most if asked > most else math.ceil(asked)


def _cut(what: str, most: str) -> str:
    return f"The {what} asked for was cut to {most}, the most that is allowed here"
