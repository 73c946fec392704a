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
