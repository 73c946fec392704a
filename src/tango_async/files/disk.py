"""What the local store needs of a disk: errors as ours, a file on its way in, md5s remembered, work in batches.

All plain functions and methods here block and belong in a thread; the store decides in which.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from ..errors import StoreError, StoreFull

W = TypeVar("W")
R = TypeVar("R")

BLOCK = 1 << 18
"""Bytes read or hashed at a time."""

RACY_S = 2.0
"""A file changed so lately may change again within one tick of its clock, unseen: its md5 is not kept."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_LINK = {errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


def store_error(error: OSError) -> StoreError:
    """An error of the system as one of ours."""
    if error.errno in _FULL:
        return StoreFull("The file store has no space left")
    return StoreError(f"The file store failed: {error.strerror or error}")


def sync_folder(folder: Path) -> None:
    """Makes the folder's entries survive a crash."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def server_time_s(folder: Path) -> float:
    """What the clock of the folder's file system shows, in seconds since the epoch: it is touched, and looked at.

    On a directory that hosts share that is the file server's clock, by which alone the times of all their
    files can be compared. It needs no room, also where there is none.
    """
    os.utime(folder)
    return folder.stat().st_mtime


def older(folder: Path, than: float) -> list[Path]:
    """The files that were last written before that time."""
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < than:
                found.append(path)
    return found


def remove(paths: Iterable[Path]) -> int:
    """Removes files; those that are gone already are no error. Returns how many were there."""
    removed = 0
    for path in paths:
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        removed += 1
    return removed


def identity(path: Path) -> tuple[int, int, int]:
    """Of a file, whatever name it has: another one differs in it, and so does what was written anew."""
    at = path.lstat()
    return at.st_ino, at.st_mtime_ns, at.st_size


def link_or_copy(source: Path, to: Path) -> None:
    """A second name for the file; a copy where links run out or cannot be made."""
    if source.is_symlink():
        source = source.resolve(strict=True)
    try:
        os.link(source, to)
    except OSError as e:
        if e.errno not in _NO_LINK:
            raise
        with source.open("rb") as there, to.open("xb") as here:
            shutil.copyfileobj(there, here, BLOCK)
            here.flush()
            os.fsync(here.fileno())
        used_now(source)


def used_now(path: Path) -> None:
    """Moves the change time, and nothing else, as making a link does."""
    with suppress(PermissionError, FileNotFoundError):
        path.chmod(stat.S_IMODE(path.stat().st_mode))


class Incoming:
    """A file being received. Its lock orders a `drop` behind a write that a cancelled caller left running."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / secrets.token_hex(16)
        self.size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._dropped = False

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    def write(self, chunks: Sequence[bytes]) -> None:
        with self._lock:
            if self._dropped:
                return
            if self._file is None:
                self._file = self.path.open("xb")
            for chunk in chunks:
                self._file.write(chunk)
                self._md5.update(chunk)
                self.size += len(chunk)

    def finish(self) -> None:
        """All is there: on the disk, under the temporary name."""
        with self._lock:
            if self._file is None:
                raise OSError(errno.EIO, "nothing was opened")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def drop(self) -> None:
        """Removes it, unless it has been renamed."""
        with self._lock:
            self._dropped = True
            try:
                if self._file is not None:
                    self._file.close()
            except OSError:
                pass  # what could not be flushed is not wanted any more
            self.path.unlink(missing_ok=True)


class Md5s:
    """The md5 of files, remembered by inode, modification time and size; `now_s` is the clock of those times."""

    LIMIT = 200_000

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._known: dict[tuple[int, int], tuple[int, int, str]] = {}

    def learn(self, path: Path, md5: str) -> None:
        """The md5 of a file that nobody else can write yet. Overwrites what an earlier file of that inode had."""
        at = path.stat()
        self._keep(at, md5)

    def of(self, path: Path) -> tuple[int, str]:
        """(size, md5 hex) of what the path is now. Raises OSError."""
        at = path.stat()
        known = self._known.get((at.st_dev, at.st_ino))
        if known is not None and known[:2] == (at.st_mtime_ns, at.st_size):
            return at.st_size, known[2]
        with path.open("rb") as file:
            at = os.fstat(file.fileno())
            digest = hashlib.md5(usedforsecurity=False)
            size = 0
            while chunk := file.read(BLOCK):
                digest.update(chunk)
                size += len(chunk)
            after = os.fstat(file.fileno())
        md5 = digest.hexdigest()
        unchanged = (at.st_mtime_ns, at.st_size) == (after.st_mtime_ns, size)
        if unchanged and self._now_s() - at.st_mtime > RACY_S:
            self._keep(at, md5)
        return size, md5

    def _keep(self, at: os.stat_result, md5: str) -> None:
        while len(self._known) >= self.LIMIT:
            self._known.pop(next(iter(self._known)), None)
        self._known[(at.st_dev, at.st_ino)] = (at.st_mtime_ns, at.st_size, md5)


class Batches(Generic[W, R]):
    """Does in one go, in a thread, what was asked for while the last go ran.

    So one thread hop and one fsync serve many callers when it is busy, and one caller waits for
    nobody when it is not. `work` answers a result or an exception for each wish.
    """

    def __init__(self, work: Callable[[list[W]], list[R | Exception]], threads: Executor, *, most: int = 64) -> None:
        self._work = work
        self._threads = threads
        self._most = most
        self._waiting: list[tuple[W, asyncio.Future[R]]] = []
        self._server: asyncio.Task[None] | None = None

    async def ask(self, wish: W) -> R:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._waiting.append((wish, answer))
        if self._server is None:
            self._server = loop.create_task(self._serve())
        return await answer

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                results: Sequence[R | Exception]
                try:
                    results = await loop.run_in_executor(self._threads, self._work, [wish for wish, _ in batch])
                except Exception as e:  # the whole go failed, such as its fsync: nobody's wish is fulfilled
                    results = [e] * len(batch)
                for (_, answer), result in zip(batch, results, strict=True):
                    if answer.done():
                        continue
                    if isinstance(result, Exception):
                        answer.set_exception(result)
                    else:
                        answer.set_result(result)
        finally:
            self._server = None
