"""/healthz, /readyz, /metrics: what those who run it ask, and what it keeps from everybody else."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.api import Api, job, serving
from support.redis_server import RedisServer
from tango_async.config import Settings
from tango_async.http import health

IMAGE = "autograding_image"
WITHIN_S = health.WITHIN_S
BEARER = "Authorization: Bearer test\r\n"
PROXY = "X-Forwarded-For: 127.0.0.1\r\n"


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No check is given up while it goes on."""
    monkeypatch.setattr(health, "WITHIN_S", 60.0)


async def samples(api: Api) -> dict[str, float]:
    """Each sample of /metrics as `name{label=value,…}`."""
    reply = await api.get("/metrics")
    assert reply.type == "text/plain" and reply.status == 200
    return {
        name + ("{" + ",".join(f"{k}={v}" for k, v in labels.items()) + "}" if labels else ""): value
        for family in text_string_to_metric_families(reply.body.decode())
        for name, labels, value, *_ in family.samples
    }


@pytest.fixture
async def own_redis(settings: Settings, tmp_path: Path) -> AsyncIterator[tuple[Api, RedisServer]]:
    """An API on a Redis that its test may stop."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    queue = msgspec.structs.replace(settings.queue, url=server.url)
    async with serving(msgspec.structs.replace(settings, queue=queue)) as api:
        yield api, server
    server.kill()


async def test_it_is_alive_and_ready(api: Api) -> None:
    assert (await api.get("/healthz")).body == b"ok\n"
    reply = await api.get("/readyz")
    assert (reply.status, reply.json) == (200, {"ready": True, "checks": {"queue": "ok", "store": "ok"}})


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_balancers_that_ask_with_head_are_answered(api: Api, path: str) -> None:
    reader, writer = await api.connect()
    writer.write(f"HEAD {path} HTTP/1.1\r\nHost: tango\r\n\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_it_is_alive_but_not_ready_without_redis_and_ready_again_with_it(
    own_redis: tuple[Api, RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "FRESH_S", 0.0)
    api, server = own_redis
    server.kill()
    async with asyncio.timeout(60.0):
        reply = await api.get("/readyz")
    assert (reply.status, reply.json["checks"]) == (503, {"queue": "cannot be reached", "store": "ok"})
    assert (await api.get("/healthz")).status == 200
    shown = await samples(api)
    assert shown["tango_queue_up"] == 0 and shown["process_resident_memory_bytes"] > 0
    server.start()
    async with asyncio.timeout(60.0):
        while (await api.get("/readyz")).status != 200:
            await asyncio.sleep(0.05)


async def test_a_redis_that_hangs_is_told_within_the_second(
    own_redis: tuple[Api, RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert WITHIN_S <= 1.0
    monkeypatch.setattr(health, "WITHIN_S", WITHIN_S)
    api, server = own_redis
    server.send(signal.SIGSTOP)
    try:
        async with asyncio.timeout(30.0):  # half of what the queue itself would wait
            reply = await api.get("/readyz")
        assert (reply.status, reply.json["ready"]) == (503, False)
    finally:
        server.send(signal.SIGCONT)


async def test_it_is_not_ready_when_nothing_can_be_stored(api: Api, labs: Path) -> None:
    shutil.rmtree(labs / ".tango" / "tmp")
    reply = await api.get("/readyz")
    assert (reply.status, reply.json["checks"]) == (503, {"queue": "ok", "store": "cannot be written"})
    assert str(labs) not in reply.body.decode()


async def test_however_many_ask_the_store_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FRESH_S", 600.0)
    tried = 0

    async def ask() -> None:
        nonlocal tried
        tried += 1
        await asyncio.sleep(0.01)

    check = health.Check("store", ask)
    assert await asyncio.gather(*(check.answer() for _ in range(100))) == ["ok"] * 100
    assert await check.answer() == "ok" and tried == 1


async def test_a_check_that_hangs_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "WITHIN_S", 0.02)
    monkeypatch.setattr(health, "FRESH_S", 0.0)
    tried, over = 0, asyncio.Event()

    async def ask() -> None:
        nonlocal tried
        tried += 1
        await over.wait()

    check = health.Check("store", ask)
    assert "no answer" in await check.answer() and "no answer" in await check.answer()
    over.set()
    assert await check.answer() == "ok" and tried == 1


async def test_metrics_follow_a_job_from_add_to_callback(api: Api) -> None:
    await api.ready_lab()
    await api.add(callback_url="http://127.0.0.1:1/cb")
    before = await samples(api)
    assert before["tango_jobs{state=queued}"] == 1 == before["tango_jobs_added_total"]
    assert before["tango_queue_wait_seconds"] >= 0
    await api.end(b"fine")
    after = await samples(api)
    assert [after[f"tango_jobs{{state={s}}}"] for s in ("queued", "held", "dead")] == [0, 0, 1]
    assert after["tango_jobs_ended_total{verdict=success}"] == 1 == after["tango_claims_total"]
    assert after["tango_outbox"] == 1 and after["tango_callbacks_unsent"] == 0
    await api.queue.defer(1, "refused", 5.0)
    await api.queue.delivered(1, "204")
    await api.queue.delivered(1, "204")
    last = await samples(api)
    assert last["tango_callbacks_total{result=failed}"] == 1 == last["tango_callbacks_total{result=delivered}"]
    assert last["tango_outbox"] == 0 == last["tango_leases_lost_total"]


async def test_every_route_has_its_numbers_under_its_template(api: Api) -> None:
    await api.ready_lab()
    await api.get("/poll/test/lab/out.txt")
    await api.get("/poll/test/lab/out.txt/")
    await api.get("/nothing/here")
    await api.send("PUT", "/poll/test/lab/out.txt")
    shown = await samples(api)
    poll = "/poll/{key}/{courselab}/{output_file}"
    assert shown[f"tango_http_requests_total{{route={poll},status=200}}"] == 2
    assert shown[f"tango_http_request_seconds_count{{route={poll}}}"] == 2
    assert shown["tango_http_requests_total{route=none,status=404}"] == 1
    assert shown["tango_http_requests_total{route=none,status=405}"] == 1
    assert shown["tango_http_requests_total{route=/upload/{key}/{courselab},status=200}"] == 2
    assert 0 <= shown["tango_event_loop_lag_seconds"] < 5


async def test_dispatchers_are_shown_each_with_its_host(api: Api) -> None:
    await api.publish(IMAGE, host="g1", install="a", rss_bytes=5000, lag_s=0.25, ended=7)
    await api.publish(IMAGE, host="g2", install="b", healthy=False, busy=2)
    shown = await samples(api)
    one, two = "{host=g1,install=a}", "{host=g2,install=b}"
    assert [shown["tango_dispatcher_up" + d] for d in (one, two)] == [1, 1]
    assert [shown["tango_dispatcher_healthy" + d] for d in (one, two)] == [1, 0]
    assert [shown["tango_dispatcher_busy" + d] for d in (one, two)] == [1, 2]
    assert shown["tango_dispatcher_rss_bytes" + one] == 5000
    assert shown["tango_dispatcher_attempts_total" + one] == 7
    assert shown["tango_dispatcher_event_loop_lag_seconds" + one] == 0.25


@pytest.mark.parametrize(
    ("headers", "status"),
    [("", 200), (PROXY, 403), (PROXY + BEARER, 200), (PROXY + "Authorization: Bearer wrong\r\n", 403)],
)
async def test_metrics_are_for_this_machine_or_with_a_key(api: Api, headers: str, status: int) -> None:
    assert (await api.send("GET", "/metrics", headers=headers)).status == status


async def test_metrics_name_no_key_course_file_or_job(api: Api, settings: Settings) -> None:
    lab, output, name = "secretcourse", "secretfile.txt", "secretjob_student@example.edu"
    await api.ready_lab(lab)
    body = json.dumps(job(jobName=name, output_file=output)).encode()
    await api.post(f"/addJob/test/{lab}/", body)
    await api.get(f"/poll/test/{lab}/{output}")
    await api.get(f"/poll/wrongkey/{lab}/{output}")
    await api.publish(IMAGE)
    page = (await api.get("/metrics")).body.decode()
    for word in ("secret", "student", "wrongkey", settings.queue.prefix, settings.queue.url, "/test/", "test-"):
        assert word not in page


async def test_every_metric_of_ours_is_explained(api: Api) -> None:
    await api.publish(IMAGE)
    document = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    page = (await api.get("/metrics")).body.decode()
    for family in text_string_to_metric_families(page):
        if family.name.startswith("tango_") and family.name != "tango_build_info":
            assert family.name.removeprefix("tango_dispatcher") in document, family.name


async def test_two_servers_in_one_process_count_apart(api: Api, settings: Settings) -> None:
    async with serving(settings) as other:
        await api.get("/")
        assert (await samples(api))["tango_http_requests_total{route=/,status=200}"] == 1
        assert "tango_http_requests_total{route=/,status=200}" not in await samples(other)


async def test_probes_that_go_well_are_not_logged(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        await api.get("/healthz")
        await api.send("GET", "/metrics", headers=PROXY)
    assert [r.getMessage().split()[2:4] for r in caplog.records if "http.access" in r.name] == [["/metrics", "403"]]
