"""A wall clock for a process of a test's own, which the test may set; no other process sees it."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

from support.engine import Lacking

SOURCE = Path(__file__).with_name("clock.c")


class Clock:
    def __init__(self, directory: Path) -> None:
        """Raises Lacking."""
        if shutil.which("cc") is None:
            raise Lacking("no C compiler is installed")
        library = directory / "clock.so"
        subprocess.run(["cc", "-Wall", "-Werror", "-O1", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
        self._file = directory / "clock"
        self._file.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "CLOCK": str(self._file)}
        """For the process."""

    def set(self, ahead_s: float) -> None:
        """So much before the time that it is; behind it if that is negative."""
        with self._file.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), struct.pack("=q", int(ahead_s * 1_000_000)), 0)
