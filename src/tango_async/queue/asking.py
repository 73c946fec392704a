"""What every part of the queue's face has: the settings, and a server to ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..config import Settings
from ..model import JobRecord
from . import records
from .connection import Server

PAGE = 100
"""Jobs read in one trip."""


class Asking:
    def __init__(self, settings: Settings, server: Server) -> None:
        self._settings = settings
        self._prefix = settings.queue.prefix
        self._server = server

    async def now_ms(self) -> int:
        """The server's clock, by which beats and leases are told."""
        seconds, micros = await self._command("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def _jobs(self, ids: Sequence[int]) -> list[JobRecord]:
        """Those that there still are, in the order of the ids."""
        found: list[JobRecord] = []
        for start in range(0, len(ids), PAGE):
            part = ids[start : start + PAGE]
            answers = await self._server.commands([("HGETALL", f"{self._prefix}job:{i}") for i in part])
            found += [records.job(i, a) for i, a in zip(part, answers, strict=True) if a]
        return found

    async def _run(self, script: str, *args: Any) -> Any:
        return await self._server.run(script, *args)

    async def _command(self, *words: Any) -> Any:
        return await self._server.command(*words)
