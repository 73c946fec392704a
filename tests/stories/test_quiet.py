"""Quiet jobs on cores of their own, and ordinary ones that cannot get there, as processes on real machines see it."""

from __future__ import annotations

import asyncio
import json
import os
import re
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from support.service import PATIENCE_S, Process, Service

CORES = sorted(os.sched_getaffinity(0))

PROGRAM = """\
import json, os, sys, time

def cores():
    return sorted(os.sched_getaffinity(0))

def ran_on():
    return int(open("/proc/self/stat").read().rpartition(")")[2].split()[36])

begun, at_first, moved = time.time(), cores(), []
for wanted in %(targets)s:
    try:
        os.sched_setaffinity(0, wanted)
    except OSError:
        continue
    moved.append(cores())
child = os.fork()
if child == 0:
    sys.exit(0 if cores() == (moved[-1] if moved else at_first) else 1)
child = os.waitpid(child, 0)[1]
seen = {ran_on()}
while time.time() < begun + %(seconds)s:
    seen.add(ran_on())
times = [begun, time.time()]
print(json.dumps({"at_first": at_first, "moved": moved, "seen": sorted(seen), "child": child, "time": times}))
"""
"""Tries to move, then works for a while and notes where it was."""

pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="one core cannot be divided")


@pytest.fixture
def divided(environment: dict[str, str]) -> None:
    environment["TANGO_DISPATCHER_QUIET_CORES"] = str(CORES[-1])
    environment["TANGO_SLOTS"] = "2"


@pytest.fixture(params=["localSandbox", "localSandbox without groups", "localDocker"])
def backend(request: pytest.FixtureRequest, environment: dict[str, str], divided: None) -> str:
    name, _, without = request.param.partition(" ")
    if name == "localDocker":
        environment["DOCKER_HOST"] = request.getfixturevalue("docker_engine").host
    else:
        request.getfixturevalue("sandbox")
    if without:
        environment["TANGO_SANDBOX_CGROUP"] = "false"
    environment["TANGO_VMMS"] = name
    return str(request.param)


async def add(service: Service, lab: str, seconds: float, **fields: Any) -> int:
    targets = [{core} for core in CORES] + [set(CORES)]
    program = PROGRAM % {"targets": targets, "seconds": seconds}
    makefile = b"autograde:\n\t@python3 program.py\n"
    await service.upload(lab, {"Makefile": makefile, "program.py": program.encode()})
    return await service.add(lab, ["Makefile", "program.py"], lab, **fields)


async def result(service: Service, lab: str) -> tuple[dict[str, Any], str]:
    feedback = await service.poll(lab, lab)
    found: dict[str, Any] = json.loads(feedback.splitlines()[-1])
    return found, feedback


def threads(process: Process) -> set[str]:
    """The lists of cores that a process's threads may use."""
    found = set()
    for status in Path(f"/proc/{process.popen.pid}/task").glob("*/status"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread may have ended
            found |= set(re.findall(r"Cpus_allowed_list:\s*(\S+)", status.read_text()))
    return found


async def test_a_quiet_job_has_its_core_alone_and_nobody_else_gets_there(service: Service, backend: str) -> None:
    await service.run("tango-http")
    dispatcher = await service.run("tango-dispatcher")
    quiet, others = CORES[-1], CORES[:-1]
    await add(service, "busy", 4)
    job_id = await add(service, "quiet", 1.5, quiet=True)
    found, feedback = await result(service, "quiet")
    assert found["at_first"] == found["seen"] == [quiet]
    assert all(cores == [quiet] for cores in found["moved"])
    assert found["child"] == 0
    line = re.search(rf"Autograder \[[^]]*\]: (Quiet cores {quiet}: in .*)\n", feedback)
    assert line is not None
    if "without" not in backend:
        used = re.search(r"the job used ([\d.]+) s and was throttled for [\d.]+ s, others used", line[1])
        assert used is not None and float(used[1]) > 0
    dead = {job["id"]: job for job in (await service.json("GET", "/jobs/test/1/"))["jobs"]}
    assert line[1] in " ".join(dead[job_id]["trace"])
    found, feedback = await result(service, "busy")
    assert found["at_first"] == others
    assert quiet not in {core for cores in [*found["moved"], found["seen"]] for core in cores}
    assert "Quiet cores" not in feedback
    assert threads(dispatcher) == {",".join(map(str, others)) if len(others) == 1 else f"{others[0]}-{others[-1]}"}


async def test_quiet_jobs_take_turns_also_over_the_death_of_their_dispatcher(
    service: Service, sandbox: None, divided: None
) -> None:
    await service.run("tango-http")
    dispatcher = await service.run("tango-dispatcher")
    for name in ("one", "two", "three"):
        await add(service, name, 1.5, quiet=True)
    async with asyncio.timeout(PATIENCE_S):
        while not any(job["vm"]["id"] for job in (await service.json("GET", "/jobs/test/0/"))["jobs"]):
            await asyncio.sleep(0.02)
    dispatcher.kill()
    service.processes.remove(dispatcher)
    await service.run("tango-dispatcher")
    times = sorted([(await result(service, name))[0]["time"] for name in ("one", "two", "three")])
    for (_, end), (begin, _) in pairwise(times):
        assert end <= begin
    jobs = (await service.json("GET", "/jobs/test/1/"))["jobs"]
    assert [len([line for line in job["trace"] if "Dispatched" in line]) for job in jobs] == [1, 1, 1]


async def test_a_host_without_quiet_cores_leaves_quiet_jobs_waiting(service: Service, sandbox: None) -> None:
    await service.run("tango-http")
    await service.run("tango-dispatcher")
    waiting = await add(service, "quiet", 0.1, quiet=True)
    await add(service, "other", 0.1)
    await result(service, "other")
    (job,) = (await service.json("GET", "/jobs/test/0/"))["jobs"]
    assert job["id"] == waiting and "waits until one does" in job["trace"][0]


async def test_cores_that_a_host_does_not_have_end_the_dispatcher_at_the_start(service: Service, sandbox: None) -> None:
    with pytest.raises(AssertionError, match=r"quiet_cores: this host has the cores .*, and one must be left"):
        await service.run("tango-dispatcher", TANGO_DISPATCHER_QUIET_CORES="9999")
