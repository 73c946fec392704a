"""The verbs of tashiSSH. A machine is one instance of a Tashi cluster, and serves one job.

The cluster manager keeps all that is to be known of a machine: its install is in the instance's name, its
owner, nonce and spec are in a hint. How a job runs on the VM is in vm.py, as on any.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace

import msgspec

from ...config import Settings
from ...errors import ConfigError, ImageNotFound, MachineLost, NoCapacity, Unsuitable, VmmsError, VmmsUnavailable
from ...machine import Capabilities, Exit, InputFile, Limits, Machine, MachineSpec
from ..bootstrap import archive
from ..remote import GUARD_S, OVERTIME_S
from ..ssh import Link, Reach, public_key
from ..vm import Vm
from .pickles import Record
from .rpc import INVALID_INSTANCE, NO_SUCH_INSTANCE, ClusterManager, Instance, State, TashiError

PAUSE_S = (0.1, 2.0)
"""Shortest and longest pause between two looks at an instance that boots."""
NAME_LENGTH = 63
"""An instance's name is the VM's host name."""
HINT = "tango"
HINT_LENGTH = 900
"""The manager's SQL store cuts hints off at 1024 characters, quotes and all."""
GOING = (State.SHUTTING_DOWN, State.DESTROYING)
"""The manager lists such an instance until its host has told of its end."""
ENDED = (*GOING, State.EXITED)
WAITING = (State.PENDING, State.HELD)
"""No host of the cluster has taken it."""
MB = 1024**2
NO_SPEC = MachineSpec(image="", network=False, cores=0, memory_bytes=0, processes=0, disk_bytes=0)


class _Label(msgspec.Struct, frozen=True, array_like=True):
    """What the hint says."""

    nonce: str
    owner: str
    spec: MachineSpec


