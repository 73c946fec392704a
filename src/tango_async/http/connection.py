"""What is said to a client whose request is no HTTP, such as a NUL in a header.

No application sees such a request, and so aiohttp answers it, in plain text that Autolab does not
show; and logs an excerpt of it, in which a key may stand. Here it gets Tango's shape, and the log
the kind of error only.
"""

from __future__ import annotations

import logging

from aiohttp import web

from . import answers, wire

log = logging.getLogger(__name__)


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        log.warning("%s sent what is no HTTP request: %s", request.remote, type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        reason = (message or "").partition("\n")[0].rstrip(":") or "Bad request"
        response = answers.json(wire.failure(reason), status=status)
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """aiohttp's, with connections of the kind above."""

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return _Server(plain.request_handler, request_factory=plain.request_factory, **plain._kwargs)
