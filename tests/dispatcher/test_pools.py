"""Machines that wait: how many, for how long, whose go first, and that no image hinders another."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from msgspec.structs import replace

from support.fake_vmms import FakeEngine, FakeVmms
from support.jobs import machine_of
from tango_async.config import ImagePool, Pools
from tango_async.dispatcher.policy import Policies, Policy
from tango_async.dispatcher.pool import Pool
from tango_async.dispatcher.shelf import BACKOFF_MAX_S, Shelf
from tango_async.errors import VmmsError
from tango_async.machine import Capabilities, MachineSpec
from tango_async.model import EVERY_IMAGE, PoolOrder, PoolState

GIB = 1024**3
MACHINE = Capabilities().idle_bytes


def policy_of(spec: MachineSpec, **changes: object) -> Policy:
    values: dict[str, object] = {
        "usual": spec, "spec": spec, "ordered": True, "ready": 0, "low": 0, "demand": 0, "most": None, "idle_s": 300.0,
    }  # fmt: skip
    return Policy(**(values | changes))  # type: ignore[arg-type]


class House:
    """A pool on a fake engine, whose host has as much memory as a test says."""

    def __init__(self, wait_s: float = 30.0, **bounds: object) -> None:
        self.engine = FakeEngine()
        self.engine.images = ["a", "b", "c"]
        self.versions: dict[str, str] = {}
        self.available = 64 * GIB
        bound = Pools(**({"max_idle": 10, "idle_memory_bytes": GIB, "spare_memory_bytes": GIB} | bounds))  # type: ignore[arg-type]
        self.pool = Pool(
            FakeVmms(self.engine),
            "owner",
            wait_s=wait_s,
            bounds=bound,
            version_of=lambda image: self.versions.get(image, ""),
            available=lambda: self.available,
        )

    def follow(self, **ready: int | Policy) -> None:
        """By image: how many should wait."""
        orders = {i: n if isinstance(n, Policy) else policy_of(machine_of(i), ready=n) for i, n in ready.items()}
        self.pool.follow(orders)

    def idle(self) -> dict[str, int]:
        return {image: len(state.free) for image, state in self.pool.state().items() if state.free}

    async def until(self, **idle: int) -> None:
        """Until so many wait, and no other machine is there."""
        with suppress(TimeoutError):
            async with asyncio.timeout(60):
                while self.idle() != idle or len(self.engine.machines) != sum(idle.values()):
                    await asyncio.sleep(0.01)
        assert (self.idle(), len(self.engine.machines)) == (idle, sum(idle.values()))

    async def use(self, image: str, at_once: int = 1, **changes: object) -> None:
        await asyncio.gather(*(self._use(machine_of(image, **changes)) for _ in range(at_once)))

    async def _use(self, spec: MachineSpec) -> None:
        async with self.pool.lease(spec):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def house(wait_s: float = 30.0, **bounds: object) -> AsyncIterator[House]:
    built, stop = House(wait_s, **bounds), asyncio.Event()
    tending = asyncio.create_task(built.pool.tend(stop))
    try:
        yield built
    finally:
        stop.set()
        await tending
        await built.pool.close()
    assert not built.engine.machines, "a machine was left"


# -- what is wanted --------------------------------------------------------------------------------


def wanted(name: str, orders: dict[str, PoolOrder] | None = None, **pools: object) -> Policy:
    settings = Pools(**pools)  # type: ignore[arg-type]
    return Policies(settings, orders or {}, vmms="localDocker", prestart=True, usual=online).of(name)


def online(image: str) -> MachineSpec:
    return machine_of(image, network=True)


def test_nothing_is_kept_ready_that_nobody_asked_for() -> None:
    policy = wanted("a")
    assert (policy.ready, policy.low, policy.demand, policy.most, policy.ordered) == (0, 0, 0, None, False)


def test_the_first_table_that_fits_holds_and_what_it_leaves_out_is_as_for_all() -> None:
    tables = (ImagePool(pattern="course/*", min=2, cores=0.5), ImagePool(pattern="*", max=3, demand=1, network=False))
    course, other = (wanted(image, image=tables, demand=4, max=9) for image in ("course/x", "other"))
    assert (course.ready, course.most, course.demand, course.spec.cores) == (2, 9, 4, 0.5)
    assert (other.ready, other.most, other.demand, other.spec.network) == (0, 3, 1, False)


def test_an_order_wins_over_scale_and_scale_over_the_settings() -> None:
    orders = {"a": PoolOrder(size=5, memory_mb=64), EVERY_IMAGE: PoolOrder(size=1, max=4)}
    table = ImagePool(pattern="[ab]", min=2, demand=3)
    a, b, c = (wanted(image, orders, image=(table,)) for image in "abc")
    assert (a.ready, a.low, a.demand, a.most, a.spec.memory_bytes) == (5, 0, 3, None, 64 * 1024**2)
    assert (b.ready, b.low, b.demand, b.most) == (1, 1, 4, 4)
    assert (c.ready, c.low, c.demand, c.most) == (0, 1, 4, 4)


def test_a_job_that_asks_for_nothing_special_gets_the_ordered_size_and_its_own_network() -> None:
    policy = wanted("a", {"a": PoolOrder(size=1, cores=2.0, memory_mb=64, network=False)})
    offline = replace(policy.usual, network=False)
    assert (policy.fit(offline), policy.fit(policy.usual)) == (policy.spec, replace(policy.spec, network=True))
    assert (policy.spec.cores, policy.spec.memory_bytes) == (2.0, 64 * 1024**2)
    special = replace(policy.usual, memory_bytes=5)
    assert policy.fit(special) == special


def test_an_order_of_none_is_none_and_one_for_another_vmms_is_not_ours() -> None:
    table = ImagePool(pattern="*", min=2, demand=3)
    none = wanted("a", {"a": PoolOrder(size=0, cores=3.0)}, image=(table,))
    assert (none.ready, none.demand, none.ordered, none.spec) == (0, 0, True, none.usual)
    assert wanted("a", {"a": PoolOrder(size=7, vmms="ec2SSH")}, image=(table,)).ready == 2


def test_what_is_kept_ready_counts_those_in_use_where_they_serve_the_next_job_too() -> None:
    spec = machine_of("a")
    shelf = Shelf(spec, 0.0)
    shelf.lend(1.0)
    shelf.lend(1.0)
    once = policy_of(spec, ready=3, demand=5)
    again = policy_of(spec, ready=3, demand=5, reused=True)
    assert (shelf.wanted(once, 2.0), shelf.wanted(again, 2.0)) == ((3, 0), (1, 0))
    shelf.give_back(3.0)
    shelf.give_back(3.0)
    assert shelf.wanted(again, 4.0) == (3, 0)
    assert shelf.wanted(policy_of(spec, demand=5, reused=True), 4.0) == (0, 2)


def test_a_host_that_cannot_prepare_machines_bounds_them_all_the_same() -> None:
    orders = {EVERY_IMAGE: PoolOrder(size=1, max=2)}
    policies = Policies(Pools(), orders, vmms="x", prestart=False, usual=online)
    assert (policies.of("a").ready, policies.of("a").low, policies.of("a").most) == (0, 0, 2)


def test_demand_is_what_was_in_use_at_once_within_the_time_and_no_more() -> None:
    shelf, policy = Shelf(machine_of("a"), 0.0), policy_of(machine_of("a"), demand=5, idle_s=10.0)
    shelf.lend(0.0)
    shelf.lend(1.0)
    shelf.give_back(3.0)
    shelf.give_back(8.0)
    wants = [shelf.wanted(policy, now) for now in (8.0, 12.9, 13.1, 17.9, 18.1)]
    assert wants == [(0, 2), (0, 2), (0, 1), (0, 1), (0, 0)]
    for at in range(9):
        shelf.lend(20.0 + at)
    assert shelf.wanted(policy, 1000.0) == (0, 5)


def test_a_job_that_runs_long_is_in_use_all_the_time() -> None:
    shelf, policy = Shelf(machine_of("a"), 0.0), policy_of(machine_of("a"), demand=5, idle_s=10.0)
    shelf.lend(0.0)
    assert shelf.wanted(policy, 500.0) == (0, 1)


def test_tries_to_make_a_machine_come_ever_slower_until_one_succeeds() -> None:
    shelf = Shelf(machine_of("a"), 0.0)
    waits = [shelf.failed("no", 0.0) for _ in range(9)]
    assert waits[:3] == [0.5, 1.0, 2.0] and waits[-1] == BACKOFF_MAX_S
    assert (shelf.may_make(29.0), shelf.may_make(31.0)) == (False, True)
    shelf.well()
    assert (shelf.problem, shelf.failed("no", 40.0)) == ("", 0.5)


# -- what waits --------------------------------------------------------------------------------------


async def test_a_machine_is_used_once_and_replaced_when_its_job_has_ended() -> None:
    async with house() as h:
        h.follow(a=1)
        await h.until(a=1)
        async with h.pool.lease(machine_of("a")) as lent:
            assert lent.prepared and h.engine.made == 1
        await h.until(a=1)
        assert h.engine.made == 2 and lent.machine.id not in h.engine.machines


async def test_a_machine_is_replaced_though_its_job_runs_long() -> None:
    async with house() as h:
        h.follow(a=1)
        await h.until(a=1)
        async with h.pool.lease(machine_of("a")):
            async with asyncio.timeout(60):
                while h.engine.made < 2:
                    await asyncio.sleep(0.01)
            assert h.pool.state()["a"] == PoolState(total=(1000, 1001), free=(1001,))


async def test_other_sizes_of_an_image_are_other_machines() -> None:
    async with house() as h:
        h.follow(a=2)
        await h.until(a=2)
        for change in ({"memory_bytes": 5}, {"network": True}, {"cores": 2.0}, {"processes": 1}):
            async with h.pool.lease(machine_of("a", **change)) as lent:
                assert not lent.prepared
        await h.until(a=2)


async def test_a_pool_shrinks_and_goes() -> None:
    async with house() as h:
        for size in (3, 1, 2, 0):
            h.follow(a=size)
            await h.until(**({"a": size} if size else {}))
        h.follow(b=1)
        await h.until(b=1)
        h.follow()
        await h.until()


async def test_demand_keeps_machines_warm_and_lets_them_go() -> None:
    async with house() as h:
        h.follow(a=policy_of(machine_of("a"), demand=2))
        await h.use("a", at_once=3)
        await h.until(a=2)
        async with h.pool.lease(machine_of("a")) as lent:
            assert lent.prepared
        await h.until(a=2)
        h.follow(a=policy_of(machine_of("a"), demand=2, idle_s=0.1))
        await h.until()


async def test_no_machine_is_prepared_on_the_cores_of_a_quiet_job() -> None:
    async with house() as h:
        usual = machine_of("a", cpuset="0")
        h.follow(a=policy_of(usual, low=1, demand=2))
        await h.use("a", cpuset="1")
        await h.use("a", cpuset="0")
        await h.until(a=1)
        [waiting] = h.engine.machines.values()
        assert waiting.machine.spec == usual


async def test_scaling_keeps_the_lower_bound_of_what_is_in_use() -> None:
    async with house() as h:
        h.follow(a=policy_of(machine_of("a"), low=2, demand=4), b=policy_of(machine_of("b"), low=2, demand=4))
        await h.use("a")
        await h.until(a=2)
        await h.use("a", at_once=3)
        await h.until(a=3)


async def test_machines_of_an_image_that_was_replaced_are_not_used() -> None:
    async with house() as h:
        h.follow(a=2, b=1)
        await h.until(a=2, b=1)
        old = set(h.engine.machines)
        h.versions["a"] = "new"
        async with h.pool.lease(machine_of("a")) as lent:
            assert not lent.prepared
        await h.until(a=2, b=1)
        assert len(old & set(h.engine.machines)) == 1


async def test_a_machine_made_while_its_image_was_replaced_is_not_used() -> None:
    async with house() as h:
        h.engine.may_make.clear()
        h.follow(a=1)
        async with asyncio.timeout(60):
            while not h.engine.machines:
                await asyncio.sleep(0.01)
        h.versions["a"] = "new"
        h.engine.may_make.set()
        await h.until(a=1)
        assert h.engine.made == 2


async def test_a_machine_that_died_while_it_waited_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tango_async.dispatcher.pool.LOOK_S", 0.1)
    monkeypatch.setattr("tango_async.dispatcher.pool.TICK_S", 0.05)
    async with house() as h:
        h.follow(a=2)
        await h.until(a=2)
        h.engine.machines.clear()
        await h.until(a=2)
        assert h.pool.state()["a"].free == (1002, 1003)


# -- bounds --------------------------------------------------------------------------------------------


async def test_a_full_pool_has_no_room_and_says_when_it_has() -> None:
    async with house() as h:
        h.follow(a=policy_of(machine_of("a"), ready=2, most=2), b=0)
        await h.until(a=2)
        assert (h.pool.room("a"), h.pool.room("b"), h.pool.room("unknown")) == (2, None, None)
        h.pool.enter("a")
        h.pool.enter("a")
        h.pool.enter("b")
        assert (h.pool.room("a"), h.pool.room("b")) == (0, None)
        h.pool.roomier.clear()
        h.follow(a=policy_of(machine_of("a"), ready=2, most=3))
        assert h.pool.room("a") == 1 and h.pool.roomier.is_set()
        h.pool.roomier.clear()
        h.pool.leave("a")
        assert h.pool.room("a") == 2 and h.pool.roomier.is_set()
        h.follow(a=policy_of(machine_of("a"), most=1))
        assert h.pool.room("a") == 0


async def test_machines_that_wait_count_with_those_in_use() -> None:
    async with house() as h:
        h.follow(a=policy_of(machine_of("a"), ready=2, most=2))
        await h.until(a=2)
        async with h.pool.lease(machine_of("a", network=True)):
            async with asyncio.timeout(60):
                while len(h.engine.machines) != 2:
                    await asyncio.sleep(0.01)
            assert h.idle() == {"a": 1}
        await h.until(a=2)


async def test_a_machine_that_is_being_made_counts_as_well() -> None:
    async with house() as h:
        h.engine.may_make.clear()
        h.follow(a=policy_of(machine_of("a"), ready=1, most=2))
        async with asyncio.timeout(60):
            while h.pool.room("a") != 1:
                await asyncio.sleep(0.01)
        h.pool.roomier.clear()
        h.engine.may_make.set()
        await h.until(a=1)
        assert h.pool.room("a") == 2 and h.pool.roomier.is_set()
        h.follow(a=policy_of(machine_of("a"), ready=2, most=2))
        h.pool.enter("a")  # it has not asked for a machine yet
        tries = h.engine.tries
        await asyncio.sleep(0.1)
        assert h.engine.tries == tries and h.pool.room("a") == 1
        h.pool.leave("a")
        await h.until(a=2)


async def test_the_longest_unused_goes_first_and_none_for_nothing() -> None:
    async with house(max_idle=4) as h:
        h.follow(a=2)
        await h.until(a=2)
        h.follow(a=2, b=2)
        await h.until(a=2, b=2)
        made = h.engine.made
        h.follow(a=2, b=2, c=1)
        await h.until(a=1, b=2, c=1)
        assert h.engine.made == made + 1
        await h.use("a")
        await h.until(a=2, b=1, c=1)


async def test_what_was_ordered_comes_before_what_demand_adds() -> None:
    async with house(max_idle=2) as h:
        h.follow(a=1, b=policy_of(machine_of("b"), demand=2))
        await h.until(a=1)
        await h.use("b", at_once=2)
        await h.until(a=1, b=1)


async def test_no_more_wait_than_their_memory_allows() -> None:
    async with house(idle_memory_bytes=3 * MACHINE) as h:
        h.follow(a=5)
        await h.until(a=3)


async def test_a_host_that_runs_short_of_memory_gets_it_back_from_machines_that_wait() -> None:
    async with house(spare_memory_bytes=4 * MACHINE) as h:
        h.follow(a=2, b=2)
        await h.until(a=2, b=2)
        h.available = 2 * MACHINE
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            while sum(h.idle().values()) == 4:
                await asyncio.sleep(0.01)
        h.available = 4 * MACHINE
        await h.use("b")
        assert "a" not in h.idle()
        h.available = GIB
        await h.until(a=2, b=2)


# -- faults --------------------------------------------------------------------------------------------


async def test_an_image_that_cannot_start_hinders_no_other_and_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tango_async.dispatcher.pool.TICK_S", 0.05)
    async with house() as h:
        h.engine.broken["a"] = "exec: sh: not found"
        begun = asyncio.get_running_loop().time()
        h.follow(a=2, b=2)
        await h.until(b=2)
        async with asyncio.timeout(60):
            while h.engine.tries < 4:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        tries, elapsed_s = h.engine.tries - 2, asyncio.get_running_loop().time() - begun
        assert tries <= 2 + math.log2(1 + 2 * elapsed_s)
        assert h.pool.state()["a"] == PoolState(problem="exec: sh: not found")
        with pytest.raises(VmmsError):
            await h.use("a")
        await h.use("b")
        await h.until(b=2)
        h.engine.broken.clear()
        await h.until(a=2, b=2)
        assert h.pool.state()["a"].problem == ""


async def test_an_engine_that_is_away_is_no_images_fault_and_pools_are_filled_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tango_async.dispatcher.pool.TICK_S", 0.05)
    async with house() as h:
        h.engine.up = False
        h.follow(a=1, b=1)
        async with asyncio.timeout(60):
            while h.engine.refused < 4:
                await asyncio.sleep(0.01)
        assert [state.problem for state in h.pool.state().values()] == ["", ""]
        h.engine.up = True
        await h.until(a=1, b=1)


async def test_images_that_hang_hinder_others_no_longer_than_a_machine_may_take() -> None:
    async with house(wait_s=1.0) as h:
        h.follow(b=1)
        await h.until(b=1)
        h.engine.slow_s = 600.0
        h.follow(a=1, b=1, c=1)
        async with asyncio.timeout(60):
            while h.engine.tries < 3:
                await asyncio.sleep(0.01)
        h.engine.slow_s = 0.0
        h.follow(b=3)
        async with asyncio.timeout(60):
            while h.idle() != {"b": 3}:
                await asyncio.sleep(0.01)
        for machine in [m for m in h.engine.machines.values() if m.machine.spec.image != "b"]:
            h.pool.discard(machine.machine)  # as strays are
        await h.until(b=3)
