"""Output that goes past the engine: whole, whoever is killed, and gone with its machine."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from contracts.machines import (
    MB,
    Backend,
    Files,
    Ran,
    Step,
    adopted,
    first_output,
    follow,
    inputs,
    limit,
    make,
    output_of,
    processes,
    wait_until,
)
from support.engine import Engine, PrivateEngine
from tango_async.config import Docker, Limits, Settings, Store
from tango_async.errors import MachineLost, NotStarted, VmmsError, VmmsUnavailable
from tango_async.machine import Exit, Machine
from tango_async.vmms import host_outputs, keeper, outputs
from tango_async.vmms.docker import LocalDocker
from tango_async.vmms.keeper import OUTPUT_SLACK_BYTES
from vmms.conftest import host_only, until_it_listens

PRINTER = """
import os, signal, time
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(True))
i = 0
while not told:
    os.write(1, b"%d%s" % (i, b"\\n" if i % 7 == 0 else b" "))
    i += 1
    if i % 500 == 0:
        time.sleep(0.01)
os.write(1, b"\\nso many: %d\\n" % i)
"""
"""Lines and pieces of lines, until it is told to end."""


def printing(*then: str) -> tuple[Files, str]:
    """The job, and what tells its printer from other processes."""
    marker = uuid4().hex
    return {"print.py": PRINTER} | make(f"python3 print.py {marker}", *then), f"print.py\0{marker}"


def printed(output: bytes) -> bytes:
    """What begins an output of so many pieces as it says itself."""
    pieces = int(output.partition(b"so many: ")[2].split()[0])
    return b"".join(b"%d%s" % (i, b"\n" if i % 7 == 0 else b" ") for i in range(pieces)) + b"\nso many: %d\n" % pieces


def place(backend: Backend, machine: Machine) -> Path:
    return Settings(store=Store(data_dir=backend.data_dir)).state_dir / "outputs" / machine.id


def keeper_of(backend: Backend, machine: Machine) -> int:
    return int((place(backend, machine) / "supervisor").read_text().split()[0])


@pytest.fixture
def backend(docker_backend: Backend) -> Backend:
    return docker_backend


async def killed_again_and_again(private_engine: PrivateEngine, printer: str, times: int) -> None:
    """While it prints; then it is told to end."""
    await wait_until(lambda: processes(printer), "it prints")
    for _ in range(times):
        await asyncio.sleep(0.3)
        await asyncio.to_thread(private_engine.kill)
        await asyncio.to_thread(private_engine.start)
    [pid] = processes(printer)
    os.kill(pid, signal.SIGUSR1)


@host_only
async def test_every_byte_is_there_once_however_often_the_engine_is_killed(
    private_backend: Backend, private_engine: PrivateEngine
) -> None:
    vmms = private_backend.vmms
    job, printer = printing()
    async with private_backend.machine() as machine:
        await vmms.copy_in(machine, inputs(job), limit(timeout_s=100))
        following = asyncio.create_task(follow(vmms, machine))
        await killed_again_and_again(private_engine, printer, 3)
        ran = await following
    assert ran == Ran(Exit(0), printed(ran.output))


@host_only
async def test_a_successor_has_every_byte_also_of_an_engine_that_was_killed(
    private_backend: Backend, private_engine: PrivateEngine
) -> None:
    job, printer = printing("exit 3")
    async with adopted(private_backend, job, limit(timeout_s=100)) as (successor, machine):
        following = asyncio.create_task(follow(successor, machine))
        await killed_again_and_again(private_engine, printer, 2)
        ran = await following
    assert ran.code == 2 and ran.output.startswith(printed(ran.output))


@host_only
async def test_an_end_that_no_engine_saw_is_an_end(private_backend: Backend, private_engine: PrivateEngine) -> None:
    vmms = private_backend.vmms
    async with private_backend.machine() as machine:
        step = Step()
        await vmms.copy_in(machine, inputs(make(f"echo 1; {step}; printf 2; exit 3")), limit())
        job = asyncio.create_task(follow(vmms, machine))
        await step.reached()
        await asyncio.to_thread(private_engine.kill)
        try:
            step.go_on()
            ran = await job
        finally:
            await asyncio.to_thread(private_engine.start)
        assert ran.code == 2 and ran.output.startswith(b"1\n2")


HOLDER = """
import asyncio, sys
import msgspec
from contracts.machines import inputs, limit, make
from tango_async.config import Settings
from tango_async.machine import MachineSpec
from tango_async.vmms.docker import LocalDocker

