"""Jobs that ask for more or less than usual, and get it: as the program on the machine sees it."""

from __future__ import annotations

import os
from typing import Any

import pytest

from support.service import Service
from tango_async.vmms import cgroup

GROUPS = os.geteuid() == 0 and any("memory" in h.controllers for h in cgroup.find())


async def grade(service: Service, name: str, *lines: str, **fields: Any) -> str:
    """The feedback of a Makefile of these lines."""
    makefile = "autograde:\n" + "".join(f"\t@{line}\n" for line in lines)
    await service.upload(name, {"Makefile": makefile.encode()})
    await service.add(name, ["Makefile"], name, **fields)
    return await service.poll(name, name)


@pytest.fixture
async def running(service: Service, vmms: str) -> Service:
    await service.run("tango-http")
    await service.run("tango-dispatcher")
    return service


async def test_memory_processes_and_files_are_what_the_job_asked_for(running: Service, vmms: str) -> None:
    fill = "head -c 100000000 /dev/zero | tail | wc -c"
    large = await grade(running, "large", fill, vm={"memory": "200"})
    assert "exited with status 0" in large and large.endswith("\n100000000\n")
    if vmms == "localDocker" or GROUPS:
        small = await grade(running, "small", fill, vm={"memory": 40})
        assert "Autodriver: Job ran out of memory\n" in small
    children = "for i in $$(seq 30); do sleep 60 & done; echo started"
    assert "started" in await grade(running, "many", children, limits={"processes": 60})
    few = await grade(running, "few", children, limits={"processes": 12})
    assert "started" not in few and "exited with status 0" not in few
    write = "dd if=/dev/zero of=file bs=1M count=3 2>&1"
    assert "exited with status 0" in await grade(running, "files", write, limits={"file_mb": 4, "disk_mb": 8})
    assert "exited with status 0" not in await grade(running, "file", write, limits={"file_mb": 2})
    assert "No space left" in await grade(running, "disk", write, limits={"disk_mb": 2})


async def test_the_least_that_can_be_asked_for_still_runs_a_makefile(running: Service, vmms: str) -> None:
    least = {"processes": 8, "file_mb": 1, "disk_mb": 1}
    feedback = await grade(running, "least", "echo enough", vm={"memory": 16, "cores": 0.1}, limits=least)
    assert feedback.endswith("Autodriver: Job exited with status 0\nenough\n")


async def test_a_job_of_more_cores_than_the_host_has_slots_runs_and_says_where(running: Service, vmms: str) -> None:
    feedback = await grade(running, "wide", "echo wide", vm={"cores": 4, "memory": 64})
    assert feedback.endswith("wide\n")
    (job,) = (await running.json("GET", "/jobs/test/1/"))["jobs"]
    assert [job["vm"][name] for name in ("cores", "memory", "vmms")] == [4.0, 64, vmms]
