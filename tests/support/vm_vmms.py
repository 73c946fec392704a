"""The smallest VMMS of virtual machines: `vm.py` on VMs of the tests' own, so that the transport is tried alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import count
from pathlib import Path
from uuid import uuid4

from support.places import own_network
from support.vm import SshVm
from tango_async.errors import ImageNotFound, MachineLost
from tango_async.machine import Capabilities, Exit, InputFile, Limits, Machine, MachineSpec
from tango_async.vmms.bootstrap import archive
from tango_async.vmms.ssh import Link, Reach, new_key
from tango_async.vmms.vm import Vm

IMAGE = "debian"
_numbers = count(2)


class Cloud:
    """What outlives a driver: the VMs, and the key that they let in."""

    def __init__(self, autodriver: Path | None = None) -> None:
        self.autodriver = autodriver
        self.private_key, self.public_key = new_key()
        self.vms: dict[str, tuple[Machine, SshVm]] = {}

    def close(self) -> None:
        for _, vm in self.vms.values():
            vm.kill()


class VmVmms:
    name = "vm"
    capabilities = Capabilities(adopt=True, prestart=True, network=True)

    def __init__(self, cloud: Cloud, *, patience_s: float = 5.0) -> None:
        self.cloud = cloud
        self._patience_s = patience_s
        self._vms: dict[str, Vm] = {}

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        for vm in self._vms.values():
            await vm.link.close()

    async def get_images(self) -> list[str]:
        return [IMAGE]

    async def initialize_vm(self, spec: MachineSpec, owner: str) -> Machine:
        if spec.image != IMAGE:
            raise ImageNotFound(spec.image)
        machine = Machine(id=uuid4().hex, spec=spec, nonce=uuid4().hex, owner=owner)
        number = next(_numbers)
        vm = SshVm(
            f"127.{own_network()}.{200 + number // 250}.{number % 250 + 2}",
            self.cloud.public_key,
            autodriver=self.cloud.autodriver,
        )
        self.cloud.vms[machine.id] = machine, vm
        vm.start()
        return machine

    async def wait_vm(self, machine: Machine) -> None:
        await self.vm(machine).ready()

    async def copy_in(self, machine: Machine, files: Sequence[InputFile], limits: Limits) -> None:
        await self.vm(machine).feed(archive(files, machine.nonce, limits, processes=limits.processes), limits)

    async def feed(self, machine: Machine, chunks: AsyncIterator[bytes]) -> None:
        await self.vm(machine).feed(chunks)

    async def run_job(self, machine: Machine) -> Exit:
        return await self.vm(machine).run_job()

    async def copy_out(self, machine: Machine) -> AsyncIterator[bytes]:
        async for chunk in self.vm(machine).copy_out():
            yield chunk

    async def destroy_vm(self, machine: Machine) -> None:
        if machine.id in self._vms:
            await self._vms.pop(machine.id).link.close()
        _, vm = self.cloud.vms.pop(machine.id, (None, None))
        if vm is not None:
            await asyncio.to_thread(vm.kill)

    async def get_vms(self) -> list[Machine]:
        return [machine for machine, _ in self.cloud.vms.values()]

    async def adopt(self, machine: Machine) -> None:
        await self.vm(machine).adopted()

    def vm(self, machine: Machine) -> Vm:
        if machine.id not in self._vms:
            if machine.id not in self.cloud.vms:
                raise MachineLost("there is no such VM")
            real = self.cloud.vms[machine.id][1]

            async def why_gone() -> str:
                return "" if real.alive else "the VM is gone"

            reach = Reach(
                real.address, "autolab" if real.autodriver else "root", (real.public_key,), self.cloud.private_key
            )
            link = Link(reach, patience_s=self._patience_s, why_gone=why_gone)
            self._vms[machine.id] = Vm(link, machine, output_bytes=64 * 1024**2, guard_s=600)
        return self._vms[machine.id]
