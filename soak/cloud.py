"""Jobs on instances of a cloud: an API that fails, and instances that die, are taken back, or fall silent."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
from collections.abc import Awaitable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar

from count import Starts
from jobs import STARTS
from plan import Part, Wish, Wishes
from vms import OneOf

from support.ec2 import EVERY, KEY, LOST, OTHER_KEY, REGION, SECRET, Cloud, Fault, cloud_on, moto
from support.vm import SshVm

DISPATCHERS = 3
LOOK_S = 0.2
LOST_S = 12.0
"""As `ec2.lost_s`: an instance that is silent for longer may be given up."""
BOOT_S = 15.0
WAIT_S = BOOT_S + 60.0
"""The least `machine_wait_s` with this `boot_s`. What nobody owns goes after that and a tenth."""
OWN_ACCOUNT_SHARE = 0.1
JOBS_SECRET = f"{SECRET}-of-a-job"
SLOW_S = 2.5
ALWAYS = 10**9

SETTINGS = {
    "TANGO_DISPATCHER_SLOTS": "3",
    "TANGO_DISPATCHER_MACHINE_WAIT_S": str(WAIT_S),
    "TANGO_DISPATCHER_UPKEEP_S": "3",
    # A dispatcher cannot start while the API is away; its jobs must not count as left behind meanwhile.
    "TANGO_DISPATCHER_ADOPT_GRACE_S": "100",
    "TANGO_LIMITS_MAX_TIMEOUT_S": "120",
    "TANGO_POOLS_IDLE_S": "6",
    "TANGO_EC2_REGION": REGION,
    "TANGO_EC2_ACCESS_KEY_ID": KEY,
    "TANGO_EC2_ACCESS_KEY": SECRET,
    "TANGO_EC2_USER": "root",
    "TANGO_EC2_BOOT_S": str(BOOT_S),
    "TANGO_EC2_LOST_S": str(LOST_S),
    "TANGO_EC2_IDLE_S": "6",
    "TANGO_EC2_MAX_LIFE_MINUTES": "10",
}
KINDS = [
    {"TANGO_EC2_REUSE": "1"},
    {"TANGO_EC2_SPOT": "1", "TANGO_POOLS_DEMAND": "1"},
    {"TANGO_EC2_SPOT": "1", "TANGO_EC2_REUSE": "1"},
]
"""Dispatchers differ: whether an instance serves one job, is prepared before there is one, or may be taken back."""


class Api:
    """The API, as it is tormented: for a while it refuses, forgets to answer, takes its time, or is not there."""

    kind = "API"

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._faults: dict[str, list[tuple[str, Fault]]] = {}

    async def begin(self, what: str) -> bool:
        match what:
            case "cut off":
                self._cloud.away = True
            case "slow":
                self._cloud.slow_answers[EVERY] = SLOW_S
            case "throttle":
                self._fail(what, EVERY, "RequestLimitExceeded", status=503)
            case "lose answers of":
                for action in ("RunInstances", "TerminateInstances", "CreateTags", "ImportKeyPair", "DeleteKeyPair"):
                    self._fail(what, action, LOST, status=500)
            case "no room at":
                self._fail(what, "RunInstances", "InsufficientInstanceCapacity")
            case "no spot at":
                spot = {"InstanceMarketOptions.MarketType": "spot"}
                self._fail(what, "RunInstances", "MaxSpotInstanceCountExceeded", **spot)
        return True

    async def undo(self, what: str) -> None:
        self._cloud.away = self._cloud.away and what != "cut off"
        if what == "slow":
            del self._cloud.slow_answers[EVERY]
        for action, fault in self._faults.pop(what, ()):
            self._cloud.faults[action].remove(fault)

    def _fail(self, what: str, action: str, code: str, *, status: int = 400, **holding: str) -> None:
        fault = self._cloud.fail(action, code, ALWAYS, status=status, **holding)
        self._faults.setdefault(what, []).append((action, fault))


class Room(Api):
    """What the API has to give; apart, so that it can be tormented while the API is."""

    kind = "cloud"


class OneInstance(OneOf[str]):
    def __init__(self, cloud: Cloud, lost: set[str], seed: int) -> None:
        super().__init__(cloud, LOST_S, seed)
        self._cloud = cloud
        self._lost = lost

    def _may(self, what: str, name: str) -> bool:
        _, one = self._cloud.running.get(name, ("", {}))
        return what != "take back" or one.get("InstanceLifecycle") == "spot"

    async def _do(self, what: str, name: str) -> bool:
        if what == "crash":
            await asyncio.to_thread(self._cloud.vms[name].kill)
            await self._forgive(name)
        else:
            self._cloud.reclaim(name)
            self._undo = lambda: self._take_back(name)
        return True

    async def _take_back(self, name: str) -> None:
        await self._cloud.take_back(name)
        await self._forgive(name)

    async def _forgive(self, name: str) -> None:
        """The API is asked: an instance that is used again may have got another machine since it was last looked at."""
        found = [one for key in self._cloud.clients for one in await self._cloud.instances(key)]
        self._lost |= {_tags(one).get("tango:machine", "") for one in found if one["InstanceId"] == name}


class Instances:
    """A Backend."""

    dispatchers: ClassVar = DISPATCHERS
    store: ClassVar = "s3"
    jobs_per_s: ClassVar = 0.8
    settle_s: ClassVar = WAIT_S * 1.1 + 20.0
    wishes: ClassVar = Wishes(
        [*(Wish(2, "crash", f"instance-{i}", 0) for i in range(2)), Wish(2, "take back", "instance-2", 4)],
        [
            *(Wish(2, "cut off", "api", longest_s) for longest_s in (12, 30)),
            Wish(3, "throttle", "api", 8),
            Wish(3, "lose answers of", "api", 5),
            Wish(2, "slow", "api", 8),
            Wish(2, "no room at", "room", 12),
            Wish(3, "no spot at", "room", 25),
            Wish(3, "do not boot", "instance-0", 0),
            *(Wish(2, "cut off from", f"instance-{i}", 0) for i in range(2)),
            *(Wish(3, "hold", f"instance-{i}", 30) for i in range(2)),
        ],
    )

    def __init__(self, directory: Path, state: Path, starts: Starts) -> None:
        self._state = state
        self._logs = directory / "logs"
        self._starts = starts
        self._stack = AsyncExitStack()
        self._cloud = Cloud({})
        self._groups: set[str] = set()
        self.away: list[tuple[float, float]] = []
        self.lost: set[str] = set()
        self.parts: Mapping[str, Part] = {}

    @staticmethod
    def missing() -> list[str]:
        return [SshVm.missing()] if SshVm.missing() else []

    async def open(self) -> None:
        motos = {key: self._stack.enter_context(moto()) for key in (KEY, OTHER_KEY)}
        self._cloud = cloud = await self._stack.enter_async_context(cloud_on(motos))
        cloud.look_s = LOOK_S
        cloud.shared = {self._starts.file: STARTS}
        self._groups = await self._security_groups()
        instances = {f"instance-{i}": OneInstance(cloud, self.lost, i) for i in range(3)}
        self.parts = {"api": Api(cloud), "room": Room(cloud), **instances}

    def environment(self, program: str) -> dict[str, str]:
        kind, _, number = program.partition("-")
        own = KINDS[int(number) % len(KINDS)] if kind == "dispatcher" else {}
        return {
            **SETTINGS,
            "TANGO_EC2_ENDPOINT": self._cloud.url,
            "TANGO_EC2_SUBNETS": self._cloud.subnets[KEY],
            **own,
        }

    def asks(self, token: str) -> dict[str, object]:
        """Some jobs bring an account of their own."""
        if random.Random(token).random() < OWN_ACCOUNT_SHARE:
            return {"accessKeyId": OTHER_KEY, "accessKey": JOBS_SECRET}
        return {}

    async def destroy(self, machine: str) -> bool:
        """As somebody does who has the account."""
        found = [one for key in self._cloud.clients for one in await self._cloud.instances(key, "running")]
        name = next((one["InstanceId"] for one in found if _tags(one).get("tango:machine") == machine), "")
        if name in self._cloud.running:
            await self._cloud.end(name)
            return True
        return False

    async def close(self) -> None:
        await self._stack.aclose()

    # -- what is left --------------------------------------------------------------------------------

    async def strays(self) -> list[str]:
        """Instances, volumes, key pairs of no living dispatcher, security groups, processes, and jobs' secrets."""
        living = await self._cloud.living()
        found = [f"instance {one['InstanceId']}: {_tags(one)}" for one in living]
        names = {one["InstanceId"] for one in living}
        found += [f"processes of {n}" for n, vm in self._cloud.vms.items() if vm.alive and n not in names]
        found += [f"security group {group}" for group in await self._security_groups() - self._groups]
        found += [
            f"{volume['VolumeId']} without an instance"
            for volume in await self._all("describe_volumes", "Volumes")
            if not {a["InstanceId"] for a in volume["Attachments"]} & names
        ]
        kept = {f"tango-{install}" for install in self._taken_places()}
        for key in self._cloud.clients:
            pairs = {pair["KeyName"] for pair in (await self._cloud.clients[key].describe_key_pairs())["KeyPairs"]}
            found += [f"key pair {pair} of {key}" for pair in pairs - (kept if key == KEY else set())]
        return found + await asyncio.to_thread(self._secrets)

    async def _all(self, operation: str, what: str) -> list[dict[str, Any]]:
        calls: list[Awaitable[Any]] = [getattr(client, operation)() for client in self._cloud.clients.values()]
        return [one for answer in await asyncio.gather(*calls) for one in answer[what]]

    async def _security_groups(self) -> set[str]:
        return {one["GroupId"] for one in await self._all("describe_security_groups", "SecurityGroups")}

    def _taken_places(self) -> list[str]:
        """The names of the places in which a dispatcher lives."""
        found = []
        for lock in self._state.glob("*/*/lock"):
            with suppress(FileNotFoundError), lock.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append((lock.parent / "install").read_text().strip())
        return found

    def _secrets(self) -> list[str]:
        """Files of dispatchers' places and logs that hold what a job brought."""
        walks = (step for root in (self._state, self._logs) for step in os.walk(root))
        files = [Path(folder, name) for folder, _, names in walks for name in names]
        return [f"a job's secret in {os.path.relpath(f, self._state)}" for f in files if _holds(f, JOBS_SECRET)]


def _holds(file: Path, text: str) -> bool:
    """False for a file that is gone, and for what is none."""
    with suppress(OSError):
        return file.is_file() and text.encode() in file.read_bytes()
    return False


def _tags(one: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in one.get("Tags", [])}
