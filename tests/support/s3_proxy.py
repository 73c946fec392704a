"""A proxy before an S3 server that fails on cue: what the server itself cannot be made to do."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from yarl import URL

from .s3_server import S3Server

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""Answers in place of the server, or None to let the request through."""

_HOPS = {"transfer-encoding", "connection", "content-encoding", "content-length"}


class S3Proxy:
    def __init__(self, server: S3Server) -> None:
        self._server = server
        self.endpoint = ""
        self.fault: Fault | None = None

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        if self.fault is not None and (answer := await self.fault(request)) is not None:
            return answer
        url = URL(self._server.endpoint + request.raw_path, encoded=True)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, url, headers=headers, data=io.BytesIO(await request.read())) as answer,
        ):
            body = await answer.read()
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOPS}
            if request.method == "HEAD":
                kept["Content-Length"] = answer.headers.get("Content-Length", "0")
            return web.Response(status=answer.status, headers=kept, body=body)


@asynccontextmanager
async def proxy_before(server: S3Server) -> AsyncIterator[S3Proxy]:
    proxy = S3Proxy(server)
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", proxy._forward)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    proxy.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield proxy
    finally:
        await runner.cleanup()


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def slow_down(request: web.Request) -> web.StreamResponse:
    body = (
        b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    )
    return web.Response(status=503, body=body, content_type="application/xml")
