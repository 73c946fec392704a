"""ec2SSH on a cloud of the test's own: the contract, and what only instances do."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from contracts.machines import PATIENCE_S, Backend, Ran, first_output, inputs, limit, make, only, wait_until
from contracts.vmms import VmmsContract
from support.ec2 import EVERY, IMAGE, KEY, NONE_LISTED, OTHER_KEY, SECRET, Cloud, settings_on
from tango_async.config import HostKeys
from tango_async.errors import (
    HostUnavailable,
    MachineLost,
    MachineReclaimed,
    NoCapacity,
    NotStarted,
    Unsuitable,
    VmmsUnavailable,
)
from tango_async.machine import CloudChoice, Credentials, Exit, Standing
from tango_async.vmms.ec2 import accounts, client, driver, fleet
from tango_async.vmms.ec2.driver import Ec2Ssh
from tango_async.vmms.ssh import Distrusted, Link, new_key
from tango_async.vmms.vm import Vm


@asynccontextmanager
async def backend_on(cloud: Cloud, state: Path, **changes: object) -> AsyncIterator[Backend]:
    """Fails a test that leaves an instance."""
    install = uuid4().hex[:12]
    patient = {"boot_s": 40.0, "lost_s": 4 * PATIENCE_S}

    async def opened() -> Ec2Ssh:
        vmms = Ec2Ssh(settings_on(cloud, state / "state", **patient | changes), install)
        await vmms.open()
        return vmms

    vmms = await opened()
    try:
        yield Backend(opened, vmms, IMAGE, state)
    finally:
        await vmms.close()
    assert not await cloud.living(), "instances were left"
    assert not (await cloud.clients[KEY].describe_key_pairs())["KeyPairs"], "a key pair was left"


@pytest.fixture
async def backend(cloud: Cloud, tmp_path: Path) -> AsyncIterator[Backend]:
    async with backend_on(cloud, tmp_path) as backend:
        yield backend


class TestEc2(VmmsContract):
    """The contract."""


class TestLaunch:
    """An instance is asked for once, of the best kind there is, and is never forgotten."""

    async def test_throttled_calls_are_made_again(self, cloud: Cloud, backend: Backend) -> None:
        cloud.fail("RunInstances", "RequestLimitExceeded", 2, status=503)
        cloud.fail("DescribeInstances", "InternalError", 2, status=500)
        assert await backend.run(make("echo at last")) == Ran(Exit(0), b"at last\n")

    async def test_a_lost_answer_makes_no_second_instance(self, cloud: Cloud, backend: Backend) -> None:
        cloud.lose("RunInstances")
        async with backend.machine():
            assert cloud.calls["RunInstances"] == 2 and len(await cloud.living()) == 1

    async def test_without_room_another_type_is_taken_and_then_on_demand(self, cloud: Cloud, tmp_path: Path) -> None:
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
        self, cloud: Cloud, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "ROOM_PAUSE_S", (0.1, 0.2))
        for pair in (await cloud.clients[KEY].describe_key_pairs())["KeyPairs"]:
            await cloud.clients[KEY].delete_key_pair(KeyName=pair["KeyName"])
        assert await backend.run(make("echo in")) == Ran(Exit(0), b"in\n")

    async def test_no_room_anywhere_is_waited_for_and_then_said(
        self, cloud: Cloud, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "ROOM_PAUSE_S", (0.1, 0.2))
        cloud.fail("RunInstances", "VcpuLimitExceeded", 7)
        async with backend.machine():
            assert cloud.calls["RunInstances"] > 5
        monkeypatch.setattr(driver, "ROOM_S", 0.5)
        cloud.fail("RunInstances", "VcpuLimitExceeded", 10**6)
        with pytest.raises(NoCapacity, match="VcpuLimitExceeded"):
            await backend.vmms.initialize_vm(backend.spec(), "tester")

    async def test_the_type_has_what_the_job_needs(self, cloud: Cloud, backend: Backend) -> None:
        async with backend.machine(cores=3.0, memory_bytes=9 << 30):
            assert (await cloud.living())[0]["InstanceType"] == "t3.xlarge"
        with pytest.raises(Unsuitable, match=r"ec2\.types: none of .* has 99 cores"):
            await backend.vmms.initialize_vm(backend.spec(cores=99.0), "tester")

    async def test_a_launch_whose_caller_died_is_found_by_its_tags(self, cloud: Cloud, backend: Backend) -> None:
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

    async def test_an_instance_ends_itself_and_hides_its_user_data(self, cloud: Cloud, backend: Backend) -> None:
        async with backend.machine():
            (one,) = await cloud.living()
            vm = cloud.vms[one["InstanceId"]]
            assert vm.sh("cat /run/shutdown") == "-h +360\n"
            assert vm.sh("cat /run/ip") == "route replace prohibit 169.254.169.254/32\n"
            vm.kill()  # as its own shutdown would
            async with asyncio.timeout(PATIENCE_S):
                while await cloud.living():
                    await asyncio.sleep(0.05)

    async def test_one_that_waits_for_long_has_its_end_put_off(
        self, cloud: Cloud, backend: Backend, monkeypatch: pytest.MonkeyPatch
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


class TestFaults:
    """What is wrong is said by its name: at the start where it can be known."""

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
        self,
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

    async def test_a_key_pair_that_is_not_there_is_named(self, cloud: Cloud, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_text(new_key()[0])
        vmms = Ec2Ssh(settings_on(cloud, tmp_path, key_name="absent", private_key=file), "install")
        with pytest.raises(VmmsUnavailable, match=r"ec2\.key_name"):
            await vmms.open()

    async def test_an_instance_that_nobody_reaches_is_told_of(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, boot_s=3.0) as backend:
            cloud.boots = False
            machine = await backend.vmms.initialize_vm(backend.spec(), "tester")
            with pytest.raises(MachineLost, match=r"not ready within ec2\.boot_s: .*Connect"):
                await backend.vmms.wait_vm(machine)
            await backend.vmms.destroy_vm(machine)

    async def test_another_host_at_its_address_is_not_trusted(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path) as backend:
            cloud.lies = True
            machine = await backend.vmms.initialize_vm(backend.spec(), "tester")
            with pytest.raises(Distrusted, match="another host answers"):
                await backend.vmms.wait_vm(machine)
            await backend.vmms.destroy_vm(machine)

    async def test_an_instance_that_was_ended_by_hand_is_lost_at_once(self, cloud: Cloud, backend: Backend) -> None:
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
        self, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spot: bool
    ) -> None:
        monkeypatch.setattr(client, "TRIES", 1)
        monkeypatch.setattr(driver, "SPOT_LOOK_S", 0.1)
        async with backend_on(cloud, tmp_path, spot=spot) as backend, backend.machine() as machine:
            await backend.vmms.copy_in(machine, inputs(make("sleep 1")), limit())
            cloud.away = True
            assert await backend.vmms.run_job(machine) == Exit(0)
            cloud.away = False

    async def test_a_running_job_needs_its_account_no_more(
        self, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "SPOT_LOOK_S", 0.1)
        own = Credentials(key_id=OTHER_KEY, secret=SECRET)
        async with backend_on(cloud, tmp_path, subnets=(), spot=True) as backend:
            await backend.vmms.know(own)  # type: ignore[attr-defined]
            async with backend.machine(cloud=CloudChoice(account=own.account)) as machine:
                await backend.vmms.copy_in(machine, inputs(make("sleep 1")), limit())
                cloud.fail(EVERY, "UnauthorizedOperation", 1000, status=403)
                assert await backend.vmms.run_job(machine) == Exit(0)
                cloud.faults.clear()

    async def test_a_broken_connection_needs_no_api(
        self, cloud: Cloud, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "WHY_S", 0.1)
        async with backend.machine() as machine:
            await backend.vmms.copy_in(machine, inputs(make("sleep 1")), limit())
            running = asyncio.create_task(backend.vmms.run_job(machine))
            await asyncio.sleep(0.3)
            cloud.slow_answers["DescribeInstances"] = 2 * PATIENCE_S
            await backend.vmms._vms[machine.id].link.close()  # type: ignore[attr-defined]
            async with asyncio.timeout(PATIENCE_S):
                assert await running == Exit(0)
            cloud.slow_answers.clear()

    async def test_a_job_is_adopted_though_the_api_goes_away(
        self, cloud: Cloud, backend: Backend, monkeypatch: pytest.MonkeyPatch
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

    async def test_one_out_of_reach_makes_no_job_overdue(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, lost_s=600.0) as backend:
            assert backend.vmms.capabilities.overtime_s > 600

    async def test_one_that_waits_is_known_to_be_gone(self, cloud: Cloud, backend: Backend) -> None:
        async with backend.machine() as machine:
            await backend.vmms.wait_vm(machine)
            (one,) = await cloud.living()
            await cloud.clients[KEY].terminate_instances(InstanceIds=[one["InstanceId"]])
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(MachineLost, match="terminated"):
                    while True:
                        await backend.vmms.wait_vm(machine)

    async def test_a_spot_instance_that_is_taken_back_is_no_fault(
        self, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


class TestUserData:
    """The operator's own is there, whatever its format, and takes nothing away of ours."""

    SCRIPT = "#!/bin/sh\nmkdir -p /run/own && printf 'caf\u00e9\\n' >/run/own/script\n"
    CONFIG = '#cloud-config\n{"runcmd": ["touch /run/config"], "ssh_keys": {"ed25519_private": "theirs"}}'

    def boundary(self, *parts: str) -> str:
        message = MIMEMultipart()
        for part in parts:
            message.attach(MIMEText(part, "plain"))
        return message.as_string()

    @pytest.mark.parametrize(
        ("own", "files"),
        [(SCRIPT, "/run/own/script"), (CONFIG, "/run/config"), ("", "/run/own/script /run/config")],
        ids=["script", "config", "message"],
    )
    async def test_it_arrives_beside_ours(self, cloud: Cloud, tmp_path: Path, own: str, files: str) -> None:
        (tmp_path / "data").write_text(own or self.boundary(self.SCRIPT, self.CONFIG))
        async with backend_on(cloud, tmp_path, user_data=tmp_path / "data") as backend, backend.machine():
            (one,) = await cloud.living()  # which our host key let in
            vm = cloud.vms[one["InstanceId"]]
            assert vm.sh(f"rm /run/shutdown; cat {files}") == ("café\n" if "script" in files else "")
            assert "shutdown -h +360" in vm.user_data

    async def test_it_goes_alone_where_cloud_init_does_not_know_it(self, cloud: Cloud, tmp_path: Path) -> None:
        (tmp_path / "data").write_text('{"ignition": {}}')
        data = tmp_path / "data"
        async with backend_on(cloud, tmp_path, user_data=data, host_keys=HostKeys.CONSOLE) as backend:
            machine = await backend.vmms.initialize_vm(backend.spec(), "tester")
            (one,) = await cloud.living()
            found = await cloud.clients[KEY].describe_instance_attribute(
                InstanceId=one["InstanceId"], Attribute="userData"
            )
            assert base64.b64decode(found["UserData"]["Value"]) == data.read_bytes()
            await backend.vmms.destroy_vm(machine)

    @pytest.mark.parametrize(
        ("own", "said"),
        [
            (None, "No such file"),
            (b"#!/bin/sh\n" + b"#" * 16000, "1[67][0-9]{3} bytes with our part; AWS takes 16384 at most"),
            (b"apt install", "cloud-init knows no such format"),
        ],
    )
    async def test_what_is_wrong_with_it_is_said_at_the_start(
        self, cloud: Cloud, tmp_path: Path, own: bytes | None, said: str
    ) -> None:
        if own is not None:
            (tmp_path / "data").write_bytes(own)
        vmms = Ec2Ssh(settings_on(cloud, tmp_path, user_data=tmp_path / "data"), "install")
        with pytest.raises(VmmsUnavailable, match=rf"ec2\.user_data: .*/data: {said}") as error:
            await vmms.open()
        assert "apt install" not in str(error.value)

    async def test_a_jobs_own_account_does_not_get_it(self, cloud: Cloud, tmp_path: Path) -> None:
        (tmp_path / "data").write_text(self.SCRIPT)
        theirs = Credentials(key_id=OTHER_KEY, secret=SECRET)
        async with backend_on(cloud, tmp_path, user_data=tmp_path / "data", subnets=()) as backend:
            await backend.vmms.know(theirs)  # type: ignore[attr-defined]
            async with backend.machine(cloud=CloudChoice(account=theirs.account)):
                (one,) = await cloud.living()
                assert "/run/own" not in cloud.vms[one["InstanceId"]].user_data


