"""What a part runs on: Redis, the console scripts as an operator starts them, an engine; and processor time."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from client import Connection, timed

from support.engine import Engine, Lacking, PrivateEngine, any_engine, private_engine
from support.redis_server import RedisServer
from support.service import Process, Service

SYNC = {name: ("--save", "", "--appendonly", "yes", "--appendfsync", name) for name in ("everysec", "always")}
MAKEFILE = b"autograde:\n\t@echo hello\n"
IMAGE = "autograding_image"
BENCH = Path(__file__).parent


class Missing(Exception):
    """This machine lacks what a part needs; the reason is printed."""


@asynccontextmanager
async def redis(directory: Path, *options: str, sync: str = "everysec") -> AsyncIterator[RedisServer]:
    directory.mkdir(parents=True, exist_ok=True)
    server = RedisServer(directory, options=(*SYNC[sync], *options))
    server.start()
    try:
        yield server
    finally:
        server.kill()


@asynccontextmanager
async def service(directory: Path, *names: str, **environment: str) -> AsyncIterator[Service]:
    """The console scripts with a Redis of their own, and a courselab `lab` with a trivial Makefile."""
    async with redis(directory / "redis") as server:
        base = {"TANGO_KEYS": "test", "TANGO_HOST": "127.0.0.1", "TANGO_PORT": "0", "TANGO_SLOTS": "2"}
        place = {"TANGO_DATA_DIR": str(directory / "data"), "TANGO_REDIS_URL": server.url, "PYTHONPATH": str(BENCH)}
        running = Service(directory, base | place | environment)
        try:
            for name in names:
                await running.run(name)
            await running.upload("lab", {"Makefile": MAKEFILE})
            yield running
        finally:
            for process in running.processes:
                await process.stop()


def job(number: int, **fields: object) -> bytes:
    files = [{"localFile": "Makefile", "destFile": "Makefile"}]
    base = {"image": IMAGE, "files": files, "timeout": 10, "max_kb": 0, "jobName": "bench"}
    return json.dumps(base | {"output_file": f"{number}.txt"} | fields).encode()


@contextmanager
def engine() -> Iterator[Engine]:
    """An engine of our own, so that its processor time can be told; else the one that is here. Raises Missing."""
    try:
        with any_engine() if PrivateEngine.missing() else private_engine() as running:
            yield running
    except Lacking as e:
        raise Missing(str(e)) from e


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def adopt_orphans() -> None:
    """What a dispatcher leaves behind becomes a child of this process, or its time would be init's."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def cpu_s() -> float:
    """Processor time so far of everything that this process has started, directly or not; its own is not in it.

    Orphans that have ended are reaped here, since only then their time counts in full: call it when no process
    of this one's own is about to end.
    """
    children: dict[int, list[tuple[int, float]]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[0] == "Z" and int(fields[1]) == os.getpid():
                    os.waitpid(int(folder.name), os.WNOHANG)
                    continue
                taken = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
                children.setdefault(int(fields[1]), []).append((int(folder.name), taken))
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total, left = ended.ru_utime + ended.ru_stime, [os.getpid()]
    while left:
        for pid, taken in children.get(left.pop(), ()):
            total += taken
            left.append(pid)
    return total


class Watch:
    """Samples a process's memory, and the time that /info takes of whom it is given, until told to stop."""

    def __init__(self, process: Process, url: str = "") -> None:
        self.pid, self.url = process.popen.pid, url
        self.before = self.most = rss_mib(self.pid)
        self.info_ms: list[float] = []

    async def __aenter__(self) -> Watch:
        self.task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def _watch(self) -> None:
        async with Connection(self.url) as connection:
            while True:
                self.info_ms.append(1000 * await timed(connection.ask("GET", "/info/test/")))
                self.most = max(self.most, rss_mib(self.pid))
                await asyncio.sleep(0.01)

    @property
    def growth(self) -> float:
        return self.most - self.before
