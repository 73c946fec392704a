"""Some virtual machine or other, as it is tormented, whoever makes those."""

from __future__ import annotations

import asyncio
import random
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from support.vm import SshVm

BUSY_SHARE = 0.8
"""So often it meets one on which a job runs, if there is one."""

Name = TypeVar("Name")


class Maker(Protocol[Name]):
    """Makes them, as their double."""

    vms: dict[Name, SshVm]
    mute_next: int
    """So many of the next ones do not boot."""


class OneOf(ABC, Generic[Name]):
    """A subclass knows the VMs by their names, and what else can be done to them."""

    kind = "instance"

    def __init__(self, maker: Maker[Name], lost_s: float, seed: int) -> None:
        """`lost_s`: one that is silent for longer may be given up."""
        self._maker = maker
        self._vms = maker.vms
        self._lost_s = lost_s
        self._chance = random.Random(f"instance {seed}")
        self._undo: Callable[[], Awaitable[None]] | None = None

    async def begin(self, what: str) -> bool:
        if what == "do not boot":
            self._maker.mute_next += 1
            return True
        running = [name for name, vm in self._vms.items() if vm.alive and self._may(what, name)]
        if not running:
            return False
        busy = [name for name in running if self._vms[name].busy]
        name = self._chance.choice(busy if busy and self._chance.random() < BUSY_SHARE else running)
        match what:
            case "cut off from":
                return await _done(self._vms[name].cut)
            case "hold":
                self._undo = self._held(name)
                return await _done(self._vms[name].hold)
        return await self._do(what, name)

    async def undo(self, what: str) -> None:
        if self._undo is not None:
            undo, self._undo = self._undo, None
            await undo()

    def _held(self, name: Name) -> Callable[[], Awaitable[None]]:
        vm, since = self._vms[name], asyncio.get_running_loop().time()

        async def release() -> None:
            if asyncio.get_running_loop().time() - since > self._lost_s:
                await self._forgive(name)
            await _done(vm.release)

        return release

    def _may(self, what: str, name: Name) -> bool:
        """Whether that can be done to it."""
        return True

    @abstractmethod
    async def _do(self, what: str, name: Name) -> bool:
        """What is not known here; it may set `_undo`."""

    @abstractmethod
    async def _forgive(self, name: Name) -> None:
        """The job that is there may run again."""


async def _done(work: Callable[[], None]) -> bool:
    """False if the VM ended meanwhile."""
    with suppress(OSError, IndexError, subprocess.CalledProcessError):
        await asyncio.to_thread(work)
        return True
    return False
