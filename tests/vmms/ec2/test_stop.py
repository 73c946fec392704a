"""A driver that closes leaves no instance, unless AWS does not let it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from contracts.machines import PATIENCE_S, inputs, limit, make
from support.ec2 import Cloud
from tango_async.vmms.ec2 import accounts
from vmms.ec2.conftest import backend_on


async def test_one_that_is_just_being_ended_is_ended(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True, idle_s=0.2) as backend:
        begun, end = asyncio.Event(), backend.vmms._fleet._end

        async def noted(*which: Any) -> None:
            begun.set()
            cloud.slow_answers["DescribeInstances"] = 1.0
            await end(*which)

        backend.vmms._fleet._end = noted
        await backend.run(make("echo one"))
        await begun.wait()


async def test_one_that_cannot_be_ended_keeps_no_other(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        async with backend.machine() as first, backend.machine() as second:
            for machine in (first, second):
                await backend.vmms.copy_in(machine, inputs(make("echo in")), limit())
                await backend.vmms.run_job(machine)
        cloud.fail("TerminateInstances", "OperationNotPermitted")
        await backend.vmms.close()
        (protected,) = await cloud.living()
        await cloud.end(protected["InstanceId"])


async def test_it_does_not_wait_for_an_api_that_is_silent(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "CLOSE_S", 0.1)
    async with backend_on(cloud, tmp_path) as backend:
        cloud.slow_answers["DeleteKeyPair"] = 2 * PATIENCE_S
        async with asyncio.timeout(PATIENCE_S):
            await backend.vmms.close()


async def test_one_whose_launch_is_under_way_is_ended(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path) as backend:
        cloud.slow_answers["RunInstances"] = 1.0
        launching = asyncio.create_task(backend.vmms.initialize_vm(backend.spec(), "tester"))
        async with asyncio.timeout(PATIENCE_S):
            while not cloud.calls["RunInstances"]:
                await asyncio.sleep(0.02)
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching
