"""Every process is restarted, one after another, while jobs come in: nobody notices."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from itertools import cycle

import aiohttp

from stories.conftest import Rig, dispatched
from support.places import own_port
from support.service import PATIENCE_S, addjob

TRIES, PAUSE_S = 4, 0.5
"""Autolab's client repeats three times; it pauses for 2 s, which is more than a restart takes."""

TICKS = "".join(f"tick {i}\n" for i in range(1, 4))


@dataclass
class Autolab:
    """Submits without a pause, by turns to each server; repeats what fails with the next one, as Autolab does."""

    urls: list[str]
    added: list[int] = field(default_factory=list)
    feedbacks: list[str] = field(default_factory=list)
    repeats: int = 0

    def __post_init__(self) -> None:
        self._first = cycle(range(len(self.urls)))

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[str, bytes]:
        """(content type, body)."""
        first = next(self._first)
        for tries_left in reversed(range(TRIES)):
            url = self.urls[(first + tries_left) % len(self.urls)]
            try:
                async with (
                    aiohttp.ClientSession(headers={"Connection": "close"} | headers) as session,
                    session.request(method, url + path, data=body) as answer,
                ):
                    got = answer.content_type, await answer.read()
                    if answer.status == 200:
                        return got
                    assert tries_left, (path, answer.status, got)
            except aiohttp.ClientError:
                assert tries_left, path
            self.repeats += 1
            await asyncio.sleep(PAUSE_S)
        raise AssertionError

    async def submit(self, name: str) -> None:
        makefile = f"autograde:\n\t@echo {name} >>/starts; for i in 1 2 3; do echo tick $$i; sleep 0.1; done\n"
        await self.ask("GET", f"/open/test/{name}/")
        await self.ask("POST", f"/upload/test/{name}/", makefile.encode(), Filename="Makefile")
        _, answer = await self.ask("POST", f"/addJob/test/{name}/", addjob(name, ["Makefile"], "out"))
        self.added.append(json.loads(answer)["jobId"])
        async with asyncio.timeout(PATIENCE_S):
            while (got := await self.ask("GET", f"/poll/test/{name}/out/"))[0] == "application/json":
                await asyncio.sleep(0.05)
        self.feedbacks.append(got[1].decode())

    async def submit_until(self, done: asyncio.Event, who: str) -> None:
        number = 0
        while not done.is_set():
            number += 1
            await self.submit(f"{who}{number}")


async def test_no_restart_is_noticed_under_load(rig: Rig) -> None:
    rig.service.environment |= {"TANGO_SLOTS": "2", "TANGO_DISPATCHER_ADOPT_GRACE_S": "60"}
    ports = [str(own_port()), str(own_port())]
    parts = [("tango-http", {"TANGO_PORT": port}) for port in ports] + [("tango-dispatcher", {})] * 2
    running = [await rig.service.run(name, **environment) for name, environment in parts]
    autolab, done = Autolab([f"http://127.0.0.1:{port}" for port in ports]), asyncio.Event()
    async with asyncio.TaskGroup() as load:
        for who in ("ann", "bob", "eve"):
            load.create_task(autolab.submit_until(done, who))
        for process, (name, environment) in zip(running, parts, strict=True):
            before = len(autolab.feedbacks)
            await rig.until(lambda before=before: len(autolab.feedbacks) > before + 2)  # type: ignore[misc]
            assert await process.stop() == 0
            await rig.service.run(name, **environment)
        done.set()
    assert len(set(autolab.added)) == len(autolab.added) == len(autolab.feedbacks)
    assert [f for f in autolab.feedbacks if not f.endswith(f"status 0\n{TICKS}")] == []
    dead = await rig.jobs(1)
    assert sorted(dead) == sorted(autolab.added)
    assert {(job["retries"], dispatched(job)) for job in dead.values()} == {(0, 1)}
    assert len(set(rig.begun())) == len(rig.begun()) == len(autolab.added)
    assert not await rig.jobs(0)
