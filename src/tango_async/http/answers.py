"""Sending answers: JSON as Tango's clients take it, feedback from disk, and whether it got through."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from aiohttp import web

from ..errors import NotFound, StoreError
from ..feedback import CappedOutput
from ..files.base import StoredFile

log = logging.getLogger(__name__)

JSON_TYPE = "application/json; charset=UTF-8"
FILE_TYPE = "application/octet-stream"
"""What tells a client of poll that this is the feedback, and not word that there is none."""

SMALL = 1 << 18
SLICE = 1 << 22
"""Sent at a time: sendfile() goes on as long as the client keeps up, and the event loop waits for it."""

SLICE_S = 300.0
FLUSH_S = 10.0
FLUSH_EVERY_S = 0.02


def json(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, headers={**(headers or {}), "Content-Type": JSON_TYPE})


async def feedback(request: web.Request, stored: StoredFile) -> web.StreamResponse:
    """A finished feedback, however large. Raises NotFound if it was removed meanwhile."""
    if stored.path is not None and stored.size <= SMALL:
        return web.Response(body=await asyncio.to_thread(_read, stored.path), headers={"Content-Type": FILE_TYPE})
    response = web.StreamResponse(headers={"Content-Type": FILE_TYPE})
    response.content_length = stored.size
    if stored.path is not None:
        await _send_file(request, response, stored.path, stored.size)
    else:
        await response.prepare(request)
        await _send_blocks(response, stored)
    await response.write_eof()
    return response


async def _send_blocks(response: web.StreamResponse, stored: StoredFile) -> None:
    try:
        async for chunk in stored.read():
            await response.write(chunk)
    except StoreError as e:
        log.error("a feedback was cut off: %s", e)
        # Its length has been promised: whatever came now in its place would be taken for its rest.
        raise ConnectionResetError("the store does not go on") from e


async def excerpt(stored: StoredFile, limit: int) -> bytes:
    """A feedback cut to `limit` bytes as feedbacks are cut: the first and the last half stay."""
    capped = CappedOutput(limit)
    async for chunk in stored.read():
        capped.add(chunk)
    return capped.bytes()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as e:
        raise NotFound("Output file not found") from e


async def _send_file(request: web.Request, response: web.StreamResponse, path: Path, size: int) -> None:
    loop = asyncio.get_running_loop()
    try:
        file = await asyncio.to_thread(path.open, "rb")
    except FileNotFoundError as e:
        raise NotFound("Output file not found") from e
    try:
        await response.prepare(request)
        for offset in range(0, size, SLICE):
            if request.transport is None:
                raise ConnectionResetError
            async with asyncio.timeout(SLICE_S):
                await loop.sendfile(request.transport, file, offset, min(SLICE, size - offset))
    except TimeoutError as e:
        raise ConnectionResetError("the client does not read") from e
    finally:
        file.close()


async def flushed(request: web.Request, response: web.Response) -> bool:
    """Sends the answer now. True if all of it has left for a client that was still connected."""
    try:
        await response.prepare(request)
        await response.write_eof()
        async with asyncio.timeout(FLUSH_S):
            while _unsent(request):
                await asyncio.sleep(FLUSH_EVERY_S)
    except (ConnectionError, TimeoutError):
        return False
    return request.transport is not None and not request.transport.is_closing()


def _unsent(request: web.Request) -> int:
    return 0 if request.transport is None else request.transport.get_write_buffer_size()
