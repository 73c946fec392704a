"""Data and records of the release before, and of the one after: what they still are to this one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import msgpack
import msgspec
import pytest

from support.jobs import claim_one, limits, spec
from tango_async.config import Settings
from tango_async.errors import QueueBroken, QueueUnavailable
from tango_async.model import RECORD_VERSION, DispatcherRecord, JobState, Verdict
from tango_async.queue import keys, records
from tango_async.queue.redis import Queue

IMAGE = "autograding_image"


@pytest.fixture
async def raw(settings: Settings) -> AsyncIterator[Queue]:
    """A queue under another prefix, to write the tested one's keys with."""
    other = msgspec.structs.replace(settings, queue=msgspec.structs.replace(settings.queue, prefix="raw" + uuid4().hex))
    queue = Queue(other)
    yield queue
    await queue._command("DEL", f"{other.queue.prefix}server")
    await queue.close()


def first_release(name: str, number: int) -> bytes:
    """A spec as the first release wrote it."""
    fields = {
        "v": 1, "name": name, "lab": "key-course-f24-lab", "courselab": "course-f24-lab", "image": IMAGE,
        "output_name": f"{number}.out", "pin": f"pin{number}", "files": [],
        "limits": msgspec.to_builtins(limits(cores=1.5)),
    }  # fmt: skip
    return bytes(msgpack.packb(fields))


async def old_data(raw: Queue, prefix: str) -> None:
    """Two queued jobs, one that runs and one that was only claimed, as the layout before fair share had them."""
    base: dict[str, Any] = {
        "class": IMAGE, "lab": "key-course-f24-lab", "added_ms": "1000", "asked_ms": "1000", "retries": "0",
        "cb": "", "cb_min_ms": "2000", "cb_wait_ms": "130000", "cb_tries": "0", "answered_ms": "0",
    }  # fmt: skip
    states = {1: "running", 2: "queued", 3: "assigned", 4: "queued"}
    now = await raw.now_ms()
    for number, state in states.items():
        held = (
            {"holder": "old", "attempts": "1", "seq": str(number)}
            if state != "queued"
            else {"attempts": "0", "seq": "0"}
        )
        job = base | {"spec": first_release("course_lab_1_a@b.c", number), "out": f"{number}.out", "state": state}
        job |= {"order": str(number), "pin": f"pin{number}", **held}
        await raw._command("HSET", f"{prefix}job:{number}", *[part for pair in job.items() for part in pair])
        await raw._command("HSET", f"{prefix}pins", f"pin{number}", number)
        if state == "queued":
            await raw._command("ZADD", f"{prefix}queued", number, number)
            await raw._command("ZADD", f"{prefix}wait:{IMAGE}", number, number)
        else:
            await raw._command("ZADD", f"{prefix}held", now + 15000, number)
    await raw._command("HSET", f"{prefix}job:1", "machine", "m1", "started_ms", now)
    await raw._command("HSET", f"{prefix}machines", "m1", "1")
    await raw._command("SET", f"{prefix}ids", 4)
    await raw._command("SET", f"{prefix}seq", 9)


