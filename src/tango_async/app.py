"""Composition: opens the parts in order, runs them on this loop, closes them in reverse.

The only module that knows which parts there are. What `tango-http` is given holds no machine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import msgspec
from aiohttp import web

from . import extras
from .config import Settings
from .dispatcher import places
from .dispatcher.cores import Cores
from .dispatcher.dispatcher import Dispatcher
from .dispatcher.siblings import Siblings
from .errors import ConfigError, QueueUnavailable, StoreUnavailable, VmmsError
from .files.base import FileStore
from .files.local import LocalStore
from .http.app import make_app, make_runner
from .queue.embedded import EmbeddedServer
from .queue.redis import Queue
from .vmms.base import Vmms, load

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Teller:
    """Whom a service tells how its start goes."""

    ready: Callable[[str], None]
    """Called once, with what to tell, when it takes work."""
    waiting: Callable[[str], None]
    """Called again and again, with what for, as long as it waits for something to come back."""


HTTP_TIMEOUT_S = 0.9
"""A client hears within a second that the queue is away."""

CLOSE_S = 10.0
"""How long requests under way may take to end when the server stops."""


BACKOFF_S = (0.25, 10.0)
"""First and longest pause between two tries to reach what a service stands on."""

AWAY = (QueueUnavailable, StoreUnavailable)
PASSING = (*AWAY, VmmsError)
"""What ends by itself or by an operator's hand, and is worth another try."""

SAY_S = 60.0
"""How often the log has a word on what is waited for."""


async def run_http(settings: Settings, stop: asyncio.Event, tell: Teller) -> None:
    """The REST API, until `stop`; until Redis and the store are there it answers 503.

    Raises ConfigError, StoreError, QueueBroken.
    """
    keys = settings.http.keys or settings.http.keys_file
    _require(keys, "http.keys (TANGO_KEYS): a server without a key would let anyone in; set one")
    _require(settings.queue.url, "queue.url (TANGO_REDIS_URL): unset; only `tango up` embeds a server")
    if not settings.callbacks.allow:
        log.warning("callbacks.allow is empty: callbacks may go to any host")
    async with AsyncExitStack() as stack:
        store = await connect_store(settings)
        stack.push_async_callback(store.close)
        queue = Queue(settings, timeout_s=HTTP_TIMEOUT_S, marks=store.raise_mark)
        stack.push_async_callback(queue.close)
        runner = make_runner(make_app(settings, queue, store), shutdown_s=CLOSE_S)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, settings.http.host, settings.http.port, backlog=1024)
        try:
            await site.start()
        except OSError as e:
            raise ConfigError(f"http.port (TANGO_PORT): {settings.http.host}:{settings.http.port}: {e.strerror}") from e
        host, port = runner.addresses[0][:2]
        here = f"http on http://{host}:{port}"

        async def reach() -> None:
            await store.open()
            await queue.open()

        await _patiently(reach, stop, tell.waiting, meanwhile=f"{here} answers 503: ")
        if not stop.is_set():
            tell.ready(here)
        await stop.wait()


async def run_dispatcher(settings: Settings, stop: asyncio.Event, tell: Teller, *, patient: bool = True) -> None:
    """A dispatcher, until `stop`. Raises ConfigError, StoreError, QueueBroken.

    It waits for Redis, the store and the engine; one that is not `patient` raises VmmsUnavailable for the engine.
    """
    Cores(settings.dispatcher.quiet_cores).leave()
    _require(settings.queue.url, "queue.url (TANGO_REDIS_URL): unset; only `tango up` embeds a server")
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(places.own_place(settings.state_dir))
        settings = msgspec.structs.replace(
            settings, dispatcher=msgspec.structs.replace(settings.dispatcher, state_dir=place)
        )
        install = places.install_id(place)
        store = await connect_store(settings)
        stack.push_async_callback(store.close)
        queue = Queue(settings)
        stack.push_async_callback(queue.close)

        async def dispatch() -> None:
            before = places.left(place)
            vmms = await choose_vmms(settings, install, before.vmms if before is not None and patient else "")
            await store.open()
            await queue.open()
            places.note(place, vmms.name if settings.dispatcher.vmms == "auto" else settings.dispatcher.vmms)
            await Dispatcher(settings, queue, store, vmms, install).run(stop, tell.ready)

        async with asyncio.TaskGroup() as group:
            group.create_task(Siblings(settings, queue, place).run(stop))
            await _patiently(dispatch, stop, tell.waiting, PASSING if patient else AWAY)


async def run_up(settings: Settings, stop: asyncio.Event, tell: Teller) -> None:
    """HTTP and a dispatcher on this loop, with an embedded server unless a Redis is set."""
    Cores(settings.dispatcher.quiet_cores).leave()  # before the server is started, which is to stay away, too
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
                tell.ready(", ".join(sorted(said)))

        async with asyncio.TaskGroup() as group:
            # Jobs end before the API closes, so that their feedback can still be fetched.
            jobs_done = asyncio.Event()
            both = Teller(one_ready, tell.waiting)
            group.create_task(run_http(settings, jobs_done, both))
            await run_dispatcher(settings, stop, both, patient=False)
            jobs_done.set()


async def connect_store(settings: Settings) -> FileStore:
    """The configured file store, which has not been asked anything yet. Raises ConfigError, StoreError."""
    if not settings.store.url:
        return LocalStore(settings.store)
    try:
        from .files.s3 import S3Store
    except ImportError as e:
        raise ConfigError(f"store.url (TANGO_STORE_URL): {e}; type: {extras.install('aiobotocore')}") from e
    return await S3Store.connect(settings)


async def choose_vmms(settings: Settings, install: str, before: str) -> Vmms:
    """The configured back-end; with `auto`, Docker if an engine answers and has an image, else the sandbox.

    Where Docker was used `before`, it is Docker: its jobs may run still, and an engine comes up after a reboot.
    """
    name = settings.dispatcher.vmms
    if name != "auto":
        return load(name, settings, install)
    if before == "localDocker":
        log.info("%s is used as before; dispatcher.vmms (TANGO_VMMS) may name another", before)
        return load(before, settings, install)
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


def _require(value: object, otherwise: str) -> None:
    if not value:
        raise ConfigError(otherwise)


async def _patiently(
    work: Callable[[], Awaitable[None]],
    stop: asyncio.Event,
    waiting: Callable[[str], None],
    passing: tuple[type[Exception], ...] = PASSING,
    meanwhile: str = "",
) -> None:
    """Does the work, again and again until Redis, the store and the engine let it, or until `stop`."""
    pause_s, longest_s = BACKOFF_S
    said: type[Exception] | None = None
    said_at = 0.0
    while not stop.is_set():
        try:
            await work()
            return
        except passing as e:
            waiting(f"{meanwhile}{e}")
            if type(e) is not said or time.monotonic() - said_at >= SAY_S:
                said, said_at = type(e), time.monotonic()
                log.warning("waiting: %s%s", meanwhile, e)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_s)
        pause_s = min(pause_s * 2, longest_s)
