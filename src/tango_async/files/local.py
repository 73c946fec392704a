"""The courselab store on a directory, in Tango's layout, since operators and some clients look there.

layout.py draws it; what is removed from it, and when, is housekeeping.py's.

Everything is on one file system, so that whatever arrives is made whole in tmp and then renamed. An
upload never changes a file but replaces it, and so a pin is a hard link: it keeps its file when the
name is given to another or removed. Whoever edits a file of a courselab in place, not through this
service, edits it for waiting jobs too; their files no longer have the md5 they were accepted with,
and reading them fails rather than grade with something else. To change a file by hand, replace it
(write another one, then rename).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from ..config import Store
from ..errors import BadName, InputChanged, NotFound, StoreError, TangoError
from ..machine import InputFile
from ..model import PinnedFile
from ..names import file_name
from .base import Pin, StoredFile
from .disk import BLOCK, Batches, Incoming, Md5s, identity, link_or_copy, remove, store_error, sync_folder, used_now
from .housekeeping import PIN, Housekeeping
from .layout import OUTPUT

W = TypeVar("W")
R = TypeVar("R")
Work = Callable[[], object]

log = logging.getLogger(__name__)

BATCH = 1 << 20
"""Bytes of a body that are gathered before a thread writes them."""


class Wish(NamedTuple):
    """A pin that is asked for."""

    lab: str
    wanted: Sequence[tuple[str, str]]


class LocalStore(Housekeeping):
    """A FileStore on a local directory, which several processes may share."""

    def __init__(self, settings: Store) -> None:
        super().__init__(settings)
        self._md5s = Md5s(self._now_s)
        # Pins have a thread of their own: addJob must not wait behind a gigabyte being hashed.
        self._pin_thread = ThreadPoolExecutor(1, thread_name_prefix="store-pins")
        self._pinning = Batches(self._pin_all, self._pin_thread)
        self._storing = Batches(self._store_all, self._threads)
        self._tidying: Batches[Work, None] = Batches(_do_all, self._threads)

    async def open(self) -> None:
        """Its directories are there since it was made."""

    async def close(self) -> None:
        self._pin_thread.shutdown(wait=False)
        self._threads.shutdown(wait=False)

    # -- uploads ---------------------------------------------------------------------------------

    async def open_lab(self, lab: str) -> tuple[bool, dict[str, str]]:
        return await self._run(self._open_lab, self._folder(lab))

    def _open_lab(self, folder: Path) -> tuple[bool, dict[str, str]]:
        new = True
        try:
            folder.mkdir()
        except FileExistsError:
            new = False
        (folder / OUTPUT).mkdir(exist_ok=True)
        if new:
            sync_folder(folder)
            sync_folder(self._labs)
            return True, {}
        with os.scandir(folder) as entries:
            files = sorted(entry.name for entry in entries if entry.is_file())
        md5s = {}
        for name in files:
            # Removed since, not ours to read, or of a name that no upload can have: it is left out,
            # and if the client has such a file it sends it again.
            with contextlib.suppress(OSError, BadName):
                md5s[file_name(name, "file")] = self._md5s.of(folder / name)[1]
        return False, md5s

    async def put(self, lab: str, name: str, body: AsyncIterator[bytes]) -> bool:
        folder = self._folder(lab)
        target = folder / file_name(name, "Filename")
        if name == OUTPUT:
            raise BadName(f"Bad Filename: {OUTPUT} is the directory of the feedbacks")
        if not folder.is_dir():
            raise NotFound("Courselab not found")
        async with self._received(body) as incoming:
            return await self._run(self._place, incoming, target)

    def _place(self, incoming: Incoming, target: Path) -> bool:
        with contextlib.suppress(OSError):
            if target.stat().st_size == incoming.size and self._md5s.of(target)[1] == incoming.md5:
                used_now(target)
                sync_folder(target.parent)  # whoever sent it first may not have come so far yet
                return False
        incoming.finish()
        self._md5s.learn(incoming.path, incoming.md5)
        try:
            incoming.path.replace(target)
            sync_folder(target.parent)
        except FileNotFoundError as e:
            raise NotFound("Courselab not found") from e
        except IsADirectoryError as e:
            raise BadName("Bad Filename: there is a directory of that name") from e
        return True

    @contextlib.asynccontextmanager
    async def _received(self, body: AsyncIterator[bytes]) -> AsyncIterator[Incoming]:
        """The whole body in a temporary file, which is gone afterwards unless it was renamed."""
        incoming = Incoming(self._tmp)
        try:
            waiting: list[bytes] = []
            size = 0
            async for chunk in body:
                waiting.append(chunk)
                size += len(chunk)
                if size >= BATCH:
                    await self._run(incoming.write, waiting)
                    waiting, size = [], 0
            await self._run(incoming.write, waiting)
            yield incoming
        finally:
            # Shielded: a drop that waits for its thread must happen also when the caller is cancelled.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._threads, incoming.drop))

    # -- pins ------------------------------------------------------------------------------------

    async def pin(self, lab: str, wanted: Sequence[tuple[str, str]]) -> Pin:
        return await _asked(self._pinning, Wish(lab, wanted))

    def _pin_all(self, wishes: list[Wish]) -> list[Pin | Exception]:
        made: list[Pin | Exception] = []
        now = int(self._now_s())
        for wish in wishes:
            try:
                made.append(self._pin(wish, now))
            except (OSError, TangoError) as e:
                made.append(e)
        sync_folder(self._pins)
        return made

    def _pin(self, wish: Wish, now: int) -> Pin:
        folder = self._folder(wish.lab)
        if not folder.is_dir():
            raise NotFound("Courselab not found")
        pin = f"{now:x}-{secrets.token_hex(12)}-{len(wish.wanted)}"
        held, missing = [], []
        try:
            for (local, dest), to in zip(wish.wanted, self._pinned(pin), strict=True):
                try:
                    size, md5 = self._hold(folder / file_name(local, "localFile"), to)
                    held.append(PinnedFile(local=local, dest=dest, size=size, md5=md5))
                except FileNotFoundError:
                    missing.append(f"Input file not found: {local}")
            if missing:
                raise NotFound("\n".join(missing))
        except BaseException:
            remove(self._pinned(pin))
            raise
        return Pin(id=pin, files=tuple(held))

    def _hold(self, source: Path, to: Path) -> tuple[int, str]:
        if not source.is_file():
            raise FileNotFoundError
        link_or_copy(source, to)
        # Of what is held now, which an upload at this moment cannot change any more.
        return self._md5s.of(to)

    def _pinned(self, pin: str) -> list[Path]:
        parts = PIN.fullmatch(pin)
        if parts is None:
            raise BadName("Bad pin")
        return [self._pins / f"{pin}.{n}" for n in range(int(parts["count"]))]

    async def unpin(self, pin: str) -> None:
        paths = self._pinned(pin)
        await _asked(self._tidying, lambda: remove(paths))

    def inputs(self, pin: str, files: Sequence[PinnedFile]) -> list[InputFile]:
        paths = self._pinned(pin)
        return [
            InputFile(name=f.dest, size=f.size, chunks=partial(self._chunks, path, f))
            for path, f in zip(paths, files, strict=True)
        ]

    async def _chunks(self, path: Path, expected: PinnedFile) -> AsyncIterator[bytes]:
        digest = hashlib.md5(usedforsecurity=False)
        left = expected.size
        try:
            async with contextlib.aclosing(self._blocks(path, expected.size, digest.update)) as blocks:
                async for block in blocks:
                    left -= len(block)
                    if left == 0 and digest.hexdigest() != expected.md5:
                        break
                    yield block
                    if left == 0:
                        return
        except StoreError as e:
            if isinstance(e.__cause__, FileNotFoundError):
                raise InputChanged(f"{expected.local} is gone") from e
            raise
        if expected.size:
            raise InputChanged(f"{expected.local} was edited in place after the job was added")

    # -- outputs ---------------------------------------------------------------------------------

    async def put_output(self, ref: str, body: bytes) -> None:
        await _asked(self._storing, (self._stored_output(ref), body))

    def _store_all(self, wishes: list[tuple[Path, bytes]]) -> list[Exception | None]:
        """Renamed before they are synced, so that one commit of the disk's journal serves them all.

        A crash in between leaves a torn one, but under a name that no job has been given yet.
        """
        results: dict[Path, Exception | None] = {}
        received: dict[Path, Incoming] = {}
        for target, body in dict(wishes).items():
            results[target] = None
            incoming = received[target] = Incoming(self._tmp)
            try:
                incoming.write([body])
                incoming.path.replace(target)
            except OSError as e:
                results[target] = e
        for target, incoming in received.items():
            try:
                incoming.finish()
            except OSError as e:
                results[target] = results[target] or e
            if results[target] is not None:
                incoming.drop()
                target.unlink(missing_ok=True)
        sync_folder(self._outputs)
        return [results[target] for target, _ in wishes]

    async def show_output(self, ref: str, lab: str, output_name: str) -> None:
        stored, shown = self._stored_output(ref), self._shown_output(lab, output_name)
        try:
            await _asked(self._tidying, lambda: self._show(stored, shown))
        except StoreError as e:
            log.warning("feedback %s cannot be shown in the courselab's %s directory: %s", ref, OUTPUT, e)

    def _show(self, stored: Path, shown: Path) -> None:
        link = self._tmp / secrets.token_hex(16)
        try:
            shown.parent.mkdir(exist_ok=True)
            link_or_copy(stored, link)
            ours = identity(link)
            link.replace(shown)
            if not stored.exists():  # it was dropped meanwhile
                self._take_away(shown, lambda path: identity(path) == ours)
        finally:
            # rename() does nothing if both names are the same file already.
            link.unlink(missing_ok=True)

    def _write(self, target: Path, body: bytes) -> None:
        """Replaces a file of ours, whole and durable."""
        incoming = Incoming(self._tmp)
        try:
            incoming.write([body])
            incoming.finish()
            incoming.path.replace(target)
            sync_folder(target.parent)
        finally:
            incoming.drop()

    async def output(self, ref: str) -> StoredFile:
        return await self._stored(self._stored_output(ref), "Output file not found")

    # -- images ----------------------------------------------------------------------------------

    async def put_image(self, body: AsyncIterator[bytes]) -> str:
        async with self._received(body) as incoming:
            return await self._run(self._place_image, incoming)

    def _place_image(self, incoming: Incoming) -> str:
        target = self._images / incoming.md5
        try:
            os.utime(target)  # it is wanted again, and so young again
        except FileNotFoundError:
            incoming.finish()
            incoming.path.replace(target)
            sync_folder(self._images)
        return incoming.md5

    async def image(self, ref: str) -> StoredFile:
        return await self._stored(self._images / file_name(ref, "reference"), "Image archive not found")

    # -- the mark ----------------------------------------------------------------------------------

    async def raise_mark(self, at_least: int) -> int:
        return await self._run(self._raise_mark, at_least)

    def _raise_mark(self, at_least: int) -> int:
        with self._mark.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                mark = int(self._mark.read_text())
            except FileNotFoundError:
                mark = 0
            except ValueError as e:
                raise StoreError(f"{self._mark}: expected a number; write the last job id that was given") from e
            if at_least > mark:
                mark = at_least
                self._write(self._mark, b"%d\n" % mark)
            return mark

    async def check(self) -> None:
        await self._run(self._check)

    def _check(self) -> None:
        incoming = Incoming(self._tmp)
        try:
            incoming.write([bytes(4096)])
            incoming.finish()
        finally:
            incoming.drop()

    # -- within ----------------------------------------------------------------------------------

    async def _stored(self, path: Path, otherwise: str) -> StoredFile:
        try:
            size = await self._run(_size, path)
        except StoreError as e:
            if isinstance(e.__cause__, FileNotFoundError):
                raise NotFound(otherwise) from e
            raise
        return StoredFile(size=size, read=partial(self._blocks, path, size), path=path)

    async def _blocks(
        self, path: Path, size: int, see: Callable[[bytes], None] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The file's first `size` bytes, read in a thread, where `see` also gets each block."""
        file, block = await self._run(_open, path, min(BLOCK, size), see)
        try:
            while block:
                size -= len(block)
                yield block
                block = await self._run(_read, file, min(BLOCK, size), see) if size > 0 else b""
        finally:
            file.close()


def _do_all(wishes: list[Work]) -> list[Exception | None]:
    results: list[Exception | None] = []
    for wish in wishes:
        try:
            wish()
        except OSError as e:
            results.append(e)
        else:
            results.append(None)
    return results


async def _asked(batches: Batches[W, R], wish: W) -> R:
    """In the next batch; the system's errors become ours."""
    try:
        return await batches.ask(wish)
    except OSError as e:
        raise store_error(e) from e


def _size(path: Path) -> int:
    return path.stat().st_size


def _open(path: Path, size: int, see: Callable[[bytes], None] | None) -> tuple[BinaryIO, bytes]:
    """The file, and its first block with it: most files have no other."""
    file = path.open("rb")
    try:
        return file, _read(file, size, see)
    except BaseException:
        file.close()
        raise


def _read(file: BinaryIO, size: int, see: Callable[[bytes], None] | None) -> bytes:
    block = file.read(size)
    if see is not None:
        see(block)
    return block
