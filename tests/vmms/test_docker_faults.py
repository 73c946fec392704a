"""localDocker while the engine hangs, dies and comes back, and while calls are cancelled at any moment."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from contracts.machines import (
    Backend,
    Ran,
    Step,
    adopted,
    first_output,
    follow,
    inputs,
    limit,
    make,
    only,
    output_of,
    processes,
    tar_of,
    wait_until,
)
from support.engine import PrivateEngine
from tango_async.config import Docker, Settings
from tango_async.errors import MachineLost, NotStarted, VmmsError, VmmsUnavailable
from tango_async.machine import Exit, InputFile, Machine
from tango_async.vmms import docker, engine, outputs
from tango_async.vmms.base import Vmms
from tango_async.vmms.docker import LocalDocker
from tango_async.vmms.engine_streams import Attached
from vmms.conftest import engine_only, host_only, until_it_listens


@pytest.fixture
def backend(private_backend: Backend) -> Backend:
    return private_backend


@pytest.fixture
def hanging(private_engine: PrivateEngine) -> Iterator[Callable[[bool], None]]:
    """Stops the engine or lets it go on; it goes on after the test."""
    yield lambda on: private_engine.send(signal.SIGSTOP if on else signal.SIGCONT)
    private_engine.send(signal.SIGCONT)


async def remove_all(backend: Backend) -> list[Machine]:
    """What cancelled calls made, once the engine has gone on with what it was told.

    That lasts as long as some machines that are made and destroyed after it, however slow the engine is.
    """
    found: list[Machine] = []
    for _ in range(4):
        await backend.vmms.destroy_vm(await backend.vmms.initialize_vm(backend.spec(), "later"))
        for machine in await backend.vmms.get_vms():
            await backend.vmms.destroy_vm(machine)
            found.append(machine)
    return found


async def restart(private_engine: PrivateEngine) -> None:
    await asyncio.to_thread(private_engine.kill)
    await asyncio.to_thread(private_engine.start)


@asynccontextmanager
async def running(backend: Backend, *lines: str) -> AsyncIterator[tuple[Machine, asyncio.Task[Ran]]]:
    """A job that is followed to its end by whoever made its machine."""
    async with backend.machine() as machine:
        await backend.vmms.copy_in(machine, inputs(make(*lines)), limit())
        yield machine, asyncio.create_task(follow(backend.vmms, machine))


async def test_a_job_outlives_two_deaths_of_its_engine(backend: Backend, private_engine: PrivateEngine) -> None:
    one, two = Step(), Step()
    async with running(backend, f"echo 1; {one}; echo 2; {two}; echo 3") as (_, job):
        for step in (one, two):
            await step.reached()
            await restart(private_engine)
            step.go_on()
        assert await job == Ran(Exit(0), b"1\n2\n3\n")


async def test_an_adopted_job_outlives_its_engine(backend: Backend, private_engine: PrivateEngine) -> None:
    step = Step()
    async with adopted(backend, make(f"echo 1; {step}; echo 2"), limit()) as (successor, machine):
        job = asyncio.create_task(follow(successor, machine))
        await step.reached()
        await restart(private_engine)
        step.go_on()
        assert await job == Ran(Exit(0), b"1\n2\n")


async def test_what_is_written_while_the_engine_is_away_is_read(
    backend: Backend, private_engine: PrivateEngine
) -> None:
    one, two = Step(), Step()
    async with running(backend, f"echo 1; {one}; echo 2; {two}; echo 3") as (_, job):
        await one.reached()
        await asyncio.to_thread(private_engine.kill)
        one.go_on()
        await two.reached()
        await asyncio.to_thread(private_engine.start)
        two.go_on()
        assert await job == Ran(Exit(0), b"1\n2\n3\n")


@engine_only
async def test_much_output_stays_whole_over_a_death(backend: Backend, private_engine: PrivateEngine) -> None:
    step = Step()
    async with running(backend, f"seq 100000; {step}; seq 100001 200000") as (machine, job):
        await step.reached()
        await wait_until(lambda: b"\n100000\n" in logged(private_engine, machine), "the engine has written it all")
        await restart(private_engine)
        step.go_on()
        assert await job == Ran(Exit(0), b"".join(b"%d\n" % i for i in range(1, 200_001)))


def logged(private_engine: PrivateEngine, machine: Machine) -> bytes:
    """The output in the engine's log."""
    frames = bytearray(private_engine.call("GET", f"/containers/{machine.id}/logs", stdout="1", stderr="1")[1])
    return engine.payload(frames)


