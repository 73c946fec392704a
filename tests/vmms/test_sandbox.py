"""localSandbox: the contract, and what only a process on this host can show."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from contracts.machines import Backend, processes, wait_until
from contracts.vmms import VmmsContract
from tango_async.config import Sandbox, Settings, Store
from tango_async.vmms import cgroup
from tango_async.vmms.sandbox import LocalSandbox

INSTALL = f"test-{os.getpid()}"
UID = 40_000 + os.getpid() % 20_000
"""Of this run's jobs only, so that what one leaves behind can be told from others' work."""

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None and os.environ.get("CI") != "true", reason="bubblewrap is not installed"
)


def settings_of(data_dir: Path, **sandbox: object) -> Settings:
    return Settings(store=Store(data_dir=data_dir), sandbox=Sandbox(uid=UID, **sandbox))  # type: ignore[arg-type]


def groups() -> set[Path]:
    return {group for h in cgroup.find() for group in h.base.glob(f"tango-{INSTALL}-*")}


def of_jobs() -> list[str]:
    """Processes with this run's uid, and zombies that we have not reaped."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        mine = text["Uid"].split()[0] == str(UID) and os.geteuid() == 0
        if mine or (text["State"].strip().startswith("Z") and text["PPid"].strip() == str(os.getpid())):
            found.append(f"{status.parent.name} {text['Name'].strip()}")
    return found


@asynccontextmanager
async def sandboxes(settings: Settings) -> AsyncIterator[Backend]:
    """A back-end that must leave nothing behind."""
    async def opened() -> LocalSandbox:
        vmms = LocalSandbox(settings, INSTALL)
        await vmms.open()
        return vmms

    vmms = await opened()
    yield Backend(opened, vmms, "autograding_image", settings.store.data_dir)
    assert await vmms.get_vms() == []
    await vmms.close()
    assert list((settings.state_dir / "machines").iterdir()) == []
    await wait_until(lambda: not of_jobs(), f"no process is left of {of_jobs()}")
    assert processes(str(settings.state_dir)) == []
    assert groups() == set()


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    async with sandboxes(settings_of(tmp_path)) as backend:
        yield backend


class TestLocalSandbox(VmmsContract):
    """The contract, with control groups where this host has writable ones."""


class TestWithoutControlGroups(VmmsContract):
    """The contract again, with what a user namespace of the job's own can bound."""

    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Backend]:
        async with sandboxes(settings_of(tmp_path, cgroup=False)) as backend:
            yield backend
