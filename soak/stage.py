"""The stage: two servers and two dispatchers, Redis, a small disk, a receiver, and all that can be cut between them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import aiohttp
from count import Starts
from plan import ENGINES
from program import Program
from proxy import Proxy
from receiver import SECRET, Receiver
from redis.asyncio import Redis

from support.engine import PrivateEngine
from support.netns import Certificates, RemoteEngine
from support.redis_server import server_programs

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sys.executable).parent
IMAGE = "autograding_image"
KEY = "soak"
PREFIX = "soak:"
DISK_BYTES = 96 * 1024**2
STRAY_AGE_S = 30.0
MIN_AGE_S = 1.0

SETTINGS = {
    "TANGO_KEYS": KEY,
    "TANGO_HOST": "127.0.0.1",
    "TANGO_PORT": "0",
    "TANGO_QUEUE_PREFIX": PREFIX,
    "TANGO_QUEUE_HISTORY_LIMIT": "100000",
    "TANGO_HTTP_LIST_LIMIT": "100000",
    "TANGO_DISPATCHER_SLOTS": "5",
    # Short leases, so that they run out often; a long grace, so that no host stays away for longer.
    "TANGO_DISPATCHER_LEASE_S": "3",
    "TANGO_DISPATCHER_ADOPT_GRACE_S": "60",
    "TANGO_DISPATCHER_JOB_RETRIES": "20",
    "TANGO_DISPATCHER_GRACE_S": "10",
    "TANGO_DISPATCHER_MACHINE_WAIT_S": "20",
    "TANGO_DISPATCHER_COPY_IN_S": "20",
    "TANGO_DISPATCHER_UPKEEP_S": "1",
    "TANGO_DISPATCHER_FILE_UPKEEP_S": "3",
    "TANGO_DISPATCHER_STRAY_AGE_S": str(STRAY_AGE_S),
    "TANGO_LIMITS_OUTPUT_BYTES": str(64 * 1024),
    "TANGO_LIMITS_OUTPUT_STOP_BYTES": str(4 * 1024**2),
    "TANGO_LIMITS_LIVE_OUTPUT_BYTES": str(16 * 1024),
    "TANGO_LIMITS_DISK_BYTES": str(24 * 1024**2),
    "TANGO_LIMITS_MEMORY_BYTES": str(256 * 1024**2),
    "TANGO_LIMITS_PROCESSES": "40",
    "TANGO_CALLBACKS_MIN_AGE_S": str(MIN_AGE_S),
    "TANGO_CALLBACKS_UNANSWERED_S": "20",
    "TANGO_CALLBACKS_TIMEOUT_S": "2",
    "TANGO_CALLBACKS_ALLOW": "127.0.0.1",
    "TANGO_CALLBACKS_SECRET": SECRET,
}

HOST = """
[[docker.hosts]]
name = "n{number}"
url = "{url}"
slots = 2
ca = "{ca}"
cert = "{cert}"
key = "{key}"
"""

REDIS = ["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning"]
LEDGER = ["--auto-aof-rewrite-percentage", "0", "--auto-aof-rewrite-min-size", "64gb"]
"""The append-only file is the soak's witness, so it must keep everything."""


