"""A host that fails one job after the other stops taking them, so that it does not eat those that others could run.

After `dispatcher.pause_after_faults` jobs in a row that it could not even start, the host is shut; where all of
them were of one image and it has others, only that image is. A while later one job is let through: if its program
begins, all is open again, else the while doubles. An operator's resume opens at once.

What a job does after its program began counts neither way, nor does a machine that ended before it (its inputs may
be too much for its memory): no student's program and no file can shut a host.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ..errors import HostUnavailable, ImageNotFound, InputChanged, NotStarted
from ..model import EVERY_IMAGE

log = logging.getLogger(__name__)

LONGEST_S = 600.0
"""Between two tries."""


class Circuit:
    """One thing that can be shut: the host, or an image on it."""

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._opens_at = 0.0
        self._probe: object | None = None
        self.faults = 0
        self.images: set[str] = set()
        """Of the jobs that failed in a row."""
        self.wait_s = 0.0
        """0: it is open."""
        self.why = ""

    @property
    def room(self) -> int | None:
        """Jobs that it lets through now; None: any."""
        if not self.wait_s:
            return None
        return int(self._probe is None and time.monotonic() >= self._opens_at)

    @property
    def opens_in_s(self) -> float:
        """Until it lets a job through, if none is through already."""
        return max(0.0, self._opens_at - time.monotonic())

    def shut(self) -> None:
        """For a while, which is longer than the last one."""
        self.wait_s = min(self.wait_s * 2 or self._first_s, LONGEST_S)
        self._opens_at = time.monotonic() + self.wait_s
        self._probe = None

    def enter(self, job: object) -> None:
        if self.wait_s and self._probe is None:
            self._probe = job

    def leave(self, job: object) -> None:
        if self._probe is job:
            self._probe = None

    def tells(self, job: object) -> bool:
        """Whether the job's fault says anything: jobs that were taken before it was shut say nothing new."""
        return not self.wait_s or self._probe is job


class Breaker:
    """The circuits of one dispatcher. `changed` is called when one is shut or opened."""

    def __init__(self, most: int, first_s: float, changed: Callable[[], None]) -> None:
        self._most = most
        self._first_s = first_s
        self._changed = changed
        self._host = Circuit(first_s)
        self._images: dict[str, Circuit] = {}
        self._opened = asyncio.Event()
        self._opened.set()

    @property
    def room(self) -> int | None:
        """Jobs that the host may take now; None: any."""
        return self._host.room

    def room_for(self, image: str) -> int | None:
        """The same for one image."""
        circuit = self._images.get(image)
        return circuit.room if circuit else None

    @property
    def shut(self) -> dict[str, str]:
        """Image, or EVERY_IMAGE for the whole host, and why it is shut."""
        circuits = {EVERY_IMAGE: self._host, **self._images}
        return {name: circuit.why for name, circuit in circuits.items() if circuit.wait_s}

    async def opens(self) -> None:
        """Returns when the host may take a job."""
        while self.room == 0:
            self._opened.clear()
            try:
                async with asyncio.timeout(self._host.opens_in_s or None):
                    await self._opened.wait()
            except TimeoutError:
                continue

    def enter(self, image: str, job: object) -> None:
        """The job was taken."""
        for circuit in self._circuits(image):
            circuit.enter(job)

    def leave(self, image: str, job: object) -> None:
        """The job is over, however it went."""
        for circuit in self._circuits(image):
            circuit.leave(job)
        self._opened.set()

    def worked(self, image: str) -> None:
        """A program began here."""
        was_shut = self.shut
        self._host = Circuit(self._first_s)
        self._images.pop(image, None)
        if was_shut != self.shut:
            log.warning(
                "jobs begin again%s; they are taken as before", "" if EVERY_IMAGE in was_shut else f" of {image}"
            )
            self._tell()

    def reset(self) -> None:
        """By an operator's order."""
        self._host = Circuit(self._first_s)
        self._images.clear()
        self._tell()

    def fault(self, image: str, job: object, why: str) -> None:
        """The job could not be started, and the host is to blame."""
        if not self._most:
            return
        own = self._images.setdefault(image, Circuit(self._first_s))
        for circuit in (self._host, own):
            circuit.faults += 1
            circuit.images.add(image)
        if len(self._host.images) > 1:
            self._judge(self._host, job, "no job", why)
        self._judge(own, job, f"no job of {image}", why)

    def _judge(self, circuit: Circuit, job: object, what: str, why: str) -> None:
        if circuit.faults < self._most or not circuit.tells(job):
            return
        circuit.shut()
        circuit.why = f"{circuit.faults} jobs in a row could not be started here; the last: {why}"
        log.error("%s is taken for %.0f s, then one to try: %s", what, circuit.wait_s, circuit.why)
        self._tell()

    def _tell(self) -> None:
        self._opened.set()
        self._changed()

    def _circuits(self, image: str) -> list[Circuit]:
        own = self._images.get(image)
        return [self._host, own] if own else [self._host]


def blames_host(error: Exception) -> bool:
    """Of an error before a job's program began: whether another job would have met it, too, wherever it is run."""
    return not isinstance(error, NotStarted | ImageNotFound | InputChanged | HostUnavailable)
