"""distDocker on two real engines behind links that can be cut: the contract, and what only several hosts can do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contracts.machines import (
    Backend,
    Ran,
    Step,
    first_output,
    follow,
    inputs,
    limit,
    make,
    output_of,
    processes,
    wait_until,
)
from contracts.vmms import VmmsContract
from support.fixtures_dist import settings_of
from support.images import variation
from support.netns import RemoteEngine
from support.ward import Ward
from tango_async.config import Settings
from tango_async.errors import ConfigError, HostUnavailable, ImageNotFound, VmmsUnavailable
from tango_async.machine import Exit, Machine
from tango_async.vmms import dist_host, engine_address, outputs
from tango_async.vmms.base import ManyHosts, load
from tango_async.vmms.dist import DistDocker
from vmms.conftest import Dist, dist_on

BRISK_S = 3
"""The silence that breaks a connection in these tests."""


@pytest.fixture
def backend(dist: Dist) -> Backend:
    return dist


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for in minutes is over in seconds."""
    monkeypatch.setattr(engine_address, "SILENCE_S", BRISK_S)
    monkeypatch.setattr(dist_host, "LOOK_S", 2.0)
    monkeypatch.setattr(outputs, "ANSWER_S", 2.0)
    monkeypatch.setattr(outputs, "POLL_S", 1.0)


def well(vmms: ManyHosts) -> dict[str, bool]:
    return {host.name: host.healthy for host in vmms.hosts()}


def vmms_of(dist: Dist) -> DistDocker:
    assert isinstance(dist.vmms, DistDocker) and isinstance(dist.vmms, ManyHosts)
    return dist.vmms


async def ended(machine: Machine) -> None:
    """Whether or not anybody hears of it."""
    await wait_until(lambda: not processes(machine.nonce), "the machine has ended")


async def unheard(dist: Dist, machine: Machine) -> None:
    """Its host counts as away."""
    await wait_until(lambda: not well(vmms_of(dist))[machine.id[:2]], "the cut is noticed")


class TestDistDocker(VmmsContract):
    """The contract."""


async def test_it_needs_hosts() -> None:
    with pytest.raises(ConfigError, match=r"docker\.hosts: empty"):
        load("distDocker", Settings(), "here")


async def test_machines_are_spread_and_their_ids_name_their_hosts(dist: Dist) -> None:
    async with dist.machine() as one, dist.machine() as two:
        assert {one.id.partition("/")[0], two.id.partition("/")[0]} == {"n0", "n1"}
        assert (len(dist.on(0)), len(dist.on(1))) == (1, 1)
        assert {machine.id for machine in await dist.vmms.get_vms()} == {one.id, two.id}


async def test_a_machine_is_made_only_where_its_image_is(dist: Dist, brisk: None) -> None:
    with variation(dist.engines[1]) as image:
        await wait_until(lambda: image in vmms_of(dist).hosts()[1].images, "the image is seen")
        assert image in await dist.vmms.get_images()
        for _ in range(3):
            async with dist.machine(image=image) as machine:
                assert vmms_of(dist).host_of(machine) == "n1"
        assert vmms_of(dist).room(image) == 2
        dist.engines[1].cut()
        await wait_until(lambda: not well(vmms_of(dist))["n1"], "the cut is noticed")
        with pytest.raises(HostUnavailable, match="n1"):
            await dist.vmms.initialize_vm(dist.spec(image=image), "tester")
        assert vmms_of(dist).room(image) == 0
        dist.engines[1].heal()
        await wait_until(lambda: well(vmms_of(dist))["n1"], "it is back")
    await wait_until(lambda: image not in vmms_of(dist).hosts()[1].images, "the image is gone")
    with pytest.raises(ImageNotFound):
        await dist.vmms.initialize_vm(dist.spec(image=image), "tester")


async def test_a_host_that_is_cut_off_gets_no_machine_and_comes_back_by_itself(dist: Dist, brisk: None) -> None:
    dist.engines[0].cut()
    await wait_until(lambda: not well(vmms_of(dist))["n0"], "the cut is noticed")
    assert vmms_of(dist).slots() == 2
    for _ in range(2):
        async with dist.machine() as machine:
            assert vmms_of(dist).host_of(machine) == "n1"
    dist.engines[0].heal()
    await wait_until(lambda: well(vmms_of(dist))["n0"], "it is back")
    assert vmms_of(dist).slots() == 4
    assert await dist.run(make("echo again")) == Ran(Exit(0), b"again\n")


