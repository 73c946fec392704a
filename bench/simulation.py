"""How far one Redis carries: many real dispatchers on scripted machines, and jobs as fast as asked for.

    .venv/bin/python bench/simulation.py --dispatchers 200 --slots 50 --rate 100 --seconds 30

The dispatchers are those of the service, each with connections of its own, in a few processes; their machines only
sleep, and files cost nothing. So what is measured is the queue: Redis, its scripts, and what dispatchers ask.
Ends by itself; Redis is a server of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.fake_vmms import IMAGE, FakeEngine, FakeVmms
from support.jobs import limits, spec
from support.redis_server import RedisServer
from tango_async.config import Queue as QueueSettings
from tango_async.config import Settings
from tango_async.dispatcher.dispatcher import Dispatcher
from tango_async.files.base import Pin, Removed, StoredFile
from tango_async.machine import InputFile
from tango_async.model import Claim, PinnedFile
from tango_async.queue.redis import Queue

EVERYSEC = ("--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--maxclients", "20000")
COURSES = 40
SETTLE_S = 6.0
"""For all dispatchers to be ready and beating before anything is measured."""


class NoFiles:
    """A store that costs nothing: every job's only input is a script that sleeps."""

    def __init__(self, job_s: float) -> None:
        self._job_s = job_s

    def inputs(self, pin: str, files: Sequence[PinnedFile]) -> list[InputFile]:
        script = f"sleep {random.uniform(0.5, 1.5) * self._job_s}\nsay done\n".encode()

        async def chunks() -> AsyncIterator[bytes]:
            yield script

        return [InputFile("Makefile", len(script), chunks)]

    async def put_output(self, ref: str, body: bytes) -> None: ...
    async def show_output(self, ref: str, lab: str, output_name: str) -> None: ...
    async def drop_output(self, ref: str, lab: str = "", output_name: str = "") -> None: ...
    async def unpin(self, pin: str) -> None: ...
    async def close(self) -> None: ...
    async def check(self) -> None: ...

    async def sweep(self, live_pins: set[str], age_s: float) -> int:
        return 0

    async def old_outputs(self, age_s: float) -> list[str]:
        return []

    async def output_sizes(self, refs: Sequence[str]) -> list[int]:
        return [0] * len(refs)

    async def labs(self) -> list[str]:
        return []

    async def trim_uploads(self, labs: Sequence[str], **_: Any) -> Removed:
        return Removed(0, 0)

    async def erase(self, submitter: str, labs: Sequence[str], job_ids: set[int]) -> Removed:
        return Removed(0, 0)

    async def open_lab(self, lab: str) -> tuple[bool, dict[str, str]]:
        return False, {}

    async def put(self, lab: str, name: str, body: AsyncIterator[bytes]) -> bool:
        raise NotImplementedError

    async def pin(self, lab: str, wanted: Sequence[tuple[str, str]]) -> Pin:
        raise NotImplementedError

    async def output(self, ref: str) -> StoredFile:
        raise NotImplementedError

    async def put_image(self, body: AsyncIterator[bytes]) -> str:
        raise NotImplementedError

    async def image(self, ref: str) -> StoredFile:
        raise NotImplementedError

    async def raise_mark(self, at_least: int) -> int:
        return at_least


class Counted(Queue):
    """Counts claims, and how long their jobs had waited."""

    claims = empty = 0
    waits_ms: list[float]

    async def claim(self, *args: Any, **more: Any) -> list[Claim]:
        found = await super().claim(*args, **more)
        Counted.claims += 1
        Counted.empty += not found
        now = time.time() * 1000
        Counted.waits_ms += [now - claim.added_ms for claim in found]
        return found


Counted.waits_ms = []


def settings_of(options: argparse.Namespace) -> Settings:
    base = Settings(queue=QueueSettings(url=options.url, history_limit=100_000))
    changed = msgspec.structs.replace(base.dispatcher, slots=options.slots, grace_s=1.0)
    return msgspec.structs.replace(base, dispatcher=changed)


