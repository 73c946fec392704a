"""What is wrong is said by its name: at the start where it can be known."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contracts.machines import PATIENCE_S, first_output, inputs, limit, make, only
from support.ec2 import EVERY, KEY, OTHER_KEY, SECRET, Cloud, settings_on
from tango_async.errors import (
    MachineLost,
    MachineReclaimed,
    NotStarted,
    VmmsUnavailable,
)
from tango_async.machine import CloudChoice, Credentials, Exit
from tango_async.vmms.ec2 import client, driver
from tango_async.vmms.ec2.driver import Ec2Ssh
from tango_async.vmms.ssh import Distrusted, new_key
from vmms.ec2.conftest import Ec2Backend, backend_on


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"access_key_id": "AKIAWRONG"}, "ec2.access_key_id, ec2.access_key or ec2.region: AWS refuses them"),
        ({"endpoint": "http://127.0.0.1:9"}, "ec2.region or ec2.endpoint: the EC2 API cannot be reached"),
        ({"types": ("t3.small", "t9.huge")}, "ec2.types"),
        ({"images": {"x": "ami-00000000000000000"}}, "ec2.images"),
        ({"security_groups": ("sg-00000000000000000",)}, "ec2.security_groups"),
        ({"subnets": ("subnet-00000000000000000",)}, "ec2.subnets"),
        ({"key_name": "absent"}, "ec2.private_key: unset"),
        ({"key_name": "absent", "private_key": Path("/nonexistent")}, "ec2.private_key: /nonexistent"),
        ({"boot_s": 3600.0}, "dispatcher.machine_wait_s"),
        ({"max_life_minutes": 5}, "ec2.max_life_minutes"),
    ],
)
async def test_a_wrong_setting_is_named(
    cloud: Cloud,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    said: str,
) -> None:
    monkeypatch.setattr(client, "TRIES", 1)
    vmms = Ec2Ssh(settings_on(cloud, tmp_path, **changes), "install")
    with pytest.raises(VmmsUnavailable, match=said):
        await vmms.open()


async def test_a_key_pair_that_is_not_there_is_named(cloud: Cloud, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(new_key()[0])
    vmms = Ec2Ssh(settings_on(cloud, tmp_path, key_name="absent", private_key=file), "install")
    with pytest.raises(VmmsUnavailable, match=r"ec2\.key_name"):
        await vmms.open()


async def test_an_instance_that_nobody_reaches_is_told_of(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, boot_s=3.0) as backend:
        cloud.boots = False
        machine = await backend.vmms.initialize_vm(backend.spec(), "tester")
        with pytest.raises(MachineLost, match=r"not ready within ec2\.boot_s: .*Connect"):
            await backend.vmms.wait_vm(machine)
        await backend.vmms.destroy_vm(machine)


async def test_another_host_at_its_address_is_not_trusted(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path) as backend:
        cloud.lies = True
        machine = await backend.vmms.initialize_vm(backend.spec(), "tester")
        with pytest.raises(Distrusted, match="another host answers"):
            await backend.vmms.wait_vm(machine)
        await backend.vmms.destroy_vm(machine)


async def test_an_instance_that_was_ended_by_hand_is_lost_at_once(cloud: Cloud, backend: Ec2Backend) -> None:
    async with backend.machine() as machine:
        await backend.vmms.copy_in(machine, inputs(make("echo up; sleep 600")), limit())
        assert await first_output(backend.vmms, machine) == b"up\n"
        (one,) = await cloud.living()
        await cloud.clients[KEY].terminate_instances(InstanceIds=[one["InstanceId"]])
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(MachineLost, match="terminated"):
                await backend.vmms.run_job(machine)


@pytest.mark.parametrize("spot", [False, True])
async def test_a_running_job_needs_no_api(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spot: bool
) -> None:
    monkeypatch.setattr(client, "TRIES", 1)
    monkeypatch.setattr(driver, "SPOT_LOOK_S", 0.1)
    async with backend_on(cloud, tmp_path, spot=spot) as backend, backend.machine() as machine:
        await backend.vmms.copy_in(machine, inputs(make("sleep 1")), limit())
        cloud.away = True
        assert await backend.vmms.run_job(machine) == Exit(0)
        cloud.away = False


async def test_a_running_job_needs_its_account_no_more(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SPOT_LOOK_S", 0.1)
    own = Credentials(key_id=OTHER_KEY, secret=SECRET)
    async with backend_on(cloud, tmp_path, subnets=(), spot=True) as backend:
        await backend.vmms.know(own)
        async with backend.machine(cloud=CloudChoice(account=own.account)) as machine:
            await backend.vmms.copy_in(machine, inputs(make("sleep 1")), limit())
            cloud.fail(EVERY, "UnauthorizedOperation", 1000, status=403)
            assert await backend.vmms.run_job(machine) == Exit(0)
            cloud.faults.clear()


async def test_a_broken_connection_needs_no_api(
    cloud: Cloud, backend: Ec2Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "WHY_S", 0.1)
    async with backend.machine() as machine:
        await backend.vmms.copy_in(machine, inputs(make("sleep 1")), limit())
        running = asyncio.create_task(backend.vmms.run_job(machine))
        await asyncio.sleep(0.3)
        cloud.slow_answers["DescribeInstances"] = 2 * PATIENCE_S
        await backend.vmms._vms[machine.id].link.close()
        async with asyncio.timeout(PATIENCE_S):
            assert await running == Exit(0)
        cloud.slow_answers.clear()


async def test_a_job_is_adopted_though_the_api_goes_away(
    cloud: Cloud, backend: Ec2Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TRIES", 1)
    async with backend.machine() as machine:
        await backend.vmms.copy_in(machine, inputs(make("sleep 1")), limit())
        successor = await backend.open()
        assert await successor.get_vms() == [machine]
        cloud.away = True
        await successor.adopt(machine)
        assert await successor.run_job(machine) == Exit(0)
        cloud.away = False
        await successor.close()


async def test_one_out_of_reach_makes_no_job_overdue(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, lost_s=600.0) as backend:
        assert backend.vmms.capabilities.overtime_s > 600


async def test_one_that_waits_is_known_to_be_gone(cloud: Cloud, backend: Ec2Backend) -> None:
    async with backend.machine() as machine:
        await backend.vmms.wait_vm(machine)
        (one,) = await cloud.living()
        await cloud.clients[KEY].terminate_instances(InstanceIds=[one["InstanceId"]])
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(MachineLost, match="terminated"):
                while True:
                    await backend.vmms.wait_vm(machine)


async def test_a_spot_instance_that_is_taken_back_is_no_fault(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SPOT_LOOK_S", 0.1)
    monkeypatch.setattr(driver, "SPOT_GRACE_S", 0.2)
    async with backend_on(cloud, tmp_path, spot=True) as backend, backend.machine() as machine:
        await backend.vmms.copy_in(machine, inputs(make("sleep 600")), limit())
        running = asyncio.create_task(backend.vmms.run_job(machine))
        await asyncio.sleep(0.5)
        assert not running.done()
        cloud.reclaim((await cloud.living())[0]["InstanceId"])
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(MachineReclaimed, match="marked-for-termination"):
                await running


async def test_a_failed_machine_can_be_kept(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, keep_failed=True) as backend:
        async with backend.machine() as machine:
            await backend.vmms.feed(machine, only(b""))
            with pytest.raises(NotStarted, match="incompletely"):
                await backend.vmms.run_job(machine)
        assert await backend.vmms.get_vms() == []
        (kept,) = await cloud.living()
        assert {tag["Key"]: tag["Value"] for tag in kept["Tags"]}["tango:kept"].startswith(
            "the files arrived incompletely"
        )
        await cloud.clients[KEY].terminate_instances(InstanceIds=[kept["InstanceId"]])
