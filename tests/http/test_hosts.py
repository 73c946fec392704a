"""The dispatchers as operators see them, and what they may order them."""

from __future__ import annotations

import pytest

from support.api import Api
from tango_async.model import HostOrders


async def publish(api: Api, install: str, host: str, **changes: object) -> None:
    await api.publish("autograding_image", install=install, instance=f"{install}#1", host=host, **changes)


@pytest.fixture
async def fleet(api: Api) -> Api:
    """Two dispatchers on one host, and one on another."""
    for install, host in (("a1", "east"), ("a2", "east"), ("b1", "west")):
        await publish(api, install, host)
    return api


async def test_dispatchers_are_listed_with_what_they_have_and_how_they_are(fleet: Api) -> None:
    await publish(fleet, "a2", "east", paused=True)
    await publish(fleet, "b1", "west", healthy=False, problem="no engine")
    await fleet.queue._command("HSET", f"{fleet.queue._prefix}beats", "a1", 1)
    found = (await fleet.get("/hosts/test/")).json["hosts"]
    assert [(h["install"], h["host"], h["state"], h["problem"]) for h in found] == [
        ("a2", "east", "paused", ""), ("b1", "west", "ill", "no engine"), ("a1", "east", "down", ""),
    ]  # fmt: skip
    assert found[0] | {"age": 0} == {
        "install": "a2", "host": "east", "state": "paused", "vmms": "localDocker", "version": "0", "slots": 2,
        "busy": 1, "paused": True, "quiet_cores": 0, "labels": [], "healthy": True, "problem": "",
        "images": ["autograding_image"], "engines": [], "age": 0,
    }  # fmt: skip


async def test_a_dispatcher_is_paused_by_its_install_and_all_of_a_host_by_its_name(fleet: Api) -> None:
    assert (await fleet.post("/hosts/test/a2/pause/")).outcome == (0, "Paused: east (a2)")
    assert [(await fleet.queue.orders(i)).paused for i in ("a1", "a2", "b1")] == [False, True, False]
    for _ in range(2):
        assert (await fleet.post("/hosts/test/east/pause")).outcome == (0, "Paused: east (a1), east (a2)")
    assert (await fleet.post("/hosts/test/east/resume/")).outcome == (0, "Resumed: east (a1), east (a2)")
    assert not (await fleet.queue.orders("a1")).paused


async def test_slots_are_ordered_and_given_back_to_the_settings(fleet: Api) -> None:
    assert (await fleet.post("/hosts/test/b1/slots/5/")).outcome == (0, "5 slots: west (b1)")
    assert await fleet.queue.orders("b1") == HostOrders(slots=5)
    assert (await fleet.post("/hosts/test/b1/slots/default/")).outcome == (0, "Slots as in the settings: west (b1)")
    assert await fleet.queue.orders("b1") == HostOrders()


@pytest.mark.parametrize("number", ["0", "-1", "1001", "1e3", "1.5", "x", "%20", "9" * 40, "%D9%A3"])
async def test_an_absurd_number_of_slots_is_refused(fleet: Api, number: str) -> None:
    reply = await fleet.post(f"/hosts/test/b1/slots/{number}/")
    assert reply.outcome == (-1, "Bad number of slots: expected 1 to 1000, or default")
    assert await fleet.queue.orders("b1") == HostOrders()


@pytest.mark.parametrize("what", ["pause", "resume", "slots/2"])
async def test_an_order_to_a_host_that_nobody_knows_is_refused_and_leaves_nothing(fleet: Api, what: str) -> None:
    assert (await fleet.post(f"/hosts/test/nowhere/{what}/")).outcome == (-2, "Host not found")
    assert not await fleet.queue.pause("nowhere", True)
    assert await fleet.queue._command("KEYS", f"{fleet.queue._prefix}orders:*") == []


async def test_a_dispatcher_that_is_down_hears_its_order_when_it_starts_again(fleet: Api) -> None:
    await fleet.queue._command("HSET", f"{fleet.queue._prefix}beats", "b1", 1)
    assert (await fleet.post("/hosts/test/west/pause/")).outcome == (0, "Paused: west (b1, down now)")
    assert (await fleet.queue.orders("b1")).paused


async def test_a_paused_host_does_not_count_as_one_that_offers_the_image(api: Api) -> None:
    await publish(api, "a1", "east", paused=True)
    await api.ready_lab()
    job = await api.queue.job((await api.add()).json["jobId"])
    assert job is not None and "waits until one does" in job.spec.notes[0]
