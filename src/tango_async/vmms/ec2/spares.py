"""Instances without a job: clean ones of earlier jobs, and those whose job found another while they boot. No I/O."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ...machine import Machine, MachineSpec


@dataclass(frozen=True, slots=True, eq=False)
class Spare:
    """An instance that waits for a job which needs such a one."""

    instance: str
    last: Machine
    """Whose tags it has."""
    booted: bool


class Spares:
    """Those of one installation."""

    def __init__(self) -> None:
        self._waiting: dict[str, Spare] = {}
        self._moving: Counter[MachineSpec] = Counter()
        self._changed = asyncio.Event()

    def __contains__(self, instance: str) -> bool:
        return instance in self._waiting

    def __iter__(self) -> Iterator[Spare]:
        return iter(list(self._waiting.values()))

    def put(self, spare: Spare) -> None:
        self._waiting[spare.instance] = spare
        self._changed.set()

    def take(self, spec: MachineSpec, *, booted: bool = False) -> Spare | None:
        """One for a machine of the spec, those that have booted first, and only those if `booted`."""
        fitting = [one for one in self if one.last.spec == spec and (one.booted or not booted)]
        found = max(fitting, key=lambda one: one.booted, default=None)
        return found if found is not None and self.drop(found) else None

    def drop(self, spare: Spare) -> bool:
        """False if somebody has it already."""
        if self._waiting.get(spare.instance) is not spare:
            return False
        del self._waiting[spare.instance]
        return True

    @contextmanager
    def moving(self, spec: MachineSpec) -> Iterator[None]:
        """While one that was taken is exchanged for another, which is then put here."""
        self._moving[spec] += 1
        try:
            yield
        finally:
            self._moving[spec] -= 1
            self._changed.set()

    async def moved(self, spec: MachineSpec) -> bool:
        """Returns after a change if one of the spec is just being exchanged; else False at once."""
        if not self._moving[spec]:
            return False
        await self._change()
        return True

    async def came(self, spec: MachineSpec) -> None:
        """Returns when one of the spec that has booted is there."""
        while not any(one.booted and one.last.spec == spec for one in self):
            await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
