"""One run of a job's program on one machine: sends the files, follows the output, names the ending.

Knows the machine and the clock; of the queue only the visible output and whether the job is still
ours. Ends in a Result, or raises a VmmsError, which is the infrastructure's fault and not the job's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..config import Dispatcher
from ..errors import InputChanged, MachineLost, QueueUnavailable
from ..feedback import CappedOutput
from ..machine import Exit, InputFile, Limits, Machine
from ..model import Verdict
from ..vmms.base import ManyHosts, Vmms
from .holds import Cancelled, Hold

ATTEND_AFTER_S = 0.25
"""A job that is shorter is not shown before its end, and a cancel does not come before."""

REACH_AGAIN_S = 1.0
HEARD_WITHIN_S = 20.0
"""A host that was out of reach at the deadline has told of an end within this time after it is back."""

HUNG_S = 1.0
"""Who looks at the clock so much later than was due hung himself, and may not have heard of an end either."""

SHOW_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Result:
    """How the program ended, and what it said."""

    verdict: Verdict
    output: CappedOutput
    exit: Exit | None = None


class _Overdue(Exception):
    """The program's time is over, and it did not end by itself."""


class _TooLong(Exception):
    """The output passed the limit that ends a job."""


class Run:
    """A program on a machine."""

    def __init__(
        self, vmms: Vmms, machine: Machine, limits: Limits, hold: Hold, live: LiveOutput, times: Dispatcher
    ) -> None:
        self._vmms = vmms
        self._machine = machine
        self._limits = limits
        self._hold = hold
        self._live = live
        self._times = times
        self._output = CappedOutput(limits.output_bytes)

    async def send(self, files: list[InputFile]) -> Result | None:
        """Sends the files, and the program starts. A Result only if the inputs themselves are at fault."""
        try:
            async with asyncio.timeout(self._times.copy_in_s):
                await self._vmms.copy_in(self._machine, files, self._limits)
        except InputChanged:
            return Result(Verdict.COPY_IN_FAILED, self._output)
        return None

    async def follow(self) -> Result:
        """Follows the program to its end, its deadline, or the queue's word. Raises VmmsError, Stale."""
        return await self._follow(self._limits.timeout_s + self._vmms.capabilities.overtime_s)

    async def follow_again(self, since_start_s: float) -> Result:
        """The same for a program that another dispatcher started so long ago.

        Its machine ends it in time. What is left here is for a machine whose timer the job has
        stopped, and generous: the files may have taken a part of the time since the start.
        """
        left_s = max(self._limits.timeout_s - since_start_s, 0.0)
        return await self._follow(left_s + self._times.copy_in_s + self._vmms.capabilities.overtime_s)

    async def _follow(self, left_s: float) -> Result:
        try:
            async with asyncio.timeout(None) as deadline:
                ended = await self._watch(left_s, deadline)
        except TimeoutError:
            raise MachineLost("the rest of its output cannot be read") from None
        except _Overdue:
            return Result(Verdict.TIMEOUT, self._output)
        except _TooLong:
            return Result(Verdict.OUTPUT_TOO_LONG, self._output)
        except Cancelled:
            return Result(Verdict.CANCELLED, self._output)
        verdict = Verdict.TIMEOUT if ended.timed_out else Verdict.SUCCESS
        return Result(verdict, self._output, ended)

    async def _watch(self, left_s: float, deadline: asyncio.Timeout) -> Exit:
        try:
            async with asyncio.TaskGroup() as group:
                overdue = group.create_task(self._overdue(left_s))
                reading = group.create_task(self._read())
                with self._attended(group, reading):
                    ended = await self._vmms.run_job(self._machine)
                    # From here on it is our time, and not the program's.
                    overdue.cancel()
                    deadline.reschedule(asyncio.get_running_loop().time() + self._times.finish_s)
                    await reading
        except BaseExceptionGroup as group_error:
            # The first to fail has cancelled the others; it alone says why.
            raise group_error.exceptions[0] from None
        return ended

    @contextmanager
    def _attended(self, group: asyncio.TaskGroup, reading: asyncio.Task[None]) -> Iterator[None]:
        """Shows the output, and hears what the queue says of the job; of most jobs neither, since they are short."""
        tasks: list[asyncio.Task[None]] = []

        def begin() -> None:
            if not reading.done():  # or the group may be about to end
                tasks.extend(map(group.create_task, (self._hold.until_told(), self._live.show_while_growing())))

        due = asyncio.get_running_loop().call_later(ATTEND_AFTER_S, begin)
        try:
            yield
        finally:
            due.cancel()
            for task in tasks:
                task.cancel()

    async def _overdue(self, left_s: float) -> None:
        """Raises _Overdue when the program's time is over, or when it is known again that it has not ended."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + left_s
        await asyncio.sleep(left_s)
        away = loop.time() > due_s + HUNG_S
        if isinstance(self._vmms, ManyHosts):
            while not await self._vmms.reaches(self._machine):
                away = True
                await asyncio.sleep(REACH_AGAIN_S)
        if away:
            await asyncio.sleep(HEARD_WITHIN_S)
        raise _Overdue

    async def _read(self) -> None:
        async for chunk in self._vmms.copy_out(self._machine):
            self._output.add(chunk)
            self._live.add(chunk)
            if self._output.total > self._limits.output_stop_bytes:
                raise _TooLong


class LiveOutput:
    """The first part of a running job's output, shown to whoever asks meanwhile."""

    def __init__(self, publish: Callable[[int, bytes], Awaitable[int]], limit_bytes: int) -> None:
        self._publish = publish
        self._limit = limit_bytes
        self._seen = bytearray()

    def add(self, chunk: bytes) -> None:
        room = self._limit - len(self._seen)
        if room > 0:
            self._seen += chunk[:room]

    async def show_while_growing(self) -> None:
        """Publishes what is new a few times a second."""
        shown = 0
        while True:
            if len(self._seen) > shown:
                with suppress(QueueUnavailable):
                    # A holder before us may have shown some of it already.
                    shown = await self._publish(shown, bytes(self._seen[shown:]))
                if shown < 0:
                    return
            await asyncio.sleep(SHOW_EVERY_S)
