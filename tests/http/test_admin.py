"""The routes of operators: callbacks, sending again, erasing a submitter; and that nobody else reaches them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from support.api import Api, Reply
from support.jobs import claim_one
from tango_async.errors import NotFound, StoreFull
from tango_async.http import erasure
from tango_async.model import JobState, Verdict
from tango_async.names import is_job_of

ME, OTHER = "student@example.edu", "b_student@example.edu"


@pytest.fixture
async def lab(api: Api) -> Api:
    await api.ready_lab()
    return api


def output(who: str, version: int = 1) -> str:
    return f"{who}_{version}_lab_autograde.txt"


async def submit(api: Api, who: str = ME, version: int = 1, **changes: Any) -> int:
    """As Autolab does: an upload of its own, an output and a name that say whose it is."""
    mine = f"{who}_{version}_hello.sh"
    await api.upload(mine, who.encode())
    files = [
        {"localFile": "autograde-Makefile", "destFile": "Makefile"},
        {"localFile": mine, "destFile": "hello.sh"},
    ]
    reply = await api.add(
        files=files, output_file=output(who, version), **{"jobName": f"course_lab_{version}_{who}", **changes}
    )
    assert reply.outcome == (0, "Job added"), reply.message
    return int(reply.json["jobId"])


async def graded(api: Api, who: str = ME, version: int = 1, **changes: Any) -> int:
    job_id = await submit(api, who, version, **changes)
    claim = await api.end(f"feedback for {who}".encode())
    assert claim.id == job_id
    await api.store.show_output(f"{claim.id}-{claim.seq}", "test-lab", claim.spec.output_name)
    return job_id


async def erase(api: Api, who: str = ME, key: str = "test") -> Reply:
    return await api.post(f"/erase/{key}/", json.dumps({"submitter": who}).encode())


async def callbacks(api: Api, query: str = "") -> list[dict[str, Any]]:
    reply = await api.get(f"/callbacks/test/{query}")
    assert reply.outcome == (0, "Found list of callbacks")
    found: list[dict[str, Any]] = reply.json["callbacks"]
    return found


async def test_callbacks_are_listed_with_what_came_of_them(lab: Api) -> None:
    sent, given_up, waiting = [await graded(lab, version=n) for n in (1, 2, 3)]
    await lab.queue.delivered(sent, "204")
    await lab.queue.defer(given_up, "503", None)
    assert [(c["id"], c["state"], c["last"] and c["last"].split("|")[1]) for c in await callbacks(lab)] == [
        (waiting, "pending", None), (given_up, "unsent", "503"), (sent, "delivered", "204"),
    ]  # fmt: skip
    assert [c["id"] for c in await callbacks(lab, "?unsent=1")] == [given_up]
    first = (await callbacks(lab))[0]
    assert first["due"] and first["tries"] == 0 and first["url"].startswith("http://autolab.example/")
    assert "test-lab" not in json.dumps(await callbacks(lab))


async def test_one_callback_is_shown_with_each_try(lab: Api) -> None:
    job_id = await graded(lab)
    for said in ("503", "connection refused"):
        await lab.queue.defer(job_id, said, 60)
    [found] = (await lab.get(f"/callbacks/test/{job_id}/")).json["callbacks"]
    assert [line.split("|")[1] for line in found["log"]] == ["503", "connection refused"]
    for unknown in ("999", "0", "9" * 18):
        reply = await lab.get(f"/callbacks/test/{unknown}/")
        assert reply.outcome == (-1, "The job is not known, or has no callback")
    assert (await lab.get("/callbacks/test/abc/")).outcome == (-1, "Bad job id: expected a number")


async def test_a_callback_is_sent_again_by_hand(lab: Api) -> None:
    job_id = await graded(lab)
    await lab.queue.delivered(job_id, "204")
    assert (await lab.post(f"/callbacks/test/{job_id}/")).outcome == (0, "The callback is sent again")
    assert [due.id for due in await lab.queue.due(10, 60)] == [job_id]
    quiet = await submit(lab, version=2, callback_url="")
    assert (await lab.post(f"/callbacks/test/{quiet}/")).message.startswith("The job has not ended yet")
    await lab.end(b"x")
    assert (await lab.post(f"/callbacks/test/{quiet}")).outcome == (-1, "The job has no callback")
    assert (await lab.post("/callbacks/test/999/")).outcome == (-2, "Job not found")


@pytest.mark.parametrize("settings", [{"callbacks": {"allow": ("autolab.example",)}}], indirect=True)
@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://autolab.example/cb", True),
        ("https://AUTOLAB.example:8443/cb", True),
        ("http://autolab.example.evil.example/cb", False),
        ("http://autolab.example@evil.example/cb", False),
        ("http://127.0.0.1:6379/", False),
        ("http://autolab.example:99999/", False),
        ("", True),
    ],
)
async def test_a_callback_that_would_be_refused_is_refused_at_once(lab: Api, url: str, allowed: bool) -> None:
    reply = await lab.add(callback_url=url)
    if allowed:
        assert reply.outcome == (0, "Job added")
    else:
        assert reply.message[0].endswith("|validateJob: Bad callback_url: callbacks may not go to that host")
        assert await lab.queue.live(10) == []


async def test_a_submitter_is_erased_with_all_there_is_and_nobody_else(lab: Api) -> None:
    done, waits = await graded(lab), await submit(lab, version=2)
    other = await submit(lab, OTHER)
    reply = await erase(lab)
    assert reply.json["erased"] | {"bytes": 0} == {"jobs": 2, "callbacks": 2, "files": 3, "bytes": 0, "running": 0}
    assert reply.message == "Erased 2 jobs and 3 files"
    for job_id in (done, waits):
        assert await lab.queue.job(job_id) is None
    assert (await lab.get(f"/poll/test/lab/{output(ME)}")).message == "Output file not found"
    folder = lab.settings.store.labs
    left = [path.name for path in folder.rglob("*") if path.is_file()]
    assert not [name for name in left if name.startswith(ME)]
    assert f"{OTHER}_1_hello.sh" in left and "hello.sh" in left
    assert ME.encode() not in b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file()).replace(
        OTHER.encode(), b""
    )
    assert [job.id for job in await lab.queue.live(10)] == [other]
    assert await lab.queue.next_due_s() is None


async def test_erasing_again_is_no_error_and_nothing_is_left_in_redis(lab: Api) -> None:
    await graded(lab)
    await erase(lab)
    assert (await erase(lab)).json["erased"] == {"jobs": 0, "callbacks": 0, "files": 0, "bytes": 0, "running": 0}
    prefix = lab.queue._prefix
    for key in await lab.queue._server.command("KEYS", f"{prefix}*"):
        assert ME.encode() not in key
        assert ME.encode() not in await lab.queue._server.command("DUMP", key)


async def test_a_running_job_is_ended_first(lab: Api) -> None:
    job_id = await submit(lab)
    claim = await claim_one(lab.queue, instance="host#1")
    assert claim is not None
    erasing = asyncio.create_task(erase(lab))
    async with asyncio.timeout(60):
        while (await lab.queue.extend([(claim.id, claim.seq)]))[0] != "CANCEL":
            await asyncio.sleep(0.02)
    await lab.store.put_output(f"{job_id}.{claim.seq}.cancelled", b"what it said of " + ME.encode())
    await lab.queue.end(claim, Verdict.CANCELLED, "x", f"{job_id}.{claim.seq}.cancelled")
    reply = await erasing
    assert (reply.json["erased"]["jobs"], reply.json["erased"]["running"]) == (1, 0)
    with pytest.raises(NotFound):
        await lab.store.output(f"{job_id}.{claim.seq}.cancelled")


async def test_a_job_that_does_not_end_is_told_and_left_for_the_next_time(
    lab: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "WAIT_S", 0.1)
    job_id = await submit(lab)
    claim = await claim_one(lab.queue, instance="host#1")
    assert claim is not None
    reply = await erase(lab)
    assert reply.message.endswith("; 1 jobs have not ended yet: erase again")
    job = await lab.queue.job(job_id)
    assert job is not None and job.state is JobState.ASSIGNED
    await lab.queue.end(claim, Verdict.CANCELLED, "x", "")
    assert (await erase(lab)).json["erased"]["running"] == 0
    assert await lab.queue.job(job_id) is None


@pytest.mark.parametrize("where", ["unpin", "drop_output", "erase"])
async def test_an_erasure_that_was_cut_off_is_done_by_doing_it_again(
    lab: Api, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    await graded(lab)
    await submit(lab, version=2)

    async def fail(*_: object) -> None:
        raise StoreFull("now")

    with monkeypatch.context() as patch:
        patch.setattr(lab.store, where, fail)
        assert (await erase(lab)).status == 507
    assert (await erase(lab)).json["statusId"] == 0
    left = [path.name for path in lab.settings.store.labs.rglob("*") if path.is_file()]
    assert not [name for name in left if ME in name and OTHER not in name]
    assert list((lab.settings.store.labs / ".tango" / "pins").iterdir()) == []
    assert await lab.queue.dead(10) == await lab.queue.live(10) == []


@pytest.mark.parametrize(
    "who", ["", "@", "a", "a@", "@b", "*@*/", "../x@y", "a@b_c", "a b@c", "a@b\n", "x" * 300 + "@y", "a@b@c", "%@.."]
)
async def test_what_is_no_address_erases_nothing(lab: Api, who: str) -> None:
    await graded(lab)
    reply = await erase(lab, who)
    assert reply.json["statusId"] == (0 if who == "%@.." else -1)
    assert len(await lab.queue.dead(10)) == 1


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b"null", b'{"submitter": null}', b'{"submitter": ["a@b"]}', b"\xff"]
)
async def test_a_wrong_order_to_erase_is_refused_in_tangos_shape(lab: Api, body: bytes) -> None:
    reply = await lab.post("/erase/test/", body)
    assert (reply.status, reply.json["statusId"]) == (200, -1)


@pytest.mark.parametrize(
    ("job_name", "output_name", "is_mine"),
    [
        ("course_lab_1_a@x.edu", "a@x.edu_1_lab_autograde.txt", True),
        ("whatever", "a@x.edu_1_lab_autograde.txt", True),
        ("course_lab_1_a@x.edu", "result.txt", True),
        ("job_a@x.edu", "result.txt", True),
        ("a@x.edu", "result.txt", True),
        ("course_lab_1_b_a@x.edu", "result.txt", False),
        ("course_lab_1_ba@x.edu", "result.txt", False),
        ("course_lab_1_b_a@x.edu", "b_a@x.edu_1_lab_autograde.txt", False),
        ("course_lab_1_a@x.edu", "c@x.edu_1_lab_autograde.txt", False),
        ("course_lab_1_a@x.edu.org", "a@x.edu.org_1_lab", False),
        ("course_a@x.edu_1_c@x.edu", "result.txt", False),
        ("", "", False),
    ],
)
def test_whose_a_job_is(job_name: str, output_name: str, is_mine: bool) -> None:
    assert is_job_of("a@x.edu", job_name, output_name) is is_mine
