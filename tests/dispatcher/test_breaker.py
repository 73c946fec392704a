"""A host that can start no job: it stops eating them, says so, tries again, and no student can bring it to that."""

from __future__ import annotations

import asyncio
import logging

import pytest

from dispatcher.conftest import Bench
from support.api import serving
from support.fake_vmms import IMAGE
from tango_async.model import EVERY_IMAGE, DispatcherRecord, JobState, Verdict

OTHER = "other_image"


@pytest.fixture
def host(bench: Bench) -> Bench:
    """Two images, three faults, and a try soon."""
    bench.engine.images.append(OTHER)
    bench.change(pause_after_faults=3, try_again_s=0.1, job_retries=0)
    return bench


def break_all(bench: Bench) -> None:
    bench.engine.broken = dict.fromkeys(bench.engine.images, "runc: exec format error")


async def record_of(bench: Bench) -> DispatcherRecord:
    (record,) = await bench.queue.dispatchers()
    return record


async def shut_of(bench: Bench, *names: str, within_s: float = 60.0) -> DispatcherRecord:
    """The record, when it tells that exactly these are shut."""
    async with asyncio.timeout(within_s):
        while True:
            record = await record_of(bench)
            if record.shut.keys() == set(names):
                return record
            await asyncio.sleep(0.02)


async def fail(bench: Bench, *images: str) -> None:
    for image in images:
        job, _ = await bench.grade("exit 0", image=image)
        assert job.verdict in (Verdict.OS_ERROR, Verdict.GAVE_UP)


async def test_a_host_that_starts_no_job_takes_no_more_and_says_so(
    host: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    host.change(try_again_s=100)
    await host.start()
    break_all(host)
    await fail(host, IMAGE, OTHER, IMAGE)
    record = await shut_of(host, EVERY_IMAGE)
    assert "3 jobs in a row could not be started here" in record.problem and "exec format error" in record.problem
    assert [r for r in caplog.records if r.levelno == logging.ERROR and "no job is taken for 100 s" in r.getMessage()]
    tries, waiting = host.engine.tries, await host.add("exit 0")
    host.engine.broken = {}
    assert (await host.queue.waiting()) == {IMAGE: 1} and host.engine.tries == tries
    await host.queue.pause("install", False)
    assert (await host.until(waiting)).verdict is Verdict.SUCCESS
    assert not (await shut_of(host)).problem


async def test_a_host_that_starts_no_job_hinders_no_upload_and_no_addjob(host: Bench) -> None:
    host.change(try_again_s=100)
    await host.start()
    break_all(host)
    await fail(host, IMAGE, OTHER, IMAGE)
    await shut_of(host, EVERY_IMAGE)
    async with serving(host.settings) as api:
        await api.ready_lab()
        assert (await api.get("/open/test/lab/")).json["files"].keys() == {"autograde-Makefile", "hello.sh"}
        ids = [(await api.add(output_file=name, callback_url="")).json["jobId"] for name in ("one", "two")]
        assert ids == [4, 5]
        host.engine.broken = {}
        await host.queue.pause("install", False)
        assert [(await host.until(job_id)).verdict for job_id in ids] == [Verdict.SUCCESS] * 2


async def test_one_job_is_tried_after_a_growing_time_and_opens_it_again(host: Bench) -> None:
    await host.start()
    break_all(host)
    await fail(host, IMAGE, OTHER, OTHER)
    await shut_of(host, EVERY_IMAGE)
    tries = host.engine.tries
    await fail(host, IMAGE)
    await fail(host, IMAGE)
    assert host.engine.tries == tries + 2
    await shut_of(host, EVERY_IMAGE, IMAGE)
    host.engine.broken = {}
    ids = [await host.add("exit 0") for _ in range(4)]
    for job_id in ids:
        assert (await host.until(job_id)).verdict is Verdict.SUCCESS
    await shut_of(host)


async def test_an_image_that_is_broken_hinders_no_other(host: Bench) -> None:
    host.change(try_again_s=100)
    await host.start()
    host.engine.broken = {OTHER: "no shell in it"}
    await fail(host, OTHER, OTHER, OTHER)
    record = await shut_of(host, OTHER)
    waiting = await host.add("exit 0", image=OTHER)
    for _ in range(3):
        job, _ = await host.grade("exit 0")
        assert job.verdict is Verdict.SUCCESS
    assert record.healthy
    job = await host.queue.job(waiting)
    assert job is not None and job.state is JobState.QUEUED


@pytest.mark.parametrize("script", ["exit 1", "timer", "lose", "unstarted", "crash", "flood 2000000"])
async def test_nothing_that_a_student_does_shuts_a_host(host: Bench, script: str) -> None:
    await host.start()
    for _ in range(5):
        await host.grade(script)
    job, _ = await host.grade("exit 0")
    assert job.verdict is Verdict.SUCCESS
    assert not (await record_of(host)).shut


async def test_a_job_that_begins_ends_the_row(host: Bench) -> None:
    host.change(try_again_s=100)
    await host.start()
    for _ in range(3):
        break_all(host)
        await fail(host, IMAGE, OTHER)
        host.engine.broken = {}
        await host.grade("exit 0")
        await host.grade("exit 0", image=OTHER)
    assert not (await record_of(host)).shut


async def test_it_can_be_turned_off(host: Bench) -> None:
    host.change(pause_after_faults=0)
    await host.start()
    break_all(host)
    await fail(host, *[IMAGE, OTHER] * 4)
    assert not (await record_of(host)).shut
