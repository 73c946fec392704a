"""tashiSSH on a double of the cluster manager, whose instances are real sshds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from contracts.machines import Backend
from contracts.vmms import VmmsContract
from support.tashi import DESTROYING, ClusterManager
from support.vm import host_key
from tango_async.config import Settings, Store, Tashi
from tango_async.vmms import base
from tango_async.vmms.ssh import new_key
from tango_async.vmms.tashi.driver import TashiSsh

IMAGE = "debian"


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[ClusterManager]:
    private, public = new_key()
    (tmp_path / "id").write_text(private)
    async with ClusterManager(host_key(tmp_path), public) as manager:
        yield manager


@pytest.fixture
def settings(manager: ClusterManager, tmp_path: Path) -> Settings:
    tashi = Tashi(
        host="127.0.0.1", port=manager.port, images={IMAGE: "debian.img"}, user="root",
        private_key=tmp_path / "id", host_keys=(manager.host_key,), lost_s=5,
    )  # fmt: skip
    return Settings(store=Store(data_dir=tmp_path), tashi=tashi)


@pytest.fixture
async def backend(manager: ClusterManager, settings: Settings, tmp_path: Path) -> AsyncIterator[Backend]:
    install = f"test-{uuid4().hex}"

    async def opened() -> TashiSsh:
        vmms = base.load("tashiSSH", settings, install)
        await vmms.open()
        assert isinstance(vmms, TashiSsh)
        return vmms

    vmms = await opened()
    try:
        yield Backend(opened, vmms, IMAGE, tmp_path)  # type: ignore[arg-type]
    finally:
        await vmms.close()
    left = [instance.name for instance in manager.instances.values() if instance.state != DESTROYING]
    assert not left and not manager.vms, "instances were left"


def changed(settings: Settings, **changes: object) -> Settings:
    return msgspec.structs.replace(settings, tashi=msgspec.structs.replace(settings.tashi, **changes))


class TestTashi(VmmsContract):
    """The contract."""
