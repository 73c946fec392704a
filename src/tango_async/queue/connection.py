"""The edge to redis-py: connections with nothing left to its defaults, scripts, and its errors as ours.

A command is repeated on a lost connection, so every script gives the same answer to the same
request. Every new connection greets its server before it is used, so that a server which was
restarted, emptied or replaced is noticed before anything is decided on its word.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Sequence
from functools import cache
from hashlib import sha1
from importlib import resources
from typing import Any, Protocol

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from ..errors import ConfigError, QueueBroken, QueueOutOfMemory, QueueUnavailable, StoreError
from .batches import Batches

log = logging.getLogger(__name__)

ID_RESERVE = 100
"""The mark is raised so far ahead that it is written once in as many jobs."""


class Marks(Protocol):
    """The high-water mark of ids, kept outside Redis: raises it to `at_least`, answers what it is."""

    def __call__(self, at_least: int, /) -> Awaitable[int]: ...


def options(url: str) -> dict[str, Any]:
    """Of every connection: redis-py's own defaults time out and repeat blocking reads."""
    chosen: dict[str, Any] = {
        "protocol": 3,
        "socket_timeout": 5.0,
        "socket_connect_timeout": 5.0,
        "health_check_interval": 0,
        "decode_responses": False,
        "retry": Retry(ExponentialBackoff(cap=0.25, base=0.02), 3),
        "max_connections": 64,
    }
    return chosen if url.startswith("unix") else chosen | {"socket_keepalive": True}


NEEDS_NO_ROOM = {"end", "retry", "extend", "reap", "delivered", "retire", "forget", "cancel"}
"""Run also when the server is out of memory (Redis 7): they free what it holds, or end what uses it."""


SHARED = ("_common", "_lanes", "_arrows")
"""Lua files that stand before every script."""


@cache
def _script(name: str, without_room: bool = False) -> tuple[str, str]:
    folder = resources.files(__package__) / "lua"
    first = "#!lua flags=allow-oom\n" if without_room else ""
    text = first + "".join((folder / f"{part}.lua").read_text() for part in (*SHARED, name))
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


class Server:
    """One Redis server, asked by scripts and single commands. `timeout_s` bounds each, repeats included."""

    def __init__(self, url: str, prefix: str, *, timeout_s: float, quiet_ms: int, marks: Marks | None) -> None:
        self.prefix = prefix
        self._timeout_s = timeout_s
        self._quiet_ms = quiet_ms
        self._marks = marks
        self._greeted = ""
        self._knows_flags = False
        # More requests than connections wait for one.
        try:
            self._pool = BlockingConnectionPool.from_url(
                url, timeout=timeout_s, redis_connect_func=self._on_connect, **options(url)
            )
        except ValueError as e:
            raise ConfigError(f"queue.url (TANGO_REDIS_URL): {e}") from e
        self._redis = Redis(connection_pool=self._pool)
        self._batches = Batches(self._redis)

    async def close(self) -> None:
        await self._batches.close()
        await self._redis.aclose()
        await self._pool.disconnect()

    async def run(self, name: str, *args: Any) -> Any:
        """Runs lua/<name>.lua. Raises QueueUnavailable, QueueBroken."""
        text, sha = _script(name, name in NEEDS_NO_ROOM and self._knows_flags)
        try:
            return await self.command("EVALSHA", sha, 1, self.prefix, *args)
        except exceptions.NoScriptError:
            return await self.command("EVAL", text, 1, self.prefix, *args)

    async def command(self, *words: Any) -> Any:
        """One command; keys are given whole. Raises QueueUnavailable, QueueBroken."""
        async with Edge(self._timeout_s):
            return await self._batches.ask(words)

    async def commands(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Several commands in one trip, their answers in order."""
        async with Edge(self._timeout_s):
            return list(await asyncio.gather(*(self._batches.ask(words) for words in commands)))

    async def info(self, section: str) -> dict[str, str]:
        return _parse_info(await self.command(_RAW_INFO, section))

    async def _on_connect(self, connection: Any) -> None:
        try:
            await connection.on_connect()
            await self._greet(connection)
        except BaseException:
            # redis-py would keep the connection and use it as if it had been greeted.
            await connection.disconnect(nowait=True)
            raise

    async def _greet(self, connection: Any) -> None:
        async def ask(*words: Any) -> Any:
            await connection.send_command(*words)
            return await connection.read_response()

        server = _parse_info(await ask("INFO", "server"))
        before = self._greeted
        if server["run_id"] == before:
            return
        self._knows_flags = int(server["redis_version"].split(".")[0]) >= 7
        await ask("EVAL", _script("greet")[0], 1, self.prefix, server["run_id"], self._quiet_ms)
        if before:
            log.warning(
                "Redis is another one than before or was restarted; for a while no job is taken from its holder"
            )
        if self._marks is not None:
            mark = await self._marks(0)
            tell_loss(await ask("EVAL", _script("raise_ids")[0], 1, self.prefix, mark), mark)
        self._greeted = server["run_id"]


def tell_loss(known: int, mark: int) -> None:
    """Says loudly that the server knows less than was answered: it is empty, or has an older file."""
    given = mark - ID_RESERVE
    if known < given:
        log.error(
            "Redis has lost jobs: it knows ids up to %d, and ids up to %d were given; its file is empty or too old."
            " If there is a better one, stop all and put it back. What is lost is not graded; ids go on from %d",
            *(max(known, 0), given, mark),
        )


_RAW_INFO = "info"
"""In lower case redis-py does not know the command and leaves the answer as it is."""


def _parse_info(text: bytes | str | dict[str, Any]) -> dict[str, str]:
    if isinstance(text, dict):
        return {name: str(value) for name, value in text.items()}
    plain = text.decode() if isinstance(text, bytes) else text
    return dict(re.findall(r"^(\w+):(.*?)\r?$", plain, re.MULTILINE))


PASSING = ("LOADING", "BUSY", "READONLY", "MISCONF", "MASTERDOWN", "NOREPLICAS", "UNBLOCKED", "NOAUTH", "WRONGPASS")
"""Refusals that end by themselves or by an operator's hand, and are worth another try."""


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
                raise QueueOutOfMemory("Redis is out of memory") from error
            case exceptions.ResponseError() if not str(error).startswith(PASSING):
                raise QueueBroken(f"Redis refuses what it is asked: {error}") from error
            case exceptions.RedisError() | OSError():
                raise QueueUnavailable(f"Redis cannot be used: {error}") from error
            case StoreError():
                raise QueueUnavailable(f"the mark of job ids cannot be read: {error}") from error


def _cancels() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task else 0
