"""The courselab store in a bucket, for HTTP servers and grading hosts that share no disk.

s3_keys.py has the map of the bucket; what is removed from it, and when, is s3_housekeeping.py's.

No object is written twice with different content: an upload gets a key of its own, above the one that
stood, and takes effect when its key is there, whole. So nobody needs a lock, a condition or a
transaction, and two servers that do the same at once do no harm to each other. A pin is a copy, made by
the server, of exactly the object whose md5 its key tells.

Nothing here is shown as Tango's `output/<name>`: nobody looks for a directory in a bucket.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from ..config import Settings
from ..errors import BadName, ConfigError, InputChanged, NotFound, StoreUnavailable
from ..machine import InputFile
from ..model import PinnedFile
from ..names import file_name
from . import s3_keys as keys
from .base import Pin, StoredFile
from .layout import OUTPUT
from .s3_bucket import Bucket, each
from .s3_errors import Gone, WrongSetting
from .s3_housekeeping import S3Housekeeping

HEAD = 1 << 18
"""Bytes of a stored file that are fetched with the question how large it is: most feedbacks are smaller."""

FRESH_S = 60.0
"""The same content again is stored anew unless it was stored within this time: so no trim can be taking it away."""

PIN_TRIES = 20
"""How often in a row an upload may be replaced while it is being pinned."""

CHECKED_S = 10.0
"""So long a check that went well is not made again, unless the server was away: it writes, and that is paid for."""


@dataclass(frozen=True, slots=True)
class Received:
    """A whole body: in memory, or as an object if it was larger than one part."""

    size: int
    md5: str
    body: bytes = b""
    key: str = ""


class S3Store(S3Housekeeping):
    """A FileStore in a bucket, which any number of processes may share."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket)
        self._checked = (float("-inf"), 0)
        """When a check went well, and how often the server had been found away by then."""

    @classmethod
    async def connect(cls, settings: Settings) -> S3Store:
        """A store that has not asked its server anything yet. Raises ConfigError."""
        bucket = Bucket(settings)
        await bucket.open()
        return cls(bucket)

    async def open(self) -> None:
        """Reads and writes once, so that what a setting or a right must mend is known at the start."""
        try:
            await self.raise_mark(0)
            await self.check()
        except WrongSetting as e:
            raise ConfigError(str(e)) from e

    async def close(self) -> None:
        await self._bucket.close()

    # -- uploads ---------------------------------------------------------------------------------

    async def open_lab(self, lab: str) -> tuple[bool, dict[str, str]]:
        if await self._bucket.find(keys.lab(lab)) is None:
            await self._bucket.put(keys.lab(lab))
            return True, {}
        return False, {name: one.is_.md5 for name, one in (await self._standing(lab)).items()}

    async def put(self, lab: str, name: str, body: AsyncIterator[bytes]) -> bool:
        file_name(name, "Filename")
        if name == OUTPUT:
            raise BadName(f"Bad Filename: {OUTPUT} is the directory of the feedbacks")
        await self._require(lab)
        async with self._received(body) as received:
            return await self._place(lab, name, received)

    async def _place(self, lab: str, name: str, received: Received) -> bool:
        before = await self._versions(lab, name)
        stood = max(before, default=None)
        same = stood is not None and (stood.is_.md5, stood.size) == (received.md5, received.size)
        if stood is not None and same and self._bucket.now_s() - stood.written_s < FRESH_S:
            await self._bucket.put(keys.used(lab, name))
            return False
        number = stood.is_.number + 1 if stood is not None else 1
        await self._store(received, keys.Upload(number, received.md5, name, lab).key)
        await self._bucket.delete([one.is_.key for one in before])
        return not same

    async def _store(self, received: Received, key: str) -> None:
        if received.key:
            await self._bucket.copy(received.key, key, received.size)
        else:
            await self._bucket.put(key, received.body)

    async def _require(self, lab: str) -> None:
        if await self._bucket.find(keys.lab(lab)) is None:
            raise NotFound("Courselab not found")

    @asynccontextmanager
    async def _received(self, body: AsyncIterator[bytes]) -> AsyncIterator[Received]:
        """The whole body: what is one part stays in memory, what is more becomes an object, which goes afterwards."""
        digest = hashlib.md5(usedforsecurity=False)
        async with aclosing(_in_parts(body, self._bucket.part_bytes)) as parts:
            first = await anext(parts)
            await asyncio.to_thread(digest.update, first)
            if len(first) < self._bucket.part_bytes:
                yield Received(len(first), digest.hexdigest(), body=first)
                return
            key = keys.tmp()
            size = await self._send(key, first, parts, digest)
        try:
            yield Received(size, digest.hexdigest(), key=key)
        finally:
            # Shielded: it must happen also when the caller is cancelled. What this does not reach, the sweep finds.
            await asyncio.shield(self._bucket.delete([key]))

    async def _send(self, key: str, first: bytes, more: AsyncIterator[bytes], digest: hashlib._Hash) -> int:
        """One part is sent while the next one is gathered, and no more of the body is in memory. Returns its size."""
        async with self._bucket.in_parts(key) as parts:
            number, size = 1, len(first)
            sending = asyncio.create_task(parts.put(number, first))
            del first
            try:
                async for part in more:
                    await asyncio.to_thread(digest.update, part)
                    await sending
                    number, size = number + 1, size + len(part)
                    sending = asyncio.create_task(parts.put(number, part))
                await sending
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        return size

    # -- pins ------------------------------------------------------------------------------------

    async def pin(self, lab: str, wanted: Sequence[tuple[str, str]]) -> Pin:
        """The copies are young while they are made and named in no job, and so no sweep takes them."""
        pin = keys.new_pin(len(wanted))
        places = keys.pinned(pin)
        for local, _ in wanted:
            file_name(local, "localFile")
        try:
            held = await each(lambda n: self._hold(lab, *wanted[n], places[n]), range(len(wanted)))
            missing = [local for (local, _), file in zip(wanted, held, strict=True) if file is None]
            if missing:
                await self._require(lab)
                raise NotFound("\n".join(f"Input file not found: {local}" for local in missing))
        except BaseException:
            await asyncio.shield(self._bucket.delete(places))
            raise
        return Pin(id=pin, files=tuple(file for file in held if file is not None))

    async def _hold(self, lab: str, local: str, dest: str, place: str) -> PinnedFile | None:
        """A copy of the upload that stands; None if there is none."""
        for _ in range(PIN_TRIES):
            stands = max(await self._versions(lab, local), default=None)
            if stands is None:
                return None
            try:
                await asyncio.gather(
                    self._bucket.copy(stands.is_.key, place, stands.size),
                    self._bucket.put(keys.used(lab, local)),
                )
            except Gone:
                continue  # another one has taken its place
            return PinnedFile(local=local, dest=dest, size=stands.size, md5=stands.is_.md5)
        raise StoreUnavailable(f"{local} is being replaced all the time")

    async def unpin(self, pin: str) -> None:
        await self._bucket.delete(keys.pinned(pin))

    def inputs(self, pin: str, files: Sequence[PinnedFile]) -> list[InputFile]:
        return [
            InputFile(name=f.dest, size=f.size, chunks=partial(self._chunks, key, f))
            for key, f in zip(keys.pinned(pin), files, strict=True)
        ]

    async def _chunks(self, key: str, expected: PinnedFile) -> AsyncIterator[bytes]:
        """Its last block is handed on only when the md5 of all is known to be right."""
        digest, left = hashlib.md5(usedforsecurity=False), expected.size
        try:
            async with aclosing(self._bucket.blocks(key, expected.size)) as blocks:
                async for block in blocks:
                    digest.update(block)
                    left -= len(block)
                    if left == 0 and digest.hexdigest() != expected.md5:
                        raise InputChanged(f"{expected.local} is not what it was when the job was added")
                    yield block
        except Gone as e:
            raise InputChanged(f"{expected.local} is gone") from e

    # -- outputs and images ----------------------------------------------------------------------

    async def put_output(self, ref: str, body: bytes) -> None:
        await self._bucket.put(keys.output(ref), body)

    async def show_output(self, ref: str, lab: str, output_name: str) -> None:
        """Nothing but the check of the name: who looks for Tango's directory does not look in a bucket."""
        file_name(output_name, "output_file")

    async def output(self, ref: str) -> StoredFile:
        return await self._stored(keys.output(ref), "Output file not found")

    async def put_image(self, body: AsyncIterator[bytes]) -> str:
        async with self._received(body) as received:
            await self._store(received, keys.image(received.md5))
            return received.md5

    async def image(self, ref: str) -> StoredFile:
        return await self._stored(keys.image(ref), "Image archive not found")

    async def _stored(self, key: str, otherwise: str) -> StoredFile:
        try:
            head, size = await self._bucket.begin(key, HEAD)
        except Gone as e:
            raise NotFound(otherwise) from e

        async def read() -> AsyncIterator[bytes]:
            yield head
            async with aclosing(self._bucket.blocks(key, size, len(head))) as blocks:
                async for block in blocks:
                    yield block

        return StoredFile(size=size, read=read)

    # -- the mark ----------------------------------------------------------------------------------

    async def raise_mark(self, at_least: int) -> int:
        """One object a mark, and the highest holds: whoever writes one later lowers none."""
        marks = await self._marks()
        if at_least <= max(marks, default=0):
            return max(marks, default=0)
        await self._bucket.put(keys.mark(at_least))
        marks = await self._marks()
        await self._bucket.delete(keys.mark(mark) for mark in marks[:-1])
        return marks[-1]

    async def _marks(self) -> list[int]:
        names = [keys.last(entry.key) for entry in await self._bucket.all("marks/")]
        return sorted(int(name) for name in names if name.isascii() and name.isdecimal())

    async def check(self) -> None:
        now_s, (checked_s, away) = asyncio.get_running_loop().time(), self._checked
        if now_s - checked_s < CHECKED_S and away == self._bucket.away:
            return
        key = keys.tmp()
        await self._bucket.put(key, bytes(16))
        await self._bucket.delete([key])
        self._checked = (now_s, self._bucket.away)


async def _in_parts(body: AsyncIterator[bytes], part_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body in parts of that size; the last is smaller, and empty only if the body is."""
    gathered, first = bytearray(), True
    async for chunk in body:
        gathered += chunk
        while len(gathered) >= part_bytes:
            part, first = bytes(memoryview(gathered)[:part_bytes]), False
            del gathered[:part_bytes]
            yield part
    if gathered or first:
        yield bytes(gathered)
