"""The local store's directories, and the threads that work in them.

<labs>/<lab>/<file>             uploads
<labs>/<lab>/output/<name>      finished feedbacks: a projection, links to those below
<labs>/.tango/tmp/              files on their way in
<labs>/.tango/pins/<pin>.<n>    the jobs' holds on their inputs
<labs>/.tango/outputs/<ref>     finished feedbacks
<labs>/.tango/images/<md5>      image archives
<labs>/.tango/mark              the high-water mark of job ids
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from ..config import Store
from ..errors import StoreError
from ..names import RESERVED_PREFIX, file_name
from .disk import server_time_s, store_error

P = ParamSpec("P")
T = TypeVar("T")

OUTPUT = "output"
"""Tango's name of the directory of feedbacks in a courselab, and so no name for an upload."""


class Layout:
    """Raises StoreError if the directories are not there and cannot be made."""

    def __init__(self, settings: Store) -> None:
        self._labs = settings.labs
        own = self._labs / RESERVED_PREFIX
        self._mark = own / "mark"
        self._tmp, self._pins, self._outputs, self._images = (own / n for n in ("tmp", "pins", "outputs", "images"))
        try:
            self._labs.mkdir(parents=True, exist_ok=True)
            own.mkdir(mode=0o700, exist_ok=True)
            for folder in (self._tmp, self._pins, self._outputs, self._images):
                folder.mkdir(exist_ok=True)
        except OSError as e:
            raise StoreError(f"{self._labs}: {e.strerror}") from e
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="store")

    def _folder(self, lab: str) -> Path:
        return self._labs / file_name(lab, "courselab")

    def _stored_output(self, ref: str) -> Path:
        return self._outputs / file_name(ref, "reference")

    def _shown_output(self, lab: str, output_name: str) -> Path:
        return self._labs.joinpath(file_name(lab, "courselab"), OUTPUT, file_name(output_name, "output_file"))

    def _now_s(self) -> float:
        """The time by which ages are told; blocks. No host's own clock: those that share the store differ."""
        return server_time_s(self._tmp)

    async def _run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Work that blocks, in one of the store's threads; the system's errors become ours."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, partial(work, *args, **kwargs))
        except OSError as e:
            raise store_error(e) from e
