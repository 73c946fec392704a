"""The services' console scripts: settings, logging, signals, one line when ready, exit 0 on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from .. import app, config
from ..config import Settings
from ..errors import TangoError

log = logging.getLogger("tango")

Service = Callable[[Settings, asyncio.Event, app.Ready], Awaitable[None]]

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
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stop.set)
    await service(settings, stop, lambda what: log.info("ready: %s", what))
