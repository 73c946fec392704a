"""Jobs on instances of a Tashi cluster: a manager that fails, and instances that die, fall silent or find no room."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar

from count import Starts
from jobs import STARTS
from plan import Part, Wish, Wishes
from vms import OneOf

from support.backends import tashi
from support.tashi import ClusterManager
from support.vm import SshVm

DISPATCHERS = 3
LOST_S = 12.0
"""As `tashi.lost_s`."""
BOOT_S = 15.0
WAIT_S = BOOT_S + 10.0
"""What nobody owns goes after that and a tenth."""
SLOW_S = 2.5

SETTINGS = {
    "TANGO_DISPATCHER_SLOTS": "3",
    "TANGO_DISPATCHER_MACHINE_WAIT_S": str(WAIT_S),
    # A dispatcher cannot start while the manager is away; its jobs must not count as left behind meanwhile.
    "TANGO_DISPATCHER_ADOPT_GRACE_S": "100",
    "TANGO_POOLS_IDLE_S": "6",
    "TANGO_TASHI_BOOT_S": str(BOOT_S),
    "TANGO_TASHI_LOST_S": str(LOST_S),
}
KINDS: list[dict[str, str]] = [{}, {"TANGO_POOLS_DEMAND": "1"}, {"TANGO_POOLS_DEMAND": "3"}]
"""Dispatchers differ in how many instances they prepare before there is a job."""


class Manager:
    """The cluster manager, as it is tormented: away, it hangs, takes its time, refuses, or forgets to answer."""

    kind = "manager"

    def __init__(self, manager: ClusterManager) -> None:
        self._manager = manager

    async def begin(self, what: str) -> bool:
        manager = self._manager
        match what:
            case "kill" | "cut off":
                manager.leave()
            case "pause":
                manager.going.clear()
            case "slow":
                manager.slow_s = SLOW_S
            case "refuse calls of":
                manager.refused |= {"createVm", "destroyVm"}
            case "lose answers of":
                manager.cut |= {"createVm", "destroyVm"}
        return True

    async def undo(self, what: str) -> None:
        manager = self._manager
        match what:
            case "kill" | "cut off":
                manager.come_back()
            case "pause":
                manager.going.set()
            case "slow":
                manager.slow_s = 0.0
            case "refuse calls of":
                manager.refused.clear()
            case "lose answers of":
                manager.cut.clear()


class Room:
    """The hosts' room for new instances; apart, so that it can be tormented while the manager is."""

    kind = "cluster"

    def __init__(self, manager: ClusterManager) -> None:
        self._manager = manager

    async def begin(self, what: str) -> bool:
        self._manager.room.clear()
        return True

    async def undo(self, what: str) -> None:
        self._manager.room.set()


class OneInstance(OneOf[int]):
    def __init__(self, manager: ClusterManager, lost: set[str], seed: int) -> None:
        super().__init__(manager, LOST_S, seed)
        self._manager = manager
        self._lost = lost

    async def _do(self, what: str, name: int) -> bool:
        await self._forgive(name)
        seen = what == "crash"
        await self._manager.crash(name, seen=seen)
        if not seen:
            self._undo = lambda: self._forget(name)
        return True

    async def _forget(self, name: int) -> None:
        self._manager.forget(name)

    async def _forgive(self, name: int) -> None:
        if name in self._manager.instances:
            self._lost.add(self._manager.instances[name].name)


class Cluster:
    """A Backend."""

    dispatchers: ClassVar = DISPATCHERS
    store: ClassVar = "s3"
    jobs_per_s: ClassVar = 1.0
    settle_s: ClassVar = WAIT_S * 1.1 + 20.0
    wishes: ClassVar = Wishes(
        [Wish(3, "kill", "manager", 4), *(Wish(2, "crash", f"instance-{i}", 0) for i in range(2))],
        [
            *(Wish(2, "cut off", "manager", longest_s) for longest_s in (12, 30)),
            Wish(3, "pause", "manager", 20),
            Wish(2, "slow", "manager", 8),
            Wish(2, "refuse calls of", "manager", 5),
            Wish(3, "lose answers of", "manager", 5),
            Wish(2, "no room in", "room", 25),
            Wish(3, "do not boot", "instance-0", 0),
            Wish(2, "crash unseen", "instance-2", 25),
            *(Wish(2, "cut off from", f"instance-{i}", 0) for i in range(2)),
            *(Wish(3, "hold", f"instance-{i}", 30) for i in range(2)),
        ],
    )

    def __init__(self, directory: Path, state: Path, starts: Starts) -> None:
        self._directory = directory
        self._starts = starts
        self._stack = AsyncExitStack()
        self._environment: dict[str, str] = {}
        self.away: list[tuple[float, float]] = []
        self.lost: set[str] = set()
        self.parts: Mapping[str, Part] = {}

    @staticmethod
    def missing() -> list[str]:
        return [SshVm.missing()] if SshVm.missing() else []

    async def open(self) -> None:
        self._manager = manager = await self._stack.enter_async_context(ClusterManager(self._directory))
        manager.shared = {self._starts.file: STARTS}
        self._environment = SETTINGS | tashi(manager, self._directory / "images")
        instances = {f"instance-{i}": OneInstance(manager, self.lost, i) for i in range(3)}
        self.parts = {"manager": Manager(manager), "room": Room(manager), **instances}

    def environment(self, program: str) -> dict[str, str]:
        kind, _, number = program.partition("-")
        return self._environment | (KINDS[int(number) % len(KINDS)] if kind == "dispatcher" else {})

    def asks(self, token: str) -> dict[str, object]:
        return {}

    async def destroy(self, machine: str) -> bool:
        number = self._manager.number_of(machine)
        if number is None:
            return False
        await self._manager.end(number)
        return True

    async def strays(self) -> list[str]:
        """Instances, and processes without one."""
        instances = self._manager.instances
        found = [f"instance {number}: {one.name}, state {one.state}" for number, one in instances.items()]
        processes = [number for number, vm in self._manager.vms.items() if vm.alive]
        return found + [f"processes of instance {number}" for number in processes if number not in instances]

    async def close(self) -> None:
        await self._stack.aclose()
