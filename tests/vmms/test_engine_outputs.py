"""localDocker whose output goes through the engine: the same contract, and what only a log can do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from contracts.machines import MB, Backend, Step, adopted, inputs, limit, make, output_of, wait_until
from contracts.vmms import VmmsContract
from support.engine import Engine
from support.ward import Ward
from tango_async.errors import HostUnavailable, MachineLost, NotStarted
from tango_async.machine import Exit, Machine
from tango_async.vmms import engine_outputs
from tango_async.vmms.bootstrap import end_mark, mark
from tango_async.vmms.engine import State
from tango_async.vmms.engine_outputs import EngineOutputs
from tango_async.vmms.outputs import NO_SPEC, UNKNOWN_END
from vmms.conftest import backend_on


@pytest.fixture
async def backend(ward: Ward, docker_engine: Engine, tmp_path: Path) -> AsyncIterator[Backend]:
    async with backend_on(ward, docker_engine, tmp_path, "engine") as made:
        yield made


class TestThroughTheEngine(VmmsContract):
    """The contract."""


async def test_output_that_nobody_reads_does_not_hold_up_the_job(backend: Backend) -> None:
    async with backend.machine() as machine:
        job = make("seq 400000; echo done >&2")
        await backend.vmms.copy_in(machine, inputs(job), limit())
        assert await backend.vmms.run_job(machine) == Exit(0)
        assert await output_of(backend.vmms, machine) == b"".join(b"%d\n" % i for i in range(1, 400_001)) + b"done\n"


class Revived:
    """An engine that was killed when it had logged all of an output and not yet heard of the end."""

    away_s = 1.0

    def __init__(self, log: bytes) -> None:
        self._log = log

    async def wait(self, container: str) -> None:
        """It has ended."""

    async def state(self, container: str) -> State:
        return State(running=False, status="exited", code=UNKNOWN_END, out_of_memory=False)

    async def logs(self, container: str, *, follow: bool) -> AsyncIterator[bytes]:
        yield self._log


@pytest.mark.parametrize("code", [0, 2])
async def test_an_end_that_no_engine_saw_is_as_the_whole_output_tells_it(code: int) -> None:
    log = mark("n") + b"said\n" + end_mark("n") + b"%d 0\n" % code
    ended = await EngineOutputs(cast(Any, Revived(log))).ended(Machine("m", NO_SPEC, "n"))
    assert ended == Exit(code)


async def test_a_log_that_gave_up_its_beginning_though_all_was_followed_is_charged() -> None:
    outputs = EngineOutputs(cast(Any, Revived(b"the end of much more\n" * 100_000)))
    with pytest.raises(MachineLost, match="does not hold"):
        async for _ in outputs.chunks(Machine("m", NO_SPEC, "n")):
            pass


@pytest.fixture
def short_log(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"max-size": "200k", "max-file": "1", "compress": "false"}
    monkeypatch.setattr(engine_outputs, "LOG", {"Type": "local", "Config": config})
    monkeypatch.setattr(engine_outputs, "HELD_BYTES", 1000)


async def test_a_log_that_gave_up_its_beginning_is_no_output(backend: Backend, short_log: None) -> None:
    async with adopted(backend, make("seq 200000; exit 1"), limit()) as (successor, machine):
        assert (await successor.run_job(machine)).code == 2
        with pytest.raises(HostUnavailable, match="does not hold"):
            await output_of(successor, machine)


async def test_a_log_that_gave_up_its_beginning_is_told_while_the_program_runs(
    docker_engine: Engine, backend: Backend, short_log: None
) -> None:
    step = Step()

    def all_logged() -> bool:
        log = docker_engine.call("GET", f"/containers/{machine.id}/logs", stdout="1", stderr="1", tail="1")[1]
        return log.endswith(b"200000\n")

    async with adopted(backend, make(f"seq 200000; {step}; :"), limit(timeout_s=100)) as (successor, machine):
        await step.reached()
        await wait_until(all_logged, "the engine has written it all")
        with pytest.raises(HostUnavailable, match="does not hold"):
            async with asyncio.timeout(40):
                await output_of(successor, machine)


async def test_too_much_memory_is_told(backend: Backend) -> None:
    ran = await backend.run(make("python3 -c 'print(len(bytearray(10**9)))'"), memory_bytes=64 * MB)
    assert ran.exit.out_of_memory and ran.code != 0


async def test_an_idle_machine_that_ended_is_told(docker_engine: Engine, backend: Backend) -> None:
    async with backend.machine() as machine:
        docker_engine.call("POST", f"/containers/{machine.id}/kill")
        with pytest.raises(MachineLost, match="before it had a job"):
            await backend.vmms.wait_vm(machine)
        await backend.vmms.copy_in(machine, inputs(make("echo never")), limit())
        with pytest.raises(NotStarted):
            await backend.vmms.run_job(machine)
