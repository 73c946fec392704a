"""The edge to redis-py: connections with nothing left to its defaults, scripts, and its errors as ours.

A command is repeated on a lost connection, so every script gives the same answer to the same
request. Every new connection greets its server before it is used, so that a server which was
restarted, emptied or replaced is noticed before anything is decided on its word.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from hashlib import sha1
from importlib import resources
from typing import Any, Protocol

from redis import exceptions
from redis.asyncio import ConnectionPool

from ..config import Queue
from ..errors import ConfigError, QueueBroken, QueueRefused
from . import keys
from .address import options
from .line import Line

log = logging.getLogger(__name__)

ID_RESERVE = 100
"""The mark is raised so far ahead that it is written once in as many jobs."""


class Marks(Protocol):
    """The high-water mark of ids, kept outside Redis: raises it to `at_least`, answers what it is."""

    def __call__(self, at_least: int, /) -> Awaitable[int]: ...


NEEDS_NO_ROOM = {"end", "retry", "extend", "reap", "delivered", "retire", "forget", "cancel"}
"""Run also when the server is out of memory (Redis 7): they free what it holds, or end what uses it."""


SHARED = ("_common", "_lanes", "_arrows")
"""Lua files that stand before every script."""

LEAN = {"start", "extend", "show"}
"""Scripts that need the first of these files only. They run often, and Lua makes all functions anew in each run."""


@cache
def _script(name: str, without_room: bool = False) -> tuple[str, str]:
    folder = resources.files(__package__) / "lua"
    first = "#!lua flags=allow-oom\n" if without_room else ""
    shared = SHARED[:1] if name in LEAN else SHARED
    text = first + "".join((folder / f"{part}.lua").read_text() for part in (*shared, name))
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


class Server:
    """One Redis server, asked by scripts and single commands. `timeout_s` bounds each, repeats included."""

    def __init__(self, settings: Queue, *, timeout_s: float, quiet_ms: int, marks: Marks | None) -> None:
        self.prefix = settings.prefix
        self._quiet_ms = quiet_ms
        self._marks = marks
        self._shows_no_certificate = settings.url.startswith("rediss") and settings.cert is None
        self._greeted = ""
        self._knows_flags = False
        # The line has time limits of its own. A host that says nothing may be gone, and another in its place.
        own = {"socket_timeout": None, "socket_connect_timeout": 2.0, "redis_connect_func": self._on_connect}
        chosen = options(settings) | own
        connection = ConnectionPool(**chosen).make_connection()  # type: ignore[no-untyped-call]
        self._line = Line(connection, timeout_s)

    async def close(self) -> None:
        await self._line.close()

    async def run(self, name: str, *args: Any) -> Any:
        """Runs lua/<name>.lua. Raises QueueUnavailable, QueueBroken."""
        text, sha = _script(name, name in NEEDS_NO_ROOM and self._knows_flags)
        try:
            return await self.command("EVALSHA", sha, 1, self.prefix, *args)
        except exceptions.NoScriptError:
            return await self.command("EVAL", text, 1, self.prefix, *args)

    async def command(self, *words: Any) -> Any:
        """One command; keys are given whole. Raises QueueUnavailable, QueueBroken."""
        return await self._line.ask(words)

    async def commands(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Several commands in one trip, their answers in order."""
        return list(await asyncio.gather(*map(self._line.ask, commands)))

    async def info(self, section: str) -> dict[str, str]:
        return _parse_info(await self.command(_RAW_INFO, section))

    async def _on_connect(self, connection: Any) -> None:
        try:
            await connection.on_connect()
            await self._greet(connection)
        except BaseException as e:
            # redis-py would keep the connection and use it as if it had been greeted.
            await connection.disconnect(nowait=True)
            refused = isinstance(e, exceptions.AuthenticationError) or "password" in str(e)
            if self._shows_no_certificate and isinstance(e, exceptions.ConnectionError) and not refused:
                raise QueueRefused(f"Redis ended a TLS connection; does it ask for queue.cert? {e}") from e
            raise

    async def _greet(self, connection: Any) -> None:
        async def ask(*words: Any) -> Any:
            await connection.send_command(*words)
            return await connection.read_response()

        server = _parse_info(await ask("INFO", "server"))
        before = self._greeted
        if server["run_id"] == before:
            return
        mode = server.get("redis_mode") or server.get("server_mode", "standalone")  # the second is Valkey's word
        if mode != "standalone":
            raise ConfigError(f"queue.url (TANGO_REDIS_URL): {_NOT_SERVED.get(mode, mode)}")
        await self._require_rights(ask)
        self._knows_flags = int(server["redis_version"].split(".")[0]) >= 7
        found = await ask("EVAL", _script("greet")[0], 1, self.prefix, server["run_id"], self._quiet_ms, keys.FORMAT)
        if found > keys.FORMAT:
            raise QueueBroken(
                f"the jobs in Redis below {self.prefix} are of format {found}, which a newer release wrote, and "
                f"this one knows {keys.FORMAT}: upgrade this process, or set another queue.prefix"
            )
        if found < keys.FORMAT and (jobs := await ask("EVAL", _script("migrate")[0], 1, self.prefix, keys.FORMAT)):
            log.warning("%d jobs of an older release were brought to format %d", jobs, keys.FORMAT)
        if before:
            log.warning(
                "Redis is another one than before or was restarted; for a while no job is taken from its holder"
            )
        if self._marks is not None:
            mark = await self._marks(0)
            tell_loss(await ask("EVAL", _script("raise_ids")[0], 1, self.prefix, mark), mark)
        self._greeted = server["run_id"]

    async def _require_rights(self, ask: Callable[..., Awaitable[Any]]) -> None:
        """Raises QueueRefused, naming all commands that an ACL denies: better now than when a job ends."""
        missing = [word.decode() for word in await ask("EVAL", _script("rights")[0], 1, self.prefix)]
        not_in_scripts = _NOT_IN_SCRIPTS | {"blpop": ("BLPOP", f"{self.prefix}rights", 0.001)}
        for name, words in not_in_scripts.items():
            try:
                await ask(*words)
            except exceptions.NoPermissionError:
                missing.append(name)
            except exceptions.NoScriptError:
                continue
        if missing:
            raise QueueRefused(
                f"Redis denies the user of queue.username, on keys that begin with queue.prefix ({self.prefix}): "
                f"{', '.join(missing)}; docs/operating.md has its rules"
            )


_NOT_IN_SCRIPTS: dict[str, tuple[Any, ...]] = {
    "ping": ("PING",),
    "client|id": ("CLIENT", "ID"),
    "client|unblock": ("CLIENT", "UNBLOCK", 0),
    "evalsha": ("EVALSHA", "0" * 40, 0),
}

_NOT_SERVED = {
    "cluster": "a Redis Cluster cannot be used, since a job's keys are changed together; use one server, or Sentinel",
    "sentinel": "that is a Sentinel: write redis+sentinel://HOST:PORT,…/MASTER",
}


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
