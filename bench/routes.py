"""Requests a second of the routes that clients call most, by wrk, beside a bare aiohttp handler."""

from __future__ import annotations

import asyncio
import re
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from client import Connection, each_in_turn
from figures import Figure, Report
from host import Missing, Watch, job, service
from servers import bare_aiohttp

CONNECTIONS = 16
AIMS = {"addJob": ">= 1000"}

ADD_JOB = """
local n = 0
request = function()
  n = n + 1
  local body = '{"image":"autograding_image","files":[{"localFile":"Makefile","destFile":"Makefile"}],' ..
    '"timeout":10,"max_kb":0,"jobName":"bench","output_file":"%s-' .. n .. '.txt"}'
  return wrk.format("POST", "/addJob/test/lab/", nil, body)
end
"""
POST = 'wrk.method = "POST" wrk.body = string.rep("x", 190)'


@dataclass
class Load:
    rate: float
    p99_ms: float


async def routes(directory: Path, quick: bool) -> Report:
    """One tango-http, with its Redis; the handler without any of them answers as many bytes."""
    if shutil.which("wrk") is None:
        raise Missing("wrk is not installed: apt-get install wrk")
    seconds, rounds = (1, 2) if quick else (2, 5)
    names = ["addJob", "poll, ready", "poll, not ready", "open", "info"]
    mine: dict[str, list[Load]] = {name: [] for name in names}
    floor: dict[str, list[Load]] = {name: [] for name in names}
    script = directory / "request.lua"
    async with (
        service(directory, "tango-http", "tango-dispatcher", TANGO_VMMS="machines:Idle") as running,
        bare_aiohttp(directory / "bare") as bare,
    ):
        await each_in_turn(running.url, 1, [1], job, "/addJob/test/lab/")
        await running.poll("lab", "1.txt")
        await running.processes.pop().stop()
        paths = {"poll, ready": "/poll/test/lab/1.txt", "open": "/open/test/lab/", "info": "/info/test/"}
        paths |= {"poll, not ready": "/poll/test/lab/none.txt", "addJob": "/addJob/test/lab/"}
        for turn in range(rounds):
            for name in names:
                posts = name == "addJob"
                script.write_text(ADD_JOB % f"{name}{turn}" if posts else "")
                mine[name].append(await _wrk(running.url + paths[name], script, seconds))
                script.write_text(POST if posts else "")
                floor[name].append(await _wrk(f"{bare.url}/json", script, seconds))
    figures = []
    for name in names:
        rates, floors = ([one.rate for one in found[name]] for found in (mine, floor))
        tails, bare_tails = ([one.p99_ms for one in found[name]] for found in (mine, floor))
        beside = "bare aiohttp handler"
        figures.append(
            Figure(f"{name}, {CONNECTIONS} at a time", "requests/s", rates, floors, beside, AIMS.get(name, ""))
        )
        figures.append(Figure(f"{name}, p99", "ms", tails, bare_tails, beside))
    return Report(figures)


async def _wrk(url: str, script: Path, seconds: int) -> Load:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out = (await process.communicate())[0].decode()
    if "Non-2xx" in out or "Socket errors" in out:
        raise RuntimeError(out)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    tail = re.search(r"99%\s+([\d.]+)(us|ms|s)", out)
    assert rate and tail, out
    return Load(float(rate[1]), float(tail[1]) * {"us": 0.001, "ms": 1, "s": 1000}[tail[2]])


async def listing(directory: Path, quick: bool) -> Report:
    """5,000 live jobs listed, and the longest that another request had to wait meanwhile."""
    jobs = 500 if quick else 5000
    async with service(directory, "tango-http") as running:
        await each_in_turn(running.url, 16, range(jobs), job, "/addJob/test/lab/")
        taken: list[float] = []
        async with Watch(running.processes[0], running.url) as idle:
            await asyncio.sleep(1)
        async with Watch(running.processes[0], running.url) as watch, Connection(running.url) as connection:
            for _ in range(5 if quick else 20):
                begun = time.perf_counter()
                await connection.ask("GET", "/jobs/test/0/")
                taken.append((time.perf_counter() - begun) * 1000)
                await asyncio.sleep(0.05)
    longest, usual = [max(watch.info_ms)], [statistics.median(watch.info_ms)]
    return Report(
        [
            Figure(f"/jobs/ with {jobs:,} live jobs", "ms", taken, aim="<= 250"),
            Figure("/info meanwhile, longest", "ms", longest, [max(idle.info_ms)], "with nothing else", "held <= 50"),
            Figure("/info meanwhile", "ms", usual, [statistics.median(idle.info_ms)], "with nothing else"),
        ]
    )
