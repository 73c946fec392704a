"""Blocking reads: BLPOP on the bells of the classes that a dispatcher has room for.

A bell says "look again", no more: the reply may be lost without harm, since its listener looks
again after every timeout too. The connection is its own, without redis-py's socket timeout and
repeats, and a wait is ended by CLIENT UNBLOCK: a cancelled BLPOP can swallow an element and leave
the connection unusable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ..config import Settings
from ..errors import QueueUnavailable
from . import keys
from .address import options
from .edge import Edge


class Bells:
    """One listener. `wait` and `wake` may be called from different tasks of one loop."""

    def __init__(self, settings: Settings) -> None:
        self._prefix = settings.queue.prefix
        unbounded = {"socket_timeout": None, "retry": Retry(NoBackoff(), 0)}
        self._pools = [ConnectionPool(**(options(settings.queue) | more)) for more in ({}, unbounded)]
        self._commands = Redis(connection_pool=self._pools[0])
        self._blocking = Redis(connection_pool=self._pools[1], single_connection_client=True)
        self._client_id: int | None = None
        self._waiting: asyncio.Future[object] | None = None

    async def wait(self, bells: Sequence[str], timeout_s: float) -> bool:
        """True if a bell rang, False after the timeout or a wake. Raises QueueUnavailable."""
        async with Edge(timeout_s + 5.0):
            await self._connect()
            self._waiting = asyncio.ensure_future(_command(self._blocking, "BLPOP", *bells, timeout_s))
            try:
                return await asyncio.shield(self._waiting) is not None
            except asyncio.CancelledError:
                await self._give_up(self._waiting)
                raise
            finally:
                self._waiting = None

    async def _give_up(self, waiting: asyncio.Future[object]) -> None:
        """Ends the read by the server, or by cutting the connection if the server does not hear."""
        with suppress(QueueUnavailable):
            await self.wake()
        await asyncio.wait([waiting], timeout=1.0)
        if not waiting.done():
            # It would hold the one connection for ever, and every later wait with it.
            self._client_id = None
            if self._blocking.connection is not None:
                await self._blocking.connection.disconnect(nowait=True)
            waiting.cancel()
            await asyncio.wait([waiting], timeout=1.0)

    async def _connect(self) -> None:
        connection = self._blocking.connection
        if self._client_id is None or connection is None or not connection.is_connected:
            await self._blocking.initialize()
            self._client_id = int(await _command(self._blocking, "CLIENT", "ID"))

    async def wait_classes(self, classes: Sequence[str], timeout_s: float) -> bool:
        """For jobs of these classes, and of those that require fewer labels."""
        plain = dict.fromkeys(c.partition("+")[0].rstrip("|") for c in classes)
        return await self.wait([keys.bell(self._prefix, c) for c in dict.fromkeys([*classes, *plain])], timeout_s)

    async def wait_control(self, instance: str, timeout_s: float) -> bool:
        return await self.wait([keys.control(self._prefix, instance)], timeout_s)

    async def wake(self) -> None:
        """Ends a wait at once; without one, nothing happens."""
        if self._waiting is not None and not self._waiting.done() and self._client_id is not None:
            async with Edge(1.0):
                await _command(self._commands, "CLIENT", "UNBLOCK", self._client_id)

    async def close(self) -> None:
        await self._blocking.aclose()
        await self._commands.aclose()
        for pool in self._pools:
            await pool.disconnect()


async def _command(client: Redis, *words: object) -> Any:
    return await client.execute_command(*words)  # type: ignore[no-untyped-call]
