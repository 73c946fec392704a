"""The verbs of ec2SSH. A machine is one job's use of an instance: instances may serve several, one at a time.

Which instance a job gets is in wishes.py, what one is made of in instances.py, whose account pays in
accounts.py, and how a job runs there in vm.py, as on any VM.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from ...config import Settings
from ...errors import (
    MachineLost,
    MachineReclaimed,
    NoCapacity,
    NotStarted,
    Unsuitable,
    VmmsError,
    VmmsUnavailable,
)
from ...machine import (
    Capabilities,
    CloudChoice,
    Credentials,
    Exit,
    InputFile,
    Limits,
    Machine,
    MachineSpec,
    Scaling,
    Standing,
)
from ..bootstrap import archive
from ..remote import GUARD_S, OVERTIME_S
from ..ssh import Link, Reach, new_key, public_key
from ..vm import Vm
from . import instances
from .accounts import OWN, Accounts
from .boots import Boots
from .fleet import Fleet
from .instances import Instance, Launch
from .wishes import Wishes, in_the_jobs_words

log = logging.getLogger(__name__)

PAUSE_S = (0.5, 5.0)
"""Shortest and longest pause between two looks at an instance that boots."""
ROOM_S = 60.0
"""How long a machine that AWS has no room for is asked for again and again; then its job goes back."""
ROOM_PAUSE_S = (2.0, 20.0)
SPOT_LOOK_S = 5.0
"""Asked so often, while a job runs on a spot instance, whether it is going to be taken back."""
SPOT_GRACE_S = 90.0
"""AWS tells of it two minutes before: a job that ends within this time is let end."""
WHY_S = 10.0
"""How long a broken connection may wait to be made again until AWS says that the instance is gone."""
RENEW = 0.5
"""After this share of the time that an instance has beyond the longest job its end is put off again, while it waits."""
DEFAULT = CloudChoice()


async def _given_up(booting: asyncio.Future[Vm]) -> None:
    """Ends the wait, and the connection that it may have come to."""
    booting.cancel()
    (found,) = await asyncio.gather(booting, return_exceptions=True)
    if isinstance(found, Vm):
        await found.link.close()


class Ec2Ssh:
    """Instances of one AWS account, and of those that jobs bring."""

    name = "ec2SSH"
    capabilities = Capabilities(
        adopt=True, prestart=True, network=True, clouds=True, overtime_s=OVERTIME_S, idle_bytes=1024**2
    )

    def __init__(self, settings: Settings, install: str) -> None:
        overtime_s = settings.ec2.lost_s + OVERTIME_S
        scaling = Scaling(settings.ec2.jobs_per_instance, settings.ec2.scale_after_s) if settings.ec2.reuse else None
        self.capabilities = replace(self.capabilities, overtime_s=overtime_s, scaling=scaling)
        self._settings = settings.ec2
        self._install = install
        self._limits = settings.limits
        self._wait_s = settings.dispatcher.machine_wait_s
        self._directory = settings.state_dir / "ec2"
        self._accounts = Accounts(settings.ec2, install, self._directory / "accounts", wait_s=self._wait_s)
        self._boots = Boots(settings.ec2)
        self._fleet = Fleet(settings.ec2, install, self._accounts, self._boots)
        self._wishes = Wishes(settings.ec2, install, self._accounts)
        self._private_key = ""
        self._vms: dict[str, Vm] = {}
        self._listed: dict[str, Instance] = {}
        """By machine, as the last listing had them."""
        self._renewed_s: dict[str, float] = {}
        """Machine → when its instance was last told how long it may live."""
        self._ended_well: set[str] = set()
        self._failed: dict[str, str] = {}
        """Machine → why its job was lost or never started."""

    # -- the engine --------------------------------------------------------------------------------

    async def open(self) -> None:
        settings = self._settings
        if self._wait_s < settings.boot_s + ROOM_S:
            least = f"{settings.boot_s + ROOM_S:.0f} s: ec2.boot_s, and {ROOM_S:.0f} s in which AWS may have no room"
            raise VmmsUnavailable(f"dispatcher.machine_wait_s: {self._wait_s:.0f} s; it must be at least {least}")
        if self._limits.max_timeout_s >= settings.max_life_minutes * 60:
            raise VmmsUnavailable("ec2.max_life_minutes: shorter than limits.max_timeout_s")
        if settings.key_name and settings.private_key is None:
            raise VmmsUnavailable("ec2.private_key: unset, though ec2.key_name is set")
        self._private_key = await asyncio.to_thread(self._read_key)
        await self._accounts.open()
        try:
            account = await self._accounts.get(OWN)
            await self._wishes.check(account)
            await self._accounts.key_pair(OWN, public_key(self._private_key))
        except VmmsError as e:
            await self._accounts.close()
            raise VmmsUnavailable(str(e)) from e

    def _read_key(self) -> str:
        file = self._settings.private_key or self._directory / "key"
        try:
            if self._settings.private_key is None and not file.exists():
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                new = file.with_suffix(".new")
                new.touch(mode=0o600)
                new.write_text(new_key()[0])
                new.rename(file)
            text = file.read_text()
            public_key(text)
        except (OSError, ValueError) as e:
            raise VmmsUnavailable(f"ec2.private_key: {file}: {e}") from e
        return text

    async def close(self) -> None:
        for vm in self._vms.values():
            await vm.link.close()
        await self._fleet.close()
        await self._accounts.close()

    async def get_images(self) -> list[str]:
        return sorted(await self._wishes.amis(await self._accounts.get(OWN)))

    async def load_image(self, name: str, archive: AsyncIterator[bytes]) -> None:
        raise VmmsError("ec2SSH cannot load images: make an AMI, and tag it with the image's name")

    async def know(self, credentials: Credentials) -> None:
        """A job's own account, before a machine is made there."""
        if not self._settings.job_accounts:
            raise Unsuitable("addJob's accessKeyId: ec2.job_accounts is off here")
        await self._accounts.keep(credentials)

    # -- machines ----------------------------------------------------------------------------------

    async def initialize_vm(self, spec: MachineSpec, owner: str) -> Machine:
        choice = spec.cloud or DEFAULT
        machine = Machine(id=instances.new_id(), spec=spec, nonce=instances.new_nonce(), owner=owner)
        with self._accounts.used(choice.account):
            self._accounts.arrived(choice.account)
            if self._settings.reuse and await self._fleet.take(machine):
                return machine
            with self._boots.asking(spec.image):
                launch = await self._wishes.launch(machine, choice, public_key(self._private_key))
                log.info("machine %s: asking for an instance of %s from %s", machine.id, launch.types[0], launch.ami)
                try:
                    found = await self._ask(launch, choice)
                except Unsuitable as e:
                    raise Unsuitable(in_the_jobs_words(str(e), choice)) from e
                if found:
                    log.info("machine %s is instance %s", machine.id, found)
                    self._fleet.made(found, machine, choice.account, new=True)
        return machine

    async def _ask(self, launch: Launch, choice: CloudChoice) -> str:
        """Answers the new instance's id, or "" if the machine got one that became free meanwhile."""
        account, loop = await self._accounts.get(choice.account), asyncio.get_running_loop()
        abandon = partial(self._fleet.abandon, machine=launch.machine)
        until_s, pause_s = loop.time() + ROOM_S, ROOM_PAUSE_S[0]
        while True:
            try:
                return await launch.run(account, abandon)
            except NoCapacity as e:
                if loop.time() + pause_s > until_s:
                    raise
                log.info("machine %s: %s; asking again in %.0f s", launch.machine.id, e, pause_s)
            except Unsuitable as e:
                # Whoever removed our key pair meanwhile, it is no fault of the job's.
                again = "InvalidKeyPair" in str(e) and loop.time() < until_s
                if not again or not await self._accounts.key_again(choice.account):
                    raise
                await self._accounts.key_pair(choice.account, public_key(self._private_key))
            await asyncio.sleep(pause_s)
            if self._settings.reuse and await self._fleet.take(launch.machine):
                return ""
            pause_s = min(pause_s * 2, ROOM_PAUSE_S[1])

    async def wait_vm(self, machine: Machine) -> None:
        if (vm := self._vms.get(machine.id)) is not None:
            return await (self._guard(machine, vm) if self._ages(machine) else vm.answers())
        boots = self._settings.reuse and self._boots.boots(self._fleet.id_of(machine))
        self._vms[machine.id] = await (self._soonest(machine) if boots else self._booted(machine))
        self._boots.booted(self._fleet.id_of(machine))
        return None

    async def _soonest(self, machine: Machine) -> Vm:
        """On its own instance, or on one that becomes free while that boots."""
        booting = asyncio.ensure_future(self._booted(machine))
        try:
            while not booting.done():
                freed = asyncio.ensure_future(self._fleet.freed(machine))
                try:
                    await asyncio.wait((booting, freed), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    freed.cancel()
                if not booting.done() and await self._fleet.move(machine):
                    await _given_up(booting)
                    return await self._booted(machine)
            return booting.result()
        except BaseException:
            await _given_up(booting)
            raise

    async def _booted(self, machine: Machine) -> Vm:
        vm: Vm | None = None
        try:
            async with self._boots.awaited(self._fleet.id_of(machine)):
                instance = await self._with_host_key(await self._running(machine))
                vm = self._vm(instance)
                await vm.ready()
                await self._guard(machine, vm)
                return vm
        except BaseException as e:
            if vm is not None:
                await vm.link.close()
            if not isinstance(e, TimeoutError):
                raise
            trouble = vm.trouble if vm is not None else "it did not run, or its host key was not to be seen"
            seat = self._fleet.id_of(machine)
            raise MachineLost(f"instance {seat} was not ready within ec2.boot_s: {trouble}") from e

    def _ages(self, machine: Machine) -> bool:
        """A job that got it much later might not end before the instance does."""
        spare_s = self._settings.max_life_minutes * 60 - self._limits.max_timeout_s
        now = asyncio.get_running_loop().time()
        return now - self._renewed_s.get(machine.id, now) > spare_s * RENEW

    async def _guard(self, machine: Machine, vm: Vm) -> None:
        minutes, now = str(self._settings.max_life_minutes), asyncio.get_running_loop().time()
        done = await vm.link.patiently(lambda: vm.as_root(instances.GUARD, minutes))
        self._renewed_s[machine.id] = now
        if done.status:
            seat, said = self._fleet.id_of(machine), done.err.decode(errors="replace").strip()
            log.warning("instance %s: its life cannot be bounded, or its user data hidden: %s", seat, said)

    async def _running(self, machine: Machine) -> Instance:
        pause_s = PAUSE_S[0]
        while True:
            instance = await self._fleet.look(machine)
            if instance is not None and instance.gone:
                raise MachineLost(f"instance {instance.id} ended while it booted: {instance.reason}")
            if instance is not None and instance.state == "running" and instance.address:
                return instance
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, PAUSE_S[1])

    async def _with_host_key(self, instance: Instance) -> Instance:
        """The host key that was given by user data, or else is read from the console."""
        pause_s = PAUSE_S[0]
        while not instance.host_key:
            if key := await self._fleet.key_on_console(instance):
                await self._fleet.tag(instance, {instances.HOST_KEY: key})
                instance = replace(instance, host_key=key)
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, PAUSE_S[1])
        return instance

    def _vm(self, instance: Instance, *, sent: bool = False) -> Vm:
        machine = instance.machine
        reach = Reach(instance.address, self._settings.user, (instance.host_key,), self._private_key)

        async def why_gone() -> str:
            try:
                async with asyncio.timeout(WHY_S):
                    seen = await self._fleet.look(machine)
            except (VmmsError, TimeoutError):
                return ""
            if seen is None or not seen.gone:
                return ""
            if seen.taken_back:
                raise MachineReclaimed(f"spot instance {seen.id}: {seen.reason}")
            return f"instance {seen.id} is {seen.state}: {seen.reason}"

        link = Link(reach, patience_s=self._settings.lost_s, why_gone=why_gone)
        guard_s = self._limits.max_timeout_s + GUARD_S
        return Vm(link, machine, output_bytes=self._limits.output_stop_bytes, guard_s=guard_s, sent=sent)

    # -- the job -----------------------------------------------------------------------------------

    async def copy_in(self, machine: Machine, files: Sequence[InputFile], limits: Limits) -> None:
        chunks = archive(files, machine.nonce, limits, processes=limits.processes)
        await (await self._known(machine)).feed(chunks, limits)

    async def feed(self, machine: Machine, chunks: AsyncIterator[bytes]) -> None:
        """Sends the bytes to the bootstrap and ends its input, also when `chunks` fails."""
        await (await self._known(machine)).feed(chunks)

    async def run_job(self, machine: Machine) -> Exit:
        vm = await self._known(machine)
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._until_taken_back(machine))
                how = await vm.run_job()
                watching.cancel()
        except BaseExceptionGroup as group_error:
            error = group_error.exceptions[0]
            if isinstance(error, MachineLost | NotStarted):
                self._failed[machine.id] = str(error)
            raise error from None
        self._ended_well.add(machine.id)
        return how

    async def _until_taken_back(self, machine: Machine) -> None:
        """Raises MachineReclaimed in time; on an instance that is paid for by the hour, nothing comes.

        A job that runs needs no API: while that is away, or refuses the job's account by now, there is no notice.
        """
        instance: Instance | None = None
        while instance is None or instance.spot:
            with suppress(VmmsUnavailable, Unsuitable):
                if instance is None:
                    instance = await self._fleet.find(machine)
                elif why := await self._fleet.notice(instance):
                    log.warning("spot instance %s of machine %s will be taken back: %s", instance.id, machine.id, why)
                    await asyncio.sleep(SPOT_GRACE_S)
                    raise MachineReclaimed(f"spot instance {instance.id}: {why}")
            await asyncio.sleep(SPOT_LOOK_S)

    async def copy_out(self, machine: Machine) -> AsyncIterator[bytes]:
        async for chunk in (await self._known(machine)).copy_out():
            yield chunk

    async def _known(self, machine: Machine) -> Vm:
        if machine.id not in self._vms:
            if await self._fleet.find(machine) is None:
                raise MachineLost(f"machine {machine.id}: it has no instance")
            await self.wait_vm(machine)
        return self._vms[machine.id]

    # -- its end, and its finding ------------------------------------------------------------------

    async def destroy_vm(self, machine: Machine) -> None:
        vm, failed = self._vms.pop(machine.id, None), self._failed.pop(machine.id, "")
        self._renewed_s.pop(machine.id, None)
        ended_well = machine.id in self._ended_well
        self._ended_well.discard(machine.id)
        try:
            if vm is not None and ended_well and self._settings.reuse and await self._cleaned(vm):
                return await self._fleet.give_back(machine)
            if failed and self._settings.keep_failed and await self._fleet.keep(machine, failed):
                return None
            await self._fleet.end(machine)
        except BaseException:
            self._fleet.forsake(machine)
            raise
        finally:
            if vm is not None:
                await vm.link.close()
        return None

    async def _cleaned(self, vm: Vm) -> bool:
        try:
            await vm.stop()
            await vm.clean()
        except VmmsError as e:
            log.warning("an instance is not used again: %s", e)
            return False
        return True

    async def get_vms(self) -> list[Machine]:
        self._listed = {instance.machine.id: instance for instance in await self._fleet.all()}
        return [instance.machine for instance in self._listed.values()]

    def standing(self, image: str) -> Standing:
        return self._fleet.standing(image)

    def make_way(self, spec: MachineSpec, most: int) -> None:
        self._fleet.make_way(spec, most)

    def unseen(self) -> int:
        return len(self._fleet.unseen)

    async def adopt(self, machine: Machine) -> None:
        """Of a machine that was just listed the API is not asked again: if it went away now, its job would be lost."""
        if (instance := self._listed.get(machine.id)) is not None:
            self._fleet.made(instance.id, machine, instance.account)
        else:
            instance = await self._fleet.find(machine)
        if instance is None or instance.gone or not instance.host_key:
            raise MachineLost(f"machine {machine.id}: its instance is gone")
        vm = self._vm(instance, sent=True)
        await vm.adopted()
        self._vms[machine.id] = vm
