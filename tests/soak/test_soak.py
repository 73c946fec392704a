"""The short soak: a minute of load under torments. `soak/main.py` runs it for as long as you like."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from conftest import absent

SOAK = Path(__file__).parents[2] / "soak/main.py"
LACKING = 3

WITHIN_S = 600
"""A soak ends by itself: at the latest when its drains and its settling, each bounded, are over."""


@pytest.mark.parametrize(("vmms", "seconds"), [("localSandbox", 60), ("localDocker", 45), ("distDocker", 60)])
async def test_no_job_is_lost_or_graded_twice_while_processes_are_killed(vmms: str, seconds: int) -> None:
    arguments = ["--vmms", vmms, "--seconds", str(seconds), "--seed", "7", "--kills-per-minute", "30"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SOAK), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    print(said.decode())
    if process.returncode == LACKING:
        absent(said.decode())
    assert process.returncode == 0, said.decode()
