"""Where the files of a soak lie: what it needs of a store, and those that it knows."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Protocol

from bucket import Bucket
from plan import Part, Wish, Wishes
from program import Program

from support.s3_server import server_kinds

DISK_BYTES = 160 * 1024**2


class Store(Protocol):
    """The files' side of a stage. It is made before anything runs, and told the names of servers and dispatchers."""

    stray_age_s: float
    """The setting: longer than anything that a torment holds up takes to be named in a job."""
    settle_s: float
    """So long after the last torment everything that belongs to no job is removed."""
    wishes: Wishes
    """Torments of its own parts."""
    programs: list[Program]
    """Processes that it keeps running."""
    parts: Mapping[str, Part]
    """Name → what its wishes name. One of these that was killed works when every server opens a courselab."""

    async def open(self) -> None:
        """Makes what stands before a server starts."""

    def host(self, program: str) -> str:
        """The host that a server or a dispatcher runs on: those of one host share its disk."""

    def environment(self, program: str) -> dict[str, str]:
        """Settings of that server or dispatcher."""

    async def strays(self, refs: set[str]) -> list[str]:
        """What belongs to no job when all are dead, and these are their feedbacks; also feedbacks that are not there.

        Looked for where it lies, without the service.
        """

    async def close(self) -> None: ...


class LocalDisk:
    """A small disk that all share, and that gets full."""

    stray_age_s: ClassVar = 15.0
    settle_s: ClassVar = stray_age_s + 20.0
    wishes: ClassVar = Wishes(others=[Wish(3, "fill", "disk", 5)])

    def __init__(self, directory: Path) -> None:
        self._data = directory / "data"
        self._labs = directory / "labs"
        self.programs: list[Program] = []
        self.parts: Mapping[str, Part] = {"disk": SmallDisk(self._labs / "ballast")}

    async def open(self) -> None:
        self._labs.mkdir()
        size = f"size={DISK_BYTES},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "soak", str(self._labs)], check=True)

    def host(self, program: str) -> str:
        return "host"

    def environment(self, program: str) -> dict[str, str]:
        return {"TANGO_DATA_DIR": str(self._data), "TANGO_COURSELABS": str(self._labs)}

    async def strays(self, refs: set[str]) -> list[str]:
        own = self._labs / ".tango"
        found = [f"{p.relative_to(self._labs)}" for name in ("tmp", "pins") for p in (own / name).iterdir()]
        found += [f"{p.relative_to(self._labs)}" for p in (own / "outputs").iterdir() if p.name not in refs]
        return found + [f"no file {ref}" for ref in refs if not (own / "outputs" / ref).exists()]

    async def close(self) -> None:
        subprocess.run(["umount", str(self._labs)], check=False)


class SmallDisk:
    """A disk, as it is tormented."""

    kind = "disk"

    def __init__(self, ballast: Path) -> None:
        self._ballast = ballast

    async def begin(self, what: str) -> bool:
        await asyncio.to_thread(self._fill)
        return True

    async def undo(self, what: str) -> None:
        self._ballast.unlink()

    def _fill(self) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))


KINDS = ("local", "s3", "seaweedfs", "moto")
"""s3 is the first of the other two that this machine has."""


def resolve(kind: str) -> str:
    """With `s3` made plain; empty if this machine lacks it."""
    if kind == "local":
        return kind
    return next((one for one in ("seaweedfs", "moto") if kind in ("s3", one) and one in server_kinds()), "")


def make_store(kind: str, directory: Path, hosts: Sequence[str]) -> Store:
    """Of a kind that was resolved. Nothing is started yet."""
    return LocalDisk(directory) if kind == "local" else Bucket(kind, directory, hosts)