class TashiSsh:
    """Instances that one cluster manager makes."""

    name = "tashiSSH"
    capabilities = Capabilities(adopt=True, prestart=True, network=True, overtime_s=OVERTIME_S, idle_bytes=MB)

    def __init__(self, settings: Settings, install: str) -> None:
        """Raises ConfigError."""
        _check(settings)
        self.capabilities = replace(self.capabilities, overtime_s=settings.tashi.lost_s + OVERTIME_S)
        self._settings = settings.tashi
        self._limits = settings.limits
        self._prefix = f"tango-{hashlib.sha256(install.encode()).hexdigest()[:12]}-"
        self._manager = ClusterManager(settings.tashi.host, settings.tashi.port)
        self._private_key = ""
        self._vms: dict[str, Vm] = {}

    # -- the engine --------------------------------------------------------------------------------

    async def open(self) -> None:
        self._private_key = await asyncio.to_thread(self._read_key)
        await self._images()
        try:
            await self._manager.get_instances()
        except TashiError as e:
            raise VmmsUnavailable(f"tashi.host: {e}") from e

    def _read_key(self) -> str:
        file = self._settings.private_key
        assert file is not None
        try:
            text = file.read_text()
            public_key(text)
        except (OSError, ValueError) as e:
            raise VmmsUnavailable(f"tashi.private_key: {file}: {getattr(e, 'strerror', None) or e}") from e
        return text

    async def close(self) -> None:
        for vm in self._vms.values():
            await vm.link.close()

    async def get_images(self) -> list[str]:
        return sorted(await self._images())

    async def _images(self) -> dict[str, str]:
        """Image name → disk."""
        found: dict[str, str] = {}
        if (directory := self._settings.image_dir) is not None:
            try:
                names = await asyncio.to_thread(lambda: [path.name for path in directory.iterdir()])
            except OSError as e:
                raise VmmsUnavailable(f"tashi.image_dir: {directory}: {e.strerror}") from e
            found = {name.removesuffix(".img"): name for name in names if name.endswith(".img")}
        named = {name.removesuffix(":latest"): disk for name, disk in self._settings.images.items()}
        return found | named

    async def load_image(self, name: str, archive: AsyncIterator[bytes]) -> None:
        raise VmmsError(
            "tashiSSH cannot load images: put one into the cluster's image store and name it in tashi.images"
        )

    # -- machines ----------------------------------------------------------------------------------

    async def initialize_vm(self, spec: MachineSpec, owner: str) -> Machine:
        disk = (await self._images()).get(spec.image)
        if disk is None:
            raise ImageNotFound(f"image {spec.image}: neither in tashi.images nor in tashi.image_dir")
        machine = Machine(id=self._name(spec.image), spec=spec, nonce=secrets.token_hex(16), owner=owner)
        label = base64.b64encode(msgspec.msgpack.encode(_Label(machine.nonce, owner, spec))).decode()
        if len(label) > HINT_LENGTH:
            raise VmmsError(f"image {spec.image[:80]}…: its name is too long for an instance's hint")
        try:
            made = await self._manager.create_vm(self._instance(machine, disk, label))
        except TashiError as e:
            if e.number == INVALID_INSTANCE:
                raise Unsuitable(str(e)) from e
            raise
        if made.name != machine.id:
            await self._manager.destroy_vm(made.id)
            raise VmmsError(f"Tashi made an instance named {made.name[:80]!r} instead of {machine.id}")
        return machine

    def _name(self, image: str) -> str:
        """Found again by its beginning, with as much of the image as a host name has room for."""
        start = f"{self._prefix}{secrets.token_hex(8)}-"
        return (start + re.sub(r"[^A-Za-z0-9]+", "-", image))[:NAME_LENGTH].rstrip("-")

    def _instance(self, machine: Machine, disk: str, label: str) -> Record:
        spec, settings = machine.spec, self._settings
        mac = "52:54:00:" + secrets.token_bytes(3).hex(":")
        fields = {
            "name": machine.id,
            "cores": max(1, math.ceil(spec.cores)),
            "memory": math.ceil((spec.memory_bytes + settings.system_bytes) / MB),
            "userId": settings.user_id,
            "disks": [Record("DiskConfiguration", {"uri": disk, "persistent": False})],
            "nics": [Record("NetworkConfiguration", {"network": settings.network, "mac": mac, "ip": None})],
            "hints": {HINT: label},
        }
        others = ("id", "vmId", "hostId", "decayed", "state", "groupName")
        return Record("Instance", dict.fromkeys(others) | fields)

    async def wait_vm(self, machine: Machine) -> None:
        """Also asks one that was ready before for a sign of life."""
        try:
            async with asyncio.timeout(self._settings.boot_s):
                instance = await self._running(machine)
                waited = machine.id in self._vms
                vm = self._vm(machine, instance)
                await vm.ready()
                if waited:
                    await vm.answers()
        except TimeoutError as e:
            late = f"machine {machine.id} was not ready within tashi.boot_s"
            if (slow := self._vms.get(machine.id)) is not None:
                raise MachineLost(f"{late}: {slow.trouble or 'the VM did not answer'}") from e
            found = await self._found(machine)
            if found is not None and found.state in WAITING:
                raise NoCapacity(f"{late}: Tashi has it {found.state.name.lower()}, for want of a host") from e
            raise MachineLost(f"{late}: {_gone(machine, found)}") from e

    async def _running(self, machine: Machine) -> Instance:
        pause_s = PAUSE_S[0]
        while True:
            instance = await self._found(machine)
            if instance is None or instance.state in ENDED:
                raise MachineLost(_gone(machine, instance))
            if instance.state is State.RUNNING:
                return instance
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, PAUSE_S[1])

    async def _found(self, machine: Machine) -> Instance | None:
        return next((one for one in await self._manager.get_instances() if one.name == machine.id), None)

    def _vm(self, machine: Machine, instance: Instance) -> Vm:
        if machine.id not in self._vms:
            settings = self._settings
            host = instance.ip or f"{instance.name}.{settings.domain}"

            async def why_gone() -> str:
                with suppress(VmmsError):
                    seen = await self._found(machine)
                    return _gone(machine, seen) if seen is None or seen.state in ENDED else ""
                return ""

            reach = Reach(host, settings.user, settings.host_keys, self._private_key)
            link = Link(reach, patience_s=settings.lost_s, why_gone=why_gone)
            guard_s = self._limits.max_timeout_s + GUARD_S
            self._vms[machine.id] = Vm(link, machine, output_bytes=self._limits.output_stop_bytes, guard_s=guard_s)
        return self._vms[machine.id]

    async def _known(self, machine: Machine) -> Vm:
        return self._vms.get(machine.id) or self._vm(machine, await self._running(machine))

    # -- the job -----------------------------------------------------------------------------------

    async def copy_in(self, machine: Machine, files: Sequence[InputFile], limits: Limits) -> None:
        chunks = archive(files, machine.nonce, limits, processes=limits.processes)
        await (await self._known(machine)).feed(chunks, limits)

    async def feed(self, machine: Machine, chunks: AsyncIterator[bytes]) -> None:
        """Sends the bytes to the bootstrap and ends its input, also when `chunks` fails."""
        await (await self._known(machine)).feed(chunks)

    async def run_job(self, machine: Machine) -> Exit:
        return await (await self._known(machine)).run_job()

    async def copy_out(self, machine: Machine) -> AsyncIterator[bytes]:
        async for chunk in (await self._known(machine)).copy_out():
            yield chunk

    # -- its end, and its finding ------------------------------------------------------------------

    async def destroy_vm(self, machine: Machine) -> None:
        if (vm := self._vms.pop(machine.id, None)) is not None:
            await vm.link.close()
        instance = await self._found(machine)
        if instance is None or instance.state in GOING:
            return
        try:
            await self._manager.destroy_vm(instance.id)
        except TashiError as e:
            if e.number != NO_SUCH_INSTANCE:
                raise

    async def get_vms(self) -> list[Machine]:
        """By their names, so that one whose creation was cut off is found, too."""
        found = await self._manager.get_instances()
        return [_machine(one) for one in found if one.name.startswith(self._prefix) and one.state not in GOING]

    async def adopt(self, machine: Machine) -> None:
        vm = await self._known(machine)
        await vm.adopted()


