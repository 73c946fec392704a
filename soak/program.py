"""One process of the stage, started again whenever it ends, as an init system would."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

RESTART_S = 0.3


class Program:
    """A command under a keeper. Nothing but a kill that is planned and `stop` keeps it from running.

    `ready` looks at the log of the present life and answers whether the process works.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: dict[str, str],
        logs: Path,
        ready: Callable[[str], Awaitable[bool]],
        directory: Path = Path("/"),
    ) -> None:
        self.name = name
        self.kind = name.partition("-")[0].replace("http", "server")
        # A process of the stage ends with the soak, however that ends.
        self._command = ["setpriv", "--pdeathsig", "KILL", *command]
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        self._environment = {**kept, "HOME": "/nonexistent", **environment}
        self._logs = logs
        self._ready = ready
        self._directory = directory
        self._allowed = asyncio.Event()
        self._allowed.set()
        self._popen: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self.lives = 0
        self.ended_by_itself = 0
        self.is_ready = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Of the living process."""
        return None if self._popen is None or self._popen.poll() is not None else self._popen.pid

    @property
    def log(self) -> Path:
        return self._logs / f"{self.name}.{self.lives}.log"

    def keep(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while not self._stopping:
            await self._allowed.wait()
            if self._stopping:
                return
            self.lives += 1
            with self.log.open("wb") as log:
                self._popen = subprocess.Popen(
                    self._command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._directory,
                )
            await self._watch(self._popen)
            self.is_ready.clear()
            if self._popen.returncode != -signal.SIGKILL and not self._stopping:
                self.ended_by_itself += 1
            await asyncio.sleep(RESTART_S)

    async def _watch(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            if not self.is_ready.is_set() and await self._ready(self.log.read_text(errors="replace")):
                self.is_ready.set()
            await asyncio.sleep(0.02)

    async def until_ready(self, within_s: float = 120.0) -> None:
        try:
            async with asyncio.timeout(within_s):
                await self.is_ready.wait()
        except TimeoutError as e:
            raise RuntimeError(f"{self.name} is not ready: {self.log.read_text(errors='replace')[-2000:]}") from e

    async def begin(self, what: str) -> bool:
        """Kills it, and does not start it again before `undo`, or pauses it. False if it was not running."""
        if what == "kill":
            self._allowed.clear()
            self.is_ready.clear()
            return self.send(signal.SIGKILL)
        return self.send(signal.SIGSTOP)

    async def undo(self, what: str) -> None:
        if what == "kill":
            self._allowed.set()
        else:
            self.send(signal.SIGCONT)

    def send(self, sig: signal.Signals) -> bool:
        pid = self.pid
        if pid is None:
            return False
        os.kill(pid, sig)
        return True

    async def stop(self, within_s: float = 120.0) -> int | None:
        """SIGTERM, for good; its exit status."""
        self._stopping = True
        self._allowed.set()
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        end = time.monotonic() + within_s
        while self.pid is not None and time.monotonic() < end:
            await asyncio.sleep(0.02)
        self.send(signal.SIGKILL)
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        if self._popen is None:
            return None
        return self._popen.wait(60)
