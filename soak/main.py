#!/usr/bin/env python3
"""The soak: the whole service under load while its processes are killed, and a table of what became of every job.

    soak/main.py [--seconds 300] [--jobs N] [--seed N]
                 [--vmms localSandbox|localDocker|podman|distDocker|ec2SSH|tashiSSH] [--dispatchers N]
                 [--store local|s3|seaweedfs|moto] [--kills-per-minute 20] [--keep]

`podman` is localDocker on Podman. Needs root, what the back-end and the store need, and a Redis-protocol server.
Everything runs on this machine, in a mount namespace of its own and below one directory, which is removed at the end
unless something was wrong. The same seed gives the same jobs and the same torments. Exits 1 if a promise was broken,
and 3 if this machine lacks something.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "soak")]

import strays  # noqa: E402
from backends import BACKENDS  # noqa: E402
from load import Load  # noqa: E402
from plan import plan  # noqa: E402
from recovery import Recovery  # noqa: E402
from settings import PREFIX  # noqa: E402
from stage import Stage  # noqa: E402
from stores import KINDS, resolve  # noqa: E402
from tormentor import Tormentor  # noqa: E402
from verdict import Evidence, Row, rows, table  # noqa: E402

from support.redis_server import server_programs  # noqa: E402

INSIDE = "SOAK_INSIDE"
DISK = Path("/var/tmp")
DRAIN_S = 240.0
SLACK_S = 45.0
"""What a busy machine may take besides: for what a program was told to do, and its makers to notice that it ended."""
LACKING = 3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="how long jobs come and processes die")
    parser.add_argument("--jobs", type=int, help="how many jobs (default: what the back-end can run)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vmms", choices=list(BACKENDS), default="localSandbox")
    parser.add_argument("--dispatchers", type=int, help="how many (default: what is usual with the back-end)")
    parser.add_argument("--store", choices=KINDS, help="where files lie (default: usual with the back-end)")
    parser.add_argument("--kills-per-minute", type=float, default=20.0, help="and as many other torments")
    parser.add_argument("--keep", action="store_true", help="keep logs and files")
    return parser.parse_args()


def missing(vmms: str, store: str) -> str:
    """What this machine lacks; empty if nothing."""
    if os.geteuid() != 0:
        return "root, for mounts and engines"
    absent = [p for p in ("unshare", "setpriv", "mount") if shutil.which(p) is None]
    if not server_programs():
        absent.append("redis-server")
    if not resolve(store):
        absent.append(f"a server for the store: {store}")
    return ", ".join(absent + BACKENDS[vmms].missing())


async def soak(given: argparse.Namespace, directory: Path) -> bool:
    backend = BACKENDS[given.vmms]
    jobs = given.jobs or round(given.seconds * backend.jobs_per_s)
    store, dispatchers = resolve(given.store or backend.store), given.dispatchers or backend.dispatchers
    stage = Stage(directory, given.vmms, store, dispatchers, given.seed)
    torments = plan(given.seed, given.seconds, given.kills_per_minute, stage.wishes)
    print(
        f"soak: {given.vmms}, {dispatchers} dispatchers, {store} store, seed {given.seed}, {jobs} jobs and "
        f"{len(torments)} torments in {given.seconds:.0f} s; logs in {directory}",
        flush=True,
    )
    clock = Clock()
    try:
        await stage.open()
        clock.over("opened")
        load = Load(stage, given.seed, jobs, given.seconds)
        recovery = Recovery(stage)
        tormentor = Tormentor(stage, torments, recovery)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(DRAIN_S))
            group.create_task(tormentor.run())
        clock.over("tormented, and every job served")
        await recovery.settle()
        await _delivered(stage, load)
        await load.poll_again()
        clock.over("recovered, and every callback delivered")
        seen = Evidence(stage, load, tormentor, recovery, await load.dead())
        settle_s = max(stage.store.settle_s, stage.backend.settle_s)
        seen.strays = await _settled(partial(strays.all_of, stage), settle_s + SLACK_S)
        clock.over("nothing stray, or its time over")
        seen.exits = await stage.stop_services()
        seen.strays |= await _settled(partial(strays.left, stage), SLACK_S)
        found = rows(seen)
    finally:
        await stage.close()
        clock.over("closed")
    print(table([*found, *clock.rows]))
    passed = not any(row.faults for row in found)
    print(f"{'passed' if passed else 'FAILED'} after {clock.all_s:.0f} s", flush=True)
    return passed


class Clock:
    """How long each part of the soak itself took."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self.rows: list[Row] = []

    @property
    def all_s(self) -> float:
        return self._last - self._began

    def over(self, what: str) -> None:
        now = time.monotonic()
        self.rows.append(Row(f"the soak: {what}", f"{now - self._last:.0f} s"))
        self._last = now


async def _delivered(stage: Stage, load: Load) -> None:
    """Waits for the outbox to become empty."""
    end = time.monotonic() + DRAIN_S
    while time.monotonic() < end and await stage.witness.zcard(f"{PREFIX}outbox"):
        await asyncio.sleep(0.2)


async def _settled(look: Callable[[], Awaitable[dict[str, list[str]]]], within_s: float) -> dict[str, list[str]]:
    """What is left when everything has had its time to go."""
    end = time.monotonic() + within_s
    while any((found := await look()).values()) and time.monotonic() < end:
        await asyncio.sleep(0.5)
    return found


def main() -> int:
    given = arguments()
    lacking = missing(given.vmms, given.store or BACKENDS[given.vmms].store)
    if lacking:
        print(f"soak: this machine lacks {lacking}", file=sys.stderr)
        return LACKING
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "yes"
        again = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
        os.execvp(again[0], again)
    directory = Path(tempfile.mkdtemp(prefix="tango-soak-", dir=DISK))
    directory.chmod(0o755)
    passed = False
    try:
        passed = asyncio.run(soak(given, directory))
    finally:
        if passed and not given.keep:
            shutil.rmtree(directory, ignore_errors=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
