"""Machines that cost nothing: what is left is the service's own work.

TANGO_VMMS=machines:Idle      a job ends at once, or after the seconds that its Makefile's first line says: # sleep 1
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from uuid import uuid4

from tango_async.config import Settings
from tango_async.machine import Capabilities, Exit, InputFile, Limits, Machine, MachineSpec

IMAGE = "autograding_image"


class Idle:
    """Hundreds of jobs may sleep at a time: each is a coroutine."""

    name = "idle"
    capabilities = Capabilities()

    def __init__(self, settings: Settings, install: str) -> None:
        self._sleeps_s: dict[str, float] = {}

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    async def get_images(self) -> list[str]:
        return [IMAGE]

    async def image_ids(self) -> dict[str, str]:
        return {}

    async def load_image(self, name: str, archive: AsyncIterator[bytes]) -> None: ...

    async def initialize_vm(self, spec: MachineSpec, owner: str) -> Machine:
        return Machine(id=uuid4().hex, spec=spec, nonce="", owner=owner)

    async def wait_vm(self, machine: Machine) -> None: ...

    async def copy_in(self, machine: Machine, files: Sequence[InputFile], limits: Limits) -> None:
        for file in files:
            text = b"".join([chunk async for chunk in file.chunks()]).decode()
            word, _, seconds = text.partition("\n")[0].rpartition(" ")
            if word == "# sleep":
                self._sleeps_s[machine.id] = float(seconds)

    async def run_job(self, machine: Machine) -> Exit:
        if sleep_s := self._sleeps_s.pop(machine.id, 0.0):
            await asyncio.sleep(sleep_s)
        return Exit(code=0)

    async def copy_out(self, machine: Machine) -> AsyncIterator[bytes]:
        yield b"nothing\n"

    async def usage(self, machine: Machine) -> None: ...

    async def destroy_vm(self, machine: Machine) -> None: ...

    async def get_vms(self) -> list[Machine]:
        return []

    async def adopt(self, machine: Machine) -> None: ...
