"""A server on a real port over a real queue and store, and a client that sends bytes as they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from support.jobs import claim_one
from tango_async.config import Settings
from tango_async.files.local import LocalStore
from tango_async.http.app import make_app, make_runner
from tango_async.model import Claim, DispatcherRecord, PoolState, Verdict
from tango_async.queue.redis import Queue


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def type(self) -> str:
        return self.headers["content-type"].partition(";")[0]

    @property
    def json(self) -> Any:
        assert self.type == "application/json"
        return json.loads(self.body)

    @property
    def message(self) -> Any:
        return self.json["statusMsg"]

    @property
    def outcome(self) -> tuple[int, Any]:
        return self.json["statusId"], self.message


RUBY = (
    "Accept-Encoding: gzip;q=1.0,deflate;q=0.6,identity;q=0.3\r\nAccept: */*\r\nUser-Agent: Ruby\r\n"
    "Connection: close\r\nHost: tango\r\n"
)


@dataclass
class Api:
    """Speaks as Autolab's Ruby client does: a connection for each request, raw bodies, its headers."""

    settings: Settings
    queue: Queue
    store: LocalStore
    port: int

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)

    async def send(self, method: str, path: str, body: bytes | None = None, headers: str | bytes = "") -> Reply:
        reader, writer = await self.connect()
        try:
            writer.write(head(method, path, headers, None if body is None else len(body)) + (body or b""))
            return await read_reply(reader)
        finally:
            writer.close()

    async def get(self, path: str) -> Reply:
        return await self.send("GET", path)

    async def post(self, path: str, body: bytes = b"", headers: str | bytes = "") -> Reply:
        form = (
            b"" if b"content-type" in _raw(headers).lower() else b"Content-Type: application/x-www-form-urlencoded\r\n"
        )
        return await self.send("POST", path, body, _raw(headers) + form)

    async def upload(self, name: str, body: bytes, lab: str = "lab") -> Reply:
        return await self.post(f"/upload/test/{lab}/", body, f"Filename: {name}\r\n".encode())

    async def add(self, lab: str = "lab", **changes: Any) -> Reply:
        return await self.post(f"/addJob/test/{lab}/", json.dumps(job(**changes)).encode())

    async def add_raw(self, body: bytes) -> Reply:
        return await self.post("/addJob/test/lab/", body)

    async def ready_lab(self, lab: str = "lab") -> None:
        """A courselab with the two inputs that `job` names."""
        await self.get(f"/open/test/{lab}/")
        await self.upload("autograde-Makefile", b"autograde:\n\tbash hello.sh\n", lab)
        await self.upload("hello.sh", b"echo hello\n", lab)

    async def end(self, output: bytes, verdict: Verdict = Verdict.SUCCESS) -> Claim:
        """Does what a dispatcher does: claims the next job and ends it with this feedback."""
        claim = await claim_one(self.queue, instance="host#1")
        assert claim is not None
        await self.queue.start(claim, "machine")
        ref = f"{claim.id}-{claim.seq}"
        await self.store.put_output(ref, output)
        await self.queue.end(claim, verdict, "Success: Autodriver returned normally", ref)
        return claim

    async def publish(self, *images: str, **changes: Any) -> DispatcherRecord:
        """A dispatcher that has just published itself."""
        values = {
            "install": "host", "instance": "host#1", "host": "host", "vmms": "localDocker", "version": "0",
            "images": images, "slots": 2, "busy": 1, "pools": {i: PoolState(total=(1, 2), free=(2,)) for i in images},
        } | changes  # fmt: skip
        record = msgspec.convert(values, DispatcherRecord)
        await self.queue.beat(record)
        return record


def _raw(headers: str | bytes) -> bytes:
    return headers.encode() if isinstance(headers, str) else headers


def head(method: str, path: str, headers: str | bytes = "", length: int | None = None) -> bytes:
    size = "" if length is None else f"Content-Length: {length}\r\n"
    return f"{method} {path} HTTP/1.1\r\n{RUBY}{size}".encode() + _raw(headers) + b"\r\n"


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    top = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = top.strip().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Reply(int(first.split()[1]), headers, body)


def job(**changes: Any) -> dict[str, Any]:
    """addJob's body as Autolab sends it."""
    return {
        "image": "autograding_image",
        "files": [
            {"localFile": "autograde-Makefile", "destFile": "Makefile"},
            {"localFile": "hello.sh", "destFile": "hello.sh"},
        ],
        "output_file": "student@example.edu_1_lab_autograde.txt",
        "timeout": 20,
        "max_kb": 0,
        "callback_url": "http://autolab.example/courses/c/assessments/lab/autograde_done?dave=x&submission_id=1",
        "jobName": "course_lab_1_student@example.edu",
        "disable_network": None,
        "accessKeyId": "",
        "accessKey": "",
    } | changes


@asynccontextmanager
async def serving(settings: Settings, *, timeout_s: float = 60.0) -> AsyncIterator[Api]:
    """`timeout_s`: how long the queue may take; a service gives it less, but the machine may be a slow one."""
    store = LocalStore(settings.store)
    queue = Queue(settings, timeout_s=timeout_s)
    runner = make_runner(make_app(settings, queue, store), shutdown_s=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Api(settings, queue, store, runner.addresses[0][1])
    finally:
        await runner.cleanup()
        await queue.close()
        await store.close()
