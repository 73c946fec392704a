"""systemd's part, played by a socket."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from support.service import Process, Service


class Listener:
    """systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(address)

    async def hear(self, word: str, within_s: float = 20.0) -> list[str]:
        """The message that holds the word; others before it are passed over."""
        async with asyncio.timeout(within_s):
            while word not in (message := await self.next()):
                pass
            return message

    async def next(self) -> list[str]:
        return (await asyncio.get_running_loop().sock_recv(self.socket, 4096)).decode().split("\n")

    def drain(self) -> list[str]:
        """What has come and was not heard yet."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


def start(service: Service, tmp_path: Path, name: str, *arguments: str, **environment: str) -> Process:
    """Without waiting for its log: the socket tells."""
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), **environment}
    process = Process(name, list(arguments), {**service.environment, **told}, tmp_path / f"{name}.log")
    service.processes.append(process)
    return process
