"""What the S3 store removes: strays, feedbacks, uploads of no more use, a submitter's files.

An upload was last used when its object was written, or when its note below `used/` was. All times are
the server's. What a job has pinned is a copy, and stays whatever becomes of the upload.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from ..names import names_submitter
from . import s3_keys as keys
from .base import Removed
from .s3_bucket import Bucket, each


class Version(NamedTuple):
    """One object of an upload. The greatest of one name stands; others are left of an upload that was cut off."""

    is_: keys.Upload
    size: int
    written_s: float


class S3Housekeeping:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    # -- strays ----------------------------------------------------------------------------------

    async def sweep(self, live_pins: set[str], age_s: float) -> int:
        pins, images, incoming = await each(self._bucket.all, ("pins/", "images/", "tmp/"))
        before = self._bucket.now_s() - age_s
        strays = [one for one in pins if keys.pin_of(one.key) not in live_pins] + images
        doomed = [one.key for one in strays if one.written_s < before]
        # An object sent in parts is as old as its beginning, and so what is on its way in is left alone for longer.
        begun_before = before - self._bucket.unfinished_s
        doomed += [one.key for one in incoming if one.written_s < begun_before]
        await self._bucket.delete(doomed)
        unfinished = await self._bucket.unfinished()  # last, since some servers have no list of these
        broken = [(key, id_) for key, id_, begun_s in unfinished if begun_s < begun_before]
        await each(lambda one: self._bucket.abort(*one), broken)
        return len(doomed) + len(broken)

    # -- feedbacks -------------------------------------------------------------------------------

    async def old_outputs(self, age_s: float) -> list[str]:
        outputs = await self._bucket.all("outputs/")
        before = self._bucket.now_s() - age_s
        return [keys.last(one.key) for one in outputs if one.written_s < before]

    async def output_sizes(self, refs: Sequence[str]) -> list[int]:
        found = await each(self._bucket.find, map(keys.output, refs))
        return [one.size if one is not None else 0 for one in found]

    async def drop_output(self, ref: str, lab: str = "", output_name: str = "") -> None:
        await self._bucket.delete([keys.output(ref)])

    # -- uploads ---------------------------------------------------------------------------------

    async def labs(self) -> list[str]:
        return [keys.last(entry.key) for entry in await self._bucket.all("labs/")]

    async def trim_uploads(
        self, labs: Sequence[str], *, unused_s: float | None, most_bytes: int | None, spare_s: float
    ) -> Removed:
        uploads = [one for found in await each(self._by_use, labs) for one in found]
        now_s = self._bucket.now_s()
        before = now_s - unused_s if unused_s is not None else float("-inf")
        total = sum(one.size for _, one in uploads)
        files = freed = 0
        for used_s, one in sorted(uploads):
            too_much = most_bytes is not None and total > most_bytes
            if used_s >= now_s - spare_s or not (used_s < before or too_much):
                break  # all that follow were used later
            total -= one.size
            if await self._used_s(one) <= used_s:
                # Exactly this object: one that takes its place at this moment has another key.
                await self._bucket.delete([one.is_.key, keys.used(one.is_.lab, one.is_.name)])
                files, freed = files + 1, freed + one.size
        return Removed(files, freed)

    async def _by_use(self, lab: str) -> list[tuple[float, Version]]:
        """When each upload was last used. Removes those that others have replaced."""
        versions, notes = await asyncio.gather(self._versions(lab), self._bucket.all(keys.used(lab)))
        noted = {keys.used_name(lab, note.key): note.written_s for note in notes}
        stand = _standing(versions)
        await self._bucket.delete(one.is_.key for one in versions if one != stand[one.is_.name])
        return [(max(one.written_s, noted.get(name, 0.0)), one) for name, one in stand.items()]

    async def _used_s(self, one: Version) -> float:
        note = await self._bucket.find(keys.used(one.is_.lab, one.is_.name))
        return max(one.written_s, note.written_s if note is not None else 0.0)

    async def _standing(self, lab: str) -> dict[str, Version]:
        return _standing(await self._versions(lab))

    async def _versions(self, lab: str, name: str | None = None) -> list[Version]:
        """All objects of a courselab's uploads, or of those under one name."""
        found = []
        async for entry in self._bucket.scan(keys.uploads(lab, name)):
            upload = keys.read_upload(lab, entry.key)
            if upload is not None:
                found.append(Version(upload, entry.size, entry.written_s))
        return found

    # -- a submitter -----------------------------------------------------------------------------

    async def erase(self, submitter: str, labs: Sequence[str], job_ids: set[int]) -> Removed:
        outputs = await self._bucket.all("outputs/")
        # Also feedbacks that a lost dispatcher left: each begins with its job's id and a dot.
        doomed = [(one.key, one.size) for one in outputs if _job_of(keys.last(one.key)) in job_ids]
        files = len(doomed)
        for versions in await each(self._versions, labs):
            theirs = [one for one in versions if names_submitter(one.is_.name, submitter)]
            names = {(one.is_.lab, one.is_.name) for one in theirs}
            files += len(names)
            doomed += [(one.is_.key, one.size) for one in theirs]
            doomed += [(keys.used(*name), 0) for name in names]
        await self._bucket.delete(key for key, _ in doomed)
        return Removed(files, sum(size for _, size in doomed))


def _standing(versions: Sequence[Version]) -> dict[str, Version]:
    stand: dict[str, Version] = {}
    for one in versions:
        stand[one.is_.name] = max(one, stand.get(one.is_.name, one))
    return stand


def _job_of(ref: str) -> int | None:
    number = ref.partition(".")[0]
    return int(number) if number.isascii() and number.isdecimal() else None
