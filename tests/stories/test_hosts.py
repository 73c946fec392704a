"""A host that is paused and resumed while the whole service runs, and its dispatcher dies in between."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from support.service import PATIENCE_S, Service


async def hosts(service: Service) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await service.json("GET", "/hosts/test/"))["hosts"]
    return found


async def until(service: Service, **fields: object) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for found in await hosts(service):  # none before it has told of itself
                if all(found[name] == value for name, value in fields.items()):
                    return found
            await asyncio.sleep(0.05)


async def test_a_paused_host_stays_paused_until_it_is_resumed(service: Service, starts: Path) -> None:
    service.environment["TANGO_DISPATCHER_LEASE_S"] = "600"
    service.environment["TANGO_DISPATCHER_ADOPT_GRACE_S"] = "600"
    await service.run("tango-http")
    dispatcher = await service.run("tango-dispatcher")
    await service.upload("lab", {"Makefile": b"autograde:\n\t@until [ -s /starts ]; do sleep 0.05; done; echo done\n"})
    await service.add("lab", ["Makefile"], "first")
    install = (await until(service, state="ready"))["install"]
    async with asyncio.timeout(PATIENCE_S):
        while not (await service.json("GET", "/jobs/test/0/"))["jobs"][0]["assigned"]:
            await asyncio.sleep(0.02)
    assert (await service.json("POST", f"/hosts/test/{install}/pause/"))["statusId"] == 0
    await until(service, state="paused")
    starts.write_text("go\n")
    assert (await service.poll("lab", "first")).endswith("done\n")
    await service.add("lab", ["Makefile"], "second")
    dispatcher.kill()
    service.processes.remove(dispatcher)
    again = await service.run("tango-dispatcher")
    assert "paused" in again.said()
    (found,) = await hosts(service)
    assert found["paused"]
    (job,) = (await service.json("GET", "/jobs/test/0/"))["jobs"]
    assert not job["assigned"]
    assert (await service.json("POST", f"/hosts/test/{install}/resume/"))["statusId"] == 0
    assert (await service.poll("lab", "second")).endswith("done\n")
