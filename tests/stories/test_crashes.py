"""`kill -9` of each process in mid-run: every accepted job ends, once."""

from __future__ import annotations

import asyncio

from support.service import Service

COUNTED = b"autograde:\n\t@for i in 1 2 3 4 5 6 7 8; do echo tick $$i; sleep 0.25; done\n"
TICKS = "".join(f"tick {i}\n" for i in range(1, 9))


async def running(service: Service, number: int) -> None:
    """Until so many jobs show output."""
    async with asyncio.timeout(20):
        while True:
            jobs = (await service.json("GET", "/jobs/test/0/"))["jobs"]
            ids = [job["id"] for job in jobs if job["assigned"]]
            outputs = [(await service.json("GET", f"/getPartialOutput/test/{i}/"))["output"] for i in ids]
            if len([o for o in outputs if "tick" in o]) >= number:
                return
            await asyncio.sleep(0.05)


async def test_jobs_run_on_when_their_dispatcher_is_killed_and_are_followed_by_the_next(
    service: Service, vmms: str
) -> None:
    service.environment["TANGO_DISPATCHER_LEASE_S"] = "2"
    service.environment["TANGO_DISPATCHER_UPKEEP_S"] = "0.5"
    await service.run("tango-http")
    dispatcher = await service.run("tango-dispatcher")
    await service.upload("lab", {"Makefile": COUNTED})
    for i in range(5):
        await service.add("lab", ["Makefile"], f"{i}.txt", timeout=10)
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
