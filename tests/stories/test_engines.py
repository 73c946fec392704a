"""One dispatcher over two engines behind links that are cut and healed while jobs run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from stories.conftest import Receiver, dispatched
from support.netns import RemoteEngine
from support.service import PATIENCE_S, Service


def ticking(n: int) -> bytes:
    return f"autograde:\n\t@i=0; while [ $$i -lt {n} ]; do i=$$((i+1)); echo tick $$i; sleep 0.5; done\n".encode()


def said(n: int) -> str:
    return "Autodriver: Job exited with status 0\n" + "".join(f"tick {i}\n" for i in range(1, n + 1))


async def engine_states(service: Service) -> dict[str, dict[str, Any]]:
    (host,) = (await service.json("GET", "/hosts/test/"))["hosts"]
    return {engine["name"]: engine for engine in host["engines"]}


async def until_healthy(service: Service, **wanted: bool) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await engine_states(service)
            if all(found[name]["healthy"] is value for name, value in wanted.items()):
                return
            await asyncio.sleep(0.1)


async def until_running(service: Service, *job_ids: int) -> None:
    async def begun(job_id: int) -> bool:
        return "tick" in (await service.json("GET", f"/getPartialOutput/test/{job_id}/"))["output"]

    async with asyncio.timeout(PATIENCE_S):
        while not all([await begun(job_id) for job_id in job_ids]):
            await asyncio.sleep(0.05)


async def dead(service: Service) -> dict[int, dict[str, Any]]:
    return {job["id"]: job for job in (await service.json("GET", "/jobs/test/1/"))["jobs"]}


def containers(engines: list[RemoteEngine]) -> list[int]:
    return [len(engine.containers("tango-async.host")) for engine in engines]


def everywhere(engines: list[RemoteEngine]) -> set[str]:
    return {one for engine in engines for one in engine.containers("tango-async.host")}


async def until_there(engines: list[RemoteEngine], *numbers: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while containers(engines) != list(numbers):
            await asyncio.sleep(0.2)


async def until_empty(engines: list[RemoteEngine]) -> None:
    await until_there(engines, 0, 0)


async def test_jobs_are_graded_on_both_and_slots_are_summed(
    service: Service, engines: list[RemoteEngine], over: Callable[..., Any]
) -> None:
    await over()
    assert "4 slots" in service.processes[-1].said()
    await service.upload("lab", {"Makefile": ticking(4)})
    jobs = [await service.add("lab", ["Makefile"], f"out{i}") for i in range(4)]
    await until_running(service, *jobs)
    assert containers(engines) == [2, 2]
    for i in range(4):
        assert (await service.poll("lab", f"out{i}")).endswith(said(4))
    states = await engine_states(service)
    assert {name: one["slots"] for name, one in states.items()} == {"n0": 2, "n1": 2}
    assert all("autograding_image" in one["images"] for one in states.values())
    await until_empty(engines)


async def test_prepared_machines_are_spread_and_lent_on_their_hosts(
    service: Service, engines: list[RemoteEngine], over: Callable[..., Any]
) -> None:
    """Also on one that was out of reach, but not for so long that its connections broke."""
    await over()
    await service.prealloc(2)
    await service.prepared(2)
    assert containers(engines) == [1, 1]
    waiting = everywhere(engines)
    engines[0].cut()
    await until_healthy(service, n0=False, n1=True)
    engines[0].heal()
    await until_healthy(service, n0=True)
    await until_there(engines, 1, 1)
    assert waiting == everywhere(engines)
    await service.upload("lab", {"Makefile": ticking(4)})
    jobs = [await service.add("lab", ["Makefile"], f"out{i}") for i in range(2)]
    await until_running(service, *jobs)
    for i in range(2):
        assert (await service.poll("lab", f"out{i}")).endswith(said(4))
    assert "its prepared machine was of no use" not in service.processes[-1].said()
    await service.prepared(2)
    await service.prealloc(0)
    await until_empty(engines)


async def test_a_partition_is_waited_for_past_the_deadline_and_costs_no_run_and_no_byte(
    service: Service, engines: list[RemoteEngine], over: Callable[..., Any], receiver: Receiver
) -> None:
    await over()
    told = {"timeout": 11, "callback_url": receiver.url}
    await service.upload("lab", {"Makefile": ticking(16)})
    jobs = [await service.add("lab", ["Makefile"], f"out{i}", **told) for i in range(4)]
    await until_running(service, *jobs)
    deadline = asyncio.get_running_loop().time() + 11
    busy = everywhere(engines)
    await service.prealloc(2)
    await service.prepared(2)
    (waits,), (_,) = (set(engine.containers("tango-async.host")) - busy for engine in engines)
    known = everywhere(engines)
    engines[0].cut()
    await until_healthy(service, n0=False, n1=True)
    await service.prepared(2)
    assert set(engines[1].containers("tango-async.host")) - known, "made for the one that is out of reach"
    await service.upload("later", {"Makefile": ticking(4)})
    late = await service.add("later", ["Makefile"], "late", **told)
    assert late > max(jobs)
    # The programs end, and their deadlines pass, unheard.
    await asyncio.sleep(deadline + 4 - asyncio.get_running_loop().time())
    feedback = await service.poll("later", "late")
    assert feedback.endswith(said(4))
    await receiver.has(3)
    here = [text for text in receiver.came if text != feedback]
    assert len(here) == 2, "what ends on the other host is told, and nothing else"
    engines[0].heal()
    feedbacks = [await service.poll("lab", f"out{i}") for i in range(4)]
    assert all(text.endswith(said(16)) for text in feedbacks) and set(here) < set(feedbacks)
    ended = await dead(service)
    assert {ended[job]["retries"] for job in (*jobs, late)} == {0}
    assert {dispatched(ended[job]) for job in jobs} == {1}
    await receiver.has(5)
    assert sorted(receiver.came) == sorted([*feedbacks, feedback])
    await until_healthy(service, n0=True)
    await until_there(engines, 1, 1)
    assert engines[0].containers("tango-async.host") == [waits]
    await service.prealloc(0)
    await until_empty(engines)


async def test_after_too_long_a_job_runs_elsewhere_and_has_one_result(
    service: Service, engines: list[RemoteEngine], over: Callable[..., Any]
) -> None:
    """Its first run goes on meanwhile, says other things, and is never heard."""
    await over(away_s=3.0)
    makefile = b"autograde:\n\t@echo tick $$(cat /proc/sys/kernel/random/uuid); sleep 10; echo over\n"
    await service.upload("lab", {"Makefile": makefile})
    jobs = [await service.add("lab", ["Makefile"], f"out{i}", timeout=30) for i in range(2)]
    await until_running(service, *jobs)
    first = {j: (await service.json("GET", f"/getPartialOutput/test/{j}/"))["output"] for j in jobs}
    busy = everywhere(engines)
    await service.prealloc(2)
    await service.prepared(2)
    (waits,) = set(engines[0].containers("tango-async.host")) - busy
    engines[0].cut()
    outputs = {job: await service.poll("lab", f"out{i}", 90) for i, job in enumerate(jobs)}
    again = [job for job in jobs if first[job].split()[1] not in outputs[job]]
    ended = await dead(service)
    assert len(again) == 1 and {job: dispatched(ended[job]) for job in jobs} == {j: 1 + (j in again) for j in jobs}
    assert all(text.count("tick ") == 1 and text.endswith("over\n") for text in outputs.values())
    assert {ended[job]["retries"] for job in jobs} == {0}
    assert containers(engines)[0] == 2
    engines[0].heal()
    async with asyncio.timeout(PATIENCE_S):  # what waited there has lost its connection, and is of no use
        while waits in (there := everywhere(engines)) or len(there) != 2:
            await asyncio.sleep(0.2)
    await service.prepared(2)
    assert {job: await service.poll("lab", f"out{i}") for i, job in enumerate(jobs)} == outputs
    assert await dead(service) == ended
    await service.prealloc(0)
    await until_empty(engines)


async def test_a_dispatcher_killed_while_a_host_is_away_is_followed_by_one_that_adopts_it_later(
    service: Service, engines: list[RemoteEngine], over: Callable[..., Any]
) -> None:
    await over()
    await service.upload("lab", {"Makefile": ticking(20)})
    jobs = [await service.add("lab", ["Makefile"], f"out{i}", timeout=30) for i in range(2)]
    await until_running(service, *jobs)
    engines[1].cut()
    service.processes[-1].kill()
    del service.processes[-1]
    await service.run("tango-dispatcher")
    engines[1].heal()
    for i in range(2):
        assert (await service.poll("lab", f"out{i}")).endswith(said(20))
    assert {dispatched(job) for job in (await dead(service)).values()} == {1}
    await until_empty(engines)
