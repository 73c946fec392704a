"""A VMMS whose machines do what their Makefile says, word by word: for faults that no real one gives on cue.

say TEXT · flood BYTES · sleep SECONDS · wait · exit CODE · hang · timer · lose · unstarted · crash

`wait` is until the test lets the engine's jobs go: a job that sleeps instead may be over before the test has looked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

from tango_async.config import Settings
from tango_async.errors import ImageNotFound, MachineLost, NotStarted, VmmsError, VmmsUnavailable
from tango_async.machine import Capabilities, Exit, InputFile, Limits, Machine, MachineSpec, Usage

IMAGE = "autograding_image"


@dataclass
class FakeMachine:
    """Lives in the engine, not in the driver: another driver can adopt it."""

    machine: Machine
    output: bytearray = field(default_factory=bytearray)
    grew: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Future[Exit] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    task: asyncio.Task[None] | None = None

    def say(self, data: bytes) -> None:
        self.output += data
        self.grew.set()

    async def do(self, script: str, go: asyncio.Event) -> None:
        for line in script.splitlines():
            word, _, rest = line.partition(" ")
            match word:
                case "say":
                    self.say(rest.encode() + b"\n")
                case "flood":
                    for _ in range(int(rest) // 65536):
                        self.say(bytes(65536))
                        await asyncio.sleep(0)
                case "sleep":
                    await asyncio.sleep(float(rest))
                case "wait":
                    await go.wait()
                case "hang":
                    await asyncio.Event().wait()
                case "exit":
                    return self.end(Exit(code=int(rest)))
                case "timer":
                    return self.end(Exit(code=124, timed_out=True))
                case "lose":
                    return self.end(MachineLost("gone"))
                case "unstarted":
                    return self.end(NotStarted("make is not installed"))
                case "crash":
                    return self.end(RuntimeError("a defect of ours"))
        return self.end(Exit(code=0))

    def end(self, how: Exit | Exception) -> None:
        if not self.ended.done():
            if isinstance(how, Exit):
                self.ended.set_result(how)
            else:
                self.ended.set_exception(how)
                self.ended.exception()
        self.grew.set()


class FakeEngine:
    """What outlives a driver: machines, images, and whether it answers."""

    def __init__(self) -> None:
        self.machines: dict[str, FakeMachine] = {}
        self.images = [IMAGE]
        self.ids = {IMAGE: "1"}
        self.up = True
        self.loads = False
        self.slow_s = 0.0
        self.boot_s = 0.0
        self.go = asyncio.Event()
        """What `wait` waits for."""
        self.may_make = asyncio.Event()
        self.may_make.set()
        self.made = 0
        self.refused = 0
        """Calls while it was down."""
        self.starts = 0
        self.refuse_creation: list[Exception] = []
        self.broken: dict[str, str] = {}
        """Image → why none of its machines can be made."""
        self.tries = 0


class FakeVmms:
    """The driver. `starts` of the engine counts programs that were begun."""

    name = "fake"
    OVERTIME_S = 0.2

    def __init__(self, engine: FakeEngine, *, adopt: bool = True) -> None:
        self.engine = engine
        self.capabilities = Capabilities(
            adopt=adopt, prestart=True, load_images=engine.loads, image_ids=True, overtime_s=self.OVERTIME_S
        )

    async def open(self) -> None:
        self._check()

    async def close(self) -> None:
        pass

    def _check(self) -> None:
        if not self.engine.up:
            self.engine.refused += 1
            raise VmmsUnavailable("the fake engine is down")

    async def get_images(self) -> list[str]:
        self._check()
        return list(self.engine.images)

    async def image_ids(self) -> dict[str, str]:
        self._check()
        return dict(self.engine.ids)

    async def load_image(self, name: str, archive: AsyncIterator[bytes]) -> None:
        if b"".join([c async for c in archive]) != b"an image":
            raise VmmsError("not an image")
        self.engine.images.append(name)

    async def initialize_vm(self, spec: MachineSpec, owner: str) -> Machine:
        self._check()
        self.engine.tries += 1
        if spec.image not in self.engine.images:
            raise ImageNotFound(spec.image)
        if spec.image in self.engine.broken:
            raise VmmsError(self.engine.broken[spec.image])
        machine = Machine(id=uuid4().hex, spec=spec, nonce=uuid4().hex, owner=owner)
        self.engine.machines[machine.id] = FakeMachine(machine)
        await asyncio.sleep(self.engine.slow_s)
        await self.engine.may_make.wait()
        self.engine.made += 1
        if self.engine.refuse_creation:
            raise self.engine.refuse_creation.pop(0)
        return machine

    async def wait_vm(self, machine: Machine) -> None:
        self._check()
        if machine.id not in self.engine.machines:
            raise MachineLost("no such machine")
        await asyncio.sleep(self.engine.boot_s)

    async def copy_in(self, machine: Machine, files: Sequence[InputFile], limits: Limits) -> None:
        self._check()
        sent = {f.name: b"".join([c async for c in f.chunks()]) for f in files}
        fake = self.engine.machines.get(machine.id)
        if fake is None:
            raise MachineLost("no such machine")
        self.engine.starts += 1
        fake.task = asyncio.create_task(fake.do(sent["Makefile"].decode(), self.engine.go))

    async def run_job(self, machine: Machine) -> Exit:
        if machine.id not in self.engine.machines:
            raise MachineLost("no such machine")
        return await asyncio.shield(self.engine.machines[machine.id].ended)

    async def copy_out(self, machine: Machine) -> AsyncIterator[bytes]:
        fake, seen = self.engine.machines[machine.id], 0
        while True:
            if len(fake.output) > seen:
                new = bytes(fake.output[seen:])
                seen += len(new)
                yield new
            elif fake.ended.done():
                return
            else:
                fake.grew.clear()
                await fake.grew.wait()

    async def destroy_vm(self, machine: Machine) -> None:
        self._check()
        fake = self.engine.machines.pop(machine.id, None)
        if fake is not None:
            if fake.task is not None:
                fake.task.cancel()
            fake.end(MachineLost("destroyed"))

    async def get_vms(self) -> list[Machine]:
        self._check()
        return [fake.machine for fake in self.engine.machines.values()]

    async def adopt(self, machine: Machine) -> None:
        if machine.id not in self.engine.machines:
            raise MachineLost("no such machine")


class QuietVmms(FakeVmms):
    """Says that it keeps machines to some cores, and what they used only while it may count."""

    def __init__(self, engine: FakeEngine, counting: asyncio.Event) -> None:
        super().__init__(engine)
        self.capabilities = replace(self.capabilities, cpusets=True)
        self._counting = counting

    async def usage(self, machine: Machine) -> Usage | None:
        await self._counting.wait()
        return None


def make(settings: Settings, install: str) -> FakeVmms:
    """As a third party's back-end is made: `support.fake_vmms:make`."""
    return FakeVmms(FakeEngine())
