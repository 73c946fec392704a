"""distDocker: the machines of several Docker engines, as one back-end. A machine's id names its host.

A host is one engine (dist_host.py) with what localDocker does on it; here is which host a machine gets
(dist_slots.py), and that one host's trouble is not the others'. An engine that is out of reach keeps its
jobs until `docker.away_s` is over: the containers run on, and are followed again when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import IO

from ..config import Settings
from ..errors import ConfigError, HostUnavailable, MachineLost, VmmsError, VmmsUnavailable
from ..machine import Capabilities, Exit, InputFile, Limits, Machine, MachineSpec, Usage
from ..model import EngineState
from .dist_host import LOOK_S, Host
from .dist_slots import Placement
from .docker import Containers

log = logging.getLogger(__name__)

LIST_S = 15.0
"""An engine that does not list its containers within this time has none to tell of now."""

CHUNK_BYTES = 1024**2


class DistDocker:
    """The back-end over the engines of `settings.docker.hosts`."""

    name = "distDocker"
    # A prepared machine takes memory on its host; of this one only what its streams do.
    capabilities = Capabilities(
        adopt=True, prestart=True, load_images=True, image_ids=True, network=True, idle_bytes=256 * 1024
    )

    def __init__(self, settings: Settings, install: str) -> None:
        named = {one.name for one in settings.docker.hosts}
        if not named:
            raise ConfigError("docker.hosts: empty; distDocker needs a table [[docker.hosts]] for each engine")
        self.changed = asyncio.Event()
        self._hosts = {
            one.name: Host(one, settings, install, named - {one.name}, self.changed) for one in settings.docker.hosts
        }
        self._placement = Placement(self._hosts)
        self._tending: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Raises VmmsUnavailable if not one engine can be used; each one's problem is logged."""
        await asyncio.gather(*(host.look() for host in self._hosts.values()))
        if not any(host.well for host in self._hosts.values()):
            await self.close()
            raise VmmsUnavailable(self._problems())
        self._tending = [asyncio.create_task(self._tend(host)) for host in self._hosts.values()]

    async def _tend(self, host: Host) -> None:
        while True:
            await host.until_next_look()
            await host.look()
            self._placement.settle()  # whoever waits for a slot may have one now

    async def close(self) -> None:
        for task in self._tending:
            task.cancel()
        await asyncio.gather(*self._tending, return_exceptions=True)
        await asyncio.gather(*(host.close() for host in self._hosts.values()))

    def _problems(self) -> str:
        return "; ".join(f"{host.where}: {host.problem}" for host in self._hosts.values() if not host.well)

    # -- images --------------------------------------------------------------------------------------

    async def get_images(self) -> list[str]:
        """Of all hosts, those that are away as they were; `room` tells for which one could run.

        Raises VmmsUnavailable if none is well.
        """
        if not any(host.well for host in self._hosts.values()):
            raise VmmsUnavailable(self._problems())
        return sorted({image for host in self._hosts.values() for image in host.images})

    async def image_ids(self) -> dict[str, str]:
        """Also of hosts that are away: one that goes or comes back is no reason to make machines anew."""
        found: dict[str, list[str]] = {}
        for host in self._hosts.values():
            for image, number in host.images.items():
                found.setdefault(image, []).append(f"{host.name}={number}")
        return {image: " ".join(ids) for image, ids in found.items()}

    async def load_image(self, name: str, archive: AsyncIterator[bytes]) -> None:
        """Loads it on one after the other of the hosts that are well. Raises VmmsError at the first that fails."""
        with tempfile.TemporaryFile() as file:
            async for chunk in archive:
                await asyncio.to_thread(file.write, chunk)
            for host in self._hosts.values():
                if host.well:
                    file.seek(0)
                    await self.load_on(host.name, name, _chunks(file))

    async def load_on(self, host: str, name: str, archive: AsyncIterator[bytes]) -> None:
        """The same on one host."""
        with self._hosts[host].asked() as driver:
            await driver.load_image(name, archive)
        await self._hosts[host].look()

    async def pull_image(self, name: str, host: str) -> None:
        with self._hosts[host].asked() as driver:
            await driver.pull_image(name)
        await self._hosts[host].look()

    async def push_image(self, name: str, host: str) -> None:
        with self._hosts[host].asked() as driver:
            await driver.push_image(name)

    # -- hosts and their slots -----------------------------------------------------------------------

    def hosts(self) -> list[EngineState]:
        return [
            EngineState(
                name=host.name,
                slots=host.slots,
                busy=self._placement.taken(host.name),
                healthy=host.well,
                problem=host.problem,
                images=host.images,
            )
            for host in self._hosts.values()
        ]

    def slots(self) -> int:
        return self._placement.slots()

    def room(self, image: str) -> int:
        return self._placement.room(image)

    def ask(self, image: str, n: int) -> asyncio.Future[str]:
        return self._placement.ask(image, n)

    def leave(self, n: int, turn: asyncio.Future[str]) -> None:
        self._placement.leave(n, turn)

    def hold(self, machine: Machine, n: int) -> asyncio.Future[str]:
        return self._placement.hold(self.host_of(machine), n)

    def host_of(self, machine: Machine) -> str:
        return self._split(machine)[0].name

    async def reaches(self, machine: Machine) -> bool:
        host, there = self._split(machine)
        try:
            async with asyncio.timeout(LOOK_S):
                with host.asked() as driver:
                    await driver.reach(there)
        except (VmmsUnavailable, TimeoutError):
            return False
        except VmmsError:
            pass  # it says that the machine is gone
        return True

    # -- machines ------------------------------------------------------------------------------------

    async def initialize_vm(self, spec: MachineSpec, owner: str) -> Machine:
        return await self.initialize_on(self._placement.best(spec.image), spec, owner)

    async def initialize_on(self, host: str, spec: MachineSpec, owner: str) -> Machine:
        chosen = self._hosts[host]
        if not chosen.well:
            raise HostUnavailable(f"{host}: {chosen.problem}")
        with chosen.asked() as driver:
            made = await driver.initialize_vm(spec, owner)
        return self._known(chosen, made)

    async def wait_vm(self, machine: Machine) -> None:
        with self._on(machine) as (driver, there):
            await driver.wait_vm(there)

    async def copy_in(self, machine: Machine, files: Sequence[InputFile], limits: Limits) -> None:
        with self._on(machine) as (driver, there):
            await driver.copy_in(there, files, limits)

    async def feed(self, machine: Machine, chunks: AsyncIterator[bytes]) -> None:
        with self._on(machine) as (driver, there):
            await driver.feed(there, chunks)

    async def run_job(self, machine: Machine) -> Exit:
        with self._on(machine) as (driver, there):
            return await driver.run_job(there)

    async def copy_out(self, machine: Machine) -> AsyncIterator[bytes]:
        with self._on(machine) as (driver, there):
            async with aclosing(driver.copy_out(there)) as output:  # type: ignore[type-var]
                async for chunk in output:
                    yield chunk

    async def usage(self, machine: Machine) -> Usage | None:
        with self._on(machine) as (driver, there):
            return await driver.usage(there)

    async def destroy_vm(self, machine: Machine) -> None:
        """On a host that is away it soon fails: the machine is listed again when the host is back."""
        try:
            host, there = self._split(machine)
        except MachineLost:
            return
        host.machines.discard(machine.id)
        await host.driver.forget(there)
        if not host.well:
            await host.look_again()
        if not host.well:
            raise HostUnavailable(f"{host.name}: {host.problem}")
        with host.asked() as driver:
            await driver.destroy_vm(there)

    async def get_vms(self) -> list[Machine]:
        """Of the hosts that answer; those of the others are not gone, but cannot be told."""

        async def listed(host: Host) -> list[Machine]:
            try:
                async with asyncio.timeout(LIST_S):
                    with host.asked() as driver:
                        return [_named(host, machine) for machine in await driver.get_vms()]
            except (VmmsError, TimeoutError) as e:
                log.warning("%s: its machines are not known now: %s", host.where, str(e) or "too slow")
                return []

        well = [host for host in self._hosts.values() if host.well]
        if not well:
            raise VmmsUnavailable(self._problems())
        return [machine for found in await asyncio.gather(*map(listed, well)) for machine in found]

    async def adopt(self, machine: Machine) -> None:
        with self._on(machine) as (driver, there):
            await driver.adopt(there)
        self._split(machine)[0].machines.add(machine.id)

    def _known(self, host: Host, made: Machine) -> Machine:
        machine = _named(host, made)
        host.machines.add(machine.id)
        return machine

    @contextmanager
    def _on(self, machine: Machine) -> Iterator[tuple[Containers, Machine]]:
        host, there = self._split(machine)
        with host.asked() as driver:
            yield driver, there

    def _split(self, machine: Machine) -> tuple[Host, Machine]:
        name, _, there = machine.id.partition("/")
        host = self._hosts.get(name)
        if host is None:
            raise MachineLost(f"the machine {machine.id} is on none of docker.hosts")
        return host, replace(machine, id=there)


def _named(host: Host, machine: Machine) -> Machine:
    return replace(machine, id=f"{host.name}/{machine.id}")


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield chunk