async def work(options: argparse.Namespace) -> None:
    """One process of dispatchers; at the end, one line of what it counted."""
    settings, stop = settings_of(options), asyncio.Event()
    ready: list[str] = []
    async with asyncio.TaskGroup() as group:
        for number in range(options.dispatchers):
            queue = Counted(settings)
            vmms = FakeVmms(FakeEngine())
            one = Dispatcher(settings, queue, NoFiles(options.job_s), vmms, f"{options.name}-{number}")
            group.create_task(one.run(stop, ready.append))
            await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        lines = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while len(ready) < options.dispatchers:
            await asyncio.sleep(0.05)
        print("ready", flush=True)
        while word := (await lines.readline()).strip():
            waits = sorted(Counted.waits_ms)
            counted = {
                "claims": Counted.claims,
                "empty": Counted.empty,
                "waits_ms": waits,
                "cpu_s": time.process_time(),
            }
            if word == b"tell":
                print(json.dumps(counted), flush=True)
            Counted.waits_ms = []
        stop.set()


async def load(options: argparse.Namespace) -> int:
    """Adds jobs at the rate for the time; answers how many."""
    settings, added = settings_of(options), 0
    queue = Queue(settings)
    begun = time.monotonic()
    busy: set[asyncio.Task[Any]] = set()
    while (passed := time.monotonic() - begun) < options.seconds:
        while added < passed * options.rate and len(busy) < 200:
            busy.add(task := asyncio.create_task(queue.add(job(added), fingerprint=uuid4().hex)))
            task.add_done_callback(busy.discard)
            added += 1
        await asyncio.sleep(0.005)
    await asyncio.gather(*busy)
    await queue.close()
    return added


def job(number: int) -> Any:
    course = f"course{number % COURSES}-f26"
    return spec(
        lab=f"key-{course}-lab",
        courselab=f"{course}-lab",
        image=IMAGE,
        submitter=f"student{number % 5000}@example.edu",
        files=(PinnedFile(local="Makefile", dest="Makefile", size=20, md5="0" * 32),) * 3,
        limits=limits(),
        callback_url=None,
    )


class Watch:
    """What the server has done between two looks."""

    def __init__(self, redis: RedisServer) -> None:
        self._redis = redis

    def look(self) -> dict[str, Any]:
        said = {}
        for section in ("cpu", "stats", "memory", "commandstats", "clients"):
            said |= dict(self._redis._ask("INFO", section))
        return said | {"at": time.monotonic()}

    @staticmethod
    def between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
        def grown(name: str) -> float:
            return float(after[name]) - float(before[name])

        seconds = after["at"] - before["at"]
        calls = {
            name.removeprefix("cmdstat_"): one["calls"] - before.get(name, {"calls": 0})["calls"]
            for name, one in after.items()
            if name.startswith("cmdstat_")
        }
        usec = {
            name.removeprefix("cmdstat_"): one["usec"] - before.get(name, {"usec": 0})["usec"]
            for name, one in after.items()
            if name.startswith("cmdstat_")
        }
        # What scripts call inside is counted as well; on the wire are only these.
        wire = sum(n for name, n in calls.items() if name in WIRE)
        return {
            "seconds": seconds,
            "cpu": (grown("used_cpu_user") + grown("used_cpu_sys")) / seconds,
            "wire": wire,
            "inside": sum(calls.values()) - wire,
            "blpop": calls.get("blpop", 0),
            "scripts_ms": usec.get("evalsha", 0) / 1000,
            "evalsha": calls.get("evalsha", 0),
            "in_bytes": grown("total_net_input_bytes"),
            "out_bytes": grown("total_net_output_bytes"),
            "memory": grown("used_memory"),
            "clients": after["connected_clients"],
        }


WIRE = {"evalsha", "eval", "blpop", "ping", "client|unblock", "client|id", "hello", "client|setinfo", "info", "hgetall"}


