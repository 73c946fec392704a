"""systemd's part, played by a socket."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from contextlib import suppress
from pathlib import Path

from support.service import PATIENCE_S, Process, Service


class Listener:
    """systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(address)
        self._heard: deque[str] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    def close(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self.socket)
        self.socket.close()

    async def hear(self, word: str, within_s: float = PATIENCE_S) -> list[str]:
        """The message that holds the word; others before it are passed over."""
        async with asyncio.timeout(within_s):
            while word not in (message := await self.next()):
                pass
            return message

    async def next(self) -> list[str]:
        if self._loop is None:
            # As systemd does it, at once: a socket holds ten messages, and who has one more does not wait.
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self.socket, self._take)
        self._take()
        while not self._heard:
            await asyncio.sleep(0.01)
        return self._heard.popleft().split("\n")

    def drain(self) -> list[str]:
        """What has come and was not heard yet."""
        self._take()
        messages = list(self._heard)
        self._heard.clear()
        return messages

    def _take(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self._heard.append(self.socket.recv(4096).decode())


def start(service: Service, tmp_path: Path, name: str, *arguments: str, **environment: str) -> Process:
    """Without waiting for its log: the socket tells."""
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), **environment}
    process = Process(name, list(arguments), {**service.environment, **told}, tmp_path / f"{name}.log")
    service.processes.append(process)
    return process
