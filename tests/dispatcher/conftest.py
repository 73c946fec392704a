"""A dispatcher on a fake engine, a real Redis and a real store; started, killed and stopped at will."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import msgspec
import pytest

from support.fake_vmms import FakeEngine, FakeVmms
from support.jobs import limits, spec
from tango_async.config import Pools, Settings
from tango_async.dispatcher.dispatcher import Dispatcher
from tango_async.files.local import LocalStore
from tango_async.model import JobRecord, JobState
from tango_async.queue.redis import Queue
from tango_async.vmms.base import Vmms

LAB = "test-course-lab"


class Beating(Dispatcher):
    """Beats more often than its leases want, so that they are long: none is over because the machine stood still."""

    beat_s: float | None = 0.2
    """None is as often as the leases want."""

    @property
    def _period_s(self) -> float:
        return super()._period_s if self.beat_s is None else self.beat_s


class Bench:
    """Adds jobs and runs dispatchers, all in the test's own loop."""

    def __init__(self, settings: Settings, queue: Queue, store: LocalStore) -> None:
        usual = limits()
        settled = msgspec.structs.replace(
            settings.limits,
            cores=usual.cores,
            memory_bytes=usual.memory_bytes,
            processes=usual.processes,
            disk_bytes=usual.disk_bytes,
        )
        self.settings = msgspec.structs.replace(settings, limits=settled)
        self.queue = queue
        self.store = store
        self.engine = FakeEngine()
        self.vmms: Callable[[bool], Vmms] = lambda adopt: FakeVmms(self.engine, adopt=adopt)
        self.beat_s: float | None = 0.2
        self.stop = asyncio.Event()
        self.running: asyncio.Task[None] | None = None

    def change(self, **changes: float) -> None:
        changed = msgspec.structs.replace(self.settings.dispatcher, **changes)
        self.settings = msgspec.structs.replace(self.settings, dispatcher=changed)

    def pools(self, **settings: object) -> None:
        self.settings = msgspec.structs.replace(self.settings, pools=msgspec.convert(settings, Pools))

    async def start(self, *, adopt: bool = True) -> None:
        """Returns when the dispatcher takes work."""
        self.stop = asyncio.Event()
        ready = asyncio.Event()
        queue = Queue(self.settings)
        dispatcher = Beating(self.settings, queue, self.store, self.vmms(adopt), "install")
        dispatcher.beat_s = self.beat_s

        async def run() -> None:
            try:
                await dispatcher.run(self.stop, lambda _: ready.set())
            finally:
                await queue.close()

        self.running = asyncio.create_task(run())
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([self.running, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.running.done():
            self.running.result()

    async def finish(self) -> None:
        """As SIGTERM does."""
        if self.running is not None:
            self.stop.set()
            await self.running
            self.running = None

    async def add(
        self, script: str, *, timeout_s: int = 60, output_bytes: int = 100_000, cores: float = 1.0, **changes: object
    ) -> int:
        async def body() -> AsyncIterator[bytes]:
            yield script.encode()

        await self.store.open_lab(LAB)
        await self.store.put(LAB, "Makefile", body())
        pin = await self.store.pin(LAB, [("Makefile", "Makefile")])
        bounds = limits(timeout_s=timeout_s, output_bytes=output_bytes, output_stop_bytes=1_000_000, cores=cores)
        one = spec(lab=LAB, pin=pin.id, files=pin.files, limits=bounds, **changes)
        return (await self.queue.add(one, fingerprint=uuid4().hex)).id

    async def until(self, job_id: int, state: JobState = JobState.DEAD, within_s: float = 60.0) -> JobRecord:
        async with asyncio.timeout(within_s):
            while True:
                job = await self.queue.job(job_id)
                assert job is not None
                if job.state is state:
                    return job
                await asyncio.sleep(0.01)

    async def until_true(self, condition: object, within_s: float = 60.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():  # type: ignore[operator]
                await asyncio.sleep(0.01)

    async def feedback(self, job: JobRecord) -> str:
        if not job.output_ref:
            return job.note
        output = await self.store.output(job.output_ref)
        return b"".join([c async for c in output.read()]).decode(errors="replace")

    async def grade(self, script: str, **changes: object) -> tuple[JobRecord, str]:
        job = await self.until(await self.add(script, **changes))  # type: ignore[arg-type]
        return job, await self.feedback(job)


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Bench]:
    queue, store = Queue(settings, timeout_s=30.0), LocalStore(settings.store)
    bench = Bench(settings, queue, store)
    bench.change(slots=2, upkeep_s=0.2, lease_s=60.0, grace_s=30.0)
    yield bench
    bench.engine.up = True
    await bench.finish()
    await queue.close()
    await store.close()
    assert not bench.engine.machines or bench.settings.dispatcher.grace_s < 1, "a machine was left"
