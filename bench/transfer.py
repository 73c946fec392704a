"""A gigabyte up and down: speed beside nginx, bare aiohttp and the disk by hand, memory, and the loop meanwhile."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from contextlib import AsyncExitStack
from pathlib import Path

from figures import Figure, Report, percentile
from host import Missing, Watch, rss_mib, service
from latency import alone
from servers import Server, bare_aiohttp, nginx

MIB = 1024**2


async def transfer(directory: Path, quick: bool) -> Report:
    size, rounds = (128 * MIB, 2) if quick else (1024 * MIB, 3)
    big = directory / "big"
    with big.open("wb") as file:
        for _ in range(size // MIB):
            file.write(bytes(range(256)) * 4096)
    skipped = ""
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            service(directory, "tango-http", "tango-dispatcher", TANGO_VMMS="machines:Idle")
        )
        beside = [await stack.enter_async_context(bare_aiohttp(directory / "bare"))]
        try:
            beside.append(await stack.enter_async_context(nginx(directory / "nginx")))
        except Missing as why:
            skipped = str(why)
        await alone(running, 1)
        output = next((directory / "data/courselabs/.tango/outputs").iterdir())
        output.unlink()
        shutil.copyfile(big, output)
        http = running.processes[0]
        up, down, hand = _Speeds(size), _Speeds(size), _Speeds(size)
        async with Watch(http, running.url) as sending:
            for turn in range(rounds):
                up.add("ours", await _send(f"{running.url}/upload/test/lab", big, f"up{turn}"))
                for server in beside:
                    up.add(server.name, await _put(server, big))
                hand.add("hand", await asyncio.to_thread(_by_hand, big, directory / "copy"))
        async with Watch(http, running.url) as fetching:
            for _ in range(rounds):
                down.add("ours", await _fetch(running.url + "/poll/test/lab/1.txt"))
                for server in beside:
                    down.add(server.name, await _fetch(f"{server.url}/file/big"))
        async with Watch(http, running.url) as both:
            await asyncio.gather(
                _send(f"{running.url}/upload/test/lab", big, "both"), _fetch(running.url + "/poll/test/lab/1.txt")
            )
        memory = {server.name: rss_mib(server.pid) for server in beside}
    told = f"{size // MIB:,} MiB"
    disk = "md5sum + cp + sync"
    figures = [Figure(f"upload of {told}", "MB/s", up.of("ours"), hand.of("hand"), disk, ">= 0.6 x floor")]
    keeps = {"nginx": "nginx's PUT: no md5, no fsync", "bare aiohttp": "no md5, no fsync, files written on the loop"}
    for server in beside:
        figures.append(
            Figure("upload, the same", "MB/s", up.of("ours"), up.of(server.name), server.name, note=keeps[server.name])
        )
    for server in beside:
        figures.append(Figure(f"download of {told}", "MB/s", down.of("ours"), down.of(server.name), server.name))
    told_memory = ", ".join(f"{name} is at {mib:.0f} MiB" for name, mib in memory.items())
    return Report(
        [
            *figures,
            Figure("tango-http grows by, uploads", "MiB", [sending.growth], aim="<= 40", note=told_memory),
            Figure("tango-http grows by, downloads", "MiB", [fetching.growth], aim="<= 20"),
            Figure("tango-http's memory then", "MiB", [both.most]),
            Figure("/info meanwhile, p99", "ms", [percentile(both.info_ms, 0.99)], aim="<= 50"),
        ],
        skipped=skipped,
    )


class _Speeds:
    """MB/s by name."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._found: dict[str, list[float]] = {}

    def add(self, name: str, seconds: float) -> None:
        self._found.setdefault(name, []).append(self._size / 1e6 / seconds)

    def of(self, name: str) -> list[float]:
        return self._found[name]


async def _curl(*arguments: str) -> tuple[float, bytes]:
    """A client that costs next to nothing: seconds, and what was answered."""
    begun = time.perf_counter()
    command = ["curl", "-sS", "--fail", "-H", "Expect:", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"curl {arguments}: {process.returncode}")
    return time.perf_counter() - begun, out


async def _send(url: str, file: Path, name: str) -> float:
    taken, out = await _curl("-X", "POST", "-H", f"Filename: {name}", "-T", str(file), url)
    if json.loads(out)["statusId"] != 0:
        raise RuntimeError(out)
    return taken


async def _put(server: Server, file: Path) -> float:
    return (await _curl("-T", str(file), f"{server.url}/file/{file.name}"))[0]


async def _fetch(url: str) -> float:
    return (await _curl("-o", "/dev/null", url))[0]


def _by_hand(source: Path, target: Path) -> float:
    begun = time.perf_counter()
    for command in (["md5sum", str(source)], ["cp", str(source), str(target)], ["sync", str(target)]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun
