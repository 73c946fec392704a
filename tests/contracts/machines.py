"""A back-end under test, the jobs that the contract gives it, and what follows them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest

from tango_async.machine import Exit, InputFile, Limits, Machine, MachineSpec
from tango_async.vmms.base import Vmms
from tango_async.vmms.bootstrap import archive

MB = 1024**2
PATIENCE_S = 120.0
"""With one machine, and all that a test does with it."""


class Driver(Vmms, Protocol):
    """A back-end whose `copy_in` is `feed` of bootstrap's archive."""

    async def feed(self, machine: Machine, chunks: AsyncIterator[bytes]) -> None:
        """Sends the bytes to the machine's input and ends it, also when `chunks` fails or the call is cancelled."""


@dataclass
class Backend:
    """One back-end under test."""

    open: Callable[[], Awaitable[Driver]]
    """Another opened instance for the same host and installation, as a restarted dispatcher makes one."""
    vmms: Driver
    image: str
    data_dir: Path
    """The service's data directory, which no job may see."""

    def spec(self, **changes: object) -> MachineSpec:
        values: dict[str, object] = {
            "image": self.image, "network": False, "cores": 2.0,
            "memory_bytes": 512 * MB, "processes": 64, "disk_bytes": 64 * MB,
        }  # fmt: skip
        return MachineSpec(**(values | changes))  # type: ignore[arg-type]

    @asynccontextmanager
    async def machine(self, **changes: object) -> AsyncIterator[Machine]:
        async with asyncio.timeout(PATIENCE_S):
            made = await self.vmms.initialize_vm(self.spec(**changes), "tester")
            try:
                await self.vmms.wait_vm(made)
                yield made
            finally:
                await self.vmms.destroy_vm(made)

    async def run(self, files: Files, limits: Limits | None = None, **changes: object) -> Ran:
        async with self.machine(**changes) as machine:
            await self.vmms.copy_in(machine, inputs(files), limits or limit())
            return await follow(self.vmms, machine)


Files = dict[str, bytes | str]


@dataclass(frozen=True)
class Ran:
    exit: Exit
    output: bytes

    @property
    def code(self) -> int:
        return self.exit.code


def limit(**changes: object) -> Limits:
    values: dict[str, object] = {
        "timeout_s": 20, "output_bytes": MB, "output_stop_bytes": 64 * MB, "file_bytes": 64 * MB,
        "processes": 64, "disk_bytes": 64 * MB, "memory_bytes": 512 * MB, "cores": 2.0,
    }  # fmt: skip
    return Limits(**(values | changes))  # type: ignore[arg-type]


def make(*lines: str) -> Files:
    """A job whose Makefile runs these lines of `sh`, each silently and by itself."""
    return {"Makefile": "all:\n" + "".join(f"\t@{line.replace('$', '$$')}\n" for line in lines)}


def inputs(files: Files) -> list[InputFile]:
    return [_input(name, data.encode() if isinstance(data, str) else data) for name, data in files.items()]


def _input(name: str, data: bytes) -> InputFile:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 65_536):
            yield data[start : start + 65_536]

    return InputFile(name, len(data), chunks)


async def output_of(vmms: Vmms, machine: Machine) -> bytes:
    return b"".join([chunk async for chunk in vmms.copy_out(machine)])


async def follow(vmms: Vmms, machine: Machine) -> Ran:
    async with asyncio.TaskGroup() as group:
        output = group.create_task(output_of(vmms, machine))
        ended = group.create_task(vmms.run_job(machine))
    return Ran(ended.result(), output.result())


async def first_output(vmms: Vmms, machine: Machine) -> bytes:
    """Returns as soon as the program has said something."""
    async with aclosing(vmms.copy_out(machine)) as output:  # type: ignore[type-var]
        async for chunk in output:
            return chunk
    return b""


async def wait_until(condition: Callable[[], object], what: str, patience_s: float = 60.0) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + patience_s
    while not condition():
        if loop.time() > end:
            raise AssertionError(f"never came true: {what}")
        await asyncio.sleep(0.01)


def processes(marker: str) -> list[int]:
    """The host's processes with the marker in their command line, those of jobs included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


class Step:
    """A moment in a job, on any back-end: it is seen to have come, and the job goes on when it is told to.

    A line of the job holds it as a command, and another one after it.
    """

    def __init__(self) -> None:
        self._process = f"sleep\0{3 * 10**9 + uuid4().int % 10**9}"

    def __str__(self) -> str:
        return self._process.replace("\0", " ")

    @property
    def runs(self) -> bool:
        return bool(processes(self._process))

    async def reached(self) -> None:
        await wait_until(lambda: self.runs, "the job came so far")

    def go_on(self) -> None:
        for pid in processes(self._process):
            os.kill(pid, signal.SIGPIPE)  # of which the shell says nothing


async def tar_of(machine: Machine, files: Sequence[InputFile]) -> bytes:
    return b"".join([chunk async for chunk in archive(files, machine.nonce, limit(), processes=0)])


async def only(data: bytes) -> AsyncIterator[bytes]:
    yield data


@asynccontextmanager
async def adopted(backend: Backend, files: Files, limits: Limits) -> AsyncIterator[tuple[Driver, Machine]]:
    """A job that said something, whose first holder was closed and which a second one adopted."""
    first = await backend.open()
    if not first.capabilities.adopt:
        await first.close()
        pytest.skip("machines of this back-end end with their dispatcher")
    machine = await first.initialize_vm(backend.spec(), "first")
    await first.copy_in(machine, inputs(files), limits)
    assert await first_output(first, machine)
    await first.close()
    successor = await backend.open()
    try:
        assert await successor.get_vms() == [machine]
        await successor.adopt(machine)
        async with asyncio.timeout(PATIENCE_S):
            yield successor, machine
    finally:
        await successor.destroy_vm(machine)
        await successor.close()
