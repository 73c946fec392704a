"""A client lean enough to share two cores with the server it measures: prepared bytes on kept connections."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from urllib.parse import urlsplit


class Connection:
    """One kept connection; requests are raw bytes, answers are read by their length."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection(self.host, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def ask(self, method: str, path: str, body: bytes = b"", headers: str = "") -> tuple[bytes, bytes]:
        """(head, body) of the answer."""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return answer, await self._reader.readexactly(length)


async def each_in_turn(
    url: str, connections: int, total: int, request: Callable[[int], bytes], path: str
) -> list[float]:
    """Sends `total` bodies over so many connections; seconds of each."""
    taken: list[float] = []
    numbers = iter(range(total))

    async def work() -> None:
        async with Connection(url) as connection:
            for number in numbers:
                body = request(number)
                begun = time.perf_counter()
                _, answer = await connection.ask("POST", path, body)
                taken.append(time.perf_counter() - begun)
                if json.loads(answer)["statusId"] != 0:
                    raise RuntimeError(answer)

    await asyncio.gather(*(work() for _ in range(connections)))
    return taken
