#!/usr/bin/env python3
"""Speed and memory of the service beside their floors, measured in turn in one run.

    bench/main.py [--quick] [--docs] [PART …]      all parts without a name; --list tells them

Prints a table, writes it as JSON to .cache/bench/bench.json and plots beside it; with --docs, table and plots
go to docs/ too. A figure without its floor says little: the machine may be shared, so read the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench")]

import page  # noqa: E402
from costs import costs  # noqa: E402
from elsewhere import latency_dist, latency_ec2, latency_tashi  # noqa: E402
from fairness import fairness  # noqa: E402
from figures import Figure, Plot, Report, table  # noqa: E402
from guarantees import guarantees  # noqa: E402
from host import Missing, adopt_orphans  # noqa: E402
from latency import latency_docker, latency_sandbox  # noqa: E402
from peers import PYTHON, peers  # noqa: E402
from routes import listing, routes  # noqa: E402
from scale import scale  # noqa: E402
from throughput import throughput_docker, throughput_sandbox  # noqa: E402
from transfer import transfer  # noqa: E402

PARTS: dict[str, Callable[[Path, bool], Awaitable[Report]]] = {
    "latency-sandbox": latency_sandbox,
    "latency-docker": latency_docker,
    "latency-dist": latency_dist,
    "latency-ec2": latency_ec2,
    "latency-tashi": latency_tashi,
    "throughput-sandbox": throughput_sandbox,
    "throughput-docker": throughput_docker,
    "guarantees": guarantees,
    "costs": costs,
    "peers": peers,
    "routes": routes,
    "list": listing,
    "transfer": transfer,
    "fairness": fairness,
    "scale": scale,
}
RESULTS = ROOT / ".cache/bench"


async def run(part: str, quick: bool) -> Report:
    """A part in a directory of its own, beside the checkout: a 1 GiB file belongs on a disk."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=ROOT / ".cache") as directory:
        try:
            return await PARTS[part](Path(directory), quick)
        except Missing as why:
            return Report([], skipped=str(why))


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("part", nargs="*", choices=[*PARTS, []])
    arguments.add_argument("--quick", action="store_true", help="a few rounds of each, and a smaller backlog")
    arguments.add_argument("--docs", action="store_true", help="write the results to docs/ too")
    chosen = arguments.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    adopt_orphans()
    found: dict[str, Report] = {}
    try:
        await measure(chosen.part or list(PARTS), chosen.quick, found)
    finally:
        draw([plot for report in found.values() for plot in report.plots])
        if chosen.docs:
            publish(found)


async def measure(parts: list[str], quick: bool, found: dict[str, Report]) -> None:
    """One part after the other. SIGTERM ends it as Ctrl-C does, and leaves no process behind."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    for part in parts:
        begun = time.monotonic()
        found[part] = report = await run(part, quick)
        print(
            f"\n{part}, {time.monotonic() - begun:.0f} s" + (f"; skipped: {report.skipped}" if report.skipped else "")
        )
        print(table(report.figures), flush=True)
        write(found)


def write(found: dict[str, Report]) -> None:
    plain: dict[str, object] = {
        part: {"skipped": report.skipped, "figures": [figure.plain() for figure in report.figures]}
        for part, report in found.items()
    }
    plain["host"] = host_now()
    (RESULTS / "bench.json").write_text(json.dumps(plain, indent=1))


def host_now() -> str:
    """What the figures have to be read with: who else used the processor is in the load, and so is the benchmark."""
    return f"{os.cpu_count()} cores, load average {os.getloadavg()[2]:.1f} over the last quarter of an hour"


def draw(plots: list[Plot]) -> None:
    """By the benchmark's own environment, which has matplotlib."""
    (RESULTS / "plots.json").write_text(json.dumps([asdict(plot) for plot in plots]))
    if PYTHON.exists():
        subprocess.run([PYTHON, ROOT / "bench/plots.py", RESULTS], check=True)
    else:
        print(f"no plots: {PYTHON} is not there; scripts/setup.sh bench makes it")


def publish(found: dict[str, Report]) -> None:
    figures: list[Figure] = [f for report in found.values() for f in report.figures]
    skipped = [f"{part}: {report.skipped}" for part, report in found.items() if report.skipped]
    page.put_table(ROOT / "docs/speed.md", host_now(), figures, skipped)
    pictures = ROOT / "docs/speed"
    pictures.mkdir(exist_ok=True)
    for picture in RESULTS.glob("*.png"):
        shutil.copy(picture, pictures)


if __name__ == "__main__":
    with suppress(asyncio.CancelledError, KeyboardInterrupt):
        asyncio.run(main())
