"""Callbacks reach a real receiver that refuses, redirects and hangs, in the form that Autolab parses."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from dispatcher.conftest import Bench
from support.redis_fleet import certificates
from tango_async.config import MOST_REDIRECTS
from tango_async.dispatcher import callbacks
from tango_async.machine import Exit
from tango_async.model import CallbackRecord, CallbackState, JobState, Verdict

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


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", receiver.handle)
    server = TestServer(app)
    await server.start_server(ssl=tls)
    receiver.url = str(server.make_url("/cb?dave=1"))
    try:
        yield receiver
    finally:
        await server.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
def quick(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """No minimum age, and looks one after the other, so that the tests wait for deliveries and not for the clock."""
    monkeypatch.setattr(callbacks, "LOOK_S", 0.05)
    change(bench, min_age_s=0.0, unanswered_s=0.0, secret="s3cret")
    return bench


def change(bench: Bench, **changes: object) -> None:
    changed = msgspec.structs.replace(bench.settings.callbacks, **changes)
    bench.settings = msgspec.structs.replace(bench.settings, callbacks=changed)
    bench.queue._settings = bench.settings


async def arrived(receiver: Receiver, number: int = 1) -> None:
    async with asyncio.timeout(60):
        while len(receiver.came) < number:
            await asyncio.sleep(0.02)


async def tried(bench: Bench, job_id: int, times: int = 1) -> CallbackRecord:
    """How it stands with the callback when so many tries have come to their ends."""
    async with asyncio.timeout(60):
        while True:
            record = await bench.queue.callback(job_id)
            if record is not None and len(record.log) >= times:
                return record
            await asyncio.sleep(0.02)


async def make_due(bench: Bench, job_id: int) -> None:
    """Now, however long the next try was to wait."""
    await bench.queue._command("ZADD", f"{bench.queue._prefix}outbox", "XX", 0, job_id)


async def until_delivered(bench: Bench) -> None:
    async with asyncio.timeout(60):
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
    job, _ = await quick.grade("exit 0", callback_url=receiver.url)
    for number in (1, 2):
        assert (await tried(quick, job.id, number)).state is CallbackState.PENDING
        await make_due(quick, job.id)
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

    usual_s = quick.settings.callbacks.timeout_s
    change(quick, timeout_s=0.1)  # by which it is due again so soon
    receiver.answers = [hang]
    await quick.start()
    await quick.grade("exit 0", callback_url=receiver.url)
    await arrived(receiver)
    await quick.finish()
    change(quick, timeout_s=usual_s)
    await quick.start()
    await arrived(receiver, 2)
    await until_delivered(quick)


async def test_a_callback_waits_for_autolab_to_have_stored_the_id(bench: Bench, receiver: Receiver) -> None:
    change(bench, min_age_s=1.0)
    await bench.start()
    job = await bench.until(await bench.add("exit 0", callback_url=receiver.url))
    waits = await bench.queue.callback(job.id)
    assert waits is not None and waits.due_ms == job.added_ms + 130_000
    answered_ms = await bench.queue.now_ms()
    await bench.queue.answered(job.id)
    record = await tried(bench, job.id)
    assert record.state is CallbackState.DELIVERED and record.log[0].at_ms >= answered_ms + 1000


@pytest.mark.parametrize(
    ("trusted", "host", "delivered"),
    [("ca", "127.0.0.1", True), ("another", "127.0.0.1", False), ("ca", "localhost", False)],
)
async def test_an_https_receiver_is_delivered_to_only_if_its_certificate_is_trusted_and_of_its_name(
    quick: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: str, host: str, delivered: bool
) -> None:
    keys = certificates(tmp_path / "keys")
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(keys / "server.pem", keys / "server.key")
    monkeypatch.setenv("SSL_CERT_FILE", str(keys / f"{trusted}.pem"))
    async with receiving(own) as receiver:
        await quick.start()
        job, _ = await quick.grade("exit 0", callback_url=str(URL(receiver.url).with_host(host)))
        record = await tried(quick, job.id)
    if delivered:
        assert (record.state, len(receiver.came)) == (CallbackState.DELIVERED, 1)
    else:
        assert (record.state, len(receiver.came)) == (CallbackState.PENDING, 0)
        assert "CERTIFICATE_VERIFY_FAILED" in record.log[-1].text


@pytest.mark.parametrize("destination", ["http://localhost:{port}/in", "//[::1]:{port}/in", "file:///etc/hostname"])
async def test_a_redirect_to_a_host_that_is_not_allowed_is_not_followed(
    quick: Bench, receiver: Receiver, destination: str
) -> None:
    change(quick, allow=("127.0.0.1",))
    elsewhere = destination.format(port=URL(receiver.url).port)
    receiver.answers = [status(307, headers={"Location": elsewhere})]
    await quick.start()
    job, _ = await quick.grade("exit 0", callback_url=receiver.url)
    record = await tried(quick, job.id)
    assert record.state is CallbackState.PENDING
    assert record.log[-1].text.endswith("is not among callbacks.allow")
    assert [path for path, *_ in receiver.came] == ["/cb"]


async def test_a_redirect_to_another_host_that_is_allowed_is_followed(quick: Bench, receiver: Receiver) -> None:
    change(quick, allow=("127.0.0.1", "localhost"))
    receiver.answers = [status(307, headers={"Location": f"http://localhost:{URL(receiver.url).port}/in"})]
    await quick.start()
    job, _ = await quick.grade("exit 0", callback_url=receiver.url)
    assert (await tried(quick, job.id)).state is CallbackState.DELIVERED
    assert [path for path, *_ in receiver.came] == ["/cb", "/in"]


async def test_redirects_without_end_are_a_failed_delivery(quick: Bench, receiver: Receiver) -> None:
    receiver.answers = [status(302, headers={"Location": "/cb"})] * 50
    await quick.start()
    job, _ = await quick.grade("exit 0", callback_url=receiver.url)
    record = await tried(quick, job.id)
    assert (record.state, record.log[-1].text) == (CallbackState.PENDING, "too many redirects")
    assert len(receiver.came) == 1 + MOST_REDIRECTS


async def test_a_delivery_is_tried_ever_more_rarely_and_given_up_at_the_horizon(
    quick: Bench, receiver: Receiver
) -> None:
    receiver.answers = [status(503)] * 50
    change(quick, horizon_s=3600.0)
    await quick.start()
    job, _ = await quick.grade("exit 0", callback_url=receiver.url)
    for number in range(1, 5):
        record = await tried(quick, job.id, number)
        assert record.state is CallbackState.PENDING
        wait_s = record.due_ms / 1000 - record.log[-1].at_ms / 1000
        assert 0.8 * 2 ** (number - 1) - 0.1 <= wait_s <= 1.2 * 2 ** (number - 1) + 0.1
        if number == 4:
            await quick.queue._command("HINCRBY", f"{quick.queue._prefix}job:{job.id}", "ended_ms", -3_600_000)
        await make_due(quick, job.id)
    record = await tried(quick, job.id, 5)
    assert (record.state, record.tries, record.log[-1].text) == (CallbackState.UNSENT, 5, "503")
    assert await quick.queue.next_due_s() is None


async def test_redis_out_of_memory_knows_what_was_delivered_and_delivers_the_rest_when_there_is_room(
    quick: Bench, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    async def fill(_: web.Request, __: int) -> web.Response:
        await quick.queue._command("CONFIG", "SET", "maxmemory", 1)
        return web.Response(status=204)

    def looks() -> int:
        """That found Redis full."""
        return sum("callbacks wait" in record.getMessage() for record in caplog.records)

    receiver.answers = [fill]
    await quick.start()
    later = await quick.add("wait\nexit 0", callback_url=receiver.url)
    await quick.until(later, JobState.RUNNING)
    try:
        job, _ = await quick.grade("exit 0", callback_url=receiver.url)
        assert (await tried(quick, job.id)).state is CallbackState.DELIVERED
        quick.engine.go.set()
        await quick.until(later)
        before = looks()
        await quick.until_true(lambda: looks() >= before + 2)
        waits = await quick.queue.callback(later)
        assert waits is not None
        assert (waits.state, waits.tries, len(receiver.came)) == (CallbackState.PENDING, 0, 1)
    finally:
        await quick.queue._command("CONFIG", "SET", "maxmemory", 0)
    assert (await tried(quick, later)).state is CallbackState.DELIVERED
    assert len(receiver.came) == 2


async def test_a_host_that_takes_no_jobs_any_more_ends_what_runs_there_and_delivers(
    quick: Bench, receiver: Receiver
) -> None:
    quick.change(pause_after_faults=2, try_again_s=100, job_retries=0)
    await quick.start()
    runs = await quick.add("say done\nhang", timeout_s=60, callback_url=receiver.url)
    await quick.until(runs, JobState.RUNNING)
    quick.engine.broken = dict.fromkeys(quick.engine.images, "exec format error")
    for _ in range(2):
        assert (await quick.grade("exit 0"))[0].verdict is not Verdict.SUCCESS
    async with asyncio.timeout(60):
        while not (await quick.queue.dispatchers())[0].shut:
            await asyncio.sleep(0.02)
    (machine,) = quick.engine.machines.values()
    machine.end(Exit(code=0))
    assert (await tried(quick, runs)).state is CallbackState.DELIVERED
    job = await quick.until(runs)
    assert (job.verdict, job.attempts) == (Verdict.SUCCESS, 1)
    assert receiver.came[0][3].endswith(b"done\n")
