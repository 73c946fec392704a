"""localDocker on a real engine: the contract of every back-end, and what only Docker can do or suffer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from contracts.machines import Backend
from contracts.vmms import VmmsContract
from support.engine import Engine
from support.fixtures_docker import IMAGE
from tango_async.config import Docker, Settings
from tango_async.vmms.docker import INSTALL, LocalDocker


@pytest.fixture
async def backend(docker_engine: Engine, tmp_path: Path) -> AsyncIterator[Backend]:
    """Fails a test that leaves a container."""
    install = f"test-{uuid4().hex}"

    async def opened() -> LocalDocker:
        vmms = LocalDocker(Settings(docker=Docker(host=docker_engine.host)), install)
        await vmms.open()
        return vmms

    vmms = await opened()
    yield Backend(opened, vmms, IMAGE, tmp_path)
    await vmms.close()
    left = docker_engine.containers(f"{INSTALL}={install}")
    for container in left:
        docker_engine.remove(container)
    assert not left


class TestLocalDocker(VmmsContract):
    """The contract."""
