"""Redis behind Sentinel: the master is killed, and the services go on with what its replica has."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest

from support.jobs import claim_one, spec
from support.redis_fleet import PROGRAM, Watched, ask, certificates
from tango_async.config import Queue as QueueSettings
from tango_async.config import Settings, Store
from tango_async.errors import ConfigError, QueueUnavailable
from tango_async.files.local import LocalStore
from tango_async.model import JobState, Verdict
from tango_async.queue.bells import Bells
from tango_async.queue.redis import Queue

T = TypeVar("T")

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no redis-server")


@pytest.fixture
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    with Watched(tmp_path, getattr(request, "param", 1)) as servers:
        yield servers


async def patiently(work: Callable[[], Awaitable[T]], within_s: float = 60.0) -> T:
    """What a service does: asks again until Redis is there."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await work()
            except QueueUnavailable:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("watched", [1, 3], indirect=True)
async def test_a_killed_master_is_replaced_and_nothing_that_was_replicated_is_lost(
    watched: Watched, tmp_path: Path
) -> None:
    settings = Settings(queue=QueueSettings(url=watched.url), store=Store(data_dir=tmp_path / "data"))
    store = LocalStore(settings.store)
    queue, bells = Queue(settings, marks=store.raise_mark), Bells(settings)
    ids = [(await queue.add(spec(), fingerprint=uuid4().hex)).id for _ in range(20)]
    held = await claim_one(queue)
    assert held is not None
    await queue.start(held, "machine")
    listening = asyncio.create_task(bells.wait_control("a", 60))
    first = watched.master()
    await asyncio.to_thread(watched.replicated)
    await asyncio.to_thread(watched.lose_master)
    with pytest.raises(QueueUnavailable):
        await listening
    more = (await patiently(lambda: queue.add(spec(), fingerprint=uuid4().hex))).id
    assert watched.master() != first
    assert more > max(ids) + 1, "ids go on above the mark, whatever the new master knows"
    assert await queue.reap() == [], "its holder has time to extend"
    assert (await queue.extend([(held.id, held.seq)]))[0] == "OK"
    await queue.end(held, Verdict.SUCCESS, "text", "ref")
    for _ in range(20):
        claim = await claim_one(queue)
        assert claim is not None
        await queue.end(claim, Verdict.SUCCESS, "text", "ref")
    states = {(await queue.job(i)).state for i in [*ids, more]}  # type: ignore[union-attr]
    assert states == {JobState.DEAD}
    assert await claim_one(queue) is None
    for closing in (queue, bells, store):
        await closing.close()


async def test_jobs_that_are_added_and_run_while_the_master_dies_end_once_each(watched: Watched) -> None:
    settings = Settings(queue=QueueSettings(url=watched.url))
    adder, worker = Queue(settings), Queue(settings)
    added: list[int] = []
    ended: list[int] = []

    async def add() -> None:
        while len(added) < 150:
            print_ = uuid4().hex
            added.append((await patiently(lambda print_=print_: adder.add(spec(), fingerprint=print_))).id)
            await asyncio.sleep(0.01)

    async def work() -> None:
        while len(ended) < 150:
            request = uuid4().hex  # the same again is answered with the same job
            claim = await patiently(lambda request=request: claim_one(worker, request=request))
            if claim is not None:
                answer = await patiently(lambda claim=claim: worker.end(claim, Verdict.SUCCESS, "text", "ref"))
                ended.extend([claim.id] * (answer == "OK"))
            elif len(added) == 150 and not await patiently(worker.waiting):
                return
            await asyncio.sleep(0)

    adding, working = asyncio.create_task(add()), asyncio.create_task(work())
    await asyncio.sleep(0.5)
    await asyncio.to_thread(watched.replicated)
    await asyncio.to_thread(watched.lose_master)
    await asyncio.gather(adding, working)
    unknown = [i for i in added if await adder.job(i) is None]
    assert len(unknown) <= 2, "only what the master answered in its last moment, not yet sent on"
    left = [i for i in set(added) - set(unknown) if (await adder.job(i)).state is not JobState.DEAD]  # type: ignore[union-attr]
    assert len(left) <= 1
    await adder.close()
    await worker.close()


