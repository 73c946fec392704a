"""A TCP proxy for one process: its connections can be cut, and held so that nothing passes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""Connects to what the proxy stands for. Raises OSError while that is away."""


class Proxy:
    """Listens on a port of its own, which stays the same whatever happens behind it."""

    def __init__(self, dial: Dial, kind: str = "connections") -> None:
        self.kind = kind
        self._dial = dial
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Resets every connection, in both directions."""
        for writer in list(self._writers):
            writer.transport.abort()

    def hold(self) -> None:
        """From now on connections are taken but nothing passes, as when a network goes silent."""
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    async def begin(self, what: str) -> bool:
        """Cuts or holds."""
        (self.cut if what == "cut" else self.hold)()
        return True

    async def undo(self, what: str) -> None:
        self.release()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        far: asyncio.StreamWriter | None = None
        with suppress(OSError, asyncio.CancelledError):
            await self._flowing.wait()
            far_reader, far = await self._dial()
            self._writers.add(far)
            pumps = [asyncio.create_task(self._pump(*way)) for way in ((reader, far), (far_reader, writer))]
            try:
                await asyncio.gather(*pumps)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        for one in (writer, far):
            if one is not None:
                self._writers.discard(one)
                # What is in the buffer still goes out; an aborted transport stays aborted.
                one.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = await reader.read(1 << 16)
            await self._flowing.wait()
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
