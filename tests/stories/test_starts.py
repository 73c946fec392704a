"""A service that starts before what it stands on: it waits and says so, and works as soon as that is there."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from stories.conftest import Rig
from support.engine import PrivateEngine
from support.notify import Listener, start
from support.redis_server import RedisServer
from support.service import PATIENCE_S, Process, Service, addjob

QUICK = {"Makefile": b"autograde:\n\t@echo ran\n"}


@pytest.fixture
def no_redis_yet(own_redis: RedisServer) -> RedisServer:
    own_redis.kill()
    own_redis.socket.unlink(missing_ok=True)
    return own_redis


async def hears_that_it_waits(listener: Listener, *, times: int) -> str:
    """What for. systemd grants its start more time with each, and hears of no readiness."""
    status = ""
    for _ in range(times):
        async with asyncio.timeout(PATIENCE_S):
            message = await listener.next()
        granted = [int(word.removeprefix("EXTEND_TIMEOUT_USEC=")) for word in message if word.startswith("EXTEND")]
        assert granted and granted[0] > 30_000_000 and "READY=1" not in message, message
        status = next(word for word in message if word.startswith("STATUS="))
    return status


async def test_the_api_answers_503_until_redis_is_there(
    service: Service,
    no_redis_yet: RedisServer,
    listener: Listener,
    tmp_path: Path,
) -> None:
    process = start(service, tmp_path, "tango-http")
    status = await hears_that_it_waits(listener, times=3)
    service.url = re.findall(r"http on (http://\S+) answers 503: Redis", status)[0]
    for method, path, body in (
        ("GET", "/poll/test/lab/o", None),
        ("POST", "/addJob/test/lab/", addjob("lab", [], "o")),
    ):
        code, kind, said = await service.call(method, path, data=body)
        assert (code, kind, json.loads(said)["statusId"]) == (503, "application/json", -1)
    code, _, said = await service.call("GET", "/readyz")
    assert (code, json.loads(said)["checks"]["queue"]) == (503, "cannot be reached")
    assert (await service.call("GET", "/healthz"))[0] == 200
    await service.upload("lab", QUICK)
    no_redis_yet.start()
    await listener.hear("READY=1")
    await service.add("lab", ["Makefile"], "o")
    assert process.said().count("waiting:") == 1, "once a minute"
    assert await process.stop() == 0


@pytest.mark.parametrize("name", ["tango-http", "tango-dispatcher"])
async def test_a_wrong_password_is_said_once_with_its_setting_until_it_is_right(
    service: Service, sandbox: None, own_redis: RedisServer, listener: Listener, tmp_path: Path, name: str
) -> None:
    own_redis._ask("ACL", "SETUSER", "tango", "on", ">another", "~*", "+@all")
    service.environment |= {"TANGO_QUEUE_USERNAME": "tango", "TANGO_QUEUE_PASSWORD": "s3cret"}
    process = start(service, tmp_path, name)
    assert "queue.password" in await hears_that_it_waits(listener, times=2)
    own_redis._ask("ACL", "SETUSER", "tango", ">s3cret")
    await listener.hear("READY=1")
    said = process.said()
    assert said.count("waiting:") == 1 and "queue.password" in said and "s3cret" not in said
    assert await process.stop() == 0


async def test_a_dispatcher_waits_for_redis_and_works_when_it_is_there(
    service: Service,
    sandbox: None,
    no_redis_yet: RedisServer,
    listener: Listener,
    tmp_path: Path,
) -> None:
    process = start(service, tmp_path, "tango-dispatcher")
    assert "Redis" in await hears_that_it_waits(listener, times=3)
    no_redis_yet.start()
    await listener.hear("READY=1")
    await service.run("tango-http")
    await service.upload("lab", QUICK)
    await service.add("lab", ["Makefile"], "o")
    assert (await service.poll("lab", "o")).endswith("\nran\n")
    assert process.popen.poll() is None


async def test_a_dispatcher_waits_for_its_engine_and_follows_what_ran_meanwhile(
    rig: Rig,
    listener: Listener,
    tmp_path: Path,
) -> None:
    await rig.service.run("tango-http")
    dispatcher = await rig.dispatcher()
    await rig.running(await rig.add("one", 16))
    dispatcher.kill()
    bwrap = Path(rig.service.environment["TANGO_SANDBOX_BWRAP"])
    bwrap.rename(bwrap.with_suffix(".away"))
    process = start(rig.service, tmp_path, "tango-dispatcher")
    assert "bwrap" in await hears_that_it_waits(listener, times=3)
    bwrap.with_suffix(".away").rename(bwrap)
    await listener.hear("READY=1")
    await rig.ended("one", 16)
    assert rig.begun() == ["one"]
    assert process.popen.poll() is None


@pytest.mark.parametrize("vmms", ["localDocker", "auto"])
async def test_a_dispatcher_waits_for_the_docker_engine(
    service: Service, private_engine: PrivateEngine, listener: Listener, tmp_path: Path, vmms: str
) -> None:
    service.environment |= {"TANGO_VMMS": vmms, "DOCKER_HOST": private_engine.host}
    if vmms == "auto":
        before = start(service, tmp_path, "tango-dispatcher")
        assert "STATUS=vmms localDocker, 3 slots" in await listener.hear("READY=1", 30.0)
        assert await before.stop() == 0
        await listener.hear("STOPPING=1")
    private_engine.kill()
    try:
        process = start(service, tmp_path, "tango-dispatcher")
        assert "Docker" in await hears_that_it_waits(listener, times=2)
        assert process.popen.poll() is None
    finally:
        private_engine.start()
    assert "STATUS=vmms localDocker, 3 slots" in await listener.hear("READY=1", 30.0)


@pytest.mark.parametrize("name", ["tango-http", "tango-dispatcher"])
async def test_one_that_waits_stops_at_once_when_it_is_told_to(
    service: Service,
    sandbox: None,
    no_redis_yet: RedisServer,
    listener: Listener,
    tmp_path: Path,
    name: str,
) -> None:
    process = start(service, tmp_path, name)
    await hears_that_it_waits(listener, times=1)
    assert await process.stop() == 0
    assert not [message for message in listener.drain() if "READY=1" in message]


WRONG = [
    ("tango-http", {"TANGO_REDIS_URL": "localhost"}, "queue.url (TANGO_REDIS_URL): "),
    ("tango-http", {"TANGO_HOST": "192.0.2.1"}, "http.port (TANGO_PORT): 192.0.2.1:0: "),
    ("tango-dispatcher", {"TANGO_REDIS_URL": "redis://h:port"}, "queue.url (TANGO_REDIS_URL): "),
    ("tango-dispatcher", {"TANGO_VMMS": "noSuch"}, "dispatcher.vmms: unknown VMMS 'noSuch'"),
    ("tango-dispatcher", {"TANGO_VMMS": "no.such:Class"}, "dispatcher.vmms: no.such:Class cannot be loaded"),
]


@pytest.mark.parametrize(("name", "wrong", "said"), WRONG)
async def test_a_wrong_setting_is_not_waited_for(
    service: Service, no_redis_yet: RedisServer, tmp_path: Path, name: str, wrong: dict[str, str], said: str
) -> None:
    process = Process(name, [], {**service.environment, **wrong}, tmp_path / "log")
    service.processes.append(process)
    assert await process.ended() == 2
    last = process.said().splitlines()[-1]
    assert last.startswith(f"tango: {said}") and "Traceback" not in process.said()
