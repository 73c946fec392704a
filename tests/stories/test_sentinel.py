"""Redis behind Sentinel: the master is killed under the whole service, which goes on with what the replica has."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import absent
from stories.conftest import Receiver
from support.redis_fleet import PROGRAM, Watched
from support.service import PATIENCE_S, Service, addjob

SHORT = b"autograde:\n\t@echo begun | tee -a /starts\n"
LONG = b"autograde:\n\t@echo begun | tee -a /starts; until grep -q go /starts; do sleep 0.1; done; echo over\n"


@pytest.fixture
def watched(tmp_path: Path, environment: dict[str, str]) -> Iterator[Watched]:
    if PROGRAM is None:
        absent("no redis-server")
    with Watched(tmp_path / "redis") as servers:
        environment |= {
            "TANGO_REDIS_URL": servers.url,
            "TANGO_DISPATCHER_LEASE_S": "2",
            "TANGO_DISPATCHER_UPKEEP_S": "0.5",
        }
        yield servers


async def delivered(service: Service, job_id: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await service.json("GET", f"/callbacks/test/{job_id}/"))["callbacks"][0]["state"] != "delivered":
            await asyncio.sleep(0.02)


async def add_patiently(service: Service, lab: str, url: str) -> int:
    """As Autolab does: again, until it is not 503."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            body = addjob(lab, ["Makefile"], lab, callback_url=url)
            status, _, answer = await service.call("POST", f"/addJob/test/{lab}/", data=body)
            if status == 200:
                return int(json.loads(answer)["jobId"])
            assert status == 503, answer
            await asyncio.sleep(0.1)


async def test_a_killed_master_costs_no_upload_no_result_and_no_order_and_a_callback_comes_again(
    watched: Watched, starts: Path, service: Service, receiver: Receiver
) -> None:
    async def add(name: str, makefile: bytes) -> int:
        await service.upload(name, {"Makefile": makefile})
        return await service.add(name, ["Makefile"], name, callback_url=receiver.url)

    await service.run("tango-http")
    await service.run("tango-dispatcher")
    await service.prealloc(1)
    await service.prepared(1)
    once = await add("once", SHORT)
    await delivered(service, once)
    runs = await add("runs", LONG)
    receiver.well = False
    twice = await add("twice", SHORT)
    async with asyncio.timeout(PATIENCE_S):
        while not receiver.refused or starts.read_text().count("begun") < 3:
            await asyncio.sleep(0.02)
    await asyncio.to_thread(watched.replicated)
    await asyncio.to_thread(watched.part)
    receiver.well = True
    await delivered(service, twice)
    results = {name: await service.poll(name, name) for name in ("once", "twice")}
    assert [results[name] for name in ("once", "twice")] == receiver.came
    first = watched.master()
    await asyncio.to_thread(watched.lose_master)
    await service.upload("late", {"Makefile": SHORT})
    late = await add_patiently(service, "late", receiver.url)
    assert watched.master() != first and late > max(once, runs, twice)
    with starts.open("a") as file:
        file.write("go\n")
    for name in ("runs", "late"):
        results[name] = await service.poll(name, name)
    await receiver.has(5)
    assert results["runs"].endswith("begun\nover\n") and results["late"].endswith("begun\n")
    assert {name: await service.poll(name, name) for name in results} == results
    assert sorted(receiver.came) == sorted([*results.values(), results["twice"]])
    await delivered(service, twice)
    await service.run("tango-dispatcher")
    await service.prepared(2)
    assert starts.read_text().count("begun") == 4
