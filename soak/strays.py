"""What no live job owns: looked for where it would lie, with no help from the service."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from settings import PREFIX
from stage import Stage

EXPIRING = ("same:", "claim:", "offers:", "control:", "live:", "lane:", "upkeep")
"""Keys that are bounded by their expiry, which is then required."""
LASTING = {"ids", "seq", "vclock", "mean_ms", "server", "dead", "counters", "dispatchers", "beats"}
LASTING |= {"pins", "machines", "queued", "held"}
EMPTY = ("pins", "machines", "queued", "held", "outbox", "unsent", "pools", "builds")

KEPT = ("machines", "outputs")
"""Folders of a dispatcher's place, with one directory a machine."""
KEEPERS = ("tango-sandbox", "tango-output")
"""What the processes beside machines call themselves."""


async def keys(stage: Stage) -> list[str]:
    """Keys in Redis that should not be there when every job is dead and every callback delivered."""
    redis, found = stage.witness, []
    dead = {int(i) for i in await redis.zrange(f"{PREFIX}dead", 0, -1)}
    for name in EMPTY:
        if await redis.exists(PREFIX + name):
            found.append(f"key {name}: not empty")
    async for raw in redis.scan_iter(match=f"{PREFIX}*", count=1000):
        name = raw.decode().removeprefix(PREFIX)
        head, _, rest = name.partition(":")
        if name.startswith(EXPIRING):
            if await redis.ttl(raw) < 0:
                found.append(f"key {name}: never expires")
        elif head == "job":
            if int(rest) not in dead:
                found.append(f"key {name}: of no dead job")
        elif head == "wait":
            found.append(f"key {name}: nobody waits")
        elif head not in ("bell", "outputs") and name not in LASTING:
            found.append(f"key {name}: unknown")
    for raw in await redis.keys(f"{PREFIX}outputs:*"):
        for job in (await redis.hgetall(raw)).values():
            if int(job) not in dead:
                found.append(f"key {raw.decode()}: names job {int(job)}")
    if await redis.keys(f"{PREFIX}live:*"):
        found.append("key live:*: there is no running job")
    return found


async def files(stage: Stage) -> list[str]:
    """Files of the store that belong to no job."""
    refs = set()
    for job in await stage.witness.zrange(f"{PREFIX}dead", 0, -1):
        refs.add((await stage.witness.hget(f"{PREFIX}job:{int(job)}", "output") or b"").decode())
    return await stage.store.strays(refs - {""})


async def machines(stage: Stage) -> list[str]:
    """What the back-end has left, outputs on their way, control groups and the processes beside machines."""
    found = [f"{p.relative_to(stage.state)}" for kind in KEPT for p in stage.state.glob(f"*/*/{kind}/*")]
    installs = [p.read_text().strip() for p in stage.state.glob("*/*/install")]
    for path, folders, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{path}/{f}" for f in folders if any(f.startswith(f"tango-{i}-") for i in installs)]
    return [*await stage.backend.strays(), *found, *_keepers(stage)]


def _keepers(stage: Stage) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if any(name in command for name in KEEPERS) and str(stage.state) in command:
                found.append(f"process {process.name}: {command[:100]}")
    return found


async def left(stage: Stage) -> dict[str, list[str]]:
    """When the services have stopped."""
    return {"left after the stop": await machines(stage)}


async def all_of(stage: Stage) -> dict[str, list[str]]:
    return {"keys": await keys(stage), "files": await files(stage), "machines": await machines(stage)}
