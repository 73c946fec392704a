"""What the local store removes: strays, feedbacks with what shows them, uploads of no more use, a submitter's files.

An upload's change time is when it was last used: uploading it, also again, and a job's pin on it
change that, and reading it does not. What a job has pinned it keeps, whatever becomes of the upload.
"""

from __future__ import annotations

import filecmp
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import BadName
from ..names import file_name, names_submitter
from .base import Removed
from .disk import identity, link_or_copy, older, remove, sync_folder
from .layout import OUTPUT, Layout

PIN = re.compile(r"(?P<made>[0-9a-f]{1,16})-[0-9a-f]{24}-(?P<count>[0-9]{1,6})")
"""When it was made (a link has no age of its own), what makes it unique, how many files it holds."""


class _Upload(NamedTuple):
    path: Path
    used_s: float
    size: int
    identity: tuple[int, int, int]

    def is_still(self, path: Path) -> bool:
        return identity(path) == self.identity


class Housekeeping(Layout):
    # -- strays ----------------------------------------------------------------------------------

    async def sweep(self, live_pins: set[str], age_s: float) -> int:
        return await self._run(self._sweep, live_pins, age_s)

    def _sweep(self, live_pins: set[str], age_s: float) -> int:
        before = self._now_s() - age_s
        old = [path for path in self._pins.iterdir() if self._is_stray(path.name, live_pins, before)]
        return remove([*old, *older(self._tmp, before), *older(self._images, before)])

    @staticmethod
    def _is_stray(name: str, live_pins: set[str], before: float) -> bool:
        pin, _, _ = name.rpartition(".")
        parts = PIN.fullmatch(pin)
        return parts is not None and pin not in live_pins and int(parts["made"], 16) < before

    # -- feedbacks -------------------------------------------------------------------------------

    async def old_outputs(self, age_s: float) -> list[str]:
        return await self._run(lambda: [path.name for path in older(self._outputs, self._now_s() - age_s)])

    async def output_sizes(self, refs: Sequence[str]) -> list[int]:
        return await self._run(lambda: [_size(self._stored_output(ref)) for ref in refs])

    async def drop_output(self, ref: str, lab: str = "", output_name: str = "") -> None:
        shown = self._shown_output(lab, output_name) if lab else None
        await self._run(self._drop_output, self._stored_output(ref), shown)

    def _drop_output(self, stored: Path, shown: Path | None) -> None:
        # First what shows it: afterwards it could not be told whose that is.
        if shown is not None:
            self._take_away(shown, lambda path: _shows(stored, path))
        # Under its own name, by which it is found again if this is cut off and done again.
        aside = self._tmp / stored.name
        with suppress(FileNotFoundError):
            stored.rename(aside)
        with suppress(FileNotFoundError):
            # It may just have been shown; from here on whoever shows it sees that it is gone.
            if shown is not None:
                self._take_away(shown, lambda path: _shows(aside, path))
            aside.unlink()

    # -- uploads ---------------------------------------------------------------------------------

    async def labs(self) -> list[str]:
        return await self._run(self._lab_names)

    def _lab_names(self) -> list[str]:
        with os.scandir(self._labs) as entries:
            return [entry.name for entry in entries if _is_name(entry.name) and entry.is_dir()]

    async def trim_uploads(
        self, labs: Sequence[str], *, unused_s: float | None, most_bytes: int | None, spare_s: float
    ) -> Removed:
        return await self._run(self._trim, labs, unused_s, most_bytes, spare_s)

    def _trim(self, labs: Sequence[str], unused_s: float | None, most_bytes: int | None, spare_s: float) -> Removed:
        now = self._now_s()
        before = now - unused_s if unused_s is not None else float("-inf")
        spared = now - spare_s
        uploads = sorted((one for lab in labs for one in self._uploads(lab)), key=lambda one: one.used_s)
        total = sum(one.size for one in uploads)
        files = freed = 0
        for one in uploads:
            too_much = most_bytes is not None and total > most_bytes
            if one.used_s >= spared or not (one.used_s < before or too_much):
                break  # all that follow were used later
            total -= one.size
            if self._take_away(one.path, one.is_still):
                files += 1
                freed += one.size
        return Removed(files, freed)

    def _uploads(self, lab: str) -> Iterator[_Upload]:
        for path in _files(self._folder(lab)):
            with suppress(FileNotFoundError):
                at = path.lstat()
                yield _Upload(path, at.st_ctime, at.st_size, (at.st_ino, at.st_mtime_ns, at.st_size))

    # -- a submitter -----------------------------------------------------------------------------

    async def erase(self, submitter: str, labs: Sequence[str], job_ids: set[int]) -> Removed:
        return await self._run(self._erase, submitter, labs, job_ids)

    def _erase(self, submitter: str, labs: Sequence[str], job_ids: set[int]) -> Removed:
        # Also feedbacks that a lost dispatcher left: each begins with its job's id and a dot.
        doomed = [path for path in self._outputs.iterdir() if _job_of(path.name) in job_ids]
        for lab in labs:
            folder = self._folder(lab)
            here = [*_files(folder), *_files(folder / OUTPUT)]
            doomed += [path for path in here if names_submitter(path.name, submitter)]
        sizes = [_size(path) for path in doomed]
        files = remove(doomed)
        for folder in {path.parent for path in doomed}:
            sync_folder(folder)
        return Removed(files, sum(sizes))

    # -- within ----------------------------------------------------------------------------------

    def _take_away(self, path: Path, is_meant: Callable[[Path], bool]) -> bool:
        """Removes the file if it is meant; another one that takes its name at this moment comes back."""
        aside = self._tmp / secrets.token_hex(16)
        try:
            judged = identity(path)
            if not is_meant(path):
                return False
            path.rename(aside)
        except (FileNotFoundError, NotADirectoryError):
            return False
        meant = identity(aside) == judged
        if not meant:
            with suppress(FileExistsError):
                link_or_copy(aside, path)
        aside.unlink()
        return meant


def _files(folder: Path) -> list[Path]:
    """Plain files of names that this service gives; none if there is no such directory."""
    try:
        with os.scandir(folder) as entries:
            return [Path(e.path) for e in entries if e.is_file(follow_symlinks=False) and _is_name(e.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_name(name: str) -> bool:
    try:
        return file_name(name, "file") == name
    except BadName:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _shows(stored: Path, shown: Path) -> bool:
    """Whether that is a link to the stored one, or a copy where there are no links."""
    if shown.samefile(stored):
        return True
    return shown.stat().st_nlink == 1 and filecmp.cmp(stored, shown, shallow=False)


def _job_of(ref: str) -> int | None:
    number = ref.partition(".")[0]
    return int(number) if number.isascii() and number.isdecimal() else None
