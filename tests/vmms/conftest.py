"""localDocker under an installation of the test's own, on the engine of support/fixtures_docker.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

pytest.register_assert_rewrite("contracts.vmms", "contracts.machines")

from contracts.machines import Backend, processes, wait_until  # noqa: E402
from support.engine import IMAGE, Engine, PrivateEngine  # noqa: E402
from support.fixtures_dist import settings_of  # noqa: E402
from support.netns import RemoteEngine  # noqa: E402
from support.ward import Ward  # noqa: E402
from tango_async.config import Docker, Settings, Store  # noqa: E402
from tango_async.machine import Machine  # noqa: E402
from tango_async.vmms import host_outputs  # noqa: E402
from tango_async.vmms.dist import DistDocker  # noqa: E402
from tango_async.vmms.docker import LocalDocker  # noqa: E402


@pytest.fixture
async def docker_backend(ward: Ward, docker_engine: Engine, tmp_path: Path) -> AsyncIterator[Backend]:
    async with backend_on(ward, docker_engine, tmp_path) as backend:
        yield backend


@pytest.fixture(params=["host", "engine"])
async def private_backend(
    ward: Ward, private_engine: PrivateEngine, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Backend]:
    """The same on an engine that may be stopped and killed, with both ways of output."""
    if not private_engine.answers():
        private_engine.start()
    async with backend_on(ward, private_engine, tmp_path, request.param) as backend:
        yield backend


host_only = pytest.mark.parametrize("private_backend", ["host"], indirect=True)
engine_only = pytest.mark.parametrize("private_backend", ["engine"], indirect=True)


@asynccontextmanager
async def backend_on(ward: Ward, engine: Engine, data_dir: Path, output: str = "auto") -> AsyncIterator[Backend]:
    """Fails a test that leaves a directory or a process for an output; the ward looks for containers."""
    install = f"test-{uuid4().hex}"
    ward.installs.append((engine, install))
    settings = Settings(store=Store(data_dir=data_dir), docker=Docker(host=engine.host, output=output))  # type: ignore[arg-type]

    async def opened() -> LocalDocker:
        vmms = LocalDocker(settings, install)
        await vmms.open()
        return vmms

    vmms = await opened()
    try:
        yield Backend(opened, vmms, IMAGE, data_dir)
    finally:
        await vmms.close()
    assert not [*settings.state_dir.glob("outputs/*")], "outputs were left"
    await wait_until(lambda: not processes(str(data_dir)), "no process was left")


async def until_it_listens(machine: Machine) -> None:
    """A machine with the pipe, whose bootstrap has opened that and waits for files."""

    def opened(pid: int) -> bool:
        with suppress(OSError):
            return Path(f"/proc/{pid}/fd/1").readlink() == Path(host_outputs.PIPE)
        return False

    await wait_until(lambda: any(map(opened, processes(machine.nonce))), "the machine has opened its pipe")


@dataclass
class Dist(Backend):
    """With the engines in the order of their hosts' names."""

    engines: list[RemoteEngine]

    def on(self, number: int) -> list[str]:
        """Containers of the host."""
        return self.engines[number].containers(f"tango-async.host=n{number}")


@asynccontextmanager
async def dist_on(
    ward: Ward, engines: list[RemoteEngine], data_dir: Path, settings: Settings | None = None
) -> AsyncIterator[Dist]:
    install = f"test-{uuid4().hex}"
    ward.installs.extend((engine, install) for engine in engines)
    used = settings or settings_of(engines, data_dir)

    async def opened() -> DistDocker:
        vmms = DistDocker(used, install)
        await vmms.open()
        return vmms

    vmms = await opened()
    try:
        yield Dist(opened, vmms, IMAGE, data_dir, engines)
    finally:
        await vmms.close()


@pytest.fixture
async def dist(ward: Ward, engines: list[RemoteEngine], tmp_path: Path) -> AsyncIterator[Dist]:
    async with dist_on(ward, engines, tmp_path) as backend:
        yield backend
