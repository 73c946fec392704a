"""The Docker engine of a grading host hangs, or dies and comes back, while jobs wait and run."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from stories.conftest import dispatched
from support.engine import PrivateEngine
from support.service import PATIENCE_S, Service

COUNTED = b"autograde:\n\t@for i in 1 2 3 4 5 6 7 8; do echo tick $$i; sleep 0.3; done\n"
ENDED = "Autodriver: Job exited with status 0\n" + "".join(f"tick {i}\n" for i in range(1, 9))


@pytest.fixture
def engine(private_engine: PrivateEngine, environment: dict[str, str]) -> Iterator[PrivateEngine]:
    """Is left as it was found."""
    environment |= {
        "TANGO_VMMS": "localDocker",
        "DOCKER_HOST": private_engine.host,
        "TANGO_SLOTS": "2",
        "TANGO_DISPATCHER_LEASE_S": "3",
    }
    before = private_engine.containers()
    yield private_engine
    private_engine.send(signal.SIGCONT)
    assert private_engine.containers() == before


@pytest.fixture
async def service(engine: PrivateEngine, service: Service) -> Service:
    """Ends before the engine is looked at."""
    return service


async def ended(service: Service, *names: str) -> dict[int, tuple[int, int]]:
    """Each job's retries, and how often it was given to a dispatcher, once all have said all."""
    for name in names:
        assert (await service.poll("lab", name)).endswith(ENDED)
    jobs = (await service.json("GET", "/jobs/test/1/"))["jobs"]
    return {job["id"]: (job["retries"], dispatched(job)) for job in jobs}


async def test_a_host_whose_engine_hangs_claims_nothing_and_spends_no_retry(
    service: Service, engine: PrivateEngine
) -> None:
    await service.run("tango-http")
    dispatcher = await service.run("tango-dispatcher")
    await service.upload("lab", {"Makefile": COUNTED})
    engine.send(signal.SIGSTOP)
    await service.add("lab", ["Makefile"], "one")
    async with asyncio.timeout(PATIENCE_S):
        while "no job is claimed until the engine is well" not in dispatcher.said():
            await asyncio.sleep(0.05)
    waits = await service.add("lab", ["Makefile"], "two")
    await asyncio.sleep(1.5)
    live = (await service.json("GET", "/jobs/test/0/"))["jobs"]
    assert [job["assigned"] for job in live if job["id"] == waits] == [False]
    engine.send(signal.SIGCONT)
    jobs = await ended(service, "one", "two")
    assert jobs[waits] == (0, 1)
    assert {retries for retries, _ in jobs.values()} == {0}
    assert dispatcher.popen.poll() is None


async def test_a_job_outlives_its_engine_and_ends_once_with_its_whole_output(
    service: Service, engine: PrivateEngine
) -> None:
    await service.run("tango-http")
    await service.run("tango-dispatcher")
    await service.upload("lab", {"Makefile": COUNTED})
    job_id = await service.add("lab", ["Makefile"], "one")
    async with asyncio.timeout(PATIENCE_S):
        while "tick 2" not in (await service.json("GET", f"/getPartialOutput/test/{job_id}/"))["output"]:
            await asyncio.sleep(0.05)
    await asyncio.to_thread(engine.kill)
    waits = await service.add("lab", ["Makefile"], "two")
    await asyncio.to_thread(engine.start)
    jobs = await ended(service, "one", "two")
    assert jobs[job_id] == (0, 1)
    assert jobs[waits][0] == 0
