"""localDocker on a real engine: the contract of every back-end, and what only Docker can do."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from contracts.machines import MB, Backend, Ran, adopted, follow, inputs, limit, make, output_of
from contracts.vmms import VmmsContract
from support.engine import Engine
from support.images import chunks, saved, variation
from support.jobs import machine_of
from tango_async.config import Docker, Settings
from tango_async.config import load as load_settings
from tango_async.errors import ConfigError, MachineLost, NotStarted, VmmsError, VmmsUnavailable
from tango_async.machine import Exit, Machine
from tango_async.vmms import docker
from tango_async.vmms.base import Vmms, load
from tango_async.vmms.docker import LocalDocker
from tango_async.vmms.outputs import Channel


@pytest.fixture
def backend(docker_backend: Backend) -> Backend:
    return docker_backend


class TestLocalDocker(VmmsContract):
    """The contract."""


async def test_it_is_known_by_its_tango_name() -> None:
    vmms: Vmms = load("localDocker", Settings(), "here")
    assert isinstance(vmms, LocalDocker) and vmms.name == "localDocker"


async def test_too_much_memory_is_told(backend: Backend) -> None:
    hog = "python3 -c 'x = bytearray(10**9); print(len(x))'"
    ran = await backend.run(make(hog), memory_bytes=64 * MB)
    assert ran.exit.out_of_memory and ran.code != 0
    ran = await backend.run(make(f"{hog} || echo went on"), memory_bytes=64 * MB)
    assert ran.exit.out_of_memory and ran.code == 0 and ran.output.endswith(b"went on\n")
    assert not (await backend.run(make("exit 1"))).exit.out_of_memory


async def test_the_whole_result_is_there_without_the_engine(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    async with backend.machine() as machine:
        monkeypatch.setattr(docker.Engine, "state", None)
        await backend.vmms.wait_vm(machine)
        await backend.vmms.copy_in(machine, inputs(make("echo said")), limit())
        assert await follow(backend.vmms, machine) == Ran(Exit(0), b"said\n")


async def test_a_job_may_have_a_network(backend: Backend) -> None:
    ran = await backend.run(make("tail -n +3 /proc/net/dev | cut -d: -f1 | sort"), network=True)
    assert b"eth0" in ran.output.split()


async def test_a_job_without_network_reaches_itself_by_name(backend: Backend) -> None:
    talk = "import socket as s; l = s.create_server(('localhost', 0)); s.create_connection(l.getsockname())"
    ran = await backend.run(make(f'python3 -c "{talk}" && test ! -w /etc/hosts && echo reached'))
    assert ran.output == b"reached\n"


async def test_without_network_the_engine_has_no_part_in_it(docker_engine: Engine, backend: Backend) -> None:
    async with backend.machine() as machine:
        assert docker_engine.get(f"/containers/{machine.id}/json")["NetworkSettings"]["SandboxKey"] == ""


async def test_more_cores_than_there_are_is_all_of_them(backend: Backend) -> None:
    assert (await backend.run(make("echo fast"), cores=1000.0)).output == b"fast\n"


async def test_only_the_home_and_scratch_are_writable(backend: Backend) -> None:
    places = "/ /etc /usr/bin /var /run /dev/mqueue/x /home/autolab"
    ran = await backend.run(make(f"for p in {places} ~ /tmp /var/tmp; do test -w $p && echo $p; done; :"))
    assert ran.output.split() == [b"/home/autograde", b"/tmp", b"/var/tmp"]


async def test_scratch_space_is_bounded(backend: Backend) -> None:
    fill = "dd if=/dev/zero of=/tmp/big bs=64k count=1000"
    ran = await backend.run(make(fill), disk_bytes=8 * MB)
    assert b"No space left" in ran.output


async def test_the_images_own_way_of_running_is_overridden(docker_engine: Engine, backend: Backend) -> None:
    hostile = {
        "Entrypoint": ["/bin/echo", "hostile"], "Cmd": ["hostile"], "User": "root", "WorkingDir": "/home/autograde/d",
        "Env": ["HOME=/root", "USER=root", "PATH=/opt/tools:/usr/bin:/bin"], "Volumes": {"/data": {}},
        "Healthcheck": {"Test": ["CMD-SHELL", "touch /tmp/checked"], "Interval": 10**9},
    }  # fmt: skip
    job = make("id -un; pwd; echo $HOME $USER", "sleep 1.2; ls /tmp; echo $PATH")
    with variation(docker_engine, **hostile) as image:
        async with backend.machine(image=image) as machine:
            mounts = docker_engine.get(f"/containers/{machine.id}/json")["Mounts"]
            await backend.vmms.copy_in(machine, inputs(job), limit())
            ran = await follow(backend.vmms, machine)
    assert ran.output.decode().split("\n") == [
        "autograde", "/home/autograde/autolab", "/home/autograde autograde", "/opt/tools:/usr/bin:/bin", "",
    ]  # fmt: skip
    left = {volume["Name"] for volume in docker_engine.get("/volumes")["Volumes"] or ()}
    assert not left & {mount["Name"] for mount in mounts if mount["Type"] == "volume"}


@pytest.mark.parametrize(
    ("passwd", "ids"),
    [
        (b"root:x:0:0::/:/bin/sh\n", "1001 1001"),
        (b"autograde:x:0:0::/:/bin/sh\n", "1001 1001"),
        (b"autograde:x:77:0::/:/bin/sh\n", "1001 1001"),
        (b"autograde:x:77:78::/:/bin/sh\n", "77 78"),
        (b"\xff\nautograde\nautograde:x:-1:zwei\nautograde:x:77:78\n", "77 78"),
        (b"", "1001 1001"),
    ],
)
async def test_jobs_run_as_autograde_or_a_number_and_never_as_root(
    docker_engine: Engine, backend: Backend, passwd: bytes, ids: str
) -> None:
    with variation(docker_engine, {"etc/passwd": passwd}) as image:
        ran = await backend.run(make("echo $(id -u) $(id -g); touch ~/mine"), image=image)
    assert ran == Ran(Exit(0), f"{ids}\n".encode())


async def test_an_image_without_a_shell_is_an_error_that_says_so(docker_engine: Engine, backend: Backend) -> None:
    await backend.vmms.load_image("test-empty", chunks(saved((b"no shell", []))))
    with pytest.raises(VmmsError, match="/bin/sh"):
        await backend.vmms.initialize_vm(backend.spec(image="test-empty"), "tester")
    docker_engine.call("DELETE", "/images/test-empty")
    assert await backend.vmms.get_vms() == []


async def test_output_that_nobody_reads_does_not_hold_up_the_job(backend: Backend) -> None:
    data = os.urandom(3 * MB)
    async with backend.machine() as machine:
        await backend.vmms.copy_in(machine, inputs({"data": data} | make("cat data; echo done >&2")), limit())
        assert await backend.vmms.run_job(machine) == Exit(0)
        assert await output_of(backend.vmms, machine) == data + b"done\n"


async def test_a_successor_reads_a_long_output_whole(backend: Backend) -> None:
    expected = b"".join(b"%d\n" % i for i in range(1, 300_001))
    job = make("seq 100000; sleep 0.3; seq 100001 200000; sleep 0.3; seq 200001 300000")
    async with adopted(backend, job, limit()) as (successor, machine):
        assert await follow(successor, machine) == Ran(Exit(0), expected)


async def test_an_idle_machine_ends_with_its_dispatcher_and_is_found(backend: Backend) -> None:
    other = await backend.open()
    machine = await other.initialize_vm(backend.spec(), "gone")
    await other.close()
    with pytest.raises(NotStarted):
        await backend.vmms.run_job(machine)
    assert await backend.vmms.get_vms() == [machine]
    await backend.vmms.destroy_vm(machine)


async def test_a_machine_destroyed_under_a_job_is_lost(backend: Backend) -> None:
    async with backend.machine() as machine:
        await backend.vmms.copy_in(machine, inputs(make("sleep 600")), limit())
        running = asyncio.create_task(backend.vmms.run_job(machine))
        await asyncio.sleep(0.1)
        other = await backend.open()
        await other.destroy_vm(machine)
        await other.close()
        with pytest.raises(MachineLost):
            await running
        with pytest.raises(MachineLost):
            await backend.vmms.adopt(machine)


async def test_a_machine_that_never_started_is_told(docker_engine: Engine, backend: Backend) -> None:
    async with backend.machine() as machine:
        docker_engine.call("POST", f"/containers/{machine.id}/kill")
        with pytest.raises(MachineLost, match="before it had a job"):
            while True:
                await backend.vmms.wait_vm(machine)
                await asyncio.sleep(0.01)
        await backend.vmms.copy_in(machine, inputs(make("echo never")), limit())
        with pytest.raises(NotStarted):
            await backend.vmms.run_job(machine)


class TestTheEngineIsNotThere:
    """The probe says what is wrong and what to do."""

    async def test_no_socket(self, tmp_path: Path) -> None:
        with pytest.raises(VmmsUnavailable, match=r"install docker\.io") as told:
            await _opened(f"unix://{tmp_path}/none.sock")
        assert f"{tmp_path}/none.sock" in str(told.value)

    async def test_a_socket_that_nobody_serves(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "dead.sock"))
        with pytest.raises(VmmsUnavailable, match="systemctl start docker"):
            await _opened(f"unix://{tmp_path}/dead.sock")

    async def test_something_else_answers(self, tmp_path: Path) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
            writer.close()

        async with await asyncio.start_unix_server(serve, tmp_path / "other.sock"):
            with pytest.raises(VmmsUnavailable, match="no Docker engine"):
                await _opened(f"unix://{tmp_path}/other.sock")

    async def test_an_address_of_no_known_kind(self) -> None:
        with pytest.raises(ConfigError, match="unix://PATH"):
            await _opened("ssh://host")


async def _opened(host: str) -> None:
    vmms = LocalDocker(Settings(docker=Docker(host=host)), "here")
    try:
        await vmms.open()
    finally:
        await vmms.close()


@pytest.mark.parametrize(
    ("gpus", "asked"),
    [("all", {"Count": -1}), ("0,GPU-5e2a", {"DeviceIDs": ["0", "GPU-5e2a"]})],
)
def test_a_job_that_requires_a_gpu_is_given_it_by_the_engine(gpus: str, asked: dict[str, object]) -> None:
    settings = load_settings(environ={"TANGO_DOCKER_GPUS": gpus, "TANGO_DOCKER_GPU_RUNTIME": "nvidia"})
    local = LocalDocker(settings, "install")
    assert local.capabilities.gpu
    for gpu in (True, False):
        machine = Machine(id="m", spec=machine_of("image", gpu=gpu), nonce="n")
        host = local._container(machine, "image", "1:1", Channel())["HostConfig"]
        assert host.get("Runtime") == ("nvidia" if gpu else None)
        assert host.get("DeviceRequests") == ([{"Driver": "", "Capabilities": [["gpu"]], **asked}] if gpu else None)
