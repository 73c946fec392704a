"""Clients that send too much, too slowly, the wrong key, half a body; and servers without a queue."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path

import pytest

from support.api import Api, head, job, read_reply, serving
from support.load import waited_s
from tango_async.app import HTTP_TIMEOUT_S
from tango_async.config import Settings

MIB = 1024**2

ROUTES = [
    ("GET", "/open/{}/lab/"), ("POST", "/upload/{}/lab/"), ("POST", "/addJob/{}/lab/"), ("GET", "/poll/{}/lab/x"),
    ("GET", "/getPartialOutput/{}/1/"), ("GET", "/jobs/{}/0/"), ("POST", "/jobs/{}/1"), ("GET", "/info/{}/"),
    ("GET", "/pool/{}/"), ("GET", "/pool/{}/img/"), ("POST", "/prealloc/{}/img/1/"), ("GET", "/prealloc/{}/img/1"),
    ("POST", "/scale/{}/0/1/"), ("POST", "/build/{}/"), ("POST", "/cancel/{}/lab/x/"), ("POST", "/cancel/{}/1"),
]  # fmt: skip


def temporary(labs: Path) -> list[Path]:
    return list((labs / ".tango" / "tmp").iterdir())


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("key", ["bad", "testx", "tes", "%FFtest", "TEST", "caf%C3%A9"])
async def test_every_route_wants_a_key(api: Api, method: str, path: str, key: str) -> None:
    reply = await api.send(method, path.format(key), b"" if method == "POST" else None)
    assert reply.status == 200
    assert reply.outcome in [(-1, "Key not recognized"), (-1, "The path is not valid UTF-8")]


async def test_a_bearer_token_is_a_key_too(api: Api) -> None:
    reply = await api.send("GET", "/open/x/lab/", headers="Authorization: Bearer test\r\n")
    assert reply.outcome == (0, "Created directory")
    assert (await api.get("/open/test/lab/")).outcome == (0, "Found directory")
    wrong = await api.send("GET", "/open/x/lab/", headers="Authorization: Bearer tset\r\n")
    assert wrong.message == "Key not recognized"


@pytest.mark.parametrize("path", ["/upload/bad/lab/", "/build/bad/", "/addJob/bad/lab/"])
async def test_a_wrong_key_is_heard_by_a_client_that_sends_all_before_it_reads(api: Api, path: str) -> None:
    reader, writer = await api.connect()
    writer.write(head("POST", path, "Filename: f\r\nimageName: i\r\n", 10 * MIB))
    for _ in range(10):
        writer.write(b"x" * MIB)
        await writer.drain()
    assert (await read_reply(reader)).message == "Key not recognized"
    writer.close()


async def test_what_a_wrong_key_sends_is_not_taken_for_ever(api: Api) -> None:
    reader, writer = await api.connect()
    writer.write(head("POST", "/upload/bad/lab/", "Filename: f\r\n", 4000 * MIB))
    assert (await read_reply(reader)).message == "Key not recognized"
    sent = 0
    with pytest.raises(ConnectionError):
        while sent < 200 * MIB:
            writer.write(b"x" * MIB)
            await writer.drain()
            sent += MIB
    assert sent < 100 * MIB


async def test_a_connection_lives_on_after_a_refused_body(api: Api) -> None:
    reader, writer = await api.connect()
    for _ in range(3):
        writer.write(b"POST /upload/bad/lab/ HTTP/1.1\r\nHost: t\r\nContent-Length: 100000\r\n\r\n")
        await asyncio.sleep(0)
        writer.write(b"x" * 100_000)
        assert (await read_reply(reader)).message == "Key not recognized"
    writer.close()


async def test_an_upload_that_breaks_off_leaves_the_old_file_and_no_other(api: Api, labs: Path) -> None:
    await api.ready_lab()
    _, writer = await api.connect()
    writer.write(head("POST", "/upload/test/lab/", "Filename: hello.sh\r\n", 9 * MIB) + b"x" * 3 * MIB)
    await wait_until(lambda: bool(temporary(labs)))
    writer.close()
    await wait_until(lambda: not temporary(labs))
    assert (labs / "test-lab" / "hello.sh").read_bytes() == b"echo hello\n"


async def wait_until(condition: object, within_s: float = 60.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


SLOW = pytest.mark.parametrize("settings", [{"http": {"body_timeout_s": 0.4}}], indirect=True)


@SLOW
@pytest.mark.parametrize("path", ["/upload/test/lab/", "/addJob/test/lab/", "/prealloc/test/img/1/"])
async def test_a_client_that_falls_silent_is_told_and_left(api: Api, labs: Path, path: str) -> None:
    await api.ready_lab()
    reader, writer = await api.connect()
    writer.write(head("POST", path, "Filename: f\r\n", 100) + b"{")
    reply = await read_reply(reader)
    assert (reply.status, reply.outcome) == (408, (-1, "The body comes too slowly"))
    assert await reader.read() == b""
    assert temporary(labs) == []
    writer.close()


@SLOW
async def test_a_client_that_sends_a_byte_now_and_then_is_left_too(api: Api, labs: Path) -> None:
    await api.ready_lab()
    reader, writer = await api.connect()
    writer.write(head("POST", "/upload/test/lab/", "Filename: f\r\n", 100))
    reply = asyncio.create_task(read_reply(reader))
    while not reply.done():
        writer.write(b"x")
        await asyncio.sleep(0.1)
    assert (await reply).status == 408
    assert temporary(labs) == []
    writer.close()


LIMITED = pytest.mark.parametrize("settings", [{"http": {"max_upload_bytes": MIB}}], indirect=True)


@LIMITED
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_over_the_limit_is_413_in_tangos_shape(api: Api, labs: Path, chunked: bool) -> None:
    await api.ready_lab()
    reader, writer = await api.connect()
    if chunked:
        writer.write(head("POST", "/upload/test/lab/", "Filename: f\r\nTransfer-Encoding: chunked\r\n"))
        for _ in range(3):
            writer.write(b"100000\r\n" + b"x" * MIB + b"\r\n")
        writer.write(b"0\r\n\r\n")
    else:
        writer.write(head("POST", "/upload/test/lab/", "Filename: f\r\n", 3 * MIB) + b"x" * 3 * MIB)
    reply = await read_reply(reader)
    assert (reply.status, reply.message) == (413, "The body is too large: at most 1048576 bytes are accepted")
    assert temporary(labs) == []
    writer.close()


async def test_a_chunked_upload_is_stored(api: Api, labs: Path) -> None:
    await api.ready_lab()
    reader, writer = await api.connect()
    chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    writer.write(head("POST", "/upload/test/lab/", "Filename: f\r\nTransfer-Encoding: chunked\r\n") + chunks)
    assert (await read_reply(reader)).message == "Uploaded file"
    assert (labs / "test-lab" / "f").read_bytes() == b"abcde"
    writer.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope/", 404), ("POST", "/nope", 404), ("GET", "/open/test/", 404), ("GET", "/jobs/test/", 404),
        ("POST", "/", 405), ("HEAD", "/", 405), ("POST", "/open/test/lab/", 405), ("GET", "/upload/test/lab/", 405),
        ("GET", "/addJob/test/lab/", 405), ("POST", "/poll/test/lab/x/", 405), ("GET", "/build/test/", 405),
    ],
)  # fmt: skip
async def test_unknown_routes_and_methods_say_so_in_json(api: Api, method: str, path: str, status: int) -> None:
    reader, writer = await api.connect()
    writer.write(head(method, path))
    top = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert f" {status} " in top.splitlines()[0]
    assert "application/json" in top
    assert ("Allow: " in top) == (status == 405)
    writer.close()


async def test_what_is_no_http_is_a_line_in_the_log_and_no_traceback(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reply = await api.send("GET", "/open/test/lab/", headers="X: a\0b\r\n")
    assert (reply.status, reply.json["statusId"]) == (400, -1)
    assert "no HTTP request" in caplog.text and "Traceback" not in caplog.text


async def test_no_key_is_logged(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await api.get("/open/test/lab/")
    await api.get("/open/almost-test/lab/")
    await api.get("/test/open/")
    await api.send("GET", "/open/x/y/", headers="Authorization: Bearer test\r\n")
    await api.send("GET", "/open/test/\0", headers="X-Key: test\0\r\n")
    await api.upload("f", b"")
    await api.add()
    ours = [r.getMessage() + str(r.exc_info) for r in caplog.records if r.name.startswith(("tango", "aiohttp"))]
    assert any("GET /open/KEY/lab/ 200" in line for line in ours)
    assert not [line for line in ours if "test" in line]


async def test_our_own_faults_are_logged_without_keys_and_told_without_details(
    api: Api, labs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (labs / "test-lab").write_text("a file where the courselab should be")
    reply = await api.get("/open/test/lab/")
    assert (reply.status, reply.outcome) == (500, (-1, "The file store failed"))
    assert "KEY-lab" in caplog.text and "Traceback" in caplog.text
    assert "test-lab" not in caplog.text.replace(str(labs), "")


async def test_a_record_that_cannot_be_read_is_an_internal_error(api: Api) -> None:
    await api.queue._command("HSET", f"{api.settings.queue.prefix}job:1", "state", "junk")
    reply = await api.get("/getPartialOutput/test/1/")
    assert (reply.status, reply.outcome) == (500, (-1, "Internal error"))


@pytest.mark.parametrize("settings", [{"queue": {"url": "redis://127.0.0.1:1"}}], indirect=True)
async def test_without_a_queue_the_client_hears_so_within_a_second(settings: Settings) -> None:
    async with serving(settings, timeout_s=HTTP_TIMEOUT_S) as api:
        await api.ready_lab()
        since = time.monotonic() - waited_s()
        for reply in (await api.add(), await api.get("/info/test/"), await api.get("/poll/test/lab/x")):
            assert (reply.status, reply.headers["retry-after"]) == (503, "5")
            assert reply.outcome == (-1, "The job queue cannot be reached; try again soon")
            # The queue is given up after 0.9 s; what is more is this machine's.
            assert time.monotonic() - waited_s() - since < 2.0
            since = time.monotonic() - waited_s()


async def test_a_client_that_gave_up_before_its_answer_does_not_count_as_answered(api: Api, settings: Settings) -> None:
    await api.ready_lab()
    body = json.dumps(job()).encode()
    for _ in range(5):
        _, writer = await api.connect()
        writer.write(head("POST", "/addJob/test/lab/", "", len(body)) + body)
        await writer.drain()
        writer.transport.abort()
    async with asyncio.timeout(60):
        while (await api.queue.counters()).get("job_requests") != 1:
            await asyncio.sleep(0.01)
    await api.end(b"x")
    due = await api.queue.next_due_s()
    assert due is not None and due > settings.callbacks.min_age_s


async def test_the_loop_is_free_while_much_is_uploaded_and_polled(api: Api) -> None:
    await api.ready_lab()
    await api.add()
    await api.end(b"y" * 64 * MIB)
    lags: list[float] = []

    async def tick() -> None:
        while True:
            since = time.perf_counter() - waited_s()
            await asyncio.sleep(0.005)
            lags.append(time.perf_counter() - waited_s() - since - 0.005)

    ticking = asyncio.create_task(tick())
    path = "/poll/test/lab/student@example.edu_1_lab_autograde.txt"
    await asyncio.gather(api.upload("big", b"x" * 64 * MIB), api.get(path))
    ticking.cancel()
    assert sorted(lags)[int(len(lags) * 0.95)] < 0.1
