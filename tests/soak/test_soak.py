"""The short soak: half a minute of load under torments. `soak/main.py` runs it for as long as you like."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import absent

SOAK = Path(__file__).parents[2] / "soak/main.py"
LACKING = 3

WITHIN_S = 1500
"""A soak ends by itself: at the latest when its drains and its settling, each bounded, are over."""


@dataclass(frozen=True)
class Short:
    """A short soak of one back-end; its seed is one that draws these, which are always possible."""

    vmms: str
    store: str
    seconds: int
    seed: int
    torments: tuple[str, ...]


SHORT = [
    Short("localSandbox", "local", 20, 2, ("fill disk",)),
    Short("localDocker", "local", 20, 43, ("fill disk", "kill engine", "pause engine")),
    Short(
        "distDocker",
        "seaweedfs",
        30,
        18,
        ("kill engine", "cut off engine", "kill sshd", "kill bucket", "pause bucket", "hold ways to the bucket"),
    ),
    Short("ec2SSH", "seaweedfs", 20, 1307, ("cut off API", "do not boot instance")),
    Short("tashiSSH", "seaweedfs", 20, 3, ("kill manager", "crash instance", "no room in cluster")),
]
ALWAYS = ("kill dispatcher", "kill redis", "kill server")


@pytest.mark.parametrize("short", SHORT, ids=lambda short: short.vmms)
async def test_no_job_is_lost_or_graded_twice_while_processes_are_killed(short: Short) -> None:
    what = ["--vmms", short.vmms, "--store", short.store, "--seconds", str(short.seconds), "--seed", str(short.seed)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SOAK), *what, "--kills-per-minute", "30"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            raw, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = raw.decode()
    print(said)
    if process.returncode == LACKING:
        absent(said)
    assert process.returncode == 0, said
    assert [torment for torment in (*ALWAYS, *short.torments) if f"{torment} " not in said] == []
