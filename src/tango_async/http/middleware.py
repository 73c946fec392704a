"""What all requests have in common: the key, errors in Tango's shape, one line in the log, the unread body.

Keys are in every path and in file names, so everything that is logged here goes through `redact`.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Awaitable, Callable
from functools import wraps
from urllib.parse import unquote_to_bytes

from aiohttp import hdrs, web
from aiohttp.abc import AbstractAccessLogger

from ..errors import (
    BadRequest,
    NotFound,
    QueueFull,
    QueueUnavailable,
    Rejected,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from . import answers, bodies, wire
from .service import ACCESS, service_of

log = logging.getLogger(__name__)

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds; not logged as long as all is well."""

NO_METHOD = "UNKNOWN"
"""What aiohttp gives to a request that it could not read."""

SLOW = 408
"""Answered to a client that is not worth waiting for: its connection is closed at once."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AccessLogger(AbstractAccessLogger):
    """A line for every answer. It has the path as it was sent, still escaped, but for the key."""

    @property
    def enabled(self) -> bool:
        return self.logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        # What was no HTTP has been logged as such, and has no route to tell its path by.
        path = _shown_path(request) if isinstance(request, web.Request) and request.method != NO_METHOD else "-"
        if path in PROBES and response.status < 400:
            return
        self.logger.info("%s %s %s %d %.0f ms", request.remote, request.method, path, response.status, time * 1000)


def _shown_path(request: web.Request) -> str:
    """The key is the second part of every route's path; elsewhere it is known by its letters."""
    raw = request.rel_url.raw_path
    if "key" not in request.match_info:
        resource = request.match_info.route.resource
        return resource.canonical if resource is not None else "(no such route)"
    parts = raw.split("/")
    parts[2] = "KEY"
    return service_of(request).keys.redact("/".join(parts))[:300]


@web.middleware
async def answer_in_tangos_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as JSON that a client shows, and the rest of a body that nobody wanted taken in."""
    try:
        response = await handler(request)
    except ConnectionError:
        raise
    except Exception as error:
        response = _failure(request, error)
    body = request.content
    if not body.is_eof() and body.exception() is None and response.status != SLOW:
        await response.prepare(request)
        await response.write_eof()
        await bodies.discard(body)
        if not body.is_eof():
            response.force_close()
    return response


def _failure(request: web.Request, error: Exception) -> web.Response:
    match error:
        case web.HTTPException():
            allow = error.headers.get(hdrs.ALLOW)
            headers = {str(hdrs.ALLOW): allow} if allow else None
            return answers.json(wire.failure(error.reason), status=error.status, headers=headers)
        case Rejected():
            return answers.json(wire.failure(wire.rejection(error.reasons)))
        case bodies.BodyTooLarge():
            return answers.json(wire.failure(str(error)), status=413)
        case bodies.BodyTooSlow():
            response = answers.json(wire.failure(str(error)), status=SLOW)
            response.force_close()
            return response
        case BadRequest() | NotFound():
            return answers.json(wire.failure(str(error)))
        case QueueFull():
            return answers.json(wire.failure(str(error)), status=503, headers={hdrs.RETRY_AFTER: "60"})
        case QueueUnavailable():
            log.error("%s", service_of(request).keys.redact(str(error)))
            message = "The job queue cannot be reached; try again soon"
            return answers.json(wire.failure(message), status=503, headers={hdrs.RETRY_AFTER: "5"})
        case StoreUnavailable():
            log.error("%s", service_of(request).keys.redact(str(error)))
            message = "The file store cannot be reached; try again soon"
            return answers.json(wire.failure(message), status=503, headers={hdrs.RETRY_AFTER: "5"})
    text = "".join(traceback.format_exception(error))
    log.error("%s %s\n%s", request.method, _shown_path(request), service_of(request).keys.redact(text))
    match error:
        case StoreFull():
            return answers.json(wire.failure("The file store has no space left"), status=507)
        case StoreError():
            return answers.json(wire.failure("The file store failed"), status=500)
        case _:
            return answers.json(wire.failure("Internal error"), status=500)


@web.middleware
async def require_key(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Lets in who knows a key, as often as that key may come, before anything of the body is read."""
    if "key" not in request.match_info:
        return await handler(request)
    _require_utf8(request.rel_url.raw_path)
    keys = service_of(request).keys
    access = keys.of(request)
    if access is None:
        return answers.json(wire.failure("Key not recognized"))
    if wait_s := math.ceil(keys.wait_s(access)):
        message = f"Too many requests with this key; try again in {wait_s} s"
        return answers.json(wire.failure(message), status=429, headers={hdrs.RETRY_AFTER: str(wait_s)})
    request[ACCESS] = access
    return await handler(request)


def for_admins(handler: Handler) -> Handler:
    """A handler that only keys with the scope admin reach."""

    @wraps(handler)
    async def checked(request: web.Request) -> web.StreamResponse:
        request[ACCESS].require_admin()
        return await handler(request)

    return checked


def _require_utf8(raw_path: str) -> None:
    """The router leaves escapes that are no UTF-8 as they are, and so two paths could be one name."""
    if "%" in raw_path:
        try:
            unquote_to_bytes(raw_path).decode()
        except UnicodeDecodeError as e:
            raise BadRequest("The path is not valid UTF-8") from e


ALL = (answer_in_tangos_shape, require_key)
"""From the outside in."""
