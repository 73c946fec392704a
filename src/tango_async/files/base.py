"""What every courselab store promises.

Files are whole: a reader sees the old upload or the new one, never part of either. A job runs
exactly the files that stood when it was added, since it is given a pin on them. Whatever a call has
returned survives a crash of the machine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from ..machine import InputFile
from ..model import PinnedFile


@dataclass(frozen=True, slots=True)
class Pin:
    """A job's own hold on its inputs."""

    id: str
    files: tuple[PinnedFile, ...]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A finished file. Send it from `path` where there is one; `read` works with every store."""

    size: int
    read: Callable[[], AsyncIterator[bytes]]
    path: Path | None = None


class Removed(NamedTuple):
    """What was removed."""

    files: int
    size: int


class FileStore(Protocol):
    """A courselab store. `lab` is always `<key>-<courselab>`, made of checked names."""

    async def open(self) -> None:
        """Makes sure that it can be used; may be repeated. Raises ConfigError, StoreError."""

    async def open_lab(self, lab: str) -> tuple[bool, dict[str, str]]:
        """Makes the lab if it is new. Returns whether it was, and the md5 (hex) of each of its files."""

    async def put(self, lab: str, name: str, body: AsyncIterator[bytes]) -> bool:
        """Stores an upload. Returns False if the very same content stood there already.

        Memory does not grow with the body. Raises NotFound (no such lab), StoreFull.
        """

    async def pin(self, lab: str, wanted: Sequence[tuple[str, str]]) -> Pin:
        """Holds the inputs `(local name, destination name)` as they stand now.

        Raises NotFound, whose message has a line for every missing file, fit to be shown to the client.
        """

    async def unpin(self, pin: str) -> None:
        """Lets a pin go; one that is gone already is no error."""

    def inputs(self, pin: str, files: Sequence[PinnedFile]) -> list[InputFile]:
        """The pinned files, to be streamed into a machine. Their chunks raise InputChanged, StoreError."""

    async def put_output(self, ref: str, body: bytes) -> None:
        """Stores a finished feedback under `ref` for good; the same again is no error."""

    async def show_output(self, ref: str, lab: str, output_name: str) -> None:
        """Shows a stored feedback as Tango's `output/<name>`, for those who look there. Never fails a job."""

    async def output(self, ref: str) -> StoredFile:
        """A finished feedback. Raises NotFound."""

    async def drop_output(self, ref: str, lab: str = "", output_name: str = "") -> None:
        """Removes a feedback; one that is gone already is no error.

        With it goes what shows it as that output of the lab, unless that shows another one by now.
        """

    async def output_sizes(self, refs: Sequence[str]) -> list[int]:
        """The size of each feedback; 0 for one that is gone."""

    async def put_image(self, body: AsyncIterator[bytes]) -> str:
        """Stores an image archive for the dispatchers to load. Returns its handle, the content's md5."""

    async def image(self, ref: str) -> StoredFile:
        """An image archive. Raises NotFound."""

    async def sweep(self, live_pins: set[str], age_s: float) -> int:
        """Removes what no one owns and is older than `age_s`. Returns how many things it removed."""

    async def old_outputs(self, age_s: float) -> list[str]:
        """References of the feedbacks that are older than `age_s`; whose they are, the queue knows."""

    async def labs(self) -> list[str]:
        """All courselabs."""

    async def trim_uploads(
        self, labs: Sequence[str], *, unused_s: float | None, most_bytes: int | None, spare_s: float
    ) -> Removed:
        """Removes uploads of these labs: those not used for `unused_s`, and above `most_bytes` for all of
        them together the longest unused. What was used within `spare_s` stays whatever it is.

        An upload is used when it is sent, also again, and when a job's inputs are pinned.
        """

    async def erase(self, submitter: str, labs: Sequence[str], job_ids: set[int]) -> Removed:
        """Removes everything in these labs whose name is the submitter's, and all feedbacks of these jobs."""

    async def raise_mark(self, at_least: int) -> int:
        """Raises the high-water mark of job ids to `at_least`, never lowers it; returns the mark."""

    async def check(self) -> None:
        """Stores something small and removes it. Raises StoreError, StoreFull."""

    async def close(self) -> None: ...
