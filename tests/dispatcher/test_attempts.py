"""Every way a job can end, on machines that fail on cue."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from dispatcher.conftest import Bench
from support.fake_vmms import IMAGE, FakeMachine, FakeVmms
from tango_async.dispatcher import attempt
from tango_async.errors import MachineReclaimed, NoCapacity, StoreUnavailable, Unsuitable, VmmsError
from tango_async.machine import Exit
from tango_async.model import JobState, PoolOrder, Verdict
from tango_async.queue.redis import Cancelled


async def test_a_job_is_graded_and_its_feedback_has_tangos_form(bench: Bench) -> None:
    await bench.start()
    job, feedback = await bench.grade("say hello\nexit 0")
    assert job.verdict is Verdict.SUCCESS
    lines = feedback.splitlines()
    assert lines[0].endswith(f"]: Received job course_lab_1_student@example.edu:{job.id}")
    assert lines[1].endswith("]: Success: Autodriver returned normally")
    assert lines[2].endswith("]: Here is the output from the autograder:")
    assert lines[3:] == ["---", "Autodriver: Job exited with status 0", "hello"]
    shown = bench.settings.store.labs / job.spec.lab / "output" / job.spec.output_name
    await bench.until_true(shown.exists)
    assert shown.read_text() == feedback


async def test_a_failing_program_is_a_job_that_returned_normally(bench: Bench) -> None:
    await bench.start()
    job, feedback = await bench.grade("exit 2")
    assert job.verdict is Verdict.SUCCESS
    assert "Autodriver: Job exited with status 2\n" in feedback


async def test_the_machines_own_timer_is_a_timeout_with_the_output_so_far(bench: Bench) -> None:
    await bench.start()
    job, feedback = await bench.grade("say before\ntimer", timeout_s=7)
    assert job.verdict is Verdict.TIMEOUT
    assert "Error: Job timed out after 7 seconds" in feedback
    assert feedback.endswith("Autodriver: Job timed out after 7 seconds\nbefore\n")


async def test_a_machine_that_does_not_end_by_itself_is_ended(bench: Bench) -> None:
    await bench.start()
    job, feedback = await bench.grade("say before\nhang", timeout_s=1)
    assert job.verdict is Verdict.TIMEOUT
    assert feedback.endswith("before\n")


async def test_a_program_that_ended_while_the_dispatcher_hung_is_not_out_of_time(bench: Bench) -> None:
    await bench.start()
    job_id = await bench.add("say begun\nsleep 0.5\nsay done\nexit 0", timeout_s=1)
    await bench.until_true(lambda: bench.engine.starts == 1)
    time.sleep(2.5 + FakeVmms.OVERTIME_S)  # past the deadline, and all that a machine may take beyond it
    job = await bench.until(job_id)
    assert job.verdict is Verdict.SUCCESS
    assert (await bench.feedback(job)).endswith("begun\ndone\n")


async def test_output_without_end_stops_the_job_and_keeps_both_ends(bench: Bench) -> None:
    await bench.start()
    job, feedback = await bench.grade("say first\nflood 5000000\nhang", output_bytes=1000)
    assert job.verdict is Verdict.OUTPUT_TOO_LONG
    assert "first" in feedback
    assert "...[excess bytes elided]..." in feedback
    assert len(feedback) < 2000


async def test_a_machine_that_is_lost_is_replaced_and_not_for_ever(bench: Bench) -> None:
    await bench.start()
    job, feedback = await bench.grade("lose")
    assert (job.verdict, job.attempts, job.retries) == (Verdict.OS_ERROR, 3, 2)
    assert "Error: OS error while running job on VM" in feedback
    assert job.trace[-1].text == "Error: OS error while running job on VM"


async def test_a_program_that_never_starts_ends_with_a_reason(bench: Bench) -> None:
    await bench.start()
    job, feedback = await bench.grade("unstarted")
    assert job.verdict is Verdict.GAVE_UP
    assert "Internal error: Unable to complete job after 3 tries. The program could not be started." in feedback


async def test_a_defect_of_ours_ends_the_job_and_prints_no_exception(bench: Bench) -> None:
    await bench.start()
    job, feedback = await bench.grade("crash")
    assert job.verdict is Verdict.GAVE_UP
    assert "defect" not in feedback
    assert "The service failed." in feedback


async def test_a_machine_that_cannot_be_made_is_tried_again(bench: Bench) -> None:
    bench.change(machine_wait_s=0.5)
    bench.engine.refuse_creation = [VmmsError("no room"), VmmsError("no room")]
    await bench.start()
    job, _ = await bench.grade("exit 0")
    assert (job.verdict, job.attempts) == (Verdict.SUCCESS, 3)
    # The two that were made although the call failed are found and removed.
    await bench.until_true(lambda: not bench.engine.machines)


async def test_a_defect_met_while_machines_are_prepared_stops_nothing(bench: Bench) -> None:
    bench.change(machine_wait_s=0.5)
    bench.engine.refuse_creation = [OverflowError("a defect")]
    await bench.queue.want_pool(IMAGE, PoolOrder(size=1))
    await bench.start()
    await bench.until_true(lambda: not bench.engine.refuse_creation)
    job, _ = await bench.grade("exit 0")
    assert job.verdict is Verdict.SUCCESS
    await bench.queue.want_pool(IMAGE, PoolOrder(size=0))
    await bench.until_true(lambda: not bench.engine.machines)


async def test_a_missing_input_is_told_and_not_repeated(bench: Bench) -> None:
    job_id = await bench.add("exit 0")
    job = await bench.queue.job(job_id)
    assert job is not None
    await bench.store.unpin(job.spec.pin)
    await bench.start()
    job = await bench.until(job_id)
    assert (job.verdict, job.attempts) == (Verdict.COPY_IN_FAILED, 1)
    assert "Error: Copy in to VM failed" in await bench.feedback(job)


async def test_no_job_is_claimed_while_the_engine_is_down(bench: Bench) -> None:
    await bench.start()
    bench.engine.up = False
    async with asyncio.timeout(60):
        while not (records := await bench.queue.dispatchers()) or records[0].healthy:
            await asyncio.sleep(0.01)
    job_id = await bench.add("exit 0")
    await asyncio.sleep(0.5)
    job = await bench.queue.job(job_id)
    assert job is not None
    assert (job.state, job.attempts, job.retries) == (JobState.QUEUED, 0, 0)
    bench.engine.up = True
    assert (await bench.until(job_id)).verdict is Verdict.SUCCESS


async def test_a_running_job_is_cancelled_once_and_its_machine_is_gone(bench: Bench) -> None:
    await bench.start()
    job_id = await bench.add("say before\nhang", timeout_s=60)
    await bench.until(job_id, JobState.RUNNING)
    assert await bench.queue.cancel(job_id) is Cancelled.REQUESTED
    job = await bench.until(job_id)
    assert job.verdict is Verdict.CANCELLED
    assert "Error: Job was cancelled" in await bench.feedback(job)
    await bench.until_true(lambda: not bench.engine.machines)


async def test_a_job_that_waits_for_its_machine_is_cancelled_at_once(bench: Bench) -> None:
    bench.engine.boot_s = 3600.0
    await bench.start()
    waits = await bench.add("say never", timeout_s=60)
    await bench.until_true(lambda: bench.engine.tries == 1)
    assert await bench.queue.cancel(waits) is Cancelled.REQUESTED
    job = await bench.until(waits)
    assert (job.verdict, bench.engine.starts) == (Verdict.CANCELLED, 0)
    assert "Error: Job was cancelled" in await bench.feedback(job)
    await bench.until_true(lambda: not bench.engine.machines)
    bench.engine.boot_s = 0.0
    other, _ = await bench.grade("say other")
    assert other.verdict is Verdict.SUCCESS


async def test_the_output_so_far_can_be_seen(bench: Bench) -> None:
    await bench.start()
    job_id = await bench.add("say one\nwait\nsay two\nhang")
    for shown in (b"one\n", b"one\ntwo\n"):
        async with asyncio.timeout(60):
            while await bench.queue.partial_output(job_id) != shown:
                await asyncio.sleep(0.02)
        bench.engine.go.set()
    await bench.queue.cancel(job_id)
    await bench.until(job_id)
    assert await bench.queue.partial_output(job_id) == b""


async def test_a_job_that_waits_for_its_slots_is_cancelled_at_once(bench: Bench) -> None:
    await bench.start()
    small = await bench.add("hang", timeout_s=30)
    await bench.until(small, JobState.RUNNING)
    large = await bench.add("say large", cores=2.0)
    await bench.until(large, JobState.ASSIGNED)
    await bench.queue.cancel(large)
    assert (await bench.until(large)).verdict is Verdict.CANCELLED
    other, _ = await bench.grade("say other")
    assert other.verdict is Verdict.SUCCESS
    await bench.queue.cancel(small)
    await bench.until(small)


async def test_slots_bound_what_runs_at_a_time(bench: Bench) -> None:
    await bench.start()
    ids = [await bench.add("hang") for _ in range(6)]

    def running() -> list[FakeMachine]:
        return [m for m in bench.engine.machines.values() if m.task is not None and not m.ended.done()]

    for ended in range(len(ids) - 1):
        await bench.until_true(lambda ended=ended: bench.engine.starts == ended + 2)
        assert len(running()) == 2
        running()[0].end(Exit(code=0))
    await bench.until_true(lambda: len(running()) == 1)
    running()[0].end(Exit(code=0))
    for job_id in ids:
        assert (await bench.until(job_id)).verdict is Verdict.SUCCESS


async def test_a_cancel_at_the_instant_of_completion_has_one_outcome(bench: Bench) -> None:
    """What the one who cancelled was told is what became of the job."""
    await bench.start()
    means = {
        Cancelled.CANCELLED: Verdict.CANCELLED,
        Cancelled.REQUESTED: Verdict.CANCELLED,
        Cancelled.COMPLETED: Verdict.SUCCESS,
    }
    told: Counter[Cancelled] = Counter()
    length_s = 0.05
    for n in range(60):
        starts = bench.engine.starts
        job_id = await bench.add(f"say one\nsleep {length_s}\nexit 0")
        if n % 6:
            await bench.until_true(lambda starts=starts: bench.engine.starts > starts)
        answer, again = await asyncio.gather(bench.queue.cancel(job_id), bench.queue.cancel(job_id))
        job = await bench.until(job_id)
        assert job.verdict is means[answer], (n, answer, job)
        assert again in (answer, Cancelled.COMPLETED)
        ends = [line for line in job.trace if line.text.startswith(("Success", "Error"))]
        assert len(ends) == 1, job.trace
        assert await bench.queue.cancel(job_id) is Cancelled.COMPLETED
        told[answer] += 1
        # Whatever the machine takes for a cancel, the next job takes about as long.
        length_s *= 1.5 if answer is Cancelled.COMPLETED else 0.7
    assert told[Cancelled.REQUESTED] and told[Cancelled.COMPLETED], told


async def test_a_job_waits_for_a_file_store_that_is_away_and_is_charged_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, tries, checks = True, 0, 0
    monkeypatch.setattr(attempt, "PAUSE_S", 0.05)

    async def gone() -> AsyncIterator[bytes]:
        nonlocal tries
        tries += 1
        raise StoreUnavailable("the store does not answer")
        yield b""

    async def check() -> None:
        nonlocal checks
        checks += 1
        if away:
            raise StoreUnavailable("the store does not answer")

    inputs = bench.store.inputs
    monkeypatch.setattr(bench.store, "check", check)
    monkeypatch.setattr(
        bench.store, "inputs", lambda *of: [replace(one, chunks=gone) if away else one for one in inputs(*of)]
    )
    await bench.start()
    job_id = await bench.add("exit 0")
    await bench.until_true(lambda: checks >= 4)
    assert tries == 1
    away = False
    job = await bench.until(job_id)
    assert (job.verdict, job.retries) == (Verdict.SUCCESS, 0)


async def test_what_can_never_be_had_ends_the_job_with_its_reason(bench: Bench) -> None:
    bench.engine.refuse_creation = [Unsuitable("addJob's ami: there is none")]
    await bench.start()
    job, feedback = await bench.grade("say hello")
    assert job.verdict is Verdict.GAVE_UP and (job.attempts, job.retries) == (1, 0)
    assert "Unable to complete job after 1 tries. addJob's ami: there is none." in feedback
    bench.engine.machines.clear()  # what a refused creation leaves is the strays' affair


async def test_a_cloud_without_room_and_one_that_takes_back_are_no_faults_of_the_job(bench: Bench) -> None:
    bench.change(job_retries=0)
    bench.engine.refuse_creation = [NoCapacity("full"), MachineReclaimed("taken"), NoCapacity("full")]
    await bench.start()
    job, feedback = await bench.grade("say hello")
    assert job.verdict is Verdict.SUCCESS and (job.attempts, job.retries) == (4, 0)
    assert feedback.endswith("hello\n")
    bench.engine.machines.clear()
