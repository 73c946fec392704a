"""Composition: opens the parts in order, runs them on this loop, closes them in reverse.

The only module that knows which parts there are. What `tango-http` is given holds no machine.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import msgspec
from aiohttp import web

from .config import Settings
from .dispatcher.dispatcher import Dispatcher
from .errors import ConfigError, VmmsError
from .files.local import LocalStore
from .http.app import make_app, make_runner
from .queue.embedded import EmbeddedServer
from .queue.redis import Queue
from .vmms.base import Vmms, load

log = logging.getLogger(__name__)

Ready = Callable[[str], None]
"""Called once, with what to tell, when a service takes work."""

HTTP_TIMEOUT_S = 0.9
"""A client hears within a second that the queue is away."""

CLOSE_S = 10.0
"""How long requests under way may take to end when the server stops."""


async def run_http(settings: Settings, stop: asyncio.Event, ready: Ready) -> None:
    """The REST API, until `stop`. Raises ConfigError, QueueUnavailable."""
    keys = settings.http.keys or settings.http.keys_file
    _require(keys, "http.keys (TANGO_KEYS): a server without a key would let anyone in; set one")
    _require(settings.queue.url, "queue.url (TANGO_REDIS_URL): unset; only `tango up` embeds a server")
    if not settings.callbacks.allow:
        log.warning("callbacks.allow is empty: callbacks may go to any host")
    async with AsyncExitStack() as stack:
        store = LocalStore(settings.store)
        stack.push_async_callback(store.close)
        queue = Queue(settings, timeout_s=HTTP_TIMEOUT_S, marks=store.raise_mark)
        stack.push_async_callback(queue.close)
        await queue.open()
        runner = make_runner(make_app(settings, queue, store), shutdown_s=CLOSE_S)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, settings.http.host, settings.http.port, backlog=1024)
        try:
            await site.start()
        except OSError as e:
            raise ConfigError(f"http.port (TANGO_PORT): {settings.http.host}:{settings.http.port}: {e.strerror}") from e
        host, port = runner.addresses[0][:2]
        ready(f"http on http://{host}:{port}")
        await stop.wait()


async def run_dispatcher(settings: Settings, stop: asyncio.Event, ready: Ready) -> None:
    """A dispatcher, until `stop`. Raises ConfigError, QueueUnavailable, VmmsUnavailable."""
    _require(settings.queue.url, "queue.url (TANGO_REDIS_URL): unset; only `tango up` embeds a server")
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(own_place(settings.state_dir))
        settings = msgspec.structs.replace(
            settings, dispatcher=msgspec.structs.replace(settings.dispatcher, state_dir=place)
        )
        install = _install_id(place)
        store = LocalStore(settings.store)
        stack.push_async_callback(store.close)
        queue = Queue(settings)
        stack.push_async_callback(queue.close)
        await queue.open()
        vmms = await choose_vmms(settings, install)
        await Dispatcher(settings, queue, store, vmms, install).run(stop, ready)


async def run_up(settings: Settings, stop: asyncio.Event, ready: Ready) -> None:
    """HTTP and a dispatcher on this loop, with an embedded server unless a Redis is set."""
    async with AsyncExitStack() as stack:
        if not settings.queue.url:
            server = EmbeddedServer(settings.store.data_dir / "redis")
            url = await server.start()
            stack.push_async_callback(server.stop)
            settings = msgspec.structs.replace(settings, queue=msgspec.structs.replace(settings.queue, url=url))
        said: list[str] = []

        def one_ready(what: str) -> None:
            said.append(what)
            if len(said) == 2:
                ready(", ".join(sorted(said)))

        async with asyncio.TaskGroup() as group:
            # Jobs end before the API closes, so that their feedback can still be fetched.
            jobs_done = asyncio.Event()
            group.create_task(run_http(settings, jobs_done, one_ready))
            await run_dispatcher(settings, stop, one_ready)
            jobs_done.set()


async def choose_vmms(settings: Settings, install: str) -> Vmms:
    """The configured back-end; with `auto`, Docker if an engine answers and has an image, else the sandbox."""
    name = settings.dispatcher.vmms
    if name != "auto":
        return load(name, settings, install)
    why = "aiodocker is not installed"
    try:
        docker = load("localDocker", settings, install)
        try:
            await docker.open()
            have = set(await docker.get_images()) & set(settings.sandbox.images)
        finally:
            await docker.close()
        if have:
            return load("localDocker", settings, install)
        why = f"the engine has none of these images: {', '.join(settings.sandbox.images)}"
    except (ConfigError, VmmsError) as e:
        why = str(e)
    log.info("localSandbox is used, not localDocker: %s", why)
    return load("localSandbox", settings, install)


@asynccontextmanager
async def own_place(root: Path) -> AsyncIterator[Path]:
    """The first directory below `root` that no living dispatcher has; it is ours until the end.

    The lock is the process's: it is free the moment the process is dead, however it died, and the
    next dispatcher takes the place and what was left running in it.
    """
    for number in range(1000):
        place = root / str(number)
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise ConfigError(f"dispatcher.state_dir: {place}: {e.strerror}") from e
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        try:
            yield place
        finally:
            os.close(lock)
        return
    raise ConfigError(f"dispatcher.state_dir: {root}: a thousand dispatchers run here already")


def _install_id(place: Path) -> str:
    """The name of a dispatcher's place, made once."""
    file = place / "install"
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        name = uuid4().hex[:12]
        new = place / "install.new"
        new.write_text(name)
        new.rename(file)
        return name


def _require(value: object, otherwise: str) -> None:
    if not value:
        raise ConfigError(otherwise)
