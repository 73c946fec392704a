"""`kill -9` of each process in mid-run: every accepted job ends, once."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from support.engine import Engine
from support.service import PATIENCE_S, Service
from tango_async.vmms.docker import INSTALL

COUNTED = b"autograde:\n\t@for i in 1 2 3 4 5 6 7 8; do echo tick $$i; sleep 0.25; done\n"
ENDLESS = b"autograde:\n\t@while :; do echo tick; sleep 0.25; done\n"
TICKS = "".join(f"tick {i}\n" for i in range(1, 9))


async def running(service: Service, number: int) -> None:
    """Until so many jobs show output."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            jobs = (await service.json("GET", "/jobs/test/0/"))["jobs"]
            ids = [job["id"] for job in jobs if job["assigned"]]
            outputs = [(await service.json("GET", f"/getPartialOutput/test/{i}/"))["output"] for i in ids]
            if len([o for o in outputs if "tick" in o]) >= number:
                return
            await asyncio.sleep(0.05)


async def machines_left(service: Service, wanted: int) -> None:
    """Until the first dispatcher's place has so many machines, seen from outside."""
    place = Path(service.environment["TANGO_DATA_DIR"]) / "dispatcher/0"
    docker = (
        Engine(service.environment["DOCKER_HOST"].removeprefix("unix://"))
        if "DOCKER_HOST" in service.environment
        else None
    )
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if docker is None:
                number = len(list((place / "machines").glob("*")))
            else:
                number = len(docker.containers(f"{INSTALL}={(place / 'install').read_text()}"))
            if number == wanted:
                return
            await asyncio.sleep(0.02)


async def test_jobs_run_on_when_their_dispatcher_is_killed_and_are_followed_by_the_next(
    service: Service, vmms: str
) -> None:
    service.environment["TANGO_DISPATCHER_LEASE_S"] = "2"
    service.environment["TANGO_DISPATCHER_UPKEEP_S"] = "0.5"
    await service.run("tango-http")
    dispatcher = await service.run("tango-dispatcher")
    await service.upload("lab", {"Makefile": COUNTED})
    for i in range(5):
        await service.add("lab", ["Makefile"], f"{i}.txt", timeout=60)
    await running(service, 3)
    dispatcher.kill()
    await service.run("tango-dispatcher")
    for i in range(5):
        feedback = await service.poll("lab", f"{i}.txt")
        # Whole from its first byte, and begun once.
        assert feedback.endswith(f"Autodriver: Job exited with status 0\n{TICKS}"), feedback
    dead = (await service.json("GET", "/jobs/test/1/"))["jobs"]
    assert sorted(job["retries"] for job in dead) == [0] * 5


async def test_jobs_that_wait_survive_a_kill_of_the_server_that_took_them(service: Service, sandbox: None) -> None:
    server = await service.run("tango-http")
    await service.upload("lab", {"Makefile": COUNTED})
    await service.add("lab", ["Makefile"], "0.txt")
    server.kill()
    await service.run("tango-http")
    await service.run("tango-dispatcher")
    assert (await service.poll("lab", "0.txt")).endswith(TICKS)


async def test_everything_killed_at_once_comes_back_with_every_job(service: Service, sandbox: None) -> None:
    del service.environment["TANGO_REDIS_URL"]
    up = await service.run("tango", "up")
    await service.upload("lab", {"Makefile": COUNTED})
    for i in range(4):
        await service.add("lab", ["Makefile"], f"{i}.txt")
    await running(service, 2)
    up.kill()
    up = await service.run("tango", "up")
    for i in range(4):
        assert (await service.poll("lab", f"{i}.txt")).endswith(TICKS)
    assert await up.stop() == 0


async def test_what_a_killed_dispatcher_left_is_removed_by_another_though_nobody_takes_its_place(
    service: Service, vmms: str
) -> None:
    service.environment |= {
        "TANGO_DISPATCHER_LEASE_S": "1",
        "TANGO_DISPATCHER_ADOPT_GRACE_S": "4",
        "TANGO_DISPATCHER_UPKEEP_S": "0.5",
    }
    await service.run("tango-http")
    lost = await service.run("tango-dispatcher", TANGO_SLOTS="1")
    await service.prealloc(1)
    await service.upload("lab", {"Makefile": ENDLESS})
    job_id = await service.add("lab", ["Makefile"], "runs.txt", timeout=60)
    await running(service, 1)
    await machines_left(service, 2)
    other = await service.run("tango-dispatcher", TANGO_SLOTS="1")
    lost.kill()
    await machines_left(service, 0)
    # What runs may still be adopted; it is removed when its job runs elsewhere.
    removed, again = "machine of a dead dispatcher", f"job {job_id} queued again"
    told = re.findall(r"machine (\S+) of a dead dispatcher|job \d+ was held by no living dispatcher", other.said())
    assert [removed if machine else again for machine in dict.fromkeys(told)] == [removed, again, removed]
    (job,) = (await service.json("GET", "/jobs/test/0/"))["jobs"]
    assert (job["id"], job["retries"]) == (job_id, 1)
    await service.json("POST", f"/cancel/test/{job_id}/")
    await service.poll("lab", "runs.txt")


async def test_a_dispatcher_that_comes_back_finds_its_place_while_others_look_through_it(
    service: Service, sandbox: None
) -> None:
    """With hardly a pause between their looks, so that the place is locked for much of the time."""
    service.environment |= {"TANGO_DISPATCHER_UPKEEP_S": "0.01", "TANGO_SLOTS": "1"}
    await service.run("tango-http")
    lost = await service.run("tango-dispatcher")
    await service.upload("lab", {"Makefile": ENDLESS})
    job_id = await service.add("lab", ["Makefile"], "0.txt", timeout=60)
    await running(service, 1)
    for _ in range(2):
        await service.run("tango-dispatcher")
    lost.kill()
    await asyncio.sleep(0.5)
    back = await service.run("tango-dispatcher")
    async with asyncio.timeout(PATIENCE_S):
        while "adopted on machine" not in back.said():
            await asyncio.sleep(0.05)
    await service.json("POST", f"/cancel/test/{job_id}/")
    await service.poll("lab", "0.txt")
    assert [job["retries"] for job in (await service.json("GET", "/jobs/test/1/"))["jobs"]] == [0]
