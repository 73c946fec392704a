#!/usr/bin/env python3
"""Speed and memory of the service beside their floors, measured in turn in one run.

    bench/main.py [NAME …]     latency-sandbox latency-docker transfer add-job list guarantees; all without a name

Prints a table and writes it as JSON to .cache/bench.json. A figure without its floor says little: the
machine is shared, so read the ratio.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench")]

from figures import Figure, table  # noqa: E402
from guarantees import guarantees  # noqa: E402
from measures import add_job, latency_docker, latency_sandbox, listing, transfer  # noqa: E402

MEASURES: dict[str, Callable[[Path], Awaitable[list[Figure]]]] = {
    "latency-sandbox": latency_sandbox,
    "latency-docker": latency_docker,
    "transfer": transfer,
    "add-job": add_job,
    "list": listing,
    "guarantees": guarantees,
}


async def main(names: list[str]) -> None:
    figures: list[Figure] = []
    for name in names or MEASURES:
        # Beside the checkout: a 1 GiB file belongs on a disk.
        (ROOT / ".cache").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / ".cache") as directory:
            found = await MEASURES[name](Path(directory))
        print(table(found), flush=True)
        figures += found
    (ROOT / ".cache/bench.json").write_text(json.dumps([f.plain() for f in figures], indent=1))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
