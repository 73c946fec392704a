"""tashiSSH on a double of the cluster manager, whose instances are real sshds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from contracts.machines import MB, PATIENCE_S, Backend, Ran, first_output, follow, inputs, limit, make, wait_until
from contracts.vmms import VmmsContract
from support.tashi import ACTIVATING, DESTROYING, EXITED, PENDING, ClusterManager, Instance, pickled
from support.vm import host_key
from tango_async.config import Settings, Store, Tashi
from tango_async.errors import ConfigError, MachineLost, NoCapacity, Unsuitable, VmmsUnavailable
from tango_async.machine import Exit, Machine
from tango_async.vmms import base
from tango_async.vmms.ssh import Distrusted, new_key
from tango_async.vmms.tashi import rpc
from tango_async.vmms.tashi.driver import TashiSsh

IMAGE = "debian"


@pytest.fixture
def settings(manager: ClusterManager, tmp_path: Path) -> Settings:
    tashi = Tashi(
        host="127.0.0.1", port=manager.port, images={IMAGE: "debian.img"}, user="root",
        private_key=manager.private_key, host_keys=(manager.host_key,), lost_s=4 * PATIENCE_S,
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


class TestFinding:
    """The cluster manager knows all that is to be known of our machines."""

    async def test_an_instance_is_made_as_the_machine_asks(self, backend: Backend, manager: ClusterManager) -> None:
        async with backend.machine(cores=1.5, memory_bytes=500 * MB + 1):
            (made,) = manager.instances.values()
            assert (made.cores, made.memory, made.userId) == (2, 500 + 1 + 256, 42)
            assert vars(made.disks[0]) == {"uri": "debian.img", "persistent": False}
            assert made.nics[0].network == 1 and re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", made.nics[0].mac)

    async def test_a_name_is_a_host_name(self, backend: Backend, settings: Settings, manager: ClusterManager) -> None:
        images = {"15213/f24:üb_ung": "a.img", "x" * 200: "b.img", "-": "c.img"}
        vmms = TashiSsh(changed(settings, images=images), "another")
        for image in images:
            machine = await vmms.initialize_vm(backend.spec(image=image), "tester")
            assert re.fullmatch(r"tango-[0-9a-f]{12}-[0-9a-f]{16}(-[A-Za-z0-9]+)*", machine.id) and len(machine.id) < 64
            assert await vmms.get_vms() == [machine]
            await vmms.destroy_vm(machine)

    async def test_an_instance_whose_making_was_cut_off_is_found(
        self, backend: Backend, manager: ClusterManager
    ) -> None:
        manager.cut = {"createVm"}
        with pytest.raises(VmmsUnavailable, match="closed the connection before it had answered createVm"):
            await backend.vmms.initialize_vm(backend.spec(), "tester")
        (machine,) = await backend.vmms.get_vms()
        assert (machine.owner, machine.spec) == ("tester", backend.spec()) and machine.nonce
        await backend.vmms.destroy_vm(machine)
        assert await backend.vmms.get_vms() == []

    @pytest.mark.parametrize("hints", [{}, {"tango": "no base64"}, {"tango": "AAAA"}, {"tango": 5}, None])
    async def test_one_without_its_hint_can_be_removed(
        self, backend: Backend, manager: ClusterManager, hints: object
    ) -> None:
        made = await backend.vmms.initialize_vm(backend.spec(), "tester")
        next(iter(manager.instances.values())).hints = hints
        (machine,) = await backend.vmms.get_vms()
        assert (machine.id, machine.owner, machine.nonce) == (made.id, "", "")
        await backend.vmms.destroy_vm(machine)

    async def test_instances_of_others_are_none_of_ours(
        self, backend: Backend, settings: Settings, manager: ClusterManager
    ) -> None:
        manager.instances[900] = Instance(id=900, name="tango-1-other", state=3, hints={"tango": "x"})
        manager.instances[901] = Instance(id=901, name=None, state=3, nics=None)
        another = TashiSsh(settings, "another")
        theirs = await another.initialize_vm(backend.spec(), "tester")
        async with backend.machine() as machine:
            assert await backend.vmms.get_vms() == [machine]
            assert await another.get_vms() == [theirs]
        await another.destroy_vm(theirs)
        assert {900, 901} <= manager.instances.keys()
        manager.instances.clear()

    async def test_an_instance_that_still_boots_is_destroyed(self, backend: Backend, manager: ClusterManager) -> None:
        manager.room.clear()
        for state in (PENDING, ACTIVATING):
            machine = await backend.vmms.initialize_vm(backend.spec(), "tester")
            (number,) = [one.id for one in manager.instances.values() if one.name == machine.id]
            waiting = asyncio.create_task(backend.vmms.wait_vm(machine))
            await asyncio.sleep(0)
            if state == ACTIVATING:
                manager.boot_s = 4 * PATIENCE_S
                manager.room.set()
                await wait_until(lambda n=number: manager.instances[n].state == ACTIVATING, "it boots")  # type: ignore[misc]
            await backend.vmms.destroy_vm(machine)
            assert await backend.vmms.get_vms() == []
            with pytest.raises(MachineLost, match=r"no such instance any more|is destroying"):
                await waiting

    async def test_what_tashi_refuses_is_told(self, backend: Backend) -> None:
        with pytest.raises(Unsuitable, match="Tashi refused createVm: TashiException: Number of cores must be <= 8"):
            await backend.vmms.initialize_vm(backend.spec(cores=9), "tester")


class TestBooting:
    """What keeps a VM from being ready is told, while it can still be asked."""

    async def test_a_cluster_without_room_is_no_fault(
        self, settings: Settings, backend: Backend, manager: ClusterManager
    ) -> None:
        vmms = TashiSsh(changed(settings, boot_s=0.3), "another")
        manager.boot_s = 600.0
        machine = await vmms.initialize_vm(backend.spec(), "tester")
        with pytest.raises(NoCapacity, match=r"within tashi.boot_s: Tashi has it pending, for want of a host"):
            await vmms.wait_vm(machine)
        await vmms.destroy_vm(machine)

    async def test_a_vm_that_does_not_come_up_is_lost(
        self, settings: Settings, backend: Backend, manager: ClusterManager
    ) -> None:
        vmms = TashiSsh(changed(settings, boot_s=0.3), "another")
        manager.boot_s = 4 * PATIENCE_S
        machine = await vmms.initialize_vm(backend.spec(), "tester")
        manager.instances[1].state = ACTIVATING
        with pytest.raises(MachineLost, match=r"within tashi.boot_s: .* instance 1 is activating"):
            await vmms.wait_vm(machine)
        await vmms.destroy_vm(machine)
        assert await vmms.get_vms() == []

    async def test_a_key_that_the_image_does_not_know_is_told(
        self, settings: Settings, backend: Backend, manager: ClusterManager, tmp_path: Path
    ) -> None:
        (tmp_path / "other").write_text(new_key()[0])
        vmms = TashiSsh(changed(settings, boot_s=2.0, private_key=tmp_path / "other"), "another")
        await vmms.open()
        machine = await vmms.initialize_vm(backend.spec(), "tester")
        await wait_until(lambda: manager.vms, "it runs")
        await asyncio.to_thread(manager.vms[1].wait)
        with pytest.raises(MachineLost, match=r"tashi.boot_s: root@127.* refuses our key"):
            await vmms.wait_vm(machine)
        await vmms.destroy_vm(machine)
        await vmms.close()


class TestTroubles:
    """The manager, a VM or both go away."""

    async def test_a_job_needs_no_manager(self, backend: Backend, manager: ClusterManager) -> None:
        async with backend.machine() as machine:
            await backend.vmms.copy_in(machine, inputs(make("echo one; sleep 1; echo two")), limit())
            assert await first_output(backend.vmms, machine) == b"one\n"
            manager.leave()
            with pytest.raises(VmmsUnavailable, match=r"tashi.host"):
                await backend.vmms.get_vms()
            (vm,) = manager.vms.values()
            await asyncio.to_thread(vm.cut)
            assert await follow(backend.vmms, machine) == Ran(Exit(0), b"one\ntwo\n")
            manager.come_back()
            assert await backend.vmms.get_vms() == [machine]

    @pytest.mark.parametrize("state", [None, EXITED])
    async def test_an_instance_that_ended_is_lost_at_once(
        self, backend: Backend, manager: ClusterManager, state: int | None
    ) -> None:
        async with backend.machine() as machine:
            await backend.vmms.copy_in(machine, inputs(make("echo up; sleep 600")), limit())
            assert await first_output(backend.vmms, machine) == b"up\n"
            ((number, vm),) = manager.vms.items()
            if state is None:
                manager.instances.pop(number)
                manager.vms.pop(number)
            else:
                manager.instances[number].state = state
            await asyncio.to_thread(vm.kill)
            async with asyncio.timeout(PATIENCE_S):  # less than the patience with one that is there
                with pytest.raises(MachineLost, match="is exited" if state else "no such instance any more"):
                    await backend.vmms.run_job(machine)
                with pytest.raises(MachineLost):
                    await backend.vmms.wait_vm(machine)

    async def test_a_vm_out_of_reach_makes_no_job_overdue(self, settings: Settings) -> None:
        assert TashiSsh(changed(settings, lost_s=600.0), "another").capabilities.overtime_s > 600

    async def test_an_idle_machine_that_vanished_is_noticed(self, backend: Backend, manager: ClusterManager) -> None:
        async with backend.machine() as machine:
            await manager._destroy(next(iter(manager.vms)))
            with pytest.raises(MachineLost):
                await backend.vmms.wait_vm(machine)

    async def test_one_that_hangs_while_it_waits_is_noticed(
        self, settings: Settings, backend: Backend, manager: ClusterManager
    ) -> None:
        vmms = TashiSsh(changed(settings, boot_s=40.0, lost_s=0.5), "another")
        await vmms.open()
        machine = await vmms.initialize_vm(backend.spec(), "tester")
        await vmms.wait_vm(machine)
        await vmms.wait_vm(machine)
        manager.vms[1].away()
        with pytest.raises(MachineLost, match="out of reach"):
            await vmms.wait_vm(machine)
        await vmms.destroy_vm(machine)

    async def test_a_vm_with_another_host_key_is_not_trusted(
        self, backend: Backend, settings: Settings, tmp_path: Path
    ) -> None:
        vmms = TashiSsh(changed(settings, host_keys=(host_key(tmp_path)[1],)), "another")
        await vmms.open()
        machine = await vmms.initialize_vm(backend.spec(), "tester")
        with pytest.raises(Distrusted, match="another host answers"):
            await vmms.wait_vm(machine)
        await vmms.destroy_vm(machine)

    async def test_a_vm_without_an_address_is_found_by_its_name(self, settings: Settings, backend: Backend) -> None:
        machine = Machine(id="tango-x", spec=backend.spec(), nonce="x")
        vm = TashiSsh(settings, "another")._vm(machine, rpc.Instance(1, "tango-x", rpc.State.RUNNING, "", {}))
        assert vm.link.reach.host == "tango-x.vmnet"


class TestSettings:
    """What is wrong is named, when the dispatcher starts."""

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"host": ""}, "tashi.host: unset"),
            ({"images": {}}, "tashi.images: unset"),
            ({"private_key": None}, "tashi.private_key: unset"),
            ({"host_keys": ()}, "tashi.host_keys: unset"),
            ({"host_keys": ("SHA256:abc",)}, "tashi.host_keys: 'SHA256:abc' is no public key"),
            ({"host_keys": ("ssh-ed25519 AAAAB3NzaC1yc2E=",)}, "tashi.host_keys: .* is no public key"),
            ({"boot_s": 60.0}, "dispatcher.machine_wait_s: not more than tashi.boot_s, 60 s"),
        ],
    )
    def test_a_wrong_one(self, settings: Settings, changes: dict[str, object], why: str) -> None:
        with pytest.raises(ConfigError, match=why):
            base.load("tashiSSH", changed(settings, **changes), "test")

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"host": "no.such.host.invalid"}, r"no.such.host.invalid:\d+ \(tashi.host, tashi.port\)"),
            ({"port": 1}, r"127.0.0.1:1 \(tashi.host, tashi.port\): Connect call failed"),
            ({"image_dir": Path("/nonexistent")}, "tashi.image_dir: /nonexistent: No such file or directory"),
            ({"private_key": Path("/nonexistent")}, "tashi.private_key: /nonexistent: No such file or directory"),
            ({"private_key": Path("/etc/passwd")}, "tashi.private_key: /etc/passwd: "),
        ],
    )
    async def test_what_may_come_is_waited_for(self, settings: Settings, changes: dict[str, object], why: str) -> None:
        with pytest.raises(VmmsUnavailable, match=why):
            await TashiSsh(changed(settings, **changes), "test").open()

    async def test_a_manager_that_refuses_is_told(self, settings: Settings, manager: ClusterManager) -> None:
        manager.answer = pickled(KeyError("instances"))
        with pytest.raises(VmmsUnavailable, match=r"tashi.host: Tashi refused getInstances: KeyError: instances"):
            await TashiSsh(settings, "test").open()

    async def test_images_are_those_named_and_those_in_the_store(self, settings: Settings, tmp_path: Path) -> None:
        for name in ("rhel.img", "debian.img", "notes.txt", "rhel.img.suspend"):
            (tmp_path / name).touch()
        images = {"mine:latest": "mine.img", "debian": "other.img"}
        vmms = TashiSsh(changed(settings, images=images, image_dir=tmp_path), "test")
        assert await vmms.get_images() == ["debian", "mine", "rhel"]
        assert (await vmms._images())["debian"] == "other.img"
