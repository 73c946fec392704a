"""What a dispatcher leaves behind when it stops, dies, or is cut off; and what its next life makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.conftest import Bench
from support.fake_vmms import IMAGE, QuietVmms
from tango_async.dispatcher import attempt, cores
from tango_async.errors import StoreFull
from tango_async.model import JobState, PoolOrder, Verdict
from tango_async.queue.bells import Bells


async def test_a_stop_lets_running_jobs_finish_and_claims_no_more(bench: Bench) -> None:
    bench.change(slots=1)
    await bench.start()
    first, second = await bench.add("wait"), await bench.add("exit 0")
    await bench.until(first, JobState.RUNNING)
    asyncio.get_running_loop().call_later(0.2, bench.engine.go.set)
    await bench.finish()
    assert bench.engine.go.is_set()
    assert (await bench.until(first)).verdict is Verdict.SUCCESS
    await bench.until(second, JobState.QUEUED)


async def test_a_lease_is_extended_more_than_once_before_it_is_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    listened_s: list[float] = []
    wait = Bells.wait_control

    async def wait_control(bells: Bells, instance: str, timeout_s: float) -> bool:
        listened_s.append(timeout_s)
        return await wait(bells, instance, timeout_s)

    monkeypatch.setattr(Bells, "wait_control", wait_control)
    bench.beat_s = None
    bench.change(lease_s=3.0)
    await bench.start()
    await bench.until_true(lambda: len(listened_s) >= 2)
    assert max(listened_s) < 3.0 / 2


async def test_a_dispatcher_that_has_stopped_keeps_no_connection(bench: Bench) -> None:
    async def connections() -> int:
        return len((await bench.queue._command("CLIENT", "LIST")).splitlines())

    before = await connections()
    bench.beat_s = 0.005  # it stops listening by itself while it is about to be woken
    for _ in range(20):
        await bench.start()
        await bench.finish()
    async with asyncio.timeout(60):
        while await connections() > before:
            await asyncio.sleep(0.01)


async def test_after_the_grace_a_running_job_is_handed_over_and_runs_once(bench: Bench) -> None:
    bench.change(grace_s=0.1)
    await bench.start()
    job_id = await bench.add("say one\nwait\nsay two\nexit 0")
    await bench.until_true(lambda: bench.engine.starts == 1)
    await bench.finish()
    await bench.until(job_id, JobState.RUNNING)
    bench.change(grace_s=5.0)
    await bench.start()
    bench.engine.go.set()
    job = await bench.until(job_id)
    assert (job.verdict, job.retries, bench.engine.starts) == (Verdict.SUCCESS, 0, 1)
    assert (await bench.feedback(job)).endswith("one\ntwo\n")
    await bench.until_true(lambda: not bench.engine.machines)


async def test_a_quiet_job_runs_on_though_its_next_dispatcher_stops_as_soon_as_it_has_found_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (online := tmp_path / "online").write_text("0-1")
    monkeypatch.setattr(cores, "ONLINE", online)
    counting = asyncio.Event()
    counting.set()
    bench.vmms = lambda _: QuietVmms(bench.engine, counting)
    bench.change(grace_s=0.1, quiet_cores="1")
    await bench.start()
    job_id = await bench.add("say one\nwait\nexit 0", quiet=True)
    await bench.until_true(lambda: bench.engine.starts == 1)
    await bench.finish()
    counting.clear()  # the engine is slow
    await bench.start()
    await bench.finish()
    assert len(bench.engine.machines) == 1
    counting.set()
    bench.change(grace_s=5.0)
    await bench.start()
    bench.engine.go.set()
    job = await bench.until(job_id)
    assert (job.verdict, job.attempts, bench.engine.starts) == (Verdict.SUCCESS, 1, 1)


async def test_where_nothing_can_be_adopted_the_job_is_given_back_uncharged(bench: Bench) -> None:
    bench.change(grace_s=0.1)
    await bench.start(adopt=False)
    job_id = await bench.add("say one\nhang", timeout_s=60)
    await bench.until_true(lambda: bench.engine.starts == 1)
    await bench.finish()
    job = await bench.until(job_id, JobState.QUEUED)
    assert (job.retries, bench.engine.machines) == (0, {})


async def test_machines_that_nobody_owns_are_removed_at_the_start(bench: Bench) -> None:
    bench.change(grace_s=0.1)
    await bench.start()
    job_id = await bench.add("hang", timeout_s=60)
    await bench.until_true(lambda: bench.engine.starts == 1)
    await bench.finish()
    assert len(bench.engine.machines) == 1
    await bench.queue.cancel(job_id)
    bench.change(grace_s=5.0)
    await bench.start()
    await bench.until(job_id)
    await bench.until_true(lambda: not bench.engine.machines)


async def test_prepared_machines_are_kept_ready_and_replaced(bench: Bench) -> None:
    await bench.start()
    await bench.queue.want_pool(IMAGE, PoolOrder(size=2))
    await bench.until_true(lambda: len(bench.engine.machines) == 2)
    made = bench.engine.made
    assert (await bench.grade("exit 0", network=False))[0].verdict is Verdict.SUCCESS
    await bench.until_true(lambda: bench.engine.made > made)
    await bench.until_true(lambda: len(bench.engine.machines) == 2)
    await bench.queue.want_pool(IMAGE, PoolOrder(size=0))
    await bench.until_true(lambda: not bench.engine.machines)


async def test_an_ordered_image_is_loaded_and_the_verdict_told(bench: Bench) -> None:
    bench.engine.loads = True
    await bench.start()
    good, bad = [await bench.store.put_image(body(content)) for content in (b"an image", b"something else")]
    await bench.queue.ask_build("mine", good)
    await bench.queue.ask_build("broken", bad)
    verdicts: list[str | None] = [None, None]
    async with asyncio.timeout(60):
        while None in verdicts:
            verdicts = [await bench.queue.build_verdict("mine", good), await bench.queue.build_verdict("broken", bad)]
            await asyncio.sleep(0.02)
    assert verdicts == ["", "not an image"]
    assert (await bench.grade("exit 0", image="mine"))[0].verdict is Verdict.SUCCESS


async def body(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def test_a_machine_that_takes_long_to_make_is_no_stray(bench: Bench) -> None:
    bench.engine.slow_s = 1.0
    await bench.start()
    job, _ = await bench.grade("exit 0")
    assert (job.verdict, job.attempts) == (Verdict.SUCCESS, 1)


async def test_prepared_machines_that_their_engine_lost_cost_a_job_nothing(bench: Bench) -> None:
    await bench.start()
    await bench.queue.want_pool(IMAGE, PoolOrder(size=3))
    await bench.until_true(lambda: len(bench.engine.machines) == 3)
    bench.engine.machines.clear()
    job, _ = await bench.grade("exit 0", network=False)
    assert (job.verdict, job.attempts) == (Verdict.SUCCESS, 1)
    await bench.queue.want_pool(IMAGE, PoolOrder(size=0))
    await bench.until_true(lambda: not bench.engine.machines)


async def test_a_job_that_ended_while_nobody_looked_is_not_late(bench: Bench) -> None:
    bench.change(grace_s=0.1)
    await bench.start()
    job_id = await bench.add("say one\nwait\nexit 0", timeout_s=30)
    await bench.until_true(lambda: bench.engine.starts == 1)
    await bench.finish()
    bench.engine.go.set()
    (machine,) = bench.engine.machines.values()
    await machine.ended
    # That was long after its time.
    await bench.queue._command("HINCRBY", f"{bench.queue._prefix}job:{job_id}", "started_ms", -60_000)
    bench.change(grace_s=5.0)
    await bench.start()
    job = await bench.until(job_id)
    assert (job.verdict, bench.engine.starts) == (Verdict.SUCCESS, 1)


async def test_a_cancel_while_the_disk_is_full_ends_the_job_when_there_is_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, full, tries = bench.store.put_output, True, 0
    monkeypatch.setattr(attempt, "PAUSE_S", 0.05)

    async def put_output(ref: str, body: bytes) -> None:
        nonlocal tries
        tries += 1
        if full:
            raise StoreFull("no space left")
        await put(ref, body)

    monkeypatch.setattr(bench.store, "put_output", put_output)
    await bench.start()
    job_id = await bench.add("exit 0")
    await bench.until_true(lambda: tries > 0)
    await bench.queue.cancel(job_id)
    before = tries
    await bench.until_true(lambda: tries >= before + 3)
    await bench.until(job_id, JobState.RUNNING)
    full = False
    assert (await bench.until(job_id)).verdict is Verdict.CANCELLED


async def test_redis_out_of_memory_for_a_while_loses_nothing(bench: Bench) -> None:
    await bench.start()
    job_id = await bench.add("wait\nexit 0")
    await bench.until(job_id, JobState.RUNNING)
    await bench.queue._command("CONFIG", "SET", "maxmemory", 1)
    try:
        await extended(bench, job_id)
        bench.engine.go.set()
        await asyncio.sleep(0.5)
        assert bench.running is not None
        assert not bench.running.done()
    finally:
        await bench.queue._command("CONFIG", "SET", "maxmemory", 0)
    job = await bench.until(job_id)
    assert (job.verdict, job.attempts, bench.engine.starts) == (Verdict.SUCCESS, 1, 1)


async def extended(bench: Bench, job_id: int) -> None:
    """Until its lease was extended once more."""

    async def over_at() -> float:
        return float(await bench.queue._command("ZSCORE", f"{bench.queue._prefix}held", job_id))

    before = await over_at()
    async with asyncio.timeout(60):
        while await over_at() <= before:
            await asyncio.sleep(0.02)


async def test_a_job_that_redis_out_of_memory_does_not_let_start_goes_on_when_there_is_room(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.engine.may_make.clear()
    await bench.start()
    job_id = await bench.add("exit 0")
    await bench.until(job_id, JobState.ASSIGNED)
    await bench.queue._command("CONFIG", "SET", "maxmemory", 1)
    try:
        bench.engine.may_make.set()
        await bench.until_true(lambda: "trying again" in caplog.text)
        await extended(bench, job_id)
        await bench.until(job_id, JobState.ASSIGNED)
    finally:
        await bench.queue._command("CONFIG", "SET", "maxmemory", 0)
    job = await bench.until(job_id)
    assert (job.verdict, job.attempts, job.retries, bench.engine.starts) == (Verdict.SUCCESS, 1, 0, 1)
