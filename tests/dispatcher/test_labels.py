"""Jobs that require labels, on dispatchers: who takes them, how soon, and with what machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.conftest import Bench
from support.fake_vmms import FakeVmms
from tango_async.dispatcher.offers import labels_of
from tango_async.model import JobState


async def test_a_job_waits_for_a_host_that_has_what_it_requires(bench: Bench) -> None:
    bench.change(labels=("avx512",))
    await bench.start()
    waiting = await bench.add("exit 0", requires=("gpu",))
    await bench.grade("exit 0", requires=("avx512",))
    await bench.grade("exit 0")
    job = await bench.queue.job(waiting)
    assert job is not None and job.state is JobState.QUEUED
    await bench.finish()
    bench.change(labels=("avx512", "gpu"))
    bench.vmms = lambda adopt: with_gpu(FakeVmms(bench.engine, adopt=adopt))
    await bench.start()
    await bench.until(waiting)


async def test_a_class_that_was_never_seen_is_noticed_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tango_async.dispatcher.claiming.LISTEN_S", 600.0)  # who listens is told of it
    bench.change(labels=("avx512", "fpga"))
    await bench.start()
    for labels in (("avx512",), ("fpga",), ("avx512", "fpga")):
        await bench.grade("exit 0", requires=labels)


async def test_only_jobs_that_require_a_gpu_have_one(bench: Bench) -> None:
    specs = []
    vmms = with_gpu(FakeVmms(bench.engine))
    make = vmms.initialize_vm

    async def noted(spec, owner):  # type: ignore[no-untyped-def]
        specs.append(spec)
        return await make(spec, owner)

    vmms.initialize_vm = noted  # type: ignore[method-assign]
    bench.vmms = lambda adopt: vmms
    await bench.start()
    await bench.grade("exit 0", requires=("gpu",))
    await bench.grade("exit 0")
    assert [spec.gpu for spec in specs] == [True, False]


@pytest.mark.parametrize(
    ("configured", "gpu", "offered"),
    [
        ((), False, ()),
        (("b", "a", "b"), False, ("a", "b")),
        (("gpu", "a"), False, ("a",)),
        (("a",), True, ("a", "gpu")),
    ],
)
def test_a_gpu_is_offered_where_the_vmms_gives_one(
    bench: Bench, configured: tuple[str, ...], gpu: bool, offered: tuple[str, ...]
) -> None:
    vmms = FakeVmms(bench.engine)
    assert labels_of(configured, with_gpu(vmms) if gpu else vmms) == offered


def with_gpu(vmms: FakeVmms) -> FakeVmms:
    vmms.capabilities = replace(vmms.capabilities, gpu=True)
    return vmms
