"""The services' console scripts: settings, logging, signals, exit 0 on SIGTERM.

When it is ready a service says so in one line of its log, and to the supervisor that started it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from .. import app, config
from ..config import Settings
from ..errors import TangoError
from ..notify import Supervisor
from ..vmms.keeper import catch_ignored_signals

log = logging.getLogger("tango")

Service = Callable[[Settings, asyncio.Event, app.Teller], Awaitable[None]]

WAIT_US = 120_000_000
"""A supervisor that hears from a service which waits gives it so long until the next word, which comes sooner."""

_config = click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="TANGO_CONFIG",
    help="tango.toml; TANGO_* variables win over it.",
)


@click.command()
@_config
def http(path: Path | None) -> None:
    """Serve Tango's REST API."""
    run(app.run_http, path)


@click.command()
@_config
def dispatcher(path: Path | None) -> None:
    """Run jobs on this host."""
    run(app.run_dispatcher, path)


@click.command()
@_config
def up(path: Path | None) -> None:
    """Run everything in one process, with an embedded queue server unless TANGO_REDIS_URL is set."""
    run(app.run_up, path)


def run(service: Service, path: Path | None) -> None:
    """Runs a service in the foreground until SIGTERM or SIGINT. Exits 2 on wrong settings, 1 on other errors."""
    catch_ignored_signals()
    faulthandler.enable()  # the SIGABRT of a watchdog leaves in the log where the loop was stuck
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = config.load(path)
        asyncio.run(_until_signal(service, settings))
    except* TangoError as group:
        error = _first(group)
        click.echo(f"tango: {error}", err=True)
        code = 2 if "ConfigError" in type(error).__name__ else 1
    else:
        code = 0
    sys.exit(code)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _until_signal(service: Service, settings: Settings) -> None:
    stop = asyncio.Event()
    supervisor = Supervisor()

    def ready(what: str) -> None:
        log.info("ready: %s", what)
        supervisor.tell("READY=1", f"STATUS={what}")

    def waiting(what: str) -> None:
        supervisor.tell(f"EXTEND_TIMEOUT_USEC={WAIT_US}", f"STATUS=waiting: {what}")

    def on_signal() -> None:
        if not stop.is_set():
            supervisor.tell("STOPPING=1", "STATUS=stopping: what is under way may end")
            stop.set()

    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, on_signal)
    watchdog = asyncio.create_task(supervisor.keep_watchdog())
    try:
        await service(settings, stop, app.Teller(ready, waiting))
    finally:
        watchdog.cancel()