def child(options: argparse.Namespace, name: str, dispatchers: int) -> subprocess.Popen[str]:
    words = [
        sys.executable,
        __file__,
        "--worker",
        "--name",
        name,
        "--url",
        options.url,
        "--dispatchers",
        str(dispatchers),
    ]
    words += ["--slots", str(options.slots), "--job-s", str(options.job_s)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def say(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def counts(workers: list[subprocess.Popen[str]]) -> dict[str, Any]:
    for worker in workers:
        say(worker, "tell")
    told = [json.loads(hear(worker)) for worker in workers]
    return {
        "claims": sum(one["claims"] for one in told),
        "empty": sum(one["empty"] for one in told),
        "cpu_s": sum(one["cpu_s"] for one in told),
        "waits_ms": sorted(wait for one in told for wait in one["waits_ms"]),
    }


def share(values: list[float], part: float) -> float:
    return values[min(len(values) - 1, int(len(values) * part))] if values else float("nan")


IDLE = {"cpu": 0.0, "cores": 0.0}
"""What Redis and the dispatchers take without a job."""


def report(
    title: str, redis: dict[str, Any], before: dict[str, Any], after: dict[str, Any], jobs: int, added: int
) -> None:
    seconds = redis["seconds"]
    claims, empty = after["claims"] - before["claims"], after["empty"] - before["empty"]
    waits = after["waits_ms"]
    print(f"\n{title}, {seconds:.0f} s")
    print(f"  jobs ended                  {jobs / seconds:8.1f} /s  ({added} added)")
    if waits:
        print(f"  added to claimed            {share(waits, 0.5):8.1f} ms median, {share(waits, 0.99):.1f} ms 99 %")
    print(f"  claims, empty               {claims / seconds:8.1f} /s, {empty / seconds:.1f} /s")
    print(f"  BLPOP                       {redis['blpop'] / seconds:8.1f} /s")
    print(f"  Redis: one core             {redis['cpu'] * 100:8.1f} %  (connections {redis['clients']})")
    print(
        f"  Redis: commands             {redis['wire'] / seconds:8.0f} /s,"
        f" and {redis['inside'] / seconds:.0f} /s in scripts"
    )
    if jobs:
        print(f"  … a job                     {redis['wire'] / jobs:8.1f}, and {redis['inside'] / jobs:.0f} in scripts")
        print(
            f"  … a job                     {redis['in_bytes'] / jobs:8.0f} bytes to it,"
            f" {redis['out_bytes'] / jobs:.0f} back"
        )
        print(f"  … a job, memory grown       {redis['memory'] / jobs:8.0f} bytes")
    cores = (after["cpu_s"] - before["cpu_s"]) / seconds
    print(f"  dispatchers: cores          {cores:8.2f}")
    if jobs:
        print(f"  … a job, beyond idle        {(redis['cpu'] - IDLE['cpu']) * 1000 * seconds / jobs:8.2f} ms of Redis")
        print(f"  … a job, beyond idle        {(cores - IDLE['cores']) * 1000 * seconds / jobs:8.2f} ms of dispatchers")
    else:
        IDLE.update(cpu=redis["cpu"], cores=cores)


def ended(redis: RedisServer) -> int:
    return int(redis._ask("ZCARD", "tango:dead"))


def main() -> None:
    options = arguments()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    if options.worker:
        logging.basicConfig(level=logging.CRITICAL)  # a machine that is too slow shows in the figures
        asyncio.run(work(options))
        return
    with tempfile.TemporaryDirectory(prefix="tango-sim-") as place:
        redis = RedisServer(Path(place), options=EVERYSEC)
        redis.start()
        options.url = redis.url
        workers: list[subprocess.Popen[str]] = []
        try:
            each = options.dispatchers // options.processes
            workers += [child(options, f"w{n}", each) for n in range(options.processes)]
            for worker in workers:
                if hear(worker).strip() != "ready":
                    raise RuntimeError("a worker ended")
            time.sleep(SETTLE_S)
            measure(options, redis, workers)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait(10)
            redis.kill()


def measure(options: argparse.Namespace, redis: RedisServer, workers: list[subprocess.Popen[str]]) -> None:
    watch = Watch(redis)
    print(f"{options.dispatchers} dispatchers x {options.slots} slots, jobs of {options.job_s:g} s")
    counted, seen = counts(workers), watch.look()
    time.sleep(min(10.0, options.seconds))
    report("idle", Watch.between(seen, watch.look()), counted, counts(workers), 0, 0)
    for rate in options.rate:
        options.rate = rate
        counted, seen, dead = counts(workers), watch.look(), ended(redis)
        added = asyncio.run(load(options))
        after, done = watch.look(), ended(redis) - dead
        report(f"{rate:g} jobs a second", Watch.between(seen, after), counted, counts(workers), done, added)
        until = time.monotonic() + 60
        while redis._ask("ZCARD", "tango:queued") and time.monotonic() < until:
            time.sleep(0.2)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dispatchers", type=int, default=200)
    parser.add_argument("--slots", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rate", type=float, nargs="+", default=[50.0], help="jobs added a second, one run each")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--job-s", type=float, default=2.0, help="mean length of a job")
    for hidden in ("--worker", "--name", "--url"):
        parser.add_argument(
            hidden, help=argparse.SUPPRESS, **({"action": "store_true"} if hidden == "--worker" else {})
        )
    return parser.parse_args()


if __name__ == "__main__":
    main()
