"""With ec2.reuse an instance serves one job after the other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from contracts.machines import PATIENCE_S, Ran, inputs, limit, make, wait_until
from support.ec2 import IMAGE, KEY, Cloud
from tango_async.errors import (
    MachineLost,
    VmmsUnavailable,
)
from tango_async.machine import Exit, Standing
from tango_async.vmms.ec2 import client, driver
from tango_async.vmms.ssh import Link
from tango_async.vmms.vm import Vm
from vmms.ec2.conftest import backend_on, until_none_lives


async def test_the_next_job_of_the_kind_gets_it_clean(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        assert (await backend.run(make("touch ~/mine /tmp/mine; (setsid sleep 600 &)"))).code == 0
        (one,) = await cloud.living()
        assert await backend.vmms.get_vms() == []
        ran = await backend.run(make("ls -A ~ /tmp; id -u"))
        assert b"mine" not in ran.output
        assert cloud.calls["RunInstances"] == 1
        async with backend.machine(memory_bytes=3 << 30):
            assert cloud.calls["RunInstances"] == 2
        assert cloud.vms[one["InstanceId"]].alive


async def test_who_waits_for_one_that_boots_gets_one_that_becomes_free(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True, scale_after_s=0.0) as backend:
        vmms = backend.vmms
        async with backend.machine() as first:
            cloud.mute_next = 1
            second = await vmms.initialize_vm(backend.spec(), "tester")
            assert vmms.standing(IMAGE) == Standing(machines=2, fresh=1)
            booting = asyncio.create_task(vmms.wait_vm(second))
            await vmms.copy_in(first, inputs(make("echo one")), limit())
            await vmms.run_job(first)
        async with asyncio.timeout(PATIENCE_S):
            await booting
        assert cloud.calls["RunInstances"] == 2 and len(await cloud.living()) == 2
        assert await vmms.get_vms() == [second]
        third = await vmms.initialize_vm(backend.spec(), "tester")
        assert cloud.calls["RunInstances"] == 2
        cloud.mute.clear()
        await vmms.wait_vm(third)
        assert vmms.standing(IMAGE) == Standing(machines=2, fresh=0)
        listed = sorted(machine.id for machine in await vmms.get_vms())
        assert listed == sorted([second.id, third.id])
        for machine in (second, third):
            await vmms.destroy_vm(machine)
            assert machine not in await vmms.get_vms()
        assert not await cloud.living()


async def test_who_ends_takes_no_instance_along_that_it_left_to_another(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        vmms = backend.vmms
        async with backend.machine() as first:
            second = await vmms.initialize_vm(backend.spec(), "tester")
            await vmms.copy_in(first, inputs(make("echo one")), limit())
            await vmms.run_job(first)
        own = (await vmms._fleet.look(second)).id
        async with asyncio.timeout(PATIENCE_S):
            while not await vmms._fleet.move(second):
                await asyncio.sleep(0.05)
        old = [{"Key": "tango:machine", "Value": second.id}]  # as a listing says that lags behind
        await cloud.clients[KEY].create_tags(Resources=[own], Tags=old)
        await vmms.destroy_vm(second)
        assert [one["InstanceId"] for one in await cloud.living()] == [own]


async def test_who_comes_while_another_is_given_one_gets_what_that_leaves(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        vmms = backend.vmms
        async with backend.machine() as first:
            second = await vmms.initialize_vm(backend.spec(), "tester")
            await vmms.copy_in(first, inputs(make("echo one")), limit())
            await vmms.run_job(first)
        before = cloud.calls["CreateTags"]
        cloud.slow_answers["CreateTags"] = 0.5
        moving = asyncio.create_task(vmms.wait_vm(second))
        async with asyncio.timeout(PATIENCE_S):
            while cloud.calls["CreateTags"] == before:
                await asyncio.sleep(0.01)
        third = await vmms.initialize_vm(backend.spec(), "tester")
        cloud.slow_answers.clear()
        await moving
        await vmms.wait_vm(third)
        assert cloud.calls["RunInstances"] == len(await cloud.living()) == 2
        for machine in (second, third):
            await vmms.destroy_vm(machine)


async def test_what_cannot_be_had_keeps_no_job_from_its_own_instance(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        async with backend.machine() as first:
            second = await backend.vmms.initialize_vm(backend.spec(), "tester")
            await backend.vmms.copy_in(first, inputs(make("echo one")), limit())
            await backend.vmms.run_job(first)
        cloud.fail("CreateTags", "NotNow")
        await backend.vmms.wait_vm(second)
        await backend.vmms.copy_in(second, inputs(make("echo two")), limit())
        assert await backend.vmms.run_job(second) == Exit(0)
        await backend.vmms.destroy_vm(second)


async def test_one_that_is_left_to_others_while_it_boots_is_waited_for_no_longer_by_that(
    cloud: Cloud, tmp_path: Path
) -> None:
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        vmms, ends = backend.vmms, []
        cloud.mute_next = 1
        waiting = await vmms.initialize_vm(backend.spec(), "tester")
        (hung,) = [one["InstanceId"] for one in await cloud.living()]
        async with asyncio.timeout(PATIENCE_S):
            while hung not in cloud.mute:
                await asyncio.sleep(0.01)
        async with backend.machine() as busy:
            vmms._boots._patience_s[hung] = 1.5
            for _ in range(3):
                try:
                    booting = asyncio.create_task(vmms.wait_vm(waiting))
                    await asyncio.sleep(0.6)
                    await vmms.copy_in(busy, inputs(make("echo")), limit())
                    await vmms.run_job(busy)
                    await vmms.destroy_vm(busy)
                    await booting
                except MachineLost as e:
                    ends.append(str(e))
                    break
                busy, waiting = waiting, await vmms.initialize_vm(backend.spec(), "tester")
        assert len(ends) == 1 and hung in ends[0]
        await vmms.destroy_vm(waiting)
        assert hung not in [one["InstanceId"] for one in await cloud.living()]


async def test_those_of_other_sizes_make_way_when_there_would_be_too_many(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        vmms, spec, larger = backend.vmms, backend.spec(), backend.spec(cores=3.0)
        for _ in range(2):
            async with backend.machine() as machine:
                await vmms.copy_in(machine, inputs(make("echo")), limit())
                await vmms.run_job(machine)
        (waits,) = await cloud.living()
        for asked, most in ((spec, 1), (larger, 2), (larger, 1)):
            assert vmms.standing(IMAGE).machines == 1
            vmms.make_way(asked, most)
        assert vmms.standing(IMAGE).machines == 0
        async with backend.machine(cores=3.0):
            vmms.make_way(spec, 1)
            async with asyncio.timeout(PATIENCE_S):
                while waits["InstanceId"] in [one["InstanceId"] for one in await cloud.living()]:
                    await asyncio.sleep(0.05)
            assert len(await cloud.living()) == 1


async def test_one_that_boots_while_its_job_gets_another_keeps_no_connection(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links: list[Link] = []

    def noted(*args: Any, **more: Any) -> Link:
        links.append(Link(*args, **more))
        return links[-1]

    monkeypatch.setattr(driver, "Link", noted)
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        vmms = backend.vmms
        async with backend.machine() as first:
            cloud.mute_next = 1
            second = await vmms.initialize_vm(backend.spec(), "tester")
            waiting = asyncio.create_task(vmms.wait_vm(second))
            await vmms.copy_in(first, inputs(make("echo one")), limit())
            await vmms.run_job(first)
            async with asyncio.timeout(PATIENCE_S):
                while not cloud.mute:
                    await asyncio.sleep(0.01)
            before, cloud.slow_answers["CreateTags"] = cloud.calls["CreateTags"], 2 * PATIENCE_S
        async with asyncio.timeout(PATIENCE_S):
            while cloud.calls["CreateTags"] == before:
                await asyncio.sleep(0.01)
        cloud.mute.clear()
        await wait_until(lambda: len(links) > 1 and links[1]._connection is not None, "its own lets it in")
        await asyncio.sleep(0.5)
        cloud.slow_answers.clear()
        await waiting
        assert len(links) == 3
        await vmms.destroy_vm(second)
        assert not [link for link in links if link._connection is not None]


async def test_one_that_is_just_given_away_is_not_ended_by_whoever_had_it(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        vmms = backend.vmms
        async with backend.machine() as first:
            (own,) = [one["InstanceId"] for one in await cloud.living()]
            await vmms.copy_in(first, inputs(make("echo one")), limit())
            await vmms.run_job(first)
        before, cloud.slow_answers["CreateTags"] = cloud.calls["CreateTags"], 1.0
        cloud.fail("CreateTags", "InternalError", status=500)  # so that the tags are still the old ones
        second = asyncio.create_task(vmms.initialize_vm(backend.spec(), "tester"))
        async with asyncio.timeout(PATIENCE_S):
            while cloud.calls["CreateTags"] == before:
                await asyncio.sleep(0.01)
        await vmms.destroy_vm(first)  # as a stray, that a listing showed
        assert [one["InstanceId"] for one in await cloud.living()] == [own]
        await vmms.destroy_vm(await second)


@pytest.mark.parametrize("well", [True, False])
async def test_one_that_cannot_be_ended_is_there_for_no_job(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, well: bool
) -> None:
    monkeypatch.setattr(client, "TRIES", 1)
    cleaning = asyncio.Event()
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        vmms = backend.vmms
        machine = await vmms.initialize_vm(backend.spec(), "tester")
        await vmms.wait_vm(machine)
        if well:
            await vmms.copy_in(machine, inputs(make("echo one")), limit())
            await vmms.run_job(machine)

            async def hang(vm: Vm) -> None:
                cleaning.set()
                await asyncio.Event().wait()

            monkeypatch.setattr(Vm, "clean", hang)
        cloud.fail("TerminateInstances", "InternalError", status=500)
        ending = asyncio.create_task(vmms.destroy_vm(machine))
        if well:
            await cleaning.wait()
            ending.cancel()
        with pytest.raises(asyncio.CancelledError if well else VmmsUnavailable):
            await ending
        assert vmms.standing(IMAGE) == Standing(machines=0, fresh=0)
        cloud.faults.clear()
        assert await vmms.get_vms() == [machine]
        await vmms.destroy_vm(machine)


async def test_one_whose_tags_cannot_be_changed_is_left_to_the_next_all_the_same(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        vmms = backend.vmms
        async with backend.machine() as first:
            second = await vmms.initialize_vm(backend.spec(), "tester")
            own = (await vmms._fleet.look(second)).id
            cloud.fail("CreateTags", "NotNow", **{"ResourceId.1": own})
            await vmms.copy_in(first, inputs(make("echo one")), limit())
            await vmms.run_job(first)
        async with asyncio.timeout(PATIENCE_S):
            while not await vmms._fleet.move(second):
                await asyncio.sleep(0.05)
        assert await vmms.get_vms() == [second]
        await vmms.destroy_vm(second)
        assert [one["InstanceId"] for one in await cloud.living()] == [own]
        third = await vmms.initialize_vm(backend.spec(), "tester")
        await vmms.wait_vm(third)
        assert cloud.calls["RunInstances"] == 2 and await vmms.get_vms() == [third]
        await vmms.destroy_vm(third)


async def test_one_whose_job_did_not_end_well_serves_no_other(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        async with backend.machine() as machine:
            await backend.vmms.copy_in(machine, inputs(make("sleep 600")), limit())
        assert not await cloud.living()


async def test_one_that_nobody_needs_goes(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True, idle_s=1.0) as backend:
        await backend.run(make("echo one"))
        assert backend.vmms.standing(IMAGE).machines == 1
        await until_none_lives(cloud)


async def test_one_that_aws_has_forgotten_is_replaced(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        await backend.run(make("echo one"))
        (one,) = await cloud.living()
        await cloud.end(one["InstanceId"])
        cloud.fail("DescribeInstances", "InvalidInstanceID.NotFound")
        assert await backend.run(make("echo two")) == Ran(Exit(0), b"two\n")


async def test_one_that_could_not_be_lent_is_ended(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        await backend.run(make("echo one"))
        cloud.fail("CreateTags", "NotNow")
        with pytest.raises(VmmsUnavailable, match="NotNow"):
            await backend.vmms.initialize_vm(backend.spec(), "tester")
        await until_none_lives(cloud)


async def test_a_successor_does_not_trust_what_waits(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, reuse=True) as backend:
        await backend.run(make("echo one"))
        successor = await backend.open()
        (left,) = await successor.get_vms()
        await successor.destroy_vm(left)
        await successor.close()
        assert not await cloud.living()