async def hold(settings, spec, line, install):
    vmms = LocalDocker(settings, install)
    await vmms.open()
    machine = await vmms.initialize_vm(spec, "killed")
    await vmms.copy_in(machine, inputs(make(line)), limit())
    print("running", flush=True)
    await vmms.run_job(machine)

settings, spec = (msgspec.msgpack.decode(bytes.fromhex(a)) for a in sys.argv[1:3])
settings = msgspec.convert(settings, Settings, dec_hook=lambda kind, value: kind(value))
asyncio.run(hold(settings, msgspec.convert(spec, MachineSpec), *sys.argv[3:]))
"""


async def test_a_killed_dispatchers_job_runs_on_and_is_read_from_its_first_byte(
    docker_engine: Engine, backend: Backend
) -> None:
    settings = Settings(store=Store(data_dir=backend.data_dir), docker=Docker(host=docker_engine.host))
    given = (msgspec.msgpack.encode(value, enc_hook=str).hex() for value in (settings, backend.spec()))
    install = f"killed-{uuid4().hex}"
    command = [sys.executable, "-c", HOLDER, *given, "seq 1000; sleep 0.5; seq 1001 2000", install]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "tests"}) as holder:
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"running\n"
        holder.kill()
    successor = LocalDocker(settings, install)
    await successor.open()
    [machine] = await successor.get_vms()
    try:
        await successor.adopt(machine)
        assert await follow(successor, machine) == Ran(Exit(0), b"".join(b"%d\n" % i for i in range(1, 2001)))
    finally:
        await successor.destroy_vm(machine)
        await successor.close()


async def test_an_end_is_known_though_somebody_removed_the_container(docker_engine: Engine, backend: Backend) -> None:
    """As a nightly `docker system prune` does."""
    first = await backend.open()
    machine = await first.initialize_vm(backend.spec(), "tester")
    await first.copy_in(machine, inputs(make("echo one; exit 3")), limit())
    await first.run_job(machine)
    await first.close()
    docker_engine.remove(machine.id)
    assert await backend.vmms.get_vms() == [machine]
    await backend.vmms.adopt(machine)
    ran = await follow(backend.vmms, machine)
    assert ran.code == 2 and ran.output.startswith(b"one\n")
    await backend.vmms.destroy_vm(machine)


async def test_a_job_can_neither_read_nor_remove_the_pipe(backend: Backend) -> None:
    tries = f"cat {host_outputs.PIPE}; rm -f {host_outputs.PIPE}; chmod 777 {host_outputs.PIPE}"
    ran = await backend.run(
        make(f"({tries}) 2>&1 | grep -c -e denied -e permitted -e busy -e Read-only; echo still here")
    )
    assert ran == Ran(Exit(0), b"3\nstill here\n")


async def test_a_flood_that_nobody_reads_is_bounded_and_told(
    docker_engine: Engine, tmp_path: Path, backend: Backend
) -> None:
    stop = MB
    settings = Settings(
        store=Store(data_dir=tmp_path), docker=Docker(host=docker_engine.host), limits=Limits(output_stop_bytes=stop)
    )
    vmms = LocalDocker(settings, "flood")
    await vmms.open()
    machine = await vmms.initialize_vm(backend.spec(), "tester")
    try:
        await vmms.copy_in(machine, inputs(make("trap '' PIPE; yes; sleep 600")), limit())
        assert await vmms.run_job(machine) == Exit(137)
        kept = place(backend, machine) / "output"
        assert stop < kept.stat().st_size <= stop + OUTPUT_SLACK_BYTES
        assert len(await output_of(vmms, machine)) > stop
    finally:
        await vmms.destroy_vm(machine)
        await vmms.close()


async def test_an_output_whose_keeper_was_killed_is_lost(backend: Backend) -> None:
    async with backend.machine() as machine:
        step = Step()
        await backend.vmms.copy_in(machine, inputs(make(f"echo one; {step}; echo two")), limit())
        assert await first_output(backend.vmms, machine) == b"one\n"
        await step.reached()
        os.killpg(keeper_of(backend, machine), signal.SIGKILL)
        step.go_on()
        with pytest.raises(MachineLost, match="not kept whole"):
            await backend.vmms.run_job(machine)
        successor = await backend.open()
        await successor.adopt(machine)
        with pytest.raises(MachineLost, match="not kept whole"):
            await successor.run_job(machine)
        await successor.close()


async def test_a_machine_whose_keeper_was_killed_begins_no_program(docker_engine: Engine, backend: Backend) -> None:
    """What it says would be lost, and its job run again."""
    async with backend.machine() as machine:
        await until_it_listens(machine)
        os.killpg(keeper_of(backend, machine), signal.SIGKILL)
        await wait_until(lambda: not processes(str(place(backend, machine))), "its keeper is gone")
        await backend.vmms.copy_in(machine, inputs(make("sleep 600")), limit())

        def state() -> dict[str, object]:
            return dict(docker_engine.get(f"/containers/{machine.id}/json")["State"])

        await wait_until(lambda: not state()["Running"], "it ended")
        assert state()["ExitCode"] == 95


async def test_an_output_that_met_a_full_disk_is_lost(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    script = host_outputs.SCRIPT.replace(">>output", ">/dev/full")
    monkeypatch.setattr(host_outputs, "SCRIPT", 'echo began >"$1/output"\n' + script)
    async with backend.machine() as machine:
        await backend.vmms.copy_in(machine, inputs(make("echo one")), limit())
        with pytest.raises(MachineLost, match="not kept whole"):
            await backend.vmms.run_job(machine)


async def test_a_keeper_that_cannot_be_followed_is_ended(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    keepers: list[int] = []

    def no_more_files(pid: int) -> int:
        keepers.append(pid)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", no_more_files)
    with pytest.raises(VmmsError, match="open files"):
        await backend.vmms.initialize_vm(backend.spec(), "tester")
    assert await backend.vmms.get_vms() == []
    assert [pid for pid in keepers if Path(f"/proc/{pid}").exists()] == []


async def test_without_room_no_machine_is_made(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "ROOM_BYTES", 2**62)
    with pytest.raises(VmmsUnavailable, match="no space left"):
        await backend.vmms.get_images()


async def test_a_machine_that_cannot_open_the_pipe_says_so(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_outputs, "PIPE_MODE", 0o600)
    monkeypatch.setattr(outputs, "SOON_S", 0.1)
    async with backend.machine() as machine:
        await backend.vmms.copy_in(machine, inputs(make("echo one")), limit())
        with pytest.raises(NotStarted, match="cannot write"):
            await backend.vmms.run_job(machine)


async def test_an_engine_that_sees_other_files_is_told(private_engine: PrivateEngine, backend: Backend) -> None:
    """The private engine has a /run of its own."""
    if not private_engine.answers():
        private_engine.start()
    elsewhere = Path(tempfile.mkdtemp(dir="/run"))
    vmms = LocalDocker(Settings(store=Store(data_dir=elsewhere), docker=Docker(host=private_engine.host)), "elsewhere")
    await vmms.open()
    try:
        for call in (lambda: vmms.initialize_vm(backend.spec(), "tester"), vmms.get_images):
            with pytest.raises(VmmsUnavailable, match=r"docker\.output"):
                await call()
        assert await vmms.get_vms() == []
    finally:
        await vmms.close()
        shutil.rmtree(elsewhere)


@pytest.fixture
async def left(backend: Backend) -> AsyncIterator[Machine]:
    """A machine whose dispatcher died before it had a container."""
    other = await backend.open()
    assert isinstance(other, LocalDocker)
    machine = Machine(id="tango-left", spec=backend.spec(), nonce="x", owner="gone")
    other._outputs.prepare(machine)
    await other.close()
    yield machine


@pytest.mark.parametrize("died_before", ["the container", "the note", "the process", "the pipe"])
async def test_what_was_left_without_a_container_is_found_and_removed(
    backend: Backend, left: Machine, died_before: str
) -> None:
    directory = place(backend, left)
    await wait_until(lambda: len(processes(str(directory))) == 1, "its keeper waits")
    if died_before != "the container":
        pid = keeper_of(backend, left)
        (directory / "supervisor").unlink()
        if died_before != "the note":
            os.killpg(pid, signal.SIGKILL)
            (directory / "record").write_bytes(b"{")
        if died_before == "the pipe":
            (directory / "pipe").unlink()
    [found] = await backend.vmms.get_vms()
    assert found.id == left.id
    await backend.vmms.destroy_vm(found)
    assert await backend.vmms.get_vms() == []
    await wait_until(lambda: not processes(str(directory)), "its keeper is gone")