async def test_a_master_that_was_demoted_is_left_also_by_connections_that_live(watched: Watched) -> None:
    queue = Queue(Settings(queue=QueueSettings(url=watched.url)))
    await queue.add(spec(), fingerprint="a")
    first = watched.master()
    await asyncio.to_thread(watched.replicated)

    # It refuses until it has heard of a replica, and turns the old master into one only after some seconds.
    await asyncio.to_thread(watched.until, lambda: ask(watched.ports[0], "SENTINEL", "FAILOVER", "tango"))
    await asyncio.to_thread(watched.until, lambda: ask(first, "INFO", "replication")["role"] == "slave", 60.0)
    await patiently(lambda: queue.add(spec(), fingerprint="b"))
    assert len(await queue.live(10)) == 2
    await queue.close()


async def test_all_of_it_over_tls(tmp_path: Path) -> None:
    keys = certificates(tmp_path / "keys")
    files = {"ca": keys / "ca.pem", "cert": keys / "client.pem", "cert_key": keys / "client.key"}
    with Watched(tmp_path / "redis", keys=keys) as watched:
        queue = Queue(Settings(queue=QueueSettings(url=watched.url, **files)))
        await queue.add(spec(), fingerprint="a")
        first = watched.master()
        await asyncio.to_thread(watched.replicated)
        await asyncio.to_thread(watched.lose_master)
        await patiently(lambda: queue.add(spec(), fingerprint="b"))
        assert len(await queue.live(10)) == 2
        assert watched.master() != first
        await queue.close()
        stranger = Queue(Settings(queue=QueueSettings(url=watched.url, **(files | {"ca": keys / "another.pem"}))))
        with pytest.raises(QueueUnavailable, match="no Sentinel tells where tango is"):
            await stranger.open()
        await stranger.close()


async def test_what_sentinels_do_not_know_is_said(watched: Watched) -> None:
    hosts = watched.url.partition("//")[2].partition("/")[0]
    for url, error, said in (
        (
            f"redis+sentinel://{hosts}/other",
            QueueUnavailable,
            "no Sentinel tells where other is: .*knows no such master",
        ),
        ("redis+sentinel://127.0.0.1:1/tango", QueueUnavailable, "no Sentinel tells where tango is"),
        (f"redis://{hosts.split(',')[0]}", ConfigError, r"that is a Sentinel: write redis\+sentinel://"),
    ):
        queue = Queue(Settings(queue=QueueSettings(url=url)))
        with pytest.raises(error, match=said):
            await queue.open()
        await queue.close()


async def test_what_a_master_without_replicas_refuses_is_refused_to_who_asked_for_it_alone(watched: Watched) -> None:
    master = watched.master()
    queue = Queue(Settings(queue=QueueSettings(url=watched.url)))
    await queue._command("SET", "name", "x")
    for port, server in watched.servers.items():
        if port != master:
            server.kill()
    ask(master, "CONFIG", "SET", "min-replicas-to-write", "1")
    async with asyncio.timeout(60):
        reads = [asyncio.ensure_future(queue._command("GET", "name")) for _ in range(2)]
        write = asyncio.ensure_future(queue._command("SET", "name", "y"))
        reads += [asyncio.ensure_future(queue._command("GET", "name")) for _ in range(2)]
        with pytest.raises(QueueUnavailable, match="not the master"):
            await write
        assert await asyncio.gather(*reads) == [b"x"] * 4
    await queue.close()


async def test_it_can_be_closed_at_whatever_moment_while_it_asks_where_the_master_is(watched: Watched) -> None:
    chance = random.Random(1)
    for _ in range(60):
        queue = Queue(Settings(queue=QueueSettings(url=watched.url)))
        asking = asyncio.ensure_future(queue.now_ms())
        for _ in range(chance.randrange(60)):
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await queue.close()
        await asyncio.gather(asking, return_exceptions=True)