class Stage:
    """Everything that a soak starts. Made in a mount namespace of its own, so that the small disk ends with it."""

    def __init__(self, directory: Path, vmms: str, seed: int) -> None:
        self.directory = directory
        self.vmms = vmms
        self.labs = directory / "labs"
        self.state = directory / "state"
        self.logs = directory / "logs"
        self.aof = directory / "redis/appendonlydir"
        self.starts = Starts(directory)
        self.receiver = Receiver(seed)
        self.engines: list[PrivateEngine] = []
        self.uid = 64_200 + os.getpid() % 1000
        self._redis_socket = directory / "redis/socket"
        self.witness = Redis.from_url(f"unix://{self._redis_socket}", protocol=3)
        """Asks Redis without a proxy between; its errors are the asker's."""
        self.redis = self._make_redis()
        self.redis_proxies = [Proxy(lambda: asyncio.open_unix_connection(self._redis_socket)) for _ in range(4)]
        self.servers: list[Program] = []
        self.dispatchers: list[Program] = []
        self.server_proxies = [Proxy(lambda i=i: self._dial_server(i)) for i in range(2)]  # type: ignore[misc]

    def _make_redis(self) -> Program:
        place = ["--unixsocket", str(self._redis_socket), "--dir", str(self._redis_socket.parent)]
        program = server_programs().get("redis-server") or next(iter(server_programs().values()))

        async def answers(_: str) -> bool:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_unix_connection(self._redis_socket)
                try:
                    writer.write(b"PING\r\n")
                    return await reader.readline() == b"+PONG\r\n"
                finally:
                    writer.close()
            return False

        return Program("redis", [program, *place, *REDIS, *LEDGER], {}, self.logs, answers)

    async def _dial_server(self, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The server's port is another one in each of its lives."""
        found = re.search(r"http on http://127\.0\.0\.1:(\d+)", self.servers[number].log.read_text(errors="replace"))
        if found is None:
            raise ConnectionRefusedError
        return await asyncio.open_connection("127.0.0.1", int(found[1]))

    @property
    def urls(self) -> list[str]:
        """The servers, as clients reach them."""
        return [f"http://127.0.0.1:{proxy.port}" for proxy in self.server_proxies]

    async def open(self) -> None:
        for folder in (self.labs, self.state, self.logs, self._redis_socket.parent):
            folder.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "soak", str(self.labs)], check=True
        )
        self.starts.make()
        await self.receiver.open()
        for proxy in (*self.redis_proxies, *self.server_proxies):
            await proxy.open()
        environment = SETTINGS | {
            "TANGO_DATA_DIR": str(self.directory / "data"),
            "TANGO_COURSELABS": str(self.labs),
            "TANGO_DISPATCHER_STATE_DIR": str(self.state),
            "TANGO_VMMS": self.vmms,
            "TANGO_SANDBOX_BWRAP": str(self.starts.bwrap),
            "TANGO_SANDBOX_UID": str(self.uid),
        }
        if self.vmms == "localDocker":
            self._start_engine(PrivateEngine())
            environment |= {"DOCKER_HOST": self.engines[0].host, "TANGO_DOCKER_RUNTIME": "soak"}
        elif self.vmms == "distDocker":
            environment |= {"TANGO_CONFIG": str(self._start_engines()), "TANGO_DOCKER_RUNTIME": "soak"}
        self.redis.keep()
        await self.redis.until_ready()
        for i, proxy in enumerate(self.redis_proxies):
            kind = "http" if i < 2 else "dispatcher"
            program = Program(
                f"{kind}-{i % 2}",
                [str(SCRIPTS / f"tango-{kind}")],
                environment | {"TANGO_QUEUE_URL": f"redis://127.0.0.1:{proxy.port}"},
                self.logs,
                _says_ready,
            )
            (self.servers if i < 2 else self.dispatchers).append(program)
            program.keep()
        for program in (*self.servers, *self.dispatchers):
            await program.until_ready()

    def _start_engines(self) -> Path:
        """Several hosts, and the settings that name them."""
        tls = Certificates(self.directory / "tls")
        text = ""
        for number in range(ENGINES):
            engine = RemoteEngine(tls)
            self._start_engine(engine)
            text += HOST.format(number=number, url=engine.url, ca=tls.ca, cert=tls.cert, key=tls.key)
        config = self.directory / "tango.toml"
        config.write_text(text)
        return config

    def _start_engine(self, engine: PrivateEngine) -> None:
        self.engines.append(engine)
        runtimes = {"runtimes": {"soak": {"path": str(self.starts.runtime)}}}
        (engine.directory / "daemon.json").write_text(json.dumps(runtimes))
        engine.start()
        environment = os.environ | {"DOCKER_HOST": engine.host}
        builder = str(ROOT / "deploy/images/grading_image.py")
        subprocess.run([sys.executable, builder], check=True, env=environment, stdout=subprocess.DEVNULL)

    async def stop_services(self) -> dict[str, int | None]:
        """Stops servers and dispatchers as an operator would; their exit statuses."""
        programs = [*self.servers, *self.dispatchers]
        return dict(zip((p.name for p in programs), await asyncio.gather(*(p.stop() for p in programs)), strict=True))

    async def close(self) -> None:
        await self.stop_services()
        await self.redis.stop()
        await self.witness.aclose()
        for proxy in (*self.redis_proxies, *self.server_proxies):
            await proxy.close()
        await self.receiver.close()
        for engine in self.engines:
            await asyncio.to_thread(engine.stop)
        subprocess.run(["umount", str(self.labs)], check=False)

    async def answers(self, number: int) -> bool:
        """Whether a server answers a question that needs Redis."""
        timeout = aiohttp.ClientTimeout(total=2)
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{self.urls[number]}/info/{KEY}/", headers={"Connection": "close"}) as answer,
            ):
                return answer.status == 200
        return False


async def _says_ready(log: str) -> bool:
    return "ready: " in log
