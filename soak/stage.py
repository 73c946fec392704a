"""The stage: servers, dispatchers, Redis, a receiver, machines and a store, and all that can be cut between them."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import aiohttp
from backends import BACKENDS
from count import Starts
from plan import Part, Wishes, of_services
from program import Program
from proxy import Proxy
from receiver import Receiver
from redis.asyncio import Redis
from settings import KEY, SETTINGS
from stores import make_store

from support.redis_server import server_programs

SCRIPTS = Path(sys.executable).parent
SERVERS = 2

REDIS = ["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning"]
LEDGER = ["--auto-aof-rewrite-percentage", "0", "--auto-aof-rewrite-min-size", "64gb"]
"""The append-only file is the soak's witness, so it must keep everything."""


class Stage:
    """Everything that a soak starts. Made in a mount namespace of its own, so that what is mounted ends with it."""

    def __init__(self, directory: Path, vmms: str, store: str, dispatchers: int, seed: int) -> None:
        self.state = directory / "state"
        self.logs = directory / "logs"
        self.aof = directory / "redis/appendonlydir"
        self.starts = Starts(directory)
        self.receiver = Receiver(seed)
        self.backend = BACKENDS[vmms](directory, self.state, self.starts)
        self._servers = [f"http-{i}" for i in range(SERVERS)]
        self._dispatchers = [f"dispatcher-{i}" for i in range(dispatchers)]
        self.store = make_store(store, directory, [*self._servers, *self._dispatchers])
        self._vmms = vmms
        self._redis_socket = directory / "redis/socket"
        self.witness = Redis.from_url(f"unix://{self._redis_socket}", protocol=3)
        """Asks Redis without a proxy between; its errors are the asker's."""
        self.redis = self._make_redis()
        self.servers: list[Program] = []
        self.dispatchers: list[Program] = []
        self.to_servers = [Proxy(partial(self._dial_server, i)) for i in range(SERVERS)]
        """What clients come through."""
        self._to_redis = {name: Proxy(self._dial_redis) for name in (*self._servers, *self._dispatchers)}

    def _make_redis(self) -> Program:
        place = ["--unixsocket", str(self._redis_socket), "--dir", str(self._redis_socket.parent)]
        program = server_programs().get("redis-server") or next(iter(server_programs().values()))

        async def answers(_: str) -> bool:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await self._dial_redis()
                try:
                    writer.write(b"PING\r\n")
                    return await reader.readline() == b"+PONG\r\n"
                finally:
                    writer.close()
            return False

        return Program("redis", [program, *place, *REDIS, *LEDGER], {}, self.logs, answers)

    async def _dial_redis(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self._redis_socket)

    async def _dial_server(self, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The server's port is another one in each of its lives."""
        found = re.search(r"http on http://127\.0\.0\.1:(\d+)", self.servers[number].log.read_text(errors="replace"))
        if found is None:
            raise ConnectionRefusedError
        return await asyncio.open_connection("127.0.0.1", int(found[1]))

    @property
    def _proxies(self) -> list[Proxy]:
        return [*self.to_servers, *self._to_redis.values()]

    @property
    def urls(self) -> list[str]:
        """The servers, as clients reach them."""
        return [f"http://127.0.0.1:{proxy.port}" for proxy in self.to_servers]

    @property
    def programs(self) -> list[Program]:
        return [self.redis, *self.store.programs, *self.servers, *self.dispatchers]

    @property
    def wishes(self) -> Wishes:
        services = of_services(range(SERVERS), range(len(self._dispatchers)))
        return services + self.store.wishes + self.backend.wishes

    @property
    def parts(self) -> dict[str, Part]:
        """Name → all that can be tormented; whole when the stage is open."""
        connections = {f"{name}-redis": proxy for name, proxy in self._to_redis.items()}
        clients = {f"{name}-clients": proxy for name, proxy in zip(self._servers, self.to_servers, strict=True)}
        programs = {program.name: program for program in self.programs}
        return {**programs, **connections, **clients, **self.store.parts, **self.backend.parts}

    async def open(self) -> None:
        for folder in (self.state, self.logs, self._redis_socket.parent):
            folder.mkdir()
        self.starts.make()
        await self.receiver.open()
        for proxy in self._proxies:
            await proxy.open()
        await self.store.open()
        await self.backend.open()
        self.redis.keep()
        await self.redis.until_ready()
        common = SETTINGS | {"TANGO_VMMS": self._vmms}
        self.servers += [self._service("tango-http", name, common) for name in self._servers]
        self.dispatchers += [self._service("tango-dispatcher", name, common) for name in self._dispatchers]
        for program in (*self.servers, *self.dispatchers):
            program.keep()
        for program in (*self.servers, *self.dispatchers):
            await program.until_ready()

    def _service(self, script: str, name: str, common: Mapping[str, str]) -> Program:
        own = {
            "TANGO_QUEUE_URL": f"redis://127.0.0.1:{self._to_redis[name].port}",
            "TANGO_DISPATCHER_STATE_DIR": str(self.state / self.store.host(name)),
            "TANGO_DISPATCHER_STRAY_AGE_S": str(self.store.stray_age_s),
        }
        environment = {**common, **own, **self.backend.environment(name), **self.store.environment(name)}
        return Program(name, [str(SCRIPTS / script)], environment, self.logs, _says_ready)

    async def stop_services(self) -> dict[str, int | None]:
        """Stops servers and dispatchers as an operator would; their exit statuses."""
        programs = [*self.servers, *self.dispatchers]
        return dict(zip((p.name for p in programs), await asyncio.gather(*(p.stop() for p in programs)), strict=True))

    async def close(self) -> None:
        await self.stop_services()
        await self.redis.stop()
        await self.witness.aclose()
        for proxy in self._proxies:
            await proxy.close()
        await self.receiver.close()
        await self.backend.close()
        await self.store.close()

    async def answers(self, number: int, path: str) -> bool:
        """Whether a server answers that question well."""
        timeout = aiohttp.ClientTimeout(total=2)
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{self.urls[number]}/{path}/", headers={"Connection": "close"}) as answer,
            ):
                return answer.status == 200
        return False

    async def all_answer(self, path: str) -> bool:
        return all(await asyncio.gather(*(self.answers(i, path) for i in range(SERVERS))))


NEEDS_REDIS = f"info/{KEY}"
NEEDS_FILES = f"open/{KEY}/lab0"


async def _says_ready(log: str) -> bool:
    return "ready: " in log