class TestReuse:
    """With ec2.reuse an instance serves one job after the other."""

    async def test_the_next_job_of_the_kind_gets_it_clean(self, cloud: Cloud, tmp_path: Path) -> None:
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

    async def test_who_waits_for_one_that_boots_gets_one_that_becomes_free(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, reuse=True, scale_after_s=0.0) as backend:
            vmms = backend.vmms
            async with backend.machine() as first:
                cloud.mute_next = 1
                second = await vmms.initialize_vm(backend.spec(), "tester")
                assert vmms.standing(IMAGE) == Standing(machines=2, fresh=1)  # type: ignore[attr-defined]
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
            assert vmms.standing(IMAGE) == Standing(machines=2, fresh=0)  # type: ignore[attr-defined]
            listed = sorted(machine.id for machine in await vmms.get_vms())
            assert listed == sorted([second.id, third.id])
            for machine in (second, third):
                await vmms.destroy_vm(machine)
                assert machine not in await vmms.get_vms()
            assert not await cloud.living()

    async def test_who_ends_takes_no_instance_along_that_it_left_to_another(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, reuse=True) as backend:
            vmms = backend.vmms
            async with backend.machine() as first:
                second = await vmms.initialize_vm(backend.spec(), "tester")
                await vmms.copy_in(first, inputs(make("echo one")), limit())
                await vmms.run_job(first)
            own = (await vmms._fleet.look(second)).id  # type: ignore[attr-defined]
            async with asyncio.timeout(PATIENCE_S):
                while not await vmms._fleet.move(second):  # type: ignore[attr-defined]
                    await asyncio.sleep(0.05)
            old = [{"Key": "tango:machine", "Value": second.id}]  # as a listing says that lags behind
            await cloud.clients[KEY].create_tags(Resources=[own], Tags=old)
            await vmms.destroy_vm(second)
            assert [one["InstanceId"] for one in await cloud.living()] == [own]

    async def test_who_comes_while_another_is_given_one_gets_what_that_leaves(
        self, cloud: Cloud, tmp_path: Path
    ) -> None:
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

    async def test_what_cannot_be_had_keeps_no_job_from_its_own_instance(self, cloud: Cloud, tmp_path: Path) -> None:
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
        self, cloud: Cloud, tmp_path: Path
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
                vmms._boots._patience_s[hung] = 1.5  # type: ignore[attr-defined]
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

    async def test_those_of_other_sizes_make_way_when_there_would_be_too_many(
        self, cloud: Cloud, tmp_path: Path
    ) -> None:
        async with backend_on(cloud, tmp_path, reuse=True) as backend:
            vmms, spec, larger = backend.vmms, backend.spec(), backend.spec(cores=3.0)
            for _ in range(2):
                async with backend.machine() as machine:
                    await vmms.copy_in(machine, inputs(make("echo")), limit())
                    await vmms.run_job(machine)
            (waits,) = await cloud.living()
            for asked, most in ((spec, 1), (larger, 2), (larger, 1)):
                assert vmms.standing(IMAGE).machines == 1  # type: ignore[attr-defined]
                vmms.make_way(asked, most)  # type: ignore[attr-defined]
            assert vmms.standing(IMAGE).machines == 0  # type: ignore[attr-defined]
            async with backend.machine(cores=3.0):
                vmms.make_way(spec, 1)  # type: ignore[attr-defined]
                async with asyncio.timeout(PATIENCE_S):
                    while waits["InstanceId"] in [one["InstanceId"] for one in await cloud.living()]:
                        await asyncio.sleep(0.05)
                assert len(await cloud.living()) == 1

    async def test_one_that_boots_while_its_job_gets_another_keeps_no_connection(
        self, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    async def test_one_that_is_just_given_away_is_not_ended_by_whoever_had_it(
        self, cloud: Cloud, tmp_path: Path
    ) -> None:
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
        self, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, well: bool
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
            assert vmms.standing(IMAGE) == Standing(machines=0, fresh=0)  # type: ignore[attr-defined]
            cloud.faults.clear()
            assert await vmms.get_vms() == [machine]
            await vmms.destroy_vm(machine)

    async def test_one_whose_tags_cannot_be_changed_is_left_to_the_next_all_the_same(
        self, cloud: Cloud, tmp_path: Path
    ) -> None:
        async with backend_on(cloud, tmp_path, reuse=True) as backend:
            vmms = backend.vmms
            async with backend.machine() as first:
                second = await vmms.initialize_vm(backend.spec(), "tester")
                own = (await vmms._fleet.look(second)).id  # type: ignore[attr-defined]
                cloud.fail("CreateTags", "NotNow", **{"ResourceId.1": own})
                await vmms.copy_in(first, inputs(make("echo one")), limit())
                await vmms.run_job(first)
            async with asyncio.timeout(PATIENCE_S):
                while not await vmms._fleet.move(second):  # type: ignore[attr-defined]
                    await asyncio.sleep(0.05)
            assert await vmms.get_vms() == [second]
            await vmms.destroy_vm(second)
            assert [one["InstanceId"] for one in await cloud.living()] == [own]
            third = await vmms.initialize_vm(backend.spec(), "tester")
            await vmms.wait_vm(third)
            assert cloud.calls["RunInstances"] == 2 and await vmms.get_vms() == [third]
            await vmms.destroy_vm(third)

    async def test_one_whose_job_did_not_end_well_serves_no_other(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, reuse=True) as backend:
            async with backend.machine() as machine:
                await backend.vmms.copy_in(machine, inputs(make("sleep 600")), limit())
            assert not await cloud.living()

    async def test_one_that_nobody_needs_goes(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, reuse=True, idle_s=1.0) as backend:
            await backend.run(make("echo one"))
            assert backend.vmms.standing(IMAGE).machines == 1  # type: ignore[attr-defined]
            async with asyncio.timeout(PATIENCE_S):
                while await cloud.living():
                    await asyncio.sleep(0.05)

    async def test_one_that_aws_has_forgotten_is_replaced(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, reuse=True) as backend:
            await backend.run(make("echo one"))
            (one,) = await cloud.living()
            await cloud.end(one["InstanceId"])
            cloud.fail("DescribeInstances", "InvalidInstanceID.NotFound")
            assert await backend.run(make("echo two")) == Ran(Exit(0), b"two\n")

    async def test_one_that_could_not_be_lent_is_ended(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, reuse=True) as backend:
            await backend.run(make("echo one"))
            cloud.fail("CreateTags", "NotNow")
            with pytest.raises(VmmsUnavailable, match="NotNow"):
                await backend.vmms.initialize_vm(backend.spec(), "tester")
            async with asyncio.timeout(PATIENCE_S):
                while await cloud.living():
                    await asyncio.sleep(0.05)

    async def test_a_successor_does_not_trust_what_waits(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, reuse=True) as backend:
            await backend.run(make("echo one"))
            successor = await backend.open()
            (left,) = await successor.get_vms()
            await successor.destroy_vm(left)
            await successor.close()
            assert not await cloud.living()


class TestStop:
    """A driver that closes leaves no instance, unless AWS does not let it."""

    async def test_one_that_is_just_being_ended_is_ended(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, reuse=True, idle_s=0.2) as backend:
            begun, end = asyncio.Event(), backend.vmms._fleet._end  # type: ignore[attr-defined]

            async def noted(*which: Any) -> None:
                begun.set()
                cloud.slow_answers["DescribeInstances"] = 1.0
                await end(*which)

            backend.vmms._fleet._end = noted  # type: ignore[attr-defined]
            await backend.run(make("echo one"))
            await begun.wait()

    async def test_one_that_cannot_be_ended_keeps_no_other(self, cloud: Cloud, tmp_path: Path) -> None:
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
        self, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(accounts, "CLOSE_S", 0.1)
        async with backend_on(cloud, tmp_path) as backend:
            cloud.slow_answers["DeleteKeyPair"] = 2 * PATIENCE_S
            async with asyncio.timeout(PATIENCE_S):
                await backend.vmms.close()

    async def test_one_whose_launch_is_under_way_is_ended(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path) as backend:
            cloud.slow_answers["RunInstances"] = 1.0
            launching = asyncio.create_task(backend.vmms.initialize_vm(backend.spec(), "tester"))
            async with asyncio.timeout(PATIENCE_S):
                while not cloud.calls["RunInstances"]:
                    await asyncio.sleep(0.02)
            launching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await launching


class TestAccounts:
    """A job's own account is used for it, and forgotten when nothing is left there."""

    async def test_its_instance_is_there_and_its_secret_goes_with_it(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, subnets=()) as backend:
            own = Credentials(key_id=OTHER_KEY, secret=SECRET)
            await backend.vmms.know(own)  # type: ignore[attr-defined]
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

    async def test_what_is_slow_there_holds_up_no_other(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, subnets=()) as backend:
            own = Credentials(key_id=OTHER_KEY, secret=SECRET)
            await backend.vmms.know(own)  # type: ignore[attr-defined]
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

    async def test_it_is_not_forgotten_for_the_job_that_just_brings_it(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, subnets=()) as backend:
            own = Credentials(key_id=OTHER_KEY, secret=SECRET)
            spec = backend.spec(cloud=CloudChoice(account=own.account))
            await backend.vmms.know(own)  # type: ignore[attr-defined]
            first = await backend.vmms.initialize_vm(spec, "tester")
            cloud.slow_answers["DeleteKeyPair"] = 0.5
            before = cloud.calls["DeleteKeyPair"]
            ending = asyncio.create_task(backend.vmms.destroy_vm(first))
            async with asyncio.timeout(PATIENCE_S):
                while cloud.calls["DeleteKeyPair"] == before:
                    await asyncio.sleep(0.02)
            await backend.vmms.know(own)  # type: ignore[attr-defined]
            second = await backend.vmms.initialize_vm(spec, "tester")
            await ending
            await backend.vmms.destroy_vm(second)
            assert not list((tmp_path / "state/ec2/accounts").iterdir())

    async def test_it_is_remembered_until_our_key_pair_has_gone(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, subnets=()) as backend:
            own = Credentials(key_id=OTHER_KEY, secret=SECRET)
            await backend.vmms.know(own)  # type: ignore[attr-defined]
            spec = backend.spec(cloud=CloudChoice(account=own.account))
            machine = await backend.vmms.initialize_vm(spec, "tester")
            cloud.fail("DeleteKeyPair", "NotNow")
            await backend.vmms.destroy_vm(machine)
            assert (await cloud.clients[OTHER_KEY].describe_key_pairs())["KeyPairs"]
            assert await backend.vmms.get_vms() == []
            assert not (await cloud.clients[OTHER_KEY].describe_key_pairs())["KeyPairs"]
            assert not list((tmp_path / "state/ec2/accounts").iterdir())

    async def test_it_is_remembered_until_a_launch_that_nobody_waits_for_is_ended(
        self, cloud: Cloud, tmp_path: Path
    ) -> None:
        async with backend_on(cloud, tmp_path, subnets=()) as backend:
            own = Credentials(key_id=OTHER_KEY, secret=SECRET)
            await backend.vmms.know(own)  # type: ignore[attr-defined]
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

    async def test_of_one_that_was_not_kept_whole_nothing_stays(self, cloud: Cloud, tmp_path: Path) -> None:
        directory = tmp_path / "state/ec2/accounts"
        directory.mkdir(parents=True)
        (directory / "0123456789abcdef.new").write_text('{"key_id":"AKIA')
        async with backend_on(cloud, tmp_path):
            assert not list(directory.iterdir())

    async def test_one_that_is_ours_anyway_shows_each_instance_once(self, backend: Backend) -> None:
        ours = Credentials(key_id=KEY, secret=SECRET)
        await backend.vmms.know(ours)  # type: ignore[attr-defined]
        async with backend.machine(cloud=CloudChoice(account=ours.account)) as machine:
            successor = await backend.open()
            assert await successor.get_vms() == [machine]
            await successor.close()

    @pytest.mark.parametrize("silent", ["away", "slow"])
    async def test_one_that_says_nothing_hides_its_own_machines_only(
        self, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: str
    ) -> None:
        monkeypatch.setattr(client, "TRIES", 1)
        async with backend_on(cloud, tmp_path, subnets=()) as backend:
            theirs = Credentials(key_id=OTHER_KEY, secret=SECRET)
            await backend.vmms.know(theirs)  # type: ignore[attr-defined]
            spec = backend.spec(cloud=CloudChoice(account=theirs.account))
            ours = await backend.vmms.initialize_vm(backend.spec(), "tester")
            hidden = await backend.vmms.initialize_vm(spec, "tester")
            successor = await backend.open()
            if silent == "slow":
                monkeypatch.setattr(fleet, "LIST_S", 0.0)
            else:
                cloud.away_for.add(OTHER_KEY)
            assert (await successor.get_vms(), successor.unseen()) == ([ours], 1)  # type: ignore[attr-defined]
            cloud.away_for.clear()
            monkeypatch.setattr(fleet, "LIST_S", PATIENCE_S)
            found = await successor.get_vms()
            assert (sorted(machine.id for machine in found)) == sorted([ours.id, hidden.id])
            assert not successor.unseen()  # type: ignore[attr-defined]
            for machine in found:
                await successor.destroy_vm(machine)
            await successor.close()

    async def test_when_none_says_anything_nobody_knows(
        self, cloud: Cloud, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client, "TRIES", 1)
        cloud.away = True
        with pytest.raises(VmmsUnavailable, match="no account says"):
            await backend.vmms.get_vms()
        cloud.away = False

    async def test_who_closes_late_leaves_the_key_pair_of_whoever_came_back(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path) as backend:
            back = await backend.open()
            await backend.vmms.close()
            assert (await cloud.clients[KEY].describe_key_pairs())["KeyPairs"]
            await back.close()

    async def test_it_is_remembered_while_an_instance_waits_there(self, cloud: Cloud, tmp_path: Path) -> None:
        async with backend_on(cloud, tmp_path, subnets=(), reuse=True) as backend:
            theirs = Credentials(key_id=OTHER_KEY, secret=SECRET)
            await backend.vmms.know(theirs)  # type: ignore[attr-defined]
            async with backend.machine(cloud=CloudChoice(account=theirs.account)) as machine:
                await backend.vmms.copy_in(machine, inputs(make("echo one")), limit())
                await backend.vmms.run_job(machine)
            cloud.answers["DescribeInstances"] = NONE_LISTED
            assert await backend.vmms.get_vms() == []
            cloud.answers.clear()

    async def test_a_wrong_one_is_the_jobs_own_affair(self, backend: Backend) -> None:
        wrong = Credentials(key_id="AKIANOBODY", secret=SECRET)
        await backend.vmms.know(wrong)  # type: ignore[attr-defined]
        with pytest.raises(Unsuitable, match="addJob's accessKeyId and accessKey: AWS refuses them") as refused:
            await backend.vmms.initialize_vm(backend.spec(cloud=CloudChoice(account=wrong.account)), "tester")
        assert SECRET not in str(refused.value) and "AKIANOBODY" not in str(refused.value)
        assert await backend.vmms.get_vms() == []

    async def test_one_in_which_nothing_can_be_had_says_nothing_of_others(self, cloud: Cloud, backend: Backend) -> None:
        poor = Credentials(key_id=OTHER_KEY, secret=SECRET)
        await backend.vmms.know(poor)  # type: ignore[attr-defined]
        cloud.fail("RunInstances", "VPCIdNotSpecified")
        with pytest.raises(HostUnavailable, match="VPCIdNotSpecified"):
            await backend.vmms.initialize_vm(backend.spec(cloud=CloudChoice(account=poor.account)), "tester")
        assert await backend.vmms.get_vms() == []

    async def test_what_a_job_chooses_is_named_if_it_is_not_there(self, backend: Backend) -> None:
        for choice, said in [
            (CloudChoice(image="ami-00000000000000000"), "addJob's ami"),
            (CloudChoice(machine_type="t9.huge"), "addJob's instanceType"),
            (CloudChoice(security_group="no such"), "addJob's security_group"),
        ]:
            with pytest.raises(Unsuitable, match=said):
                await backend.vmms.initialize_vm(backend.spec(cloud=choice), "tester")


async def test_a_host_key_can_be_read_from_the_console(cloud: Cloud, tmp_path: Path) -> None:
    async with backend_on(cloud, tmp_path, host_keys=HostKeys.CONSOLE) as backend:
        assert await backend.run(make("echo known")) == Ran(Exit(0), b"known\n")


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
