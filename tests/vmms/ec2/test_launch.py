"""An instance is asked for once, of the best kind there is, and is never forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contracts.machines import PATIENCE_S, Ran, make
from support.ec2 import KEY, Cloud
from tango_async.config import HostKeys
from tango_async.errors import (
    NoCapacity,
    Unsuitable,
)
from tango_async.machine import Exit
from tango_async.vmms.ec2 import driver
from vmms.ec2.conftest import Ec2Backend, backend_on, until_none_lives


async def test_throttled_calls_are_made_again(cloud: Cloud, backend: Ec2Backend) -> None:
    cloud.fail("RunInstances", "RequestLimitExceeded", 2, status=503)
    cloud.fail("DescribeInstances", "InternalError", 2, status=500)
    assert await backend.run(make("echo at last")) == Ran(Exit(0), b"at last\n")


async def test_a_lost_answer_makes_no_second_instance(cloud: Cloud, backend: Ec2Backend) -> None:
    cloud.lose("RunInstances")
    async with backend.machine():
        assert cloud.calls["RunInstances"] == 2 and len(await cloud.living()) == 1


async def test_without_room_another_type_is_taken_and_then_on_demand(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, spot=True, types=("t3.small", "t3.medium")) as backend:
        cloud.fail("RunInstances", "InsufficientInstanceCapacity", InstanceType="t3.small")
        async with backend.machine():
            (first,) = await cloud.living()
            assert first["InstanceType"] == "t3.medium" and first["InstanceLifecycle"] == "spot"
        spot = {"InstanceMarketOptions.MarketType": "spot"}
        cloud.fail("RunInstances", "MaxSpotInstanceCountExceeded", 2, **spot)
        async with backend.machine():
            (second,) = await cloud.living()
            assert second["InstanceType"] == "t3.small" and "InstanceLifecycle" not in second


async def test_a_key_pair_that_somebody_removed_is_made_again(
    cloud: Cloud, backend: Ec2Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "ROOM_PAUSE_S", (0.1, 0.2))
    for pair in (await cloud.clients[KEY].describe_key_pairs())["KeyPairs"]:
        await cloud.clients[KEY].delete_key_pair(KeyName=pair["KeyName"])
    assert await backend.run(make("echo in")) == Ran(Exit(0), b"in\n")


async def test_no_room_anywhere_is_waited_for_and_then_said(
    cloud: Cloud, backend: Ec2Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "ROOM_PAUSE_S", (0.1, 0.2))
    cloud.fail("RunInstances", "VcpuLimitExceeded", 7)
    async with backend.machine():
        assert cloud.calls["RunInstances"] > 5
    monkeypatch.setattr(driver, "ROOM_S", 0.5)
    cloud.fail("RunInstances", "VcpuLimitExceeded", 10**6)
    with pytest.raises(NoCapacity, match="VcpuLimitExceeded"):
        await backend.vmms.initialize_vm(backend.spec(), "tester")


async def test_the_type_has_what_the_job_needs(cloud: Cloud, backend: Ec2Backend) -> None:
    async with backend.machine(cores=3.0, memory_bytes=9 << 30):
        assert (await cloud.living())[0]["InstanceType"] == "t3.xlarge"
    with pytest.raises(Unsuitable, match=r"ec2\.types: none of .* has 99 cores"):
        await backend.vmms.initialize_vm(backend.spec(cores=99.0), "tester")


async def test_a_launch_whose_caller_died_is_found_by_its_tags(cloud: Cloud, backend: Ec2Backend) -> None:
    cloud.slow_answers["RunInstances"] = 60.0
    launching = asyncio.create_task(backend.vmms.initialize_vm(backend.spec(), "tester"))
    async with asyncio.timeout(PATIENCE_S):
        while not await cloud.living():
            await asyncio.sleep(0.02)
    launching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launching
    successor = await backend.open()
    try:
        (found,) = await successor.get_vms()
        assert found.spec == backend.spec() and found.owner == "tester"
        await successor.destroy_vm(found)
        assert await successor.get_vms() == []
    finally:
        cloud.slow_answers.clear()
        await successor.close()


async def test_an_instance_ends_itself_and_hides_its_user_data(cloud: Cloud, backend: Ec2Backend) -> None:
    async with backend.machine():
        (one,) = await cloud.living()
        vm = cloud.vms[one["InstanceId"]]
        assert vm.sh("cat /run/shutdown") == "-h +360\n"
        assert vm.sh("cat /run/ip") == "route replace prohibit 169.254.169.254/32\n"
        vm.kill()  # as its own shutdown would
        await until_none_lives(cloud)


async def test_one_that_waits_for_long_has_its_end_put_off(
    cloud: Cloud, backend: Ec2Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with backend.machine() as machine:
        (one,) = await cloud.living()
        vm = cloud.vms[one["InstanceId"]]
        vm.sh("rm /run/shutdown")
        await backend.vmms.wait_vm(machine)
        assert vm.sh("ls /run | grep shutdown || true") == ""
        monkeypatch.setattr(driver, "RENEW", 0.0)
        await backend.vmms.wait_vm(machine)
        assert vm.sh("cat /run/shutdown") == "-h +360\n"


async def test_a_host_key_can_be_read_from_the_console(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, host_keys=HostKeys.CONSOLE) as backend:
        assert await backend.run(make("echo known")) == Ran(Exit(0), b"known\n")
