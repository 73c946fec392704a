"""Places of dispatchers on this host: numbered directories, each held by a lock that is free when its process is dead.

A place outlives its dispatcher, with what is left running in it, and the next one takes it. Meanwhile others may look
through it (siblings.py): they share the lock, which shows who wants the place that it is free.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import msgspec

from ..errors import ConfigError

LOOK_THROUGH_S = 10.0
"""Nobody looks through a place for longer."""

_PATIENCE_S = LOOK_THROUGH_S * 1.5
"""Who looks longer than that hangs, and the place is left to it."""


class Left(msgspec.Struct, frozen=True):
    """What a dispatcher notes in its place for those who look through it."""

    host: str
    vmms: str
    """As `vmms.base.load` takes it."""


@asynccontextmanager
async def own_place(root: Path) -> AsyncIterator[Path]:
    """The first directory below `root` that no living dispatcher has; it is ours until the end.

    The lock is the process's: it is free the moment the process is dead, however it died, and the
    next dispatcher takes the place and what was left running in it.
    """
    for number in range(1000):
        place = root / str(number)
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise ConfigError(f"dispatcher.state_dir: {place}: {e.strerror}") from e
        try:
            if await _take(lock):
                os.utime(lock)
                yield place
                return
        finally:
            os.close(lock)
    raise ConfigError(f"dispatcher.state_dir: {root}: a thousand dispatchers run here already")


async def _take(lock: int) -> bool:
    """Whether it is ours now. While others only look through the place it is waited for."""
    end = time.monotonic() + _PATIENCE_S
    while not _locked(lock, fcntl.LOCK_EX):
        if not _locked(lock, fcntl.LOCK_SH) or time.monotonic() > end:
            return False
        fcntl.flock(lock, fcntl.LOCK_UN)
        await asyncio.sleep(random.uniform(0.01, 0.05))  # noqa: S311 - no secret
    return True


@contextmanager
def abandoned(place: Path) -> Iterator[int | None]:
    """When a dispatcher last took the place (ns); None if one lives in it. Nobody takes it before the end."""
    try:
        lock = os.open(place / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield os.fstat(lock).st_mtime_ns if _locked(lock, fcntl.LOCK_SH) else None
    finally:
        os.close(lock)


def _locked(lock: int, how: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(lock, how | fcntl.LOCK_NB)
        return True
    return False


def install_id(place: Path) -> str:
    """The name of a dispatcher's place, made once."""
    file = place / "install"
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        name = uuid4().hex[:12]
        _write(file, name.encode())
        return name


def note(place: Path, vmms: str) -> None:
    """Before the first machine is made there. Where the disk is full, nobody looks through the place."""
    with suppress(OSError):
        if (now := Left(socket.gethostname(), vmms)) != left(place):
            _write(place / "left", msgspec.json.encode(now))


def left(place: Path) -> Left | None:
    """What the last dispatcher there noted, if it was of this host: what others left cannot be judged here."""
    try:
        found = msgspec.json.decode((place / "left").read_bytes(), type=Left)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.host == socket.gethostname() else None


def _write(file: Path, content: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.rename(file)
