"""A job's own account is used for it, and forgotten when nothing is left there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contracts.machines import PATIENCE_S, inputs, limit, make
from support.ec2 import KEY, NONE_LISTED, OTHER_KEY, SECRET, Cloud
from tango_async.errors import (
    HostUnavailable,
    Unsuitable,
    VmmsUnavailable,
)
from tango_async.machine import CloudChoice, Credentials
from tango_async.vmms.ec2 import client, fleet
from vmms.ec2.conftest import Ec2Backend, backend_on


async def test_its_instance_is_there_and_its_secret_goes_with_it(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, subnets=()) as backend:
        own = Credentials(key_id=OTHER_KEY, secret=SECRET)
        await backend.vmms.know(own)
        choice = CloudChoice(account=own.account)
        machine = await backend.vmms.initialize_vm(backend.spec(cloud=choice), "tester")
        assert len(await cloud.instances(OTHER_KEY)) == 1 and not await cloud.instances(KEY)
        (file,) = (tmp_path / "state/ec2/accounts").iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        successor = await backend.open()
        assert await successor.get_vms() == [machine]
        await successor.destroy_vm(machine)
        await successor.close()
        assert not file.exists() and not await cloud.living()
        assert not (await cloud.clients[OTHER_KEY].describe_key_pairs())["KeyPairs"]


async def test_what_is_slow_there_holds_up_no_other(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, subnets=()) as backend:
        own = Credentials(key_id=OTHER_KEY, secret=SECRET)
        await backend.vmms.know(own)
        spec = backend.spec(cloud=CloudChoice(account=own.account))
        machines = [await backend.vmms.initialize_vm(backend.spec(), "tester")]
        cloud.slow_answers["ImportKeyPair"] = 2 * PATIENCE_S
        before = cloud.calls["ImportKeyPair"]
        assert cloud.answered["ImportKeyPair"] == before
        launching = asyncio.create_task(backend.vmms.initialize_vm(spec, "tester"))
        async with asyncio.timeout(PATIENCE_S):
            while cloud.calls["ImportKeyPair"] == before:
                await asyncio.sleep(0.02)
        machines.append(await backend.vmms.initialize_vm(backend.spec(), "tester"))
        assert cloud.answered["ImportKeyPair"] == before
        cloud.slow_answers.clear()
        for machine in (*machines, await launching):
            await backend.vmms.destroy_vm(machine)


async def test_it_is_not_forgotten_for_the_job_that_just_brings_it(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, subnets=()) as backend:
        own = Credentials(key_id=OTHER_KEY, secret=SECRET)
        spec = backend.spec(cloud=CloudChoice(account=own.account))
        await backend.vmms.know(own)
        first = await backend.vmms.initialize_vm(spec, "tester")
        cloud.slow_answers["DeleteKeyPair"] = 0.5
        before = cloud.calls["DeleteKeyPair"]
        ending = asyncio.create_task(backend.vmms.destroy_vm(first))
        async with asyncio.timeout(PATIENCE_S):
            while cloud.calls["DeleteKeyPair"] == before:
                await asyncio.sleep(0.02)
        await backend.vmms.know(own)
        second = await backend.vmms.initialize_vm(spec, "tester")
        await ending
        await backend.vmms.destroy_vm(second)
        assert not list((tmp_path / "state/ec2/accounts").iterdir())


async def test_it_is_remembered_until_our_key_pair_has_gone(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, subnets=()) as backend:
        own = Credentials(key_id=OTHER_KEY, secret=SECRET)
        await backend.vmms.know(own)
        spec = backend.spec(cloud=CloudChoice(account=own.account))
        machine = await backend.vmms.initialize_vm(spec, "tester")
        cloud.fail("DeleteKeyPair", "NotNow")
        await backend.vmms.destroy_vm(machine)
        assert (await cloud.clients[OTHER_KEY].describe_key_pairs())["KeyPairs"]
        assert await backend.vmms.get_vms() == []
        assert not (await cloud.clients[OTHER_KEY].describe_key_pairs())["KeyPairs"]
        assert not list((tmp_path / "state/ec2/accounts").iterdir())


async def test_it_is_remembered_until_a_launch_that_nobody_waits_for_is_ended(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, subnets=()) as backend:
        own = Credentials(key_id=OTHER_KEY, secret=SECRET)
        await backend.vmms.know(own)
        cloud.slow_answers |= {"RunInstances": 2 * PATIENCE_S, "TerminateInstances": 2 * PATIENCE_S}
        cloud.answers["DescribeInstances"] = NONE_LISTED
        spec = backend.spec(cloud=CloudChoice(account=own.account))
        launching = asyncio.create_task(backend.vmms.initialize_vm(spec, "tester"))
        for call in ("RunInstances", "TerminateInstances"):
            async with asyncio.timeout(PATIENCE_S):
                while not cloud.calls[call]:
                    await asyncio.sleep(0.02)
            launching.cancel()
            assert await backend.vmms.get_vms() == []
            assert list((tmp_path / "state/ec2/accounts").iterdir())
            del cloud.slow_answers[call]
        del cloud.answers["DescribeInstances"]


async def test_of_one_that_was_not_kept_whole_nothing_stays(cloud: Cloud, tmp_path: Path) -> None:
    directory = tmp_path / "state/ec2/accounts"
    directory.mkdir(parents=True)
    (directory / "0123456789abcdef.new").write_text('{"key_id":"AKIA')
    async with backend_on(cloud, tmp_path):
        assert not list(directory.iterdir())


async def test_one_that_is_ours_anyway_shows_each_instance_once(backend: Ec2Backend) -> None:
    ours = Credentials(key_id=KEY, secret=SECRET)
    await backend.vmms.know(ours)
    async with backend.machine(cloud=CloudChoice(account=ours.account)) as machine:
        successor = await backend.open()
        assert await successor.get_vms() == [machine]
        await successor.close()


@pytest.mark.parametrize("silent", ["away", "slow"])
async def test_one_that_says_nothing_hides_its_own_machines_only(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    monkeypatch.setattr(client, "TRIES", 1)
    async with backend_on(cloud, tmp_path, subnets=()) as backend:
        theirs = Credentials(key_id=OTHER_KEY, secret=SECRET)
        await backend.vmms.know(theirs)
        spec = backend.spec(cloud=CloudChoice(account=theirs.account))
        ours = await backend.vmms.initialize_vm(backend.spec(), "tester")
        hidden = await backend.vmms.initialize_vm(spec, "tester")
        successor = await backend.open()
        if silent == "slow":
            monkeypatch.setattr(fleet, "LIST_S", 0.0)
        else:
            cloud.away_for.add(OTHER_KEY)
        assert (await successor.get_vms(), successor.unseen()) == ([ours], 1)
        cloud.away_for.clear()
        monkeypatch.setattr(fleet, "LIST_S", PATIENCE_S)
        found = await successor.get_vms()
        assert (sorted(machine.id for machine in found)) == sorted([ours.id, hidden.id])
        assert not successor.unseen()
        for machine in found:
            await successor.destroy_vm(machine)
        await successor.close()


async def test_when_none_says_anything_nobody_knows(
    cloud: Cloud, backend: Ec2Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TRIES", 1)
    cloud.away = True
    with pytest.raises(VmmsUnavailable, match="no account says"):
        await backend.vmms.get_vms()
    cloud.away = False


async def test_who_closes_late_leaves_the_key_pair_of_whoever_came_back(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path) as backend:
        back = await backend.open()
        await backend.vmms.close()
        assert (await cloud.clients[KEY].describe_key_pairs())["KeyPairs"]
        await back.close()


async def test_it_is_remembered_while_an_instance_waits_there(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, subnets=(), reuse=True) as backend:
        theirs = Credentials(key_id=OTHER_KEY, secret=SECRET)
        await backend.vmms.know(theirs)
        async with backend.machine(cloud=CloudChoice(account=theirs.account)) as machine:
            await backend.vmms.copy_in(machine, inputs(make("echo one")), limit())
            await backend.vmms.run_job(machine)
        cloud.answers["DescribeInstances"] = NONE_LISTED
        assert await backend.vmms.get_vms() == []
        cloud.answers.clear()


async def test_a_wrong_one_is_the_jobs_own_affair(backend: Ec2Backend) -> None:
    wrong = Credentials(key_id="AKIANOBODY", secret=SECRET)
    await backend.vmms.know(wrong)
    with pytest.raises(Unsuitable, match="addJob's accessKeyId and accessKey: AWS refuses them") as refused:
        await backend.vmms.initialize_vm(backend.spec(cloud=CloudChoice(account=wrong.account)), "tester")
    assert SECRET not in str(refused.value) and "AKIANOBODY" not in str(refused.value)
    assert await backend.vmms.get_vms() == []


async def test_one_in_which_nothing_can_be_had_says_nothing_of_others(cloud: Cloud, backend: Ec2Backend) -> None:
    poor = Credentials(key_id=OTHER_KEY, secret=SECRET)
    await backend.vmms.know(poor)
    cloud.fail("RunInstances", "VPCIdNotSpecified")
    with pytest.raises(HostUnavailable, match="VPCIdNotSpecified"):
        await backend.vmms.initialize_vm(backend.spec(cloud=CloudChoice(account=poor.account)), "tester")
    assert await backend.vmms.get_vms() == []


async def test_what_a_job_chooses_is_named_if_it_is_not_there(backend: Ec2Backend) -> None:
    for choice, said in [
        (CloudChoice(image="ami-00000000000000000"), "addJob's ami"),
        (CloudChoice(machine_type="t9.huge"), "addJob's instanceType"),
        (CloudChoice(security_group="no such"), "addJob's security_group"),
    ]:
        with pytest.raises(Unsuitable, match=said):
            await backend.vmms.initialize_vm(backend.spec(cloud=choice), "tester")
