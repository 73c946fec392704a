"""ec2SSH on a cloud of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from contracts.machines import PATIENCE_S, Backend
from support.ec2 import IMAGE, KEY, Cloud, settings_on
from tango_async.vmms.ec2.driver import Ec2Ssh


@dataclass
class Ec2Backend(Backend):
    """With what only ec2SSH has."""

    open: Callable[[], Awaitable[Ec2Ssh]]
    vmms: Ec2Ssh


@asynccontextmanager
async def backend_on(cloud: Cloud, state: Path, **changes: object) -> AsyncIterator[Ec2Backend]:
    """Fails a test that leaves an instance."""
    install = uuid4().hex[:12]
    patient = {"boot_s": 40.0, "lost_s": 4 * PATIENCE_S}

    async def opened() -> Ec2Ssh:
        vmms = Ec2Ssh(settings_on(cloud, state / "state", **patient | changes), install)
        await vmms.open()
        return vmms

    vmms = await opened()
    try:
        yield Ec2Backend(opened, vmms, IMAGE, state)
    finally:
        await vmms.close()
    assert not await cloud.living(), "instances were left"
    assert not (await cloud.clients[KEY].describe_key_pairs())["KeyPairs"], "a key pair was left"


@pytest.fixture
async def backend(cloud: Cloud, tmp_path: Path) -> AsyncIterator[Ec2Backend]:
    async with backend_on(cloud, tmp_path) as backend:
        yield backend


async def until_none_lives(cloud: Cloud) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await cloud.living():
            await asyncio.sleep(0.05)
