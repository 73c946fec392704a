"""The edge to redis-py: connections with nothing left to its defaults, scripts, and its errors as ours.

A command is repeated on a lost connection, so every script gives the same answer to the same
request. Every new connection greets its server before it is used, so that a server which was
restarted, emptied or replaced is noticed before anything is decided on its word.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from functools import cache
from hashlib import sha1
from importlib import resources
from typing import Any, Protocol

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from ..errors import QueueFull, QueueUnavailable


class Marks(Protocol):
    """The high-water mark of ids, kept outside Redis: raises it to `at_least`, answers what it is."""

    def __call__(self, at_least: int, /) -> Awaitable[int]: ...


def connect(url: str, **options: Any) -> Redis:
    """A redis-py client; its own defaults time out and repeat blocking reads."""
    settings: dict[str, Any] = {
        "protocol": 3,
        "socket_timeout": 5.0,
        "socket_connect_timeout": 5.0,
        "socket_keepalive": None if url.startswith("unix") else True,
        "health_check_interval": 0,
        "decode_responses": False,
        "retry": Retry(ExponentialBackoff(cap=0.25, base=0.02), 3),
        "max_connections": 64,
    }
    settings |= options
    if settings["socket_keepalive"] is None:
        del settings["socket_keepalive"]
    return Redis.from_url(url, **settings)


@cache
def _script(name: str) -> tuple[str, str]:
    folder = resources.files(__package__) / "lua"
    text = (folder / "_common.lua").read_text() + (folder / f"{name}.lua").read_text()
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


class Server:
    """One Redis server, asked by scripts and single commands. `timeout_s` bounds each, repeats included."""

    def __init__(self, url: str, prefix: str, *, timeout_s: float, quiet_ms: int, marks: Marks | None) -> None:
        self.prefix = prefix
        self._timeout_s = timeout_s
        self._quiet_ms = quiet_ms
        self._marks = marks
        self._greeted = ""
        self._redis = connect(url, redis_connect_func=self._on_connect)

    async def close(self) -> None:
        await self._redis.aclose()

    async def run(self, name: str, *args: Any) -> Any:
        """Runs lua/<name>.lua. Raises QueueUnavailable, QueueFull."""
        text, sha = _script(name)
        try:
            return await self.command("EVALSHA", sha, 1, self.prefix, *args)
        except exceptions.NoScriptError:
            return await self.command("EVAL", text, 1, self.prefix, *args)

    async def command(self, *words: Any) -> Any:
        """One command; keys are given whole. Raises QueueUnavailable, QueueFull."""
        async with Edge(self._timeout_s):
            return await self._redis.execute_command(*words)  # type: ignore[no-untyped-call]

    async def commands(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Several commands in one trip, their answers in order."""
        async with Edge(self._timeout_s), self._redis.pipeline(transaction=False) as pipe:
            for words in commands:
                pipe.execute_command(*words)
            return list(await pipe.execute())

    async def info(self, section: str) -> dict[str, str]:
        return _parse_info(await self.command(_RAW_INFO, section))

    async def _on_connect(self, connection: Any) -> None:
        await connection.on_connect()

        async def ask(*words: Any) -> Any:
            await connection.send_command(*words)
            return await connection.read_response()

        run_id = _parse_info(await ask("INFO", "server"))["run_id"]
        if run_id == self._greeted:
            return
        await ask("EVAL", _script("greet")[0], 1, self.prefix, run_id, self._quiet_ms)
        if self._marks is not None:
            await ask("EVAL", _script("raise_ids")[0], 1, self.prefix, await self._marks(0))
        self._greeted = run_id


_RAW_INFO = "info"
"""In lower case redis-py does not know the command and leaves the answer as it is."""


def _parse_info(text: bytes | str | dict[str, Any]) -> dict[str, str]:
    if isinstance(text, dict):
        return {name: str(value) for name, value in text.items()}
    plain = text.decode() if isinstance(text, bytes) else text
    return dict(re.findall(r"^(\w+):(.*?)\r?$", plain, re.MULTILINE))


class Edge:
    """Bounds what is done inside, and turns redis-py's exceptions into ours.

    redis-py waits with `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that comes
    as its wait ends. It is known to the task and raised here, or a loop that asks Redis could not be
    ended.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout = asyncio.timeout(timeout_s)
        self._cancels = 0

    async def __aenter__(self) -> None:
        self._cancels = _cancels()
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise QueueUnavailable("Redis does not answer") from error
        if _cancels() > self._cancels and not isinstance(error, asyncio.CancelledError):
            raise asyncio.CancelledError from error
        match error:
            case exceptions.NoScriptError() | None:
                return
            case exceptions.OutOfMemoryError():
                raise QueueFull("The job queue is full: Redis is out of memory") from error
            case exceptions.RedisError() | OSError():
                raise QueueUnavailable(f"Redis cannot be used: {error}") from error


def _cancels() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task else 0
