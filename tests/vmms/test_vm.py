"""Jobs on VMs by SSH, whoever made the VMs."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import asyncssh
import pytest

from conftest import absent
from contracts.machines import MB, PATIENCE_S, Backend, Ran, first_output, follow, inputs, limit, make, only, tar_of
from contracts.vmms import DEFAULTS, SIGNALS, VmmsContract
from support.vm import host_key
from support.vm_vmms import IMAGE, Cloud, VmVmms
from tango_async.errors import MachineLost, NotStarted, VmmsError
from tango_async.machine import Exit, InputFile, Machine
from tango_async.vmms import remote
from tango_async.vmms.bootstrap import archive
from tango_async.vmms.ssh import Distrusted, LinkDown
from tango_async.vmms.vm import Vm


@pytest.fixture
async def backend(tmp_path: Path, virtual_machines: None) -> AsyncIterator[Backend]:
    cloud = Cloud()

    async def opened() -> VmVmms:
        return VmVmms(cloud, patience_s=4 * PATIENCE_S)

    vmms = await opened()
    try:
        yield Backend(opened, vmms, IMAGE, tmp_path)  # type: ignore[arg-type]
    finally:
        await vmms.close()
        left = list(cloud.vms)
        cloud.close()
    assert not left, "VMs were left"


class TestVm(VmmsContract):
    """The contract on the smallest VMMS of VMs."""


async def cut_often(backend: Backend, machine: Machine, times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0.3)
        vm = backend.vmms.cloud.vms[machine.id][1]  # type: ignore[attr-defined]
        await asyncio.to_thread(vm.cut)


class TestBrokenConnections:
    """A connection that breaks is not a machine that is lost."""

    async def test_output_goes_on_without_a_lost_or_a_doubled_byte(self, backend: Backend) -> None:
        count = make("for i in $(seq 1 400); do seq $i $((i + 200)); sleep 0.005; done")
        async with backend.machine() as machine:
            await backend.vmms.copy_in(machine, inputs(count), limit())
            ran, _ = await asyncio.gather(follow(backend.vmms, machine), cut_often(backend, machine, 4))
        assert ran.code == 0
        assert ran.output == b"".join(b"%d\n" % n for i in range(1, 401) for n in range(i, i + 201))

    async def test_one_that_breaks_while_it_is_made_is_made_again(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with backend.machine() as machine:
            link = backend.vmms.vm(machine).link  # type: ignore[attr-defined]
            for error in (BrokenPipeError, ConnectionResetError):
                await link.close()
                with monkeypatch.context() as broken, pytest.raises(LinkDown):
                    broken.setattr(asyncssh, "connect", AsyncMock(side_effect=error))
                    await link.run(["true"])
            assert (await link.run(["true"])).status == 0

    async def test_one_that_is_made_too_late_is_closed(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        made, go_on, connect = asyncio.Queue[asyncssh.SSHClientConnection](), asyncio.Event(), asyncssh.connect

        async def slowly(*arguments: Any, **options: Any) -> asyncssh.SSHClientConnection:
            connection = await connect(*arguments, **options)
            made.put_nowait(connection)
            await go_on.wait()
            return connection

        async with backend.machine() as machine:
            link = backend.vmms.vm(machine).link  # type: ignore[attr-defined]
            await link.close()
            monkeypatch.setattr(asyncssh, "connect", slowly)
            running = asyncio.create_task(link.run(["true"]))
            connection = await made.get()
            await link.close()
            go_on.set()
            with pytest.raises(LinkDown, match="closed"):
                await running
            await connection.wait_closed()
            assert (await link.run(["true"])).status == 0

    async def test_the_end_of_the_output_is_known_by_its_size(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever follows it looks for its end now and then only, and here not at all."""
        monkeypatch.setattr(remote, "FOLLOW", 'cd "$1" && exec tail -c "+$2" -f output')
        async with backend.machine() as machine:
            await backend.vmms.copy_in(machine, inputs(make("seq 100000")), limit())
            ran = await follow(backend.vmms, machine)
        assert ran == Ran(Exit(0), b"".join(b"%d\n" % n for n in range(1, 100_001)))

    async def test_an_end_that_came_meanwhile_is_told(self, backend: Backend) -> None:
        async with backend.machine() as machine:
            await backend.vmms.copy_in(machine, inputs(make("echo here; sleep 1; exit 3")), limit())
            assert await first_output(backend.vmms, machine) == b"here\n"
            ran, _ = await asyncio.gather(follow(backend.vmms, machine), cut_often(backend, machine, 5))
        assert ran.code == 2 and ran.output.startswith(b"here\n")

    async def test_a_program_whose_files_had_all_arrived_is_not_lost_with_the_answer(self, backend: Backend) -> None:
        """Taken for one that never began it would be run a second time."""
        async with backend.machine() as machine:
            vm = backend.vmms.cloud.vms[machine.id][1]  # type: ignore[attr-defined]

            async def then_cut() -> AsyncIterator[bytes]:
                async for chunk in archive(inputs(make("echo here")), machine.nonce, limit(), processes=64):
                    yield chunk
                # What is sent after it on the same connection has come, and so it has.
                await backend.vmms.vm(machine).link.run(["true"])  # type: ignore[attr-defined]
                await asyncio.to_thread(vm.cut)

            await backend.vmms.feed(machine, then_cut())
            assert await follow(backend.vmms, machine) == Ran(Exit(0), b"here\n")

    async def test_files_that_were_cut_off_never_start(self, backend: Backend) -> None:
        sent = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield bytes(65_536)
                sent.set()
                await asyncio.sleep(0.01)

        async with backend.machine() as machine:
            files = [*inputs(make("echo started")), InputFile("big", 1 << 40, endless)]
            sending = asyncio.create_task(backend.vmms.copy_in(machine, files, limit()))
            await sent.wait()
            backend.vmms.cloud.vms[machine.id][1].cut()  # type: ignore[attr-defined]
            with pytest.raises((MachineLost, NotStarted)):
                await sending
            with pytest.raises(NotStarted):
                await backend.vmms.run_job(machine)

    async def test_a_vm_that_died_is_lost_at_once(self, backend: Backend) -> None:
        async with backend.machine() as machine:
            await backend.vmms.copy_in(machine, inputs(make("echo up; sleep 600")), limit())
            assert await first_output(backend.vmms, machine) == b"up\n"
            backend.vmms.cloud.vms[machine.id][1].kill()  # type: ignore[attr-defined]
            async with asyncio.timeout(PATIENCE_S):  # less than the patience with one that is there
                with pytest.raises(MachineLost, match="gone"):
                    await backend.vmms.run_job(machine)

    async def test_one_that_nobody_reaches_is_given_up_in_the_end(self, backend: Backend) -> None:
        async with backend.machine() as machine:
            await backend.vmms.copy_in(machine, inputs(make("sleep 600")), limit())
            vm = backend.vmms.cloud.vms[machine.id][1]  # type: ignore[attr-defined]
            backend.vmms._patience_s = 1.0  # type: ignore[attr-defined]
            backend.vmms._vms.clear()  # type: ignore[attr-defined]
            vm.away()
            with pytest.raises(MachineLost, match="out of reach for 1 s"):
                await backend.vmms.run_job(machine)

    async def test_another_host_is_not_trusted(self, backend: Backend, tmp_path: Path) -> None:
        async with backend.machine() as machine:
            real = backend.vmms.cloud.vms[machine.id][1]  # type: ignore[attr-defined]
            true_key, real.public_key = real.public_key, host_key(tmp_path)[1]
            backend.vmms._vms.clear()  # type: ignore[attr-defined]
            with pytest.raises(Distrusted, match="another host answers"):
                await backend.vmms.wait_vm(machine)
            real.public_key = true_key


