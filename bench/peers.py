"""Empty jobs of this queue and of other job queues, on the same Redis with the same fsync.

Each peer adds its jobs and works them off in one process of the benchmark's own environment (peer.py).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from figures import Figure, Plot, Report
from figures import Line as Bars
from guarantees import SLOTS, settings_for, whole_dispatcher, with_prefix
from host import SYNC, Missing, redis
from machines import IMAGE

from support.jobs import spec
from tango_async.config import Settings
from tango_async.model import Claim, Verdict
from tango_async.queue.redis import Queue

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".cache/bench-venv/bin/python"
OURS = ("this queue's scripts", "whole dispatcher")
KEEPS = {
    OURS[0]: "survives kill -9, redelivered after the lease, fenced by seq, no duplicate while its machine lives",
    OURS[1]: "the same; stores each feedback with fsync, and its own history",
    "arq": "survives; redelivered when the job's time-out is over (300 s); not fenced, duplicates possible",
    "saq": "survives; redelivered by a sweep after the job's time-out, if it may be retried; not fenced",
    "taskiq": "streams: survives; redelivered when idle for 10 minutes; not fenced, a longer job runs twice",
    "dramatiq": "survives; redelivered when its worker was silent for 60 s; not fenced, duplicates possible",
    "celery": "with acks_late: survives; redelivered after 1 h; not fenced, a longer job runs twice",
}
"""What becomes of a job whose worker is killed, as each one's documentation says; tried here for this queue only."""


async def peers(directory: Path, quick: bool) -> Report:
    if not PYTHON.exists():
        raise Missing("the peers are not installed; scripts/setup.sh bench installs them")
    jobs = 500 if quick else 2000
    report = Report([])
    for sync in SYNC:
        added: dict[str, list[float]] = {name: [] for name in KEEPS}
        drained: dict[str, list[float]] = {name: [] for name in KEEPS}
        versions: dict[str, str] = {}
        for turn in range(1 if quick else 3):
            for name in KEEPS:
                async with redis(directory / f"{sync}-{turn}-{name.replace(' ', '-')}", sync=sync) as server:
                    found = await _measure(name, directory / f"{sync}-{turn}", server.url, jobs)
                versions[name] = found.get("version", "")
                drained[name].append(found["drain"])
                if "add" in found:
                    added[name].append(found["add"])
        for name, keeps in KEEPS.items():
            what = f"{name} {versions[name]}".strip()
            if added[name]:
                report.figures.append(Figure(f"{what}: added, {sync}", "jobs/s", added[name]))
            report.figures.append(Figure(f"{what}: worked off, {sync}", "jobs/s", drained[name], note=keeps))
        medians = [sorted(drained[name])[len(drained[name]) // 2] for name in KEEPS]
        title = f"Empty jobs worked off by one process, appendfsync {sync}"
        bars = [Bars("worked off", [], medians)]
        report.plots.append(Plot(f"peers-{sync}", title, "", "jobs/s", bars, names=list(KEEPS)))
    return report


async def _measure(name: str, directory: Path, url: str, jobs: int) -> dict[str, Any]:
    if name == OURS[0]:
        return await _scripts(settings_for(directory, url), jobs)
    if name == OURS[1]:
        return {"drain": await whole_dispatcher(with_prefix(settings_for(directory, url)), jobs, added_before=True)}
    command = [str(PYTHON), str(ROOT / "bench/peer.py"), name, url, str(jobs)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    lines = [line for line in out.decode().splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{name}: {err.decode()[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


async def _scripts(settings: Settings, jobs: int) -> dict[str, Any]:
    """Adding, then claim, start and end, by one process with 32 slots, which claims as a dispatcher does."""
    queue = Queue(settings)
    to_add = iter(range(jobs))

    async def add() -> None:
        for _ in to_add:
            await queue.add(spec(), fingerprint=uuid4().hex)

    async def work(claim: Claim) -> None:
        await queue.start(claim, uuid4().hex)
        await queue.end(claim, Verdict.SUCCESS, "Success: Autodriver returned normally", "ref")

    async def half() -> None:
        while claims := await queue.claim("bench", uuid4().hex, {IMAGE: SLOTS // 2}, SLOTS // 2):
            await asyncio.gather(*map(work, claims))

    begun = time.perf_counter()
    await asyncio.gather(*(add() for _ in range(SLOTS)))
    between = time.perf_counter()
    await asyncio.gather(half(), half())
    after = time.perf_counter()
    await queue.close()
    return {"add": jobs / (between - begun), "drain": jobs / (after - between)}
