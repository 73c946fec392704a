"""A dispatcher, its jobs and the machines that wait for them, on a fake engine and a real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from dispatcher.conftest import Bench
from support.engine import Engine
from support.fake_vmms import IMAGE, FakeVmms, QuietVmms
from support.images import saved, variation
from support.jobs import machine_of
from tango_async.config import Docker
from tango_async.dispatcher import cores
from tango_async.dispatcher.claiming import Claiming
from tango_async.model import EVERY_IMAGE, DispatcherRecord, JobState, PoolOrder, PoolState, Verdict
from tango_async.vmms.docker import INSTALL, LocalDocker


async def test_a_prepared_machine_that_died_costs_its_job_nothing(bench: Bench) -> None:
    await bench.queue.want_pool(IMAGE, PoolOrder(size=2))
    await bench.start()
    await bench.until_true(lambda: len(bench.engine.machines) == 2)
    dead = set(bench.engine.machines)
    bench.engine.machines.clear()
    job, feedback = await bench.grade("say hello\nexit 0", network=False)
    assert any(line.text.rpartition(" ")[2] in dead for line in job.trace), "it was given no prepared machine"
    assert (job.verdict, job.attempts, job.retries, bench.engine.starts) == (Verdict.SUCCESS, 1, 0, 1)
    assert feedback.endswith("hello\n")
    await bench.finish()
    assert await bench.queue._command("HLEN", f"{bench.settings.queue.prefix}machines") == 0


async def test_a_program_that_never_begins_is_charged_on_a_machine_of_its_own(bench: Bench) -> None:
    await bench.queue.want_pool(IMAGE, PoolOrder(size=1))
    await bench.start()
    await bench.until_true(lambda: len(bench.engine.machines) == 1)
    job, _ = await bench.grade("unstarted", network=False)
    assert (job.verdict, job.retries) == (Verdict.GAVE_UP, bench.settings.dispatcher.job_retries)


async def test_jobs_of_a_full_pool_wait_and_others_pass_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tango_async.dispatcher.claiming.LISTEN_S", 60.0)  # who waits for room is told of it
    bench.engine.images = [IMAGE, "other"]
    bench.pools(image=[{"pattern": IMAGE, "max": 1}])
    await bench.start()
    long = await bench.add("wait\nexit 0")
    await bench.until(long, JobState.RUNNING)
    waits = [await bench.add("exit 0") for _ in range(3)]
    job, _ = await bench.grade("exit 0", image="other")
    assert job.verdict is Verdict.SUCCESS
    assert [(await bench.until(i, JobState.QUEUED)).attempts for i in waits] == [0, 0, 0]
    bench.engine.go.set()
    assert [(await bench.until(i)).verdict for i in [long, *waits]] == [Verdict.SUCCESS] * 4


async def test_ordinary_and_quiet_jobs_share_the_room_of_a_pool(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (online := tmp_path / "online").write_text("0-1")
    monkeypatch.setattr(cores, "ONLINE", online)
    counting = asyncio.Event()
    counting.set()
    bench.vmms = lambda _: QuietVmms(bench.engine, counting)
    bench.change(quiet_cores="1")
    bench.pools(max=1)
    ordinary, quiet = await bench.add("wait"), await bench.add("exit 0", quiet=True)
    await bench.start()
    await bench.until(ordinary, JobState.RUNNING)
    await bench.until(quiet, JobState.QUEUED)
    bench.engine.go.set()
    assert (await bench.until(quiet)).verdict is Verdict.SUCCESS


@pytest.mark.parametrize("change", ["its images are gone", "its pool is smaller than what runs"])
async def test_a_host_that_can_take_no_job_waits_and_does_not_spin(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    rounds, listen = 0, Claiming._listen

    async def listened(claiming: Claiming, stop: asyncio.Event) -> None:
        nonlocal rounds
        rounds += 1
        await listen(claiming, stop)

    monkeypatch.setattr(Claiming, "_listen", listened)
    bench.change(slots=4)
    await bench.start()
    jobs = [await bench.add("hang", timeout_s=60) for _ in range(3)]
    await bench.until_true(lambda: bench.engine.starts == 3)
    if change == "its images are gone":
        bench.engine.images.clear()
    else:
        await bench.queue.want_pool(EVERY_IMAGE, PoolOrder(size=0, max=1))
    await asyncio.sleep(0.5)  # some beats
    await bench.queue.cancel(jobs[0])
    await bench.until(jobs[0])
    rounds = 0
    await asyncio.sleep(0.5)
    assert rounds < 10
    for job_id in jobs[1:]:
        await bench.queue.cancel(job_id)


async def test_scaling_keeps_machines_of_what_is_used_and_bounds_them(bench: Bench) -> None:
    await bench.queue.want_pool(EVERY_IMAGE, PoolOrder(size=1, max=1))
    await bench.start()
    assert not bench.engine.machines
    first = await bench.add("wait\nexit 0")
    await bench.until(first, JobState.RUNNING)
    second = await bench.add("exit 0")
    await asyncio.sleep(0.3)
    await bench.until(second, JobState.QUEUED)
    bench.engine.go.set()
    for job_id in (first, second):
        assert (await bench.until(job_id)).verdict is Verdict.SUCCESS
    await bench.until_true(lambda: len(bench.engine.machines) == 1)
    await bench.queue.want_pool(EVERY_IMAGE, None)
    await bench.until_true(lambda: not bench.engine.machines)


async def test_old_machines_are_gone_before_a_build_is_told(bench: Bench) -> None:
    bench.engine.loads = True
    await bench.queue.want_pool(IMAGE, PoolOrder(size=2))
    await bench.start()
    await bench.until_true(lambda: len(bench.engine.machines) == 2)
    old = set(bench.engine.machines)

    async def archive() -> AsyncIterator[bytes]:
        yield b"an image"

    ref = await bench.store.put_image(archive())
    await bench.queue.ask_build(IMAGE, ref)
    async with asyncio.timeout(60):
        while await bench.queue.build_verdict(IMAGE, ref) is None:
            await asyncio.sleep(0.01)
    bench.engine.slow_s = 0.3
    job, _ = await bench.grade("exit 0", network=False)
    assert job.verdict is Verdict.SUCCESS and job.machine not in old
    bench.engine.slow_s = 0.0
    await bench.until_true(lambda: len(set(bench.engine.machines) - old) == 2 and not old & set(bench.engine.machines))


async def test_old_machines_go_when_an_image_was_replaced_behind_the_service(bench: Bench) -> None:
    await bench.queue.want_pool(IMAGE, PoolOrder(size=2))
    await bench.start()
    await bench.until_true(lambda: len(bench.engine.machines) == 2)
    old = set(bench.engine.machines)
    bench.engine.ids[IMAGE] = "2"
    await bench.until_true(lambda: len(bench.engine.machines) == 2 and not old & set(bench.engine.machines))


async def test_machines_that_a_dead_dispatcher_left_waiting_are_removed_and_never_adopted(bench: Bench) -> None:
    left = FakeVmms(bench.engine)
    idle = [await left.initialize_vm(machine_of(IMAGE), "dead") for _ in range(3)]
    await bench.queue.want_pool(IMAGE, PoolOrder(size=2))
    await bench.start()
    await bench.until_true(lambda: len(bench.engine.machines) == 2)
    assert not {machine.id for machine in idle} & set(bench.engine.machines)
    record = await published(bench, free=2)
    assert record.pools[IMAGE].free == (1000, 1001) and record.busy == 0


async def test_what_cannot_be_prepared_is_published(bench: Bench) -> None:
    bench.engine.broken[IMAGE] = "exec: sh: not found"
    await bench.queue.want_pool(IMAGE, PoolOrder(size=1))
    await bench.start()
    async with asyncio.timeout(60):
        while (await published(bench)).pools.get(IMAGE) != PoolState(problem="exec: sh: not found"):
            await asyncio.sleep(0.05)
    assert (await published(bench)).healthy


async def published(bench: Bench, free: int | None = None) -> DispatcherRecord:
    """What the dispatcher says of itself, once it says that so many machines wait."""
    async with asyncio.timeout(60):
        while True:
            records = await bench.queue.dispatchers()
            if records and (free is None or sum(len(pool.free) for pool in records[0].pools.values()) == free):
                return records[0]
            await asyncio.sleep(0.02)


# -- containers ----------------------------------------------------------------------------------------


class Containers:
    """A dispatcher on a real engine."""

    def __init__(self, bench: Bench, engine: Engine) -> None:
        self.bench = bench
        self.engine = engine
        self.install = f"test-{uuid4().hex}"
        bench.vmms = lambda adopt: self.driver()
        bench.beat_s = 0.5

    def driver(self) -> LocalDocker:
        # Their state directory is this test's own: a dispatcher removes what it finds there and does not know.
        settings = msgspec.structs.replace(self.bench.settings, docker=Docker(host=self.engine.host))
        return LocalDocker(settings, self.install)

    def all(self) -> list[str]:
        return self.engine.containers(f"{INSTALL}={self.install}")

    def waiting_of(self) -> list[str]:
        """The images of the containers that run; one that is only looked into does not."""
        found = []
        for container in self.all():
            with suppress(RuntimeError):  # it may be gone by now
                record = self.engine.get(f"/containers/{container}/json")
                found += [record["Image"]] if record["State"]["Running"] else []
        return found

    async def prepared(self, number: int) -> DispatcherRecord:
        return await published(self.bench, free=number)

    async def graded(self, **changes: object) -> str:
        """The machine of a job that says hello."""
        job, feedback = await self.bench.grade("all:\n\t@echo hello\n", **changes)
        assert (job.verdict, job.attempts) == (Verdict.SUCCESS, 1) and feedback.endswith("hello\n"), feedback
        return job.machine


@pytest.fixture
async def containers(bench: Bench, docker_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Containers]:
    monkeypatch.setattr("tango_async.dispatcher.machines.CLOSE_S", 60.0)
    containers = Containers(bench, docker_engine)
    yield containers
    await bench.finish()
    left = containers.all()
    for container in left:
        docker_engine.remove(container)
    assert not left, "containers were left"


async def test_a_prepared_container_runs_one_job_and_is_replaced(containers: Containers) -> None:
    await containers.bench.queue.want_pool(IMAGE, PoolOrder(size=1, network=False))
    await containers.bench.start()
    await containers.prepared(1)
    (waiting,) = containers.all()
    name = containers.engine.get(f"/containers/{waiting}/json")["Name"].removeprefix("/")
    assert await containers.graded(network=False) == name
    await containers.bench.until_true(lambda: waiting not in containers.all() and len(containers.all()) == 1)


async def test_a_machine_that_was_ordered_in_tangos_words_serves_an_ordinary_job(containers: Containers) -> None:
    await containers.bench.queue.want_pool(IMAGE, PoolOrder(size=1, cores=1.0, memory_mb=256, network=False))
    await containers.bench.start()
    await containers.prepared(1)
    (waiting,) = containers.all()
    found = containers.engine.get(f"/containers/{waiting}/json")
    assert await containers.graded(network=False) == found["Name"].removeprefix("/")
    assert found["HostConfig"]["Memory"] == 256 * 1024**2


@pytest.mark.parametrize("how", ["removed", "killed"])
async def test_a_prepared_container_that_is_dead_costs_its_job_nothing(containers: Containers, how: str) -> None:
    await containers.bench.queue.want_pool(IMAGE, PoolOrder(size=2, network=False))
    await containers.bench.start()
    await containers.prepared(2)
    for container in containers.all():
        if how == "removed":
            containers.engine.remove(container)
        else:
            containers.engine.call("POST", f"/containers/{container}/kill")
    await containers.graded(network=False)


async def test_containers_left_waiting_end_by_themselves_and_are_removed(containers: Containers) -> None:
    dead = containers.driver()
    await dead.open()
    spec = machine_of(IMAGE, memory_bytes=64 * 1024**2, disk_bytes=1024**2)
    machines = [await dead.initialize_vm(spec, "dead") for _ in range(2)]
    await dead.close()

    def running() -> list[bool]:
        return [containers.engine.get(f"/containers/{m.id}/json")["State"]["Running"] for m in machines]

    await containers.bench.until_true(lambda: running() == [False, False])
    await containers.bench.start()
    await containers.bench.until_true(lambda: not containers.all())
    await containers.graded()


async def test_containers_of_an_image_that_was_tagged_anew_are_replaced(containers: Containers) -> None:
    with variation(containers.engine, {"a": b"1"}) as image, variation(containers.engine, {"a": b"2"}) as other:
        await containers.bench.queue.want_pool(image, PoolOrder(size=1, network=False))
        await containers.bench.start()
        await containers.prepared(1)
        containers.engine.call("POST", f"/images/{other}/tag", repo=image)
        new = containers.engine.get(f"/images/{other}/json")["Id"]
        await containers.bench.until_true(lambda: containers.waiting_of() == [new])
        await containers.graded(image=image, network=False)
        await containers.bench.finish()


@pytest.fixture
def lame(docker_engine: Engine) -> Iterator[str]:
    """An image in which nothing can be started."""
    name = f"test-{uuid4().hex[:12]}"
    docker_engine.call("POST", "/images/load", saved((uuid4().bytes, [f"{name}:latest"])))
    yield name
    docker_engine.call("DELETE", f"/images/{name}")


async def test_an_image_in_which_nothing_starts_hinders_no_other_pool(containers: Containers, lame: str) -> None:
    await containers.bench.queue.want_pool(lame, PoolOrder(size=2))
    await containers.bench.queue.want_pool(IMAGE, PoolOrder(size=2, network=False))
    await containers.bench.start()
    record = await containers.prepared(2)
    while not record.pools[lame].problem:
        record = await published(containers.bench)
    assert json.dumps(record.pools[lame].free) == "[]" and len(record.pools[IMAGE].free) == 2
    await containers.graded(network=False)