def _check(settings: Settings) -> None:
    """What can be told from the settings alone. Raises ConfigError."""
    tashi = settings.tashi
    if not tashi.host:
        raise ConfigError("tashi.host: unset; it is the host of Tashi's cluster manager")
    if not tashi.images and tashi.image_dir is None:
        raise ConfigError("tashi.images: unset, and so is tashi.image_dir: there is no image")
    if tashi.private_key is None:
        raise ConfigError("tashi.private_key: unset; it is a file with the key that lets us into VMs")
    if not tashi.host_keys:
        raise ConfigError("tashi.host_keys: unset; `ssh-keyscan` on a VM that you trust tells its images' keys")
    for key in tashi.host_keys:
        if not _is_public_key(key):
            raise ConfigError(f"tashi.host_keys: {key[:40]!r} is no public key, such as `ssh-ed25519 AAAA…`")
    if settings.dispatcher.machine_wait_s <= tashi.boot_s:
        raise ConfigError(f"dispatcher.machine_wait_s: not more than tashi.boot_s, {tashi.boot_s:.0f} s")


def _is_public_key(line: str) -> bool:
    """Whether the type before the key is the one that the key itself begins with."""
    kind, _, rest = line.strip().partition(" ")
    try:
        key = base64.b64decode(rest.split(" ")[0], validate=True)
    except ValueError:
        return False
    return bool(kind) and key.startswith(len(kind).to_bytes(4, "big") + kind.encode())


def _gone(machine: Machine, instance: Instance | None) -> str:
    if instance is None:
        return f"machine {machine.id}: Tashi has no such instance any more"
    return f"machine {machine.id}: Tashi says that instance {instance.id} is {instance.state.name.lower()}"


def _machine(instance: Instance) -> Machine:
    """An instance without a hint that we understand is still a machine, to be removed."""
    try:
        label = msgspec.msgpack.decode(base64.b64decode(instance.hints[HINT], validate=True), type=_Label)
    except (KeyError, TypeError, ValueError, msgspec.MsgspecError):
        return Machine(id=instance.name, spec=NO_SPEC, nonce="")
    return Machine(id=instance.name, spec=label.spec, nonce=label.nonce, owner=label.owner)
