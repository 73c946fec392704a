"""Jobs in sandboxes on this machine."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from count import Starts
from plan import Part, Wishes
from settings import JOBS_PER_S, SETTLE_S

from support.places import own_uids


class Sandboxes:
    """A Backend."""

    dispatchers: ClassVar = 2
    store: ClassVar = "local"
    wishes: ClassVar = Wishes()
    jobs_per_s: ClassVar = JOBS_PER_S
    settle_s: ClassVar = SETTLE_S

    def __init__(self, directory: Path, state: Path, starts: Starts) -> None:
        self._state = state
        self._starts = starts
        self._uid = own_uids()
        self.parts: Mapping[str, Part] = {}
        self.away: list[tuple[float, float]] = []
        self.lost: set[str] = set()

    @staticmethod
    def missing() -> list[str]:
        return [] if shutil.which("bwrap") else ["bwrap"]

    async def open(self) -> None:
        """There is nothing to make."""

    def environment(self, program: str) -> dict[str, str]:
        return {"TANGO_SANDBOX_BWRAP": str(self._starts.bwrap), "TANGO_SANDBOX_UID": str(self._uid)}

    def asks(self, token: str) -> dict[str, object]:
        return {}

    async def destroy(self, machine: str) -> bool:
        for record in self._state.glob(f"*/*/machines/{machine}/supervisor"):
            with suppress(OSError, ValueError, IndexError):
                pid = int(record.read_text().split()[0])
                if os.fsencode(record.parent) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False

    async def strays(self) -> list[str]:
        """Processes of the jobs' own uids."""
        found = []
        for process in Path("/proc").iterdir():
            with suppress(OSError):
                if process.name.isdigit() and 0 <= process.stat().st_uid - self._uid < 1000:
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found += [f"process {process.name}: {command[:100]}"] if command else []
        return found

    async def close(self) -> None:
        """There is nothing to remove."""
