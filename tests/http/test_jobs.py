"""The lists, the live output and cancel, field by field as Autolab's pages read them."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pytest

from support.api import Api
from support.jobs import claim_one, spec
from tango_async.http import wire
from tango_async.model import JobRecord, JobState, TraceLine, Verdict

HEADER = (
    b"Autograder [Sun Nov 22 00:14:48 2026]: Received job ok:1\n"
    b"Autograder [Sun Nov 22 00:14:50 2026]: Success: Autodriver returned normally\n"
    b"Autograder [Sun Nov 22 00:14:50 2026]: Here is the output from the autograder:\n---\n"
)


@pytest.fixture
async def lab(api: Api) -> Api:
    await api.ready_lab()
    return api


async def listed(api: Api, dead: int) -> list[dict[str, Any]]:
    reply = await api.get(f"/jobs/test/{dead}/")
    assert reply.outcome == (0, "Found list of jobs")
    jobs: list[dict[str, Any]] = reply.json["jobs"]
    return jobs


async def test_a_queued_job_is_listed_with_every_field(lab: Api) -> None:
    await lab.add()
    (entry,) = await listed(lab, 0)
    assert re.fullmatch(r"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\|Added job 1 to queue", entry.pop("trace")[-1])
    assert entry == {
        "id": 1,
        "name": "course_lab_1_student@example.edu",
        "assigned": False,
        "retries": 0,
        "notifyURL": "http://autolab.example/courses/c/assessments/lab/autograde_done?dave=x&submission_id=1",
        "timeout": 20,
        "maxOutputFileSize": 1_024_000,
        "outputFile": "courselabs/KEY-lab/output/student@example.edu_1_lab_autograde.txt",
        "input": [
            {"localFile": "courselabs/KEY-lab/autograde-Makefile", "destFile": "Makefile"},
            {"localFile": "courselabs/KEY-lab/hello.sh", "destFile": "hello.sh"},
        ],
        "vm": {
            "id": None,
            "name": "autograding_image",
            "image": "autograding_image",
            "vmms": None,
            "cores": 1.0,
            "memory": 1024,
            "disk": 512,
            "network": True,
            "resume": None,
        },
        "position": 0,
        "etaSecs": None,
        "etaErrorSecs": None,
    }


async def test_a_job_without_a_callback_has_null_for_it(lab: Api) -> None:
    await lab.add(callback_url="")
    (entry,) = await listed(lab, 0)
    assert entry["notifyURL"] is None


async def test_a_running_job_is_assigned_and_a_dead_one_is_in_the_other_list(lab: Api) -> None:
    await lab.add()
    claim = await claim_one(lab.queue, instance="host#1", request="r")
    assert claim is not None
    assert [j["assigned"] for j in await listed(lab, 0)] == [True]
    assert await listed(lab, 1) == []
    await lab.post("/cancel/test/1/")
    await lab.queue.end(claim, Verdict.CANCELLED, "Error: Job was cancelled", "")
    assert await listed(lab, 0) == []
    assert [(j["id"], j["assigned"], "Error" in j["trace"][-1]) for j in await listed(lab, 1)] == [(1, False, True)]


async def test_the_newest_dead_and_the_next_live_come_first(lab: Api) -> None:
    for n in range(4):
        await lab.add(output_file=f"o{n}")
    for _ in range(2):
        await lab.end(b"x")
    assert [j["id"] for j in await listed(lab, 1)] == [2, 1]
    assert [j["id"] for j in await listed(lab, 0)] == [3, 4]


@pytest.mark.parametrize("path", ["/jobs/test/0", "/jobs/test/0/", "/jobs/test/1", "/jobs/test/2/"])
async def test_lists_are_had_by_get_and_by_post(api: Api, path: str) -> None:
    for reply in (await api.get(path), await api.post(path)):
        assert reply.json == {"statusId": 0, "statusMsg": "Found list of jobs", "jobs": []}


async def test_a_list_that_is_no_number_is_an_error_in_tangos_shape(api: Api) -> None:
    assert (await api.get("/jobs/test/abc/")).outcome == (-1, "Bad list: expected a number")


def test_no_key_and_no_second_bar_is_in_an_entry() -> None:
    line = TraceLine(at_ms=1_672_671_843_000, text="a|b")
    job = JobRecord(id=1, spec=spec(lab="secret-lab", courselab="lab"), state=JobState.DEAD, added_ms=0, trace=(line,))
    body = wire.encode_jobs([job], {})
    assert b"secret" not in body
    assert b'"Mon Jan  2 15:04:03 2023|a/b"' in body


async def partial(api: Api, job_id: int | str) -> Any:
    reply = await api.get(f"/getPartialOutput/test/{job_id}/")
    assert reply.outcome == (0, "Partial output obtained")
    return reply.json["output"]


async def test_live_output_is_what_the_job_has_said_so_far(lab: Api) -> None:
    await lab.add()
    assert await partial(lab, 1) == ""
    claim = await claim_one(lab.queue, instance="host#1", request="r")
    assert claim is not None
    await lab.queue.start(claim, "m")
    assert await partial(lab, 1) == ""
    await lab.queue.show(claim, 0, b"tick \xff\n")
    assert await partial(lab, 1) == "tick \ufffd\n"


async def test_the_output_of_a_dead_job_comes_without_the_header(lab: Api) -> None:
    await lab.add()
    await lab.end(HEADER + b"Autodriver: Job exited with status 0\n\xff---\n")
    assert await partial(lab, 1) == "Autodriver: Job exited with status 0\n\ufffd---\n"


async def test_a_long_output_of_a_dead_job_keeps_its_ends(lab: Api) -> None:
    await lab.add()
    await lab.end(HEADER + b"x" * 3_000_000 + b"the end")
    output = await partial(lab, 1)
    assert len(output) < 300_000
    assert output.startswith("xxx") and output.endswith("the end") and "[excess bytes elided]" in output


async def test_output_that_is_gone_or_never_was_is_empty(lab: Api) -> None:
    await lab.add()
    claim = await lab.end(HEADER)
    await lab.store.drop_output(f"{claim.id}-{claim.seq}")
    assert await partial(lab, 1) == ""
    assert await partial(lab, 999) == ""
    assert await partial(lab, 10**17) == ""


@pytest.mark.parametrize("job_id", ["abc", "-1", "1.5", "٣", "9" * 5000, "0x1"])
async def test_a_job_id_that_is_no_number_is_an_error_in_tangos_shape(api: Api, job_id: str) -> None:
    reply = await api.get(f"/getPartialOutput/test/{quote(job_id)}/")
    assert reply.outcome == (-1, "Bad job id: expected a number")


FILE = "student@example.edu_1_lab_autograde.txt"


@pytest.mark.parametrize(
    "path", ["/cancel/test/1", "/cancel/test/1/", f"/cancel/test/lab/{FILE}", f"/cancel/test/lab/{FILE}/"]
)
async def test_a_queued_job_is_cancelled_by_id_or_by_its_file(lab: Api, path: str) -> None:
    await lab.add()
    assert (await lab.post(path)).outcome == (0, "Job cancelled")
    assert (await lab.post(path)).outcome == (-3, "Job already completed")
    assert await listed(lab, 0) == []


async def test_a_running_job_is_asked_to_end(lab: Api) -> None:
    await lab.add()
    await claim_one(lab.queue, instance="host#1", request="r")
    assert (await lab.post("/cancel/test/1/")).outcome == (0, "Job cancellation requested")


@pytest.mark.parametrize("path", ["/cancel/test/7/", "/cancel/test/lab/none/", "/cancel/test/nolab/none/"])
async def test_a_job_that_is_not_there_is_not_cancelled(api: Api, path: str) -> None:
    assert (await api.post(path)).outcome == (-2, "Job not found")


async def test_a_waiting_job_tells_its_position_and_when_it_starts(lab: Api) -> None:
    await lab.publish("autograding_image", slots=2)
    for n in range(4):
        await lab.add(output_file=f"{n}.txt")
    assert [(j["position"], j["etaSecs"]) for j in await listed(lab, 0)] == [(0, 0), (1, 0), (2, 1), (3, 1.5)]
    told = (await lab.get("/position/test/4")).json
    assert told == {
        "statusId": 0, "statusMsg": "Found job", "jobId": 4, "state": "queued",
        "position": 3, "etaSecs": 1.5, "etaErrorSecs": None,
    }  # fmt: skip


async def test_a_job_that_does_not_wait_has_no_position(lab: Api) -> None:
    await lab.add()
    await claim_one(lab.queue)
    told = (await lab.get("/position/test/1/")).json
    assert (told["state"], told["position"], told["etaSecs"]) == ("assigned", None, None)
    assert (await lab.get("/position/test/999999/")).outcome == (-1, "Job not found")


async def test_jobs_that_nobody_can_run_are_reported_at_once(lab: Api) -> None:
    await lab.add()
    (entry,) = await listed(lab, 0)
    assert "No living dispatcher offers" in entry["trace"][0]
    assert (entry["position"], entry["etaSecs"]) == (0, None)
    assert (await lab.get("/info/test/")).json["info"]["unoffered"] == {"autograding_image": 1}
    await lab.publish("autograding_image")
    assert (await lab.get("/info/test/")).json["info"]["unoffered"] == {}