class TestAutodriver:
    """On Tango's own images its program runs the job; who logs in is neither root nor may become it."""

    @pytest.fixture
    async def backend(self, tmp_path: Path, virtual_machines: None) -> AsyncIterator[Backend]:
        program = tmp_path / "autodriver"
        source = Path(__file__).parents[1] / "support/autodriver.c"
        if shutil.which("gcc") is None:
            absent("gcc is not installed")
        await asyncio.to_thread(subprocess.run, ["gcc", "-O", "-w", "-o", str(program), str(source)], check=True)
        cloud = Cloud(program)
        vmms = VmVmms(cloud)
        yield Backend(lambda: None, vmms, IMAGE, tmp_path)  # type: ignore[arg-type, return-value]
        await vmms.close()
        cloud.close()

    async def test_a_job_is_run_and_its_end_is_told(self, backend: Backend) -> None:
        data = os.urandom(100_000)
        ran = await backend.run({"data": data} | make("cat data", "id -un; pwd", "exit 7"), network=True)
        assert ran.code == 2
        assert ran.output.startswith(data + b"autograde\n/home/autograde/autolab\n")

    async def test_its_timer_is_a_timeout_with_the_output_so_far(self, backend: Backend) -> None:
        ran = await backend.run(make("echo before; sleep 600"), limit(timeout_s=1), network=True)
        assert ran == Ran(Exit(124, timed_out=True), b"before\n")

    async def test_an_incomplete_archive_never_starts(self, backend: Backend) -> None:
        async with backend.machine(network=True) as machine:
            whole = await tar_of(machine, inputs(make("echo started")))
            await backend.vmms.feed(machine, only(whole[:1024]))
            with pytest.raises(NotStarted):
                await backend.vmms.run_job(machine)

    async def test_signals_have_their_default_meaning(self, backend: Backend) -> None:
        ran = await backend.run(make(SIGNALS), network=True)
        assert ran.output.startswith(b"\n".join(DEFAULTS))

    async def test_reserved_exit_codes_cannot_be_forged(self, backend: Backend) -> None:
        for code in (92, 124):
            ran = await backend.run(
                make("echo ran", f"kill -9 $(cat /proc/$PPID/stat | cut -d' ' -f4); exit {code}"), network=True
            )
            assert not ran.exit.timed_out

    async def test_a_job_without_network_is_refused_where_nobody_can_take_it_away(self, backend: Backend) -> None:
        async with backend.machine(network=False) as machine:
            with pytest.raises(VmmsError, match="needs sudo, which autolab does not have"):
                await backend.vmms.copy_in(machine, inputs(make("echo started")), limit())