@engine_only
async def test_output_that_the_engine_took_to_its_grave_is_missed(
    backend: Backend, private_engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live output may be ahead of the log that is read afterwards; what lies between is never skipped."""
    step, seen = Step(), asyncio.Event()
    original = Attached.chunks

    async def ahead(attached: Attached) -> AsyncIterator[bytes]:
        async for chunk in original(attached):
            if b"seen\n" in chunk:
                seen.set()
            yield chunk.replace(b"seen\n", b"seen, never logged\n")

    monkeypatch.setattr(Attached, "chunks", ahead)
    async with running(backend, f"echo seen; {step}; seq 100") as (_, job):
        await step.reached()
        await seen.wait()
        await restart(private_engine)
        step.go_on()
        with pytest.raises(ExceptionGroup) as told:
            await job
    assert told.group_contains(MachineLost, match="whole output")


@engine_only
async def test_an_end_that_no_engine_saw_is_lost(backend: Backend, private_engine: PrivateEngine) -> None:
    """The engine knows the exit code afterwards, but what was written while it was away is gone."""
    step = Step()
    async with running(backend, f"echo 1; {step}; echo 2") as (machine, job):
        await step.reached()
        await asyncio.to_thread(private_engine.kill)
        step.go_on()
        await wait_until(lambda: not processes(machine.nonce), "the job ended")
        await asyncio.to_thread(private_engine.start)
        with pytest.raises(ExceptionGroup) as told:
            await job
    assert told.group_contains(MachineLost, match="away")


@engine_only
async def test_an_engine_that_stays_away_is_told(
    backend: Backend, private_engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.vmms._engine, "away_s", 0.5)
    step = Step()
    async with running(backend, f"{step}") as (machine, job):
        await step.reached()
        await asyncio.to_thread(private_engine.kill)
        try:
            with pytest.raises(ExceptionGroup) as told:
                await job
            with pytest.raises(VmmsUnavailable):
                await backend.vmms.destroy_vm(machine)
        finally:
            await asyncio.to_thread(private_engine.start)
    assert told.group_contains(VmmsUnavailable, match="away")


async def test_a_machine_whose_files_died_with_the_engine_never_begins(
    backend: Backend, private_engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the rest for ever, and must not be taken for a program that is slow."""
    monkeypatch.setattr(docker, "UNFED_S", 1.0)

    async def half() -> AsyncIterator[bytes]:
        yield b"half of"
        await restart(private_engine)
        yield b"the file"

    async with backend.machine() as machine:
        with pytest.raises(NotStarted):
            await backend.vmms.copy_in(machine, [InputFile("Makefile", 15, half)], limit())
        assert machine.id not in {m.id for m in await backend.vmms.get_vms()}


async def test_who_adopts_a_machine_without_its_files_is_told(
    backend: Backend, private_engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with backend.machine() as machine:
        await restart(private_engine)
        monkeypatch.setattr(docker, "UNFED_S", 0.5)
        successor = await backend.open()
        try:
            with pytest.raises(NotStarted):
                await successor.adopt(machine)
        finally:
            await successor.close()


async def test_a_prepared_machine_that_lost_its_input_with_the_engine_is_told(
    backend: Backend, private_engine: PrivateEngine
) -> None:
    async with backend.machine() as machine:
        await restart(private_engine)
        with pytest.raises(MachineLost, match="before it had a job"):
            await backend.vmms.wait_vm(machine)


async def test_containers_killed_with_the_engine_are_lost_not_failed(
    backend: Backend, private_engine: PrivateEngine
) -> None:
    step = Step()
    async with running(backend, f"{step}") as (machine, job):
        await step.reached()
        await asyncio.to_thread(private_engine.kill)
        for pid in processes(machine.nonce):
            with suppress(ProcessLookupError):  # the first of them takes the others along
                os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(private_engine.start)
        with pytest.raises(ExceptionGroup) as told:
            await job
    assert told.group_contains(MachineLost)


@host_only
async def test_a_program_whose_files_a_hung_engine_has_never_begins_once_its_machine_was_to_go(
    backend: Backend, private_engine: PrivateEngine, hanging: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job has been given to somebody else."""
    step = Step()

    async def away(_: engine.Engine, name: str, *, ended: bool) -> None:
        raise VmmsUnavailable("the engine hangs")

    async with backend.machine() as machine:
        await until_it_listens(machine)
        files = await tar_of(machine, inputs(make(f"{step}")))
        hanging(True)
        try:
            await backend.vmms.feed(machine, only(files))
            with monkeypatch.context() as patched:
                patched.setattr(engine.Engine, "remove", away)
                with pytest.raises(VmmsUnavailable):
                    await backend.vmms.destroy_vm(machine)
        finally:
            hanging(False)
        await wait_until(lambda: step.runs or not processes(machine.nonce), "the bootstrap ended")
        assert not step.runs


VERBS: dict[str, Callable[[Vmms, Machine], Awaitable[object]]] = {
    "get_images": lambda v, m: v.get_images(),
    "get_vms": lambda v, m: v.get_vms(),
    "initialize_vm": lambda v, m: v.initialize_vm(m.spec, "tester"),
    "wait_vm": lambda v, m: v.wait_vm(m),
    "run_job": lambda v, m: v.run_job(m),
    "copy_out": lambda v, m: output_of(v, m),
    "destroy_vm": lambda v, m: v.destroy_vm(m),
    "adopt": lambda v, m: v.adopt(m),
}


async def test_every_call_to_a_hanging_engine_can_be_cancelled(
    backend: Backend, hanging: Callable[[bool], None]
) -> None:
    successor = await backend.open()
    async with backend.machine() as machine:
        hanging(True)
        for verb, call in VERBS.items():
            calling = asyncio.ensure_future(call(successor, machine))
            await asyncio.wait((calling,), timeout=0.1)  # not all of them need the engine
            calling.cancel()
            assert (await asyncio.wait((calling,), timeout=30))[0], verb
            assert calling.cancelled() or calling.exception() is None, verb
        await successor.close()
        hanging(False)
    await remove_all(backend)


async def test_the_probe_of_a_hanging_engine_ends(
    private_engine: PrivateEngine, hanging: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PROBE_S", 0.2)
    vmms = LocalDocker(Settings(docker=Docker(host=private_engine.host)), "here")
    hanging(True)
    with pytest.raises(VmmsUnavailable, match="does not answer") as told:
        await vmms.open()
    assert private_engine.host in str(told.value)


async def test_a_job_goes_on_after_its_engine_hung(
    backend: Backend, hanging: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "POLL_S", 0.1)
    monkeypatch.setattr(outputs, "ANSWER_S", 0.1)
    step = Step()
    async with running(backend, f"echo 1; {step}; echo 2") as (_, job):
        await step.reached()
        hanging(True)
        step.go_on()
        await asyncio.sleep(0.5)
        hanging(False)
        assert await job == Ran(Exit(0), b"1\n2\n")


async def test_a_container_of_a_cancelled_creation_is_found(backend: Backend) -> None:
    loop, chance = asyncio.get_running_loop(), random.Random(7)
    begun = loop.time()
    await backend.vmms.initialize_vm(backend.spec(), "tester")
    took_s, made = loop.time() - begun, 1
    for _ in range(12):
        try:
            async with asyncio.timeout(chance.uniform(0, took_s)):
                await backend.vmms.initialize_vm(backend.spec(), "tester")
                made += 1
        except TimeoutError:
            continue
    found = await remove_all(backend)
    assert len(found) > made
    assert {machine.owner for machine in found} == {"tester"}


async def test_a_creation_that_the_engine_refuses_leaves_nothing(backend: Backend) -> None:
    with pytest.raises(VmmsError):
        await backend.vmms.initialize_vm(backend.spec(memory_bytes=1), "tester")
    assert await backend.vmms.get_vms() == []


def sockets() -> int:
    """Open sockets of this process."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += str(link.readlink()).startswith("socket:")
    return found


async def test_cancelled_followers_leak_no_connection(backend: Backend) -> None:
    other = await backend.open()
    async with running(backend, "echo up; sleep 600") as (machine, job):
        assert await first_output(other, machine) == b"up\n"
        before = sockets()
        for follower in (other.run_job, lambda m: output_of(other, m)) * 25:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await follower(machine)
        for _ in range(10):
            assert await first_output(other, machine) == b"up\n"
        await wait_until(lambda: sockets() <= before, "every connection is closed")
        job.cancel()
    await other.close()


async def test_whole_jobs_leak_no_connection(backend: Backend) -> None:
    await backend.run(make("echo warm"))
    before = sockets()
    await asyncio.gather(*(backend.run(make("echo hello")) for _ in range(8)))
    await wait_until(lambda: sockets() <= before, "every connection is closed")
