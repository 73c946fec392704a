"""What the guarantees cost: empty jobs through the full path, beside a bare list on the same Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import uuid4

import msgspec
from figures import Figure
from redis.asyncio import Redis

from support.jobs import claim_one, spec
from support.redis_server import RedisServer
from tango_async.config import Settings, load
from tango_async.dispatcher.dispatcher import Dispatcher
from tango_async.files.local import LocalStore
from tango_async.model import Capabilities, Exit, InputFile, Limits, Machine, MachineSpec, Verdict
from tango_async.queue.redis import Queue

IMAGE = "autograding_image"
JOBS = 3000
SLOTS = 32
SYNC = {name: ("--save", "", "--appendonly", "yes", "--appendfsync", name) for name in ("everysec", "always")}


class Nothing:
    """Machines that cost nothing and end at once: what is left is the service's own work."""

    name = "nothing"
    capabilities = Capabilities()

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    async def get_images(self) -> list[str]:
        return [IMAGE]

    async def load_image(self, name: str, archive: AsyncIterator[bytes]) -> None: ...

    async def initialize_vm(self, spec: MachineSpec, owner: str) -> Machine:
        return Machine(id=uuid4().hex, spec=spec, nonce="", owner=owner)

    async def wait_vm(self, machine: Machine) -> None: ...
    async def copy_in(self, machine: Machine, files: Sequence[InputFile], limits: Limits) -> None: ...

    async def run_job(self, machine: Machine) -> Exit:
        return Exit(code=0)

    async def copy_out(self, machine: Machine) -> AsyncIterator[bytes]:
        yield b"nothing\n"

    async def destroy_vm(self, machine: Machine) -> None: ...

    async def get_vms(self) -> list[Machine]:
        return []

    async def adopt(self, machine: Machine) -> None: ...


def _settings(directory: Path, url: str) -> Settings:
    environment = {"TANGO_DATA_DIR": str(directory), "TANGO_REDIS_URL": url, "TANGO_SLOTS": str(SLOTS)}
    return load(environ=environment | {"TANGO_QUEUE_PREFIX": f"{uuid4().hex[:8]}:"})


async def guarantees(directory: Path) -> list[Figure]:
    """Full path and floor in turn, with each way of fsync."""
    figures: list[Figure] = []
    for sync, options in SYNC.items():
        (directory / sync).mkdir()
        server = RedisServer(directory / sync, options=options)
        server.start()
        try:
            scripts, whole, floor = [], [], []
            for turn in range(3):
                settings = _settings(directory / f"{sync}-{turn}", server.url)
                scripts.append(await _scripts(settings))
                whole.append(await _dispatcher(settings))
                floor.append(await _bare_list(server.url))
        finally:
            server.kill()
        beside = "LPUSH + BLPOP"
        figures.append(Figure(f"empty jobs, all scripts, {sync}", "jobs/s", scripts, floor, beside, "-"))
        aim = ">= 1000" if sync == "everysec" else "-"
        figures.append(Figure(f"empty jobs, whole dispatcher, {sync}", "jobs/s", whole, floor, beside, aim))
    return figures


async def _scripts(settings: Settings) -> float:
    """add, claim, start, extend, end: what a job costs the queue, from one process."""
    queue = Queue(settings)
    numbers = iter(range(JOBS))

    async def work() -> None:
        for _ in numbers:
            await queue.add(spec(), fingerprint=uuid4().hex)
            claim = await claim_one(queue, [IMAGE], instance="bench")
            assert claim is not None
            await queue.start(claim, uuid4().hex)
            await queue.extend([(claim.id, claim.seq)])
            await queue.end(claim, Verdict.SUCCESS, "Success: Autodriver returned normally", "ref")

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(SLOTS)))
    taken = time.perf_counter() - begun
    await queue.close()
    return JOBS / taken


async def _dispatcher(settings: Settings) -> float:
    """A dispatcher that finds the jobs waiting, with everything it does but machines: feedback is stored too."""
    settings = msgspec.structs.replace(
        settings, queue=msgspec.structs.replace(settings.queue, prefix=f"{uuid4().hex[:8]}:")
    )
    queue, store = Queue(settings), LocalStore(settings.store)
    await store.open_lab("test-lab")
    for start in range(0, JOBS, 100):
        pins = [await store.pin("test-lab", []) for _ in range(100)]
        jobs = [spec(lab="test-lab", pin=pin.id, output_name=f"{start + i}.txt") for i, pin in enumerate(pins)]
        await asyncio.gather(*(queue.add(job, fingerprint=uuid4().hex) for job in jobs))
    stop = asyncio.Event()
    dispatcher = Dispatcher(settings, Queue(settings), store, Nothing(), "bench")
    begun = time.perf_counter()
    running = asyncio.create_task(dispatcher.run(stop, lambda _: None))
    while await queue._command("ZCARD", f"{settings.queue.prefix}dead") < JOBS:
        await asyncio.sleep(0.05)
    taken = time.perf_counter() - begun
    stop.set()
    await running
    await queue.close()
    await store.close()
    return JOBS / taken


async def _bare_list(url: str) -> float:
    client = Redis.from_url(url, socket_timeout=None)
    key, numbers = uuid4().hex, iter(range(JOBS))

    async def work() -> None:
        for _ in numbers:
            await client.lpush(key, b"x" * 300)
            await client.blpop([key], 5)

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(SLOTS)))
    taken = time.perf_counter() - begun
    await client.aclose()
    return JOBS / taken