class TestReuse:
    """A VM that serves one job after the other."""

    async def test_nothing_of_a_job_is_left_for_the_next(self, backend: Backend) -> None:
        daemon = make("(setsid sleep 600 &); touch /tmp/mine /var/tmp/mine /dev/shm/mine ~/mine", "echo up; sleep 600")
        async with backend.machine() as machine:
            vm = backend.vmms.vm(machine)  # type: ignore[attr-defined]
            await backend.vmms.copy_in(machine, inputs(daemon), limit())
            assert await first_output(backend.vmms, machine) == b"up\n"
            await vm.stop()
            await vm.clean()
            real = backend.vmms.cloud.vms[machine.id][1]  # type: ignore[attr-defined]
            assert real.sh("pgrep -u autograde; find / -xdev -name mine; ls /var/lib /tmp /var/tmp") == (
                "/tmp:\n\n/var/lib:\n\n/var/tmp:\n"
            )
            next_one = replace(machine, id="next", nonce="next")
            run = Vm(vm.link, next_one, output_bytes=MB, guard_s=60)
            await run.feed(archive(inputs(make("echo next")), "next", limit(), processes=64), limit())
            assert (await run.run_job()).code == 0

    async def test_a_vm_without_the_user_has_one_without_a_name(self, tmp_path: Path, virtual_machines: None) -> None:
        cloud = Cloud()
        vmms = VmVmms(cloud)
        backend = Backend(lambda: None, vmms, IMAGE, tmp_path)  # type: ignore[arg-type, return-value]
        try:
            async with backend.machine() as machine:
                cloud.vms[machine.id][1].sh("sed -i /^autograde/d /etc/passwd")
                vmms._vms.clear()
                await vmms.copy_in(machine, inputs(make("id -u; pwd")), limit())
                assert (await follow(vmms, machine)).output == b"64123\n/home/autograde/autolab\n"
        finally:
            await vmms.close()
            cloud.close()
