"""Reading bodies: streamed, bounded, and no slower than a client on a bad line would send them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp import BodyPartReader, MultipartReader, StreamReader, web

from ..config import Http
from ..errors import BadRequest
from ..names import file_name

BLOCK = 1 << 18
DISCARD_BYTES = 16 * 1024**2
DISCARD_S = 5.0

_CUT = (aiohttp.ClientError, web.RequestPayloadError, ConnectionError)


class BodyTooLarge(BadRequest):
    """More than this server takes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body is too large: at most {limit} bytes are accepted")


class BodyTooSlow(BadRequest):
    """The client sends too little for too long."""


class BodyCut(BadRequest):
    """The connection broke, or the body's framing did."""


class _Pace:
    """Bounds the wait for a client. Time that we take to store what came is not held against it."""

    def __init__(self, http: Http) -> None:
        self._loop = asyncio.get_running_loop()
        self._window_s = http.body_timeout_s
        self._least = http.min_body_bytes_s * http.body_timeout_s
        self._waited_s = 0.0
        self._got = 0

    async def wait(self, reading: Coroutine[Any, Any, bytes]) -> bytes:
        """What was read; b"" at the end. Raises BodyTooSlow, BodyCut."""
        since = self._loop.time()
        try:
            async with asyncio.timeout(self._window_s):
                chunk = await reading
        except TimeoutError as e:
            raise BodyTooSlow("The body comes too slowly") from e
        except _CUT as e:
            raise BodyCut("The body was cut off") from e
        self._got += len(chunk)
        self._waited_s += self._loop.time() - since
        if self._waited_s >= self._window_s:
            if self._got < self._least:
                raise BodyTooSlow("The body comes too slowly")
            self._waited_s, self._got = 0.0, 0
        return chunk


async def stream(request: web.Request, limit: int, http: Http) -> AsyncIterator[bytes]:
    """The body, whatever its content type. Raises BodyTooLarge, BodyTooSlow, BodyCut."""
    if (request.content_length or 0) > limit:
        raise BodyTooLarge(limit)
    pace, got = _Pace(http), 0
    while chunk := await pace.wait(request.content.readany()):
        got += len(chunk)
        if got > limit:
            raise BodyTooLarge(limit)
        yield chunk


async def read(request: web.Request, limit: int, http: Http) -> bytes:
    """A small body, whole."""
    content = request.content
    if content.is_eof() and content.total_bytes <= limit and content.exception() is None:
        return content.read_nowait()  # all of it came with the headers, as it does for most
    return b"".join([chunk async for chunk in stream(request, limit, http)])


async def named_file(request: web.Request, limit: int, http: Http) -> tuple[str, AsyncIterator[bytes]]:
    """An upload's name and content.

    Tango's clients send the raw file under a Filename header, with any content type. One sends a
    multipart form without that header; then the form's first file is meant.
    """
    name = request.headers.get("Filename")
    if name is not None:
        return file_name(name, "Filename"), stream(request, limit, http)
    if request.content_type != "multipart/form-data":
        raise BadRequest("Missing Filename header")
    try:
        form = await request.multipart()
        while True:
            async with asyncio.timeout(http.body_timeout_s):
                part = await form.next()
            if part is None:
                raise BadRequest("Missing Filename header, and no file in the form")
            if isinstance(part, BodyPartReader) and part.filename is not None:
                return file_name(part.filename, "Filename"), _part(form, part, limit, http)
    except TimeoutError as e:
        raise BodyTooSlow("The body comes too slowly") from e
    except (ValueError, RecursionError, *_CUT) as e:  # forms within forms, thousands deep
        raise BodyCut("Malformed multipart form") from e


async def _part(form: MultipartReader, part: BodyPartReader, limit: int, http: Http) -> AsyncIterator[bytes]:
    pace, got = _Pace(http), 0
    try:
        while chunk := await pace.wait(part.read_chunk(BLOCK)):
            got += len(chunk)
            if got > limit:
                raise BodyTooLarge(limit)
            yield chunk
        async with asyncio.timeout(http.body_timeout_s):
            await form.next()  # only this notices that the part's closing boundary is missing
    except TimeoutError as e:
        raise BodyTooSlow("The body comes too slowly") from e
    except (ValueError, AssertionError) as e:
        raise BodyCut("Malformed multipart form") from e


async def discard(content: StreamReader) -> None:
    """Takes in the rest of a body that was answered early, within bounds.

    To close the connection while the client still sends would reset it, and the client would lose
    the answer that it has not read yet.
    """
    left = DISCARD_BYTES
    with suppress(TimeoutError, *_CUT):
        async with asyncio.timeout(DISCARD_S):
            while left > 0 and (chunk := await content.readany()):
                left -= len(chunk)