@pytest.mark.parametrize("cut_s", [1.0, 2 * BRISK_S])
async def test_a_job_is_followed_again_when_its_host_is_back(dist: Dist, brisk: None, cut_s: float) -> None:
    """Within what TCP mends by itself, and longer; its end comes while the link is cut."""
    one, two = Step(), Step()
    async with dist.machine() as machine:
        await dist.vmms.copy_in(machine, inputs(make(f"echo 1; {one}; echo 2; {two}; echo 3")), limit(timeout_s=100))
        following = asyncio.create_task(follow(dist.vmms, machine))
        await one.reached()
        one.go_on()
        await two.reached()
        cut = dist.engines[int(machine.id[1])]
        cut.cut()
        two.go_on()
        await ended(machine)
        await asyncio.sleep(cut_s)
        assert not following.done()
        cut.heal()
        assert await following == Ran(Exit(0), b"1\n2\n3\n")


async def test_a_host_that_stays_away_gives_its_jobs_up_and_its_machines_are_found_later(
    ward: Ward, engines: list[RemoteEngine], tmp_path: Path, brisk: None
) -> None:
    async with dist_on(ward, engines, tmp_path, settings_of(engines, tmp_path, away_s=2.0)) as dist:
        machine = await dist.vmms.initialize_vm(dist.spec(), "tester")
        await dist.vmms.copy_in(machine, inputs(make("echo begun; sleep 600")), limit())
        assert await first_output(dist.vmms, machine) == b"begun\n"
        cut = dist.engines[int(machine.id[1])]
        cut.cut()
        async with asyncio.timeout(60):
            with pytest.raises(HostUnavailable, match=machine.id[:2]):
                await dist.vmms.run_job(machine)
        with pytest.raises(HostUnavailable):
            await dist.vmms.destroy_vm(machine)
        assert await dist.vmms.get_vms() == []
        cut.heal()
        await wait_until(lambda: all(well(vmms_of(dist)).values()), "it is back")
        assert await dist.vmms.get_vms() == [machine]
        await dist.vmms.destroy_vm(machine)
        assert await dist.vmms.get_vms() == []


async def test_a_successor_starts_while_a_host_is_away_and_adopts_when_it_is_back(dist: Dist, brisk: None) -> None:
    async with dist.machine() as machine:
        step = Step()
        await dist.vmms.copy_in(machine, inputs(make(f"seq 6; {step}; seq 7 12")), limit(timeout_s=100))
        await step.reached()
        cut = dist.engines[int(machine.id[1])]
        cut.cut()
        successor = await dist.open()
        try:
            assert await successor.get_vms() == []
            cut.heal()
            await wait_until(lambda: all(well(successor).values()), "it is back")  # type: ignore[arg-type]
            assert await successor.get_vms() == [machine]
            await successor.adopt(machine)
            following = asyncio.create_task(follow(successor, machine))
            step.go_on()
            assert await following == Ran(Exit(0), b"".join(b"%d\n" % i for i in range(1, 13)))
        finally:
            await successor.close()


async def test_with_no_host_it_does_not_open(dist: Dist, brisk: None) -> None:
    for one in dist.engines:
        one.cut()
    with pytest.raises(VmmsUnavailable, match=r"n0 .*n1 "):
        await dist.open()


async def test_an_engine_under_two_names_has_each_machine_once(
    ward: Ward, engines: list[RemoteEngine], tmp_path: Path
) -> None:
    twice = [engines[0], engines[0]]
    async with dist_on(ward, twice, tmp_path) as dist, dist.machine() as one, dist.machine() as two:
        assert {machine.id for machine in await dist.vmms.get_vms()} == {one.id, two.id}


MUCH = "yes {} | head -c {}; echo over".format("a" * 100, 24_000_000)


async def test_a_program_that_was_held_up_by_a_cut_link_is_not_out_of_time(dist: Dist, brisk: None) -> None:
    """Its engine takes no more of its output, and so it cannot end in time."""
    step = Step()
    async with dist.machine() as machine:
        await dist.vmms.copy_in(machine, inputs(make(f"{step}; {MUCH}")), limit(timeout_s=5))
        running = asyncio.create_task(dist.vmms.run_job(machine))
        reading = asyncio.create_task(output_of(dist.vmms, machine))
        await step.reached()
        cut = dist.engines[int(machine.id[1])]
        cut.cut()
        step.go_on()
        await wait_until(lambda: not processes(str(step)), "its shell was ended, though not the machine")
        await unheard(dist, machine)
        cut.heal()
        with pytest.raises(HostUnavailable, match="held up"):
            await running
        assert len(await reading) < 24_000_000


async def test_a_program_that_says_little_is_out_of_time_also_behind_a_cut_link(dist: Dist, brisk: None) -> None:
    async with dist.machine() as machine:
        await dist.vmms.copy_in(machine, inputs(make("echo begun; sleep 60")), limit(timeout_s=3))
        running = asyncio.create_task(dist.vmms.run_job(machine))
        cut = dist.engines[int(machine.id[1])]
        cut.cut()
        await ended(machine)
        await unheard(dist, machine)
        cut.heal()
        assert (await running).timed_out
