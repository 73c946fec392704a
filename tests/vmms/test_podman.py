"""localDocker on Podman's imitation of Docker's socket: the same contract."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from contracts.machines import Backend
from contracts.vmms import VmmsContract
from support.engine import BUILDER
from support.fixtures_docker import absent
from support.podman import PodmanEngine
from support.ward import Ward
from tango_async.config import Docker, Settings, Store
from tango_async.errors import VmmsUnavailable
from tango_async.vmms.docker import LocalDocker
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
