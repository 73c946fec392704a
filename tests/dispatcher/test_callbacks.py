"""Callbacks reach a real receiver that refuses, redirects and hangs, in the form that Autolab parses."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from dispatcher.conftest import Bench

Handler = Callable[[web.Request, int], Awaitable[web.Response]]


@dataclass
class Receiver:
    """Remembers what came, and answers as it is told: first this, then that, then 204."""

    url: str = ""
    answers: list[Handler] = field(default_factory=list)
    came: list[tuple[str, bytes, dict[str, str], bytes]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        raw = await request.read()
        self.came.append((request.path, raw, dict(request.headers), _part(raw)))
        if self.answers:
            return await self.answers.pop(0)(request, len(self.came))
        return web.Response(status=204)


def _part(raw: bytes) -> bytes:
    head, _, rest = raw.partition(b"\r\n\r\n")
    boundary = head.split(b"\r\n")[0]
    return rest.removesuffix(b"\r\n" + boundary + b"--\r\n")


def status(code: int, **options: object) -> Handler:
    async def answer(_: web.Request, __: int) -> web.Response:
        return web.Response(status=code, **options)  # type: ignore[arg-type]

    return answer


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", receiver.handle)
    async with TestServer(app) as server:
        receiver.url = str(server.make_url("/cb?dave=1"))
        yield receiver


@pytest.fixture
def quick(bench: Bench) -> Bench:
    """No minimum age, so that the tests wait for deliveries and not for the clock."""
    callbacks = msgspec.structs.replace(bench.settings.callbacks, min_age_s=0.0, unanswered_s=0.0, secret="s3cret")
    bench.settings = msgspec.structs.replace(bench.settings, callbacks=callbacks)
    bench.queue._settings = bench.settings
    return bench


async def arrived(receiver: Receiver, number: int = 1) -> None:
    async with asyncio.timeout(15):
        while len(receiver.came) < number:
            await asyncio.sleep(0.02)


async def until_delivered(bench: Bench) -> None:
    async with asyncio.timeout(5):
        while await bench.queue.next_due_s() is not None:
            await asyncio.sleep(0.02)


async def test_the_feedback_comes_as_one_file_part_with_a_file_name(quick: Bench, receiver: Receiver) -> None:
    await quick.start()
    job, feedback = await quick.grade("say hi", callback_url=receiver.url, output_name="a b.txt")
    await arrived(receiver)
    path, raw, headers, part = receiver.came[0]
    assert path == "/cb"
    assert part.decode() == feedback
    assert b'Content-Disposition: form-data; name="file"; filename="file"\r\n' in raw
    assert headers["Filename"] == "a b.txt"
    assert headers["X-Tango-Job"] == str(job.id)
    assert headers["X-Tango-Signature"] == "sha256=" + hmac.new(b"s3cret", raw, hashlib.sha256).hexdigest()
    await until_delivered(quick)


async def test_a_receiver_that_fails_gets_it_again(quick: Bench, receiver: Receiver) -> None:
    receiver.answers = [status(503), status(200, text="<html>", content_type="text/html")]
    await quick.start()
    await quick.grade("exit 0", callback_url=receiver.url)
    await arrived(receiver, 3)
    assert len({part for _, _, _, part in receiver.came}) == 1
    await until_delivered(quick)


async def test_a_redirect_is_posted_again_with_its_body(quick: Bench, receiver: Receiver) -> None:
    receiver.answers = [status(302, headers={"Location": "/elsewhere"})]
    await quick.start()
    _, feedback = await quick.grade("say hi", callback_url=receiver.url)
    await arrived(receiver, 2)
    assert [path for path, *_ in receiver.came] == ["/cb", "/elsewhere"]
    assert receiver.came[1][3].decode() == feedback
    await until_delivered(quick)


async def test_a_cancelled_job_without_output_is_told_too(quick: Bench, receiver: Receiver) -> None:
    job_id = await quick.add("exit 0", callback_url=receiver.url)
    await quick.queue.cancel(job_id)
    await quick.start()
    await arrived(receiver)
    assert b"Error: Job was cancelled" in receiver.came[0][3]


async def test_a_delivery_under_way_when_the_dispatcher_stops_is_made_again(quick: Bench, receiver: Receiver) -> None:
    async def hang(_: web.Request, __: int) -> web.Response:
        await asyncio.sleep(30)
        return web.Response(status=204)

    callbacks = msgspec.structs.replace(quick.settings.callbacks, timeout_s=0.1)
    quick.settings = msgspec.structs.replace(quick.settings, callbacks=callbacks)
    receiver.answers = [hang]
    await quick.start()
    await quick.grade("exit 0", callback_url=receiver.url)
    await arrived(receiver)
    await quick.finish()
    await quick.start()
    await arrived(receiver, 2)
    await until_delivered(quick)


async def test_a_callback_waits_for_autolab_to_have_stored_the_id(bench: Bench, receiver: Receiver) -> None:
    await bench.start()
    job_id = await bench.add("exit 0", callback_url=receiver.url)
    await bench.until(job_id)
    assert (await bench.queue.next_due_s() or 0) > 100
    await bench.queue.answered(job_id)
    assert 1.0 < (await bench.queue.next_due_s() or 0) <= 2.0
    assert receiver.came == []
    await arrived(receiver)
