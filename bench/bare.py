#!/usr/bin/env python3
"""The least that aiohttp does, with no promise kept: bare.py DIRECTORY PORT.

GET /json · POST /json · PUT /file/NAME · GET /file/NAME
"""

from __future__ import annotations

import sys
from pathlib import Path

from aiohttp import web

BODY = b'{"statusId":0,"statusMsg":"as long as the answer to an addJob, more or less, padded","jobId":12345}'


async def answer(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=BODY, content_type="application/json")


async def store(request: web.Request) -> web.Response:
    with (FOLDER / request.match_info["name"]).open("wb") as file:
        async for chunk in request.content.iter_chunked(1 << 18):
            file.write(chunk)
    return web.Response(body=BODY, content_type="application/json")


async def send(request: web.Request) -> web.FileResponse:
    return web.FileResponse(FOLDER / request.match_info["name"])


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    app = web.Application(client_max_size=1 << 40)
    for method in ("GET", "POST"):
        app.router.add_route(method, "/json", answer)
    app.router.add_put("/file/{name}", store)
    app.router.add_get("/file/{name}", send)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=None)
