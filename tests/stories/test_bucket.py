"""Servers and dispatchers that share Redis and a bucket, and no disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import pytest
from aiohttp import ClientError, web
from aiohttp.test_utils import TestServer

from support.s3_proxy import S3Proxy, hang_up, proxy_before
from support.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, make_bucket, raw_client
from support.service import PATIENCE_S, Process, Service, addjob

SAYS_ALL = b"autograde:\n\t@cat hello; md5sum <big | cut -c 1-32; echo done\n"
HELD = b"autograde:\n\t@echo begun; until [ -s /starts ]; do sleep 0.05; done; echo ended\n"


@dataclass
class Hosts:
    """Each part of the service on a host of its own: nothing but Redis and the bucket is common."""

    service: Service
    prefix: str

    async def http(self) -> Process:
        return await self._run("tango-http")

    async def dispatcher(self) -> Process:
        return await self._run("tango-dispatcher")

    async def _run(self, name: str) -> Process:
        host = self.service.directory / f"host-{len(self.service.processes)}"
        return await self.service.run(name, TANGO_DATA_DIR=str(host))

    def shared(self) -> list[str]:
        """Courselabs on the disk of any host."""
        return [str(path) for path in self.service.directory.glob("host-*/courselabs")]


@pytest.fixture
async def hosts(service: Service, starts: Path, s3_server: S3Server) -> Hosts:
    await make_bucket(s3_server)
    prefix = uuid4().hex
    service.environment |= {
        "TANGO_STORE_URL": f"s3://{BUCKET}/{prefix}",
        "TANGO_S3_ENDPOINT": s3_server.endpoint,
        "TANGO_S3_TIMEOUT_S": "5",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "TANGO_DISPATCHER_FINISH_S": "5",
    }
    return Hosts(service, prefix)


async def keys(server: S3Server, prefix: str) -> list[str]:
    async with raw_client(server) as client:
        listed = await client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [entry["Key"].removeprefix(f"{prefix}/") for entry in listed.get("Contents", [])]


async def test_a_job_comes_in_at_one_host_is_graded_at_another_and_polled_at_a_third(
    hosts: Hosts, s3_server: S3Server
) -> None:
    service, came = hosts.service, []

    async def receive(request: web.Request) -> web.Response:
        field = await (await request.multipart()).next()
        came.append((await field.read()).decode())  # type: ignore[union-attr]
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/cb", receive)
    async with TestServer(app) as receiver:
        dispatchers = [await hosts.dispatcher(), await hosts.dispatcher()]
        first = (await hosts.http(), service.url)[1]
        second = (await hosts.http(), service.url)[1]
        big = bytes(range(256)) * (40 << 12)  # 40 MiB, in five parts
        service.url = first
        await service.upload("lab", {"Makefile": SAYS_ALL, "hello": b"hello\n"})
        await service.call("POST", "/upload/test/lab/", data=BytesIO(big), headers={"Filename": "big"})
        service.url = second
        opened = await service.json("GET", "/open/test/lab/")
        assert opened["files"]["big"] == hashlib.md5(big).hexdigest()
        for n in range(6):
            await service.add(
                "lab", ["Makefile", "hello", "big"], f"{n}.txt", callback_url=str(receiver.make_url("/cb"))
            )
        service.url = first
        await service.upload("lab", {"hello": b"of a later upload\n"})
        feedbacks = [await service.poll("lab", f"{n}.txt") for n in range(6)]
        async with asyncio.timeout(PATIENCE_S):
            while len(came) < 6:
                await asyncio.sleep(0.05)
    assert all(f.endswith(f"hello\n{hashlib.md5(big).hexdigest()}\ndone\n") for f in feedbacks), feedbacks
    assert sorted(came) == sorted(feedbacks)
    assert hosts.shared() == []
    assert all([await d.stop() == 0 for d in dispatchers])
    left = await keys(s3_server, hosts.prefix)
    assert {key.split("/")[0] for key in left} == {"labs", "files", "used", "outputs", "marks"}


async def test_of_an_upload_whose_server_is_killed_nothing_is_seen(hosts: Hosts, s3_server: S3Server) -> None:
    service = hosts.service
    server = await hosts.http()
    await service.upload("lab", {"a": b"old\n"})
    sent = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(36):
            yield bytes(1 << 20)
        sent.set()
        await asyncio.sleep(60)

    upload = asyncio.create_task(service.call("POST", "/upload/test/lab/", data=body(), headers={"Filename": "a"}))
    await sent.wait()
    async with asyncio.timeout(PATIENCE_S), raw_client(s3_server) as client:
        while not (await client.list_multipart_uploads(Bucket=BUCKET)).get("Uploads"):
            await asyncio.sleep(0.05)
    server.kill()
    with pytest.raises(ClientError):
        await upload
    await hosts.http()
    opened = await service.json("GET", "/open/test/lab/")
    assert opened["files"] == {"a": hashlib.md5(b"old\n").hexdigest()}
    assert [key for key in await keys(s3_server, hosts.prefix) if key.startswith("tmp/")] == []


@pytest.fixture
async def line(hosts: Hosts, s3_server: S3Server) -> AsyncIterator[S3Proxy]:
    """Between all hosts and the bucket; to be cut."""
    async with proxy_before(s3_server) as proxy:
        hosts.service.environment["TANGO_S3_ENDPOINT"] = proxy.endpoint
        yield proxy


async def test_a_service_waits_for_a_bucket_that_is_away_at_its_start(hosts: Hosts, line: S3Proxy) -> None:
    line.fault = hang_up
    starting = [asyncio.create_task(hosts.http()), asyncio.create_task(hosts.dispatcher())]
    async with asyncio.timeout(PATIENCE_S):
        while ["waiting:" in process.said() for process in hosts.service.processes] != [True, True]:
            await asyncio.sleep(0.05)
    assert not any(task.done() for task in starting)
    line.fault = None
    await asyncio.gather(*starting)
    await hosts.service.upload("lab", {"Makefile": b"autograde:\n\t@echo hello\n"})
    await hosts.service.add("lab", ["Makefile"], "out.txt")
    assert (await hosts.service.poll("lab", "out.txt")).endswith("hello\n")


async def test_a_wrong_setting_ends_a_service_with_its_name(hosts: Hosts) -> None:
    hosts.service.environment["TANGO_STORE_URL"] = "s3://no-such-bucket"
    for start in (hosts.http, hosts.dispatcher):
        with pytest.raises(AssertionError, match=r"ended: (?s:.*)tango: store\.url: there is no bucket no-such-bucket"):
            await start()
    assert [process.popen.wait(PATIENCE_S) for process in hosts.service.processes] == [2, 2]


async def test_while_the_bucket_is_away_uploads_are_refused_and_no_job_is_lost(
    hosts: Hosts, line: S3Proxy, starts: Path
) -> None:
    service = hosts.service
    service.environment |= {"TANGO_SLOTS": "1", "TANGO_DISPATCHER_UPKEEP_S": "0.5"}
    await hosts.http()
    dispatcher = await hosts.dispatcher()
    await service.upload("lab", {"Makefile": HELD})
    first, _ = [await service.add("lab", ["Makefile"], f"{n}.txt") for n in range(2)]
    async with asyncio.timeout(PATIENCE_S):
        while "begun" not in (await service.json("GET", f"/getPartialOutput/test/{first}/"))["output"]:
            await asyncio.sleep(0.05)
    line.fault = hang_up
    status, kind, body = await service.call("POST", "/upload/test/lab/", data=b"x", headers={"Filename": "a"})
    assert (status, kind) == (503, "application/json")
    assert b"The file store cannot be reached" in body
    assert (await service.call("GET", "/readyz"))[0] == 503
    await service.prealloc(2)
    await service.prepared(2)
    starts.write_text("go\n")
    async with asyncio.timeout(PATIENCE_S):
        while "cannot be stored, trying again" not in dispatcher.said():
            await asyncio.sleep(0.05)
    line.fault = None
    for n in range(2):
        assert (await service.poll("lab", f"{n}.txt")).endswith("begun\nended\n")
    dead = (await service.json("GET", "/jobs/test/1/"))["jobs"]
    assert [job["retries"] for job in dead] == [0, 0]


async def test_a_job_whose_id_a_bucket_could_not_note_is_refused_and_is_the_same_when_it_is_repeated(
    hosts: Hosts, line: S3Proxy, s3_server: S3Server
) -> None:
    async def lose_marks(request: web.Request) -> web.StreamResponse | None:
        return await hang_up(request) if "/marks/" in request.path and request.method == "PUT" else None

    service = hosts.service
    await hosts.http()
    await service.upload("lab", {"Makefile": HELD})
    line.fault = lose_marks
    status, _, body = await service.call("POST", "/addJob/test/lab/", data=addjob("lab", ["Makefile"], "out.txt"))
    assert (status, json.loads(body)["statusMsg"]) == (503, "The file store cannot be reached; try again soon")
    (taken,) = (await service.json("GET", "/jobs/test/0/"))["jobs"]
    line.fault = None
    assert await service.add("lab", ["Makefile"], "out.txt") == taken["id"]
    assert len((await service.json("GET", "/jobs/test/0/"))["jobs"]) == 1
    (mark,) = [key for key in await keys(s3_server, hosts.prefix) if key.startswith("marks/")]
    assert int(mark.removeprefix("marks/")) > taken["id"]
