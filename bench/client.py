"""A client lean enough to share two cores with the server it measures: prepared bytes on kept connections."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

POLL_EVERY_S = 0.001


async def timed(work: Awaitable[object]) -> float:
    """Seconds that it took."""
    begun = time.perf_counter()
    await work
    return time.perf_counter() - begun


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

    async def is_ready(self, output: str, lab: str = "lab") -> bool:
        """As Autolab tells that a feedback is there: its content type is not JSON."""
        head, _ = await self.ask("GET", f"/poll/test/{lab}/{output}/")
        return b"application/json" not in head


async def each_in_turn(
    url: str, connections: int, numbers: Sequence[int], request: Callable[[int], bytes], path: str
) -> dict[int, float]:
    """Sends a body for each number over so many connections; when each was sent, by the clock of `perf_counter`."""
    sent: dict[int, float] = {}
    left = iter(numbers)

    async def work() -> None:
        async with Connection(url) as connection:
            for number in left:
                body = request(number)
                sent[number] = time.perf_counter()
                _, answer = await connection.ask("POST", path, body)
                if json.loads(answer)["statusId"] != 0:
                    raise RuntimeError(answer)

    await asyncio.gather(*(work() for _ in range(connections)))
    return sent


class Outputs:
    """Sees when outputs become ready, by polls on one connection; `gaps` are the seconds between two looks."""

    def __init__(self, url: str, *, window: int) -> None:
        self._url, self._window = url, window
        self.gaps: list[float] = []

    async def wait(self, numbers: Sequence[int], lab: str = "lab") -> dict[int, float]:
        """When each was seen ready. Only the first `window` that are still awaited are asked for: so many run."""
        left, seen = list(numbers), {}
        async with Connection(self._url) as connection:
            last = time.perf_counter()
            while left:
                for number in left[: self._window]:
                    if await connection.is_ready(f"{number}.txt", lab):
                        seen[number] = time.perf_counter()
                left = [number for number in left if number not in seen]
                await asyncio.sleep(POLL_EVERY_S)
                now = time.perf_counter()
                self.gaps.append(now - last)
                last = now
        return seen
