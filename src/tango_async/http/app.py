"""The application and the runner that serves it. They open and close nothing: the caller does."""

from __future__ import annotations

import logging

from aiohttp import web

from ..config import Settings
from ..files.base import FileStore
from ..queue.redis import Queue
from . import metrics, middleware
from .connection import Runner
from .fleet import Fleet
from .health import READINESS, Readiness
from .keys import Keys
from .routes import add_routes
from .service import SERVICE, Service

MAX_LINE = 64 * 1024
"""Longest request line and header, so that a name that is too long reaches us and is answered."""

KEEPALIVE_S = 75.0


def make_app(settings: Settings, queue: Queue, store: FileStore) -> web.Application:
    """Raises ConfigError if the keys are wrong."""
    app = web.Application(middlewares=(metrics.measure, *middleware.ALL))
    keys = Keys(settings.http.keys, settings.http.keys_file)
    app[SERVICE] = Service(settings=settings, queue=queue, store=store, fleet=Fleet(queue), keys=keys)
    app[READINESS] = Readiness(queue, store)
    app[metrics.METRICS] = metrics.Metrics()
    app.cleanup_ctx.append(metrics.feel)
    add_routes(app)
    return app


def make_runner(app: web.Application, *, shutdown_s: float = 10.0) -> web.AppRunner:
    """A runner with this API's rules of connections; requests in progress have `shutdown_s` to end."""
    return Runner(
        app,
        access_log=logging.getLogger("tango_async.http.access"),
        access_log_class=middleware.AccessLogger,
        # A body that was answered unread is taken in by the middleware, which counts it.
        lingering_time=0.0,
        keepalive_timeout=KEEPALIVE_S,
        max_line_size=MAX_LINE,
        max_field_size=MAX_LINE,
        shutdown_timeout=shutdown_s,
    )
