"""Which instance is which machine's, and what AWS says of them; ends them, keeps some for the next job.

AWS's tags are the record. What this process remembers of its own instances is only what a listing may
not show yet, since that lags behind by seconds.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ...config import Ec2
from ...errors import Unsuitable, VmmsError, VmmsUnavailable
from ...machine import Machine, MachineSpec, Standing
from . import instances
from .accounts import OWN, Accounts
from .boots import Boots
from .client import Account, Gone
from .instances import Instance, new_id, new_nonce
from .spares import Spare, Spares

log = logging.getLogger(__name__)

CLOSE_S = 20.0
LIST_S = 8.0
"""Longest wait for a job's account to say what is there: others are looked at only after it."""
LIVING = ("pending", "running", "stopping", "stopped")
NOTICED = re.compile(r"marked-for-|instance-(terminated|stopped)-(by|no)|request-canceled-and-instance-running")
_HOST_KEY = re.compile(r"^(ssh-ed25519|ecdsa-sha2-nistp256|ssh-rsa) [A-Za-z0-9+/=]+", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a machine is."""

    instance: str
    account: str
    image: str


class Fleet:
    """The instances of one installation."""

    def __init__(self, settings: Ec2, install: str, accounts: Accounts, boots: Boots) -> None:
        self._settings = settings
        self._install = install
        self._accounts = accounts
        self._boots = boots
        self._seats: dict[str, Seat] = {}
        self._spares = Spares()
        self._giving: set[str] = set()
        """Instances that are just given to another machine."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._silent: dict[str, str] = {}
        """Account → why it did not say what is there when it was last asked."""
        self.unseen: set[str] = set()
        """Accounts of which `all` did not know, when it was last asked, what is there."""

    # -- what is there -----------------------------------------------------------------------------

    def made(self, instance: str, machine: Machine, account: str, *, new: bool = False) -> None:
        self._seats[machine.id] = Seat(instance, account, machine.spec.image)
        if new:
            self._boots.launched(instance)

    def standing(self, image: str) -> Standing:
        asked_for = self._boots.asked_for(image)
        there = {seat.instance for seat in self._seats.values() if seat.image == image}
        there |= {spare.instance for spare in self._spares if spare.last.spec.image == image}
        return Standing(machines=len(there) + asked_for, fresh=self._boots.fresh(there) + asked_for)

    def id_of(self, machine: Machine) -> str:
        seat = self._seats.get(machine.id)
        return seat.instance if seat else "?"

    async def look(self, machine: Machine) -> Instance | None:
        """What AWS says of the machine's instance now. None if it does not know of it, or not yet."""
        seat = self._seats.get(machine.id)
        account = seat.account if seat else _account_of(machine)
        if seat is not None:
            with suppress(Gone):
                found = await self._described(account, InstanceIds=[seat.instance])
                return replace(found[0], machine=machine) if found else None
            return None
        found = await self._described(account, Filters=[_filter(instances.MACHINE, machine.id)])
        return next((one for one in found if not one.gone), found[0] if found else None)

    async def find(self, machine: Machine) -> Instance | None:
        """The same, and remembers where it is."""
        found = await self.look(machine)
        if found is not None:
            self._seats.setdefault(machine.id, Seat(found.id, found.account, machine.spec.image))
        return found

    async def all(self) -> list[Instance]:
        """All that live in any account that says so, but for those that wait here for their next job; see `unseen`.

        Raises VmmsUnavailable if none does.
        """
        names = self._accounts.names()
        self._silent = {name: problem for name, problem in self._silent.items() if name in names}
        answers = await asyncio.gather(*(self._asked(name) for name in names))
        self.unseen = {name for name, living in zip(names, answers, strict=True) if living is None}
        if len(self.unseen) == len(names):
            raise VmmsUnavailable(f"no account says what is there: {self._silent[OWN]}")
        # By id: a job may bring the very account that is the settings' own.
        found = {one.id: one for living in answers for one in living or ()}
        return [one for one in found.values() if one.id not in self._spares]

    async def _asked(self, name: str) -> list[Instance] | None:
        """What lives in the account; None if that is not known."""
        try:
            # The settings' own is the engine: how long that may take, the caller knows.
            async with asyncio.timeout(None if name == OWN else LIST_S):
                living = await self._living(name)
                if not living and self._unused(name):
                    await self._accounts.forget(name)
        except Unsuitable as e:
            # Revoked meanwhile, or mistyped from the start. What may be there ends by itself.
            self._tell(name, str(e))
            if self._unused(name) and self._accounts.outlived(name):
                await self._accounts.forget(name)
            return []
        except (VmmsUnavailable, TimeoutError) as e:
            self._tell(name, str(e) or "it is too slow")
            return None
        self._tell(name, "")
        return living

    def _tell(self, name: str, problem: str) -> None:
        """Says it once, and again when it has passed."""
        before = self._silent.pop(name, "")
        if problem:
            self._silent[name] = problem
        account = "account that a job brought" if name else "settings' account"
        if problem and not before:
            log.warning("the %s does not say which instances are there; they stay: %s", account, problem)
        elif before and not problem:
            log.info("the %s says again which instances are there", account)

    async def _living(self, account: str) -> list[Instance]:
        states = {"Name": "instance-state-name", "Values": list(LIVING)}
        return await self._described(account, Filters=[_filter(instances.INSTALL, self._install), states])

    async def _described(self, name: str, **which: Any) -> list[Instance]:
        account = await self._accounts.get(name)
        reservations = await account.all("describe_instances", "Reservations", **which)
        described = [
            instances.instance_of(one, name, public=self._settings.public_address)
            for reservation in reservations
            for one in reservation["Instances"]
        ]
        return [one for one in described if one is not None]

    async def notice(self, instance: Instance) -> str:
        """Why a spot instance will be taken back soon; "" if nobody said so."""
        account = await self._account(instance)
        requests = await account.all(
            "describe_spot_instance_requests",
            "SpotInstanceRequests",
            Filters=[{"Name": "instance-id", "Values": [instance.id]}],
        )
        codes = [one.get("Status", {}).get("Code", "") for one in requests if one.get("InstanceId") == instance.id]
        return next((code for code in codes if NOTICED.match(code)), "")

    async def key_on_console(self, instance: Instance) -> str:
        """A host key that the instance wrote to its console; "" if none is to be seen yet."""
        answer = await (await self._account(instance)).call("get_console_output", InstanceId=instance.id)
        said = _HOST_KEY.search(answer.get("Output", "").replace("\r", ""))
        return said[0] if said else ""

    async def tag(self, instance: Instance, tags: dict[str, str]) -> None:
        await self._tag(instance.account, instance.id, tags)

    async def _tag(self, account: str, instance: str, tags: dict[str, str]) -> None:
        packed = [{"Key": key, "Value": value} for key, value in tags.items()]
        await (await self._accounts.get(account)).call("create_tags", Resources=[instance], Tags=packed)

    async def _account(self, instance: Instance) -> Account:
        return await self._accounts.get(instance.account)

    # -- their end ---------------------------------------------------------------------------------

    async def end(self, machine: Machine) -> None:
        """Returns when AWS is ending the machine's instances: there are two if a lost request was made again."""
        seat = self._seats.get(machine.id)
        name = seat.account if seat else _account_of(machine)
        await self._terminate(machine, name, {seat.instance} if seat else set())
        self._seats.pop(machine.id, None)
        await self._leave(name)

    async def _end(self, instance: str, machine: Machine) -> None:
        """Ends an instance that has no seat."""
        name = _account_of(machine)
        await self._terminate(machine, name, {instance})
        await self._leave(name)

    async def _terminate(self, machine: Machine, name: str, ids: set[str]) -> None:
        """Ends these, and all that have the machine's tag, but for those that a listing which lags says to have it."""
        self._boots.forget(ids)
        account = await self._accounts.get(name)
        described = await self._described(name, Filters=[_filter(instances.MACHINE, machine.id)])
        others = {seat.instance for owner, seat in self._seats.items() if owner != machine.id}
        others |= {spare.instance for spare in self._spares} | self._giving
        ids = ids | ({one.id for one in described if not one.gone} - others)
        if ids:
            with suppress(Gone):
                await account.call("terminate_instances", InstanceIds=sorted(ids))

    def forsake(self, machine: Machine) -> None:
        """It could not be ended, and is there for no job any more. If it lives, a listing will show it."""
        if (seat := self._seats.pop(machine.id, None)) is not None:
            self._boots.forget([seat.instance])

    async def _leave(self, name: str) -> None:
        """Forgets a job's account once nothing of ours is there."""
        if self._unused(name) and not await self._living(name) and self._unused(name):
            await self._accounts.forget(name)

    def _unused(self, name: str) -> bool:
        here = any(seat.account == name for seat in self._seats.values())
        here = here or any(_account_of(spare.last) == name for spare in self._spares)
        return name != OWN and not here and self._accounts.idle(name)

    async def keep(self, machine: Machine, why: str) -> bool:
        """Leaves the instance to whoever wants to look at it; it ends itself. False if it is gone."""
        instance = await self.look(machine)
        if instance is None or instance.gone:
            return False
        await self.tag(instance, {instances.KEPT: why[:250], f"{instances.KEPT}-of": self._install})
        account = await self._account(instance)
        await account.call("delete_tags", Resources=[instance.id], Tags=[{"Key": instances.INSTALL}])
        log.warning("instance %s is kept (ec2.keep_failed): %s", instance.id, why)
        self._seats.pop(machine.id, None)
        self._boots.forget([instance.id])
        return True

    # -- from job to job ---------------------------------------------------------------------------

    async def give_back(self, machine: Machine) -> None:
        """The instance is clean, and waits for the next job that needs such a one."""
        self._put(Spare(self._seats.pop(machine.id).instance, machine, booted=True))

    def _put(self, spare: Spare) -> None:
        self._spares.put(spare)
        asyncio.get_running_loop().call_later(self._settings.idle_s, self._unneeded, spare)

    def _unneeded(self, spare: Spare) -> None:
        if self._spares.drop(spare):
            self._spawn(self._end(spare.instance, spare.last))

    def make_way(self, spec: MachineSpec, most: int) -> None:
        """Ends what waits for other jobs of the image, the longest first, if one more were more than `most`."""
        waiting = [spare for spare in self._spares if spare.last.spec.image == spec.image]
        if not any(spare.last.spec == spec for spare in waiting):
            for spare in waiting[: max(0, self.standing(spec.image).machines + 1 - most)]:
                self._unneeded(spare)

    async def take(self, machine: Machine) -> bool:
        """Gives the machine an instance that waits for such a one. False if there is none."""
        while True:
            while (spare := self._spares.take(machine.spec)) is not None:
                if await self._given(spare, machine):
                    return True
            if not await self._spares.moved(machine.spec):
                return False

    async def freed(self, machine: Machine) -> None:
        """Returns when `move` may find one for it."""
        await self._spares.came(machine.spec)

    async def move(self, machine: Machine) -> bool:
        """Gives the machine, whose instance boots, one that has booted; its own waits for the next job.

        False if there is none. What AWS refuses of it keeps no job from its own instance.
        """
        booting = self._seats.get(machine.id)
        try:
            while booting is not None and (spare := self._spares.take(machine.spec, booted=True)) is not None:
                with self._spares.moving(machine.spec):
                    if await self._given(spare, machine):
                        await self._leave_to_next(booting, machine)
                        return True
        except VmmsError as e:
            log.warning("machine %s waits for its own instance: %s", machine.id, e)
        return False

    async def _leave_to_next(self, seat: Seat, machine: Machine) -> None:
        """The instance is no longer the machine's, nor anyone's."""
        heir = replace(machine, id=new_id(), nonce=new_nonce())
        tags = instances.tags_of(self._install, heir, "")
        del tags[instances.HOST_KEY]
        try:
            await self._tag(seat.account, seat.instance, tags)
        except VmmsError as e:
            # Whoever gets it tags it, too; until then it is known here, and not ended with its old tags' machine.
            log.info("instance %s has still the tags of %s: %s", seat.instance, machine.id, e)
        except BaseException:
            self._spawn(self._end(seat.instance, heir))
            raise
        self._put(Spare(seat.instance, heir, booted=False))

    async def _given(self, spare: Spare, machine: Machine) -> bool:
        self._giving.add(spare.instance)
        try:
            return await self._lent(spare, machine)
        except BaseException:
            # It may have either machine's tag now.
            self._spawn(self._end(spare.instance, spare.last))
            raise
        finally:
            self._giving.discard(spare.instance)

    async def _lent(self, spare: Spare, machine: Machine) -> bool:
        name = _account_of(spare.last)
        found: list[Instance] = []
        with suppress(Gone):
            found = await self._described(name, InstanceIds=[spare.instance])
        if not found or found[0].state not in ("pending", "running"):
            self._boots.forget([spare.instance])
            return False
        await self.tag(found[0], instances.tags_of(self._install, machine, found[0].host_key))
        self.made(spare.instance, machine, name)
        log.info("machine %s is instance %s again", machine.id, spare.instance)
        return True

    # -- what nobody uses --------------------------------------------------------------------------

    def abandon(self, launch: Awaitable[str], machine: Machine) -> None:
        """Ends the instance that comes of a launch whose caller is gone."""
        self._spawn(self._end_launched(launch, machine))

    async def _end_launched(self, launch: Awaitable[str], machine: Machine) -> None:
        name = _account_of(machine)
        with self._accounts.used(name):  # until it is ended, since a listing may not show it yet
            instance = await launch
            log.info("instance %s came too late and is ended", instance)
            await self._terminate(machine, name, {instance})
        await self._leave(name)

    async def close(self) -> None:
        """Ends all that wait, and waits until what nobody uses is ended, or for so long."""
        for spare in self._spares:
            self._unneeded(spare)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _logged(self, work: Coroutine[Any, Any, None]) -> None:
        """What cannot be ended now is found as a stray."""
        try:
            await work
        except VmmsError as e:
            log.warning("an instance could not be ended yet: %s", e)


def _account_of(machine: Machine) -> str:
    return machine.spec.cloud.account if machine.spec.cloud else OWN


def _filter(tag: str, value: str) -> dict[str, Any]:
    return {"Name": f"tag:{tag}", "Values": [value]}
