"""What is measured, each with its floor. Runs the console scripts as processes, as an operator does."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiodocker
import aiohttp
from client import Connection, each_in_turn
from figures import Figure, percentile

from support.engine import PrivateEngine, present_engine
from support.redis_server import RedisServer
from support.service import Process, Service

MAKEFILE = b"autograde:\n\t@echo hello\n"
GIB = 1024**3
EVERYSEC = ("--save", "", "--appendonly", "yes", "--appendfsync", "everysec")


@asynccontextmanager
async def redis(directory: Path) -> AsyncIterator[str]:
    (directory / "redis").mkdir()
    server = RedisServer(directory / "redis", options=EVERYSEC)
    server.start()
    try:
        yield server.url
    finally:
        server.kill()


@asynccontextmanager
async def service(directory: Path, *names: str, **environment: str) -> AsyncIterator[Service]:
    async with redis(directory) as url:
        base = {"TANGO_KEYS": "test", "TANGO_HOST": "127.0.0.1", "TANGO_PORT": "0", "TANGO_SLOTS": "2"}
        place = {"TANGO_DATA_DIR": str(directory / "data"), "TANGO_REDIS_URL": url}
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
    base = {"image": "autograding_image", "files": files, "timeout": 10, "max_kb": 0, "jobName": "bench"}
    return json.dumps(base | {"output_file": f"{number}.txt"} | fields).encode()


async def graded_ms(url: str, number: int) -> float:
    """addJob sent to output ready, on kept connections."""
    async with Connection(url) as connection:
        begun = time.perf_counter()
        await connection.ask("POST", "/addJob/test/lab/", job(number))
        while True:
            head, _ = await connection.ask("GET", f"/poll/test/lab/{number}.txt/")
            if b"application/json" not in head:
                return (time.perf_counter() - begun) * 1000
            await asyncio.sleep(0.001)


async def in_turn(
    rounds: int, ours: Callable[[int], object], floor: Callable[[], object]
) -> tuple[list[float], list[float]]:
    """Service and floor one after the other, so that a slow minute hits both."""
    mine, theirs = [], []
    for number in range(rounds + 3):
        values = await ours(number), await floor()
        if number >= 3:
            mine.append(values[0])
            theirs.append(values[1])
    return mine, theirs


async def latency_sandbox(directory: Path) -> list[Figure]:
    """The floor is bubblewrap with nothing around it, running the same make."""
    (directory / "job").mkdir()
    (directory / "job/Makefile").write_bytes(MAKEFILE)
    binds = [part for name in ("usr", "bin", "lib", "lib64") for part in ("--ro-bind-try", f"/{name}", f"/{name}")]
    command = ["bwrap", "--unshare-all", *binds, "--bind", str(directory / "job"), "/job", "--chdir", "/job", "make"]

    async def bare() -> float:
        begun = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
        await process.wait()
        return (time.perf_counter() - begun) * 1000

    async with service(directory, "tango-http", "tango-dispatcher", TANGO_VMMS="localSandbox") as running:
        mine, floor = await in_turn(60, lambda n: graded_ms(running.url, n), bare)
    return [Figure("trivial job, sandbox, cold", "ms", mine, floor, "bare bwrap + make", "<= 40")]


async def latency_docker(directory: Path) -> list[Figure]:
    """The floor of a cold job is the engine's own create + start + wait for the same command; of a prepared one a
    container that waits for its files on its input, from the first byte sent to its exit."""
    engine = present_engine()
    private = None
    if engine is None:
        private = engine = PrivateEngine()
        private.start()
        from support.fixtures_docker import _with_image

        _with_image(private)
    try:
        async with aiodocker.Docker(engine.host) as docker:

            async def raw() -> float:
                script = "cd /tmp && printf 'autograde:\\n\\t@echo hello\\n' > Makefile && make"
                config = {"Image": "autograding_image", "Cmd": ["sh", "-c", script], "NetworkDisabled": False}
                begun = time.perf_counter()
                container = await docker.containers.create(config)
                await container.start()
                await container.wait()
                taken = (time.perf_counter() - begun) * 1000
                await container.delete(force=True)
                return taken

            async def raw_prepared() -> float:
                script = "cd /tmp && tar xf - && make"
                streams = dict.fromkeys(("OpenStdin", "StdinOnce", "AttachStdin", "AttachStdout", "AttachStderr"), True)
                config = {"Image": "autograding_image", "Cmd": ["sh", "-c", script], "NetworkDisabled": True} | streams
                container = await docker.containers.create(config)
                async with container.attach(stdin=True, stdout=True, stderr=True) as stream:
                    await container.start()
                    await asyncio.sleep(0.3)
                    begun = time.perf_counter()
                    await stream.write_in(archive)
                    await container.wait()
                    taken = (time.perf_counter() - begun) * 1000
                await container.delete(force=True)
                return taken

            archive = tar({"Makefile": MAKEFILE})
            options = {"TANGO_VMMS": "localDocker", "DOCKER_HOST": engine.host}
            async with service(directory, "tango-http", "tango-dispatcher", **options) as running:
                mine, floor = await in_turn(20, lambda n: graded_ms(running.url, n), raw)
                cold = Figure("trivial job, Docker, cold", "ms", mine, floor, "create+start+wait", "<= 1.3 x floor")
                async with aiohttp.ClientSession() as session:
                    await session.post(f"{running.url}/prealloc/test/autograding_image/3/", data=b"{}")
                await asyncio.sleep(3)

                async def warm(number: int) -> float:
                    await asyncio.sleep(0.7)
                    return await graded_ms(running.url, 1000 + number)

                mine, floor = await in_turn(20, warm, raw_prepared)
                what = "files on a container's input"
                return [cold, Figure("trivial job, Docker, prepared", "ms", mine, floor, what, "<= 1.6 x floor")]
    finally:
        if private is not None:
            private.stop()


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def rss_mib(process: Process) -> float:
    for line in Path(f"/proc/{process.popen.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


class Watch:
    """Samples a process's memory and the time that /info takes, until told to stop."""

    def __init__(self, running: Service) -> None:
        self.running = running
        self.process = running.processes[0]
        self.before = rss_mib(self.process)
        self.most = self.before
        self.info_ms: list[float] = []

    async def __aenter__(self) -> Watch:
        self.task = asyncio.create_task(self.watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def watch(self) -> None:
        async with Connection(self.running.url) as connection:
            while True:
                begun = time.perf_counter()
                await connection.ask("GET", "/info/test/")
                self.info_ms.append((time.perf_counter() - begun) * 1000)
                self.most = max(self.most, rss_mib(self.process))
                await asyncio.sleep(0.01)

    @property
    def growth(self) -> float:
        return self.most - self.before


async def send(url: str, file: Path, name: str) -> float:
    """Seconds for an upload by a client that costs next to nothing."""
    begun = time.perf_counter()
    command = ("curl", "-sS", "-X", "POST", "-H", f"Filename: {name}", "-H", "Expect:", "-T", str(file))
    process = await asyncio.create_subprocess_exec(*command, f"{url}/upload/test/lab", stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    if json.loads(out)["statusId"] != 0:
        raise RuntimeError(out)
    return time.perf_counter() - begun


async def fetch(url: str, path: str) -> None:
    process = await asyncio.create_subprocess_exec("curl", "-sS", "-o", "/dev/null", url + path)
    await process.wait()


async def transfer(directory: Path) -> list[Figure]:
    """1 GiB up and down; memory, speed, and whether the loop is ever blocked meanwhile."""
    big = directory / "big"
    with big.open("wb") as file:
        block = bytes(range(256)) * 4096
        for _ in range(1024):
            file.write(block)
    async with service(directory, "tango-http", "tango-dispatcher", TANGO_VMMS="localSandbox") as running:
        await graded_ms(running.url, 1)
        output = next((directory / "data/courselabs/.tango/outputs").iterdir())
        output.unlink()
        shutil.copyfile(big, output)
        async with Watch(running) as up:
            mine, floor = [], []
            for number in range(3):
                mine.append(await send(running.url, big, f"up{number}"))
                floor.append(await asyncio.to_thread(by_hand, big, directory / f"copy{number}"))
        async with Watch(running) as down:
            for _ in range(3):
                await fetch(running.url, "/poll/test/lab/1.txt")
        async with Watch(running) as both:
            await asyncio.gather(send(running.url, big, "both"), fetch(running.url, "/poll/test/lab/1.txt"))
    speeds = [GIB / 1e6 / s for s in mine], [GIB / 1e6 / s for s in floor]
    return [
        Figure("upload of 1 GiB", "MB/s", *speeds, "md5sum + cp + sync", ">= 0.6 x floor"),
        Figure("tango-http grows by, upload of 1 GiB", "MiB", [up.growth], aim="<= 40"),
        Figure("tango-http grows by, poll of 1 GiB", "MiB", [down.growth], aim="<= 20"),
        Figure("/info meanwhile, p99", "ms", [percentile(both.info_ms, 0.99)], aim="<= 50"),
    ]


def by_hand(source: Path, target: Path) -> float:
    begun = time.perf_counter()
    for command in (["md5sum", str(source)], ["cp", str(source), str(target)], ["sync", str(target)]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


async def add_job(directory: Path) -> list[Figure]:
    """The floor is the same server's cheapest answer, to the same client."""
    async with service(directory, "tango-http") as running:
        rates, floors = [], []
        for number in range(5):
            path, begin = "/addJob/test/lab/", number * 2000
            begun = time.perf_counter()
            await each_in_turn(running.url, 16, 2000, lambda n, b=begin: job(b + n), path)  # type: ignore[misc]
            rates.append(2000 / (time.perf_counter() - begun))
            begun = time.perf_counter()
            async with Connection(running.url) as connection:
                for _ in range(2000):
                    await connection.ask("GET", "/")
            floors.append(2000 / (time.perf_counter() - begun))
    return [Figure("addJob", "requests/s", rates, floors, "GET / on one connection", ">= 1000")]


async def listing(directory: Path) -> list[Figure]:
    """5,000 live jobs listed, and the longest that another request had to wait meanwhile."""
    async with service(directory, "tango-http") as running:
        await each_in_turn(running.url, 16, 5000, lambda n: job(n), "/addJob/test/lab/")
        taken: list[float] = []
        async with Watch(running) as watch, Connection(running.url) as connection:
            for _ in range(20):
                begun = time.perf_counter()
                await connection.ask("GET", "/jobs/test/0/")
                taken.append((time.perf_counter() - begun) * 1000)
                await asyncio.sleep(0.05)
    return [
        Figure("/jobs/ with 5,000 live jobs", "ms", taken, aim="<= 250"),
        Figure("/info meanwhile, longest", "ms", [max(watch.info_ms)], aim="loop never held over 50"),
    ]
