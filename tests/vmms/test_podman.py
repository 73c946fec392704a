"""localDocker on Podman's imitation of Docker's socket: the same contract."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from contracts.machines import Backend, Step, follow, inputs, limit, make
from contracts.vmms import VmmsContract
from support.engine import BUILDER
from support.fixtures_docker import absent
from support.podman import PodmanEngine
from support.ward import Ward
from tango_async.config import Docker, Settings, Store
from tango_async.errors import VmmsUnavailable
from tango_async.vmms.docker import NONCE, LocalDocker
from vmms.conftest import backend_on


@pytest.fixture(scope="module")
def podman() -> Iterator[PodmanEngine]:
    if missing := PodmanEngine.missing():
        absent(missing)
    engine = PodmanEngine()
    try:
        engine.start()
        environment = os.environ | {"DOCKER_HOST": engine.host}
        subprocess.run([sys.executable, str(BUILDER)], env=environment, check=True, capture_output=True)
        yield engine
    finally:
        engine.stop()


@pytest.fixture
async def backend(ward: Ward, podman: PodmanEngine, tmp_path: Path) -> AsyncIterator[Backend]:
    async with backend_on(ward, podman, tmp_path) as backend:
        yield backend


class TestPodman(VmmsContract):
    """The contract."""


async def test_output_through_the_engine_is_refused(podman: PodmanEngine, tmp_path: Path) -> None:
    settings = Settings(store=Store(data_dir=tmp_path), docker=Docker(host=podman.host, output="engine"))
    vmms = LocalDocker(settings, "here")
    try:
        with pytest.raises(VmmsUnavailable, match=r"docker\.output"):
            await vmms.open()
    finally:
        await vmms.close()


async def test_one_in_whose_removal_podman_was_killed_hides_no_other(backend: Backend, podman: PodmanEngine) -> None:
    async with backend.machine() as whole, backend.machine() as half:
        name = podman.get(f"/containers/{half.id}/json")["Id"]
        podman.call("POST", f"/containers/{half.id}/kill")
        podman.call("POST", f"/containers/{half.id}/wait")
        podman.kill()
        stored = podman.directory / "data/overlay-containers/containers.json"
        stored.write_text(json.dumps([one for one in json.loads(stored.read_text()) if one["id"] != name]))
        podman.start()
        assert podman.call("GET", "/containers/json", all=1)[0] == 500
        assert whole in await backend.vmms.get_vms()
        assert name not in podman.containers()


async def test_a_machine_whose_monitor_died_before_its_program_ended_is_removed(
    backend: Backend, podman: PodmanEngine
) -> None:
    async with backend.machine() as machine:
        step = Step()
        await backend.vmms.copy_in(machine, inputs(make(f"{step}; echo over")), limit(timeout_s=100))
        following = asyncio.create_task(follow(backend.vmms, machine))
        await step.reached()
        (monitor,) = (pid for pid, container in podman.monitors().items() if container == machine.id)
        os.kill(monitor, signal.SIGKILL)
        step.go_on()
        assert (await following).output == b"over\n"
        await backend.vmms.destroy_vm(machine)
    assert podman.containers(f"{NONCE}={machine.nonce}") == []
