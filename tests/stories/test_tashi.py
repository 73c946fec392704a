"""The whole service on a Tashi cluster: jobs over HTTP, instances by its cluster manager, programs over SSH."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stories.conftest import Receiver
from support import backends
from support.service import PATIENCE_S, Service
from support.tashi import ClusterManager

TICKS = "autograde:\n\t@for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo tick $$i; sleep 0.25; done\n"
SAID = "".join(f"tick {i}\n" for i in range(1, 13))


@pytest.fixture
async def on_tashi(manager: ClusterManager, environment: dict[str, str], service: Service, tmp_path: Path) -> Service:
    """The service with one HTTP server, and an image in the cluster's store."""
    environment |= backends.tashi(manager, tmp_path / "images")
    environment |= {"TANGO_DISPATCHER_GRACE_S": "1", "TANGO_DISPATCHER_LEASE_S": "3"}
    await service.run("tango-http")
    return service


async def add(service: Service, name: str, makefile: str, **fields: object) -> int:
    await service.upload(name, {"Makefile": makefile.encode()})
    return await service.add(name, ["Makefile"], "out.txt", **fields)


async def running(service: Service, job_id: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while "tick" not in (await service.json("GET", f"/getPartialOutput/test/{job_id}/"))["output"]:
            await asyncio.sleep(0.05)


async def instances(manager: ClusterManager, number: int) -> None:
    """Until there are so many."""
    async with asyncio.timeout(PATIENCE_S):
        while len(manager.vms) != number or len(manager.instances) != number:
            await asyncio.sleep(0.05)


async def test_a_job_is_graded_on_an_instance_that_goes_with_it(on_tashi: Service, manager: ClusterManager) -> None:
    await on_tashi.run("tango-dispatcher")
    await add(on_tashi, "hello", "autograde:\n\t@id -un; echo hello\n")
    feedback = await on_tashi.poll("hello", "out.txt")
    assert "Success: Autodriver returned normally" in feedback and feedback.endswith("autograde\nhello\n")
    await instances(manager, 0)


async def test_a_job_outlives_its_dispatcher_and_is_followed_by_the_next(
    on_tashi: Service, manager: ClusterManager
) -> None:
    first = await on_tashi.run("tango-dispatcher")
    job_id = await add(on_tashi, "long", TICKS)
    await running(on_tashi, job_id)
    first.kill()
    await on_tashi.run("tango-dispatcher")
    assert (await on_tashi.poll("long", "out.txt")).endswith(SAID)
    assert manager.calls.count("createVm") == 1
    await instances(manager, 0)


async def test_a_job_outlives_the_cluster_manager(
    on_tashi: Service, manager: ClusterManager, receiver: Receiver
) -> None:
    on_tashi.environment |= {"TANGO_DISPATCHER_MACHINE_WAIT_S": "5", "TANGO_TASHI_BOOT_S": "4"}
    await on_tashi.run("tango-dispatcher", TANGO_DISPATCHER_UPKEEP_S="0.5")
    job_id = await add(on_tashi, "long", TICKS, callback_url=receiver.url)
    await running(on_tashi, job_id)
    await manager.stop()
    waits = await add(on_tashi, "next", TICKS)
    assert (feedback := await on_tashi.poll("long", "out.txt")).endswith(SAID)
    await receiver.has(1)
    assert receiver.came == [feedback]
    await manager.start(manager.port)
    assert (await on_tashi.poll("next", "out.txt")).endswith(SAID)
    (job,) = [job for job in (await on_tashi.json("GET", "/jobs/test/1/"))["jobs"] if job["id"] == waits]
    assert job["retries"] == 0
    # The first job's instance could not be destroyed: it is found as one that belongs to nobody.
    await instances(manager, 0)


async def test_machines_that_wait_are_used_and_go_with_their_dispatcher(
    on_tashi: Service, manager: ClusterManager
) -> None:
    dispatcher = await on_tashi.run("tango-dispatcher")
    await on_tashi.prealloc(2)
    await instances(manager, 2)
    waited = set(manager.vms)
    await add(on_tashi, "hello", "autograde:\n\t@echo hello\n")
    assert (await on_tashi.poll("hello", "out.txt")).endswith("hello\n")
    async with asyncio.timeout(PATIENCE_S):
        while len(waited & manager.vms.keys()) != 1 or len(manager.vms) != 2:
            await asyncio.sleep(0.05)
    await dispatcher.stop()
    await instances(manager, 0)
