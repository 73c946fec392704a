"""`tango callbacks` and `tango erase` against a real server, as an operator runs them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from cli.test_tango import tango
from support.api import Api, job, serving
from tango_async.config import Settings


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with serving(settings) as api:
        await api.ready_lab()
        yield api


async def run(api: Api, *arguments: object, key: str = "test") -> tuple[int, str, str]:
    code, output, errors = await tango(*arguments, url=f"http://127.0.0.1:{api.port}", key=key)
    return code, output.decode(), errors


async def test_callbacks_are_listed_shown_and_sent_again(api: Api) -> None:
    await api.add()
    await api.end(b"x")
    await api.queue.defer(1, "503 \x1b[2J", None)
    code, listed, _ = await run(api, "callbacks", "--unsent")
    assert code == 0 and listed.splitlines()[1].split()[:2] == ["1", "unsent"]
    assert "\x1b" not in listed and "^[" in listed
    _, listed, _ = await run(api, "callbacks", "--json")
    assert json.loads(listed)[0]["url"] == job()["callback_url"]
    assert (await run(api, "callbacks", "resend", 1))[:2] == (0, "The callback is sent again\n")
    _, shown, _ = await run(api, "callbacks", "show", 1)
    assert "state  pending" in shown and "503 ^[[2J" in shown and "\x1b" not in shown
    _, listed, _ = await run(api, "callbacks", "--unsent")
    assert len(listed.splitlines()) == 1


async def test_a_refusal_is_told_and_fails(api: Api) -> None:
    assert (await run(api, "callbacks", "resend", 7))[0::2] == (2, "tango: Job not found\n")
    assert (await run(api, "callbacks", key="wrong"))[0::2] == (2, "tango: Key not recognized\n")
    code, _, errors = await run(api, "erase", "--yes", "--submitter", "nobody")
    assert code == 2 and "expected an address" in errors


async def test_a_submitter_is_erased_when_it_is_confirmed(api: Api) -> None:
    await api.add()
    assert (await run(api, "erase", "--submitter", "student@example.edu"))[0] == 130
    assert len(await api.queue.live(10)) == 1
    code, said, _ = await run(api, "erase", "--submitter", "student@example.edu", "--yes")
    assert (code, said) == (0, "Erased 1 jobs and 0 files\n")
    assert await api.queue.live(10) == await api.queue.dead(10) == []


async def test_hosts_are_listed_and_told_what_to_do(api: Api) -> None:
    await api.publish("autograding_image", host="east\x1b[2J", problem="none")
    code, listed, _ = await run(api, "hosts")
    assert code == 0 and "\x1b" not in listed
    assert listed.splitlines()[1].split() == ["host", "east^[[2J", "localDocker", "2", "1", "0", "ready", "none"]
    assert json.loads((await run(api, "hosts", "--json"))[1])[0]["install"] == "host"
    assert (await run(api, "host", "pause", "host"))[:2] == (0, "Paused: east^[[2J (host)\n")
    assert (await run(api, "host", "slots", 7, "host"))[:2] == (0, "7 slots: east^[[2J (host)\n")
    orders = await api.queue.orders("host")
    assert (orders.paused, orders.slots) == (True, 7)
    await run(api, "host", "resume", "host")
    await run(api, "host", "slots", "default", "host")
    assert not (await api.queue.orders("host")).paused
    assert (await run(api, "host", "pause", "west"))[0::2] == (2, "tango: Host not found\n")
    code, _, errors = await run(api, "host", "slots", 0, "host")
    assert code == 2 and "expected 1 to 1000" in errors
    assert (await run(api, "hosts", key="wrong"))[0::2] == (2, "tango: Key not recognized\n")


async def test_a_job_is_shown_with_its_machine(api: Api) -> None:
    await api.add(vm={"cores": 2, "memory": 256})
    assert "machine   2.0 cores, 256 MB\n" in (await run(api, "job", 1))[1]


async def test_a_job_is_cancelled_by_its_id_though_a_later_one_has_its_output(api: Api) -> None:
    first, second = [(await api.add(timeout=timeout)).json["jobId"] for timeout in (10, 11)]
    assert (await run(api, "cancel", first))[:2] == (0, "Job cancelled\n")
    assert [job.id for job in await api.queue.live(10)] == [second]
    assert (await run(api, "cancel", first))[0::2] == (2, "tango: Job already completed\n")
    assert (await run(api, "cancel", 999))[0::2] == (2, "tango: Job not found\n")
    assert await api.queue.claim("host#1", "r", {"autograding_image": 1})
    assert (await run(api, "cancel", second))[:2] == (0, "Job cancellation requested\n")