async def test_jobs_of_the_layout_before_fair_share_are_run_to_their_end(
    settings: Settings, raw: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    await old_data(raw, settings.queue.prefix)
    queue = Queue(settings)
    await queue.open()
    assert f"4 jobs of an older release were brought to format {keys.FORMAT}" in caplog.text
    assert await queue.waiting() == {IMAGE: 2}
    added = (await queue.add(spec(), fingerprint="new")).id
    claims = await queue.claim("new", "r", {IMAGE: 10}, 10)
    assert {claim.id for claim in claims} == {2, 4, added}
    assert [claim.spec.slots for claim in claims if claim.id == 2] == [2]
    for claim in claims:
        await queue.start(claim, f"machine{claim.id}")
        assert await queue.end(claim, Verdict.SUCCESS, "text", "ref") == "OK"
    assert await queue.extend([(1, 1), (3, 3)]) == ["OK", "OK"]
    adopted = await queue.adopt("m1", "new")
    assert adopted is not None
    assert await queue.end(adopted[0], Verdict.SUCCESS, "text", "ref") == "OK"
    assert (await queue._run("retry", 3, 3, "why", -1, "")) == b"OK"
    again = await claim_one(queue)
    assert again is not None and again.id == 3
    await queue.end(again, Verdict.SUCCESS, "text", "ref")
    assert [job.state for job in await queue.dead(10)] == [JobState.DEAD] * 5
    left = await queue._command("KEYS", f"{settings.queue.prefix}*")
    kinds = {key.decode().removeprefix(settings.queue.prefix).partition(":")[0] for key in left}
    assert not kinds & {"wait", "parked", "queued", "held", "running", "classes", "pins", "machines"}
    await queue.close()


async def test_the_same_data_is_migrated_once_and_as_often_as_one_likes(settings: Settings, raw: Queue) -> None:
    prefix = settings.queue.prefix
    await old_data(raw, prefix)

    async def dump() -> dict[bytes, Any]:
        names = await raw._command("KEYS", f"{prefix}*")
        kinds = {"hash": "HGETALL", "string": "GET", "set": "SMEMBERS"}
        found = {}
        for name in sorted(names):
            kind = (await raw._command("TYPE", name)).decode()
            read = (kinds[kind], name) if kind in kinds else ("ZRANGE", name, 0, -1, "WITHSCORES")
            found[name] = await raw._command(*read) if kind != "list" else None
        return found

    first = Queue(settings)
    await first.open()
    await raw._command("HSET", f"{prefix}server", "quiet_until", "0")
    before = await dump()
    await raw._command("HDEL", f"{prefix}server", "format")
    await asyncio.gather(*(first._run("migrate", keys.FORMAT) for _ in range(3)))
    assert await dump() == before
    await first.close()


async def test_data_of_a_newer_layout_is_left_alone(settings: Settings, raw: Queue) -> None:
    await raw._command("HSET", f"{settings.queue.prefix}server", "format", keys.FORMAT + 1)
    queue = Queue(settings)
    with pytest.raises(QueueBroken, match=r"a newer release wrote.*upgrade this process"):
        await queue.open()
    assert await raw._command("HGETALL", f"{settings.queue.prefix}server") == {b"format": b"%d" % (keys.FORMAT + 1)}
    await queue.close()


# -- records -----------------------------------------------------------------------------------------


def of_release(plain: dict[str, Any], release: int) -> bytes:
    """A record as the release before wrote it, without what is new; or as the one after may, with more."""
    if release < RECORD_VERSION:
        new = {"requires", "labels", "shut"}
        plain = {name: value for name, value in plain.items() if name not in new}
    if release > RECORD_VERSION:
        plain |= {"novelty": {"a": [1]}}
        plain["limits" if "limits" in plain else "pools"] |= {"novelty": {}}
    return bytes(msgpack.packb(plain | {"v": release}))


@pytest.mark.parametrize("release", [RECORD_VERSION - 1, RECORD_VERSION, RECORD_VERSION + 1])
async def test_jobs_of_servers_of_the_next_releases_are_claimed_and_shown(
    queue: Queue, release: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = spec(callback_url="http://h/", submitter="a@b.c", notes=("a note",))
    pack = records.pack
    monkeypatch.setattr(records, "pack", lambda record: of_release(msgspec.to_builtins(record), release))
    added = await queue.add(wanted, fingerprint="f")
    monkeypatch.setattr(records, "pack", pack)
    claim = await claim_one(queue)
    assert claim is not None and claim.id == added.id
    assert msgspec.structs.replace(claim.spec, v=RECORD_VERSION) == wanted
    assert (await queue.live(5))[0].spec == claim.spec
    await queue.end(claim, Verdict.SUCCESS, "text", "ref")


@pytest.mark.parametrize("release", [RECORD_VERSION - 1, RECORD_VERSION, RECORD_VERSION + 1])
async def test_dispatchers_of_the_next_releases_are_seen(
    queue: Queue, release: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = DispatcherRecord(
        install="host", instance="1", host="h", vmms="v", version="0", images=(IMAGE,), slots=4, busy=1, quiet_cores=1
    )
    monkeypatch.setattr(records, "pack", lambda one: of_release(msgspec.to_builtins(one), release))
    await queue.beat(record)
    (seen,) = await queue.dispatchers()
    assert (seen.v, seen.slots, seen.images, seen.labels, seen.shut) == (release, 4, (IMAGE,), (), {})
    assert await queue.pause("host", True)


async def test_a_record_of_two_releases_on_is_refused_by_name(queue: Queue) -> None:
    with pytest.raises(QueueUnavailable, match=f"version {RECORD_VERSION + 2} was written by a newer release"):
        records.dispatcher(msgpack.packb({"v": RECORD_VERSION + 2}), 0.0)
